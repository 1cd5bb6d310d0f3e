"""What the learning eval does to a memory, stopped at every moment there is, goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from memoryd_client import Example, Job, JobState, JudgedKind, Judgement, LearnReceipt, StudyReceipt

from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.learning_data import Asked
from memoryd.eval.learning_steps import Learned, Steps, Studied

TEXTS = {"One": "the first text", "Two": "the second text"}
EXAMPLES = [Asked("Who?", ("Ann", "she"), "One"), Asked("Where?", ("here",), "Two")]
TIME = datetime(2025, 1, 1, tzinfo=UTC)


class Stop(BaseException):
    """As KeyboardInterrupt is."""


@dataclass
class Daemon:
    """What is durable: a fake of a daemon with one memory. `learned` is what each LEARN job found when it was asked for, and
    when it ended: it may begin at any moment between."""

    documents: dict[str, str] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    learned: dict[str, list[set[str]]] = field(default_factory=dict)
    finds: int = 2  # examples of self-study
    calls: int = 0
    stop: tuple[int, str] = (-1, "")

    def call(self, done: bool) -> None:
        """Around everything that the daemon is asked to do: it may be the moment of a stop."""
        self.calls += not done
        if self.stop == (self.calls, "after" if done else "before"):
            raise Stop

    def request(self, kind: str, request_id: str) -> str:
        if request_id not in self.requests:
            running = [name for name, job in self.jobs.items() if job.kind == kind and not job.end_time]
            self.requests[request_id] = running[0] if running else f"operations/{len(self.jobs)}"
        name = self.requests[request_id]
        if name not in self.jobs:
            self.jobs[name] = SimpleNamespace(kind=kind, end_time=None)
            if kind == "learn":
                self.learned[name] = [set(self.examples)]
        return name

    def end(self, name: str) -> Job:
        job = self.jobs[name]
        if job.end_time is None:
            if job.kind == "study":
                for n in range(self.finds):
                    self.add(f"studied {name} {n}?", "so")
            else:
                self.learned[name].append(set(self.examples))
            job.end_time = TIME
        examples = len(self.learned[name][1]) if job.kind == "learn" else self.finds
        study = record(StudyReceipt, passages=5, questions=4, examples=examples)
        adapter = f"adapters/{name}" if examples else ""
        learn = record(LearnReceipt, adapter=adapter, verdict="v", examples=examples, held_out=9, seconds=60.0)
        return job_of(name, JobState.SUCCEEDED, study if job.kind == "study" else learn)

    def add(self, question: str, answer: str) -> None:
        self.examples.setdefault(question, Example(question=question, answer=answer, name=question))


def record(kind: type[Any], /, **given: Any) -> Any:
    """One of the client's records; what is not given is not looked at."""
    return kind(**{name: given.get(name) for name in (one.name for one in fields(kind))})


def job_of(name: str, state: JobState, receipt: Any = None) -> Job:
    made: Job = record(Job, name=name, state=state, create_time=TIME, end_time=TIME, receipt=receipt)
    return made


class Fake:
    """The part of the client, and of a memory, that steps use."""

    id = "m"

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.dead: set[str] = set()
        self.jobs = SimpleNamespace(get=self._get, wait=self._wait, retry=self.dead.discard)
        self.documents = SimpleNamespace(wait=lambda *_, **__: None)
        self.examples = SimpleNamespace(list=self._list, delete=self._delete, add_many=self._add)
        self.adapters = SimpleNamespace(get=self._adapter)

    def write(self, text: str, *, title: str) -> Any:
        self.daemon.call(done=False)
        name = self.daemon.documents.setdefault(text, f"documents/{len(self.daemon.documents)}")
        self.daemon.call(done=True)
        return SimpleNamespace(document=SimpleNamespace(name=name))

    def study(self, *, max_examples: int, request_id: str) -> Job:
        return self._request("study", request_id)

    def learn(self, *, keep_inactive: bool, request_id: str) -> Job:
        assert keep_inactive
        return self._request("learn", request_id)

    def _request(self, kind: str, request_id: str) -> Job:
        self.daemon.call(done=False)
        name = self.daemon.request(kind, request_id)
        self.daemon.call(done=True)
        return job_of(name, JobState.PENDING)

    def _get(self, name: str) -> Job:
        return job_of(name, JobState.DEAD if name in self.dead else JobState.RUNNING)

    def _wait(self, name: str, timeout: float) -> Job:
        assert name not in self.dead
        self.daemon.call(done=False)
        ended = self.daemon.end(name)
        self.daemon.call(done=True)
        return ended

    def _list(self) -> Iterator[Example]:
        yield from self.daemon.examples.values()

    def _delete(self, example: Example) -> None:
        self.daemon.call(done=False)
        del self.daemon.examples[example.question]
        self.daemon.call(done=True)

    def _add(self, given: list[tuple[str, str, list[str]]]) -> Any:
        self.daemon.call(done=False)
        for question, answer, of in given:
            assert set(of) <= set(self.daemon.documents.values())
            self.daemon.add(question, answer)
        self.daemon.call(done=True)
        return SimpleNamespace(examples=given)

    def _adapter(self, name: str) -> Any:
        kinds = (record(JudgedKind, kind="all", count=9, before=0.4, after=0.5),)
        return SimpleNamespace(judgement=record(Judgement, better=True, kinds=kinds))


