"""Rules for linear maps over positions: sums, windowed sums, cumulative sums, Known matrices, scatter-add.

A sum over the width is its expectation, by the law of large numbers: Known, with zero tangent. Every other map is one
leaf that applies itself to both sides of a second moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..graph.known import Constant, Known, PendingWidth, WidthSum
from ..graph.layout import Axis, Layout, Space, Width
from ..graph.signal import (
    CarryLeaf,
    EmbeddingLeaf,
    Leaf,
    LinearLeaf,
    ParameterLeaf,
    Segment,
    Signal,
    Term,
    ViewLeaf,
    WeightLeaf,
    of_leaf,
)
from ..graph.space import Window, slide
from . import known as kn
from .algebra import MADE_ADVICE, made_from_parameters
from .align import as_signal
from .constancy import constant_axes
from .interpreter import Equation, Interpreter, rule, width_leaves
from .rules import default
from .shaping import Shaper
from .structure import reshaped
from .values import ParameterView, Value


@dataclass(frozen=True)
class SpaceMap:
    """A linear map on one axis of positions of a coefficient: a sum, windowed sums, or a Known matrix."""

    axis: int
    window: Window | None = None
    batch: tuple[int, ...] | None = None
    name: str = "positions"
    parameters: dict[str, Any] = field(default_factory=dict, compare=False)

    def __call__(self, array: jax.Array, *matrix: jax.Array, dtype: Any) -> jax.Array:
        if self.window is not None:
            return slide(array, (self.axis,), self.window)
        if self.batch is None:
            return jnp.sum(array, axis=self.axis)
        labels = list(range(array.ndim))
        new = array.ndim
        out = [new if label == self.axis else label for label in labels]
        precision = jax.lax.Precision.HIGHEST
        return jnp.einsum(array, labels, matrix[0], [*self.batch, new, self.axis], out, precision=precision)


def mapped(
    interpreter: Interpreter, equation: Equation, segment: Segment, template: LinearLeaf, matrix: Known | None = None
) -> Segment:
    """Apply a linear map on positions to a segment; what does not vary along its axis is taken out of it."""
    axis = template.axis
    space = replace(template, segment=segment).space
    keeps = template.window is not None or matrix is not None

    def kept(known: Known) -> Known:
        if keeps or not known.shape:
            return known
        return kn.reshape(known, (*known.shape[:axis], *known.shape[axis + 1 :]))

    terms: list[Term] = []
    for term in segment.terms:
        inner = [f for f in term.factors if axis in f.axes]
        outer = [f for f in term.factors if axis not in f.axes]
        if any(p.shape and p.shape[axis] != 1 for f in outer for p in f.function.parameters):
            inner, outer = [*inner, *outer], []
        coefficient = term.coefficient
        still = not coefficient.shape or coefficient.shape[axis] == 1
        if not inner:
            coefficient = _known_mapped(coefficient, segment, template, matrix)
            terms.append(Term(coefficient, tuple(_moved(f, axis, keeps) for f in outer)))
            continue
        if not still and term.varies:
            raise equation.refuse(
                "it sums over positions a signal whose coefficients vary along the features too",
                "Put a dense layer before the sum",
            )
        taken_out, within = (coefficient, kn.constant(1.0)) if still else (kn.constant(1.0), coefficient)
        part = Segment(segment.size, (Term(within, tuple(inner)),), segment.space)
        leaf = interpreter.interned(replace(template, segment=part, matrix=matrix, source=equation.source))
        new = of_leaf(leaf).factors[0]
        terms.append(Term(kept(taken_out), (new, *(_moved(f, axis, keeps) for f in outer))))
    return interpreter.algebra.normal(Segment(segment.size, (), space), terms, equation.source)


def _moved(factor: Any, axis: int, keeps: bool) -> Any:
    """A factor that does not run along an axis, after that axis is gone (or stays)."""
    if keeps:
        return factor

    def shrunk(known: Known) -> Known:
        return kn.reshape(known, (*known.shape[:axis], *known.shape[axis + 1 :])) if known.shape else known

    function = replace(factor.function, parameters=tuple(map(shrunk, factor.function.parameters)))
    return replace(factor, function=function, axes=tuple(a - (a > axis) for a in factor.axes))


def _known_mapped(coefficient: Known, segment: Segment, template: LinearLeaf, matrix: Known | None) -> Known:
    width = coefficient.shape[-1] if coefficient.shape else 1
    own = coefficient.shape[:-1] if coefficient.shape else (1,) * len(segment.space)
    axis = template.axis
    needed = [axis, *template.batch]
    shape = [segment.space[a] if a in needed else n for a, n in enumerate(own)]
    array = kn.broadcast(coefficient if coefficient.shape else kn.reshape(coefficient, (*own, 1)), (*shape, width))
    operation: Any = SpaceMap(axis, template.window, template.batch if matrix is not None else None)
    if template.window is not None:
        out = [*shape, width]
        out[axis] = template.window.output_length(shape[axis])
        return kn.apply(operation, (array,), out)
    if matrix is not None:
        out = [*shape, width]
        out[axis] = matrix.shape[-2]
        return kn.apply(operation, (array, matrix), out)
    return kn.apply(operation, (array,), [*shape[:axis], *shape[axis + 1 :], width])


def map_axis(
    interpreter: Interpreter,
    equation: Equation,
    signal: Signal,
    axis: int,
    *,
    window: Window | None = None,
    matrix: Known | None = None,
    batch: tuple[int, ...] = (),
) -> Signal:
    """Apply a map to one array axis, which is a single axis of positions; a sum leaves it with length one."""
    (atom,) = signal.layout.axes[axis]
    assert isinstance(atom, Space)
    template = LinearLeaf(signal.segments[0], atom.index, window, matrix, batch)
    segments = tuple(mapped(interpreter, equation, segment, template, matrix) for segment in signal.segments)
    if window is None and matrix is None:
        return without_axis(signal, axis, segments)
    shaper = Shaper(interpreter, equation.source)
    layout = shaper.with_axis(signal, axis, segments[0].space[atom.index])
    return shaper.tidy(Signal(layout, segments))


def without_axis(signal: Signal, axis: int, segments: Sequence[Segment]) -> Signal:
    """What is left when an array axis, a single axis of positions, is summed over; it has length one then."""
    (atom,) = signal.layout.axes[axis]
    assert isinstance(atom, Space)
    rows: list[Axis] = []
    for i, row in enumerate(signal.layout.axes):
        rows.append(() if i == axis else tuple(_shifted(other, atom.index) for other in row))
    return Signal(Layout(tuple(rows)), tuple(segments))


def _shifted(atom: Any, gone: int) -> Any:
    return replace(atom, index=atom.index - 1) if isinstance(atom, Space) and atom.index > gone else atom


@rule("reduce_sum")
def total(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A sum over the width is Known; over positions, a linear map."""
    operand = equation.operands[0]
    if isinstance(operand, Known):
        return default(interpreter, equation)
    if isinstance(operand, ParameterView):
        raise equation.refuse(made_from_parameters(operand.parameter.name), MADE_ADVICE)
    assert isinstance(operand, Signal)
    return [summed(interpreter, equation, operand, tuple(equation.parameters["axes"]))]


