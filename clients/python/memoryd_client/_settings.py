"""How a client reaches its daemon: target, key, TLS, timeouts, retries."""

from __future__ import annotations

import ipaddress
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ._errors import InvalidArgument

DEFAULT_TARGET = "localhost:7437"
CALL_TIMEOUT = 60.0
LONG_TIMEOUT = 600.0  # answers, uploads and waits take as long as they are long

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.enable_retries", 0),  # this client's own are the only ones: they know what is safe to repeat
    ("grpc.max_receive_message_length", -1),  # a page of documents may pass grpcio's 4 MiB
    ("grpc.initial_reconnect_backoff_ms", 100),  # a daemon that restarts is found again at once
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A secured connection. `tls=True` is all that a daemon with a publicly trusted certificate needs."""

    ca: str | os.PathLike[str] | None = None
    """PEM file with the authorities to trust; gRPC's own where None."""
    certificate: str | os.PathLike[str] | None = None
    """PEM file with this client's certificate chain, for daemons that ask for one."""
    private_key: str | os.PathLike[str] | None = None
    """PEM file with its private key."""
    server_name: str | None = None
    """The name in the daemon's certificate, where it is not the target's host."""

    def credentials(self) -> grpc.ChannelCredentials:
        """As grpcio takes them. OSError: a file can't be read."""
        ca, key, chain = (Path(p).read_bytes() if p is not None else None for p in self._files())
        return grpc.ssl_channel_credentials(ca, key, chain)

    def _files(self) -> tuple[str | os.PathLike[str] | None, ...]:
        return (self.ca, self.private_key, self.certificate)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How calls that are safe to repeat are repeated while the daemon is unavailable, always within their timeout."""

    attempts: int = 5
    """How often at most, the first time among them; 1 never repeats."""
    first_delay: float = 0.2
    """Seconds before the second attempt; each later delay is twice the one before."""
    max_delay: float = 5.0
    """The longest delay in seconds."""

    def delay(self, attempt: int) -> float:
        """Seconds to wait after this many attempts. Jitter keeps many clients from coming back together."""
        return min(self.max_delay, self.first_delay * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Settings:
    """All of it, resolved: arguments, then the environment, then defaults."""

    target: str
    api_key: str | None = field(repr=False)
    tls: Tls | None
    timeout: float | None
    retry: Retry

    @classmethod
    def resolve(
        cls,
        target: str | None,
        api_key: str | None,
        tls: bool | Tls,
        timeout: float | None,
        retry: Retry | None,
        insecure: bool,
    ) -> Settings:
        """InvalidArgument: a key would cross a network in the clear, or can't be sent at all."""
        target = target or os.environ.get("MEMORYD_TARGET") or DEFAULT_TARGET
        api_key = api_key or os.environ.get("MEMORYD_API_KEY") or None
        secured = (tls if isinstance(tls, Tls) else Tls()) if tls else None
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidArgument("the API key holds characters that no key has: was it pasted with a line break?")
        if api_key is not None and secured is None and not insecure and not is_loopback(target):
            raise InvalidArgument(
                f"the API key would cross the network to {target} in the clear: "
                "pass tls=True, or insecure=True where the network is trusted"
            )
        return cls(target, api_key, secured, timeout, retry or Retry(attempts=1))

    def channel_options(self, user_agent: str) -> list[tuple[str, Any]]:
        """grpcio's options."""
        options = [*_OPTIONS, ("grpc.primary_user_agent", user_agent)]
        if is_loopback(self.target):
            options.append(("grpc.enable_http_proxy", 0))  # http_proxy is for elsewhere
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


def is_loopback(target: str) -> bool:
    """Whether a target never leaves this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    addresses = rest.rpartition("/")[2] if scheme in ("dns", "ipv4", "ipv6") else target
    return all(_is_loopback_host(_host(address)) for address in addresses.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
