"""What the integration tests share: the API without the client's help, its errors, and looking for bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.longrunning import operations_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from memoryd.v1 import admin_pb2_grpc, jobs_pb2_grpc, learn_pb2_grpc, memory_pb2_grpc, recall_pb2_grpc

CALL_SECONDS = 60.0
WAIT_SECONDS = 120.0


class Api:
    """Stubs of every public service, with a key where one is given."""

    def __init__(self, target: str, key: str = "") -> None:
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.channel = grpc.insecure_channel(target)
        self.memories = memory_pb2_grpc.MemoryServiceStub(self.channel)
        self.documents = memory_pb2_grpc.DocumentServiceStub(self.channel)
        self.recall = recall_pb2_grpc.RecallServiceStub(self.channel)
        self.learn = learn_pb2_grpc.LearnServiceStub(self.channel)
        self.jobs = jobs_pb2_grpc.JobServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)

    def call(self, method: Any, request: Any, timeout: float = CALL_SECONDS) -> Any:
        """One request, and its response; of a stream, all of them."""
        response = method(request, timeout=timeout, metadata=self.metadata)
        return list(response) if isinstance(response, grpc.Call) and hasattr(response, "__next__") else response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.channel.close()


class Refusal:
    """How a call failed: its status, the reason that programs read, and what it says to people."""

    def __init__(self, error: Any) -> None:
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details() or ""
        self.reason = ""
        self.details: dict[str, str] = {}
        self.fields: list[str] = []
        self.request_id = ""
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            request = error_details_pb2.RequestInfo()
            if detail.Unpack(info):
                self.reason, self.details = info.reason, dict(info.metadata)
                assert info.domain == "memoryd"
            elif detail.Unpack(bad):
                self.fields = [violation.field for violation in bad.field_violations]
            elif detail.Unpack(request):
                self.request_id = request.request_id

    def __repr__(self) -> str:
        return f"{self.code.name} {self.reason}: {self.message}"


def refused(call: Callable[[], Any]) -> Refusal:
    """The refusal of a call that must fail; of a stream, wherever it fails."""
    try:
        result = call()
        if isinstance(result, grpc.Call) and hasattr(result, "__next__"):
            result = list(result)
    except grpc.RpcError as error:
        return Refusal(error)
    raise AssertionError(f"it was not refused: {result!r:.300}")


def until(condition: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """Waits for a condition and gives its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return value


def files_with(needle: bytes, folder: Path) -> list[str]:
    """The files under a data directory that hold these bytes. Models are not looked at."""
    return sorted(str(path.relative_to(folder)) for path in _files(folder) if needle in _read(path))


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.relative_to(folder).parts[0] != "models":
            yield path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # gone between listing and reading, as temporary files are
        return b""
