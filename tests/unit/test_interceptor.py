"""What a caller sees of an error, and what rules a request is held to."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from memoryd import errors
from memoryd.api.interceptor import status_of, validate
from memoryd.errors import InvalidArgument, MemorydError
from memoryd.v1 import memory_pb2, recall_pb2


def all_errors(kind: type[MemorydError] = MemorydError) -> list[type[MemorydError]]:
    return [
        kind,
        *(below for child in kind.__subclasses__() if child.__module__ == errors.__name__ for below in all_errors(child)),
    ]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_a_status_with_its_reason_and_the_request_id(kind: type[MemorydError]) -> None:
    status = status_of(kind("what to do", details={"key": "value"}), "r1")
    assert status.code == kind.code.value[0]
    assert status.message == "what to do"
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert (info.domain, info.reason, dict(info.metadata)) == ("memoryd", kind.reason, {"key": "value"})
    assert request.request_id == "r1"


def test_every_error_is_drawn_in_the_tree() -> None:
    for kind in all_errors():
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.code.name in (errors.__doc__ or "")


def test_no_two_errors_share_a_reason() -> None:
    reasons = [kind.reason for kind in all_errors()]
    assert len(reasons) == len(set(reasons))
    assert MemorydError.code is grpc.StatusCode.INTERNAL


def test_a_broken_rule_names_the_field_and_the_rule_but_not_the_value() -> None:
    request = recall_pb2.SearchRequest(memories=["memories/zebra/zebra"], query="zebra", top_k=101)
    with pytest.raises(InvalidArgument) as caught:
        validate(request)
    assert dict(caught.value.violations).keys() == {"memories[0]", "top_k"}
    assert "zebra" not in caught.value.message
    bad = error_details_pb2.BadRequest()
    assert status_of(caught.value, "r").details[2].Unpack(bad)
    assert {violation.field for violation in bad.field_violations} == {"memories[0]", "top_k"}


def test_of_very_many_broken_rules_the_first_are_named() -> None:
    """A status travels in metadata, of which gRPC takes 8 KiB."""
    messages = [memory_pb2.Message(role="user", content="", speaker="a:b") for _ in range(1000)]
    with pytest.raises(InvalidArgument) as refused:
        validate(memory_pb2.WriteMessagesRequest(parent="memories/m", messages=messages))
    assert refused.value.message.endswith(" more")
    assert 0 < len(refused.value.violations) < 100
    assert status_of(refused.value, "r").ByteSize() * 2 < 8192


def test_a_good_request_passes() -> None:
    validate(memory_pb2.GetMemoryRequest(name="memories/m"))
