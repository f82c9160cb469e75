"""Functions of several Gaussians, made only where the user asked for a numerical rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..graph.known import Known, Operation
from ..graph.signal import (
    CarryLeaf,
    JointLeaf,
    Leaf,
    LinearLeaf,
    MergeLeaf,
    Segment,
    SelectLeaf,
    StopLeaf,
    Term,
    of_leaf,
)
from . import known as kn
from .shaping import Shaper

if TYPE_CHECKING:
    from .interpreter import Interpreter

LONGEST = 64
"""A sum over more positions than this is not taken apart."""


def joint(
    interpreter: Interpreter, operation: Operation | None, operands: Sequence[Segment], source: str | None
) -> Segment:
    """An elementwise operation on signals (None: their sum), as one leaf.

    Raises:
        UnsupportedModelError: an operand differs from unit to unit along the width, or is made from too many positions.
    """
    if any(term.varies for operand in operands for term in operand.terms):
        raise interpreter.refusal(
            "a function of several Gaussians has an argument that differs from unit to unit along the width",
            "Put a dense layer between the varying array and the function",
            source,
        )
    parts = tuple(_pointwise(interpreter, operand, source) for operand in operands)
    leaf = interpreter.interned(JointLeaf(operation, parts, source=source))
    return replace(operands[0], terms=(of_leaf(leaf),))


def _pointwise(interpreter: Interpreter, segment: Segment, source: str | None) -> Segment:
    """Maps of activations over positions taken apart, so that each place depends on that place alone."""
    terms = []
    for term in segment.terms:
        factors = (replace(f, leaf=_pointwise_leaf(interpreter, f.leaf, source)) for f in term.factors)
        terms.append(Term(term.coefficient, tuple(factors)))
    return replace(segment, terms=tuple(terms))


def _pointwise_leaf(interpreter: Interpreter, leaf: Leaf, source: str | None) -> Leaf:
    if leaf.gaussian or isinstance(leaf, JointLeaf | CarryLeaf):
        return leaf
    shaper = Shaper(interpreter, source)
    match leaf:
        case SelectLeaf():
            return shaper.select_leaf(_pointwise_leaf(interpreter, leaf.leaf, source), leaf.axis, leaf.index)
        case MergeLeaf():
            return shaper.merge_leaf(_pointwise_leaf(interpreter, leaf.leaf, source), leaf.axes)
        case StopLeaf():
            return stopped(_pointwise_leaf(interpreter, leaf.leaf, source), interpreter)
    if not isinstance(leaf, LinearLeaf):
        raise interpreter.refusal(
            "a nonlinear function is applied to activations whose features became positions, or to a depthwise signal",
            "Put a dense layer or a full convolution before it",
            source,
        )
    parts = _parts(shaper, leaf, source)
    sums = joint(interpreter, None, parts, source)
    return sums.terms[0].factors[0].leaf


def _parts(shaper: Shaper, leaf: LinearLeaf, source: str | None) -> list[Segment]:
    """The summands of a linear map, each from one position."""
    interpreter, axis, inside = shaper.interpreter, leaf.axis, leaf.segment
    length = inside.space[axis]
    if leaf.window is None and leaf.matrix is None:
        _check_length(shaper, length)
        return [shaper.select(inside, axis, kn.constant(np.asarray(place))) for place in range(length)]
    if leaf.window is not None:
        window = leaf.window
        _check_length(shaper, window.size)
        if window.base_dilation != 1:
            raise interpreter.refusal(
                "a nonlinear function is applied to a transposed pooling", "Put a dense layer before it", source
            )
        start = np.arange(window.output_length(length)) * window.stride - window.low
        parts = []
        for tap in range(window.size):
            index = start + tap * window.dilation
            part = shaper.select(inside, axis, kn.constant(np.clip(index, 0, length - 1)))
            parts.append(_masked(shaper, part, axis, (index >= 0) & (index < length)))
        return parts
    assert leaf.matrix is not None
    if leaf.batch:
        raise interpreter.refusal(
            "a nonlinear function is applied to activations mixed by a matrix that differs from place to place",
            "Put a dense layer before it",
            source,
        )
    _check_length(shaper, length)
    space = leaf.space
    axes = tuple(a for a in range(len(space)) if a != axis)
    parts = []
    for place in range(length):
        column = kn.cut(leaf.matrix, 1, place, place + 1)
        shape = tuple(space[axis] if a == axis else 1 for a in range(len(space)))
        part = shaper.lift(shaper.select(inside, axis, kn.constant(np.asarray(place))), axes, space)
        parts.append(interpreter.algebra.scale(part, kn.reshape(column, (*shape, 1)), source))
    return parts


def _masked(shaper: Shaper, part: Segment, axis: int, inside: np.ndarray) -> Segment:
    if inside.all():
        return part
    shape = [len(inside) if a == axis else 1 for a in range(len(part.space))]
    mask: Known = kn.constant(inside.astype(np.float64).reshape(*shape, 1))
    return shaper.interpreter.algebra.scale(part, mask, shaper.source)


def _check_length(shaper: Shaper, length: int) -> None:
    if length > LONGEST:
        raise shaper.interpreter.refusal(
            f"a nonlinear function is applied to a sum of activations at {length} positions; at most {LONGEST} are "
            "taken one by one",
            "Put a dense layer before it",
            shaper.source,
        )


def stopped(leaf: Leaf, interpreter: Interpreter) -> Leaf:
    """A leaf without a gradient."""
    if not isinstance(leaf, JointLeaf):
        return interpreter.interned(StopLeaf(leaf, source=leaf.source))
    operands = tuple(stopped_segment(operand, interpreter) for operand in leaf.operands)
    return interpreter.interned(replace(leaf, operands=operands))


def stopped_segment(segment: Segment, interpreter: Interpreter) -> Segment:
    """The same values without a gradient: every leaf is seen through a view that has no tangent."""
    terms = []
    for term in segment.terms:
        factors = tuple(replace(f, leaf=stopped(f.leaf, interpreter)) for f in term.factors)
        terms.append(Term(term.coefficient, factors))
    return replace(segment, terms=tuple(terms))
