"""The asker's training data is the reader's turned round; what it exports says how good it is, and for which base model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import load_base_model
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition
from memoryd.learn import asker, checkpoint
from memoryd.learn.asker_data import Passage, discussions_of, facts_of, packs_of, split
from memoryd.learn.discussion import discussion_request
from memoryd.learn.soft_packing import SoftPack
from memoryd.learn.train_asker import begin, loss_of, main
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder

__all__ = ["folder"]  # the fixture with a little data
PACKS = [SoftPack((), ((1, 2),), (((3,), (4, 5)),)), SoftPack((), ((6, 7),), (((8,), (9, 10)),))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def train(model: Path, folder: Path, tmp_path: Path) -> Callable[..., int]:
    """Trains on so many packs in `run`, and writes into `askers`."""
    kept = ["--data", str(folder), "--out", str(tmp_path / "run"), "--assets", str(tmp_path / "askers"), "--threads", "1"]
    kept += ["--name", str(model), "--data-dir", str(tmp_path)]
    return lambda packs, *more: main([*kept, "--packs", str(packs), *more])


def test_a_pack_is_a_passage_with_the_questions_that_it_answers(model: Path, folder: Path) -> None:
    tokenizer = TextTokenizer(model)
    passages = facts_of(folder, tokenizer)
    packs = packs_of(passages, tokenizer, 2, count=5, seed=1)
    assert len(packs) == 5
    for pack in packs:
        (context,) = pack.context
        assert isinstance(context, tuple)
        text = tokenizer.decode(context)
        for asked, question in pack.questions:
            request = tokenizer.decode(asked)
            answer = request.partition("answered by: ")[2].partition("\n")[0].strip()
            assert answer in text
            assert question[-1] == 2
            assert tokenizer.decode(question[:-1]).endswith("?")
    assert packs == packs_of(passages, tokenizer, 2, count=5, seed=1)


def test_of_a_meeting_the_question_is_written_with_its_answer_after_the_chunk_that_supports_it(
    model: Path, folder: Path
) -> None:
    tokenizer = TextTokenizer(model)
    passages = discussions_of(folder, tokenizer)
    assert [passage.title for passage in passages] == ["0", "1"]
    for passage in passages:
        assert "remote number 7 is good" in passage.text
        first, second = (f"Speaker {n} thinks that remote number {n + 6} is good, yeah" for n in (1, 2))
        wanted = f"What about remote number 7?\n{first}. {second}, good."
        assert passage.asked == ((discussion_request(), wanted),)
    (pack, _) = packs_of(passages, tokenizer, 2, count=5, seed=1)
    ((asked, said),) = pack.questions
    assert discussion_request() in tokenizer.decode(asked)
    assert (tokenizer.decode(said[:-1]), said[-1]) == (wanted, 2)


def test_an_asker_of_discussions_is_trained_beside_that_of_facts(
    train: Callable[..., int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(2, "--asks", "discussions") == 0
    monkeypatch.setattr(asker, "ASKERS", tmp_path / "askers")
    base = load_base_model(model).fingerprint
    assert asker.asker_path(base) is None
    found = asker.asker_path(base, "discussions")
    assert found is not None
    card = (found / "README.md").read_text()
    assert "--asks discussions" in card
    assert "1 held-out meetings" in card


def test_a_tenth_of_the_articles_is_held_out_whole() -> None:
    passages = [Passage(f"Article {n % 40}", f"text {n}", (("Who?", "he"),)) for n in range(120)]
    shown, held_out = split(passages, seed=1)
    assert sorted([*shown, *held_out], key=passages.index) == passages
    titles = {passage.title for passage in held_out}
    assert len(titles) == 4
    assert not titles & {passage.title for passage in shown}
    assert split(passages, seed=1) == (shown, held_out)
    assert {passage.title for passage in split(passages, seed=2)[1]} != titles


def test_what_is_trained_is_found_by_its_base_model(
    train: Callable[..., int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(3) == 0
    monkeypatch.setattr(asker, "ASKERS", tmp_path / "askers")
    found = asker.asker_path(load_base_model(model).fingerprint)
    assert found is not None
    assert json.loads((found / "adapter_config.json").read_text())["r"] == 8
    assert asker.asker_path("another") is None


def test_it_says_how_it_does_on_articles_that_it_has_not_seen(
    train: Callable[..., int], model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(20) == 0
    shipped = tmp_path / "askers" / model.name
    about = json.loads((shipped / "memoryd.json").read_text())
    rows = checkpoint.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]  # 0 is before training; 4 packs in a step

    tokenizer, base = TextTokenizer(model), load_base_model(model)
    _, hidden = split(facts_of(folder, tokenizer), seed=1)
    held_out = packs_of(hidden, tokenizer, base.eos_ids[0], about["held_out_packs"], seed=1)
    adapters = Adapters(base)
    adapters.load("shipped", shipped)
    before, after = loss_of(base, adapters, held_out), loss_of(base, adapters, held_out, "shipped")
    assert after < before
    assert (about["held_out_loss_before"], about["held_out_loss"]) == pytest.approx((before, after), abs=1e-3)
    assert (rows[0]["held_out_loss"], rows[-1]["held_out_loss"]) == pytest.approx((before, after), abs=1e-3)

    card = (shipped / "README.md").read_text()
    assert f"before training | {before:.2f} |" in card
    assert f"after training | {after:.2f} |" in card
    assert f"{len(held_out)} passages of 1 held-out articles" in card
    said = capsys.readouterr().out
    assert re.search(r"^5/5 loss \S+, \d+ tokens/s, 0.0 min left$", said, re.MULTILINE)


def test_the_loss_of_training_is_that_of_the_last_tenth_of_its_steps(
    train: Callable[..., int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"step": 0, "held_out_loss": 9.0}, *({"step": n, "loss": float(n)} for n in range(1, 31))]
    monkeypatch.setattr(checkpoint, "metrics", lambda out: rows)
    assert train(1) == 0
    about = json.loads((tmp_path / "askers" / model.name / "memoryd.json").read_text())
    assert about["loss"] == mean([28.0, 29.0, 30.0])


def test_a_run_goes_on_with_as_many_packs_only(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(8) == 0
    metrics = (tmp_path / "run" / checkpoint.METRICS).read_text()
    for other in (4, 12):
        assert train(other) == 1
        said = capsys.readouterr().err
        assert f"holds a run of 8 packs, not of {other}: go on with --packs 8, or choose another --out" in said
    assert (tmp_path / "run" / checkpoint.METRICS).read_text() == metrics
    assert train(8) == 0
    rows = (tmp_path / "run" / checkpoint.METRICS).read_text().splitlines()
    assert sum('"step": 0' in row for row in rows) == 1  # the base model is not measured again


def test_a_run_with_other_data_settings_or_base_model_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, "a", PACKS, PACKS[:1], {"targets": ("q_proj",)})
    begin(tmp_path, "a", PACKS, PACKS[:1], {"targets": ("q_proj",)})  # the same
    others = [
        ("b", PACKS, PACKS[:1], {"targets": ("q_proj",)}),
        ("a", PACKS[::-1], PACKS[:1], {"targets": ("q_proj",)}),
        ("a", PACKS, PACKS[1:], {"targets": ("q_proj",)}),
        ("a", PACKS, PACKS[:1], {"targets": ("k_proj",)}),
    ]
    for base, packs, held_out, settings in others:
        with pytest.raises(FailedPrecondition, match="choose another --out"):
            begin(tmp_path, base, packs, held_out, settings)


def test_a_run_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / checkpoint.METRICS).write_text('{"step": 1, "loss": 3.0}\n')
    with pytest.raises(FailedPrecondition, match="choose another --out"):
        begin(tmp_path, "a", PACKS, PACKS, {})
