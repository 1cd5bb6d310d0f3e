"""HYBRID where the compressor has passed its gate: all that was found as compressed embeddings, the best two in words too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from memoryd_client import Answer, Client, Memory, Mode, Stage

from tests.daemon import DaemonProcess
from tests.integration.engine_parts import save_compressor

TOWNS = ("Vardo", "Hvar", "Lisbon", "Tromso")
QUESTION = "Who repaired the harbour clock of Hvar?"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Memory]:
    """Four documents of a chunk each."""
    folder = tmp_path_factory.mktemp("hybrid")
    save_compressor(folder / "compressor", tiny_model)
    flags = ("--model", str(tiny_model), "--compressor", str(folder / "compressor"))
    with DaemonProcess(folder / "data", *flags) as daemon, Client(daemon.target) as client:
        made = client.memory("towns", create=True)
        for town in TOWNS:
            made.write(f"The harbour clock of {town} was repaired in the spring of 1957.", title=town).wait(Stage.COMPRESSED)
        yield made


def ask(memory: Memory, mode: Mode | None, top_k: int = len(TOWNS)) -> Answer:
    answer = memory.answer(QUESTION, mode=mode, top_k=top_k, max_tokens=1)
    assert len(answer.sources) == top_k
    return answer


def test_hybrid_is_the_default_and_has_nothing_to_warn_of(memory: Memory) -> None:
    answer = ask(memory, None)
    assert answer.basis.mode is Mode.HYBRID
    assert answer.basis.warnings == ()
    assert len(answer.usage.compressor) == 64


def test_it_shows_every_chunk_and_the_words_of_the_best_two(memory: Memory) -> None:
    hybrid, compressed, text = (ask(memory, mode).usage for mode in (Mode.HYBRID, Mode.COMPRESSED, Mode.TEXT))
    assert hybrid.soft_tokens == compressed.soft_tokens > 0
    assert text.soft_tokens == 0
    assert sum(hybrid.cache_hits.values()) == len(TOWNS)
    assert compressed.text_tokens < hybrid.text_tokens, "words come on top"
    two = ask(memory, Mode.HYBRID, top_k=2).usage
    assert 0 < two.soft_tokens < hybrid.soft_tokens
    both, neither = (ask(memory, mode, top_k=2).usage.text_tokens for mode in (Mode.HYBRID, Mode.COMPRESSED))
    # What words are added is as much for four sources as for two.
    assert hybrid.text_tokens - compressed.text_tokens == both - neither


def test_compressed_need_not_be_warned_of_either(memory: Memory) -> None:
    assert ask(memory, Mode.COMPRESSED).basis.warnings == ()
