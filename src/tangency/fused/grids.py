"""Positions of a graph's signals as rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..graph.signal import (
    CarryLeaf,
    CopiesLeaf,
    EmbeddingLeaf,
    JointLeaf,
    Leaf,
    LinearLeaf,
    MergeLeaf,
    Segment,
    SelectLeaf,
    StopLeaf,
    SumLeaf,
    WeightLeaf,
)
from .program import NotFusedError, Space

REARRANGED = "a signal whose axes are rearranged"
MANY = "more than two axes of positions"

T = TypeVar("T")

_KINDS: dict[type[Leaf], str] = {
    EmbeddingLeaf: "an embedding",
    MergeLeaf: "axes of positions that are merged",
    CopiesLeaf: "pieces of the width that are used as positions",
    CarryLeaf: "a loop over steps",
    JointLeaf: "a function of several signals",
}


def described(leaf: Leaf) -> str:
    """What a leaf is, for a refusal."""
    return _KINDS.get(type(leaf), "what one of its layers does")


def arranged(axes: Sequence[int], values: Sequence[T], missing: T) -> tuple[T, ...]:
    """Values along rows and columns, given the axes that they are along; () without any."""
    along = dict(zip(axes, values, strict=True))
    return tuple(along.get(axis, missing) for axis in (0, 1)) if along else ()


@dataclass
class Grids:
    """Along which axis of the grid, rows 0 or columns 1, each axis of a signal's positions lies.

    The tracer drops axes of length 1, which leaves the other where it was, and adds them again where a layer needs it.
    """

    known: dict[Leaf, tuple[int, ...]] = field(default_factory=dict)

    def of(self, signal: Leaf | Segment) -> Space:
        """The grid of a signal's positions; () if it has none."""
        return arranged(self.axes(signal), signal.space, 1)

    def axes(self, signal: Leaf | Segment) -> tuple[int, ...]:
        """The axis of each of a signal's.

        Raises:
            NotFusedError: there are more than two, or they are not the same for all that is added up.
        """
        if isinstance(signal, Segment):
            return self.kept(signal, ())
        if not signal.space:
            return ()
        if signal not in self.known:
            self.known[signal] = self._axes(signal)
        return self.known[signal]

    def ordered(self, segment: Segment, dropped: tuple[int, ...] = ()) -> bool:
        """Whether rows come before columns, as in arrays over the segment's positions."""
        axes = self.kept(segment, dropped)
        return axes == tuple(sorted(axes))

    def kept(self, segment: Segment, dropped: tuple[int, ...]) -> tuple[int, ...]:
        """The same without some of the segment's axes."""
        found: dict[int, int] = {}
        for factor in (factor for term in segment.terms for factor in term.factors):
            for own, axis in zip(factor.axes, self.axes(factor.leaf), strict=True):
                if found.setdefault(own, axis) != axis:
                    raise NotFusedError(REARRANGED)
        if not found:
            return _usual(len(segment.space) - len(dropped))
        free = iter(axis for axis in _usual(2) if axis not in found.values())
        for own in range(len(segment.space)):
            if own not in found:
                axis = next(free, None)
                if axis is None:
                    raise NotFusedError(MANY)
                found[own] = axis
        return tuple(found[own] for own in range(len(segment.space)) if own not in dropped)

    def _axes(self, leaf: Leaf) -> tuple[int, ...]:
        match leaf:
            case SelectLeaf() if not leaf.index.shape:
                return _without(self.axes(leaf.leaf), (leaf.axis,))
            case StopLeaf():
                return self.axes(leaf.leaf)
            case SumLeaf():
                return self.axes(leaf.segment)
            case LinearLeaf():
                summed = leaf.window is None and leaf.matrix is None
                return _without(self.axes(leaf.segment), (leaf.axis,) if summed else ())
            case WeightLeaf():
                return _only({self.kept(segment, leaf.contracted) for segment in leaf.input})
        return _usual(len(leaf.space))


def _only(found: set[tuple[int, ...]]) -> tuple[int, ...]:
    if len(found) > 1:
        raise NotFusedError(REARRANGED)
    return found.pop()


def _usual(count: int) -> tuple[int, ...]:
    if count > 2:
        raise NotFusedError(MANY)
    return (0, 1)[2 - count :]


def _without(axes: tuple[int, ...], dropped: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for place, axis in enumerate(axes) if place not in dropped)
