"""Colours and axes that all figures share."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes

# The report's style sheet swaps these two for its own variables, so figures follow a dark page.
INK = "#1f2330"
MUTED = "#8a90a0"

BLUE = "#3b6fd4"
ORANGE = "#e07b39"
GREEN = "#2f9e6e"
PURPLE = "#9b5fc0"
SEQUENTIAL = "magma"
COUNTS = "Blues"

LONGEST_NAME = 16
CHARACTERS_ACROSS = 48


def quiet(ax: Axes, *, grid: bool = True) -> None:
    """Thin muted axes, no box, a faint grid."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.tick_params(which="both", colors=INK, labelsize=9, width=0.6)
    ax.tick_params(which="minor", length=2)
    if grid:
        ax.grid(True, color=MUTED, alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)


def label(ax: Axes, x: str, y: str) -> None:
    """Axis labels; the text is taken literally, never as mathematics."""
    for text in (ax.set_xlabel(x), ax.set_ylabel(y)):
        text.set_color(INK)
        text.set_fontsize(10)
        text.set_parse_math(False)


def tick_names(ax: Axes, axis: Literal["x", "y"], positions: Sequence[float], names: Sequence[str]) -> None:
    """Names at positions along an axis, taken literally, cut when long and slanted when they would collide."""
    short = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
    if axis == "y":
        ax.set_yticks(positions, short)
        texts = ax.get_yticklabels()
    elif sum(map(len, short)) + 2 * len(short) <= CHARACTERS_ACROSS:
        ax.set_xticks(positions, short)
        texts = ax.get_xticklabels()
    else:
        ax.set_xticks(positions, short, rotation=40, ha="right", rotation_mode="anchor")
        texts = ax.get_xticklabels()
    for text in texts:
        text.set_parse_math(False)
