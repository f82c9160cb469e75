"""What an array of the traced program can be: Known, a Signal, a view of one parameter, or opaque."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..graph.known import Known
from ..graph.layout import prefix_products
from ..graph.signal import ParameterStatistics, Signal

Label: TypeAlias = "int | tuple[Label, int, int]"
"""An axis of a parameter, or the piece of one between two cumulative products of the lengths it was cut into."""


@dataclass(frozen=True, eq=False)
class ParameterView:
    """scale · parameter + (mean − scale · mean of the parameter), rearranged; entries stay independent.

    `axes[i]` are the parameter's own axes that axis i of the view runs along, by number, or the pieces that a reshape
    has cut one into; none for an axis along which entries repeat. `mean` is the view's mean, an array of the view's
    shape. A `stopped` view passes no gradient on.
    """

    parameter: ParameterStatistics
    shape: tuple[int, ...]
    axes: tuple[frozenset[Label], ...]
    mean: np.ndarray
    scale: float = 1.0
    stopped: bool = False

    @property
    def own_axes(self) -> tuple[int, ...]:
        """The axes of more than one entry along which the entries differ."""
        return tuple(axis for axis, length in enumerate(self.shape) if length != 1 and self.axes[axis])

    def times(self, number: float) -> ParameterView:
        return replace(self, scale=self.scale * number, mean=self.mean * number)

    def reshaped(self, shape: Sequence[int]) -> ParameterView:
        """The same entries in row-major order. An axis comes from all axes that its entries run over."""
        before, after = prefix_products(self.shape), prefix_products(shape)
        axes = []
        for axis, length in enumerate(shape):
            start, stop = after[axis] // max(length, 1), after[axis]
            covered = [a for a, n in enumerate(self.shape) if n > 1 and before[a] > start and before[a] // n < stop]
            labels = frozenset[Label]()
            for a in covered if length != 1 else ():
                first, last = max(start, before[a] // self.shape[a]), min(stop, before[a])
                whole = last // first == self.shape[a]
                part = first * self.shape[a] // before[a], last * self.shape[a] // before[a]
                labels |= self.axes[a] if whole else frozenset((own, *part) for own in self.axes[a])
            axes.append(labels)
        return replace(self, shape=tuple(shape), axes=tuple(axes), mean=self.mean.reshape(tuple(shape)))

    def transposed(self, permutation: Sequence[int]) -> ParameterView:
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in permutation),
            axes=tuple(self.axes[axis] for axis in permutation),
            mean=self.mean.transpose(tuple(permutation)),
        )

    def repeated(self, shape: Sequence[int], dimensions: Sequence[int]) -> ParameterView:
        """Entries repeated along new axes, as `broadcast_in_dim` does."""
        axes = [frozenset[Label]()] * len(shape)
        inner = [1] * len(shape)
        for own, axis in enumerate(dimensions):
            axes[axis] = self.axes[own] if self.shape[own] != 1 else frozenset()
            inner[axis] = self.shape[own]
        mean = np.broadcast_to(self.mean.reshape(inner), tuple(shape))
        return replace(self, shape=tuple(shape), axes=tuple(axes), mean=mean)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that no rule may look at, such as a random key."""

    what: str


Value: TypeAlias = Known | Signal | ParameterView | Opaque
