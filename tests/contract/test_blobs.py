"""Blobs: whole or not at all, inside their tenant, and never changed unnoticed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memoryd.errors import Cancelled, DataLoss, NotFound, ResourceExhausted
from memoryd.store.base import Blobs
from memoryd.store.blobs import FsspecBlobs

KEY = "acme/m/d/text"
TEXT = "Grüße \U0001f600".encode() * 1000
SHA = hashlib.sha256(TEXT).hexdigest()


def test_what_is_put_is_got(blobs: Blobs) -> None:
    blobs.put("acme", KEY, TEXT)
    assert blobs.get("acme", KEY, SHA) == TEXT
    assert blobs.get("acme", KEY) == TEXT
    assert blobs.read_range("acme", KEY, 5, 9, hashlib.sha256(TEXT[5:9]).hexdigest()) == TEXT[5:9]
    assert blobs.read_range("acme", KEY, 7, 7) == b""
    assert b"".join(blobs.stream("acme", KEY, SHA, block=777)) == TEXT
    blobs.put("acme", KEY, b"")
    assert blobs.get("acme", KEY) == b""


def test_what_is_not_there_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(NotFound):
        blobs.get("acme", KEY)
    with pytest.raises(NotFound):
        blobs.read_range("acme", KEY, 0, 1)
    with pytest.raises(NotFound):
        list(blobs.stream("acme", KEY))
    blobs.put("acme", KEY, TEXT)
    with pytest.raises(NotFound):
        blobs.get("acme", "acme/m/d")
    assert blobs.delete_prefix("acme", "acme/none/") == 0


def test_changed_bytes_are_data_loss(blobs: Blobs) -> None:
    blobs.put("acme", KEY, b"x" + TEXT[1:])
    with pytest.raises(DataLoss):
        blobs.get("acme", KEY, SHA)
    with pytest.raises(DataLoss):
        blobs.read_range("acme", KEY, 0, 4, hashlib.sha256(TEXT[:4]).hexdigest())
    with pytest.raises(DataLoss):
        list(blobs.stream("acme", KEY, SHA))
    with pytest.raises(DataLoss):  # truncated
        blobs.read_range("acme", KEY, len(TEXT) - 1, len(TEXT) + 1)


def test_a_writer_shows_nothing_before_it_commits(blobs: Blobs) -> None:
    writer = blobs.writer("acme")
    writer.write(TEXT[:10])
    writer.write(TEXT[10:])
    assert (writer.sha256, writer.size) == (SHA, len(TEXT))
    with pytest.raises(NotFound):
        blobs.get("acme", KEY)
    writer.commit(KEY)
    writer.abort()
    assert blobs.get("acme", KEY, SHA) == TEXT
    assert blobs.sweep(0.0) == 0


def test_a_writer_of_no_data_has_no_file_before_it_commits(blobs: Blobs) -> None:
    writer = blobs.writer("acme")
    assert blobs.sweep(0.0) == 0
    writer.commit(KEY)
    assert blobs.get("acme", KEY, hashlib.sha256(b"").hexdigest()) == b""


def test_a_writer_that_was_aborted_before_its_first_data_takes_none(blobs: Blobs) -> None:
    """A call ends while a thread is about to write."""
    writer = blobs.writer("acme")
    writer.abort()
    with pytest.raises(Cancelled):
        writer.write(TEXT)
    assert blobs.sweep(0.0) == 0


def test_an_aborted_writer_leaves_nothing(blobs: Blobs) -> None:
    writer = blobs.writer("acme")
    writer.write(TEXT)
    writer.abort()
    writer.abort()
    assert blobs.sweep(0.0) == 0
    with pytest.raises(NotFound):
        blobs.get("acme", KEY)


def test_a_commit_under_another_tenants_key_leaves_nothing(blobs: Blobs) -> None:
    writer = blobs.writer("acme")
    writer.write(TEXT)
    with pytest.raises(NotFound):
        writer.commit("other/m/d/text")
    assert blobs.sweep(0.0) == 0


def test_delete_prefix_takes_whole_names(blobs: Blobs) -> None:
    for key in ("acme/m/d/text", "acme/m/d/embeddings/0", "acme/m/d2/text", "acme/mm/d/text"):
        blobs.put("acme", key, TEXT)
    assert blobs.delete_prefix("acme", "acme/m/d/") == 2
    with pytest.raises(NotFound):
        blobs.get("acme", "acme/m/d/embeddings/0")
    assert blobs.get("acme", "acme/m/d2/text") == TEXT
    assert blobs.delete_prefix("acme", "acme/m") == 1
    assert blobs.get("acme", "acme/mm/d/text") == TEXT


@pytest.mark.parametrize(
    "key",
    [
        "other/m/d/text",
        "acme/../other/m/d/text",
        "acme/m/../../other/text",
        "../acme/text",
        "/acme/text",
        "acme//text",
        "acme/./text",
        "acme/.tmp/text",
        ".tmp/text",
        "acme/m/*",
        "acme/m/[a-z]",
        "acme/m\\..\\x",
        "acme/m/te\0xt",
        "acme/m/text\n",
        "acme/m::memory",
        "",
    ],
)
def test_no_key_leads_out_of_its_tenant(blobs: Blobs, key: str) -> None:
    blobs.put("other", "other/m/d/text", TEXT)
    with pytest.raises(NotFound):
        blobs.put("acme", key, TEXT)
    with pytest.raises(NotFound):
        blobs.get("acme", key)
    with pytest.raises(NotFound):
        blobs.read_range("acme", key, 0, 1)
    with pytest.raises(NotFound):
        list(blobs.stream("acme", key))
    with pytest.raises(NotFound):
        blobs.delete_prefix("acme", key)
    assert blobs.get("other", "other/m/d/text") == TEXT


def test_sweep_takes_only_what_is_old(blobs: Blobs) -> None:
    left = blobs.writer("acme")
    left.write(b"half")
    blobs.put("acme", KEY, TEXT)
    if not isinstance(blobs, FsspecBlobs) or not blobs._local:
        left._file.close()  # type: ignore[attr-defined]  # in memory nothing is there before
    assert blobs.sweep(3600.0) == 0
    assert blobs.sweep(0.0) == 1
    assert blobs.get("acme", KEY) == TEXT


def test_a_full_disk_is_resource_exhausted_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files is the full disk that needs no root; SIGXFSZ is ignored by Python.
    code = """
import resource, sys
from memoryd.errors import ResourceExhausted
from memoryd.store.blobs import FsspecBlobs
blobs = FsspecBlobs(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    blobs.put("acme", "acme/m/d/text", b"x" * (1 << 20))
except ResourceExhausted as error:
    print(error.reason)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DISK_FULL"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_disk_that_fails_while_flushing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = FsspecBlobs(str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceExhausted):
        blobs.put("acme", KEY, TEXT)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
