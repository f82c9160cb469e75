"""Rearrangements of signals: splitting, merging, lifting and selecting axes. Selections go straight to the leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..graph.known import Constant, Known
from ..graph.layout import Atom, Axis, Layout, Repeat, Space, Width
from ..graph.signal import (
    CopiesLeaf,
    Factor,
    JointLeaf,
    Leaf,
    MergeLeaf,
    ParameterLeaf,
    Segment,
    SelectLeaf,
    Signal,
    SumLeaf,
    Term,
)
from . import known as kn
from .algebra import positions_only, with_width

if TYPE_CHECKING:
    from .interpreter import Interpreter

KnownMap = Callable[[Known], Known]


def _moved_to_width(coefficient: Known, index: int, size: int) -> Known:
    """A coefficient (*positions, width) with one axis of positions made the last part of the width."""
    if not coefficient.shape:
        return coefficient
    rank = len(coefficient.shape)
    order = (*(axis for axis in range(rank) if axis != index), index)
    moved = kn.transpose(coefficient, order)
    if moved.shape[-2:] == (1, 1):
        return kn.reshape(moved, moved.shape[:-1])
    moved = kn.broadcast(moved, (*moved.shape[:-2], size, moved.shape[-1]))
    return kn.reshape(moved, (*moved.shape[:-2], size * moved.shape[-1]))


@dataclass(frozen=True)
class Shaper:
    """Rearranges segments and signals; leaves it makes are one wherever they are equal."""

    interpreter: Interpreter
    source: str | None

    # Segments

    def map_terms(
        self,
        segment: Segment,
        space: tuple[int, ...],
        on_known: KnownMap,
        on_factor: Callable[[Factor], tuple[Leaf, tuple[int, ...]]],
    ) -> Segment:
        """Rearrange the positions of every part of a segment: its coefficients as arrays over positions, its leaves."""

        def on_parameter(known: Known) -> Known:
            return positions_only(on_known(with_width(known))) if known.shape else known

        terms = []
        for term in segment.terms:
            coefficient = on_known(term.coefficient) if term.coefficient.shape else term.coefficient
            factors = []
            for factor in term.factors:
                parameters = tuple(map(on_parameter, factor.function.parameters))
                factors.append(Factor(replace(factor.function, parameters=parameters), *on_factor(factor)))
            terms.append(Term(coefficient, tuple(factors)))
        return replace(segment, terms=tuple(terms), space=space)

    def lift(self, segment: Segment, axes: tuple[int, ...], space: tuple[int, ...]) -> Segment:
        """The segment over more positions: its axis i becomes axis `axes[i]` of `space`; constant along the others."""
        if axes == tuple(range(len(space))) and segment.space == space:
            return segment

        def on_known(known: Known) -> Known:
            order = sorted(range(len(axes)), key=lambda i: axes[i])
            moved = kn.transpose(known, (*order, len(axes)))
            shape = [1] * len(space) + [known.shape[-1]]
            for own, axis in enumerate(axes):
                shape[axis] = known.shape[own]
            return kn.reshape(moved, tuple(shape))

        return self.map_terms(segment, space, on_known, lambda f: (f.leaf, tuple(axes[own] for own in f.axes)))

    def select(self, segment: Segment, axis: int, index: Known) -> Segment:
        """Positions picked along one axis, which gives way to the axes of `index`."""
        rank = len(index.shape)
        space = (*segment.space[:axis], *index.shape, *segment.space[axis + 1 :])

        def on_known(known: Known) -> Known:
            if known.shape[axis] == 1:
                return kn.reshape(known, (*known.shape[:axis], *(1,) * rank, *known.shape[axis + 1 :]))
            return kn.take(known, axis, index)

        def moved(own: int) -> tuple[int, ...]:
            if own == axis:
                return tuple(range(axis, axis + rank))
            return (own if own < axis else own + rank - 1,)

        def on_factor(factor: Factor) -> tuple[Leaf, tuple[int, ...]]:
            axes = tuple(new for own in factor.axes for new in moved(own))
            if axis not in factor.axes:
                return factor.leaf, axes
            return self.select_leaf(factor.leaf, factor.axes.index(axis), index), axes

        return self.map_terms(segment, space, on_known, on_factor)

    def through(self, leaf: JointLeaf, on_segment: Callable[[Segment], Segment]) -> Leaf:
        """A function of several Gaussians, rearranged by rearranging its operands."""
        return self.interpreter.interned(replace(leaf, operands=tuple(map(on_segment, leaf.operands))))

    def select_leaf(self, leaf: Leaf, axis: int, index: Known) -> Leaf:
        if isinstance(leaf, JointLeaf):
            return self.through(leaf, partial(self.select, axis=axis, index=index))
        if isinstance(index, Constant):
            length = leaf.space[axis]
            if index.shape == (length,) and np.array_equal(index.value, np.arange(length)):
                return leaf
            inner = leaf if isinstance(leaf, SelectLeaf) else None
            if inner and isinstance(inner.index, Constant) and len(inner.index.shape) == 1 and inner.axis == axis:
                index = kn.constant(inner.index.value[np.clip(index.value, 0, length - 1)])
                return self.select_leaf(inner.leaf, axis, index)
        return self.interpreter.interned(SelectLeaf(leaf, axis, index, source=self.source))

    def merge(self, segment: Segment, axes: tuple[int, ...]) -> Segment:
        """Several axes of positions, in that order, made into one, which comes last."""
        rest = [axis for axis in range(len(segment.space)) if axis not in axes]
        lengths = tuple(segment.space[axis] for axis in axes)
        space = (*(segment.space[axis] for axis in rest), prod(lengths))

        def on_known(known: Known) -> Known:
            moved = kn.transpose(known, (*rest, *axes, len(segment.space)))
            kept, width = [known.shape[axis] for axis in rest], known.shape[-1]
            if all(known.shape[axis] == 1 for axis in axes):
                return kn.reshape(moved, (*kept, 1, width))
            return kn.reshape(kn.broadcast(moved, (*kept, *lengths, width)), (*kept, prod(lengths), width))

        def on_factor(factor: Factor) -> tuple[Leaf, tuple[int, ...]]:
            own = [(axis, factor.axes.index(axis)) for axis in axes if axis in factor.axes]
            kept = tuple(rest.index(axis) for axis in factor.axes if axis in rest)
            if not own:
                return factor.leaf, kept
            leaf = self.merge_leaf(factor.leaf, tuple(place for _, place in own))
            if len(own) < len(axes):
                # The leaf runs along some of the axes only: each of its positions is repeated.
                grid = np.arange(prod(lengths)).reshape(lengths)
                there = np.unravel_index(grid.reshape(-1), lengths)
                which = [there[axes.index(axis)] for axis, _ in own]
                index = np.ravel_multi_index(which, tuple(segment.space[axis] for axis, _ in own))
                leaf = self.select_leaf(leaf, len(leaf.space) - 1, kn.constant(index))
            return leaf, (*kept, len(space) - 1)

        return self.map_terms(segment, space, on_known, on_factor)

    def merge_leaf(self, leaf: Leaf, axes: tuple[int, ...]) -> Leaf:
        if isinstance(leaf, JointLeaf):
            return self.through(leaf, partial(self.merge, axes=axes))
        return self.interpreter.interned(MergeLeaf(leaf, axes, source=self.source))

    def copies(self, segment: Segment, parts: tuple[int, ...], which: int) -> Segment:
        """A part of the width turned into a new last axis of positions, over which the law is independent."""
        length = parts[which]
        space = (*segment.space, length)

        def on_known(known: Known) -> Known:
            shape = known.shape[:-1]
            if known.shape[-1] == 1:
                return kn.reshape(known, (*shape, 1, 1))
            split = kn.reshape(known, (*shape, *parts))
            rank = len(shape)
            order = (*range(rank), rank + which, *(rank + i for i in range(len(parts)) if i != which))
            return kn.reshape(kn.transpose(split, order), (*shape, length, known.shape[-1] // length))

        def on_factor(factor: Factor) -> tuple[Leaf, tuple[int, ...]]:
            leaf = factor.leaf
            if isinstance(leaf, JointLeaf):
                copied = self.through(leaf, partial(self.copies, parts=parts, which=which))
            else:
                copied = self.interpreter.interned(CopiesLeaf(leaf, length, source=self.source))
            return copied, (*factor.axes, len(space) - 1)

        return replace(self.map_terms(segment, space, on_known, on_factor), size=segment.size // length)

    # Signals

    def rearranged(self, signal: Signal, axes: Sequence[Axis], on_segment: Callable[[Segment], Segment]) -> Signal:
        return Signal(Layout(tuple(axes)), tuple(on_segment(segment) for segment in signal.segments))

    def split_axis(self, signal: Signal, axis: int, lengths: Sequence[int]) -> Signal:
        """Split the atoms of one array axis so that they have these lengths, which refine them."""
        remaining = [n for n in lengths if n != 1]
        pieces: list[tuple[int, ...]] = []
        for atom in signal.layout.axes[axis]:
            taken: list[int] = []
            while prod(taken) < atom.length:
                taken.append(remaining.pop(0))
            pieces.append(tuple(taken))
        for position in reversed(range(len(pieces))):
            if len(pieces[position]) > 1:
                signal = self._split_atom(signal, axis, position, pieces[position])
        return signal

    def _split_atom(self, signal: Signal, axis: int, position: int, lengths: tuple[int, ...]) -> Signal:
        atom = signal.layout.axes[axis][position]
        count = len(lengths)

        def renumbered(other: Atom) -> Atom:
            if isinstance(other, Repeat) or isinstance(atom, Repeat) or type(other) is not type(atom):
                return other
            return replace(other, index=other.index + count - 1) if other.index > atom.index else other

        new: list[Atom] = []
        for i, length in enumerate(lengths):
            new.append(Repeat(length) if isinstance(atom, Repeat) else type(atom)(atom.index + i, length))
        axes = [
            tuple(
                piece
                for place, other in enumerate(row)
                for piece in (new if (i, place) == (axis, position) else [renumbered(other)])
            )
            for i, row in enumerate(signal.layout.axes)
        ]
        if not isinstance(atom, Space):
            return self.rearranged(signal, axes, lambda segment: segment)
        index = kn.constant(np.arange(atom.length).reshape(lengths))
        return self.rearranged(signal, axes, lambda segment: self.select(segment, atom.index, index))

    def spread(self, signal: Signal, axis: int, position: int) -> Signal:
        """Turn a repetition or a part of the width on an array axis into positions, the last ones."""
        atom = signal.layout.axes[axis][position]
        new = Space(len(signal.layout.space), atom.length)
        on_segment: Callable[[Segment], Segment]
        if isinstance(atom, Width):
            parts = signal.layout.parts
            if len(signal.segments) > 1:
                raise self.interpreter.refusal(
                    "it uses concatenated features as positions",
                    "Put a dense layer after the concatenation",
                    self.source,
                )
            on_segment = partial(self.copies, parts=parts, which=atom.index)
        elif isinstance(atom, Repeat):
            space = (*signal.layout.space, atom.length)
            axes = tuple(range(len(space) - 1))
            on_segment = partial(self.lift, axes=axes, space=space)
        else:
            return signal

        def replaced(i: int, place: int, other: Atom) -> Atom:
            if (i, place) == (axis, position):
                return new
            if isinstance(atom, Width) and isinstance(other, Width) and other.index > atom.index:
                return replace(other, index=other.index - 1)
            return other

        rows = [tuple(replaced(i, p, o) for p, o in enumerate(row)) for i, row in enumerate(signal.layout.axes)]
        return self.rearranged(signal, rows, on_segment)

    def as_width(self, signal: Signal, axis: int, position: int) -> Signal | None:
        """Turn positions along which only parameters and coefficients vary into a last part of the width.

        Known values times parameters, as a norm's own scale times its reciprocal deviation, have no width until they
        meet a signal that has one. None if some other leaf runs along these positions.
        """
        atom = signal.layout.axes[axis][position]
        if not isinstance(atom, Space) or len(signal.segments) != 1:
            return None
        index, length = atom.index, atom.length
        (segment,) = signal.segments
        space = (*segment.space[:index], *segment.space[index + 1 :])
        terms = []
        for term in segment.terms:
            factors = []
            for factor in term.factors:
                moved = self._along_width(factor, index)
                if moved is None:
                    return None
                factors.append(moved)
            terms.append(Term(_moved_to_width(term.coefficient, index, segment.size), tuple(factors)))
        new = Width(len(signal.layout.parts), length)

        def replaced(i: int, place: int, other: Atom) -> Atom:
            if (i, place) == (axis, position):
                return new
            if isinstance(other, Space) and other.index > index:
                return replace(other, index=other.index - 1)
            return other

        rows = [tuple(replaced(i, p, o) for p, o in enumerate(row)) for i, row in enumerate(signal.layout.axes)]
        return Signal(Layout(tuple(rows)), (Segment(segment.size * length, tuple(terms), space),))

    def _along_width(self, factor: Factor, index: int) -> Factor | None:
        """A factor after an axis of positions has become a part of the width."""
        function, leaf = factor.function, factor.leaf
        if any(known.shape and known.shape[index] != 1 for known in function.parameters):
            return None
        parameters = tuple(
            kn.reshape(known, (*known.shape[:index], *known.shape[index + 1 :])) if known.shape else known
            for known in function.parameters
        )
        if index not in factor.axes:
            return None
        leaf = self._leaf_along_width(leaf, factor.axes.index(index))
        axes = tuple(axis - (axis > index) for axis in factor.axes if axis != index)
        return None if leaf is None else Factor(replace(function, parameters=parameters), leaf, axes)

    def _leaf_along_width(self, leaf: Leaf, axis: int) -> Leaf | None:
        match leaf:
            case ParameterLeaf():
                positions = (*leaf.positions[:axis], *leaf.positions[axis + 1 :])
                return self.interpreter.interned(replace(leaf, positions=positions))
            case SelectLeaf() if not leaf.axis <= axis < leaf.axis + len(leaf.index.shape):
                before = axis < leaf.axis
                inner = self._leaf_along_width(leaf.leaf, axis if before else axis - len(leaf.index.shape) + 1)
                moved = replace(leaf, leaf=inner or leaf.leaf, axis=leaf.axis - before)
                return None if inner is None else self.interpreter.interned(moved)
            case SumLeaf():
                terms = []
                for term in leaf.segment.terms:
                    factors = [self._along_width(factor, axis) for factor in term.factors]
                    coefficient = _moved_to_width(term.coefficient, axis, 1)
                    if any(factor is None for factor in factors) or Term(coefficient).varies:
                        return None
                    terms.append(Term(coefficient, tuple(factor for factor in factors if factor is not None)))
                lengths = leaf.segment.space
                size = leaf.segment.size * lengths[axis]
                segment = Segment(size, tuple(terms), (*lengths[:axis], *lengths[axis + 1 :]))
                return self.interpreter.interned(replace(leaf, segment=segment))
        return None

    def as_positions(self, signal: Signal, axis: int) -> tuple[Signal, int]:
        """Make one array axis a single axis of positions; its index."""
        for position, atom in enumerate(signal.layout.axes[axis]):
            if not isinstance(atom, Space):
                signal = self.spread(signal, axis, position)
        atoms = signal.layout.axes[axis]
        if not atoms:
            new = Space(len(signal.layout.space), 1)
            rows = [(new,) if i == axis else row for i, row in enumerate(signal.layout.axes)]
            space = (*signal.layout.space, 1)
            own = tuple(range(len(space) - 1))
            return self.rearranged(signal, rows, lambda segment: self.lift(segment, own, space)), new.index
        if len(atoms) == 1:
            assert isinstance(atoms[0], Space)
            return signal, atoms[0].index
        indices = tuple(atom.index for atom in atoms if isinstance(atom, Space))
        rest = [i for i in range(len(signal.layout.space)) if i not in indices]
        last = Space(len(rest), prod(atom.length for atom in atoms))

        def replaced(other: Atom) -> Atom:
            return Space(rest.index(other.index), other.length) if isinstance(other, Space) else other

        rows = [
            (last,) if i == axis else tuple(replaced(other) for other in row)
            for i, row in enumerate(signal.layout.axes)
        ]
        return self.rearranged(signal, rows, lambda segment: self.merge(segment, indices)), last.index

    def with_axis(self, signal: Signal, axis: int, length: int) -> Layout:
        """The layout in which the single axis of positions on an array axis has another length (1: it stays one)."""
        rows = []
        for i, row in enumerate(signal.layout.axes):
            rows.append(tuple(replace(atom, length=length) for atom in row) if i == axis else row)
        return Layout(tuple(rows))

    def take(self, signal: Signal, axis: int, index: Known) -> Signal:
        """Entries along one array axis by a vector of Known indices, which are clipped to the axis."""
        if all(isinstance(atom, Repeat) for atom in signal.layout.axes[axis]) and signal.layout.axes[axis]:
            rows = list(signal.layout.axes)
            rows[axis] = (Repeat(index.shape[0]),)
            return self.rearranged(signal, rows, lambda segment: segment)
        signal, space = self.as_positions(signal, axis)
        segments = tuple(self.select(segment, space, index) for segment in signal.segments)
        return self.tidy(Signal(self.with_axis(signal, axis, index.shape[0]), segments))

    def tidy(self, signal: Signal) -> Signal:
        """Drop axes of positions of length one."""
        for index, length in enumerate(signal.layout.space):
            if length == 1:
                return self.tidy(self._dropped(signal, index))
        return signal

    def _dropped(self, signal: Signal, index: int) -> Signal:
        def replaced(row: Axis) -> Axis:
            kept = [a for a in row if not (isinstance(a, Space) and a.index == index)]
            return tuple(replace(a, index=a.index - 1) if isinstance(a, Space) and a.index > index else a for a in kept)

        first = kn.constant(np.zeros((), np.int64))
        rows = [replaced(row) for row in signal.layout.axes]
        return self.rearranged(signal, rows, lambda segment: self.select(segment, index, first))
