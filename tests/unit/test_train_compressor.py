"""Training a compressor: it learns, goes on after a stop with the same curve, and what it exports is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from memoryd.__main__ import main
from memoryd.compress.card import OVER_FIRST, OVER_WRONG, QUESTIONS, RATIOS, Gate, read_card, show_verdicts, write_card
from memoryd.compress.load import load_compressor
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import ENCODER, READER, Adapters
from memoryd.engine.base_model import load_base_model
from memoryd.engine.reader import Readers
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch
from memoryd.learn import checkpoint
from memoryd.learn.compressor_parts import Progress
from memoryd.learn.compressor_recipe import RECIPES, Recipe, Stage
from memoryd.learn.train_compressor import train
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder, write
from tests.unit.test_soft_packing import corpus

__all__ = ["corpus", "folder"]  # fixtures with a little data

RECIPE = Recipe(
    stages=(
        Stage("head", 3, texts=4, repeat=0.5, follow=8, ratios=(4,), head_rate=1e-2),
        Stage("encoder", 8, texts=3, repeat=0.5, follow=8, head_rate=5e-3, encoder_rate=5e-3),
        Stage("answers", 5, texts=1, follow=8, packs=2, head_rate=1e-3, encoder_rate=1e-3, reader_rate=5e-3),
    ),
    encoder_rank=4,
    reader_rank=4,
    micro=2,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread costs more than it gives, and much more beside the daemon that all tests share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def run(model: Path, corpus: Path, folder: Path, out: Path, recipe: Recipe = RECIPE, until: int | None = None) -> Progress:
    return train(model, recipe, corpus, folder, out, stop_at=until, say=lambda _: None)


def rows(out: Path) -> list[dict[str, Any]]:
    return checkpoint.metrics(out)


def losses(row: dict[str, Any]) -> dict[str, float]:
    return {kind: row[kind] for kind in ("repeat", "continue", "answer") if kind in row}


def test_it_goes_on_where_it_stood_and_is_served(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    whole = run(model, corpus, folder, tmp_path / "whole")
    for until in (2, 7, 13, None):  # within each stage
        parts = run(model, corpus, folder, tmp_path / "parts", until=until)
        with (tmp_path / "parts" / checkpoint.METRICS).open("a") as file:
            file.write('{"step": 3, "los')  # as a kill may leave it
    assert (parts.step, parts.packs, parts.source_tokens) == (whole.step, whole.packs, whole.source_tokens)
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert one["stage"] == other["stage"]
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)
    assert {row["ratio"] for row in rows(tmp_path / "whole")} <= {4, 8, 16, 32}
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000

    made = tmp_path / "whole" / "compressor"
    assert "16 steps" in (made / "README.md").read_text()
    base = load_base_model(model)
    adapters = Adapters(base, Readers(made / READER))
    compressor = PooledCompressor.load(made, base, adapters, 8)
    assert not compressor.gate_passed, "nobody has measured it yet"
    assert adapters.has(ENCODER)
    assert compressor.fingerprint != PooledCompressor.untrained(base, adapters, 8).fingerprint
    for ratio in RATIOS:
        assert (
            f"at {ratio}x `{PooledCompressor.load(made, base, adapters, ratio).fingerprint}`"
            in (made / "README.md").read_text()
        )
    assert compressor.compress([list(range(5, 30))])[0].shape == (4, base.d_model)


@pytest.mark.parametrize("kind", ["pooled", "autocompressor"])
def test_in_bfloat16_it_learns_about_the_same(model: Path, corpus: Path, folder: Path, tmp_path: Path, kind: str) -> None:
    """And goes on in the other: what learns is float32 in both."""
    recipe = replace(RECIPE.scaled(0.3), kind=kind)
    for name, dtypes in (("whole", ("float32", "float32")), ("parts", ("bfloat16", "float32"))):
        for dtype, until in zip(dtypes, (2, None), strict=True):
            train(model, recipe, corpus, folder, tmp_path / name, stop_at=until, dtype=dtype, say=lambda _: None)
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=0.05)


@pytest.mark.parametrize(("kind", "segment", "slots"), [("autocompressor", 1536, 50), ("icae", 512, 128)])
def test_slot_compressors_are_trained_too(
    model: Path, corpus: Path, folder: Path, tmp_path: Path, kind: str, segment: int, slots: int
) -> None:
    recipe = replace(RECIPE.scaled(0.3), kind=kind)
    whole = run(model, corpus, folder, tmp_path / "whole", recipe)
    for until in (2, None):
        run(model, corpus, folder, tmp_path / "parts", recipe, until)
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)
        assert one["ratio"] == segment // slots
    assert whole.step == recipe.steps

    base = load_base_model(model)
    made = tmp_path / "whole" / "compressor"
    adapters = Adapters(base, Readers(made / READER))
    compressor = load_compressor(made, base, adapters, 4)
    assert (compressor.name, compressor.ratio, compressor.chunk_tokens) == (kind, segment // slots, segment)
    assert adapters.has(ENCODER)
    assert not compressor.gate_passed
    assert [soft.shape[0] for soft in compressor.compress([[5, 6, 7], [8] * (segment + 1)])] == [slots, 2 * slots]
    assert kind in (made / "README.md").read_text().lower()

    other = load_base_model(make_tiny_model("llama", tmp_path / "other", seed=9))
    with pytest.raises(FingerprintMismatch, match=other.fingerprint):
        load_compressor(made, other, Adapters(other), 4)
    (made / "slots.safetensors").write_bytes(b"broken")
    with pytest.raises(DataLoss, match="no readable slots"):
        load_compressor(made, base, adapters, 4)


def test_the_loss_falls(model: Path, folder: Path, tmp_path: Path) -> None:
    """Of a random base model, which itself stays as it is; louder, or it could hardly prefer one token to another."""
    loud = tmp_path / "loud"
    shutil.copytree(model, loud)
    weights = load_file(loud / "model.safetensors")
    save_file(weights | {"lm_head.weight": 20 * weights["lm_head.weight"]}, loud / "model.safetensors", {"format": "pt"})
    (tmp_path / "corpus").mkdir()
    texts = [{"id": word, "text": f"{word} " * 3000} for word in ("river", "green", "Lisbon")]
    write(tmp_path / "corpus" / "words.jsonl.xz", texts)
    stage = Stage("encoder", 25, texts=4, repeat=1.0, ratios=(4,), head_rate=1e-2, encoder_rate=1e-2)
    run(loud, tmp_path / "corpus", folder, tmp_path, replace(RECIPE, stages=(stage,), micro=4))
    made = [row["repeat"] for row in rows(tmp_path)]
    assert sum(made[-5:]) < 0.4 * sum(made[:5])


def test_each_stage_learns_what_it_is_to(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    def state(out: Path, name: str) -> dict[str, torch.Tensor]:
        return load_file(out / "checkpoint" / f"{name}.safetensors")

    def changed(name: str) -> bool:
        before, after = state(tmp_path / "before", name), state(tmp_path / "after", name)
        return any(not torch.equal(before[key], after[key]) for key in before)

    only = replace(RECIPE, stages=(replace(RECIPE.stages[0], steps=6),))
    run(model, corpus, folder, tmp_path / "before", only, until=1)
    run(model, corpus, folder, tmp_path / "after", only, until=3)
    assert changed("head")
    assert not changed("encoder")
    assert not changed("reader")


def test_what_does_not_learn_is_not_made_twice(
    model: Path, corpus: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While only the reader learns, a chunk's compressed embeddings stay what they are; the curve is the same."""
    made: list[int] = []
    encode = PooledCompressor.encode

    def counted(self: PooledCompressor, chunks: Sequence[Sequence[int]], ratio: int) -> list[torch.Tensor]:
        made.append(len(chunks))
        return encode(self, chunks, ratio)

    monkeypatch.setattr(PooledCompressor, "encode", counted)
    recipe = replace(RECIPE, stages=(Stage("reader", 6, packs=2, divergence=0.0, ratios=(4,), reader_rate=5e-3),))
    run(model, corpus, folder, tmp_path / "kept", recipe)
    once, made[:] = sum(made), []
    monkeypatch.setattr("memoryd.learn.train_compressor._FIXED", 0)
    run(model, corpus, folder, tmp_path / "again", recipe)
    assert once < sum(made)
    assert [losses(row) for row in rows(tmp_path / "kept")] == [losses(row) for row in rows(tmp_path / "again")]


