"""One-sided quantities: what the caller hands over for a set of examples, and what is found of each before pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Inputs:
    """What the caller evaluates for a set of examples.

    Attributes:
        arrays: for each Known array that inner products read, [n, positions, width].
        quantities: for each one-sided Known quantity, [n, positions].
    """

    arrays: tuple[np.ndarray, ...]
    quantities: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        return len(self.arrays[0])

    def rows(self, start: int, stop: int) -> Inputs:
        return Inputs(tuple(a[start:stop] for a in self.arrays), tuple(q[start:stop] for q in self.quantities))


@dataclass
class Sided:
    """A block of examples with their one-sided quantities: of each example, and of groups of them across the lanes.

    `rows` and `coefficients` are those of the series; `variances` the smallest, other than 0, and the largest of each
    field that has one.
    """

    count: int
    guarded: bool
    padded: Inputs
    left: np.ndarray
    right: np.ndarray
    inputs: np.ndarray
    lanes_of: np.ndarray
    rows: np.ndarray
    coefficients: np.ndarray
    roots: np.ndarray
    variances: dict[int, tuple[float, float]]

    @property
    def smallest_root(self) -> float:
        return float(self.roots.min())

    @property
    def smallest_positive_root(self) -> float:
        return float(np.min(self.roots, where=self.roots > 0, initial=np.inf))


LINE = 64
"""Bytes of a line of the cache."""


def aligned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that start where a line of the cache does, so that no vector of them lies across two lines."""
    size, word = int(np.prod(shape)), np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE // word, dtype)
    start = -memory.ctypes.data % LINE // word
    return memory[start : start + size].reshape(shape)


def by_example(lanes_last: np.ndarray, lanes: int) -> np.ndarray:
    """[groups, numbers · lanes] as [examples, numbers]."""
    groups = len(lanes_last)
    by_lane = lanes_last.reshape(groups, -1, lanes).swapaxes(1, 2)
    return np.ascontiguousarray(by_lane).reshape(groups * lanes, -1)


def positive_range(variances: np.ndarray) -> tuple[float, float]:
    positive = variances[variances != 0.0]
    return (float(positive.min()), float(positive.max())) if positive.size else (np.inf, 0.0)


def padded_to(x: Inputs, lanes: int) -> Inputs:
    """As many examples as fill the lanes; the last one is repeated."""
    missing = -x.count % lanes

    def longer(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) if missing else np.ascontiguousarray(a)

    return Inputs(tuple(map(longer, x.arrays)), tuple(map(longer, x.quantities)))


def own_products(x: Inputs, left: int, right: int) -> np.ndarray:
    return np.einsum("npw,npw->n", x.arrays[left], x.arrays[right])


def equal_examples(left: Sided, right: Sided) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers by which equal examples of two blocks know each other, None if there are none.

    A matrix product may round the products of equal rows in two ways, and where a kernel has a square root of 1 - c²
    that is no small difference.
    """
    a, b = left.inputs[0, : left.count], right.inputs[0, : right.count]
    if left is right:
        _, inverse, counts = np.unique(a, return_inverse=True, return_counts=True)
        rows = columns = np.flatnonzero(counts[inverse] > 1)
    else:
        rows, columns = np.flatnonzero(np.isin(a, b)), np.flatnonzero(np.isin(b, a))
    if not len(rows):
        return None
    known: dict[bytes, int] = {}
    found = np.full(left.count, -1), np.full(right.count, -2)
    for names, x, suspects in zip(found, (left.padded, right.padded), (rows, columns), strict=True):
        for i in suspects:
            names[i] = known.setdefault(b"".join(array[i].tobytes() for array in x.arrays), len(known))
    return found
