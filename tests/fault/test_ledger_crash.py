"""A process that is killed amid writes loses none that it was told of."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger

_WRITER = """
import os, sys, threading
from memoryd.core import Kind, new_id
from memoryd.errors import AlreadyExists
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger

ledger, blobs = SqlLedger(f"sqlite:///{sys.argv[1]}/ledger.db"), FsspecBlobs(sys.argv[1] + "/blobs")
ledger.ensure_tenant("acme")
try:
    ledger.create_memory("acme", "m", "", "", {}, None)
except AlreadyExists:
    pass

def work():
    while True:
        id_ = new_id()
        key = f"acme/m/{id_}/text"
        blobs.put("acme", key, id_.encode() * 100)
        ledger.write_document("acme", "m", id_, Kind.TEXT, "", {}, id_, 1, key, None)
        os.write(1, f"{id_}\\n".encode())  # the acknowledgement: one write, whole or not at all

for _ in range(8):
    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("acknowledged", [1, 40, 150])
def test_no_acknowledged_write_is_lost(tmp_path: Path, acknowledged: int) -> None:
    told: list[str] = []
    for _ in range(2):  # the second starts from what the first left
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(acknowledged):
                told.append(writer.stdout.readline().strip())
            writer.send_signal(signal.SIGKILL)
            told += writer.stdout.read().split()
    ledger, blobs = SqlLedger(f"sqlite:///{tmp_path}/ledger.db"), FsspecBlobs(str(tmp_path / "blobs"))
    kept = ledger.get_documents("acme", told)
    assert set(kept) == set(told)
    for id_, document in kept.items():
        assert blobs.get("acme", document.blob) == id_.encode() * 100
        assert ledger.get_job("acme", document.job).target.endswith(id_)
    blobs.sweep(0.0)
    assert list((tmp_path / "blobs" / ".tmp").iterdir()) == []
    ledger.close()
