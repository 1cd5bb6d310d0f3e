"""The loss curve as a picture."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence

_ONE_AT_A_TIME = threading.Lock()  # pyplot keeps global state


def draw(points: Sequence[Mapping[str, float]]) -> bytes:
    """PNG of the loss over steps. Blocks."""
    import matplotlib

    with _ONE_AT_A_TIME:
        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4))
        axes.plot(
            [point["step"] for point in points], [point["loss"] for point in points], marker="." if len(points) < 50 else ""
        )
        axes.set(xlabel="step of the optimizer", ylabel="loss on answers", ylim=(0, None))
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)
    return out.getvalue()
