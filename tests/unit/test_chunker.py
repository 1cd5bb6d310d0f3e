"""What holds for every text: spans in order, nothing lost, no limit broken; and time that grows with the text only."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoryd.compress.chunker import ChunkText, Limits, chunk_text
from memoryd.compress.conversation import render_conversation, render_turn
from memoryd.core import Message
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer

SMALL = Limits(chunk_tokens=40, passage_tokens=20, passage_target=12)


class Words:
    """Counts a token for each word, and one for every five characters of a longer one; like BPE, spaces count nothing."""

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        return [sum(1 + len(word) // 5 for word in text.split()) for text in texts]


def chunks_of(text: str, limits: Limits = SMALL, piece: int = 7) -> list[ChunkText]:
    pieces = (text[i : i + piece] for i in range(0, len(text), piece))
    return list(chunk_text("doc", pieces, Words(), Words(), limits))


def check(text: str, chunks: list[ChunkText], limits: Limits) -> None:
    raw = text.encode()
    spans: list[tuple[int, int]] = []
    passages: list[tuple[int, int]] = []
    for ordinal, made in enumerate(chunks):
        chunk = made.chunk
        assert (chunk.document, chunk.ordinal) == ("doc", ordinal)
        assert text[chunk.start : chunk.end] == made.text
        assert raw[chunk.byte_start : chunk.byte_end].decode() == made.text
        assert chunk.sha256 == hashlib.sha256(raw[chunk.byte_start : chunk.byte_end]).hexdigest()
        assert chunk.tokens <= limits.chunk_tokens
        assert made.passages
        spans.append((chunk.start, chunk.end))
        for passage in made.passages:
            assert passage.ordinal == len(passages)
            assert passage.chunk == ordinal
            assert chunk.start <= passage.start < passage.end <= chunk.end
            assert passage.tokens <= limits.passage_tokens
            assert text[passage.start : passage.end] == made.text_of(passage)
            assert raw[passage.byte_start : passage.byte_end].decode() == made.text_of(passage)
            passages.append((passage.start, passage.end))
    for found in (spans, passages):
        covered = 0
        for start, end in found:
            assert start >= covered
            assert not text[covered:start].strip()
            covered = end
        assert not text[covered:].strip()


alphabet = st.sampled_from([*"aaabcde.!?  ,\n", "\n\n", "。", "漢", "字", "😀", "é", '"', ". ", "word ", " " * 80, "x" * 30])


@settings(max_examples=150, deadline=None)
@given(st.lists(alphabet, max_size=300).map("".join), st.integers(1, 50))
def test_spans_cover_all_text_in_order_within_limits(text: str, piece: int) -> None:
    check(text, chunks_of(text, piece=piece), SMALL)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=2000).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)))
def test_any_unicode(text: str) -> None:
    check(text, chunks_of(text), SMALL)


@pytest.mark.parametrize("text", ["", " \n\t \n", "\u3000\u2003"])
def test_white_space_has_no_chunks(text: str) -> None:
    assert chunks_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "word " * 5000,  # one line without a sentence's end
        "x" * 30_000,  # without white space either
        "。" * 5_000,
        "." * 100_000,
        "漢字" * 3_000,
        "👩‍👩‍👧‍👦🇩🇪" * 800,
        "Short. " * 4_000,
        "a\n" * 5_000,
        " " * 200_000 + "end",
    ],
)
def test_awkward_documents(text: str) -> None:
    check(text, chunks_of(text, piece=1000), SMALL)


def test_cuts_are_at_sentence_ends() -> None:
    text = " ".join(f"Sentence number {n} is about Dr. Smith, e.g. his cat." for n in range(60))
    for made in chunks_of(text):
        for passage in made.passages:
            assert made.text_of(passage).startswith("Sentence")
            assert made.text_of(passage).endswith("his cat.")


def test_conversations_are_cut_between_turns() -> None:
    when = datetime(2023, 5, 7, 13, 56, tzinfo=UTC)
    turns = [Message("user", f"First thing {n}. And then another one", "Caroline", when) for n in range(40)]
    text = "".join(render_conversation(turns))
    for made in chunks_of(text):
        assert made.text.startswith("Caroline (7 May 2023 13:56): First")
        assert made.text.endswith("another one")


def test_a_turn_is_one_line() -> None:
    assert render_turn(Message("assistant", "one\ntwo \n\n three")) == "Assistant: one two three"
    assert render_turn(Message("user", "hi", "Bo", datetime(2023, 5, 7, 3, 6, tzinfo=UTC))) == "Bo (7 May 2023 03:06): hi"


def test_real_tokenizers_keep_within_the_real_limits() -> None:
    retrieval = RetrievalTokenizer()
    text = "The quick brown fox, born in 1887, jumps over Łódź and 東京. Is it so? Yes!\n\n" * 400
    made = list(chunk_text("doc", [text], retrieval, retrieval))
    check(text, made, Limits())
    assert max(retrieval.count_batch([c.text for c in made])) <= 512
    sizes = [p.tokens for c in made for p in c.passages]
    assert 100 < sum(sizes) / len(sizes) < 220
    assert max(sizes) <= 254


def test_streams_in_bounded_memory_and_linear_time() -> None:
    read = 0

    def pieces(count: int) -> Iterator[str]:
        nonlocal read
        for _ in range(count):
            read += 1
            yield "A sentence that says little. " * 40

    first = next(chunk_text("doc", pieces(100_000), Words(), Words()))
    assert first.chunk.start == 0
    assert read < 300  # the first chunk is out after a few batches of text

    def seconds(count: int) -> float:
        begun = time.process_time()
        assert sum(1 for _ in chunk_text("doc", pieces(count), Words(), Words())) > count // 20
        return time.process_time() - begun

    seconds(50)
    assert seconds(800) < 8 * 4 * max(seconds(100), 0.02)
