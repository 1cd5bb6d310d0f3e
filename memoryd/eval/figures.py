"""Measured figures, kept as data and shown from there: no number in the documentation is typed by hand.

``write`` puts rows into docs/figures/NAME.json. ``render_all`` draws docs/img/NAME.png from each file, and fills the
tables of every Markdown file that asks for one:

    <!-- figures: NAME -->
    <!-- /figures -->

A table can show a part of the rows, those whose names hold a regular expression: ``<!-- figures: NAME match=^ack -->``.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
_MARKED = re.compile(r"(<!-- figures: (?P<name>[\w-]+)(?: match=(?P<match>\S+))? -->\n).*?(<!-- /figures -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value. ``low`` and ``high`` are its 95% interval; ``n`` what it was measured on.

    ``baseline`` is what the value is held against, ``ratio`` value over baseline, ``aim`` the target and ``met`` whether
    it was reached. ``command``, ``commit`` and ``date`` say how to measure it again; ``write`` fills the latter two.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    baseline: float | None = None
    ratio: float | None = None
    aim: str = ""
    met: bool | None = None
    command: str = ""
    commit: str = ""
    date: str = ""


def write(name: str, rows: Sequence[Row], docs: Path = DOCS) -> Path:
    """Replace docs/figures/NAME.json by ``rows``, stamped with the commit and the day."""
    stamp = {"commit": commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    path = docs / "figures" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    filled = [replace(row, commit=row.commit or stamp["commit"], date=row.date or stamp["date"]) for row in rows]
    path.write_text(json.dumps([_finite(asdict(row)) for row in filled], indent=1) + "\n")
    return path


def read(name: str, docs: Path = DOCS) -> list[Row]:
    """The rows that ``write`` wrote; a value that could not be measured is NaN again."""
    rows = json.loads((docs / "figures" / f"{name}.json").read_text())
    return [Row(**row | {"value": math.nan if row["value"] is None else row["value"]}) for row in rows]


def render_all(docs: Path = DOCS) -> list[Path]:
    """Refresh every table and picture; returns the files that changed. Raises KeyError for a table without figures."""
    figures = {p.stem: read(p.stem, docs) for p in sorted((docs / "figures").glob("*.json"))}
    changed: list[Path] = []
    for page in sorted([*docs.glob("*.md"), docs.parent / "README.md"]):
        if not page.is_file():
            continue
        before = page.read_text()
        after = _MARKED.sub(
            lambda m: m[1] + table(r for r in figures[m["name"]] if re.search(m["match"] or "", r.name)) + m[4],
            before,
        )
        if after != before:
            page.write_text(after)
            changed.append(page)
    for name, rows in figures.items():
        if at := sum(row.name.startswith("slots at ") for row in rows):
            from memoryd.eval.slots_plot import draw_slots  # which knows rows

            if at > 1:  # a curve
                changed.append(draw_slots(rows, docs / "img" / f"{name}-slots.png"))
        elif any(row.name.startswith("learned, ") for row in rows):
            from memoryd.eval.learning_plot import draw_learning

            changed.append(draw_learning(rows, docs / "img" / f"{name}.png"))
        else:
            changed.append(draw(rows, docs / "img" / f"{name}.png"))
    return changed


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table; columns that no row fills are left out."""
    rows = list(rows)
    columns = {
        "measured": [r.name for r in rows],
        "value": [f"{_number(r.value)} {r.unit}".strip() for r in rows],
        "95% interval": [f"{_number(r.low)} – {_number(r.high)}" if r.low is not None else "" for r in rows],
        "n": [str(r.n) if r.n is not None else "" for r in rows],
        "baseline": [_number(r.baseline) for r in rows],
        "ratio": [f"{r.ratio:.2f}x" if r.ratio is not None else "" for r in rows],
        "aim": [r.aim for r in rows],
        "met": ["" if r.met is None else ("yes" if r.met else "**no**") for r in rows],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*shown.values(), strict=True)]
    commands = sorted({f"`{r.command}`" for r in rows if r.command})
    made = sorted({f"{r.date}, commit {r.commit}" for r in rows})
    foot = f"\nMeasured {'; '.join(made)}" + (f" by {', '.join(commands)}." if commands else ".")
    return "\n".join(lines) + "\n" + foot + "\n"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """One bar chart for each unit, with intervals, and baselines as ticks."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    units = list(dict.fromkeys(r.unit for r in rows))
    heights = [max(1, sum(r.unit == u for r in rows)) for u in units]
    figure, all_axes = plt.subplots(
        len(units), 1, figsize=(8, 0.9 * len(units) + 0.35 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for unit, axes in zip(units, all_axes[:, 0], strict=True):
        mine = [r for r in rows if r.unit == unit][::-1]
        axes.barh([r.name for r in mine], [r.value for r in mine], xerr=whiskers(mine), color="#4878a8", height=0.6)
        for place, row in enumerate(mine):
            if row.baseline is not None:
                axes.plot([row.baseline] * 2, [place - 0.4, place + 0.4], color="#c44e52")
        axes.set_xlabel(unit)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def whiskers(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """How far each interval goes below and above its value, as matplotlib takes it; 0 where there is none."""
    low = [0.0 if row.low is None else row.value - row.low for row in rows]
    return low, [0.0 if row.high is None else row.high - row.value for row in rows]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}".removesuffix(".0")


def _finite(row: dict[str, object]) -> dict[str, object]:
    """JSON has no NaN: a figure that could not be measured is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def commit() -> str:
    """The code's, short."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=DOCS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    for changed_file in render_all():
        sys.stdout.write(f"{changed_file.relative_to(DOCS.parent)}\n")
