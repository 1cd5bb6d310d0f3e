"""Jobs, as google.longrunning Operations and as streams of progress."""

from __future__ import annotations

import contextlib

import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from memoryd_client import Client, FailedPrecondition, JobFailed, JobState, Memory, NotFound, Stage

from memoryd.v1 import jobs_pb2
from tests.integration.conftest import Keyed
from tests.integration.support import Api, until

TEXT = "The harbour clock of Vardo was repaired by Ingrid Solberg in the spring of 1957."
SECONDS = Duration(seconds=100)


def get(api: Api, name: str) -> operations_pb2.Operation:
    return api.operations.GetOperation(operations_pb2.GetOperationRequest(name=name))


def metadata(operation: operations_pb2.Operation) -> jobs_pb2.JobMetadata:
    out = jobs_pb2.JobMetadata()
    assert operation.metadata.Unpack(out)
    return out


def test_an_operation_carries_its_job_and_in_the_end_its_receipt(api: Api, memory: Memory) -> None:
    written = memory.write(TEXT)
    for long in (Duration(seconds=1 << 62), SECONDS):
        done = api.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=written.job, timeout=long))
        assert done.done
    job = metadata(done)
    assert (job.name, job.kind, job.target) == (written.job, "compress", written.document.name)
    assert (job.state, job.stage) == (jobs_pb2.JOB_STATE_SUCCEEDED, "compress")
    assert job.end_time.ToDatetime() > job.create_time.ToDatetime()
    receipt = jobs_pb2.CompressReceipt()
    assert done.response.Unpack(receipt)
    assert (receipt.document, receipt.chunks, receipt.passages) == (written.document.name, 1, 1)
    assert not done.HasField("error")
    assert get(api, written.job) == done


def test_waiting_gives_the_state_of_then_where_time_is_up(client: Client, api: Api, memory: Memory) -> None:
    written = memory.write("A long one. " * 40_000)  # half a megabyte
    operation = api.operations.WaitOperation(
        operations_pb2.WaitOperationRequest(name=written.job, timeout=Duration(nanos=1_000_000))
    )
    assert not operation.done
    assert metadata(operation).state in (jobs_pb2.JOB_STATE_PENDING, jobs_pb2.JOB_STATE_RUNNING)
    client.jobs.cancel(written.job)


def test_a_watch_shows_progress_and_ends_with_the_job(client: Client, memory: Memory) -> None:
    written = memory.write(TEXT)
    states = list(client.jobs.watch(written.job))
    assert states[-1].state is JobState.SUCCEEDED
    assert not any(state.ended for state in states[:-1])
    (only,) = client.jobs.watch(written.job)  # of a job that has ended
    assert only.state is JobState.SUCCEEDED


def test_operations_are_listed_in_pages_oldest_first(api: Api, memory: Memory) -> None:
    jobs = [memory.write(f"{TEXT} {number}").job for number in range(3)]
    listed, token = [], ""
    while True:
        page = api.operations.ListOperations(operations_pb2.ListOperationsRequest(page_size=2, page_token=token))
        assert len(page.operations) <= 2
        listed += [operation.name for operation in page.operations]
        token = page.next_page_token
        if not token:
            break
    assert [name for name in listed if name in jobs] == jobs
    assert len(listed) == len(set(listed))


def test_a_cancelled_job_ends_and_may_be_sent_back_to_work(client: Client, api: Api, memory: Memory) -> None:
    written = memory.write("The clock stands in the harbour of Vardo. " * 6000)  # long enough to be cancelled
    client.jobs.cancel(written.job)
    operation = get(api, written.job)
    assert operation.done
    assert operation.error.code == code_pb2.CANCELLED
    assert metadata(operation).state == jobs_pb2.JOB_STATE_CANCELLED
    client.jobs.cancel(written.job)  # a second time changes nothing
    assert memory.documents.get(written.document).stage < Stage.COMPRESSED

    again = client.jobs.retry(written.job)
    assert (again.state, again.attempts) == (JobState.PENDING, 0)
    until(lambda: client.jobs.get(written.job).attempts == 1, "it is worked on again")
    client.jobs.cancel(written.job)


def test_a_job_that_did_not_fail_is_not_retried(client: Client, memory: Memory) -> None:
    written = memory.write(TEXT)
    client.jobs.wait(written.job)
    with pytest.raises(FailedPrecondition) as caught:
        client.jobs.retry(written.job)
    assert "dead or cancelled" in caught.value.message


def test_the_job_of_a_deleted_document_is_not_retried(client: Client, memory: Memory) -> None:
    written = memory.write(TEXT)
    client.jobs.cancel(written.job)
    memory.documents.delete(written.document)
    with pytest.raises(FailedPrecondition):
        client.jobs.retry(written.job)


def test_erasing_can_not_be_cancelled(client: Client, memory: Memory) -> None:
    job = memory.documents.delete(memory.write(TEXT).document)
    with contextlib.suppress(FailedPrecondition):  # raised where it has not ended already
        client.jobs.cancel(job)
    assert client.jobs.wait(job).state is JobState.SUCCEEDED


def test_a_job_that_fails_for_good_is_dead_says_why_and_may_be_retried(keyed: Keyed, red: Client) -> None:
    """Its text was damaged on disk: no try mends that, until a person does."""
    memory = red.memory("damaged", create=True)
    written = memory.write("The clock stands in the harbour of Vardo. " * 2000)
    red.jobs.cancel(written.job)
    blobs = keyed.daemon.data_dir / "blobs" / "red" / "damaged" / written.document.id
    text = next(blobs.glob("text-*"))
    whole = text.read_bytes()
    text.write_bytes(b"X" + whole[1:])
    red.jobs.retry(written.job)

    job = until(lambda: (found := red.jobs.get(written.job)).ended and found, "it is dead")
    assert (job.state, job.attempts) == (JobState.DEAD, 2)
    assert "checksum" in job.error
    assert memory.search("harbour clock") == []  # nothing of a damaged text is served
    with pytest.raises(JobFailed) as caught:
        written.wait()
    assert caught.value.reason == "JOB_DEAD"

    text.write_bytes(whole)
    red.jobs.retry(written.job)
    written.wait(Stage.SEARCHABLE)
    red.memories.delete(memory.name)


def test_what_is_not_there_is_not_found(client: Client) -> None:
    for call in (client.jobs.get, client.jobs.cancel, client.jobs.retry, lambda name: list(client.jobs.watch(name))):
        with pytest.raises(NotFound):
            call("operations/none")