def go(daemon: Daemon, work: Path, said: list[str] | None = None, dead: tuple[str, ...] = ()) -> list[object]:
    """All steps, as `memoryd eval learning` takes them."""
    fake: Any = Fake(daemon)
    fake.dead.update(dead)
    steps = Steps(fake, fake, KeptAnswers(work / "kept.jsonl"), (said if said is not None else []).append)
    names = steps.write(TEXTS)
    studied = steps.study(7)
    first = steps.learn("self-study")
    steps.supply(EXAMPLES, names)
    return [names, studied, first, steps.learn("supplied")]


def test_each_adapter_learns_from_its_own_examples(tmp_path: Path) -> None:
    daemon = Daemon()
    names, studied, first, second = go(daemon, tmp_path)
    assert names == {"One": "documents/0", "Two": "documents/1"}
    assert studied == Studied(passages=5, questions=4, examples=2, seconds=0.0)
    assert first == Learned("adapters/operations/1", 2, 9, 60.0, "v", True, 0.4, 0.5, 9)
    assert isinstance(second, Learned)
    assert second.adapter == "adapters/operations/2"
    own = {"studied operations/0 0?", "studied operations/0 1?"}
    assert daemon.learned == {"operations/1": [own, own], "operations/2": [{"Who?", "Where?"}] * 2}


CALLS = 11  # of a run that is not stopped


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_it_goes_on_after_a_stop_at_any_call(tmp_path: Path, call: int, moment: str) -> None:
    """`after`: the daemon has done it, and nobody was told."""
    undisturbed = Daemon()
    expected = go(undisturbed, tmp_path / "undisturbed")
    assert undisturbed.calls == CALLS
    daemon = Daemon(stop=(call, moment))
    with pytest.raises(Stop):
        go(daemon, tmp_path)
    assert go(daemon, tmp_path) == expected
    assert daemon.learned == undisturbed.learned, "both adapters saw what they were to see, whenever they looked"
    assert list(daemon.jobs) == list(undisturbed.jobs), "nothing was studied or learned twice"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    daemon, said = Daemon(), list[str]()
    first = go(daemon, tmp_path, said)
    assert any("self-study/studied" in line for line in said)
    done, lines = daemon.calls, len(said)
    assert go(daemon, tmp_path, said) == first
    assert (daemon.calls, len(said)) == (done, lines)


def test_where_self_study_finds_nothing_there_is_no_adapter_of_it(tmp_path: Path) -> None:
    _, studied, first, second = go(Daemon(finds=0), tmp_path)
    assert isinstance(studied, Studied)
    assert isinstance(first, Learned)
    assert isinstance(second, Learned)
    assert (studied.examples, first.adapter, first.after) == (0, "", None)
    assert second.adapter


def test_a_job_that_died_in_an_earlier_run_is_tried_again(tmp_path: Path) -> None:
    daemon = Daemon(stop=(4, "before"))
    with suppress(Stop):
        go(daemon, tmp_path)
    (name,) = daemon.jobs
    assert go(daemon, tmp_path, dead=(name,))[1] == Studied(passages=5, questions=4, examples=2, seconds=0.0)
