"""Where the STUDY job goes on after a stop, and what it does about documents that are deleted meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from memoryd import jobs
from memoryd.core import Document, Job, JobKind, JobState
from memoryd.errors import Unavailable
from memoryd.jobs import GiveWay, JobRunner, Progress, Stopped
from memoryd.recall.prompt import REFUSAL
from tests.unit.test_reuse import MEMORY, TENANT
from tests.unit.test_study import ABOUT, TALK, Study, study, write_talk

__all__ = ["study"]  # the fixture


async def test_it_gives_way_and_goes_on_at_its_passage_with_its_counts(study: Study) -> None:
    study.write_towns(5)
    study.reads["where3 did3 move3?"] = REFUSAL
    first = Progress(study.job(), lambda: None)
    study.asker.then = lambda count: setattr(first, "draining", count == 2)
    with pytest.raises(GiveWay):
        await study.handler()(first.job, first)
    left = first.job
    assert (left.stage, left.done, left.total, left.receipt["passages"]) == ("study", 2, 5, 2)
    study.asker.then = lambda count: None
    second = Progress(left, lambda: None)
    receipt = await study.handler()(left, second)
    assert len({text for text, _ in study.asker.asked}) == len(study.asker.asked) == 5, "none was asked of twice"
    assert (receipt["passages"], receipt["questions"], receipt["examples"], receipt["unanswerable"]) == (5, 5, 4, 1)
    assert receipt["prompt_tokens"] == 500
    assert (second.job.done, second.job.total) == (5, 5)


async def test_what_was_made_already_counts_when_it_goes_on(study: Study) -> None:
    study.write_towns(5)
    first = Progress(study.job(max_examples="3"), lambda: None)
    study.asker.then = lambda count: setattr(first, "draining", count == 2)
    with pytest.raises(GiveWay):
        await study.handler()(first.job, first)
    study.asker.then = lambda count: None
    receipt = await study.handler()(first.job, Progress(first.job, lambda: None))
    assert receipt["examples"] == len(study.examples) == len(study.asker.asked) == 3


async def test_an_asker_that_is_down_is_asked_again_at_the_same_passage(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    study.write_towns(3)

    def fail_once(count: int) -> None:
        if count == 2:
            raise Unavailable("the teacher can't answer now")

    study.asker.then = fail_once
    done = await finished(study, study.job())
    assert (done.state, done.receipt["passages"], done.receipt["examples"]) == (JobState.SUCCEEDED, 3, 3)
    texts = [text for text, _ in study.asker.asked]
    assert texts[1] == texts[2]
    assert len(set(texts)) == len(texts) - 1 == 3


async def test_however_short_a_slice_is_each_gets_one_passage_further(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """To list what there is may take longer than a slice, in a large memory."""
    monkeypatch.setattr(jobs, "SLICE_SECONDS", -1.0)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    study.write_towns(4)
    done = await finished(study, study.job())
    assert (done.state, done.receipt["passages"], done.receipt["examples"]) == (JobState.SUCCEEDED, 4, 4)
    assert len(study.asker.asked) == 4


async def test_a_chunk_is_discussed_once_in_however_many_slices(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLICE_SECONDS", -1.0)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    turns = [f"{'Ann' if n % 2 else 'Bob'}: I say for the {n}th time that it rains.\n" for n in range(12)]
    document = study.lab.write("".join(turns))
    assert (await finished(study, study.job())).state is JobState.SUCCEEDED
    assert len(study.asker.asked) == document.passage_count > document.chunk_count
    assert len(study.asker.discussed) == document.chunk_count


async def test_facts_are_kept_and_not_asked_for_again_where_the_discussion_fails(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    write_talk(study, TALK, ("Who wants spring?", "Bob"))
    study.asker.discussions[TALK] = [ABOUT]
    study.asker.fails_to_discuss = 2
    done = await finished(study, study.job())
    assert (done.state, done.receipt["passages"], done.receipt["examples"]) == (JobState.SUCCEEDED, 2, 2)
    assert len(study.asker.asked) == 2
    assert len(study.asker.discussed) == 3


async def test_of_a_document_that_is_deleted_while_facts_are_asked_for_nothing_is_sent_after_it(study: Study) -> None:
    document = write_talk(study)
    study.asker.then = lambda count: study.ledger.delete_document(TENANT, MEMORY, document.id, None)
    await study.run()
    assert (study.asker.discussed, study.examples) == ([], [])


@pytest.mark.parametrize(("asked", "kinds"), [(2, ["learn"]), (0, [])])
async def test_it_learns_then_where_that_was_asked_and_there_is_something_to_learn(
    study: Study, asked: int, kinds: list[str]
) -> None:
    study.write_towns(asked)
    await study.run(then="learn")
    jobs_left = [job for job in study.ledger.list_jobs(TENANT, 100, "").items if job.kind is JobKind.LEARN]
    assert [str(job.kind) for job in jobs_left] == kinds
    assert {job.payload["memory"] for job in jobs_left} <= {MEMORY}


async def finished(study: Study, job: Job) -> Job:
    """As it ends in a real runner."""
    runner = JobRunner(study.ledger, slots=1, lease_seconds=30.0, attempts=1)
    running = asyncio.create_task(runner.run({JobKind.STUDY: study.handler()}))
    try:
        async with asyncio.timeout(30):
            while not study.ledger.get_job(TENANT, job.id).state.ended or runner._running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await runner.drain()
        await running
    return study.ledger.get_job(TENANT, job.id)


# --- what is deleted meanwhile ---


async def test_a_document_that_is_deleted_before_its_turn_is_not_asked_of(study: Study) -> None:
    study.write_towns(4)

    def delete_others(count: int) -> None:
        if count == 1:
            study.lab.ledger.delete_document(TENANT, MEMORY, others(study)[0].id, None)

    study.asker.then = delete_others
    receipt = await study.run()
    assert (receipt["passages"], receipt["examples"], len(study.examples)) == (3, 3, 3)


async def test_of_a_document_that_is_deleted_while_it_is_asked_of_nothing_stays(study: Study) -> None:
    study.write_towns(3)

    def delete(count: int) -> None:
        if count == 2:
            study.ledger.delete_document(TENANT, MEMORY, study.documents[study.asker.asked[-1][0]].id, None)

    study.asker.then = delete
    receipt = await study.run()
    assert (receipt["passages"], receipt["examples"]) == (3, 2)
    gone = study.documents[study.asker.asked[1][0]].id
    assert all(gone not in example.documents for example in study.examples)


async def test_a_memory_that_is_not_there_stops_it(study: Study) -> None:
    job = study.job()
    study.ledger.delete_memory(TENANT, MEMORY, None)
    with pytest.raises(Stopped):
        await study.handler()(job, Progress(job, lambda: None))


async def test_a_memory_that_is_deleted_meanwhile_stops_it(study: Study) -> None:
    study.write_towns(6)
    job = study.job()
    study.asker.then = lambda count: count == 2 and study.ledger.delete_memory(TENANT, MEMORY, None)
    with pytest.raises(Stopped):
        await study.handler()(job, Progress(job, lambda: None))
    assert len(study.asker.asked) == 2, "nothing of it goes to an asker any more"


async def test_a_new_memory_of_the_same_name_has_nothing_of_the_deleted_one(study: Study) -> None:
    study.write_towns(6)

    def replace(count: int) -> None:
        if count == 2:
            study.ledger.delete_memory(TENANT, MEMORY, None)
            study.ledger.create_memory(TENANT, MEMORY, "", "", {}, None)

    study.asker.then = replace
    await study.run()
    assert (len(study.asker.asked), study.examples) == (2, [])


async def test_the_job_of_a_deleted_memory_ends_as_cancelled(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    study.write_towns(6)
    study.asker.then = lambda count: count == 2 and study.ledger.delete_memory(TENANT, MEMORY, None)
    done = await finished(study, study.job())
    assert (done.state, len(study.asker.asked)) == (JobState.CANCELLED, 2)


def others(study: Study) -> list[Document]:
    """Documents that nothing was asked of yet."""
    asked = {text for text, _ in study.asker.asked}
    return [document for text, document in study.documents.items() if text not in asked]
