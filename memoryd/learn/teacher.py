"""A teacher: any endpoint that speaks OpenAI's chat completions makes the questions, as GPT-4 did for LLoCO.

The passages are sent there, which is why there is none unless the operator configures it.
"""

from __future__ import annotations

import json
import re

from memoryd.errors import FailedPrecondition, Unavailable
from memoryd.learn.study import Asked

_SECONDS = 120.0
_PROMPT = (
    "Write up to {count} questions that a reader of the passage below could be asked, each about another of its facts. Each "
    "must be understood without seeing the passage, and be answered by it. Answer each in as few words as possible, in the "
    'passage\'s own words. Reply with nothing but a JSON array: [{{"question": "…", "answer": "…"}}]\n\n{title}{text}'
)
_QUESTIONS = 6
_ARRAY = re.compile(r"\[.*\]", re.DOTALL)


class Teacher:
    """See `Asker`."""

    def __init__(self, url: str, model: str, key: str = "") -> None:
        """`url`: what comes before /chat/completions."""
        from openai import AsyncOpenAI  # takes a second, and few have a teacher

        self._model = model
        # A failed try is the job's to repeat, with back-off, for ever.
        self._client = AsyncOpenAI(base_url=url, api_key=key or "none", timeout=_SECONDS, max_retries=0)

    @property
    def name(self) -> str:
        return self._model

    async def ask(self, text: str, title: str) -> Asked:
        """Unavailable where it can't be reached or is too busy; FailedPrecondition where it refuses."""
        import openai

        content = _PROMPT.format(count=_QUESTIONS, title=f"{title}\n" if title else "", text=text)
        try:
            reply = await self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": content}], temperature=0.7
            )
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            raise Unavailable(f"the teacher can't answer now: {type(error).__name__}", reason="TEACHER_UNAVAILABLE") from None
        except openai.APIStatusError as error:  # never with its body, which may repeat what was sent
            raise FailedPrecondition(
                f"the teacher refuses with {error.status_code}: check teacher_url, teacher_model and teacher_key",
                reason="TEACHER_REFUSES",
            ) from None
        except (openai.OpenAIError, ValueError):
            raise Unavailable("the teacher's reply is not one of chat completions", reason="TEACHER_UNREADABLE") from None
        usage = reply.usage
        said = (reply.choices[0].message.content or "") if reply.choices else ""
        return Asked(read_pairs(said), usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0)


def read_pairs(said: str) -> list[tuple[str, str]]:
    """(question, answer) of a JSON array, whatever stands around it; nothing where there is none."""
    match = _ARRAY.search(said)
    try:
        rows = json.loads(match[0]) if match else []
    except ValueError:
        return []
    pairs = [(row.get("question"), row.get("answer")) for row in rows if isinstance(row, dict)]
    return [(q.strip(), a.strip()) for q, a in pairs if isinstance(q, str) and isinstance(a, str) and q.strip() and a.strip()]
