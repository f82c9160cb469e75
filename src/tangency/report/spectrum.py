"""The eigenvalues of the kernel matrix: which directions are learned, and how fast."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes

from .style import BLUE, INK, ORANGE, label, quiet


@dataclass(frozen=True)
class SpectrumDisplay:
    """`eigenvalues` `[n]`, descending and positive; `dropped` counts those that are zero to rounding."""

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    eigenvalues: np.ndarray
    dropped: int
    ridge: float

    @classmethod
    def compute(cls, eigenvalues: np.ndarray, *, ridge: float = 0.0) -> "SpectrumDisplay":
        """From the eigenvalues of the kernel matrix in any order. Those below N · eps · the largest are rounding."""
        ordered = np.sort(eigenvalues)[::-1]
        kept = ordered[ordered > ordered.size * np.finfo(np.float64).eps * max(ordered[0], 0.0)]
        return cls(kept, ordered.size - kept.size, ridge)

    def plot(self, ax: Axes) -> None:
        """Eigenvalue against rank, both logarithmic, with the ridge as a line."""
        rank = np.arange(1, self.eigenvalues.size + 1)
        ax.loglog(rank, self.eigenvalues, color=BLUE, linewidth=1.6, marker="." if rank.size < 60 else None)
        if self.ridge > self.eigenvalues[-1] / 10:
            ax.axhline(self.ridge, color=ORANGE, linewidth=1.2, linestyle="--", label=f"ridge {self.ridge:.3g}")
            ax.legend(frameon=False, fontsize=9, labelcolor=INK)
        elif self.ridge > 0:
            # A line far below the spectrum would squeeze the spectrum itself.
            ax.plot([], [], " ", label=f"ridge {self.ridge:.3g}, below all of these")
            ax.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=0)
        quiet(ax)
        label(ax, "rank", "eigenvalue")
