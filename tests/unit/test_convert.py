"""Between protobuf and core: nothing is lost, and what is out of range is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from memoryd import core
from memoryd.api import convert
from memoryd.core import Job, JobKind, JobState
from memoryd.errors import InvalidArgument, ReplacedNotFound
from memoryd.v1 import jobs_pb2, learn_pb2, memory_pb2, recall_pb2

NOW = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_times_keep_their_microseconds(time: datetime) -> None:
    sent = convert.timestamp(time)
    assert sent is not None
    assert convert.moment(sent) == time


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    sent = convert.timestamp(NOW.astimezone(timezone(timedelta(hours=9))))
    assert sent is not None
    assert convert.moment(sent) == NOW


def test_no_time_is_no_time() -> None:
    assert convert.timestamp(None) is None


@pytest.mark.parametrize("seconds", [253402300800, -62135596801])
def test_a_time_out_of_range_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidArgument):
        convert.moment(Timestamp(seconds=seconds))


VALUES = st.one_of(
    st.text(max_size=20),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)),
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), VALUES))
def test_metadata_keeps_values_and_their_kinds(metadata: dict[str, core.MetadataValue]) -> None:
    back = convert.metadata_to_core(convert.metadata_to_proto(metadata))
    assert back == metadata
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in metadata.items()}


def job(kind: JobKind, state: JobState, **fields: object) -> Job:
    ended = NOW if state.ended else None
    return Job("red", "j1", kind, "memories/m", NOW, state, end_time=ended, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "receipt", "expected"),
    [
        (JobKind.COMPRESS, {"chunks": 1, "soft_tokens": 8}, jobs_pb2.CompressReceipt(chunks=1, soft_tokens=8)),
        (JobKind.ERASE, {"documents": 1, "blobs": 2}, jobs_pb2.EraseReceipt(documents=1, blobs=2)),
        (JobKind.REINDEX, {"documents": 3, "passages": 4}, jobs_pb2.ReindexReceipt(documents=3, passages=4)),
    ],
)
def test_each_kind_of_job_ends_with_a_receipt_of_its_own(kind: JobKind, receipt: dict[str, int], expected: object) -> None:
    operation = convert.operation(job(kind, JobState.SUCCEEDED, receipt=receipt))
    found = type(expected)()
    assert operation.response.Unpack(found)
    for field, value in receipt.items():
        assert getattr(found, field) == value
    assert operation.done


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING])
def test_an_unfinished_job_has_neither_response_nor_error(state: JobState) -> None:
    operation = convert.operation(job(JobKind.COMPRESS, state))
    assert not operation.done
    assert operation.WhichOneof("result") is None


def test_a_dead_job_says_why_how_often_it_was_tried_and_what_to_do() -> None:
    operation = convert.operation(job(JobKind.COMPRESS, JobState.DEAD, error="disk full", attempts=8))
    assert operation.error.code == code_pb2.ABORTED
    assert operation.error.message == "disk full (tried 8 times; RetryJob tries again)"


def test_every_state_stage_and_kind_has_its_number_in_the_proto() -> None:
    for state in JobState:
        assert jobs_pb2.JobState.Name(int(state)) == f"JOB_STATE_{state.name}"  # type: ignore[arg-type]
    for stage in core.Stage:
        assert memory_pb2.Stage.Name(int(stage)) == f"STAGE_{stage.name}"  # type: ignore[arg-type]
    assert set(convert._KINDS) == set(core.Kind)


def write(**fields: object) -> memory_pb2.WriteDocumentRequest:
    return memory_pb2.WriteDocumentRequest(**({"parent": "memories/m", "text": b"x", "request_id": "r"} | fields))  # type: ignore[arg-type]


def test_a_lineage_is_what_its_file_says() -> None:
    said = {
        "documents": ["memories/m/documents/d"], "modes": ["TEXT", "HYBRID"], "epochs": 3, "learning_rate": 5e-4,
        "steps": 7, "seconds": 1.5, "imported_from": "memories/n", "examples": 5, "base_model": "b",
    }  # fmt: skip
    made = convert.lineage(said)
    assert (list(made.documents), made.imported_from) == (["memories/m/documents/d"], "memories/n")
    assert set(made.modes) == {recall_pb2.MODE_TEXT, recall_pb2.MODE_HYBRID}
    assert (made.epochs, made.learning_rate, made.steps, made.seconds) == (3, 5e-4, 7, 1.5)


@given(
    st.dictionaries(
        st.sampled_from(["documents", "modes", "epochs", "learning_rate", "steps", "seconds", "imported_from"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)),
    )
)
def test_a_lineage_that_was_imported_may_say_anything(said: dict[str, object]) -> None:
    made = convert.lineage(said)
    assert learn_pb2.Lineage.FromString(made.SerializeToString()).documents == made.documents


def test_a_lineage_of_very_many_documents_is_cut_off() -> None:
    assert len(convert.lineage({"documents": ["memories/m/documents/d"] * 20_000}).documents) == 10_000


def test_the_digest_of_a_request_is_of_all_that_was_asked() -> None:
    yes, no = memory_pb2.MetadataValue(bool_value=True), memory_pb2.MetadataValue(bool_value=False)
    digests = {
        convert.digest(request)
        for request in (write(), write(text=b"y"), write(title="t"), write(metadata={"a": yes}), write(metadata={"a": no}))
    }
    assert len(digests) == 5


def test_the_digest_does_not_depend_on_the_order_of_metadata() -> None:
    values = {key: memory_pb2.MetadataValue(string_value=key) for key in "abcdefgh"}
    assert convert.digest(write(metadata=values)) == convert.digest(write(metadata=dict(reversed(values.items()))))


def test_requests_of_two_methods_never_share_a_digest() -> None:
    get, delete = memory_pb2.GetMemoryRequest(name="memories/m"), memory_pb2.DeleteMemoryRequest(name="memories/m")
    assert get.SerializeToString() == delete.SerializeToString()
    assert convert.digest(get) != convert.digest(delete)


def test_no_request_id_is_no_request() -> None:
    assert convert.request(write(request_id="")) is None
    assert convert.request(write()) == core.Request("r", convert.digest(write()))


def test_a_write_replaces_a_document_of_its_own_memory_or_none() -> None:
    assert convert.replaced(write()) == ""
    assert convert.replaced(write(replaces="memories/m/documents/d")) == "d"
    with pytest.raises(ReplacedNotFound):
        convert.replaced(write(replaces="memories/n/documents/d"))


def test_names_come_apart() -> None:
    assert convert.last("memories/m") == "m"
    assert convert.child_ids("memories/m/documents/d") == ("m", "d")
