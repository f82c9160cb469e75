"""Predictions against the truth on the test part."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes

from .style import BLUE, COUNTS, INK, MUTED, label, quiet, tick_names

MOST_POINTS = 1500
"""More points than this are thinned evenly, to keep the file small."""
MOST_NUMBERED_CLASSES = 20
"""With more classes than this the cells are too small for a number."""


@dataclass(frozen=True)
class ConfusionMatrixDisplay:
    """`counts` `[C, C]`: rows are true classes, columns predicted ones."""

    size: ClassVar[tuple[float, float]] = (5.2, 4.4)

    counts: np.ndarray
    class_names: tuple[str, ...]

    @classmethod
    def compute(
        cls, true: np.ndarray, predicted: np.ndarray, *, class_names: tuple[str, ...]
    ) -> "ConfusionMatrixDisplay":
        """From class numbers `[n]`, true and predicted."""
        counts = np.zeros((len(class_names), len(class_names)), dtype=int)
        np.add.at(counts, (true, predicted), 1)
        return cls(counts, class_names)

    def plot(self, ax: Axes) -> None:
        """Colour is the share of the true class; the number is the count."""
        share = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        ax.imshow(share, cmap=COUNTS, vmin=0, vmax=1, interpolation="nearest")
        classes = len(self.class_names)
        if classes <= MOST_NUMBERED_CLASSES:
            for i, j in zip(*np.nonzero(self.counts), strict=True):
                colour = "white" if share[i, j] > 0.55 else "#20242c"
                ax.text(j, i, str(self.counts[i, j]), ha="center", va="center", fontsize=8, color=colour)
        quiet(ax, grid=False)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        shown = list(range(0, classes, max(1, classes // MOST_NUMBERED_CLASSES)))
        names = [self.class_names[i] for i in shown]
        tick_names(ax, "x", [float(i) for i in shown], names)
        tick_names(ax, "y", [float(i) for i in shown], names)
        ax.tick_params(length=0, colors=INK)
        label(ax, "predicted", "true")


@dataclass(frozen=True)
class PredictionDisplay:
    """`true`, `mean` and `std` `[n]`: a regression on the test part, in the target's units."""

    size: ClassVar[tuple[float, float]] = (5.2, 4.4)

    true: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def compute(cls, true: np.ndarray, mean: np.ndarray, std: np.ndarray) -> "PredictionDisplay":
        """From `[n]` each; rows beyond `MOST_POINTS` are thinned evenly."""
        rows = np.unique(np.linspace(0, true.size - 1, min(true.size, MOST_POINTS)).round().astype(int))
        return cls(true[rows], mean[rows], std[rows])

    def plot(self, ax: Axes) -> None:
        """Predicted against true, with two standard deviations of the ensemble."""
        ends = [min(self.true.min(), self.mean.min()), max(self.true.max(), self.mean.max())]
        ax.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle="--")
        ax.errorbar(
            self.true,
            self.mean,
            yerr=2 * self.std,
            fmt="o",
            markersize=3.5,
            color=BLUE,
            ecolor=BLUE,
            elinewidth=0.7,
            alpha=0.6,
            markeredgewidth=0,
        )
        quiet(ax)
        label(ax, "true", "predicted")
