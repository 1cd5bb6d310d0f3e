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
from memoryd.errors import Unauthenticated
from memoryd.store.base import Ledger

KEY_PREFIX = "mk_"
ADMIN_PREFIX = "mk_admin_"


def hash_secret(secret: str) -> str:
    """sha256, in hex. A key is 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret(prefix: str = KEY_PREFIX) -> str:
    return prefix + secrets.token_urlsafe(32)


def admin_key(data_dir: Path) -> str:
    """Reads data_dir/admin.key, made at the first start with 256 random bits and readable by its owner only."""
    path = data_dir / "admin.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(new_secret(ADMIN_PREFIX) + "\n")
    return path.read_text().strip()


class Authenticator:
    """Resolves a call's metadata to its caller. Without an `admin_secret` no keys are asked for: all are tenant `default`."""

    def __init__(self, ledger: Ledger, admin_secret: str | None) -> None:
        self._ledger = ledger
        self._admin_hash = hash_secret(admin_secret) if admin_secret else None

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
