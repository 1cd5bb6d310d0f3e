"""On servers that an operator runs: PostgreSQL, S3, a Valkey and a Milvus of its own; the daemon starts none of them."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
from memoryd_client import Client, Mode, NotFound, Stage

from memoryd.forget import MARK
from memoryd.store.embedded import MilvusServer, ValkeyServer
from tests.daemon import DaemonProcess
from tests.integration.support import until
from tests.servers import new_database

TEXT = "The ferry to Hvar leaves at noon from the third pier."


def test_a_daemon_keeps_nothing_but_models_and_loses_nothing(
    tmp_path: Path, tiny_model: Path, postgresql: str, s3_bucket: str, valkey: ValkeyServer, milvus: MilvusServer
) -> None:
    blobs = f"{s3_bucket}/{uuid.uuid4().hex}"
    stores = {"database-url": new_database(postgresql), "blob-url": blobs, "redis-url": valkey.url, "milvus-uri": milvus.uri}
    flags = ["--model", str(tiny_model), *(word for name, url in stores.items() for word in (f"--{name}", url))]

    with DaemonProcess(tmp_path / "first", *flags) as daemon, Client(daemon.target) as client:
        for server in ("milvus_lite", "valkey"):
            with pytest.raises(AssertionError, match="no child"):
                daemon.child(server)
        written = client.memory("notes", create=True).write(TEXT, title="Ferries")
        written.wait(Stage.COMPRESSED)
        daemon.kill()

    with DaemonProcess(tmp_path / "second", *flags) as daemon, Client(daemon.target) as client:  # on another machine
        memory = client.memory("notes")
        assert memory.search("When does the ferry leave?")[0].text == TEXT
        answer = memory.answer("When does the ferry leave?", mode=Mode.COMPRESSED, max_tokens=2)
        assert answer.usage.soft_tokens > 0
        memory.documents.delete(written.document)
        with pytest.raises(NotFound):
            memory.documents.get(written.document)
        assert memory.search("When does the ferry leave?") == []
        until(lambda: _names(blobs) == [MARK[1]], "no byte of it is left in the bucket")


def _names(blobs: str) -> list[str]:
    """What lies in this folder of a bucket, as S3 has it now."""
    found = fsspec.filesystem("s3", skip_instance_cache=True).find(blobs)
    return [name.removeprefix(blobs.removeprefix("s3://")).lstrip("/") for name in found]
