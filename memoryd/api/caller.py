"""Who is calling: set once by the interceptor, read by the servicers. A task of its own runs each call, so calls never mix."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from memoryd.errors import PermissionDenied


@dataclass(frozen=True, slots=True)
class Caller:
    """The one tenant that the call's key resolves to; `admin` is true of the admin key only, which has no tenant's data."""

    tenant: str
    admin: bool = False


_caller: ContextVar[Caller] = ContextVar("memoryd_caller")


def enter(caller: Caller) -> None:
    """For the rest of this task."""
    _caller.set(caller)


def current() -> Caller:
    return _caller.get()


def tenant() -> str:
    """The caller's tenant. PermissionDenied for the admin key, which belongs to none."""
    caller = _caller.get()
    if not caller.tenant:
        raise PermissionDenied("the admin key has no memories: use an API key of a tenant")
    return caller.tenant


def require_admin() -> None:
    """PermissionDenied for all but the admin key (or everyone, where the daemon asks for no keys)."""
    if not _caller.get().admin:
        raise PermissionDenied("this call needs the admin key (data_dir/admin.key on the daemon's host)")
