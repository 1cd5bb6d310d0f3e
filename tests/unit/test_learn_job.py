"""The life of a run of learning: cancelled and gone on with, cut off after it was published, forgotten, and what it leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memoryd.api import convert
from memoryd.core import AdapterState, Example, Job, JobKind, JobState, Origin, now
from memoryd.engine.request import LearnEvent, Learning, LearnSettings
from memoryd.errors import FailedPrecondition, InvalidArgument, Unavailable
from memoryd.jobs import JobRunner
from memoryd.learn import checkpoint
from memoryd.learn.adapter_files import CONFIG, WEIGHTS
from memoryd.learn.contexts import Packs
from memoryd.learn.eraser import AdapterEraser
from memoryd.learn.job import LearnJob
from memoryd.learn.judge import LEAST, is_held_out
from memoryd.learn.learner import RESULT
from memoryd.learn.runs import Runs
from memoryd.learn.soft_packing import SoftPack
from memoryd.learn.unanswerable import Found
from memoryd.v1 import jobs_pb2, learn_pb2
from tests.unit.learning_parts import Worker, models
from tests.unit.test_adapter_choice import MemoryCache, Shelf
from tests.unit.test_reuse import MEMORY, TENANT, Lab, until

STEPS, EVERY = 10, 2
"""Steps of a run, and from checkpoint to checkpoint."""


class Trainer(Worker):
    """Trains nothing, but leaves on disk what a learner does; stands still before `stops_before`."""

    def __init__(self) -> None:
        super().__init__()
        self.begun_at: list[int] = []
        self.stops_before = STEPS + 1
        self.stands = asyncio.Event()
        self.go_on = asyncio.Event()

    async def learn(self, learning: Learning) -> AsyncGenerator[LearnEvent, None]:
        learning.directory.mkdir(parents=True, exist_ok=True)
        saved, rows = learning.directory / "checkpoint", learning.directory / checkpoint.METRICS
        first = int(saved.read_text()) if saved.exists() else 0
        self.begun_at.append(first)
        for step in range(first + 1, STEPS + 1):
            if step == self.stops_before:
                self.stands.set()
                await self.go_on.wait()
            row = {"step": step, "loss": 2 / step, "tokens": step, "seconds": step * 0.5}
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if step % EVERY == 0:
                saved.write_text(str(step))
            if step == STEPS:
                (learning.directory / RESULT).mkdir()
                (learning.directory / RESULT / CONFIG).write_text("{}")
                (learning.directory / RESULT / WEIGHTS).write_bytes(str(learning.directory).encode())
            yield LearnEvent(step, STEPS, 2 / step, step, step * 0.5, "trained" if step == STEPS else "")


class Contexts:
    """Finds nothing: an example is shown with the documents that it rests on. Where it `asks`, which is told how often it was
    searched, it finds something, but all questions are too long."""

    def __init__(self) -> None:
        self.asks: Callable[[int], None] | None = None
        self.searches = 0

    async def find(self, tenant: str, memory: str, examples: Sequence[Example], step: Callable[[int], None]) -> list[Found]:
        self.searches += 1
        something: Any = object()
        return [Found(example, [something] if self.asks else []) for example in examples]

    def prompt(self, tenant: str, mode: object, one: Found, max_tokens: int) -> tuple[Any, Any]:
        assert self.asks
        self.asks(self.searches)
        raise InvalidArgument("the question alone is too long")

    def unanswerable(self, found: Sequence[Found]) -> list[Found]:
        return []

    def packs(self, tenant: str, found: Sequence[Found], modes: Sequence[object], passes: int) -> Packs:
        packs = [SoftPack((), ((1,),), (((2,), (3,)),)) for _ in found]
        return Packs(packs, [], {document for one in found for document in one.example.documents})


@dataclass
class School:
    """A daemon's jobs of learning, on a real ledger and real blobs."""

    folder: Path
    keep: int = 0
    lab: Lab = field(init=False)
    worker: Trainer = field(init=False)
    runner: JobRunner = field(init=False)
    contexts: Contexts = field(init=False, default_factory=Contexts)
    taught: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.lab, self.worker, cache = Lab(self.folder), Trainer(), MemoryCache()
        shelf = Shelf(self.lab, cache, self.worker)
        self.adapters = shelf.store()
        self.runs = Runs(self.lab.ledger, AdapterEraser(self.adapters, self.lab.blobs, cache), self.folder / "runs")

    async def start(self) -> None:
        contexts: Any = self.contexts
        parts = (self.lab.ledger, self.lab.blobs, models(self.worker), contexts, self.adapters, self.runs)
        learning = LearnJob(*parts, LearnSettings(epochs=1), 1, self.keep)
        self.runner = JobRunner(self.lab.ledger, slots=2, lease_seconds=2.0, attempts=3)
        self.running = asyncio.create_task(
            self.runner.run({JobKind.LEARN: learning, JobKind.COMPRESS: _nothing, JobKind.ERASE: _nothing})
        )

    async def stop(self) -> None:
        tasks = [self.running, *self.runner._running]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.lab.ledger.close()

    def teach(self, memory: str = MEMORY, count: int = 12) -> str:
        """Examples that rest on a new document; its id. Questions are the same in every run, and so who is held out."""
        self.taught += 1
        document = self.lab.write(f"text {self.taught}")
        examples = [(f"What is {n} of text {self.taught}?", "seven", [document.id]) for n in range(count)]
        self.lab.ledger.add_examples(TENANT, memory, examples, Origin.SUPPLIED, None)
        return document.id

    def learn(self, **payload: str) -> Job:
        job = self.lab.ledger.request_learning(TENANT, MEMORY, JobKind.LEARN, payload, None)
        self.runner.wake()
        return job

    def job(self, job: Job) -> Job:
        return self.lab.ledger.get_job(TENANT, job.id)

    async def ended(self, job: Job) -> Job:
        await until(lambda: self.job(job).state.ended and not self.runner._running)
        return self.job(job)

    async def learned(self, **payload: str) -> Job:
        done = await self.ended(self.learn(**payload))
        assert done.state is JobState.SUCCEEDED, done.error
        return done

    async def cancelled(self) -> Job:
        """A run that was cancelled in the seventh step, so after a checkpoint of six."""
        self.worker.stops_before = 7
        job = self.learn()
        await self.worker.stands.wait()
        await self.runner.cancel(TENANT, job.id)
        self.worker.stops_before = STEPS + 1
        self.worker.stands.clear()
        self.worker.go_on.set()
        done = await self.ended(job)
        assert done.state is JobState.CANCELLED
        return done

    @property
    def on_disk(self) -> list[str]:
        """The jobs whose runs lie there."""
        return sorted(path.name for path in (self.folder / "runs").glob("*/*"))

    @property
    def blobs(self) -> list[str]:
        """Ids of the adapters that have any."""
        documents = {d.id for d in self.lab.ledger.list_documents(TENANT, MEMORY, 100, "").items}
        return sorted({id_ for _, id_ in self.lab.blobs.documents(TENANT)} - documents)


