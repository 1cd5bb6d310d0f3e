"""Training: it learns, it goes on after a kill as if nothing had happened, and what it exports is a reader."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from memoryd.engine.base_model import load_base_model
from memoryd.engine.reader import Refusal, reader_fingerprint, refusal_of
from memoryd.learn.export_reader import export
from memoryd.learn.spare_cores import SpareCores
from memoryd.learn.train_reader import Progress, Recipe, train
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder

__all__ = ["folder"]  # the fixture with a little data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def run(model: Path, folder: Path, out: Path, steps: int, until: int | None = None) -> Progress:
    out.mkdir(exist_ok=True)
    recipe = Recipe(model=str(model), steps=steps, learning_rate=5e-3, warmup_steps=3)
    return train(recipe, folder, out, out, threads=1, minutes=math.inf, stop_at=until)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_it_learns_and_goes_on_where_it_stood(model: Path, folder: Path, tmp_path: Path) -> None:
    whole = run(model, folder, tmp_path / "whole", steps=14)
    run(model, folder, tmp_path / "parts", steps=14, until=6)
    parts = run(model, folder, tmp_path / "parts", steps=14)
    assert (parts.step, parts.packs, parts.examples) == (whole.step, whole.packs, whole.examples)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    assert sum(losses(tmp_path / "whole")[-4:]) < 0.97 * sum(losses(tmp_path / "whole")[:4])
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000

    export(tmp_path / "whole" / "checkpoint", tmp_path / "reader", "tiny", "a test", Refusal(7, 1.5))
    about = json.loads((tmp_path / "reader" / "memoryd.json").read_text())
    base = load_base_model(model)
    assert about["base_fingerprint"] == base.fingerprint
    assert about["examples"] == whole.examples
    assert str(tmp_path) not in (tmp_path / "reader" / "adapter_config.json").read_text()
    assert refusal_of(tmp_path / "reader") == Refusal(7, 1.5)
    assert len(reader_fingerprint(tmp_path / "reader")) == 64
    from peft import PeftModel

    reader = PeftModel.from_pretrained(base.model, tmp_path / "reader")
    assert any(p.abs().sum() > 0 for n, p in reader.named_parameters() if "lora_B" in n)


def test_the_schedule() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=0.01)


def test_there_is_always_a_thread() -> None:
    spare = SpareCores()
    assert spare.threads() >= 1
    sum(n * n for n in range(3_000_000))
    assert spare.threads() >= 1
