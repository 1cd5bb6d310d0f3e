"""Builds the public gRPC server: services, health, reflection, TLS, and the one interceptor."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import grpc
from google.longrunning import operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from memoryd.api.interceptor import CallInterceptor
from memoryd.config import Settings
from memoryd.errors import SettingsError
from memoryd.v1 import admin_pb2_grpc, jobs_pb2_grpc, learn_pb2_grpc, memory_pb2_grpc, recall_pb2_grpc

MAX_MESSAGE_BYTES = 4 << 20  # inline writes are at most 1 MiB; a response of 100 sources fits
_MOST_CALLS = 1000  # open at a time on one connection, each with a task of its own; further ones wait in their client

_ADD: Mapping[str, Any] = {
    "memoryd.v1.MemoryService": memory_pb2_grpc.add_MemoryServiceServicer_to_server,
    "memoryd.v1.DocumentService": memory_pb2_grpc.add_DocumentServiceServicer_to_server,
    "memoryd.v1.RecallService": recall_pb2_grpc.add_RecallServiceServicer_to_server,
    "memoryd.v1.LearnService": learn_pb2_grpc.add_LearnServiceServicer_to_server,
    "memoryd.v1.JobService": jobs_pb2_grpc.add_JobServiceServicer_to_server,
    "memoryd.v1.AdminService": admin_pb2_grpc.add_AdminServiceServicer_to_server,
    "google.longrunning.Operations": operations_pb2_grpc.add_OperationsServicer_to_server,
}


class Health:
    """grpc.health.v1: SERVING only while the daemon can answer."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()

    async def set(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *_ADD):
            await self.servicer.set(service, status)


def probe(settings: Settings) -> None:
    """SettingsError where `listen` can't be bound: found out in a millisecond, before models are loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, int(settings.listen.rpartition(":")[2])))
        except OSError as error:
            raise _taken(settings) from error


def _taken(settings: Settings) -> SettingsError:
    return SettingsError(
        f"listen: {settings.listen} can't be bound, something else is listening there: "
        "stop it, or choose another port with --listen",
        details={"key": "listen"},
    )


def build(settings: Settings, servicers: Mapping[str, Any], interceptor: CallInterceptor, health: Health) -> grpc.aio.Server:
    """The server, bound but not started. SettingsError where the address is taken or a certificate is unreadable."""
    server = grpc.aio.server(
        interceptors=[interceptor],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", _MOST_CALLS),
            ("grpc.so_reuseport", 0),  # a second daemon on the port fails instead of taking half of the calls
        ],
    )
    for name, servicer in servicers.items():
        _ADD[name](servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    reflection.enable_server_reflection(
        [*_ADD, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME], server
    )
    try:
        if settings.tls_cert and settings.tls_key:
            pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            port = server.add_secure_port(settings.listen, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(settings.listen)
    except OSError as error:
        raise SettingsError(f"tls_cert/tls_key: {error}", details={"key": "tls_cert"}) from error
    except RuntimeError as error:
        raise _taken(settings) from error
    if port == 0:
        raise _taken(settings)
    return server
