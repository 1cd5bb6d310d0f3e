"""The API's messages and methods, made from api.binpb when this module is imported.

They live in a descriptor pool of their own: a process may have memoryd's, googleapis' or anyone's generated modules
loaded beside this client, in any version, and nothing clashes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FILE = Path(__file__).with_name("api.binpb")


def _health() -> descriptor_pb2.FileDescriptorProto:
    """grpc.health.v1, as much of it as is asked: no package that is always there carries it."""
    file = descriptor_pb2.FileDescriptorProto(name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3")
    field = {"number": 1, "label": descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL}
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, **field)
    response = file.message_type.add(name="HealthCheckResponse")
    # An int32 on purpose: it reads the same bytes as the enum, and HealthStatus gives the names.
    response.field.add(name="status", type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, **field)
    file.service.add(name="Health").method.add(
        name="Check",
        input_type=".grpc.health.v1.HealthCheckRequest",
        output_type=".grpc.health.v1.HealthCheckResponse",
    )
    return file


def _load() -> descriptor_pool.DescriptorPool:
    if not _FILE.exists():
        raise ImportError(f"{_FILE} is missing: install memoryd-client again, or run tools/genproto.py in a clone")
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_FILE.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    pool.AddSerializedFile(_health().SerializeToString())
    return pool


_POOL = _load()


@cache
def message(name: str) -> Any:
    """The class of a message; names without a dot are memoryd.v1's."""
    full = name if "." in name else f"memoryd.v1.{name}"
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(full))


@dataclass(frozen=True)
class Method:
    """One method of the API."""

    path: str
    """/package.Service/Method."""
    request: Any
    """Class of its requests."""
    response: Any
    """Class of its responses."""

    @property
    def name(self) -> str:
        """Method, as errors and the retry rules call it."""
        return self.path.rpartition("/")[2]

    @property
    def has_request_id(self) -> bool:
        """Whether its requests carry a request_id, which makes a repeat harmless."""
        return "request_id" in self.request.DESCRIPTOR.fields_by_name


def new_id() -> str:
    """A request id that no one else has."""
    return uuid.uuid4().hex


@cache
def method(name: str) -> Method:
    """`Service.Method`, of memoryd.v1 where the service has no package."""
    service, _, verb = name.rpartition(".")
    full = service if "." in service else f"memoryd.v1.{service}"
    found = _POOL.FindServiceByName(full).methods_by_name[verb]
    return Method(f"/{full}/{verb}", message(found.input_type.full_name), message(found.output_type.full_name))