def summed(interpreter: Interpreter, equation: Equation, signal: Signal, axes: tuple[int, ...]) -> Value:
    """The sum over some array axes, which go."""
    signal = _members_as_positions(interpreter, equation, signal, axes)
    rows = signal.layout.axes
    if any(isinstance(atom, Width) for axis in axes for atom in rows[axis]):
        known = width_sum(interpreter, equation, signal, axes)
        return kn.total(known, axes)
    shaper = Shaper(interpreter, equation.source)
    for axis in axes:
        signal, _ = shaper.as_positions(signal, axis)
        signal = map_axis(interpreter, equation, signal, axis)
    kept = tuple(row for axis, row in enumerate(signal.layout.axes) if axis not in axes)
    return replace(signal, layout=Layout(kept))


def _members_as_positions(
    interpreter: Interpreter, equation: Equation, signal: Signal, axes: tuple[int, ...]
) -> Signal:
    """Parts of the width that are summed over while parts inside of them are kept: members of an ensemble, say.

    What is kept then grows, and their number does not.
    """
    while True:
        atoms = [(axis, place, a) for axis, row in enumerate(signal.layout.axes) for place, a in enumerate(row)]
        kept = [a.index for axis, _, a in atoms if isinstance(a, Width) and axis not in axes]
        outer = [(i, p) for i, p, a in atoms if isinstance(a, Width) and i in axes and a.index < max(kept, default=-1)]
        if not outer:
            return signal
        signal = Shaper(interpreter, equation.source).spread(signal, *outer[0])


