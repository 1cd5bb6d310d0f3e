"""`python -m bench.geometry` at tiny scale: every arm runs on the worker's own loop, and one that does not fit says so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench import geometry
from bench.geometry import ANSWER, GEOMETRIES, RATIOS, answer_rows, main, random_base
from memoryd.errors import ResourceExhausted
from memoryd.eval import figures
from memoryd.eval.figures import Row


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Row]]:
    made: dict[str, list[Row]] = {}
    monkeypatch.setattr(figures, "write", made.__setitem__)
    monkeypatch.setattr(figures, "render_all", list)
    small = replace(GEOMETRIES["tiny"], answers={512: 2}, examples={512: 2})
    monkeypatch.setitem(geometry.GEOMETRIES, "tiny", small)
    return made


def test_the_shapes_are_llamas_own() -> None:
    """The counts of parameters that Touvron et al. (2023) and transformers give for 7B."""
    with torch.device("meta"):
        base = random_base(GEOMETRIES["7b"], "meta")
    assert sum(p.numel() for p in base.model.parameters()) == 6_738_415_616
    assert (base.d_model, base.eos_ids) == (4096, ())


def test_every_arm_is_measured_and_a_rehearsal_writes_nothing(
    written: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--geometry", "tiny", "--device", "cpu"]) == 0
    assert written == {}, "figures are those of a GPU"
    lines = capsys.readouterr().out.splitlines()
    for what in ("first token", "each token after it", f"the whole answer of {ANSWER}", "peak memory"):
        assert sum(line.startswith("answer: 512 source tokens") and f", {what} " in line for line in lines) == len(RATIOS)
    assert sum(line.startswith("learn: 512 tokens") and "of source" in line for line in lines) == len(RATIOS)
    assert not any("did not fit" in line for line in lines)


def test_one_table_alone(written: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--geometry", "tiny", "--device", "cpu", "--only", "learn"]) == 0
    assert "answer: " not in capsys.readouterr().out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), ResourceExhausted("no memory", reason="DEVICE_MEMORY")])
def test_what_does_not_fit_says_so_and_the_others_go_on(
    written: dict[str, list[Row]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def answer(runner: object, base: object, compressor: str, tokens: int, ratio: int, seed: int) -> tuple[float, float]:
        if ratio == 4:
            raise error
        return 10.0, 1.0

    monkeypatch.setattr(geometry, "answer", answer)
    assert main(["--geometry", "tiny", "--device", "cpu", "--only", "answer"]) == 0
    out = capsys.readouterr().out
    assert "answer: 512 source tokens, compressed 4x: did not fit in memory" in out
    assert "answer: 512 source tokens, compressed 32x, first token" in out


def test_another_error_is_no_lack_of_memory(written: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object, **__: object) -> tuple[float, float]:
        raise ZeroDivisionError

    monkeypatch.setattr(geometry, "answer", answer)
    with pytest.raises(ZeroDivisionError):
        main(["--geometry", "tiny", "--device", "cpu", "--only", "answer"])


def test_an_answer_is_held_against_that_from_the_full_text() -> None:
    full, taken = [(3100.0, 31.0), (3100.0, 31.0)], [(100.0, 10.0), (300.0, 10.0), (100.0, 10.0)]
    first, each, whole, peak = answer_rows("answer: x", taken, full, 512.0, is_llocos=True)
    assert (first.value, first.baseline, first.n) == (100.0, 3100.0, 3)
    assert (each.value, each.ratio) == (10.0, 10 / 31)
    assert whole.value == 100 + 31 * 10
    assert whole.met is True
    assert whole.aim == "7.62x faster"
    assert (peak.value, peak.unit) == (512.0, "MiB")
    slow = answer_rows("answer: x", full, full, 512.0, is_llocos=True)[2]
    assert slow.met is False
    (lacking,) = answer_rows("answer: x", None, full, math.nan, is_llocos=True)
    assert lacking.name == "answer: x: did not fit in memory"
    assert (math.isnan(lacking.value), lacking.met) == (True, None)
