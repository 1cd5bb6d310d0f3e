"""kill -9 of a training run, wherever it is: the same command goes on, and the curve is that of a run left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memoryd.__main__ import main
from memoryd.learn import checkpoint
from tests.unit.test_reader_data import folder
from tests.unit.test_soft_packing import corpus

__all__ = ["corpus", "folder"]  # fixtures with a little data

STEPS = 3 + 10
KILLS = (1, 6)  # after so many steps: one in each stage


def command(model: Path, corpus: Path, qa: Path, out: Path) -> list[str]:
    data = ("--base", str(model), "--corpus", str(corpus), "--qa", str(qa), "--out", str(out))
    how = ("--recipe", "cpu", "--scale", "0.005", "--device", "cpu", "--threads", "1")
    return ["train-compressor", *data, *how, "--checkpoint-every", "0"]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "memoryd", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def losses(row: dict[str, Any]) -> dict[str, float]:
    return {kind: row[kind] for kind in ("repeat", "continue", "answer") if kind in row}


def steps(out: Path) -> int:
    return len(checkpoint.metrics(out)) if (out / checkpoint.METRICS).exists() else 0


def test_a_killed_training_goes_on_with_the_same_curve(tiny_model: Path, corpus: Path, folder: Path, tmp_path: Path) -> None:
    assert main(command(tiny_model, corpus, folder, tmp_path / "whole")) == 0
    whole = checkpoint.metrics(tmp_path / "whole")
    assert len(whole) == STEPS
    again = command(tiny_model, corpus, folder, tmp_path / "killed")
    for kill in KILLS:
        process = start(again)
        while steps(tmp_path / "killed") < kill:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert start(again).wait(250) == 0
    killed = checkpoint.metrics(tmp_path / "killed")
    assert [row["step"] for row in killed] == [row["step"] for row in whole]
    for one, other in zip(whole, killed, strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-3)
