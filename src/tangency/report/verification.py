"""The figures of a verification: how a finite network approaches its limit, and how training follows the kernel."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from ..dynamics import PowerLaw, Verification
from ..dynamics.verification import EMPIRICAL_DESCENT, LIMIT_DESCENT, LIMIT_FLOW, LINEARISED
from .style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, label, quiet

LINES = {
    LINEARISED: (GREEN, "-"),
    EMPIRICAL_DESCENT: (PURPLE, (0, (4, 2))),
    LIMIT_DESCENT: (ORANGE, "-"),
    LIMIT_FLOW: (ORANGE, (0, (1, 1.5))),
}
"""The predictions that are drawn, with their colour and dashes."""

MOST_OUTPUTS = 4


@dataclass(frozen=True)
class WidthScalingDisplay:
    """`values` `[W, S]` at `widths` `[W]`, and their power law, if one could be fitted."""

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    widths: np.ndarray
    values: np.ndarray
    fit: PowerLaw | None
    quantity: str

    @classmethod
    def from_verification(
        cls, result: Verification, quantity: Literal["limit_error", "drift"]
    ) -> "WidthScalingDisplay":
        """The NTK's distance from the limit at initialisation, or its relative change in training."""
        names = {"limit_error": "|Θ_width − Θ| / |Θ|", "drift": "|Θ_end − Θ_0| / |Θ_0|"}
        return cls(
            np.array(result.widths), getattr(result, quantity), getattr(result, f"{quantity}_fit"), names[quantity]
        )

    def plot(self, ax: Axes) -> None:
        """Both logarithmic: a point for each seed, the fitted line with its confidence band, and a slope of −1/2."""
        positive = np.where(self.values > 0, self.values, np.nan)
        ax.loglog(
            np.repeat(self.widths, positive.shape[1]), positive.ravel(), "o", color=BLUE, alpha=0.7, markersize=5,
            markeredgewidth=0, label="one network",
        )  # fmt: skip
        if self.fit is not None:
            grid = np.geomspace(self.widths.min(), self.widths.max(), 60)
            ax.plot(
                grid, self.fit(grid), color=BLUE, linewidth=1.6, label=f"slope {self.fit.slope:.2f}".replace("-", "−")
            )
            low, high = self.fit.band(grid)
            if np.isfinite(high).all() and (low > 0).all():
                ax.fill_between(grid, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % confidence")
            middle = np.exp(np.log(self.widths).mean())
            reference = self.fit(np.array([middle]))[0] * (grid / middle) ** -0.5
            ax.plot(grid, reference, color=MUTED, linewidth=1.2, linestyle="--", label="slope −1/2")
        ax.set_xticks(self.widths, [f"{width:,}" for width in self.widths])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
        quiet(ax)
        label(ax, "width", self.quantity)


@dataclass(frozen=True)
class KernelDriftDisplay:
    """`drift` `[W, T]`: the relative change of the NTK after `steps` `[T]`, averaged over seeds."""

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    steps: np.ndarray
    drift: np.ndarray
    widths: tuple[int, ...]

    @classmethod
    def from_verification(cls, result: Verification) -> "KernelDriftDisplay":
        drift = np.array([[run.drift for run in runs] for runs in result.runs]).mean(axis=1)
        measured = np.isfinite(drift).any(axis=0)
        return cls(result.steps[measured], drift[:, measured], result.widths)

    def plot(self, ax: Axes) -> None:
        """A line for each width over the steps."""
        colours = mpl.colormaps["viridis"](np.linspace(0.15, 0.85, len(self.widths)))
        for width, values, colour in zip(self.widths, self.drift, colours, strict=True):
            ax.plot(self.steps, values, color=colour, linewidth=1.6, marker=".", label=f"width {width:,}")
        _step_axis(ax)
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
        quiet(ax)
        label(ax, "step", "|Θ_t − Θ_0| / |Θ_0|")


@dataclass(frozen=True)
class TrainingErrorDisplay:
    """Root mean square error on the training examples over `steps` `[T]`: of the network, and as predicted `[T]` each.

    `band` is the half-width of what counts as agreement with descent under the limit NTK.
    """

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    steps: np.ndarray
    network: np.ndarray
    predicted: dict[str, np.ndarray]
    band: float

    @classmethod
    def from_verification(
        cls, result: Verification, *, width: int | None = None, seed: int | None = None
    ) -> "TrainingErrorDisplay":
        """Of one network; by default the widest and its first seed."""
        chosen = {"width": width or result.widths[-1], "seed": result.seeds[0] if seed is None else seed}
        network = result.error(None, **chosen)
        lines = {name: result.error(name, **chosen) for name in LINES}
        return cls(result.steps, network, lines, result.band * float(network[0]))

    def plot(self, ax: Axes) -> None:
        """The network as a thick line, predictions over it, the band shaded."""
        centre = self.predicted[LIMIT_DESCENT]
        top = 1.15 * max(float(self.network[0]), float(np.nanmax(self.network)))
        if np.isfinite(centre).all():
            lower, upper = np.maximum(centre - self.band, 0), centre + self.band
            ax.fill_between(self.steps, lower, upper, color=ORANGE, alpha=0.16, linewidth=0, label="stated band")
        ax.plot(self.steps, self.network, color=BLUE, linewidth=3.0, alpha=0.75, label="network")
        for name, (colour, dashes) in LINES.items():
            ax.plot(
                self.steps, _shown(self.predicted[name], top), color=colour, linestyle=dashes, linewidth=1.4, label=name
            )
        ax.set_ylim(0, top)
        _step_axis(ax)
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        quiet(ax)
        label(ax, "step", "RMS error, training examples")


@dataclass(frozen=True)
class GapDisplay:
    """Distance of the network from each prediction over `steps` `[T]`, averaged over seeds, as a share of the initial
    error; `part` says on which examples."""

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    steps: np.ndarray
    gaps: dict[str, np.ndarray]
    band: float
    part: str

    @classmethod
    def from_verification(cls, result: Verification, *, part: str = "train") -> "GapDisplay":
        """At the largest width. `part` is "train" or "test"."""
        gaps = {name: result.gap(name, part=part)[-1].mean(axis=0) for name in LINES}
        return cls(result.steps, gaps, result.band, part)

    def plot(self, ax: Axes) -> None:
        """Logarithmic upwards, from the first step on."""
        later = slice(1, None)
        for name, (colour, dashes) in LINES.items():
            values = _shown(self.gaps[name][later], 1e3)
            ax.plot(self.steps[later], values, color=colour, linestyle=dashes, linewidth=1.5, label=name)
        ax.axhline(self.band, color=MUTED, linewidth=1.2, linestyle="--", label=f"band {100 * self.band:.3g} %")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        quiet(ax)
        label(ax, "step", f"distance / initial error, {part_name(self.part)}")


@dataclass(frozen=True)
class OutputsDisplay:
    """Single outputs over `steps` `[T]`: of the network and of descent with the limit NTK, `[T, k]`."""

    size: ClassVar[tuple[float, float]] = (5.2, 3.6)

    steps: np.ndarray
    network: np.ndarray
    predicted: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def from_verification(cls, result: Verification) -> "OutputsDisplay":
        """Of the widest network's first seed: those of the test examples (of the training examples where there are
        none) that move most, from different examples."""
        run, n = result.runs[-1][0], len(result.y)
        part = slice(n, None) if run.network.shape[1] > n else slice(n)
        network, predicted = run.network[:, part], run.predicted[LIMIT_DESCENT][:, part]
        moved = np.nan_to_num(np.nanmax(np.abs(network - network[0]), axis=0))
        output = moved.argmax(axis=1)
        examples = np.argsort(moved.max(axis=1), kind="stable")[::-1][:MOST_OUTPUTS]
        chosen = (slice(None), examples, output[examples])
        kind = "test" if part.start else "training"
        names = tuple(f"output {output[i]} of {kind} example {i}" for i in examples)
        return cls(result.steps, network[chosen], predicted[chosen], names)

    def plot(self, ax: Axes) -> None:
        """The network in full, the prediction dashed in the same colour."""
        colours = (BLUE, ORANGE, GREEN, PURPLE)
        limit = 1.5 * float(np.nanmax(np.abs(self.network)))
        for k, name in enumerate(self.names):
            ax.plot(self.steps, self.network[:, k], color=colours[k], linewidth=1.8, label=name)
            predicted = _shown(self.predicted[:, k], limit)
            ax.plot(self.steps, predicted, color=colours[k], linewidth=1.4, linestyle=(0, (3, 2)))
        ax.plot([], [], color=MUTED, linestyle=(0, (3, 2)), label=LIMIT_DESCENT)
        _step_axis(ax)
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        quiet(ax)
        label(ax, "step", "f_t(x)")


def part_name(part: str) -> str:
    return "training examples" if part == "train" else "test examples"


def _shown(values: np.ndarray, top: float) -> np.ndarray:
    """Values beyond the axis become gaps, which a diverging prediction would otherwise stretch."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) <= top, values, np.nan)


def _step_axis(ax: Axes) -> None:
    """Logarithmic from the first step on, with room for step 0."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    ax.set_xlim(left=0)
