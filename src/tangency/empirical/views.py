"""Parameters seen through rearrangements: where each entry of a view lies in the parameter itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Factor: TypeAlias = tuple[int, int]
"""A part of an axis: its length, and how far apart its entries lie in the flat parameter."""

Factors: TypeAlias = tuple[Factor, ...]


@dataclass(frozen=True)
class View:
    """A rearrangement of one parameter. Each axis is a product of factors in row-major order.

    `loops` are the enclosing loops, outermost first: the factor of which each step takes one entry, or None where all
    steps share the view. Of a complex parameter `leaf` is the real part and `imaginary` the leaf of the imaginary one.
    """

    leaf: int
    axes: tuple[Factors, ...]
    value: Any
    loops: tuple[Factor | None, ...] = ()
    imaginary: int | None = None

    @property
    def leaves(self) -> frozenset[int]:
        return frozenset((self.leaf,) if self.imaginary is None else (self.leaf, self.imaginary))

    def seen(self, axes: tuple[Factors, ...], value: Any) -> View:
        return replace(self, axes=axes, value=value)


def whole(leaf: int, value: Any) -> View:
    """The parameter itself."""
    axes: list[Factors] = []
    stride = 1
    for length in reversed(value.shape):
        axes.append(((length, stride),) if length != 1 else ())
        stride *= length
    return View(leaf, tuple(reversed(axes)), value)


def reshaped(axes: Sequence[Factors], shape: Sequence[int]) -> tuple[Factors, ...] | None:
    """The axes after a row-major reshape; None if a factor would have to be cut unevenly."""
    factors = [factor for axis in axes for factor in axis]
    result: list[Factors] = []
    for length in shape:
        axis: list[Factor] = []
        needed = length
        while needed > 1:
            size, stride = factors.pop(0)
            if needed % size == 0:
                axis.append((size, stride))
                needed //= size
            elif size % needed == 0:
                axis.append((needed, stride * (size // needed)))
                factors.insert(0, (size // needed, stride))
                needed = 1
            else:
                return None
        result.append(tuple(axis))
    return tuple(result)


def canonical(factors: Sequence[Factor]) -> Factors:
    """The factors from the largest stride to the smallest, neighbours merged: equal for equal sets of entries."""
    merged: list[Factor] = []
    for size, stride in sorted(factors, key=lambda factor: -factor[1]):
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(merged)
