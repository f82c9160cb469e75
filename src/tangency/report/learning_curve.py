"""The metric on training and test rows over gradient-flow time."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes

from .style import BLUE, INK, MUTED, ORANGE, label, quiet

MOST_DECADES = 12.0
"""Slower modes than this many decades behind the fastest are left off the axis."""


def time_grid(eigenvalues: np.ndarray, ridge: float, points: int = 60) -> np.ndarray:
    """Times `[points]`, log-spaced, from before the fastest mode moves to after the slowest has settled.

    A mode of eigenvalue μ of Θ + λ I decays as exp(−μ t / N) under the flow of the loss averaged over N examples.
    """
    n = eigenvalues.size
    fastest = float(eigenvalues.max()) + ridge
    slowest = max(float(eigenvalues.min()) + ridge, fastest * 10.0**-MOST_DECADES)
    return np.logspace(np.log10(0.02 * n / fastest), np.log10(10 * n / slowest), points)


@dataclass(frozen=True)
class LearningCurveDisplay:
    """`train` and `test` `[T]` are the metric at `times` `[T]`; `chosen` is the time the model stands at, if finite."""

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    times: np.ndarray
    train: np.ndarray
    test: np.ndarray
    metric: str
    chosen: float | None

    @classmethod
    def compute(
        cls, times: np.ndarray, train: np.ndarray, test: np.ndarray, *, metric: str, chosen: float | None = None
    ) -> "LearningCurveDisplay":
        """From the metric at each time."""
        return cls(np.asarray(times), np.asarray(train), np.asarray(test), metric, chosen)

    def plot(self, ax: Axes) -> None:
        """Both curves over logarithmic time."""
        ax.plot(self.times, self.train, color=MUTED, linewidth=1.6, label="training part")
        ax.plot(self.times, self.test, color=BLUE, linewidth=2.0, label="test part")
        ax.set_xscale("log")
        if self.chosen is not None:
            ax.axvline(self.chosen, color=ORANGE, linewidth=1.2, linestyle="--", label=f"t = {self.chosen:.3g}")
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
        quiet(ax)
        label(ax, "gradient-flow time t", self.metric)