def width_sum(interpreter: Interpreter, equation: Equation, signal: Signal, axes: Sequence[int]) -> Known:
    """Σ_c E[s_c] over the parts of the width on `axes`, each of which has length one in the result."""
    reduced = {atom for axis in axes for atom in signal.layout.axes[axis] if isinstance(atom, Width)}
    units = prod(atom.length for atom in reduced)
    segments = signal.segments
    leaves = frozenset().union(*(width_leaves(segment) for segment in segments))
    if any(isinstance(leaf, CarryLeaf) for leaf in leaves):
        raise equation.refuse(
            "it averages the state of a recurrence over its units, which has no rule",
            "Normalise what goes into the state instead of the state",
        )
    random = any(term.random for segment in segments for term in segment.terms)
    if random and not any(isinstance(leaf, WeightLeaf | EmbeddingLeaf) for leaf in leaves):
        raise equation.refuse(
            "it sums random parameters over the input's own features, whose number stays finite",
            "Write a contraction with a weight as a matrix product",
        )
    if units != signal.layout.width and (
        len(segments) > 1 or any(term.varies for segment in segments for term in segment.terms)
    ):
        raise equation.refuse(
            "it sums over a part of features that differ from place to place", "Put a dense layer before the sum"
        )
    interpreter.averaged.append((leaves, equation))
    kept = [replace(s, terms=tuple(t for t in s.terms if not _has_zero_mean(t))) for s in segments]
    kept = [segment for segment in kept if segment.terms]
    pending = PendingWidth(units, Fraction(1), zero_mean=not kept, parts=signal.layout.width // units)
    share = units / signal.layout.width
    value: Known = WidthSum(signal.layout.space, segments=tuple(kept), share=share, pending=pending)
    return _as_array(value, signal.layout, reduced)


def _as_array(value: Known, layout: Layout, gone: set[Width]) -> Known:
    """An array over positions laid out as the signal it came from; the width that is summed over has length one."""
    order = [atom.index for atom in layout.atoms if isinstance(atom, Space)]
    lengths = [1 if atom in gone else atom.length for atom in layout.atoms]
    own = [atom.length if isinstance(atom, Space) else 1 for atom in layout.atoms]
    array = kn.broadcast(kn.reshape(kn.transpose(value, order), tuple(own)), tuple(lengths))
    rest = iter(lengths)
    return kn.reshape(array, tuple(prod(next(rest) for _ in row) for row in layout.axes))


def _has_zero_mean(term: Term) -> bool:
    """Whether some factor is a bare leaf of mean zero that no other factor is correlated with."""
    for k, factor in enumerate(term.factors):
        others = [other.leaf for other in (*term.factors[:k], *term.factors[k + 1 :])]
        apart = all(factor.leaf.roots.isdisjoint(leaf.roots) for leaf in others)
        if factor.function.is_identity and apart and _is_centred(factor.leaf):
            return True
    return False


def _is_centred(leaf: Leaf) -> bool:
    """Whether a leaf has mean zero: a linear map of activations has not, unless they have."""
    match leaf:
        case LinearLeaf():
            return all(_has_zero_mean(term) for term in leaf.segment.terms)
        case ViewLeaf():
            return _is_centred(leaf.leaf)
        case ParameterLeaf() | WeightLeaf():
            return True
    return leaf.gaussian


def _over_positions(interpreter: Interpreter, equation: Equation, signal: Signal, axis: int) -> Signal:
    """An array axis made a single axis of positions; features are refused."""
    if any(isinstance(atom, Width) for atom in signal.layout.axes[axis]):
        raise equation.refuse("it sums along the features in part", "Sum over positions, or over all features")
    return Shaper(interpreter, equation.source).as_positions(signal, axis)[0]


def windows(equation: Equation) -> list[tuple[int, Window]]:
    """The axes along which a window slides, each with its window."""
    p = equation.parameters
    rank = len(equation.shape)
    strides, padding = p["window_strides"] or (1,) * rank, p["padding"] or ((0, 0),) * rank
    base, dilation = p["base_dilation"] or (1,) * rank, p["window_dilation"] or (1,) * rank
    found = []
    for axis, size in enumerate(p["window_dimensions"]):
        low, high = padding[axis]
        found.append((axis, Window(size, strides[axis], low, high, base[axis], dilation[axis])))
    return [(axis, window) for axis, window in found if not window.is_trivial]


@rule("reduce_window_sum")
def windowed(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Sums over windows of positions: pooling."""
    operand = equation.operands[0]
    if isinstance(operand, Known):
        return default(interpreter, equation)
    signal = as_signal(interpreter, equation, operand)
    for axis, window in windows(equation):
        signal = map_axis(
            interpreter, equation, _over_positions(interpreter, equation, signal, axis), axis, window=window
        )
    return [signal]


@rule("cumsum")
def cumulative(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Sums up to each position."""
    operand = equation.operands[0]
    if isinstance(operand, Known):
        return default(interpreter, equation)
    signal = as_signal(interpreter, equation, operand)
    axis, length = equation.parameters["axis"], equation.shape[equation.parameters["axis"]]
    matrix = np.tri(length).T if equation.parameters["reverse"] else np.tri(length)
    signal = _over_positions(interpreter, equation, signal, axis)
    return [map_axis(interpreter, equation, signal, axis, matrix=kn.constant(matrix))]


def known_product(
    interpreter: Interpreter, equation: Equation, matrix: Known, signal: Signal, matrix_is_left: bool
) -> Value:
    """A Known array contracted with positions of a signal: attention weights, adjacency, resizing, fixed filters."""
    contracting, batch = equation.parameters["dimension_numbers"]
    mine, theirs = contracting if matrix_is_left else contracting[::-1]
    my_batch, their_batch = batch if matrix_is_left else batch[::-1]
    free = [a for a in range(len(signal.shape)) if a not in (*theirs, *their_batch)]
    my_free = [a for a in range(len(matrix.shape)) if a not in (*mine, *my_batch)]
    if any(isinstance(atom, Width) for axis in theirs for atom in signal.layout.axes[axis]):
        return _over_width(interpreter, equation, matrix, signal, mine, theirs, my_batch)
    shaper = Shaper(interpreter, equation.source)
    out_shape = [matrix.shape[a] for a in my_free]
    n, m = prod(matrix.shape[a] for a in mine), prod(out_shape)
    matrix = kn.transpose(matrix, (*my_batch, *my_free, *mine))
    matrix = kn.reshape(matrix, (*matrix.shape[: len(my_batch)], m, n))
    signal = replace(signal, layout=signal.layout.permuted((*their_batch, *free, *theirs)))
    kept_shape = signal.shape[: len(their_batch) + len(free)]
    signal = reshaped(interpreter, equation, signal, (*kept_shape, n))
    last = len(kept_shape)
    constant = constant_axes(matrix)
    kept: list[int] = []
    for axis in range(len(their_batch)):
        if axis not in constant:
            if any(isinstance(atom, Width) for atom in signal.layout.axes[axis]):
                raise equation.refuse(
                    "it mixes positions by a matrix that differs between groups of features",
                    "Use one matrix for all features",
                )
            signal, _ = shaper.as_positions(signal, axis)
            kept.append(axis)
    signal, _ = shaper.as_positions(signal, last)
    for axis in range(len(their_batch)):
        if axis not in kept:
            matrix = kn.cut(matrix, axis, 0, 1)
    matrix = kn.reshape(matrix, (*(matrix.shape[axis] for axis in kept), m, n))
    indices = tuple(atom.index for axis in kept for atom in signal.layout.axes[axis] if isinstance(atom, Space))
    signal = map_axis(interpreter, equation, signal, last, matrix=matrix, batch=indices)
    order = list(range(len(their_batch)))
    rest = list(range(len(their_batch), last))
    signal = replace(
        signal, layout=signal.layout.permuted([*order, *([last, *rest] if matrix_is_left else [*rest, last])])
    )
    return reshaped(interpreter, equation, signal, equation.shape)


def _over_width(
    interpreter: Interpreter,
    equation: Equation,
    matrix: Known,
    signal: Signal,
    mine: Sequence[int],
    theirs: Sequence[int],
    my_batch: Sequence[int],
) -> Value:
    """A constant vector contracted with the features is a multiple of their sum."""
    my_free = [a for a in range(len(matrix.shape)) if a not in (*mine, *my_batch)]
    if my_free or my_batch or not set(mine) <= constant_axes(matrix):
        raise equation.refuse(
            "it mixes the units of a signal by a fixed matrix, which has no infinite-width limit",
            "Use a trainable or random weight, or average over all units",
        )
    result = summed(interpreter, equation, signal, tuple(theirs))
    number = kn.reshape(matrix if not matrix.shape else _first(matrix), ())
    if isinstance(result, Known):
        return kn.multiply(result, number)
    assert isinstance(result, Signal)
    segments = tuple(interpreter.algebra.scale(s, number, equation.source) for s in result.segments)
    return replace(result, segments=segments)


def _first(matrix: Known) -> Known:
    for axis in range(len(matrix.shape)):
        matrix = kn.cut(matrix, axis, 0, 1)
    return matrix


@rule("scatter-add", "scatter_add")
def scattered(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Sums over segments of positions that Known indices name: aggregation over the edges of a graph."""
    operand, index, updates = equation.operands
    if all(isinstance(o, Known) for o in equation.operands):
        return default(interpreter, equation)
    numbers = equation.parameters["dimension_numbers"]
    target = numbers.scatter_dims_to_operand_dims
    fits = len(target) == 1 and numbers.inserted_window_dims == target and not numbers.operand_batching_dims
    if not fits or not isinstance(operand, Known) or not isinstance(index, Known) or len(index.shape) != 2:
        raise equation.refuse("it scatters random values in a pattern without a rule", "Use jax.ops.segment_sum")
    assert isinstance(updates, Signal | ParameterView)
    signal = as_signal(interpreter, equation, updates)
    (axis,) = (a for a in range(len(signal.shape)) if a not in numbers.update_window_dims)
    length, edges = equation.shape[target[0]], index.shape[0]
    kind = index.value.dtype if isinstance(index, Constant) else np.int32
    rows = kn.constant(np.broadcast_to(np.arange(length, dtype=kind)[:, None], (length, edges)))
    chosen = kn.broadcast(kn.reshape(index, (1, edges)), (length, edges))
    matrix = kn.as_number(kn.apply(kn.operation_of("eq"), (rows, chosen), (length, edges)))
    signal, _ = Shaper(interpreter, equation.source).as_positions(signal, axis)
    signal = map_axis(interpreter, equation, signal, axis, matrix=matrix)
    order = [a for a in range(len(signal.shape)) if a != axis]
    order.insert(target[0], axis)
    signal = replace(signal, layout=signal.layout.permuted(order))
    if isinstance(operand, Known) and getattr(operand, "scalar", None) != 0.0:
        raise equation.refuse("it scatters onto values that are not zero", "Add them afterwards")
    return [signal]
