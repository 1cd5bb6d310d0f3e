"""From a key to its caller, on a real ledger."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryd.api.auth import ADMIN_PREFIX, KEY_PREFIX, Authenticator, admin_key, hash_secret, new_secret
from memoryd.api.caller import Caller
from memoryd.core import DEFAULT_TENANT
from memoryd.errors import SettingsError, Unauthenticated
from memoryd.store.ledger import SqlLedger

ADMIN = new_secret(ADMIN_PREFIX)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    ledger = SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}")
    for tenant in ("red", "blue"):
        ledger.ensure_tenant(tenant)
    yield ledger
    ledger.close()


def bearer(secret: str) -> dict[str, str | bytes]:
    return {"authorization": f"Bearer {secret}"}


async def refusal(authenticator: Authenticator, metadata: dict[str, str | bytes]) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        await authenticator.resolve(metadata)
    return caught.value


async def test_without_keys_everyone_is_the_default_tenant_and_admin(ledger: SqlLedger) -> None:
    authenticator = Authenticator(ledger, None)
    for metadata in ({}, bearer("mk_whatever")):
        assert await authenticator.resolve(metadata) == Caller(DEFAULT_TENANT, admin=True)


async def test_a_key_is_its_tenant_and_no_admin(ledger: SqlLedger) -> None:
    authenticator = Authenticator(ledger, ADMIN)
    for tenant in ("red", "blue"):
        secret = new_secret()
        ledger.create_key(tenant, "", hash_secret(secret), secret[:8])
        assert await authenticator.resolve(bearer(secret)) == Caller(tenant, admin=False)


async def test_the_admin_key_is_admin_and_no_tenant(ledger: SqlLedger) -> None:
    assert await Authenticator(ledger, ADMIN).resolve(bearer(ADMIN)) == Caller("", admin=True)


async def test_a_revoked_key_and_a_wrong_one_are_refused_in_the_same_words(ledger: SqlLedger) -> None:
    authenticator = Authenticator(ledger, ADMIN)
    secret = new_secret()
    key = ledger.create_key("red", "", hash_secret(secret), secret[:8])
    await authenticator.resolve(bearer(secret))
    ledger.revoke_key("red", key.id)
    revoked = await refusal(authenticator, bearer(secret))
    wrong = await refusal(authenticator, bearer(new_secret()))
    assert revoked.message == wrong.message
    assert secret not in revoked.message


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "mk_x", b"Bearer bytes"])
async def test_what_is_no_bearer_key_is_told_how_to_send_one(ledger: SqlLedger, header: str | bytes | None) -> None:
    metadata = {} if header is None else {"authorization": header}
    assert "authorization: Bearer" in (await refusal(Authenticator(ledger, ADMIN), metadata)).message


async def test_the_scheme_may_be_in_any_case(ledger: SqlLedger) -> None:
    assert (await Authenticator(ledger, ADMIN).resolve({"authorization": f"bearer {ADMIN}"})).admin


def test_secrets_are_long_random_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith(KEY_PREFIX) and len(secret) >= 40 for secret in secrets)


def test_the_admin_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = admin_key(tmp_path)
    assert first.startswith(ADMIN_PREFIX)
    assert admin_key(tmp_path) == first
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]


@pytest.mark.parametrize("left", ["", "\n", "mk_admin_short"])
def test_what_a_full_disk_left_of_the_admin_key_opens_nothing(tmp_path: Path, left: str) -> None:
    (tmp_path / "admin.key").write_text(left)
    with pytest.raises(SettingsError, match=r"holds no admin key.*remove it and start again"):
        admin_key(tmp_path)


def test_an_admin_key_that_was_not_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("memoryd.api.auth.os.fsync", full)
    with pytest.raises(SettingsError, match="No space left"):
        admin_key(tmp_path)
    assert not (tmp_path / "admin.key").exists()
    monkeypatch.undo()
    assert admin_key(tmp_path).startswith(ADMIN_PREFIX), "once there is room"


def test_an_empty_admin_key_is_not_taken_for_none(ledger: SqlLedger) -> None:
    with pytest.raises(ValueError, match="empty"):
        Authenticator(ledger, "")
