"""The page of a verification."""

import platform
from collections.abc import Sequence
from importlib.metadata import version

from ..dynamics import Verification
from ..dynamics.verification import LIMIT_DESCENT, LINEARISED
from .page import FigureCard, Report, render
from .verification import (
    GapDisplay,
    KernelDriftDisplay,
    OutputsDisplay,
    TrainingErrorDisplay,
    WidthScalingDisplay,
    part_name,
)

_PACKAGES = ("tangency", "jax", "equinox", "optax", "numpy", "scipy")


def verification_html(
    result: Verification,
    *,
    title: str = "Verification",
    facts: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """One self-contained page: verdict, numbers by width, figures, and the recursion of the limit."""
    steps, examples = int(result.steps[-1]), len(result.y)
    page = Report(
        title=title,
        summary=(
            f"Networks of width {_listed(result.widths)} trained for {steps:,} steps on {examples:,} examples, beside "
            "what their linearisation, their own NTK and the infinite-width NTK predict from the same start."
        ),
        verdict=result.verdict(),
        table_title="By width",
        table_caption=(
            "Means over seeds: the NTK at initialisation to the limit; its change in training; and how far the network "
            "strays from its linearisation and from descent with the limit NTK at most, as a share of the initial "
            "error."
        ),
        row_title="width",
        marked_row=len(result.widths) - 1,
        metric_names=("NTK to limit", "NTK drift", "to linearised", "to limit"),
        metric_rows=_rows(result),
        facts=[*facts, *_facts(result)],
        figures=_figures(result),
        recursion=result.recursion,
        graph=result.graph,
        latex=result.latex,
        notes=notes,
        footer=" · ".join(f"{name} {number}" for name, number in versions(_PACKAGES).items()),
    )
    return render(page)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of installed packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _rows(result: Verification) -> list[tuple[str, Sequence[str]]]:
    """Means over seeds; distances are the largest over the steps."""
    numbers = (
        result.limit_error.mean(axis=1),
        result.drift.mean(axis=1),
        result.gap(LINEARISED).max(axis=2).mean(axis=1),
        result.gap(LIMIT_DESCENT).max(axis=2).mean(axis=1),
    )
    return [(f"{width:,}", [percent(values[place]) for values in numbers]) for place, width in enumerate(result.widths)]


def percent(value: float) -> str:
    """A distance for a table."""
    return "diverged" if value != value else f"{100 * value:.1f} %" if value < 10 else "diverged"


def _facts(result: Verification) -> list[tuple[str, str]]:
    return [
        ("training examples", f"{len(result.y):,}"),
        ("outputs", f"{result.y.shape[1]:,}"),
        ("seeds", _listed(result.seeds)),
        ("learning rate η", f"{result.learning_rate:.4g}, times a parameter's variance at initialisation"),
        ("stable up to", f"{result.stable_rate:.4g} = 2N/λ_max of the limit NTK"),
        ("steps", f"{int(result.steps[-1]):,}"),
    ]


def _figures(result: Verification) -> list[FigureCard]:
    part = "test" if result.tested else "train"
    widest, first = f"{result.widths[-1]:,}", result.seeds[0]
    cards = [
        FigureCard(
            "error",
            "Training error",
            f"The network of width {widest} (seed {first}) and its predictions, all from its own initial outputs. The "
            f"band is ±{100 * result.band:.3g} % of the initial error around descent with the limit NTK.",
            TrainingErrorDisplay.from_verification(result),
        ),
        FigureCard(
            "outputs",
            "Single outputs",
            f"What the network of width {widest} says about single examples as it trains (full), and what descent with "
            "the limit NTK says (dashed).",
            OutputsDisplay.from_verification(result),
        ),
        FigureCard(
            "limit",
            "NTK at initialisation against the limit",
            "Distance in the Frobenius norm over the training examples. The theory expects a slope of −1/2.",
            WidthScalingDisplay.from_verification(result, "limit_error"),
        ),
        FigureCard(
            "drift",
            "How far training moves the NTK",
            "After the last step. In the limit the NTK stands still; narrow networks learn features, and theirs moves.",
            WidthScalingDisplay.from_verification(result, "drift"),
        ),
        FigureCard(
            "drift-steps",
            "When the NTK moves",
            "Relative change since initialisation, mean over seeds.",
            KernelDriftDisplay.from_verification(result),
        ),
        FigureCard(
            "gap",
            "Distance from each prediction",
            f"Root mean square over outputs and {part_name(part)}, width {widest}, mean over seeds, as a share of the "
            "initial training error.",
            GapDisplay.from_verification(result, part=part),
        ),
    ]
    return cards


def _listed(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)
