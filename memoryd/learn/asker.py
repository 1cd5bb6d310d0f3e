"""The local asker: the base model, with the asker that ships for it where there is one, asks for what a passage says.

What is worth asking for is found by its form: names, numbers, dates, what stands in quotes. For each the model writes the
question that it answers: the reader's task turned round, trained on the same articles (`train_asker.py`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from memoryd.engine.request import Generation, TokenIds
from memoryd.errors import FailedPrecondition
from memoryd.learn.adapter_files import CONFIG, WEIGHTS
from memoryd.learn.study import Asked
from memoryd.models import Models
from memoryd.recall.prompt import TextBlock, assemble

ASKERS = Path(__file__).parent.parent / "assets" / "askers"
_CARD = "memoryd.json"
_MOST = 6  # answers of one passage that questions are made for
_QUESTION_TOKENS = 40
_COMMON = (  # with a capital they only begin a sentence
    "a|an|the|this|that|these|those|he|she|it|they|we|i|you|his|her|its|their|in|on|at|as|for|from|with|by|to|but|and|or|if"
    "|when|while|there"
)
_GAP = r"(?=\s)[^\S\n]*+\n?+[^\S\n]*+"  # white space without an empty line
_CAPITAL = r"[A-Z][\w'’.-]*[\w]"
_NAME = rf"\b(?!(?i:{_COMMON})\b){_CAPITAL}(?:{_GAP}(?:(?:of|the|de|and|van|von){_GAP})?{_CAPITAL})*"
_NUMBER = r"(?:[$£€]\s?)?\d[\d.,:]*\d|\d+"
_UNITS = "%|percent|million|billion|thousand|years?|days?|hours?|minutes?|miles?|km|met(?:er|re)s?|people|pounds|dollars"
_UNIT = rf"(?:\s?(?:{_UNITS}))?"
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"(?:\d{{1,2}}\s+)?{_MONTH}(?:\s+\d{{1,2}}(?:st|nd|rd|th)?\b)?(?:,?\s+\d{{4}})?"
_QUOTED = r"[\"“]([^\"”]{3,60})[\"”]"
_ANSWERS = re.compile(rf"{_QUOTED}|({_DATE})|((?:{_NUMBER}){_UNIT})|({_NAME})")


def request_for(answer: str) -> str:
    """What the model is asked to do, after the passage."""
    return f"Ask a question that is answered by: {answer}"


def answers_in(text: str) -> list[str]:
    """What questions could be asked for, in order of appearance, each once."""
    found: list[str] = []
    for match in _ANSWERS.finditer(text):
        words = next(group for group in match.groups() if group).strip(" .,;:'’-").split()
        answer = " ".join(words)
        begins_sentence = match.start() == 0 or text[: match.start()].rstrip(' "“').endswith((".", "!", "?", "\n"))
        if begins_sentence and len(words) == 1 and not answer[0].isdigit():
            continue  # a capital that only begins the sentence says nothing
        if answer and answer not in found:
            found.append(answer)
    return found


def spread(answers: Sequence[str], most: int) -> list[str]:
    """As many of them, from all over the text."""
    if len(answers) <= most:
        return list(answers)
    return [answers[at * len(answers) // most] for at in range(most)]


class LocalAsker:
    """Asks with the worker's base model."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._asker = asker_path(models.info.base_fingerprint)

    @property
    def name(self) -> str:
        return f"local model, {'asker' if self._asker else 'untrained'}"

    async def ask(self, text: str, title: str, scope: str = "") -> Asked:
        """See `Asker`."""
        answers = spread(answers_in(text), _MOST)
        made = await asyncio.gather(*(self._question(text, title, answer, scope) for answer in answers))
        pairs = [(question, answer) for (question, _, _), answer in zip(made, answers, strict=True) if question.endswith("?")]
        return Asked(pairs, sum(read for _, read, _ in made), sum(wrote for _, _, wrote in made))

    async def _question(self, text: str, title: str, answer: str, scope: str) -> tuple[str, int, int]:
        """The question, tokens read, and tokens written."""
        prompt = assemble(self._models.tokenizer, [TextBlock(text, title)], request_for(answer))
        ids = tuple(prompt.token_ids())
        adapters = [(self._adapter_id, 1.0)] if self._asker else []
        request = Generation([TokenIds(ids)], _QUESTION_TOKENS, stop=["\n"], adapters=adapters, background=True, scope=scope)
        try:
            said, wrote = await self._generate(request)
        except FailedPrecondition as error:
            if error.reason != "ADAPTER_NOT_LOADED" or self._asker is None:
                raise
            config, weights = ((self._asker / name).read_bytes() for name in (CONFIG, WEIGHTS))
            await self._models.worker.load_adapter(self._adapter_id, config, weights)
            said, wrote = await self._generate(request)
        return said.strip(), len(ids), wrote

    @property
    def _adapter_id(self) -> str:
        return f"asker-{self._models.info.base_fingerprint[:16]}"  # no memory's: those are ids that `new_id` made

    async def _generate(self, request: Generation) -> tuple[str, int]:
        said, wrote = "", 0
        async with aclosing(self._models.worker.generate(request)) as events:
            async for event in events:
                said, wrote = said + event.text, event.output_tokens or wrote
        return said, wrote


def asker_path(base_fingerprint: str) -> Path | None:
    """The PEFT directory of the asker for this base model; None where none is shipped."""
    for card in sorted(ASKERS.glob(f"*/{_CARD}")):
        if json.loads(card.read_text())["base_fingerprint"] == base_fingerprint:
            return card.parent
    return None
