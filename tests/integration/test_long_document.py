"""A document of 128k tokens goes through, and the worker does not grow, though its compressor reads every token."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from memoryd_client import Client, Mode, Stage

from memoryd.worker.client import WorkerClient, WorkerInfo
from tests.daemon import DaemonProcess
from tests.integration.engine_parts import save_compressor
from tests.integration.support import until
from tests.tiny_models import make_tiny_model

TOKENS = 128 * 1024
WIDE = 2048
"""Of the model's inner layers: what one of them makes of the whole document is 1 GiB, so a pass over all of it would show."""
GROWTH = TOKENS * WIDE * 4 // 4  # bytes
SECONDS = 900.0

pytestmark = pytest.mark.timeout(SECONDS + 300)


async def described(data_dir: Path) -> WorkerInfo:
    async with WorkerClient(data_dir / "worker.sock") as worker:
        return await worker.describe()


def test_a_document_of_128k_tokens_is_compressed_in_bounded_memory(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model", intermediate_size=WIDE, num_hidden_layers=1)
    fingerprint = save_compressor(tmp_path / "compressor", model)
    text = "".join(f"On day {day} the harbour master wrote down ship {day * 7919 % 10007}.\n" for day in range(TOKENS // 40))
    data_dir = tmp_path / "data"
    flags = ("--model", str(model), "--compressor", str(tmp_path / "compressor"), "--compress-tokens", "2048")
    with DaemonProcess(data_dir, *flags) as daemon, Client(daemon.target) as client:
        info = asyncio.run(described(data_dir))
        assert (info.compress_tokens, info.compressor.fingerprint) == (2048, fingerprint)
        memory = client.memory("harbour", create=True)
        memory.write("One note.").wait(Stage.COMPRESSED)
        worker = daemon.child("memoryd.worker")
        before = most = worker.memory_info().rss
        written = memory.write(text, title="Log")

        def compressed() -> bool:
            nonlocal most
            most = max(most, worker.memory_info().rss)  # while it works: what a pass took is given back after it
            return memory.documents.get(written.document).stage is Stage.COMPRESSED

        until(compressed, "it is compressed", SECONDS)
        assert most - before < GROWTH
        document = memory.documents.get(written.document)
        assert document.token_count > TOKENS
        assert document.chunk_count >= TOKENS // 512
        answer = memory.answer("Which ship came on day 77?", mode=Mode.COMPRESSED, max_tokens=2)
        assert answer.usage.soft_tokens > 0
        assert answer.usage.full_source_tokens > TOKENS
