"""A teacher: any endpoint that speaks OpenAI's chat completions makes the questions, as GPT-4 did for LLoCO.

The passages are sent there, which is why there is none unless the operator configures it.
"""

from __future__ import annotations

import json
import re

from memoryd.errors import FailedPrecondition, InvalidArgument, Unavailable
from memoryd.learn.study import Asked

_SECONDS = 120.0
_PROMPT = (
    "Write up to {count} questions that a reader of the passage below could be asked, each about another of its facts. Each "
    "must be understood without seeing the passage, and be answered by it. Answer each in as few words as possible, in the "
    'passage\'s own words. Reply with nothing but a JSON array: [{{"question": "…", "answer": "…"}}]\n\n{title}{text}'
)
_DISCUSSIONS = (
    "Write up to {count} questions about what is discussed in the conversation below: what was talked about or decided, or what"
    " somebody thought of it. Each must be understood without seeing the conversation. Answer each in two to four sentences,"
    ' from the conversation alone. Reply with nothing but a JSON array: [{{"question": "…", "answer": "…"}}]\n\n{title}{text}'
)
_QUESTIONS = 6
_LONG_QUESTIONS = 3
_OF_WHAT_WAS_SENT = {400, 413, 422}  # a content filter, or a passage that is too long for the model
_ARRAY = re.compile(r"\[\s*\{")  # its beginning
_TRIES = 32  # beginnings of arrays that are looked at
_LONGEST = 8192  # characters of a question or an answer, as in the API
_UNKEPT = re.compile("[\0\ud800-\udfff]")  # what no store takes: JSON may have escaped it


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

    async def ask(self, text: str, title: str, scope: str = "") -> Asked:
        """Unavailable where it can't be reached or is too busy, which is tried for ever; InvalidArgument where it refuses
        what was sent; FailedPrecondition where it refuses all the same or is no such endpoint."""
        return await self._ask(_PROMPT.format(count=_QUESTIONS, title=f"{title}\n" if title else "", text=text))

    async def discuss(self, text: str, title: str, scope: str = "") -> Asked:
        """As `ask`."""
        return await self._ask(_DISCUSSIONS.format(count=_LONG_QUESTIONS, title=f"{title}\n" if title else "", text=text))

    async def _ask(self, content: str) -> Asked:
        import openai

        try:
            reply = await self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": content}]
            )
            return _read(reply)
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            raise Unavailable(f"the teacher can't answer now: {type(error).__name__}", reason="TEACHER_UNAVAILABLE") from None
        except openai.APIStatusError as error:  # never with its body, which may repeat what was sent
            if error.status_code in _OF_WHAT_WAS_SENT:
                raise InvalidArgument(
                    f"the teacher refuses a passage with {error.status_code}: check teacher_model",
                    reason="TEACHER_REFUSES_PASSAGE",
                ) from None
            if error.status_code == 408:
                raise Unavailable("the teacher can't answer now: it timed out", reason="TEACHER_UNAVAILABLE") from None
            raise FailedPrecondition(
                f"the teacher refuses with {error.status_code}: check teacher_url, teacher_model and teacher_key",
                reason="TEACHER_REFUSES",
            ) from None
        except (openai.OpenAIError, ValueError):
            raise FailedPrecondition(
                "the teacher's reply is not one of chat completions: check teacher_url", reason="TEACHER_UNREADABLE"
            ) from None


def _read(reply: object) -> Asked:
    """ValueError where it is none: the client makes a chat completion of any JSON."""
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list):
        raise ValueError("no choices")
    message = getattr(choices[0], "message", None) if choices else None
    said = getattr(message, "content", None)
    if (choices and message is None) or not isinstance(said, str | None):
        raise ValueError("no message")
    usage = getattr(reply, "usage", None)
    read, wrote = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Asked(read_pairs(said or ""), read if isinstance(read, int) else 0, wrote if isinstance(wrote, int) else 0)


def read_pairs(said: str) -> list[tuple[str, str]]:
    """(question, answer) of JSON arrays, whatever stands around them; nothing where there is none."""
    pairs: list[tuple[str, str]] = []
    at, decoder = 0, json.JSONDecoder()
    for _ in range(_TRIES):
        if not (match := _ARRAY.search(said, at)):
            break
        try:
            rows, at = decoder.raw_decode(said, match.start())
        except (ValueError, RecursionError):  # prose, or meant to be no good
            at = match.start() + 1
            continue
        pairs += ((_kept(row.get("question")), _kept(row.get("answer"))) for row in rows if isinstance(row, dict))
    return [(question, answer) for question, answer in pairs if question and answer]


def _kept(value: object) -> str:
    """The text, where it is one that can be kept."""
    text = value.strip() if isinstance(value, str) else ""
    return "" if len(text) > _LONGEST or _UNKEPT.search(text) else text
