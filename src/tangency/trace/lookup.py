"""Rules for indexing: positions of a signal, rows of a parameter, pieces of stacked layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from ..graph.known import Constant, Known
from ..graph.layout import Axis, Layout, Space, Width
from ..graph.signal import EmbeddingLeaf, Segment, Signal, Term, of_leaf
from . import known as kn
from .interpreter import Equation, Interpreter, rule
from .joint import stopped_segment
from .rules import all_known, default
from .shaping import Shaper
from .structure import piece, reshaped, taken
from .values import ParameterView, Value


@rule("dynamic_slice")
def dynamic_slice(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A stretch whose start is Known."""
    if all_known(equation):
        return default(interpreter, equation)
    operand, *starts = equation.operands
    if isinstance(operand, Known) or not all(isinstance(start, Known) for start in starts):
        raise equation.refuse("its start is random", "Index by inputs or constants")
    value: Value = operand
    for axis, (start, size) in enumerate(zip(starts, equation.shape, strict=True)):
        assert isinstance(start, Known) and isinstance(value, Signal | ParameterView)
        length = value.shape[axis]
        if size == length:
            continue
        if isinstance(start, Constant):
            first = int(np.clip(start.value, 0, length - size))
            value = taken(interpreter, equation, value, axis, np.arange(first, first + size))
        else:
            index = _stretch(start, size, length)
            value = _rows(interpreter, equation, value, axis, index)
    return [value]


def _stretch(start: Known, size: int, length: int) -> Known:
    """start, start + 1, … as a vector, moved inside the axis as `dynamic_slice` does."""
    low, high = (kn.constant(np.asarray(n, start_type(start))) for n in (0, length - size))
    clipped = kn.apply(kn.operation_of("clamp"), (low, start, high), ())
    steps = kn.constant(np.arange(size, dtype=start_type(start)))
    return kn.apply(kn.ADD, (kn.broadcast(clipped, (size,)), steps), (size,))


def start_type(start: Known) -> np.dtype:
    return start.value.dtype if isinstance(start, Constant) else np.dtype(np.int32)


def _rows(
    interpreter: Interpreter, equation: Equation, operand: Signal | ParameterView, axis: int, index: Known
) -> Signal:
    """Entries along one axis by a vector of Known indices; the axis keeps its place."""
    if isinstance(operand, Signal):
        if any(isinstance(atom, Width) for atom in operand.layout.axes[axis]):
            raise equation.refuse("it picks single units of a layer", "Use all units")
        return Shaper(interpreter, equation.source).take(operand, axis, index)
    return embedded(interpreter, equation, operand, axis, index)


def embedded(interpreter: Interpreter, equation: Equation, view: ParameterView, axis: int, index: Known) -> Signal:
    """Rows of a parameter picked by a vector of Known indices: a position for each, features along the other axes."""
    if not view.axes[axis]:
        raise equation.refuse("it indexes repeated parameters", "Index the parameter itself")
    means = np.unique(view.mean)
    if len(means) > 1:
        raise equation.refuse(
            f"the rows of the parameter {view.parameter.name} have different means", "Initialise all alike"
        )
    interpreter.claim(view.parameter, ("rows", view.axes[axis]), equation.source)
    leaf = interpreter.interned(EmbeddingLeaf(view.parameter, index, view.scale, source=equation.source))
    rows: list[Axis] = []
    count = 0
    for i, length in enumerate(view.shape):
        if i == axis:
            rows.append((Space(0, index.shape[0]),))
        elif length == 1:
            rows.append(())
        elif not view.axes[i]:
            raise equation.refuse("it indexes repeated parameters", "Index the parameter itself")
        else:
            rows.append((Width(count, length),))
            count += 1
    layout = Layout(tuple(rows))
    terms = [of_leaf(leaf)]
    if means[0] != 0:
        terms.append(Term(kn.constant(float(means[0]))))
    segment = Segment(layout.width, tuple(terms), layout.space)
    signal = Signal(layout, (stopped_segment(segment, interpreter) if view.stopped else segment,))
    return Shaper(interpreter, equation.source).tidy(signal)


@rule("gather")
def gather(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Whole slices picked along one axis by Known indices."""
    if all_known(equation):
        return default(interpreter, equation)
    operand, indices = equation.operands
    numbers, sizes = equation.parameters["dimension_numbers"], equation.parameters["slice_sizes"]
    if isinstance(operand, Known) or not isinstance(indices, Known) or numbers.operand_batching_dims:
        raise equation.refuse("it gathers in a pattern without a rule", "Index by inputs or constants, along one axis")
    assert isinstance(operand, Signal | ParameterView)
    picked: list[tuple[int, Known]] = []
    for column, axis in enumerate(numbers.start_index_map):
        entry = kn.cut(indices, len(indices.shape) - 1, column, column + 1)
        if sizes[axis] == operand.shape[axis]:
            continue
        if sizes[axis] != 1:
            raise equation.refuse("it gathers windows", "Use slices with fixed bounds")
        picked.append((axis, entry))
    if len(picked) > 1:
        raise equation.refuse("it gathers along several axes at once", "Index one axis after the other")
    batch = indices.shape[:-1]
    if not picked:
        picked = [(numbers.start_index_map[0], kn.constant(np.zeros((*batch, 1), np.int32)))]
    axis, entry = picked[0]
    count = prod(batch)
    index = kn.reshape(entry, (count,))
    if isinstance(index, Constant):
        index = kn.constant(np.clip(index.value, 0, operand.shape[axis] - 1))
    value = _gathered(interpreter, equation, operand, axis, index)
    # Now the picked axis holds the batch of indices; it moves to where the result has it, the rest stays in order.
    collapsed = set(numbers.collapsed_slice_dims)
    others = [a for a in range(len(operand.shape)) if a != axis]
    kept = [a for a in others if a not in collapsed]
    offsets = list(numbers.offset_dims)
    places = [a for a in range(len(equation.shape)) if a not in offsets]
    sources = kept if axis in collapsed else sorted([*kept, axis])
    first = places[0] if places else len(equation.shape)
    order: list[int] = []
    for position in range(len(equation.shape)):
        if position == first:
            order.append(axis)
        if position in offsets:
            source = sources[offsets.index(position)]
            order += [source] if source != axis else []
    if axis not in order:
        order.append(axis)
    order += [a for a in others if a in collapsed]
    if isinstance(value, ParameterView):
        return [value.transposed(order).reshaped(equation.shape)]
    value = replace(value, layout=value.layout.permuted(order))
    return [reshaped(interpreter, equation, value, equation.shape)]


def _gathered(
    interpreter: Interpreter, equation: Equation, operand: Signal | ParameterView, axis: int, index: Known
) -> Signal | ParameterView:
    if isinstance(index, Constant):
        entries = index.value
        if np.array_equal(entries, np.arange(operand.shape[axis])):
            return operand
        if isinstance(operand, ParameterView) and len(entries) == 1:
            return piece(interpreter, equation, operand, axis, int(entries[0]), int(entries[0]) + 1)
        if isinstance(operand, Signal):
            value = taken(interpreter, equation, operand, axis, entries)
            assert isinstance(value, Signal)
            return value
    return _rows(interpreter, equation, operand, axis, index)
