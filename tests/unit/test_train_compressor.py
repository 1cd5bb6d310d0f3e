"""Training a compressor: it learns, goes on after a stop with the same curve, and what it exports is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memoryd.__main__ import main
from memoryd.compress.load import load_compressor
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import ENCODER, READER, Adapters
from memoryd.engine.base_model import load_base_model
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch
from memoryd.learn import checkpoint
from memoryd.learn.compressor_parts import Progress
from memoryd.learn.compressor_recipe import RECIPES, Recipe, Stage
from memoryd.learn.train_compressor import train
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder
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
    assert (parts.step, parts.packs, parts.source_tokens) == (whole.step, whole.packs, whole.source_tokens)
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert one["stage"] == other["stage"]
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)
    assert {row["ratio"] for row in rows(tmp_path / "whole")} <= {4, 8, 16, 32}
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000

    made = tmp_path / "whole" / "compressor"
    assert "16 steps" in (made / "README.md").read_text()
    base = load_base_model(model)
    adapters = Adapters(base, made / READER)
    compressor = PooledCompressor.load(made, base, adapters, 8)
    assert not compressor.gate_passed, "nobody has measured it yet"
    assert adapters.has(ENCODER)
    assert compressor.fingerprint != PooledCompressor.untrained(base, adapters, 8).fingerprint
    assert compressor.compress([list(range(5, 30))])[0].shape == (4, base.d_model)


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
    adapters = Adapters(base, made / READER)
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


def test_the_loss_falls(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    stage = Stage("encoder", 60, texts=4, repeat=1.0, ratios=(4,), head_rate=5e-3, encoder_rate=5e-3)
    run(model, corpus, folder, tmp_path, replace(RECIPE, stages=(stage,), micro=4))
    made = [row["repeat"] for row in rows(tmp_path)]
    assert sum(made[-10:]) < 0.99 * sum(made[:10])  # of a random base model, which itself stays as it is


def test_each_stage_learns_what_it_is_to(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

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


def test_micro_batches_do_not_change_the_result(model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    stage = Stage("s", 2, texts=4, follow=8, packs=2, head_rate=1e-3, encoder_rate=1e-3, reader_rate=1e-3)
    for micro in (1, 4):
        run(model, corpus, folder, tmp_path / str(micro), replace(RECIPE, stages=(stage,), micro=micro))
    one, four = rows(tmp_path / "1")[-1], rows(tmp_path / "4")[-1]
    assert losses(one) == pytest.approx(losses(four), rel=1e-2)
    assert one["norm"] == pytest.approx(four["norm"], rel=1e-2)


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


def test_the_command_line(model: Path, corpus: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train-compressor", "--base", str(model), "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    assert main([*common, "--qa", str(folder), "--recipe", "cpu", "--scale", "0.0005", "--device", "cpu"]) == 0
    assert "done at step 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "compressor" / "config.json").read_text())["kind"] == "pooled"
    assert main([*common[:3], "--corpus", str(tmp_path), "--qa", str(folder), "--out", str(tmp_path / "x")]) == 1
    assert "no *.jsonl.xz" in capsys.readouterr().err
