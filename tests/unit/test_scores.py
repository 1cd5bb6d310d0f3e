"""Where the pooled compressor's scores begin."""

from __future__ import annotations

from pathlib import Path

import torch

from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import load_base_model
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.reader_data import Answered
from memoryd.learn.scores import begin_scores, logistic, worth
from tests.tiny_models import make_tiny_model

SPANS = [(0, 3), (3, 7), (7, 11), (11, 20), (20, 21)]


def value(answers: tuple[str, ...], questions: tuple[str, ...] = ()) -> list[float]:
    """Of each token of a text that has "the" in common with all others."""
    return worth(Answered("Ada met the Lovelace.", answers, questions), {"ada", "met", "lovelace"}, SPANS)


def test_what_an_answer_is_made_of_is_worth_most() -> None:
    assert value(("Ada",)) == [1, 0, 0, 0, 0]
    assert value(("the Lovelace", "")) == [0, 0, 1, 1, 0]
    assert not any(value(()))


def test_a_word_that_tells_what_a_question_is_about_is_worth_half() -> None:
    assert value(("Ada",), ("Who MET the Ada?",)) == [1, 0.5, 0, 0, 0]


def test_the_regression_finds_what_tells_one_from_the_other() -> None:
    torch.manual_seed(0)
    input_WD = torch.randn(400, 5)
    wanted_W = (input_WD[:, 2] - 2 * input_WD[:, 4] > 0.3).float()
    weight_D = logistic(input_WD, wanted_W)
    telling = torch.tensor([0.0, 0.0, 1.0, 0.0, -2.0])
    assert torch.cosine_similarity(weight_D, telling, dim=0) > 0.98


def test_words_of_answers_score_above_the_others(tmp_path: Path) -> None:
    """On texts like those that it began from, whose answers are always the same kind of word."""
    path = make_tiny_model("llama", tmp_path)
    base = load_base_model(path)
    compressor = PooledCompressor.untrained(base, Adapters(base), 4)
    tokenizer = TextTokenizer(path)
    names = ("Quito", "Lagos", "Osaka", "Turin", "Perth", "Dakar")
    seen = [told(a, b) for a in names for b in names if a != b]
    begin_scores(compressor, tokenizer, seen, 20, seed=1, say=lambda _: None)
    item = told("Sofia", "Cairo")
    encoded = tokenizer.encode_with_offsets(item.text)
    ids_BL = torch.tensor([list(encoded.ids)])
    score_L = compressor.projector.scores(
        ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), compressor.middle(encoded.ids)[None]
    )[0]
    inside_L = torch.tensor(worth(item, (), encoded.offsets)) > 0
    assert score_L[inside_L].mean() > score_L[~inside_L].mean()


def told(one: str, other: str) -> Answered:
    return Answered(f"The people went to the town of {one} and then they went on to {other}.", (one, other), ())
