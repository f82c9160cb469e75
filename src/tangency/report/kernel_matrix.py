"""The kernel matrix, sorted so that a class is a block."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes

from .style import INK, SEQUENTIAL, quiet, tick_names

MOST_ROWS = 400
"""More rows than this are thinned evenly: a picture has no more pixels to show them."""


def sorted_rows(targets: np.ndarray, most: int = MOST_ROWS) -> np.ndarray:
    """Row numbers in the order of their targets, thinned evenly to at most `most`."""
    order = np.argsort(targets, kind="stable")
    if order.size <= most:
        return order
    return order[np.linspace(0, order.size - 1, most).round().astype(int)]


@dataclass(frozen=True)
class KernelMatrixDisplay:
    """`similarity` `[n, n]` is Θ_ij / √(Θ_ii Θ_jj); rows are sorted by `targets` `[n]`."""

    size: ClassVar[tuple[float, float]] = (5.2, 4.4)

    similarity: np.ndarray
    targets: np.ndarray
    class_names: tuple[str, ...] | None

    @classmethod
    def compute(
        cls, kernel_matrix: np.ndarray, targets: np.ndarray, *, class_names: tuple[str, ...] | None = None
    ) -> "KernelMatrixDisplay":
        """From a kernel matrix whose rows are already in the order of `sorted_rows`.

        `targets` are class numbers where `class_names` is given, else the values of a regression target.
        """
        diagonal = np.diag(kernel_matrix)
        positive = np.where(diagonal > 0, diagonal, 1.0)
        return cls(kernel_matrix / np.sqrt(positive[:, None] * positive[None, :]), targets, class_names)

    def plot(self, ax: Axes) -> None:
        """Draw the matrix with the classes, or the target's values, along both axes."""
        n = self.targets.size
        image = ax.imshow(self.similarity, cmap=SEQUENTIAL, interpolation="nearest", vmax=1.0, aspect="equal")
        colourbar = ax.figure.colorbar(image, ax=ax, shrink=0.9)
        colourbar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        colourbar.ax.tick_params(colors=INK, labelsize=9, width=0.6)
        quiet(ax, grid=False)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        if self.class_names is None:
            positions = np.unique(np.linspace(0, n - 1, min(n, 5)).round().astype(int))
            names = [f"{self.targets[i]:.3g}" for i in positions]
            centres = positions.astype(float).tolist()
        else:
            starts = np.flatnonzero(np.diff(self.targets, prepend=self.targets[0] - 1))
            ends = np.append(starts[1:], n)
            for start in starts[1:]:
                ax.axhline(start - 0.5, color="white", linewidth=0.5, alpha=0.7)
                ax.axvline(start - 0.5, color="white", linewidth=0.5, alpha=0.7)
            centres = ((starts + ends - 1) / 2).tolist()
            names = [self.class_names[self.targets[start]] for start in starts]
        tick_names(ax, "x", centres, names)
        tick_names(ax, "y", centres, names)
        ax.tick_params(length=0, colors=INK)