async def _nothing(job: Job, progress: object) -> dict[str, str | float]:
    return {}


@pytest.fixture
async def school(tmp_path: Path) -> AsyncIterator[School]:
    made = School(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_run_that_was_cancelled_goes_on_at_its_checkpoint(school: School) -> None:
    school.teach()
    job = await school.cancelled()
    assert school.on_disk == [job.id]
    school.lab.ledger.retry_job(TENANT, job.id)
    done = await school.ended(job)
    assert school.worker.begun_at == [0, 6], "at the last checkpoint"
    assert (done.state, done.receipt["steps"]) == (JobState.SUCCEEDED, STEPS)
    assert school.on_disk == []
    assert len(school.blobs) == 1


async def test_of_one_that_is_cancelled_while_it_is_judged_the_weights_stay_and_no_adapter(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    school.teach()
    put = school.lab.blobs.put
    stored = asyncio.Event()
    loop = asyncio.get_running_loop()

    def cancelled(tenant: str, key: str, data: bytes) -> None:
        put(tenant, key, data)
        school.lab.ledger.cancel_job(TENANT, job.id)
        loop.call_soon_threadsafe(stored.set)

    monkeypatch.setattr(school.lab.blobs, "put", cancelled)
    job = school.learn()
    await stored.wait()
    monkeypatch.undo()
    await school.ended(job)
    assert school.on_disk == [job.id]
    assert school.blobs == []
    school.lab.ledger.retry_job(TENANT, job.id)
    assert (await school.ended(job)).state is JobState.SUCCEEDED
    assert school.worker.begun_at == [0], "it was trained already"
    assert len(school.blobs) == 1


async def test_it_goes_with_a_document_that_it_has_seen(school: School) -> None:
    secret = school.teach()
    other = school.lab.write("what no example rests on")
    job = await school.cancelled()
    school.lab.ledger.delete_document(TENANT, MEMORY, other.id, None)
    assert await school.runs.sweep(TENANT) == 0
    assert school.on_disk == [job.id], "it has not seen that one"
    school.lab.ledger.delete_document(TENANT, MEMORY, secret, None)
    assert await school.runs.sweep(TENANT) == 1
    assert school.on_disk == []


async def test_a_delete_does_not_wait_for_a_retry_of_it(school: School) -> None:
    secret = school.teach()
    job = await school.cancelled()
    await school.runner.drain()
    school.lab.ledger.delete_document(TENANT, MEMORY, secret, None)
    school.lab.ledger.retry_job(TENANT, job.id)
    assert school.job(job).state is JobState.PENDING
    assert await school.runs.sweep(TENANT) == 1
    assert school.on_disk == []


async def test_a_try_that_has_nothing_left_to_learn_leaves_nothing_of_the_one_before(school: School) -> None:
    school.teach()
    job = await school.cancelled()
    for example in school.lab.ledger.list_examples(TENANT, MEMORY, 100, "").items:
        school.lab.ledger.delete_example(TENANT, MEMORY, example.id)
    school.lab.ledger.retry_job(TENANT, job.id)
    assert (await school.ended(job)).state is JobState.SUCCEEDED
    assert (school.on_disk, school.blobs) == ([], [])


async def test_a_try_that_gathers_anew_first_forgets_what_it_saw_of_a_deleted_document(school: School) -> None:
    secret, _ = school.teach(), school.teach()
    job = await school.cancelled()
    school.lab.ledger.delete_document(TENANT, MEMORY, secret, None)
    seen: list[list[str]] = []
    find = school.contexts.find

    async def gather(*arguments: Any) -> Any:
        seen.append(school.on_disk)
        return await find(*arguments)

    school.contexts.find = gather  # type: ignore[method-assign]
    school.lab.ledger.retry_job(TENANT, job.id)
    assert (await school.ended(job)).state is JobState.SUCCEEDED
    assert seen == [[]]


@pytest.mark.parametrize("seen", [True, False])
async def test_one_under_way_when_a_document_is_deleted_goes_on_or_begins_anew_as_the_same_job(
    school: School, seen: bool
) -> None:
    """It goes on at its checkpoint where it has not seen that document, so that a memory that is edited all the time learns."""
    school.teach()
    document = school.teach() if seen else school.lab.write("what no example rests on").id
    school.worker.stops_before = 7
    job = school.learn()
    await school.worker.stands.wait()
    erase = school.lab.ledger.delete_document(TENANT, MEMORY, document, None)
    stopping = asyncio.create_task(school.runner.stop_work_on(TENANT, {document}, erase))
    await until(lambda: any(progress.stopped for progress in school.runner._running.values()))
    school.worker.stops_before = STEPS + 1
    school.worker.go_on.set()
    await stopping
    await school.runs.sweep(TENANT)
    done = await school.ended(job)
    assert (done.state, done.receipt["steps"]) == (JobState.SUCCEEDED, STEPS)
    assert school.worker.begun_at == [0, 0 if seen else 6]
    assert len({*school.blobs} - {document}) == 1


async def test_a_retry_of_what_another_job_does_already_names_that_one(school: School) -> None:
    school.teach()
    job = await school.cancelled()
    school.worker.stops_before, school.worker.go_on = 3, asyncio.Event()
    other = school.learn()
    with pytest.raises(FailedPrecondition, match=f"wait for operations/{other.id}") as refusal:
        school.lab.ledger.retry_job(TENANT, job.id)
    assert refusal.value.details["operation"] == f"operations/{other.id}"
    school.worker.go_on.set()
    await school.ended(other)


async def test_it_goes_with_its_memory_even_where_that_is_created_anew(school: School) -> None:
    school.lab.ledger.add_examples(TENANT, MEMORY, [(f"What is {n}?", "seven", []) for n in range(9)], Origin.SUPPLIED, None)
    await school.cancelled()
    school.lab.ledger.delete_memory(TENANT, MEMORY, None)
    school.lab.ledger.create_memory(TENANT, MEMORY, "", "", {}, None)
    assert await school.runs.sweep(TENANT) == 1
    assert school.on_disk == []


async def test_it_goes_once_a_newer_one_of_its_memory_is_done(school: School) -> None:
    school.teach()
    older = await school.cancelled()
    newer = await school.cancelled()
    assert school.on_disk == sorted([older.id, newer.id])
    school.lab.ledger.retry_job(TENANT, older.id)
    await school.ended(older)
    assert school.on_disk == [newer.id], "the older one is done, which says nothing of the newer"
    await school.learned()
    assert school.on_disk == []
    with pytest.raises(FailedPrecondition):
        school.lab.ledger.retry_job(TENANT, older.id)


@pytest.mark.parametrize("moment", ["end", "finish_job"])
async def test_a_job_that_is_cut_off_after_it_published_tells_all_the_same(
    school: School, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its run was removed, or after that; its lease runs out, and it is taken up again."""
    school.teach()
    of: Any = school.runs if moment == "end" else school.lab.ledger
    do, cut = getattr(of, moment), 0

    def once(*given: Any, **named: Any) -> Any:
        nonlocal cut
        cut += 1
        if cut == 1:
            raise Unavailable("cut off")
        return do(*given, **named)

    monkeypatch.setattr(of, moment, once)
    done = await school.learned()
    assert cut > 1
    (adapter,) = school.lab.ledger.list_adapters(TENANT, MEMORY, 10, "").items
    held_out = sum(is_held_out(e) for e in school.lab.ledger.list_examples(TENANT, MEMORY, 100, "").items)
    assert adapter.job == done.id
    assert done.receipt == {
        "memory": f"memories/{MEMORY}",
        "adapter": f"memories/{MEMORY}/adapters/{adapter.id}",
        "activated": 0,
        "verdict": adapter.judgement["verdict"],
        "examples": 12 - held_out,
        "held_out": held_out,
        "steps": STEPS,
        "seconds": STEPS * 0.5,
        "loss": 2 / STEPS,
    }
    assert held_out > 0
    assert (school.on_disk, school.blobs) == ([], [adapter.id])
    response = learn_pb2.LearnReceipt()
    convert.operation(done).response.Unpack(response)
    assert (response.steps, response.seconds, response.held_out) == (STEPS, STEPS * 0.5, held_out)


async def test_older_adapters_are_retired_after_a_new_one_is_recorded(tmp_path: Path) -> None:
    school = School(tmp_path, keep=1)
    await school.start()
    try:
        school.teach()
        first = await school.learned()
        active = first.receipt["adapter"].rpartition("/")[2]  # type: ignore[union-attr]
        school.lab.ledger.activate_adapter(TENANT, MEMORY, active)
        made = [str((await school.learned()).receipt["adapter"]).rpartition("/")[2] for _ in range(2)]
        left = school.lab.ledger.list_adapters(TENANT, MEMORY, 10, "").items
        assert [(a.id, a.state) for a in left] == [(active, AdapterState.ACTIVE), (made[1], AdapterState.KEPT)]
        erase = [job for job in school.lab.ledger.list_jobs(TENANT, 100, "").items if job.kind is JobKind.ERASE]
        assert [job.payload for job in erase] == [{"memory": MEMORY, "adapter": made[0]}]
        assert ("unload", made[0]) in school.worker.calls
    finally:
        await school.stop()


async def test_a_question_that_is_too_long_to_be_asked_is_judged_as_a_refusal(school: School) -> None:
    school.teach(count=80)
    asked: list[int] = []
    school.contexts.asks = asked.append
    done = await school.learned()
    assert (done.attempts, done.receipt["activated"]) == (1, 0)
    assert len(asked) == 2 * int(done.receipt["held_out"]) >= 2 * LEAST


async def test_of_a_judging_that_fails_again_and_again_one_result_lies_in_blobs(school: School) -> None:
    school.teach(count=80)
    lie: list[int] = []

    def asks(tries: int) -> None:
        lie.append(len(school.blobs))
        if tries < 3:
            raise Unavailable("the worker restarts", reason="WORKER_DOWN")

    school.contexts.asks = asks
    done = await school.learned()
    assert (done.attempts, set(lie)) == (3, {1})


async def test_while_it_trains_it_tells_its_loss_and_what_is_left(school: School) -> None:
    school.teach()
    school.worker.stops_before = 6
    job = school.learn()
    await school.worker.stands.wait()
    async for state in school.runner.watch(TENANT, job.id):
        seen = convert.job_metadata(state)
        if (state.stage, state.done) == ("learn", 5):
            break
    assert seen.loss == pytest.approx(2 / 5)
    assert seen.total == STEPS
    school.worker.go_on.set()
    done = convert.job_metadata(await school.ended(job))
    assert done.loss == pytest.approx(2 / STEPS)
    assert not done.HasField("seconds_left"), "it is over"


def test_what_is_left_of_a_stage_is_known_by_its_rate() -> None:
    running = Job(TENANT, "j", JobKind.LEARN, "t", now(), JobState.RUNNING, "learn", 3, 10, 2.0)
    assert convert.job_metadata(running).seconds_left == 3.5
    for unknown in (
        Job(TENANT, "j", JobKind.LEARN, "t", now(), JobState.RUNNING, "learn", 3, 10, 0.0),
        Job(TENANT, "j", JobKind.LEARN, "t", now(), JobState.RUNNING, "learn", 3, 0, 2.0),
        Job(TENANT, "j", JobKind.LEARN, "t", now(), JobState.PENDING, "learn", 3, 10, 2.0),
    ):
        assert not convert.job_metadata(unknown).HasField("seconds_left")
        assert not jobs_pb2.JobMetadata.FromString(convert.job_metadata(unknown).SerializeToString()).HasField("loss")


async def test_an_adapter_says_when_what_it_knows_was_gathered(school: School) -> None:
    school.teach()
    before = now()
    school.worker.stops_before = 3
    job = school.learn()
    await school.worker.stands.wait()
    meanwhile = now()
    school.worker.go_on.set()
    await school.ended(job)
    (adapter,) = school.lab.ledger.list_adapters(TENANT, MEMORY, 10, "").items
    assert adapter.gather_time is not None
    assert before <= adapter.gather_time < meanwhile <= adapter.create_time
    studied = now() - timedelta(hours=1)
    await school.learned(gathered=studied.isoformat())
    adapter = school.lab.ledger.list_adapters(TENANT, MEMORY, 10, "").items[-1]
    assert adapter.gather_time == studied, "its examples were made of passages of then"
