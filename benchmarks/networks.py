"""The networks of the limit benchmark, each for both libraries, and their inputs. Imports neither library."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FEATURES = 784
KINDS = ("nngp", "ntk", "both")
_HE = math.sqrt(2.0)


@dataclass(frozen=True)
class Case:
    """One network: hidden layers (or pre-norm residual blocks) of one activation, with σ_b = 0.1 everywhere."""

    title: str
    activation: str
    depth: int
    w_std: float
    residual: bool = False

    @property
    def peer(self) -> str:
        """The same network in the language of neural_tangents.stax."""
        phi, readout = PEER_ACTIVATIONS[self.activation], "Dense(1, W_std=1.0, b_std=0.1)"
        dense = f"Dense(64, W_std={self.w_std}, b_std=0.1)"
        if not self.residual:
            return "serial(" + f"{dense}, {phi}, " * self.depth + readout + ")"
        branch = f"serial(LayerNorm(eps=1e-5), {dense}, {phi}, Dense(64, W_std=1.0, b_std=0.1))"
        block = f"FanOut(2), parallel(Identity(), {branch}), FanInSum(), "
        return f"serial(Dense(64, W_std=1.0, b_std=0.1), {block * self.depth}LayerNorm(eps=1e-5), {readout})"


PEER_ACTIVATIONS = {
    "relu": "Relu()",
    "erf": "Erf()",
    "gelu": "Gelu()",
    "tanh": "ElementwiseNumerical(numpy.tanh, deg=25)",
}

CASES = {
    "relu-3": Case("ReLU, 3 layers", "relu", 3, _HE),
    "erf-8": Case("erf, 8 layers", "erf", 8, 1.0),
    "gelu-3": Case("exact GELU, 3 layers", "gelu", 3, _HE),
    "tanh-3": Case("tanh, 3 layers (numerical)", "tanh", 3, 1.0),
    "residual-8": Case("pre-norm residual ReLU, 8 blocks", "relu", 8, _HE, residual=True),
    "relu-40": Case("ReLU, 40 layers", "relu", 40, _HE),
}

ROWS = (
    ("relu-3", 1000, "float32"),
    ("relu-3", 1000, "float64"),
    ("relu-3", 2000, "float32"),
    ("relu-3", 2000, "float64"),
    ("erf-8", 1000, "float64"),
    ("gelu-3", 1000, "float64"),
    ("tanh-3", 1000, "float64"),
    ("residual-8", 1000, "float64"),
    ("relu-40", 1000, "float64"),
)


def examples(n: int, dtype: str, folder: str | None) -> np.ndarray:
    """[n, d]: Gaussian numbers with d = 784, or rows of the largest data set of a folder, its columns standardised."""
    if folder is None:
        return np.random.default_rng(0).normal(size=(n, FEATURES)).astype(dtype)
    x = max(_matrices(Path(folder)), key=len, default=None)
    if x is None or len(x) < n:
        raise SystemExit(f"--data {folder}: no .npz file there has an array X of at least {n} rows")
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0))[:, deviation > 0] / deviation[deviation > 0]
    return np.random.default_rng(0).permutation(x)[:n].astype(dtype)


def _matrices(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            if "X" in arrays.files and arrays["X"].ndim == 2:
                yield arrays["X"].astype(np.float64)
