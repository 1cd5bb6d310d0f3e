"""`memoryd doctor`: a line for each part, and for what is wrong what to do."""

from __future__ import annotations

import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from memoryd import config, doctor
from memoryd.config import Settings
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger


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


def test_a_port_that_is_taken_is_wrong(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(doctor.Problem, match="--listen"):
            doctor._listen(settings(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}"))


def test_the_ledger_is_counted_where_there_is_one(tmp_path: Path) -> None:
    assert "none yet" in doctor._ledger(settings(tmp_path))
    ledger = SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.ensure_tenant("red")
    ledger.close()
    assert doctor._ledger(settings(tmp_path)) == "1 tenant(s), 0 document(s)"


def test_a_damaged_ledger_is_wrong_and_so_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    given = settings(tmp_path)
    monkeypatch.setattr(doctor, "_checks", lambda settings: [("ledger", lambda: doctor._ledger(settings))])
    assert doctor.check(given) == 1
    out = capsys.readouterr().out
    assert "WRONG  ledger: the ledger's file is damaged" in out
    assert "1 to mend, see above" in out


def test_blobs_are_written_read_and_removed_again(tmp_path: Path) -> None:
    assert str(tmp_path / "blobs") in doctor._blobs(settings(tmp_path))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_secret_in_the_url_of_the_blobs_is_not_shown(tmp_path: Path) -> None:
    told = doctor._blobs(settings(tmp_path, blob_url="memory://key:hunter2@doctor/blobs"))
    assert told == "memory://***@doctor/blobs"


def test_a_tenant_called_doctor_keeps_its_blobs(tmp_path: Path) -> None:
    blobs = FsspecBlobs(str(tmp_path / "blobs"))
    blobs.put("doctor", "doctor/notes/d1/text", b"text")
    doctor._blobs(Settings(data_dir=tmp_path))
    assert blobs.get("doctor", "doctor/notes/d1/text") == b"text"


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
