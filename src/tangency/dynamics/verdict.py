"""The verdict of a verification in plain words."""

from __future__ import annotations

import numpy as np

from .power_law import PowerLaw
from .verification import LAZY, LIMIT_DESCENT, LINEARISED, NEARLY_LAZY, Verification


def sentences(result: Verification) -> tuple[str, ...]:
    """One sentence for each thing that was measured, the conclusion first."""
    return (
        *_laziness(result),
        *_divergence(result),
        _initial(result),
        _drift(result),
        *_predicted(result),
        _discretisation(result),
        *(f"Remark of the limit: {remark}" for remark in result.remarks),
    )


def _laziness(result: Verification) -> tuple[str, ...]:
    width, gaps = result.widths[-1], result.gap(LINEARISED)[-1].max(axis=1)
    if not np.isfinite(gaps).all():
        return (
            f"At width {width:,} and learning rate {result.learning_rate:.3g} training diverged: nothing to compare.",
        )
    gap, drift = gaps.max(), result.drift[-1].max()
    larger = max(gap, drift)
    word = "lazy" if larger <= LAZY else "nearly lazy" if larger <= NEARLY_LAZY else "not lazy, but learns features"
    return (
        f"At width {width:,} and learning rate {result.learning_rate:.3g}, over {result.steps[-1]:,} steps, the "
        f"network is {word}: it strays from its own linearisation by up to {_percent(gap)} of the initial error, and "
        f"its NTK moves by up to {_percent(drift)} (the larger of the two up to {_percent(LAZY)} counts as lazy, up to "
        f"{_percent(NEARLY_LAZY)} as nearly so).",
    )


def _divergence(result: Verification) -> tuple[str, ...]:
    notes = []
    for run in result.diverged:
        bound = min(run.stable_rates.values())
        notes.append(
            f"Width {run.width:,}, seed {run.seed}: diverged at step {run.diverged_at}; descent is stable up to the "
            f"learning rate {bound:.3g} (2N/λ_max), and {result.learning_rate:.3g} was used."
        )
    if not notes and result.learning_rate > result.stable_rate:
        notes.append(
            f"The learning rate {result.learning_rate:.3g} is above {result.stable_rate:.3g} (2N/λ_max), up to which "
            "descent with the limit NTK is stable."
        )
    return tuple(notes)


def _initial(result: Verification) -> str:
    error = result.limit_error[-1].mean()
    text = f"At initialisation the NTK is {_percent(error)} away from the limit at width {result.widths[-1]:,}"
    if result.limit_error_fit is None:
        return text + "."
    slope = _slope(result.limit_error_fit)
    return f"{text}; over widths the distance goes as width to the power {slope}, where theory expects −1/2."


def _drift(result: Verification) -> str:
    drift = result.drift[-1].mean()
    if not np.isfinite(drift):
        return "How far training moves the NTK is not known, since training diverged."
    text = f"Training moves the NTK by {_percent(drift)} at width {result.widths[-1]:,}"
    return text + (
        "." if result.drift_fit is None else f"; over widths as width to the power {_slope(result.drift_fit)}."
    )


def _predicted(result: Verification) -> tuple[str, ...]:
    gaps = result.gap(LIMIT_DESCENT)[-1].max(axis=1)
    if not np.isfinite(gaps).all():
        return ()
    width, inside = result.widths[-1], bool(result.within_band[-1].all())
    text = (
        f"At width {width:,} the network's training outputs {'stay' if inside else 'do not stay'} within the band of "
        f"{_percent(result.band)} around descent with the limit NTK: they stray by up to {_percent(gaps.max())}"
    )
    if result.tested:
        text += f", test outputs by {_percent(result.gap(LIMIT_DESCENT, part='test')[-1].max())}"
    return (text + ".",)


def _discretisation(result: Verification) -> str:
    gap = result.discretisation()[-1].max()
    if not np.isfinite(gap):
        return "Descent with the limit NTK diverges at this learning rate, gradient flow does not."
    return f"Steps of this size differ from gradient flow by {_percent(gap)}."


def _slope(fit: PowerLaw) -> str:
    if not np.isfinite(fit.low):
        slope = f"{fit.slope:.2f}".replace("-", "−")
        return f"{slope} (too few runs for a confidence interval)"
    slope, low, high = (f"{value:.2f}".replace("-", "−") for value in (fit.slope, fit.low, fit.high))
    return f"{slope} (95 % confidence {low} to {high})"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:,.0f} %"
