"""What an array of the traced program can be: Known, a Signal, a view of one parameter, or opaque."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..graph.known import Known
from ..graph.signal import ParameterStatistics, Segment, Signal, Term
from . import known as kn


@dataclass(frozen=True, eq=False)
class ParameterView:
    """scale · parameter + (mean − scale · mean of the parameter), reshaped; entries stay independent.

    `axes[i]` is the parameter's own axis that axis i of the view runs along; None for an axis of length one.
    `mean` is the view's mean, an array of the view's shape.
    """

    parameter: ParameterStatistics
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    mean: np.ndarray
    scale: float = 1.0

    @property
    def long_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, length in enumerate(self.shape) if length != 1)

    def times(self, number: float) -> ParameterView:
        return replace(self, scale=self.scale * number, mean=self.mean * number)

    def reshaped(self, shape: Sequence[int]) -> ParameterView | None:
        """The view with axes of length one inserted or removed; None if entries would be regrouped."""
        if [length for length in shape if length != 1] != [self.shape[axis] for axis in self.long_axes]:
            return None
        remaining = iter([self.axes[axis] for axis in self.long_axes])
        axes = tuple(next(remaining) if length != 1 else None for length in shape)
        if tuple(shape) == self.shape:
            axes = self.axes
        return replace(self, shape=tuple(shape), axes=axes, mean=self.mean.reshape(tuple(shape)))

    def transposed(self, permutation: Sequence[int]) -> ParameterView:
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in permutation),
            axes=tuple(self.axes[axis] for axis in permutation),
            mean=self.mean.transpose(tuple(permutation)),
        )


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that no rule may look at, such as a random key."""

    what: str


Value: TypeAlias = Known | Signal | ParameterView | Opaque


def known_segment(known: Known, size: int) -> Segment:
    """A Known array along a width, as a signal without randomness. Shape () or any shape with `size` entries or one."""
    entries = int(np.prod(known.shape, dtype=int))
    if entries == 1:
        return Segment(size, (Term(kn.reshape(known, ())),))
    return Segment(size, (Term(kn.reshape(known, (size,))),))


def width_axis(value: Signal | ParameterView) -> int | None:
    if isinstance(value, Signal):
        return value.width
    return value.long_axes[0] if value.long_axes else None
