"""The picture of the learning eval: what each memory's questions score by arm, and what is refused as it should be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from memoryd.eval.figures import Row, whiskers

_ARMS = {"another memory": "gray", "reader": "#4878a8", "self-study": "#e1974c", "supplied": "#59a14f"}
_NAME = re.compile(
    r"(?P<memory>\w+), (?P<mode>[A-Z]+), (?P<arm>[a-z -]+)(?P<refused>: refused of another memory's questions)?$"
)
_REFUSED = "refused: another\nmemory's questions"


def draw_learning(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each memory, with 95 % intervals: arms in each mode by the memory's own metric, and shares of refusals."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        if match := _NAME.match(row.name):
            group = _REFUSED if match["refused"] else f"{match['mode']}, {row.unit}"
            panels.setdefault(match["memory"], {})[group, match["arm"]] = row
    figure, all_axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4), sharey=True, squeeze=False)
    for axes, (memory, bars) in zip(all_axes[0], panels.items(), strict=True):
        groups = list(dict.fromkeys(group for group, _ in bars))
        for place, (arm, color) in enumerate(_ARMS.items()):
            mine = {groups.index(group) + 0.2 * (place - 1.5): row for (group, own), row in bars.items() if own == arm}
            values = [row.value for row in mine.values()]
            axes.bar(list(mine), values, 0.18, yerr=whiskers(list(mine.values())), color=color, label=arm, capsize=2)
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set(title=memory, ylim=(0, 1.02))
    figure.legend(*all_axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(_ARMS), fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
