"""The local asker: the base model, with the asker that ships for it where there is one, asks for what a passage says.

Which facts are worth asking for is found by their form: names, numbers, dates, what stands in quotes. For each the model writes
the question that it answers: the reader's task turned round, trained on the same articles (`train_asker.py`). Of a conversation
it is also asked what is discussed, by an asker of its own that writes the answer too.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from memoryd.engine.request import DEFAULT_REPEAT_PENALTY, Generation, TokenIds
from memoryd.errors import FailedPrecondition
from memoryd.learn.adapter_files import CONFIG, WEIGHTS
from memoryd.learn.discussion import discussion_request, speakers
from memoryd.learn.study import Asked
from memoryd.models import Models
from memoryd.recall.prompt import TextBlock, assemble

ASKERS = Path(__file__).parent.parent / "assets" / "askers"
FACTS, DISCUSSIONS = "facts", "discussions"
"""What an asker asks for."""
_CARD = "memoryd.json"
_MOST = 6  # answers of one passage that questions are made for
_SPEAKERS = 2  # of a conversation, that it is asked for: those who speak most
_WRITING: Mapping[str, Mapping[str, Any]] = {
    FACTS: {"max_tokens": 40, "stop": ["\n"]},
    DISCUSSIONS: {"max_tokens": 160, "repeat_penalty": DEFAULT_REPEAT_PENALTY},  # sentences, as answers are
}
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
        self._askers = {asks: asker_path(models.info.base_fingerprint, asks) for asks in (FACTS, DISCUSSIONS)}

    @property
    def name(self) -> str:
        return f"local model, {'asker' if self._askers[FACTS] else 'untrained'}"

    async def ask(self, text: str, title: str, scope: str = "") -> Asked:
        """See `Asker`."""
        answers = spread(answers_in(text), _MOST)
        made = await asyncio.gather(*(self._write(FACTS, text, title, request_for(answer), scope) for answer in answers))
        pairs = [(said, answer) for (said, _, _), answer in zip(made, answers, strict=True) if said.endswith("?")]
        return _asked(pairs, made)

    async def discuss(self, text: str, title: str, scope: str = "") -> Asked:
        """See `Asker`. Nothing where no asker of discussions ships for the base model: untrained it writes no such pair."""
        if self._askers[DISCUSSIONS] is None:
            return Asked([])
        requests = [discussion_request(speaker) for speaker in ("", *speakers(text)[:_SPEAKERS])]
        made = await asyncio.gather(*(self._write(DISCUSSIONS, text, title, request, scope) for request in requests))
        written = ([line.strip() for line in said.splitlines() if line.strip()] for said, _, _ in made)
        return _asked([(lines[0], lines[1]) for lines in written if len(lines) > 1], made)

    async def _write(self, asks: str, text: str, title: str, request: str, scope: str) -> tuple[str, int, int]:
        """What it writes, tokens read, and tokens written."""
        prompt = assemble(self._models.tokenizer, [TextBlock(text, title)], request)
        ids = tuple(prompt.token_ids())
        path, adapter = self._askers[asks], self._adapter_id(asks)
        adapters = [(adapter, 1.0)] if path else []
        generation = Generation([TokenIds(ids)], adapters=adapters, background=True, scope=scope, **_WRITING[asks])
        try:
            said, wrote = await self._generate(generation)
        except FailedPrecondition as error:
            if error.reason != "ADAPTER_NOT_LOADED" or path is None:
                raise
            config, weights = ((path / name).read_bytes() for name in (CONFIG, WEIGHTS))
            await self._models.worker.load_adapter(adapter, config, weights)
            said, wrote = await self._generate(generation)
        return said.strip(), len(ids), wrote

    def _adapter_id(self, asks: str) -> str:
        return f"asker-{asks}-{self._models.info.base_fingerprint[:16]}"  # no memory's: those are ids that `new_id` made

    async def _generate(self, request: Generation) -> tuple[str, int]:
        said, wrote = "", 0
        async with aclosing(self._models.worker.generate(request)) as events:
            async for event in events:
                said, wrote = said + event.text, event.output_tokens or wrote
        return said, wrote


def _asked(pairs: Sequence[tuple[str, str]], made: Sequence[tuple[str, int, int]]) -> Asked:
    return Asked(pairs, sum(read for _, read, _ in made), sum(wrote for _, _, wrote in made))


def asker_path(base_fingerprint: str, asks: str = FACTS) -> Path | None:
    """The PEFT directory of the asker for this base model; None where none is shipped."""
    for card in sorted(ASKERS.glob(f"*/{_CARD}")):
        about = json.loads(card.read_text())
        if (about["base_fingerprint"], about.get("asks", FACTS)) == (base_fingerprint, asks):
            return card.parent
    return None
