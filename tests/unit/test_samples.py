"""The samples of each step are the same, whoever makes them and wherever a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.compressor_data import Corpus, QuestionData, TextData
from memoryd.learn.compressor_recipe import Recipe, Stage
from memoryd.learn.reader_data import ReaderData, chunks_of
from memoryd.learn.remembering_tokenizer import RememberingTokenizer
from memoryd.learn.samples import Samples, StepSamples
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder
from tests.unit.test_soft_packing import corpus

__all__ = ["corpus", "folder"]  # fixtures with a little data

RECIPE = Recipe((Stage("texts", 2, texts=2, follow=8), Stage("both", 3, texts=1, packs=2), Stage("questions", 3, packs=3)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def samples(tokenizer: TextTokenizer, corpus: Path, folder: Path, taught: bool = True) -> Samples:
    texts = TextData(Corpus(corpus, tokenizer), tokenizer, RECIPE.seed, 64)
    data = ReaderData(folder, tokenizer, RetrievalTokenizer(), RECIPE.seed, chunks_of)
    questions = QuestionData(data, tokenizer, 2, RECIPE.seed, 4096)
    return Samples(RECIPE, texts, questions, (4, 8), lambda tokens, ratio: -(-tokens // ratio), taught)


def test_processes_make_what_one_makes(path: Path, corpus: Path, folder: Path) -> None:
    alone = list(samples(TextTokenizer(path), corpus, folder).steps(0, 8, 0))
    ahead = list(samples(RememberingTokenizer(path), corpus, folder).steps(0, 8, 2))
    assert ahead == alone
    later = list(samples(RememberingTokenizer(path), corpus, folder).steps(4, 8, 2))
    assert later == alone[4:]
    assert list(samples(TextTokenizer(path), corpus, folder).steps(8, 8, 2)) == []


def test_a_stage_gets_what_it_asks_for(path: Path, corpus: Path, folder: Path) -> None:
    def counts(one: StepSamples) -> tuple[int, int, int]:
        return len(one.texts), len(one.shown), len(one.read)

    taught = list(samples(TextTokenizer(path), corpus, folder).steps(0, 8, 0))
    assert [counts(one) for one in taught] == [(2, 0, 0)] * 2 + [(1, 2, 2)] * 3 + [(0, 3, 3)] * 3
    assert {one.ratio for one in taught} == {4, 8}
    alone = samples(TextTokenizer(path), corpus, folder, taught=False)[7]
    assert (alone.shown, alone.read) == (taught[7].shown, []), "without a teacher nothing is shown as text too"
    asked = [question for pack in taught[7].shown for question in pack.questions]
    assert len(asked) == len([question for pack in taught[7].read for question in pack.questions])
