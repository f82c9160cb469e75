"""A fitted infinite network with everything that a prediction needs, and nothing that must be run to load it."""

from dataclasses import dataclass

import numpy as np

from .. import models
from ..dynamics import KernelFlow, kernel_flow
from ..errors import InputError
from ..kernels import Kernel
from ..limit import LimitKernel, limit
from ..types import Inputs, Kind, Progress
from .columns import Column, Task
from .preprocessing import Preprocessing

ENTRIES_AT_ONCE = 4_000_000
"""Kernel entries between new and training rows that are held at a time."""
PROBE_ROWS = 8
PROBE_TOLERANCE = 1e-6


class WatchedKernel(Kernel):
    """A kernel that reports its progress to a callback set from outside, `on_progress`."""

    def __init__(self, kernel: LimitKernel):
        self.kernel = kernel
        self.on_progress: Progress | None = None

    def evaluate(
        self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None
    ) -> np.ndarray:
        return np.asarray(self.kernel.evaluate(kind, x1, x2, progress=progress or self.on_progress))

    def diagonal(self, kind: Kind, x: Inputs) -> np.ndarray:
        return np.asarray(self.kernel.diagonal(kind, x))


def derive_kernel(spec: str, in_size: int, out_size: int) -> LimitKernel:
    """The infinite-width limit of the network that a spec names, on examples of shape `[in_size]`.

    Raises `InputError` when the spec is wrong or the model does not take such an example, and
    `UnsupportedModelError` when it has no known limit.
    """
    return limit(models.make(spec, in_size, out_size), input_shape=(in_size,))


@dataclass(frozen=True)
class FittedModel:
    """The mean is f(x) = Θ(x, X) α, with α the `coefficients`; see `tangency.dynamics` for ridge and time.

    `targets` are what the flow was fitted to: `[n, C]` centred one-hot rows, or the standardised target `[n]`.
    `labels` `[C]` are the classes; a regression has none, and its target is `centre + scale · f`.
    """

    spec: str
    task: Task
    target: str
    columns: tuple[Column, ...]
    preprocessing: Preprocessing
    ridge: float
    time: float | None
    inputs: np.ndarray
    targets: np.ndarray
    coefficients: np.ndarray
    probe: np.ndarray
    labels: np.ndarray | None
    centre: float = 0.0
    scale: float = 1.0

    @property
    def out_size(self) -> int:
        """Outputs of the network."""
        return 1 if self.labels is None else self.labels.size

    def kernel(self) -> WatchedKernel:
        """The kernel, derived anew from the spec. Raises `InputError` if it is no longer the one of the fit."""
        kernel = derive_kernel(self.spec, self.preprocessing.size, self.out_size)
        now = probe(kernel, self.inputs)
        if not np.allclose(now, self.probe, rtol=PROBE_TOLERANCE, atol=0):
            raise InputError(
                f"model {self.spec} no longer gives the kernel that was fitted; restore its code, or fit again"
            )
        return WatchedKernel(kernel)

    def mean(self, kernel: Kernel, x: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Scores `[n, C]` of the classes, or the regression's prediction `[n]` in the target's units."""
        return self.in_units(expand(kernel, x, self.inputs, self.coefficients, progress))

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """From outputs of the network to scores, or to the regression's units."""
        return values if self.labels is not None else self.centre + self.scale * values

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """The class with the largest score along the last axis, or the regression's values as they are."""
        return scores if self.labels is None else self.labels[scores.argmax(axis=-1)]

    def flow(self, kernel: Kernel) -> KernelFlow:
        """The training dynamics, factorised anew; needed for the ensemble's spread and for other times."""
        flow = kernel_flow(kernel, self.inputs, self.targets, ridge=self.ridge)
        # Asked for first, so that everything after goes through it, as it did in the fit, and rounds the same.
        _ = flow.eigen
        return flow

    def std(self, flow: KernelFlow, x: np.ndarray) -> np.ndarray:
        """Spread `[n]` of a regression's ensemble of trained networks, in the target's units."""
        return self.scale * np.sqrt(np.maximum(flow.variance(x, self.time), 0.0))


def expand(
    kernel: Kernel, x: np.ndarray, inputs: np.ndarray, coefficients: np.ndarray, progress: Progress | None = None
) -> np.ndarray:
    """Σ_i Θ(x, inputs_i) coefficients_i, `[n, ...]` from coefficients `[N, ...]`, without the whole `[n, N]` matrix."""
    rows = max(1, ENTRIES_AT_ONCE // inputs.shape[0])
    parts = []
    for start in range(0, x.shape[0], rows):
        parts.append(np.tensordot(np.asarray(kernel(x[start : start + rows], inputs)), coefficients, axes=1))
        if progress is not None:
            progress(min(start + rows, x.shape[0]), x.shape[0])
    return np.concatenate(parts)


def probe(kernel: Kernel, inputs: np.ndarray) -> np.ndarray:
    """The kernel on the first few training rows: a fingerprint of what the model's code computes."""
    return np.asarray(kernel(inputs[:PROBE_ROWS]))
