"""API keys: from the `authorization: Bearer …` of a call to its caller."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from memoryd.api.caller import Caller
from memoryd.core import DEFAULT_TENANT
from memoryd.durable import flush
from memoryd.errors import SettingsError, Unauthenticated
from memoryd.store.base import Ledger

KEY_PREFIX = "mk_"
ADMIN_PREFIX = "mk_admin_"
_SHORTEST = 32  # characters that an admin key has, whoever made it


def hash_secret(secret: str) -> str:
    """sha256, in hex. A key is 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret(prefix: str = KEY_PREFIX) -> str:
    return prefix + secrets.token_urlsafe(32)


def admin_key(data_dir: Path) -> str:
    """Reads data_dir/admin.key, made at the first start with 256 random bits and readable by its owner only.

    SettingsError where it can't be made, or holds no key: what a full disk, or a power cut, left of it would let nobody in.
    """
    path = data_dir / "admin.key"
    try:
        if not path.exists():
            _make(path)
        secret = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"auth: {path} can't be made or read ({error}): see to it and start again") from None
    if len(secret) < _SHORTEST:
        raise SettingsError(
            f"auth: {path} holds no admin key, it was cut off or edited: remove it and start again, which makes a new one; "
            "tenants and their keys stay"
        )
    return secret


def _make(path: Path) -> None:
    """Whole or not at all: written beside it first."""
    building = path.with_suffix(".new")
    building.unlink(missing_ok=True)
    descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(new_secret(ADMIN_PREFIX) + "\n")
    flush(building)
    building.rename(path)
    flush(path.parent)


class Authenticator:
    """Resolves a call's metadata to its caller. Where `admin_secret` is None no keys are asked for: all are `default`."""

    def __init__(self, ledger: Ledger, admin_secret: str | None) -> None:
        if admin_secret == "":
            raise ValueError("an empty admin key is none")
        self._ledger = ledger
        self._admin_hash = None if admin_secret is None else hash_secret(admin_secret)

    async def resolve(self, metadata: Mapping[str, str | bytes]) -> Caller:
        """Unauthenticated: no key, a wrong one, a revoked one; the message does not say which of the last two."""
        if self._admin_hash is None:
            return Caller(DEFAULT_TENANT, admin=True)
        header = metadata.get("authorization", "")
        scheme, _, secret = (header if isinstance(header, str) else "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated("send an API key: metadata `authorization: Bearer <key>`")
        digest = hash_secret(secret.strip())
        if hmac.compare_digest(digest, self._admin_hash):
            return Caller("", admin=True)
        key = await asyncio.to_thread(self._ledger.find_key, digest)
        if key is None or key.revoke_time is not None:
            raise Unauthenticated("this API key is not valid: it is wrong, or was revoked")
        return Caller(key.tenant)
