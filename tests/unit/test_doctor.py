"""`memoryd doctor`: a line for each part, and for what is wrong what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memoryd import config, doctor
from memoryd.compress.load import COMPRESSORS
from memoryd.config import Settings
from memoryd.engine.base_model import EMBEDDED_MODEL
from memoryd.errors import DataLoss, SettingsError
from memoryd.lock import DataDirLock
from memoryd.store import migrations
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger
from tests.servers import new_database


def settings(data_dir: Path, **flags: str) -> Settings:
    return config.load(environment={}, flags={"data_dir": str(data_dir), "listen": "127.0.0.1:0"} | flags)


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch-of-nowhere",))
    with pytest.raises(doctor.Problem, match="pip install torch-of-nowhere"):
        doctor._packages()


def test_a_full_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1 << 20))
    with pytest.raises(doctor.Problem, match="has 1 MiB left"):
        doctor._data(tmp_path)


def test_a_data_directory_that_others_can_read_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with pytest.raises(doctor.Problem, match=r"open to other users.*chmod -R go= "):
        doctor._data(tmp_path / "data")
    (tmp_path / "data").chmod(0o700)
    assert "free" in doctor._data(tmp_path / "data")


def test_a_data_directory_that_is_a_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(doctor.Problem, match="--data-dir"):
        doctor._data(tmp_path / "file")


def test_too_little_memory_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED_MEMORY", 1 << 60)
    with pytest.raises(doctor.Problem, match="of memory left"):
        doctor._memory()


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where something listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_that_is_taken_is_wrong(tmp_path: Path, taken: str) -> None:
    with pytest.raises(doctor.Problem, match="--listen"):
        doctor._listen(settings(tmp_path, listen=taken))


def test_the_port_of_the_daemon_that_runs_on_this_data_directory_is_well(tmp_path: Path, taken: str) -> None:
    with DataDirLock(tmp_path):
        assert f"(process {os.getpid()})" in doctor._listen(settings(tmp_path, listen=taken))
        with pytest.raises(SettingsError, match="can't be bound"):  # which that daemon cannot have
            doctor._listen(settings(tmp_path, listen="no.such.host.invalid:7437", auth="keys"))


# --- the ledger ---


def made_ledger(url: str) -> None:
    ledger = SqlLedger(url)
    ledger.ensure_tenant("red")
    ledger.close()


def test_the_ledger_is_counted_where_there_is_one(tmp_path: Path) -> None:
    assert "not there yet: it is made at the first start" in doctor._ledger(settings(tmp_path))
    made_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert doctor._ledger(settings(tmp_path)) == "1 tenant(s), 0 document(s)"
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]  # nothing was left beside it


def test_the_ledger_of_a_daemon_that_runs_is_read_with_its_log(tmp_path: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.ensure_tenant("red")
    assert (tmp_path / "ledger.db-wal").stat().st_size > 0
    assert doctor._ledger(settings(tmp_path)) == "1 tenant(s), 0 document(s)"
    ledger.ensure_tenant("blue")
    ledger.close()


def test_a_ledger_is_not_made_where_the_url_is_mistyped(tmp_path: Path) -> None:
    given = settings(tmp_path, database_url=f"sqlite:///{tmp_path / 'mistyped' / 'ledger.db'}")
    assert str(tmp_path / "mistyped") in doctor._ledger(given)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_is_not_there_any_more_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for database_url in ("", f"sqlite:///{tmp_path / 'mistyped.db'}"):
        with pytest.raises(doctor.Problem, match="give the database_url that it ran with, or restore a backup"):
            doctor._ledger(settings(tmp_path, database_url=database_url))


def test_an_older_ledger_is_not_migrated_and_a_newer_one_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    before = (tmp_path / "ledger.db").read_bytes()
    newest = len(migrations.MIGRATIONS)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, ("SELECT 1",)))
    assert f"schema version {newest}: the next start brings it to {newest + 1}" in doctor._ledger(settings(tmp_path))
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[: newest - 1])
    with pytest.raises(doctor.Problem, match="made by a newer memoryd"):
        doctor._ledger(settings(tmp_path))
    assert (tmp_path / "ledger.db").read_bytes() == before


def test_another_programs_database_holds_no_ledger(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "ledger.db")
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    assert "not there yet" in doctor._ledger(settings(tmp_path))


def test_a_ledger_on_postgresql_is_looked_at_only(tmp_path: Path, postgresql: str) -> None:
    given = settings(tmp_path, database_url=new_database(postgresql))
    for _ in range(2):
        assert "not there yet" in doctor._ledger(given)
    made_ledger(given.database_url)
    assert doctor._ledger(given) == "1 tenant(s), 0 document(s)"


def test_a_postgresql_that_does_not_answer_is_wrong_by_its_setting(tmp_path: Path) -> None:
    given = settings(tmp_path, database_url="postgresql+psycopg://me:hunter2@127.0.0.1:1/memoryd")
    with pytest.raises(doctor.Problem, match=r"database_url can't be used .* does its server run") as caught:
        doctor._ledger(given)
    assert "hunter2" not in str(caught.value)


def test_a_damaged_ledger_is_wrong_and_so_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    given = settings(tmp_path)
    monkeypatch.setattr(doctor, "_checks", lambda settings: [("ledger", lambda: doctor._ledger(settings))])
    assert doctor.check(given) == 1
    out = capsys.readouterr().out
    assert "WRONG  ledger: the ledger's file is damaged" in out
    assert "1 to mend, see above" in out


# --- blobs ---


def test_blobs_are_written_read_and_removed_again(tmp_path: Path) -> None:
    assert str(tmp_path / "blobs") in doctor._blobs(settings(tmp_path))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_secret_in_the_url_of_the_blobs_is_not_shown(tmp_path: Path) -> None:
    told = doctor._blobs(settings(tmp_path, blob_url="memory://key:hunter2@doctor/blobs"))
    assert told == "memory://***@doctor/blobs"


def test_blobs_that_can_not_be_written_are_wrong_by_their_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(doctor.Problem, match=r"blob_url can't be used \(NotADirectoryError\)"):
        doctor._blobs(settings(tmp_path, blob_url=str(tmp_path / "file" / "blobs")))
    (tmp_path / "blobs").write_text("x")
    with pytest.raises(doctor.Problem, match="blobs can't be written"):
        doctor._blobs(settings(tmp_path))


def test_a_tenant_called_doctor_keeps_its_blobs(tmp_path: Path) -> None:
    blobs = FsspecBlobs(str(tmp_path / "blobs"))
    blobs.put("doctor", "doctor/notes/d1/text", b"text")
    doctor._blobs(Settings(data_dir=tmp_path))
    assert blobs.get("doctor", "doctor/notes/d1/text") == b"text"


# --- servers, TLS, models ---


@pytest.mark.parametrize(("check", "flag"), [("_cache", "redis_url"), ("_index", "milvus_uri")])
def test_a_server_that_does_not_answer_is_wrong_and_its_password_is_not_shown(tmp_path: Path, check: str, flag: str) -> None:
    scheme = "redis" if flag == "redis_url" else "http"
    given = settings(tmp_path, **{flag: f"{scheme}://user:hunter2@127.0.0.1:1"})
    with pytest.raises(doctor.Problem, match=f"{flag} does not answer") as caught:
        getattr(doctor, check)(given)
    assert "hunter2" not in str(caught.value)


def test_a_model_that_is_not_there_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    given = settings(tmp_path, model=str(tmp_path / "no-model"))
    monkeypatch.setattr(doctor, "_checks", lambda settings: [("model", lambda: doctor._model(settings))])
    assert doctor.check(given) == 1
    assert "no-model" in capsys.readouterr().out


def test_tls_is_off_or_its_files_are_read(tmp_path: Path) -> None:
    assert doctor._tls(settings(tmp_path)) == "off"
    with pytest.raises(SettingsError, match=r"tls_key: .*No such file"):
        doctor._tls(settings(tmp_path, tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem")))


def test_a_device_that_is_not_there_is_wrong() -> None:
    assert doctor._device("auto") == "auto"
    with pytest.raises(doctor.Problem, match="device=cuda:99 is not there"):
        doctor._device("cuda:99")


def test_a_compressor_that_is_not_whole_is_wrong(tmp_path: Path) -> None:
    assert "ships" in doctor._compressor(None)
    with pytest.raises(doctor.Problem, match="no directory"):
        doctor._compressor(tmp_path / "nowhere")
    whole = tmp_path / "compressor"
    shutil.copytree(COMPRESSORS / EMBEDDED_MODEL, whole)
    assert doctor._compressor(whole) == str(whole)

    weights = whole / "reader" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(doctor.Problem, match=r"reader/adapter_model\.safetensors is damaged"):
        doctor._compressor(whole)
    weights.unlink()
    with pytest.raises(doctor.Problem, match=r"has no reader/adapter_model\.safetensors"):
        doctor._compressor(whole)
    (whole / "projector.safetensors").unlink()
    with pytest.raises(doctor.Problem, match=r"has no \*\.safetensors"):
        doctor._compressor(whole)
    (whole / "config.json").unlink()
    with pytest.raises(DataLoss, match=r"has no readable config\.json"):
        doctor._compressor(whole)


def test_what_a_missing_package_keeps_from_being_checked_does_not_end_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def missing() -> str:
        raise ModuleNotFoundError("No module named 'grpc'")

    monkeypatch.setattr(doctor, "_checks", lambda settings: [("listen", missing), ("tls", lambda: "off")])
    assert doctor.check(settings(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "WRONG  listen: can't be checked (No module named 'grpc')" in out
    assert "ok     tls: off" in out
