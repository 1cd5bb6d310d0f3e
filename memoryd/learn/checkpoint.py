"""Checkpoints that survive a kill at any moment, and the metrics that are kept beside them."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memoryd import durable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from memoryd.engine.adapters import Adapters

METRICS = "metrics.jsonl"
_STATE = "state.json"
_WINDOW = 25  # steps of a running mean in the plot


@dataclass(frozen=True, slots=True)
class Weights:
    """How to read and set the weights of one part."""

    get: Callable[[], dict[str, Tensor]]
    set: Callable[[dict[str, Tensor]], object]


def of_module(module: torch.nn.Module) -> Weights:
    return Weights(lambda: {name: value.detach().cpu() for name, value in module.state_dict().items()}, module.load_state_dict)


def of_adapter(adapters: Adapters, name: str) -> Weights:
    return Weights(lambda: adapters.state(name), lambda state: adapters.load_state(name, state))


def save(
    out: Path,
    weights: Mapping[str, Weights],
    optimizer: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
    progress: Mapping[str, Any],
    make: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint beside the last one, then put it in its place; ``facts`` of the run are kept in its state. OSError
    where it can't be written, or where ``out`` is not there and not to be made."""
    from safetensors.torch import save as to_safetensors

    def fill(directory: Path) -> None:
        for name, part in weights.items():
            (directory / f"{name}.safetensors").write_bytes(to_safetensors(part.get()))

    write(out, fill, optimizer, {"recipe": recipe, "progress": progress, **(facts or {})}, make)


def write(
    out: Path, fill: Callable[[Path], None], optimizer: torch.optim.Optimizer, state: Mapping[str, Any], make: bool = True
) -> None:
    """The same where ``fill`` writes the weights, in whatever layout, into the folder that it is given."""
    import torch

    building, target, old = out / "checkpoint.new", out / "checkpoint", out / "checkpoint.old"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=make)
    fill(building)
    moments = io.BytesIO()  # torch, as safetensors, does not say of a file that it is the disk that is full
    torch.save(optimizer.state_dict(), moments)
    (building / "optimizer.pt").write_bytes(moments.getbuffer())
    (building / _STATE).write_text(json.dumps(state, indent=1))
    flush(building)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    building.rename(target)
    durable.flush(out)


def flush(directory: Path) -> None:
    """Returns when the folder and all in it are on the disk."""
    for path in (*directory.rglob("*"), directory):
        durable.flush(path)


def last(out: Path) -> Path | None:
    """The last whole checkpoint's folder; None where there is none."""
    return next((out / name for name in ("checkpoint", "checkpoint.old") if (out / name / _STATE).is_file()), None)


def state_of(directory: Path) -> dict[str, Any]:
    """A checkpoint's recipe, progress and facts."""
    state: dict[str, Any] = json.loads((directory / _STATE).read_text())
    return state


def progress_of(directory: Path) -> dict[str, Any]:
    progress: dict[str, Any] = state_of(directory)["progress"]
    return progress


def resume(out: Path, weights: Mapping[str, Weights], optimizer: torch.optim.Optimizer, device: str = "cpu") -> dict[str, Any]:
    """Load the last whole checkpoint of ``out``; returns its progress, empty where there is none."""
    import torch
    from safetensors.torch import load_file

    found = last(out)
    if found is None:
        return {}
    for name, part in weights.items():
        part.set(load_file(found / f"{name}.safetensors"))
    moments = io.BytesIO((found / "optimizer.pt").read_bytes())  # of a file cut short, torch would say that the disk fails
    optimizer.load_state_dict(torch.load(moments, weights_only=True, map_location=device))
    return progress_of(found)


def mend_metrics(out: Path) -> None:
    """Cut off a last row that was not written whole: the next one would be unreadable too."""
    if (out / METRICS).is_file():
        rows = (out / METRICS).read_bytes()
        os.truncate(out / METRICS, rows.rfind(b"\n") + 1)


def metrics(out: Path) -> list[dict[str, Any]]:
    """The logged rows in order; a step that was done again after a kill counts once, as it was done last."""
    rows: dict[int, dict[str, Any]] = {}
    for line in (out / METRICS).read_text().splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):  # the line that a kill or a full disk cut off
            continue
    return [rows[step] for step in sorted(rows)]


def plot(out: Path, x: str, series: Sequence[str], title: str) -> None:
    """``out``/loss.png: the running mean of each series over ``x``."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = metrics(out)
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in series:
        points = [(row[x], row[name]) for row in rows if name in row]
        values = [value for _, value in points]
        means = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - _WINDOW + 1) : i + 1])]
        if points:
            axes.plot([at for at, _ in points], means, label=f"{name}, mean of {_WINDOW} steps")
    axes.set(xlabel=x.replace("_", " "), ylabel="loss", title=title)
    axes.legend()
    figure.savefig(out / "loss.png", dpi=120, bbox_inches="tight")
    plt.close(figure)
