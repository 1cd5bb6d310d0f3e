"""What the parts of the fake daemon share."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2


class Failure(Exception):
    """What a servicer raises to fail a call."""

    def __init__(self, code: grpc.StatusCode, message: str, fields: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status = status_pb2.Status(code=code.value[0], message=message)
        details: list[Any] = [error_details_pb2.ErrorInfo(reason=f"FAKE_{code.name}", domain="memoryd", metadata={"a": "b"})]
        if fields:
            violations = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in fields]
            details.append(error_details_pb2.BadRequest(field_violations=violations))
        for detail in details:
            self.status.details.append(packed(detail))


def packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def found(rows: dict[str, Any], name: str) -> Any:
    if name not in rows:
        raise Failure(grpc.StatusCode.NOT_FOUND, f"there is no {name}")
    return rows[name]


def page_of(rows: list[Any], request: Any) -> tuple[list[Any], str]:
    begin, size = int(request.page_token or 0), request.page_size or 100
    end = begin + size
    return rows[begin:end], str(end) if end < len(rows) else ""
