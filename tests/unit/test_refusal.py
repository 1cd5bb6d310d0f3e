"""The bias towards refusing: chosen where it serves both kinds of questions, and on other articles than it is judged on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memoryd.engine.base_model import load_base_model
from memoryd.engine.reader import CARD, Refusal, reader_fingerprint, refusal_of
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.generate import FirstToken, answers, answers_of
from memoryd.eval.refusal import Answered, best_bias, biases_of_others
from memoryd.recall.prompt import REFUSAL
from tests.tiny_models import make_tiny_model

RIGHT, GUESS = ("Lisbon", ("Lisbon",)), ("Porto", ())


def answered(article: str, lead: float, kind: tuple[str, tuple[str, ...]]) -> Answered:
    return Answered(article, REFUSAL if lead > 0 else kind[0], lead, kind[1])


def test_a_bias_refuses_what_is_led_by_less() -> None:
    one = answered("a", -2.0, RIGHT)
    assert [one.with_bias(b) for b in (0.0, 2.0, 2.25)] == ["Lisbon", "Lisbon", REFUSAL]
    assert [one.score(b) for b in (0.0, 2.25)] == [1.0, 0.0]
    absent = answered("a", -2.0, GUESS)
    assert [absent.score(b) for b in (0.0, 2.25)] == [0.0, 1.0]


def test_the_best_is_the_least_that_refuses_enough() -> None:
    absent = [answered("a", -lead / 2, GUESS) for lead in range(10)]
    assert best_bias(absent) == 4.25, "nine of ten lead by less; eight would be too few"
    assert best_bias([*absent, answered("a", -1, RIGHT)]) == 4.25
    assert best_bias([answered("a", 5, GUESS)]) == 0
    assert best_bias([answered("a", -5, RIGHT)]) == 0
    assert best_bias([answered("a", -99, GUESS)]) == 8, "there is an end to it"


def test_an_article_is_judged_by_the_bias_of_the_others() -> None:
    timid = [answered("timid", -1, RIGHT), answered("timid", 4, GUESS)]
    bold = [answered("bold", -7, RIGHT), answered("bold", -5, GUESS)]
    assert biases_of_others([*timid, *bold]) == {"timid": 5.25, "bold": 0.0}


def test_the_lead_is_that_of_the_first_token(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    base, tokenizer = load_base_model(path), TextTokenizer(path)
    prompts = [[5, 9, 20, 31], [7] * 9, [40, 41]]
    first = FirstToken(17)
    said = answers(base, base.model, tokenizer, prompts, 3, 2, first)
    assert said == answers(base, base.model, tokenizer, prompts, 3, 2)
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            logits_V = base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        others = torch.cat([logits_V[:17], logits_V[18:]])
        assert first.leads[number] == pytest.approx(float(logits_V[17] - others.max()), abs=1e-4)


def test_the_bias_is_added_where_an_answer_begins(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    base, tokenizer = load_base_model(path), TextTokenizer(path)
    prompts = [torch.randn(5, base.d_model) * 0.1, torch.randn(3, base.d_model) * 0.1]
    plain = answers_of(base, base.model, tokenizer, prompts, 3, 2)
    assert answers_of(base, base.model, tokenizer, prompts, 3, 2, refusal=Refusal(40, 0.0)) == plain
    begun = tokenizer.decode([40]).strip()
    for said in answers_of(base, base.model, tokenizer, prompts, 3, 2, refusal=Refusal(40, 1e4)):
        assert said.startswith(begun)
        assert said != tokenizer.decode([40, 40, 40]).strip()


def test_a_readers_card_says_it(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    assert refusal_of(tmp_path) is None
    before = reader_fingerprint(tmp_path)
    (tmp_path / CARD).write_text(json.dumps({"base_fingerprint": "x"}))
    assert (refusal_of(tmp_path), reader_fingerprint(tmp_path)) == (None, before)
    (tmp_path / CARD).write_text(json.dumps({"refusal": {"token": 57, "bias": 1.5}}))
    assert refusal_of(tmp_path) == Refusal(57, 1.5)
    assert reader_fingerprint(tmp_path) != before
