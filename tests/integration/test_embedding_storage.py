"""Compressed embeddings stored as int8: half the bytes on disk, read as before, whatever the setting is by then."""

from __future__ import annotations

from pathlib import Path

import torch
from memoryd_client import Client, Memory, Mode, Stage, Usage
from safetensors.torch import load

from tests.daemon import DaemonProcess
from tests.integration.test_recompression import embeddings

QUESTION = "When does the ferry leave?"


def write(memory: Memory, title: str) -> int:
    """Compresses a document; gives the number of its chunks."""
    text = " ".join(f"On day {n} of {title} the ferry to Hvar leaves at noon from the third pier." for n in range(40))
    document = memory.write(text, title=title).wait(Stage.COMPRESSED)
    assert document.chunk_count > 2
    return document.chunk_count


def ask(memory: Memory) -> Usage:
    """Shows the model every chunk of the memory."""
    usage = memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=1, top_k=100).usage
    assert usage.soft_tokens > 0
    return usage


def stored(data_dir: Path) -> dict[Path, bytes]:
    """What is on disk, by the path of each chunk's blob."""
    return {path: path.read_bytes() for path in embeddings(data_dir)}


def test_int8_takes_half_the_bytes_and_is_read_under_either_setting(tmp_path: Path, tiny_model: Path) -> None:
    data_dir, flags = tmp_path / "data", ("--model", str(tiny_model))
    with DaemonProcess(data_dir, *flags, "--embedding-storage", "int8") as daemon, Client(daemon.target) as client:
        memory = client.memory("notes", create=True)
        chunks = write(memory, "spring")
        first = ask(memory)
    small = stored(data_dir)
    assert len(small) == chunks
    assert {load(data)["embeddings"].dtype for data in small.values()} == {torch.int8}

    with DaemonProcess(data_dir, *flags) as daemon, Client(daemon.target) as client:
        memory = client.memory("notes")
        again = ask(memory)
        assert again.soft_tokens == first.soft_tokens
        assert set(again.cache_hits) == {"blobs"}, "the daemon is new: what it read was on disk"
        write(memory, "autumn")
        both = ask(memory)
        assert set(both.cache_hits) == {"process", "blobs"}, "in one prompt, what is stored either way"
        assert both.soft_tokens > 1.8 * first.soft_tokens
        assert both.compressor == first.compressor
        assert len(list(client.jobs.list())) == 2, "what is stored is not rewritten"
    everything = stored(data_dir)
    assert {path: everything[path] for path in small} == small
    large = [data for path, data in everything.items() if path not in small]
    assert per_embedding(large) > 128, "bfloat16, of d_model 64"
    assert per_embedding(list(small.values())) < 0.6 * per_embedding(large)

    with DaemonProcess(data_dir, *flags, "--embedding-storage", "int8") as daemon, Client(daemon.target) as client:
        assert ask(client.memory("notes")).soft_tokens == both.soft_tokens
    assert stored(data_dir) == everything


def per_embedding(blobs: list[bytes]) -> float:
    """Bytes, headers included."""
    return sum(map(len, blobs)) / sum(len(load(data)["embeddings"]) for data in blobs)
