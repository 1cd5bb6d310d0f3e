"""What a compressor is trained on fits the base model's window, and always shows what its questions rest on."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition
from memoryd.learn.compressor_data import QuestionData, sha256_of
from memoryd.learn.reader_data import Asked, Pack, ReaderData, chunks_of
from memoryd.learn.soft_packing import SoftPack
from memoryd.recall.prompt import REFUSAL, TextBlock
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder, squad_row, write

__all__ = ["folder"]  # the fixture with a little data

MODES = ("compressed", "hybrid", "text")
CHUNK = 1536  # an autocompressor's


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(make_tiny_model("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def long(tokenizer: TextTokenizer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ReaderData:
    """Articles of many chunks of 1536 tokens."""
    made = tmp_path_factory.mktemp("long")
    shutil.copytree(folder, made, dirs_exist_ok=True)
    write(made / "squad.jsonl.xz", [squad_row(name, [f"{name}{n}town" for n in range(40)]) for name in ("Xland", "Yland")])
    return ReaderData(made, tokenizer, RetrievalTokenizer(), 1, partial(chunks_of, tokens=CHUNK))


def questions(tokenizer: TextTokenizer, data: ReaderData, window: int) -> QuestionData:
    return QuestionData(data, tokenizer, 2, seed=1, window=window)


def slots(tokens: int) -> int:
    return -(-tokens // 4)


def positions(pack: SoftPack) -> int:
    """The last that any of its questions, with its answer, takes."""
    context = sum(slots(len(pack.chunks[piece])) if isinstance(piece, int) else len(piece) for piece in pack.context)
    return context + max(len(question) + len(answer) for question, answer in pack.questions)


def test_packs_of_long_texts_fit_the_window(tokenizer: TextTokenizer, long: ReaderData) -> None:
    window = 4096
    data = questions(tokenizer, long, window)
    cut = 0
    for pack in islice(data.packs(), 15):
        fitted = data.fitted(pack, slots, MODES)
        cut += fitted != pack
        assert fitted.questions
        for mode in MODES:
            shown = data.encode(fitted, slots, mode)
            assert positions(shown) <= window
            assert len(shown.chunks) == (0 if mode == "text" else len(fitted.blocks)), "none was dropped on the way"
    assert cut > 3, "they were too long"


def pack() -> Pack:
    """Blocks of 150 words, a token each; questions on the second and the last, and one that none answers."""
    blocks = tuple(TextBlock(f"{name} " + "river " * 150, f"Title {name}") for name in ("green", "blue", "Lisbon", "May"))
    asked = Asked("Which?", "blue", blocks[1]), Asked("When?", "May", blocks[3]), Asked("Who?", REFUSAL)
    return Pack("test", blocks, asked)


@pytest.mark.parametrize(
    ("window", "left", "asked"),
    [
        (1000, [0, 1, 2, 3], ["Which?", "When?", "Who?"]),
        (700, [0, 1, 3], ["Which?", "When?", "Who?"]),  # the last that nothing rests on
        (500, [1, 3], ["Which?", "When?", "Who?"]),
        (330, [1], ["Which?", "Who?"]),  # with its question
    ],
)
def test_what_no_question_rests_on_goes_first(
    tokenizer: TextTokenizer, long: ReaderData, window: int, left: list[int], asked: list[str]
) -> None:
    data = questions(tokenizer, long, window)
    whole = pack()
    fitted = data.fitted(whole, slots, ["text"])
    assert [whole.blocks.index(block) for block in fitted.blocks] == left
    assert [question.question for question in fitted.questions] == asked
    assert positions(data.encode(fitted, slots, "text")) <= window


def test_compressed_it_takes_less(tokenizer: TextTokenizer, long: ReaderData) -> None:
    data = questions(tokenizer, long, 500)
    assert data.fitted(pack(), slots, ["compressed"]) == pack()
    assert data.fitted(pack(), slots, ["compressed", "text"]) == data.fitted(pack(), slots, ["text"]) != pack()


def test_a_memory_that_answers_nothing_may_be_shown_empty(tokenizer: TextTokenizer, long: ReaderData) -> None:
    data = questions(tokenizer, long, 200)
    refused = Pack("test", pack().blocks, (Asked("Who?", REFUSAL),))
    fitted = data.fitted(refused, slots, MODES)
    assert (fitted.blocks, fitted.questions) == ((), refused.questions)
    assert positions(data.encode(fitted, slots, "text")) <= 200


def test_a_window_that_holds_no_chunk_is_refused(tokenizer: TextTokenizer, long: ReaderData) -> None:
    data = questions(tokenizer, long, 200)
    with pytest.raises(FailedPrecondition, match="200 positions"):
        data.fitted(pack(), slots, ["text"])


def test_the_same_data_is_known_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    assert sha256_of(tmp_path / "moved") == sha256_of(folder)
    (tmp_path / "moved" / "notes.txt").write_text("no data")
    assert sha256_of(tmp_path / "moved") == sha256_of(folder)
    write(tmp_path / "moved" / "boolq.jsonl.xz", [])
    assert sha256_of(tmp_path / "moved") != sha256_of(folder)
