"""A new version's chunks: all that holds for every text, and what did not change keeps its chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoryd.compress.chunker import ChunkText
from memoryd.compress.rechunk import OldChunks, rechunk_text
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from tests.unit.test_chunker import SMALL, Words, alphabet, check, chunks_of


def rechunked(text: str, old: str | OldChunks, piece: int = 50) -> list[ChunkText]:
    known = old if isinstance(old, OldChunks) else OldChunks.of(c.chunk for c in chunks_of(old))
    pieces = (text[i : i + piece] for i in range(0, len(text), piece))
    return list(rechunk_text("doc", pieces, Words(), Words(), known, SMALL))


def texts_of(chunks: Sequence[ChunkText]) -> list[str]:
    return [c.text for c in chunks]


def prose(numbers: Sequence[int]) -> str:
    """A sentence for each number; every seventh ends a line."""
    return "".join(f"Sentence {n} says {n * n}.{chr(10) if n % 7 == 6 else ' '}" for n in numbers)


anything = st.lists(alphabet, max_size=150).map("".join)


@settings(max_examples=150, deadline=None)
@given(anything, anything, anything, anything, st.integers(1, 50))
def test_whatever_was_there_before_the_text_is_covered_within_limits(
    before: str, removed: str, added: str, after: str, piece: int
) -> None:
    new = before + added + after
    check(new, rechunked(new, before + removed + after, piece), SMALL)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 150), st.integers(0, 40), st.integers(0, 40))
def test_no_more_is_cut_anew_than_what_an_edit_touches_and_its_neighbours(at: int, removed: int, added: int) -> None:
    before, gone, after = list(range(at)), list(range(at, at + removed)), list(range(at + removed, 200))
    old, new = prose(before + gone + after), prose(before + list(range(1000, 1000 + added)) + after)
    first, last = len(prose(before)), len(prose(before + gone))  # the edit's place in the old text
    untouched = [c.text for c in chunks_of(old) if c.chunk.end < first or c.chunk.start >= last]
    made = rechunked(new, old)
    check(new, made, SMALL)
    assert len(set(untouched) - set(texts_of(made))) <= 2, "more than a neighbour on either side was given up"


def test_the_same_text_has_the_same_chunks() -> None:
    text = prose(range(200))
    assert rechunked(text, text) == chunks_of(text)


def test_without_an_old_version_chunks_are_the_plain_ones() -> None:
    text = prose(range(200))
    assert rechunked(text, OldChunks.of([])) == chunks_of(text)


def test_a_word_that_changes_in_the_middle_changes_one_chunk() -> None:
    text = prose(range(300))
    old = chunks_of(text)
    edited = old[len(old) // 2]
    new = text.replace(edited.text, edited.text.replace("says", "sings", 1))
    made = rechunked(new, text)
    check(new, made, SMALL)
    assert len(old) > 20
    assert set(texts_of(old)) - set(texts_of(made)) == {edited.text}


def test_a_sentence_at_the_beginning_does_not_move_every_boundary() -> None:
    text = prose(range(300)).replace("\n", " ")  # lines would help the plain chunker to find its boundaries again
    new = "Only this is new. " + text
    old = set(texts_of(chunks_of(text)))
    assert len(old - set(texts_of(chunks_of(new)))) > len(old) / 2
    assert len(old - set(texts_of(rechunked(new, text)))) <= 1


def test_what_moves_keeps_its_chunks() -> None:
    chapters = [prose(range(n, n + 60)) + "\n" * 70 for n in (0, 100, 200)]
    old, new = chapters[0] + chapters[1] + chapters[2], chapters[2] + chapters[0] + chapters[1]
    made = rechunked(new, old)
    check(new, made, SMALL)
    assert sorted(texts_of(made)) == sorted(texts_of(chunks_of(old)))


def test_a_document_that_grows_by_a_sentence_at_a_time_has_full_chunks() -> None:
    text, chunks = prose([0]), chunks_of(prose([0]))
    for n in range(1, 200):
        text = prose(range(n + 1))
        known, held = OldChunks.of(c.chunk for c in chunks), set(texts_of(chunks))
        chunks = rechunked(text, known)
        assert sum(c.text not in held for c in chunks) <= 1
    check(text, chunks, SMALL)
    assert len(chunks) <= 1.25 * len(chunks_of(text))


def test_real_tokenizers_keep_within_the_real_limits() -> None:
    retrieval = RetrievalTokenizer()
    text = "".join(
        f"In {n} the quick brown fox, born in 1887, jumps over Łódź and 東京. Is it so? Yes!\n\n" for n in range(400)
    )
    old = list(rechunk_text("doc", [text], retrieval, retrieval, OldChunks.of([])))
    new = text.replace("In 200 the quick", "In 200 the slow and rather tired")
    made = list(rechunk_text("doc", [new], retrieval, retrieval, OldChunks.of(c.chunk for c in old)))
    assert max(retrieval.count_batch(texts_of(made))) <= 512
    assert len(set(texts_of(old)) - set(texts_of(made))) == 1


@pytest.mark.parametrize("line", ["A sentence number {n} that says little. ", "{n}\n", "x{n}"])
def test_streams_in_bounded_memory_and_linear_time_where_nothing_is_the_same(line: str) -> None:
    """As if 100 MB had been replaced by others, all chunks of like sizes."""
    old = OldChunks.of(c.chunk for c in chunks_of("".join(line.format(n=n) for n in range(100_000, 120_000)), piece=1000))
    read = 0

    def pieces(count: int) -> Iterator[str]:
        nonlocal read
        for k in range(count):
            read += 1
            yield "".join(line.format(n=n) for n in range(200_000 + 40 * k, 200_040 + 40 * k))

    next(rechunk_text("doc", pieces(100_000), Words(), Words(), old, SMALL))
    assert read < 2000

    def seconds(count: int) -> float:
        begun = time.process_time()
        assert sum(1 for _ in rechunk_text("doc", pieces(count), Words(), Words(), old, SMALL)) > 1
        return time.process_time() - begun

    seconds(20)
    assert seconds(400) < 8 * 4 * max(seconds(50), 0.02)
