"""Builds the public gRPC server: services, health, reflection, TLS, and the one interceptor."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
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
_OF_ANOTHER = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}  # what OpenSSL calls such a key

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


class AddressTaken(SettingsError):
    """Something listens already where `listen` says."""


def probe(settings: Settings) -> None:
    """SettingsError where the server can't be built: found out in a millisecond, before models are loaded."""
    probe_address(settings)
    read_tls(settings)


def probe_address(settings: Settings) -> None:
    """SettingsError where `listen` can't be bound: AddressTaken where another program has it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, int(settings.listen.rpartition(":")[2])))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressTaken(
                    f"listen: {settings.listen} can't be bound, something else is listening there: "
                    "stop it, or choose another port with --listen",
                    details={"key": "listen"},
                ) from error
            raise _unbound(settings, str(error.strerror)) from error


def _unbound(settings: Settings, why: str) -> SettingsError:
    return SettingsError(
        f"listen: {settings.listen} can't be bound ({why}): choose with --listen an address of this machine, "
        "and a port that this user may open",
        details={"key": "listen"},
    )


def read_tls(settings: Settings) -> tuple[bytes, bytes] | None:
    """Key and certificate chain; None where there is no TLS. SettingsError, naming the setting, where they are of no use: gRPC
    itself would only say that it can't bind."""
    key, cert = settings.tls_key, settings.tls_cert
    if key is None or cert is None:
        return None
    pair = _read("tls_key", key), _read("tls_cert", cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")  # what is strong enough is gRPC's to say, not this library's
    try:
        context.load_verify_locations(cert)
    except ssl.SSLError as error:
        raise _unusable("tls_cert", f"{cert} holds no certificate that can be read: it must be a chain in PEM") from error
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # without it, a key with a password would be asked about
    except ssl.SSLError as error:
        if error.reason in _OF_ANOTHER:
            raise _unusable("tls_key", f"{key} is not the key of the first certificate in {cert}") from error
        raise _unusable("tls_key", f"{key} holds no key that can be read: it must be in PEM, without a password") from error
    return pair


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(name, f"{path} can't be read ({error.strerror})") from error


def _unusable(name: str, why: str) -> SettingsError:
    return SettingsError(f"{name}: {why}", details={"key": name})


def build(settings: Settings, servicers: Mapping[str, Any], interceptor: CallInterceptor, health: Health) -> grpc.aio.Server:
    """The server, bound but not started. SettingsError where the address can't be bound or TLS's files are of no use."""
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
    tls = read_tls(settings)
    try:
        if tls:
            server.add_secure_port(settings.listen, grpc.ssl_server_credentials([tls]))
        else:
            server.add_insecure_port(settings.listen)
    except RuntimeError as error:  # gRPC says the same whatever is wrong
        probe_address(settings)
        if tls:
            raise _unusable("tls_cert", "gRPC can't use it with tls_key") from error
        raise _unbound(settings, "gRPC does not say why") from error
    return server
