"""What `tangency.verify` measured, and what follows from it in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float

from ..errors import InputError
from .power_law import PowerLaw

LINEARISED = "linearised network"
EMPIRICAL_DESCENT, EMPIRICAL_FLOW = "descent, empirical NTK", "flow, empirical NTK"
LIMIT_DESCENT, LIMIT_FLOW = "descent, limit NTK", "flow, limit NTK"
PREDICTIONS = (LINEARISED, EMPIRICAL_DESCENT, EMPIRICAL_FLOW, LIMIT_DESCENT, LIMIT_FLOW)

LAZY, NEARLY_LAZY = 0.05, 0.2
"""The verdict says lazy, and nearly lazy, up to these of the gap to the linearisation and the drift of the NTK."""

_FORMAT, _VERSION = "tangency verification", 1


@dataclass(frozen=True)
class Run:
    """One network trained from its own initial outputs.

    `network` and each of the `predicted` trajectories are outputs `[T, N + M, o]` at the recorded steps, the N
    training examples first, NaN where descent had diverged. `diverged_at` names the step.
    """

    width: int
    seed: int
    network: Float[np.ndarray, "T NM o"]
    predicted: Mapping[str, Float[np.ndarray, "T NM o"]]
    limit_error: float
    """‖Θ_width − Θ‖ / ‖Θ‖ at initialisation, in the Frobenius norm over the training examples."""
    drift: Float[np.ndarray, " T"]
    """‖Θ_t − Θ_0‖ / ‖Θ_0‖ of the network at the recorded steps; NaN where it was not measured."""
    stable_rates: Mapping[str, float]
    """2N/λ_max of each kernel, "empirical" and "limit"."""
    diverged_at: int | None


@dataclass(frozen=True)
class Verification:
    """The result of `tangency.verify`: numbers in float64, nothing drawn.

    Distances between functions are relative: |f − g| / |y − f_0|, in root mean square over training (or test) examples
    and outputs, with f_0 the network's own start and y the targets. Over test examples the denominator is the same.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: np.ndarray
    """Recorded steps, `[T]`."""
    learning_rate: float
    stable_rate: float
    """2N/λ_max of the limit NTK at the largest width."""
    y: np.ndarray
    """Targets, `[N, o]`."""
    runs: tuple[tuple[Run, ...], ...]
    """By width, then by seed."""
    band: float
    remarks: tuple[str, ...]
    """What the derivation of the limit remarked on, such as weights that are not Gaussian."""
    recursion: str
    graph: str
    latex: str
    """The limit at the largest width: its recursion as text and LaTeX, and its graph."""

    @property
    def limit_error(self) -> Float[np.ndarray, "W S"]:
        """Relative error of the NTK at initialisation against the limit."""
        return np.array([[run.limit_error for run in runs] for runs in self.runs])

    @property
    def drift(self) -> Float[np.ndarray, "W S"]:
        """Relative change of the NTK from the first step to the last."""
        return np.array([[run.drift[-1] for run in runs] for runs in self.runs])

    @cached_property
    def limit_error_fit(self) -> PowerLaw | None:
        """The power law of `limit_error` in the width: a slope of −1/2 is expected."""
        return PowerLaw.fit(np.array(self.widths), self.limit_error)

    @cached_property
    def drift_fit(self) -> PowerLaw | None:
        """The power law of `drift` in the width."""
        return PowerLaw.fit(np.array(self.widths), self.drift)

    def gap(self, prediction: str, *, part: str = "train") -> Float[np.ndarray, "W S T"]:
        """Distance of each network from a prediction, one of `PREDICTIONS`, at the recorded steps.

        `part` is "train" or "test". Raises InputError on an unknown name.
        """
        self._check(prediction, part)
        return np.array(
            [[self._distance(run.network, run.predicted[prediction], run, part) for run in r] for r in self.runs]
        )

    def discretisation(self, kernel: str = "limit") -> Float[np.ndarray, "W S T"]:
        """Distance on the training examples between descent and flow with one kernel, "limit" or "empirical"."""
        pairs = {"limit": (LIMIT_DESCENT, LIMIT_FLOW), "empirical": (EMPIRICAL_DESCENT, EMPIRICAL_FLOW)}
        if kernel not in pairs:
            raise InputError(f'kernel: expected "limit" or "empirical", got {kernel!r}')
        descent, flow = pairs[kernel]
        return np.array(
            [
                [self._distance(run.predicted[descent], run.predicted[flow], run, "train") for run in r]
                for r in self.runs
            ]
        )

    def error(self, trajectory: str | None, *, width: int, seed: int) -> Float[np.ndarray, " T"]:
        """Root mean square of f_t − y over training examples and outputs; `None` is the network itself."""
        run = self.run(width, seed)
        outputs = run.network if trajectory is None else run.predicted[trajectory]
        return _rms(outputs[:, : len(self.y)] - self.y)

    def run(self, width: int, seed: int) -> Run:
        """Raises InputError if there is none of that width and seed."""
        if width not in self.widths or seed not in self.seeds:
            raise InputError(f"there is no run of width {width} and seed {seed}")
        return self.runs[self.widths.index(width)][self.seeds.index(seed)]

    @property
    def within_band(self) -> Bool[np.ndarray, "W S"]:
        """Whether each network's training outputs stay within `band` of the limit's descent at all steps, `[W, S]`."""
        with np.errstate(invalid="ignore"):
            return np.all(self.gap(LIMIT_DESCENT) <= self.band, axis=2)

    @property
    def diverged(self) -> tuple[Run, ...]:
        """The networks whose training diverged."""
        return tuple(run for runs in self.runs for run in runs if run.diverged_at is not None)

    def verdict(self) -> tuple[str, ...]:
        """What the numbers say, a sentence each."""
        from .verdict import sentences  # It reads this class.

        return sentences(self)

    def to_dict(self) -> dict[str, Any]:
        """Every number but the trajectories, as plain data for JSON; what is not finite becomes None."""
        fits = {"limit_error": self.limit_error_fit, "drift": self.drift_fit}
        return {
            "format": _FORMAT,
            "format_version": _VERSION,
            "widths": list(self.widths),
            "seeds": list(self.seeds),
            "examples": len(self.y),
            "outputs": self.y.shape[1],
            "steps": self.steps.tolist(),
            "learning_rate": self.learning_rate,
            "stable_rate": _finite(self.stable_rate),
            "limit_error": _plain(self.limit_error),
            "drift": _plain(self.drift),
            "fits": {
                name: None if fit is None else {"slope": fit.slope, "low": _finite(fit.low), "high": _finite(fit.high)}
                for name, fit in fits.items()
            },
            "largest_gap": {name: _plain(self.gap(name).max(axis=2)) for name in PREDICTIONS},
            "largest_gap_on_test": {name: _plain(self.gap(name, part="test").max(axis=2)) for name in PREDICTIONS}
            if self.tested
            else None,
            "discretisation": _plain(self.discretisation().max(axis=2)),
            "band": self.band,
            "within_band": self.within_band.tolist(),
            "diverged_at": [[run.diverged_at for run in runs] for runs in self.runs],
            "remarks": list(self.remarks),
            "verdict": list(self.verdict()),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """All trajectories: the network's `[W, S, T, N + M, o]`, and each prediction's under its name."""
        found = {"steps": self.steps, "y": self.y, "drift": np.array([[run.drift for run in r] for r in self.runs])}
        found["network"] = np.array([[run.network for run in runs] for runs in self.runs])
        for name in PREDICTIONS:
            found[name] = np.array([[run.predicted[name] for run in runs] for runs in self.runs])
        return found

    def save(self, path: str | Path | BinaryIO) -> None:
        """One `.npz` file, without pickle: `arrays()`, and `to_dict()` as JSON text in the array `summary`."""
        summary = np.array(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False))
        np.savez_compressed(path, allow_pickle=False, summary=summary, **self.arrays())

    @property
    def tested(self) -> bool:
        """Whether there are test examples."""
        return self.runs[0][0].network.shape[1] > len(self.y)

    def _check(self, prediction: str, part: str) -> None:
        if prediction not in PREDICTIONS:
            raise InputError(f"prediction: expected one of {', '.join(PREDICTIONS)}; got {prediction!r}")
        if part not in ("train", "test"):
            raise InputError(f'part: expected "train" or "test", got {part!r}')
        if part == "test" and not self.tested:
            raise InputError("part: there are no test examples; give x_test to verify")

    def _distance(self, f: np.ndarray, g: np.ndarray, run: Run, part: str) -> np.ndarray:
        n = len(self.y)
        rows = slice(n) if part == "train" else slice(n, None)
        start = _rms(run.network[:1, :n] - self.y)
        with np.errstate(invalid="ignore", over="ignore"):
            return _rms(f[:, rows] - g[:, rows]) / np.where(start > 0, start, 1.0)


def _rms(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.mean(values**2, axis=(1, 2)))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain(values: np.ndarray) -> list[list[float | None]]:
    return [[_finite(value) for value in row] for row in values]
