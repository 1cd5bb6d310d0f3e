"""`make bench-learn` at tiny scale: all arms learn the same, each in its own process, and one that does not fit says so."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest

from bench import learn
from bench.learn import LLOCO, PLAN, RAW, Arm, Measured, alone, lesson, main, rows_of, train
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.engine.runner import to_bytes
from memoryd.eval import figures
from memoryd.eval.figures import Row
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def base(path: Path) -> BaseModel:
    return load_base_model(path)


def test_every_length_has_raw_text_first_and_the_plan_has_what_lloco_reports() -> None:
    for ratios in PLAN.values():
        assert next(iter(ratios)) == RAW
        assert {4, 32} <= set(ratios)
    assert sum(Arm(tokens, ratio, 1).is_llocos for tokens, ratios in PLAN.items() for ratio in ratios) == 1


def test_all_arms_learn_the_same_examples(base: BaseModel, tmp_path: Path) -> None:
    adapters = Adapters(base)
    raw = lesson(Arm(1024, RAW, 2), base, adapters, tmp_path)
    shorter = lesson(Arm(512, RAW, 2), base, adapters, tmp_path)
    for ratio in (4, 32):
        compressed = lesson(Arm(1024, ratio, 2), base, adapters, tmp_path)
        compressor = PooledCompressor.untrained(base, adapters, ratio)
        for of_raw, of_shorter, pack in zip(raw.packs, shorter.packs, compressed.packs, strict=True):
            assert of_raw.questions == of_shorter.questions == pack.questions
            ((text,), (beginning,)) = of_raw.context, of_shorter.context
            assert isinstance(text, tuple)
            assert text[:512] == beginning
            made = [to_bytes(soft) for soft in compressor.compress([text[:512], text[512:]])]
            assert [compressed.chunks[piece] for piece in pack.context if isinstance(piece, int)] == made
            assert [soft.k for soft in made] == [512 // ratio] * 2
    assert len({pack.context for pack in raw.packs}) == len(raw.packs)


def test_an_arm_that_is_late_measures_fewer(path: Path) -> None:
    assert len(train(Arm(512, 32, 3), path).seconds) == 3
    assert len(train(Arm(512, 32, 3), path, deadline=0.0).seconds) == 2


def test_what_does_not_fit_in_memory_ends_alone() -> None:
    assert alone(signal.raise_signal, signal.SIGKILL) is None  # as the system ends it
    assert alone(bytes, 1 << 60) is None


def test_an_error_is_no_lack_of_memory() -> None:
    with pytest.raises(ZeroDivisionError):
        alone(divmod, 1, 0)


def test_rows_hold_an_arm_against_the_raw_text() -> None:
    raw = Measured([30.0, 20.0, 20.0], 4000.0)
    rate, source, memory = rows_of(Arm(7680, 32, 3), Measured([1.0, 1.0, 2.0], 1000.0), raw)
    assert rate.name == "learn: 7680 tokens, compressed 32x (LLoCO: 8k, 30x)"
    assert (rate.value, rate.unit, rate.low, rate.high, rate.n, rate.baseline) == (60.0, "examples/min", None, None, 3, 3.0)
    assert (rate.ratio, rate.met) == (20.0, True)
    assert f"{LLOCO:g}" in rate.aim
    assert (source.value, source.unit, source.ratio) == (7680.0, "tokens/s", 20.0)
    assert (memory.value, memory.unit, memory.ratio) == (1000.0, "MiB", 0.25)
    assert not any(row.aim for row in rows_of(Arm(7680, 16, 3), raw, raw))  # LLoCO reports nothing of it


def test_an_arm_that_does_not_fit_says_so_and_is_no_baseline() -> None:
    (row,) = rows_of(Arm(7680, RAW, 2), None, None)
    assert row.name == "learn: 7680 tokens, raw text: did not fit in memory"
    assert math.isnan(row.value)
    assert (row.unit, row.ratio, row.aim, row.met) == ("examples/min", None, "", None)
    for row in rows_of(Arm(7680, 32, 3), Measured([1.0, 1.0], 1000.0), None):
        assert row.value > 0
        assert (row.baseline, row.ratio, row.aim, row.met) == (None, None, "", None)


def test_the_whole_writes_its_figures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[Row]] = {}
    monkeypatch.setattr(figures, "write", written.__setitem__)
    monkeypatch.setattr(figures, "render_all", list)
    monkeypatch.setattr(learn, "PLAN", {1024: {RAW: 2, 4: 3}})
    monkeypatch.setattr(learn, "EMBEDDED_MODEL", str(path))  # of no other one are there figures
    assert main(["--data-dir", str(tmp_path)]) == 0
    rows = [row for row in written["learn-speed"] if row.name.startswith("learn: ")]
    assert [(row.name, row.unit, row.n) for row in rows] == [
        ("learn: 1024 tokens, raw text", "examples/min", 2),
        ("learn: 1024 tokens, raw text, of source", "tokens/s", 2),
        ("learn: 1024 tokens, raw text, peak memory", "MiB", None),
        ("learn: 1024 tokens, compressed 4x", "examples/min", 3),
        ("learn: 1024 tokens, compressed 4x, of source", "tokens/s", 3),
        ("learn: 1024 tokens, compressed 4x, peak memory", "MiB", None),
    ]
    assert all(row.value > 0 and row.command == "make bench-learn" for row in rows)
    assert [row.ratio is None for row in rows] == [True] * 3 + [False] * 3
