"""What is done to a memory of the learning eval before it is asked: it is written, studied, learned from.

Each step is kept when it is done, and not done again. One that a stop cut off is done again without harm: a document is stored
once, and a job is requested under an id of its own, so that asking again gives the same job, in whatever state it is.

Self-study and supplied examples are learned from one after the other. Examples are replaced between them as one step, after the
first adapter is there and before the second is asked for: nothing learns from what is not its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memoryd_client import Client, Job, JobState, LearnReceipt, Memory, Stage, StudyReceipt

from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.learning_data import Asked

DAYS = 3 * 86400.0
"""Seconds that anything may take."""


@dataclass(frozen=True, slots=True)
class Studied:
    """What self-study made."""

    passages: int
    questions: int
    examples: int
    seconds: float
    """From the request to the end: stops count."""


@dataclass(frozen=True, slots=True)
class Learned:
    """An adapter, and what judging found; all but `verdict` is empty where there was nothing to learn from."""

    adapter: str
    """memories/{memory}/adapters/{adapter}."""
    examples: int
    held_out: int
    seconds: float
    verdict: str
    better: bool = False
    """Whether it would be served: `learn()` without `keep_inactive` would have activated it."""
    before: float | None = None
    """Mean score of what is in use, the reader, 0..1; None where too few examples were held out to score."""
    after: float | None = None
    """That of the adapter."""
    judged: int = 0
    """Questions that these are of: the held-out examples, and as many to be refused as go with them."""


class Steps:
    """Those of one memory. `say` gets a line for each that was done now."""

    def __init__(self, client: Client, memory: Memory, kept: KeptAnswers, say: Callable[[str], None]) -> None:
        self._client = client
        self._memory = memory
        self._kept = kept
        self._say = say

    def write(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Documents' names by title, all of them compressed."""
        names = {title: self._write(title, text) for title, text in texts.items()}
        self._once("compressed", lambda: self._compressed(list(names.values())))
        return names

    def study(self, most: int) -> Studied:
        """Makes so many examples at most of the memory's own passages."""

        def request() -> str:
            return self._memory.study(max_examples=most, request_id=f"{self._memory.id}/study").name

        def receipt() -> dict[str, Any]:
            job = self._ended(self._once("self-study/study requested", request))
            made = job.receipt
            assert isinstance(made, StudyReceipt)
            return asdict(Studied(made.passages, made.questions, made.examples, _seconds(job)))

        return Studied(**self._once("self-study/studied", receipt))

    def supply(self, examples: Sequence[Asked], names: Mapping[str, str]) -> None:
        """These examples, in place of all that the memory has."""

        def replace() -> int:
            for example in list(self._memory.examples.list()):
                self._memory.examples.delete(example)
            given = [(one.question, one.golds[0], [names[one.document]]) for one in examples]
            return len(self._memory.examples.add_many(given).examples) if given else 0

        self._once("supplied/examples", replace)

    def learn(self, arm: str) -> Learned:
        """From the examples that are there now, as `learn()` does for everybody, except that the adapter is not activated: each
        one is judged against the reader."""

        def request() -> str:
            return self._memory.learn(keep_inactive=True, request_id=f"{self._memory.id}/{arm}/learn").name

        def receipt() -> dict[str, Any]:
            made = self._ended(self._once(f"{arm}/learn requested", request)).receipt
            assert isinstance(made, LearnReceipt)
            return asdict(Learned(made.adapter, made.examples, made.held_out, made.seconds, made.verdict))

        learned = Learned(**self._once(f"{arm}/learned", receipt))
        return replace(learned, **self._judged(learned.adapter)) if learned.adapter else learned

    def _write(self, title: str, text: str) -> str:
        return str(self._once(f"written/{title}", lambda: self._memory.write(text, title=title).document.name))

    def _compressed(self, names: Sequence[str]) -> int:
        for name in names:
            self._memory.documents.wait(name, Stage.COMPRESSED, timeout=DAYS)
        return len(names)

    def _judged(self, adapter: str) -> dict[str, Any]:
        judgement = self._memory.adapters.get(adapter).judgement
        kinds = judgement.kinds if judgement else ()
        overall = {"before": kinds[0].before, "after": kinds[0].after, "judged": kinds[0].count} if kinds else {}
        return {"better": judgement is not None and judgement.better, **overall}

    def _ended(self, job: str) -> Job:
        """JobFailed where it did not succeed; one that did not in an earlier run is tried again."""
        if self._client.jobs.get(job).state in (JobState.DEAD, JobState.CANCELLED):
            self._client.jobs.retry(job)
        return self._client.jobs.wait(job, timeout=DAYS)

    def _once(self, step: str, do: Callable[[], object]) -> Any:
        key = f"{self._memory.id}/{step}"
        if key not in self._kept:
            self._kept.put(key, json.dumps(do()))
            self._say(f"{key}: {self._kept[key]}")
        return json.loads(self._kept[key])


def _seconds(job: Job) -> float:
    return (job.end_time - job.create_time).total_seconds() if job.end_time and job.create_time else 0.0
