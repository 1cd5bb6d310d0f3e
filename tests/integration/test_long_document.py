"""A document of 128k tokens goes through, and the worker does not grow."""

from __future__ import annotations

import asyncio
from pathlib import Path

from memoryd_client import Client, Mode, Stage

from memoryd.worker.client import WorkerClient, WorkerInfo
from tests.daemon import DaemonProcess

TOKENS = 128 * 1024
GROWTH = 200 << 20  # bytes: a pass over all of it at once would take gigabytes


async def described(data_dir: Path) -> WorkerInfo:
    async with WorkerClient(data_dir / "worker.sock") as worker:
        return await worker.describe()


def test_a_document_of_128k_tokens_is_compressed_in_bounded_memory(tmp_path: Path, tiny_model: Path) -> None:
    text = "".join(f"On day {day} the harbour master wrote down ship {day * 7919 % 10007}.\n" for day in range(TOKENS // 40))
    flags = ("--model", str(tiny_model), "--compress-tokens", "4096")
    with DaemonProcess(tmp_path, *flags) as daemon, Client(daemon.target) as client:
        assert asyncio.run(described(tmp_path)).compress_tokens == 4096
        memory = client.memory("harbour", create=True)
        memory.write("One note.").wait(Stage.COMPRESSED)
        before = daemon.child("memoryd.worker").memory_info().rss
        document = memory.write(text, title="Log").wait(Stage.COMPRESSED)
        assert document.token_count > TOKENS
        assert document.chunk_count >= TOKENS // 512
        assert daemon.child("memoryd.worker").memory_info().rss - before < GROWTH
        answer = memory.answer("Which ship came on day 77?", mode=Mode.COMPRESSED, max_tokens=2)
        assert answer.usage.soft_tokens > 0
        assert answer.usage.full_source_tokens > TOKENS
