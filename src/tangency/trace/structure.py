"""Rules for rearranging arrays: reshape, transpose, broadcast, slice, reverse, split, concatenate, stack, pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod

import numpy as np

from ..graph.known import Constant, Known, is_number
from ..graph.layout import Axis, Layout, Repeat, Width, refine
from ..graph.signal import Factor, Segment, SelectLeaf, Signal, Term
from . import known as kn
from .align import align, as_signal, known_segment
from .interpreter import Equation, Interpreter, rule
from .rules import default
from .shaping import Shaper
from .values import ParameterView, Value


@rule("reshape", "squeeze", "expand_dims")
def reshape(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Axes are cut into atoms and grouped anew; entries do not move."""
    operand = equation.operands[0]
    if isinstance(operand, Known):
        return default(interpreter, equation)
    if isinstance(operand, ParameterView):
        return [operand.reshaped(equation.shape)]
    assert isinstance(operand, Signal)
    return [reshaped(interpreter, equation, operand, equation.shape)]


def reshaped(interpreter: Interpreter, equation: Equation, signal: Signal, shape: Sequence[int]) -> Signal:
    lengths = refine([atom.length for atom in signal.layout.atoms], [n for n in shape if n != 1] or [1])
    if lengths is None:
        raise equation.refuse(
            f"it regroups axes of shape {signal.shape} as {tuple(shape)} across their bounds",
            "Reshape along the existing axes",
        )
    remaining = list(lengths)
    shaper = Shaper(interpreter, equation.source)
    for axis, length in enumerate(signal.shape):
        taken: list[int] = []
        while prod(taken) < length:
            taken.append(remaining.pop(0))
        signal = shaper.split_axis(signal, axis, taken)
    atoms = list(signal.layout.atoms)
    rows: list[Axis] = []
    for length in shape:
        row = []
        while prod(atom.length for atom in row) < length:
            row.append(atoms.pop(0))
        rows.append(tuple(row))
    return replace(signal, layout=Layout(tuple(_joined(row) for row in rows)))


def _joined(row: Axis) -> Axis:
    """Neighbouring repetitions are one."""
    joined: list = []
    for atom in row:
        if isinstance(atom, Repeat) and joined and isinstance(joined[-1], Repeat):
            joined[-1] = Repeat(joined[-1].length * atom.length)
        else:
            joined.append(atom)
    return tuple(joined)