def test_an_encoder_that_was_not_trained_is_not_kept(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    stage = Stage("reader", 3, packs=1, ratios=(4,), reader_rate=5e-3)
    run(model, corpus, folder, tmp_path, replace(RECIPE, stages=(stage,)))
    made = tmp_path / "compressor"
    assert not (made / ENCODER).exists()
    assert "none was trained" in (made / "README.md").read_text()
    base = load_base_model(model)
    adapters = Adapters(base)
    (soft_KD,) = load_compressor(made, base, adapters, 4).compress([[5, 6, 7, 8, 9]])
    assert not adapters.has(ENCODER)
    assert soft_KD.shape[0] == 2


def test_it_begins_from_what_an_earlier_run_made(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    run(model, corpus, folder, tmp_path / "first")
    made = tmp_path / "first" / "compressor"
    # So slow that all stays where it began, but for what half precision rounds.
    still = replace(RECIPE, stages=(Stage("still", 3, texts=1, packs=1, head_rate=1e-12, reader_rate=1e-12),))

    def go(out: str, recipe: Recipe = still, until: int | None = None, start: Path | None = made) -> None:
        train(model, recipe, corpus, folder, tmp_path / out, stop_at=until, start=start, say=lambda _: None)

    go("second", until=1)
    go("second")
    for file in ("projector.safetensors", "encoder/adapter_model.safetensors", "reader/adapter_model.safetensors"):
        before, after = load_file(made / file), load_file(tmp_path / "second" / "compressor" / file)
        torch.testing.assert_close(after, before, atol=1e-9, rtol=0)
    assert "weights of SHA-256" in (tmp_path / "second" / "compressor" / "README.md").read_text()
    with pytest.raises(FailedPrecondition, match="start weights of"):
        go("second", replace(still, stages=(replace(still.stages[0], steps=4),)), start=None)
    with pytest.raises(FailedPrecondition, match="kind 'pooled', not 'icae'"):
        go("third", replace(still, kind="icae"))
    with pytest.raises(FailedPrecondition, match="other shapes"):
        go("fourth", replace(still, reader_rank=2))
    with pytest.raises(DataLoss):
        go("fifth", start=tmp_path)
    (made / "projector.safetensors").write_bytes(b"torn")
    with pytest.raises(DataLoss, match="cannot be read"):
        go("sixth")


def test_micro_batches_do_not_change_the_result(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    stage = Stage("s", 2, texts=4, follow=8, packs=2, head_rate=1e-3, encoder_rate=1e-3, reader_rate=1e-3)
    for micro in (1, 4):
        run(model, corpus, folder, tmp_path / str(micro), replace(RECIPE, stages=(stage,), micro=micro))
    one, four = rows(tmp_path / "1")[-1], rows(tmp_path / "4")[-1]
    assert losses(one) == pytest.approx(losses(four), rel=1e-2)
    assert one["norm"] == pytest.approx(four["norm"], rel=1e-2)


def same(recipe: Recipe = RECIPE, **of_the_second_stage: Any) -> Recipe:
    """The recipe with another second stage."""
    first, second, *rest = recipe.stages
    return replace(recipe, stages=(first, replace(second, **of_the_second_stage), *rest))


@pytest.mark.parametrize(
    ("taken", "other", "said"),
    [
        (5, replace(RECIPE, seed=2), ["seed 1, not 2"]),
        (0, replace(RECIPE, kind="icae", reader_rank=8), ["kind pooled, not icae", "reader_rank 4, not 8"]),
        (5, RECIPE.scaled(2), ["stage 'head': steps 3, not 6"]),
        (5, same(encoder_rate=1.0), ["stage 'encoder': encoder_rate 0.005, not 1.0"]),
        (5, same(ratios=(4,)), ["stage 'encoder': ratios [4, 8, 16, 32], not [4]"]),
        (5, same(steps=1), ["stage 'encoder': 2 steps taken already, not 1"]),
        (5, replace(RECIPE, stages=RECIPE.stages[:1]), ["stage 'encoder', which is gone"]),
        # What may differ.
        (5, RECIPE, []),
        (5, replace(RECIPE, micro=7), []),
        (5, same(steps=2), []),
        (5, same(steps=80), []),
        (5, replace(RECIPE, stages=RECIPE.stages[:2]), []),
        (3, same(encoder_rate=1.0), []),
        (16, replace(RECIPE, stages=(*RECIPE.stages[:2], replace(RECIPE.stages[2], steps=50))), []),
        (16, replace(RECIPE, stages=(*RECIPE.stages, Stage("more", 1))), []),
    ],
)
def test_what_of_a_recipe_may_change_on_the_way(taken: int, other: Recipe, said: list[str]) -> None:
    assert other.differences(json.loads(json.dumps(asdict(RECIPE))), taken) == said


def test_a_run_goes_on_only_with_what_it_was_begun_with(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, corpus, folder, out, until=2)
    for name, (base, texts, qa, recipe) in {
        "seed 1, not 2": (model, corpus, folder, replace(RECIPE, seed=2)),
        "base_fingerprint": (make_tiny_model("llama", tmp_path / "other", seed=9), corpus, folder, RECIPE),
        "corpus_sha256": (model, folder, folder, RECIPE),
        "qa_sha256": (model, corpus, corpus, RECIPE),
    }.items():
        with pytest.raises(FailedPrecondition, match=f"{out} holds a run with {name}.*give another --out"):
            run(base, texts, qa, out, recipe)
    assert len(rows(out)) == 2
    shutil.copytree(corpus, tmp_path / "moved")
    assert run(model, tmp_path / "moved", folder, out, replace(RECIPE, micro=1), until=3).step == 3


def test_a_checkpoint_that_says_less_is_gone_on_from(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    """As older ones do."""
    run(model, corpus, folder, tmp_path, until=2)
    state = tmp_path / "checkpoint" / "state.json"
    said = json.loads(state.read_text())
    del said["recipe"]["clip"], said["recipe"]["stages"][0]["follow"]
    state.write_text(json.dumps({name: said[name] for name in ("recipe", "progress")}))
    assert run(model, corpus, folder, tmp_path, until=3).step == 3
    assert set(json.loads(state.read_text())) == {
        "recipe",
        "progress",
        "base_fingerprint",
        "corpus_sha256",
        "qa_sha256",
        "start",
    }


def test_what_was_measured_stays_until_there_are_other_weights(
    model: Path, corpus: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, corpus, folder, tmp_path, until=4)
    made = tmp_path / "compressor"
    card = read_card(made)
    passed = Gate({OVER_FIRST: 0.02, OVER_WRONG: 0.11, QUESTIONS: 300.0})
    measured = replace(card, gates={8: Gate({OVER_FIRST: -0.01}), 4: passed})
    write_card(made, measured)
    for _ in range(2):
        show_verdicts(made)
        rows = [line for line in (made / "README.md").read_text().splitlines() if line.endswith("passed |")]
        assert rows == ["| 4x | +0.020 | +0.110 | 300 | passed |", "| 8x | -0.010 | +0.000 | 0 | not passed |"]
    (made / "README.md").write_text("my own words")
    run(model, corpus, folder, tmp_path, until=4)
    assert read_card(made) == measured
    assert (made / "README.md").read_text() == "my own words"

    flush = checkpoint.flush

    def full(directory: Path) -> None:
        if directory.name.startswith("compressor"):
            raise OSError("the disk is full")
        flush(directory)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "flush", full)
        with pytest.raises(OSError, match="the disk is full"):
            run(model, corpus, folder, tmp_path, until=5)
    assert read_card(made) == measured, "never half of one"

    run(model, corpus, folder, tmp_path, until=5)
    assert read_card(made) == card, "what was measured was of other weights"
    assert "5 of 16 steps" in (made / "README.md").read_text()
    assert not list(tmp_path.glob("compressor.*"))


def test_a_base_model_with_too_short_a_window_is_refused(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    with pytest.raises(FailedPrecondition, match="1536 tokens at a time, the base model has 1024"):
        run(short, corpus, folder, tmp_path / "out", replace(RECIPE, kind="autocompressor"))


def test_recipes() -> None:
    for recipe in RECIPES.values():
        assert recipe.at(0)[0] is recipe.stages[0]
        assert recipe.at(recipe.steps - 1) == (recipe.stages[-1], recipe.stages[-1].steps - 1)
        with pytest.raises(IndexError):
            recipe.at(recipe.steps)
        assert [s.steps for s in recipe.scaled(1e-9).stages] == [1] * len(recipe.stages)
        for stage in recipe.stages:
            factors = [stage.schedule(step) for step in range(stage.steps)]
            assert max(factors) == pytest.approx(1)
            assert factors[-1] < 0.05


def test_learned_tokens_have_no_stage_in_which_only_the_reader_learns() -> None:
    cpu = RECIPES["cpu"]
    assert cpu.of("pooled") == cpu
    assert cpu.of("autocompressor") == replace(cpu, kind="autocompressor", stages=cpu.stages[1:])
    assert RECIPES["gpu"].of("icae") == replace(RECIPES["gpu"], kind="icae")


def test_the_command_line(model: Path, corpus: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train-compressor", "--base", str(model), "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    assert main([*common, "--qa", str(folder), "--recipe", "cpu", "--scale", "0.0005", "--device", "cpu"]) == 0
    assert "done at step 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "compressor" / "config.json").read_text())["kind"] == "pooled"
    assert main([*common, "--qa", str(folder), "--recipe", "cpu", "--scale", "0.0005", "--device", "cpu", "--seed", "2"]) == 1
    assert "seed 1, not 2" in capsys.readouterr().err
    assert main([*common[:3], "--corpus", str(tmp_path), "--qa", str(folder), "--out", str(tmp_path / "x")]) == 1
    assert "no *.jsonl.xz" in capsys.readouterr().err
