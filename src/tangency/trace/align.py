"""Bringing the operands of an elementwise operation to one layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from ..errors import UnsupportedModelError
from ..graph.elementwise import IDENTITY
from ..graph.known import Constant, Known, is_number
from ..graph.layout import Atom, Axis, Layout, Repeat, Space, Width, refine
from ..graph.signal import Factor, ParameterLeaf, Segment, Signal, Term
from . import known as kn
from .constancy import constant_axes, parts_kept, without
from .interpreter import Equation, Interpreter
from .joint import stopped_segment
from .shaping import Shaper
from .values import ParameterView, Value

Parts = tuple[Segment, ...] | Known
"""An operand in the common layout: the parts along its width, or a coefficient (*positions, width)."""


@dataclass(frozen=True)
class Aligned:
    """Operands over one layout. Parts along the width are cut alike."""

    layout: Layout
    operands: tuple[Parts, ...]

    def columns(self, interpreter: Interpreter, equation: Equation) -> list[list[Segment | Known]]:
        """For each stretch of the width the operands there."""
        cuts = sorted(
            {0}.union(*(np.cumsum([s.size for s in o]).tolist() for o in self.operands if isinstance(o, tuple)))
        )
        return [[cut(interpreter, equation, operand, *ends) for operand in self.operands] for ends in pairwise(cuts)]


def align(interpreter: Interpreter, equation: Equation, operands: Sequence[Value], shape: Sequence[int]) -> Aligned:
    """Bring operands, each of `shape` or with axes of length one there, to one layout.

    Raises:
        UnsupportedModelError: some axis is a width for one operand and shared or ordered otherwise for another.
    """
    shaper = Shaper(interpreter, equation.source)
    values = list(operands)
    pieces: list[tuple[int, ...]] = []
    for axis, length in enumerate(shape):
        factorings = [
            [atom.length for atom in value.layout.axes[axis]]
            for value in values
            if isinstance(value, Signal) and value.shape[axis] == length
        ]
        lengths = refine([length], *factorings)
        if lengths is None:
            raise equation.refuse(
                f"an axis of {length} is cut differently in its operands", "Reshape the signals in the same way"
            )
        pieces.append(lengths)
        for i, value in enumerate(values):
            if isinstance(value, Signal) and value.shape[axis] == length:
                values[i] = shaper.split_axis(value, axis, lengths)
    values = _spread_conflicts(shaper, values, pieces)
    layout = _common_layout(equation, values, pieces)
    one_unit = layout.width == 1 and any(_has_units(value) for value in values)
    check_parts(equation, values, layout.width)
    shared = (interpreter, equation, shaper, layout, pieces, one_unit)
    return Aligned(layout, tuple(_operand(value, *shared) for value in values))


def _atom(value: Signal, axis: int, place: int) -> Atom | None:
    atoms = value.layout.axes[axis]
    return atoms[place] if atoms else None


def _spread_conflicts(shaper: Shaper, values: list[Value], pieces: Sequence[tuple[int, ...]]) -> list[Value]:
    """Where one operand has positions and another a width: positions of mere parameters become a width as well; if
    there are others, the width becomes positions."""
    places = [(axis, place) for axis, lengths in enumerate(pieces) for place in range(len(lengths))]

    def kinds(axis: int, place: int) -> set[type]:
        return {type(_atom(value, axis, place)) for value in values if isinstance(value, Signal)}

    clashes = [(axis, place) for axis, place in places if kinds(axis, place) >= {Space, Width}]
    for i, value in enumerate(values):
        if isinstance(value, Signal) and value.layout.width == 1:
            whole: Signal | None = value
            for axis, place in clashes:
                if whole is not None and isinstance(_atom(whole, axis, place), Space):
                    whole = shaper.as_width(whole, axis, place)
            values[i] = value if whole is None else whole
    for axis, place in clashes:
        if kinds(axis, place) >= {Space, Width}:
            for i, value in enumerate(values):
                if isinstance(value, Signal) and isinstance(_atom(value, axis, place), Width):
                    values[i] = shaper.spread(value, axis, place)
    return values


def _common_layout(equation: Equation, values: Sequence[Value], pieces: Sequence[tuple[int, ...]]) -> Layout:
    signals = [value for value in values if isinstance(value, Signal)]
    order: list[tuple[int, int]] = []
    for axis, lengths in enumerate(pieces):
        for place in range(len(lengths)):
            if any(isinstance(_atom(signal, axis, place), Width) for signal in signals):
                order.append((axis, place))
    orders = []
    for signal in signals:
        atoms = [_atom(signal, axis, place) for axis, place in order]
        if any(not isinstance(atom, Width) for atom in atoms) and not all(s.is_known for s in signal.segments):
            if signal.layout.width > 1:
                raise equation.refuse(
                    "it multiplies or adds every feature of one signal and every feature of another",
                    "Contract one of the two first, as in (q kᵀ / d) v instead of q (kᵀ v)",
                )
            raise repeated(equation)
        indices = [atom.index for atom in atoms if isinstance(atom, Width)]
        orders.append(sorted(range(len(indices)), key=lambda k, indices=indices: indices[k]))
    if any(other != orders[0] for other in orders if len(other) == len(order)):
        raise equation.refuse(
            "it combines signals whose features are in different orders", "Transpose the features back first"
        )
    ranks = {order[k]: rank for rank, k in enumerate(orders[0] if orders else ())}
    count = 0
    rows: list[Axis] = []
    for axis, lengths in enumerate(pieces):
        row: list[Atom] = []
        for place, length in enumerate(lengths):
            if (axis, place) in ranks:
                row.append(Width(ranks[axis, place], length))
            elif _all_repeat(values, axis, place):
                row.append(Repeat(length))
            else:
                row.append(Space(count, length))
                count += 1
        rows.append(tuple(row))
    return Layout(tuple(rows))


def _all_repeat(values: Sequence[Value], axis: int, place: int) -> bool:
    """Whether nothing differs along a piece of an axis."""
    for value in values:
        if isinstance(value, Signal):
            if isinstance(_atom(value, axis, place), Space):
                return False
        elif value.shape and value.shape[axis] != 1:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(value, ParameterView) and value.axes[axis]:
                return False
            if isinstance(value, Known) and axis not in constant_axes(value):
                return False
    return True


def repeated(equation: Equation, name: str | None = None) -> UnsupportedModelError:
    what = f"the parameter {name}" if name else "one random number"
    return equation.refuse(
        f"{what} is shared by all units along the width, so its tangent stays random however wide the layer",
        "Use one parameter per unit, or freeze it with trainable=",
    )


def check_parts(equation: Equation, values: Sequence[Value], width: int | None = None) -> None:
    """An average over the units inside each part of a width is the same for all parts: no feature that differs.

    Raises:
        UnsupportedModelError: a weight reads such averages, or they meet signals of as many units (`width`).
    """
    found = frozenset().union(*(parts_kept(value) for value in values if isinstance(value, Known)))
    if found if width is None else width in found:
        raise equation.refuse(
            "it uses averages over a few units each as features, and these would become equal with many units",
            "Use a weight instead of the average, or average over another axis",
        )


def _has_units(value: Value) -> bool:
    """Whether it is a random signal of more than parameters: without a width, it is one unit at all positions."""
    if not isinstance(value, Signal):
        return False
    factors = (f for segment in value.segments for term in segment.terms for f in term.factors)
    return any(not isinstance(factor.leaf, ParameterLeaf) for factor in factors)


def _operand(
    value: Value,
    interpreter: Interpreter,
    equation: Equation,
    shaper: Shaper,
    layout: Layout,
    pieces: Sequence[tuple[int, ...]],
    one_unit: bool,
) -> Parts:
    if isinstance(value, Known):
        return coefficient(value, layout, pieces)
    if isinstance(value, ParameterView):
        return (_parameter_segment(interpreter, equation, value, layout, pieces, one_unit),)
    assert isinstance(value, Signal)
    axes = [0] * len(value.layout.space)
    for axis, row in enumerate(value.layout.axes):
        for place, atom in enumerate(row):
            target = layout.axes[axis][place]
            if isinstance(atom, Space):
                assert isinstance(target, Space)
                axes[atom.index] = target.index
    segments = [shaper.lift(segment, tuple(axes), layout.space) for segment in value.segments]
    if value.layout.width != layout.width:
        segments = [Segment(layout.width, segments[0].terms, layout.space)]
    return tuple(segments)


def coefficient(known: Known, layout: Layout, pieces: Sequence[tuple[int, ...]]) -> Known:
    """A Known array as a coefficient (*positions, width) of a layout whose axes have these pieces."""
    if not known.shape:
        return known
    split: list[int] = []
    atoms: list[Atom | None] = []
    for axis, lengths in enumerate(pieces):
        if known.shape[axis] == 1:
            split += [1] * len(lengths)
        else:
            split += lengths
        atoms += layout.axes[axis] if len(layout.axes[axis]) == len(lengths) else [None] * len(lengths)
    whole = kn.reshape(known, tuple(split))
    if isinstance(whole, Constant) and whole.scalar is not None:
        return kn.constant(whole.scalar)
    whole = without(whole, sorted(constant_axes(whole)))
    if all(length == 1 for length in whole.shape):
        return kn.reshape(whole, ())
    places: dict[tuple[bool, int], int] = {}
    for place, atom in enumerate(atoms):
        if isinstance(atom, Space | Width):
            places[isinstance(atom, Width), atom.index] = place
    widths = [places[key] for key in sorted(places) if key[0]]
    order = [places[key] for key in sorted(places)] + [p for p in range(len(atoms)) if p not in places.values()]
    whole = kn.transpose(whole, order)
    space = whole.shape[: len(layout.space)]
    parts = whole.shape[len(space) : len(space) + len(widths)]
    if any(length != 1 for length in parts):
        whole = kn.broadcast(whole, (*space, *layout.parts, *whole.shape[len(space) + len(widths) :]))
        return kn.reshape(whole, (*space, layout.width))
    return kn.reshape(whole, (*space, 1))


def _parameter_segment(
    interpreter: Interpreter,
    equation: Equation,
    view: ParameterView,
    layout: Layout,
    pieces: Sequence[tuple[int, ...]],
    one_unit: bool,
) -> Segment:
    """Parameters used entry by entry: their mean, and a zero-mean leaf that is one wherever it is used."""
    if not view.own_axes and prod(layout.shape) != 1 and not one_unit:
        raise repeated(equation, view.parameter.name)
    positions: list[Space] = []
    tags: list[tuple[Any, ...]] = []
    for axis, row in enumerate(layout.axes):
        own = axis in view.own_axes
        for atom in row:
            if isinstance(atom, Width) and not own:
                raise repeated(equation, view.parameter.name)
            if isinstance(atom, Space) and own:
                positions.append(atom)
                tags.append((*sorted(view.axes[axis], key=repr), len(row)))
    interpreter.claim(view.parameter, ("entries", *tags), equation.source)
    leaf = interpreter.interned(
        ParameterLeaf(view.parameter, view.scale, tuple(atom.length for atom in positions), source=equation.source)
    )
    terms = [Term(factors=(Factor(IDENTITY, leaf, tuple(atom.index for atom in positions)),))]
    mean = coefficient(kn.constant(view.mean), layout, pieces)
    if not is_number(mean, 0.0):
        terms.append(Term(mean))
    segment = Segment(layout.width, tuple(terms), layout.space)
    return stopped_segment(segment, interpreter) if view.stopped else segment


def known_segment(value: Known, size: int, space: tuple[int, ...]) -> Segment:
    """A coefficient as a part of a signal without randomness."""
    return Segment(size, (Term(value),), space)


def cut(interpreter: Interpreter, equation: Equation, operand: Parts, start: int, stop: int) -> Segment | Known:
    """What an operand is between two places along the width."""
    if isinstance(operand, Known):
        varies = operand.shape and operand.shape[-1] != 1
        return kn.cut(operand, len(operand.shape) - 1, start, stop) if varies else operand
    position = 0
    for segment in operand:
        end = position + segment.size
        if position == start and end == stop:
            return segment
        if position <= start and stop <= end:
            return interpreter.piece_of(segment, start - position, stop - position, equation)
        position = end
    raise AssertionError("cuts do not refine the segments")


def as_signal(interpreter: Interpreter, equation: Equation, value: Value) -> Signal:
    """Any value as a signal; all axes of Known values and of parameters alone are positions."""
    if isinstance(value, Signal):
        return value
    assert isinstance(value, Known | ParameterView)
    shape = value.shape
    aligned = align(interpreter, equation, (value,), shape)
    (operand,) = aligned.operands
    segments = operand if isinstance(operand, tuple) else (known_segment(operand, 1, aligned.layout.space),)
    return Signal(aligned.layout, segments)