@rule("transpose")
def transpose(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Axes trade places."""
    operand, permutation = equation.operands[0], equation.parameters["permutation"]
    if isinstance(operand, ParameterView):
        return [operand.transposed(permutation)]
    if isinstance(operand, Signal):
        return [replace(operand, layout=operand.layout.permuted(permutation))]
    return default(interpreter, equation)


@rule("broadcast_in_dim")
def broadcast(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """New axes repeat what is there."""
    operand, dimensions = equation.operands[0], equation.parameters["broadcast_dimensions"]
    if isinstance(operand, ParameterView):
        return [operand.repeated(equation.shape, dimensions)]
    if not isinstance(operand, Signal):
        return default(interpreter, equation)
    rows: list[Axis] = []
    for axis, length in enumerate(equation.shape):
        own = dimensions.index(axis) if axis in dimensions else None
        if own is not None and operand.shape[own] == length:
            rows.append(operand.layout.axes[own])
        else:
            rows.append((Repeat(length),) if length != 1 else ())
    return [replace(operand, layout=Layout(tuple(rows)))]


@rule("slice", "rev")
def slice_(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Stretches of positions, or of the width."""
    operand = equation.operands[0]
    if isinstance(operand, Known):
        return default(interpreter, equation)
    for axis, length in enumerate(operand.shape):  # pyright: ignore[reportAttributeAccessIssue]
        if equation.name == "rev":
            index = np.arange(length)[::-1] if axis in equation.parameters["dimensions"] else np.arange(length)
        else:
            strides = equation.parameters["strides"] or (1,) * len(equation.shape)
            ends = equation.parameters["start_indices"][axis], equation.parameters["limit_indices"][axis]
            index = np.arange(*ends, strides[axis])
        operand = taken(interpreter, equation, operand, axis, index)
    return [operand]


def taken(interpreter: Interpreter, equation: Equation, operand: Value, axis: int, index: np.ndarray) -> Value:
    """Entries of a signal or a parameter along one axis by constant indices."""
    assert isinstance(operand, Signal | ParameterView)
    length = operand.shape[axis]
    if np.array_equal(index, np.arange(length)):
        return operand
    contiguous = len(index) > 0 and np.array_equal(index, np.arange(index[0], index[0] + len(index)))
    if isinstance(operand, ParameterView):
        if not contiguous:
            raise equation.refuse(
                f"it picks single entries of the parameter {operand.parameter.name}", "Cut it in whole pieces"
            )
        return piece(interpreter, equation, operand, axis, int(index[0]), int(index[-1]) + 1)
    shaper = Shaper(interpreter, equation.source)
    atoms = operand.layout.axes[axis]
    if any(isinstance(atom, Width) for atom in atoms):
        if contiguous:
            return _width_piece(interpreter, equation, operand, axis, int(index[0]), int(index[-1]) + 1)
        raise equation.refuse("it picks or reorders single units of a layer", "Use whole stretches of units")
    return shaper.take(operand, axis, kn.constant(np.asarray(index)))


def piece(
    interpreter: Interpreter, equation: Equation, view: ParameterView, axis: int, start: int, stop: int
) -> ParameterView:
    """A stretch of a parameter along one of its own axes: a parameter of its own."""
    own = view.axes[axis]
    index = tuple(slice(start, stop) if i == axis else slice(None) for i in range(len(view.shape)))
    mean = view.mean[index]
    shape = mean.shape
    if not own:
        return replace(view, shape=shape, mean=mean)
    (parameter_axis, *others) = own
    whole = view.parameter
    if others or not isinstance(parameter_axis, int) or whole.shape[parameter_axis] != view.shape[axis]:
        raise equation.refuse(
            f"it cuts the parameter {whole.name} across the axes it is stored in", "Store the pieces separately"
        )
    part = interpreter.piece(whole, parameter_axis, start, stop, view.shape[axis])
    axes = tuple(frozenset[int]() if n == 1 else a for a, n in zip(view.axes, shape, strict=True))
    return replace(view, parameter=part, shape=shape, axes=axes, mean=mean)


def _width_piece(
    interpreter: Interpreter, equation: Equation, signal: Signal, axis: int, start: int, stop: int
) -> Signal:
    """A stretch of the units of a layer, which have weights of their own."""
    first = signal.layout.axes[axis][0]
    if (
        not isinstance(first, Width)
        or first.index != 0
        or any(not isinstance(atom, Width) for atom in signal.layout.axes[axis])
    ):
        raise equation.refuse("it cuts an inner part of the features", "Cut the features before they are reshaped")
    axis_parts = [atom for atom in signal.layout.axes[axis] if isinstance(atom, Width)]
    inside = signal.layout.width // prod(atom.length for atom in axis_parts)
    rest = prod(atom.length for atom in axis_parts[1:])
    if start % rest or stop % rest or [a.index for a in axis_parts] != list(range(len(axis_parts))):
        raise equation.refuse("it cuts the features across the parts they were reshaped to", "Cut whole parts")
    segments: list[Segment] = []
    position = 0
    for segment in signal.segments:
        low, high = max(start * inside - position, 0), min(stop * inside - position, segment.size)
        if low < high:
            whole = (low, high) == (0, segment.size)
            segments.append(segment if whole else interpreter.piece_of(segment, low, high, equation))
        position += segment.size
    new = replace(first, length=(stop - start) // rest)
    rows = [
        tuple(a for a in (new if a == first else a for a in row) if a.length != 1 or not isinstance(a, Width))
        for row in signal.layout.axes
    ]
    if new.length == 1:
        rows = [tuple(replace(a, index=a.index - 1) if isinstance(a, Width) else a for a in row) for row in rows]
    return Signal(Layout(tuple(rows)), tuple(segments))


@rule("split")
def split(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """An array cut into stretches."""
    operand = equation.operands[0]
    if isinstance(operand, Known):
        return default(interpreter, equation)
    axis, sizes = equation.parameters["axis"], [int(n) for n in equation.parameters["sizes"]]
    stops = list(accumulate(sizes))
    ends = zip([0, *stops], stops, strict=False)
    return [taken(interpreter, equation, operand, axis, np.arange(a, b)) for a, b in ends]


@rule("concatenate")
def concatenate(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Along the width: parts that keep their laws. Along positions: each part at its own places, zero elsewhere."""
    if all(isinstance(operand, Known) for operand in equation.operands):
        return default(interpreter, equation)
    axis = equation.parameters["dimension"]
    return [joined(interpreter, equation, equation.operands, axis, equation.shape)]


@rule("tile")
def tile(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """An array beside itself, axis after axis."""
    (value,) = equation.operands
    if isinstance(value, Known):
        return default(interpreter, equation)
    times = equation.parameters["reps"]
    if 0 in times:
        raise equation.refuse("it repeats a signal no times", "Repeat it once or more")
    shape = [length // count for length, count in zip(equation.shape, times, strict=True)]
    for axis, count in enumerate(times):
        if count > 1:
            shape[axis] *= count
            value = joined(interpreter, equation, [value] * count, axis, tuple(shape))
    return [value]


@rule("stack")
def stack(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Arrays beside each other along a new axis."""
    if all(isinstance(operand, Known) for operand in equation.operands):
        return default(interpreter, equation)
    axis = equation.parameters["axis"]
    operands = [expanded(interpreter, equation, operand, axis) for operand in equation.operands]
    return [joined(interpreter, equation, operands, axis, equation.shape)]


def expanded(interpreter: Interpreter, equation: Equation, operand: Value, axis: int) -> Value:
    assert isinstance(operand, Known | Signal | ParameterView)
    shape = (*operand.shape[:axis], 1, *operand.shape[axis:])
    if isinstance(operand, Known):
        return kn.reshape(operand, shape)
    if isinstance(operand, ParameterView):
        return operand.reshaped(shape)
    return reshaped(interpreter, equation, operand, shape)


def joined(
    interpreter: Interpreter, equation: Equation, operands: Sequence[Value], axis: int, shape: Sequence[int]
) -> Signal:
    lengths = [operand.shape[axis] for operand in operands]  # pyright: ignore[reportAttributeAccessIssue]
    if any(isinstance(o, Signal) and isinstance(a, Width) for o in operands for a in _atoms(o, axis)):
        return _along_width(interpreter, equation, operands, axis, shape)
    together = _same_leaf(interpreter, equation, operands, axis)
    if together is not None:
        return together
    stops = np.cumsum(lengths)
    placed = [
        placed_on(interpreter, equation, operand, axis, np.arange(stop - length, stop), int(stops[-1]))
        for operand, length, stop in zip(operands, lengths, stops, strict=True)
    ]
    aligned = align(interpreter, equation, placed, shape)
    segments = []
    for column in aligned.columns(interpreter, equation):
        like = next(part for part in column if isinstance(part, Segment))
        parts = [p if isinstance(p, Segment) else known_segment(p, like.size, like.space) for p in column]
        segments.append(interpreter.algebra.add(parts, equation.source))
    return Signal(aligned.layout, tuple(segments))


def _atoms(operand: Value, axis: int) -> Axis:
    return operand.layout.axes[axis] if isinstance(operand, Signal) else ()


def placed_on(
    interpreter: Interpreter, equation: Equation, operand: Value, axis: int, places: np.ndarray, length: int
) -> Value:
    """The entries of an axis at `places` of one of another length, zero elsewhere (places outside of it are lost)."""
    index, mask = np.zeros(length, np.int64), np.zeros(length)
    for own, place in enumerate(places):
        if 0 <= place < length:
            index[place], mask[place] = own, 1.0
    if np.all(mask == 0) and len(places):
        index[:] = 0
    elif len(places):
        # Outside, the nearest place: what stands there is multiplied by zero.
        inside = np.flatnonzero(mask)
        nearest = inside[np.abs(np.arange(length)[:, None] - inside).argmin(axis=1)]
        index = index[nearest]
    assert isinstance(operand, Known | Signal | ParameterView)
    rank = len(operand.shape)
    there = kn.constant(mask.reshape(tuple(length if i == axis else 1 for i in range(rank))))
    if isinstance(operand, Known):
        moved = kn.take(operand, axis, kn.constant(index))
        return kn.multiply(moved, there) if np.any(mask != 1) else moved
    signal = as_signal(interpreter, equation, operand)
    signal = Shaper(interpreter, equation.source).take(signal, axis, kn.constant(index))
    if np.all(mask == 1):
        return signal
    aligned = align(interpreter, equation, (signal, there), signal.shape)
    columns = aligned.columns(interpreter, equation)
    segments = []
    for part, weight in columns:
        assert isinstance(part, Segment) and isinstance(weight, Known)
        segments.append(interpreter.algebra.scale(part, weight, equation.source))
    return Signal(aligned.layout, tuple(segments))


def _same_leaf(interpreter: Interpreter, equation: Equation, operands: Sequence[Value], axis: int) -> Signal | None:
    """Selections of one signal side by side are one selection: circular padding, rolls."""
    signals = [operand for operand in operands if isinstance(operand, Signal)]
    if len(signals) != len(operands) or any(len(s.segments) != 1 or len(s.segments[0].terms) != 1 for s in signals):
        return None
    shaper = Shaper(interpreter, equation.source)
    indices: list[np.ndarray] = []
    base: tuple[Factor, int] | None = None
    last: tuple[Signal, int, Factor] | None = None
    for signal in signals:
        signal, space = shaper.as_positions(signal, axis)
        term = signal.segments[0].terms[0]
        if len(term.factors) != 1 or not is_number(term.coefficient, 1.0) or space not in term.factors[0].axes:
            return None
        factor = term.factors[0]
        own = factor.axes.index(space)
        index = np.arange(signal.shape[axis])
        leaf = factor.leaf
        if isinstance(leaf, SelectLeaf) and leaf.axis == own and isinstance(leaf.index, Constant):
            if leaf.index.shape == ():
                return None
            index, leaf = leaf.index.value, leaf.leaf
        here = replace(factor, leaf=leaf), own
        if any(parameter.shape for parameter in factor.function.parameters) or (base is not None and here != base):
            return None
        base, last = here, (signal, space, factor)
        indices.append(index)
    assert base is not None and last is not None
    signal, space, factor = last
    index = np.concatenate(indices)
    leaf = shaper.select_leaf(base[0].leaf, base[1], kn.constant(index))
    lengths = tuple(len(index) if i == space else n for i, n in enumerate(signal.layout.space))
    segment = Segment(signal.layout.width, (Term(factors=(replace(factor, leaf=leaf),)),), lengths)
    return Signal(shaper.with_axis(signal, axis, len(index)), (segment,))


def _along_width(
    interpreter: Interpreter, equation: Equation, operands: Sequence[Value], axis: int, shape: Sequence[int]
) -> Signal:
    """Concatenation of features: the parts keep their own laws, and grow in the traced proportions."""
    segments: list[Segment] = []
    layout: Layout | None = None
    # A column of each operand, aligned over the other axes, fixes common positions for all of them.
    for operand in operands:
        if any(not isinstance(atom, Width) for atom in _atoms(operand, axis)):
            raise equation.refuse("it concatenates features with positions", "Concatenate arrays of one kind")
    parts = []
    for operand in operands:
        assert isinstance(operand, Known | Signal | ParameterView)
        length = operand.shape[axis]
        whole = tuple(length if i == axis else n for i, n in enumerate(shape))
        template = Signal(_feature_layout(whole, axis), (Segment(length, (Term(),), ()),))
        aligned = align(interpreter, equation, (operand, template, *_positions_of(operands, axis, length)), whole)
        parts.append((aligned, length))
    for aligned, length in parts:
        layout, operand = aligned.layout, aligned.operands[0]
        known = isinstance(operand, Known)
        segments.extend((known_segment(operand, length, aligned.layout.space),) if known else operand)
    assert layout is not None
    if any(aligned.layout.space != layout.space or len(aligned.layout.parts) != 1 for aligned, _ in parts):
        raise equation.refuse("it concatenates features that are laid out differently", "Reshape them alike first")
    rows = list(layout.axes)
    rows[axis] = (Width(0, shape[axis]),)
    return Signal(Layout(tuple(rows)), tuple(segments))


def _feature_layout(shape: Sequence[int], axis: int) -> Layout:
    rows: list[Axis] = []
    for i, length in enumerate(shape):
        row: Axis = () if length == 1 else (Repeat(length),)
        rows.append((Width(0, length),) if i == axis and length != 1 else row)
    return Layout(tuple(rows))


def _positions_of(operands: Sequence[Value], axis: int, length: int) -> list[Value]:
    """Zeros that have the positions of every operand and no features, so that all get the same axes."""
    found: list[Value] = []
    for operand in operands:
        if isinstance(operand, Signal):
            layout = operand.layout
            rows = tuple(() if i == axis else row for i, row in enumerate(layout.axes))
            if any(isinstance(atom, Width) for row in rows for atom in row):
                continue
            found.append(Signal(Layout(rows), (Segment(1, (Term(),), layout.space),)))
        elif isinstance(operand, Known):
            shape = tuple(1 if i == axis else n for i, n in enumerate(operand.shape))
            found.append(kn.cut(operand, axis, 0, 1) if shape != operand.shape else operand)
    return found


@rule("pad")
def pad(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Zeros around and between positions, or around features."""
    operand, value = equation.operands
    if isinstance(operand, Known) and isinstance(value, Known):
        return default(interpreter, equation)
    if not isinstance(value, Constant) or value.scalar != 0.0 or isinstance(operand, ParameterView):
        raise equation.refuse("it pads a random signal with something else than zeros", "Pad with zeros")
    assert isinstance(operand, Signal)
    result: Value = operand
    for axis, (low, high, inner) in enumerate(equation.parameters["padding_config"]):
        if (low, high, inner) == (0, 0, 0):
            continue
        length = operand.shape[axis]
        places = low + np.arange(length) * (inner + 1)
        total = low + high + (length - 1) * (inner + 1) + 1
        if any(isinstance(atom, Width) for atom in _atoms(result, axis)):
            if inner or low < 0 or high < 0:
                raise equation.refuse("it pads between the features or crops them", "Pad around the features")
            shape = result.shape  # pyright: ignore[reportAttributeAccessIssue]
            zeros = [
                kn.constant(np.zeros(tuple(n if i == axis else m for i, m in enumerate(shape)))) for n in (low, high)
            ]
            parts = [part for part, n in ((zeros[0], low), (result, 1), (zeros[1], high)) if n]
            whole = tuple(total if i == axis else m for i, m in enumerate(shape))
            result = joined(interpreter, equation, parts, axis, whole)
        else:
            result = placed_on(interpreter, equation, result, axis, places, total)
    return [result]
