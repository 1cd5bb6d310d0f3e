"""The picture of the compression eval: F1 over the slots that a context takes, one line for each arm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from memoryd.eval.figures import Row, whiskers

_AT = re.compile(r"(?P<arm>[a-z0-9]+) at (?P<ratio>\d+)x: F1$")
_FLAT = re.compile(r"(?P<arm>none|raw): F1$")
_SAID = {
    "first": "the text's first tokens",
    "passage": "the best passage (BM25), cut",
    "compressed": "compressed embeddings",
    "wrong": "compressed embeddings of another text",
    "hybrid": "compressed embeddings and the best passage",
    "int8": "compressed embeddings, stored as int8",
    "raw": "the raw text (ceiling)",
    "none": "nothing",
}


def draw_slots(rows: Sequence[Row], path: Path) -> Path:
    """F1 with its 95 % interval. Slots are those of the compressed embeddings alone: HYBRID has its passage beside them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    slots = {row.name.removeprefix("slots at "): row.value for row in rows if row.name.startswith("slots at ")}
    arms: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        if match := _AT.match(row.name):
            arms.setdefault(match["arm"], []).append((slots[f"{match['ratio']}x"], row))
    figure, axes = plt.subplots(figsize=(8, 5))
    for arm, points in arms.items():
        points.sort(key=lambda point: point[0])
        at, mine = [at for at, _ in points], [row for _, row in points]
        style = "--" if arm in ("wrong", "int8") else "-"
        values = [row.value for row in mine]
        axes.errorbar(at, values, yerr=whiskers(mine), marker="o", capsize=3, ls=style, label=_SAID[arm])
    for row in rows:
        if match := _FLAT.match(row.name):
            axes.axhline(row.value, color="black" if match["arm"] == "raw" else "gray", lw=1, ls=":")
            end = (max(slots.values(), default=1), row.value)
            axes.annotate(_SAID[match["arm"]], end, fontsize=8, ha="right", va="bottom")
    axes.set(xscale="log", xlabel="slots of context", ylabel="F1", ylim=(0, None), title="Answers from as many slots")
    axes.set_xticks(sorted(slots.values()), [f"{at:.0f}" for at in sorted(slots.values())])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path
