"""Rules for weights contracted with signals (dense layers, convolutions), and for products of two signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..graph.known import Constant, Known, is_number
from ..graph.layout import Axis, Layout, Repeat, Space, Width
from ..graph.signal import (
    CopiesLeaf,
    EmbeddingLeaf,
    LinearLeaf,
    ParameterLeaf,
    Segment,
    Signal,
    SumLeaf,
    ViewLeaf,
    WeightLeaf,
    is_degenerate,
    of_leaf,
)
from ..graph.space import Window
from . import known as kn
from .algebra import MADE_ADVICE, made_from_parameters
from .align import align, as_signal, check_parts
from .depthwise import by_taps, is_depthwise
from .interpreter import Equation, Interpreter, rule, width_leaves
from .linear import known_product, summed
from .rules import all_known, default
from .shaping import Shaper
from .values import ParameterView, Value


@rule("dot_general")
def contract(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A weight with a signal, a Known array with a signal, or two signals."""
    if all_known(equation):
        return default(interpreter, equation)
    equation = _vector_as_signal(interpreter, equation)
    left, right = equation.operands
    if isinstance(left, ParameterView) and isinstance(right, ParameterView):
        raise equation.refuse(
            "it multiplies two parameters",
            "Apply one weight after the other to the signal",
        )
    left, right = _multiplied(interpreter, equation)
    _check_made_weights(equation)
    if isinstance(left, ParameterView) or isinstance(right, ParameterView):
        return [_weight(interpreter, equation)]
    if isinstance(left, Signal) and isinstance(right, Signal):
        return [_two_signals(interpreter, equation, left, right)]
    matrix, signal = (left, right) if isinstance(left, Known) else (right, left)
    assert isinstance(matrix, Known) and isinstance(signal, Signal)
    return [known_product(interpreter, equation, matrix, signal, matrix is left)]


def _vector_as_signal(interpreter: Interpreter, equation: Equation) -> Equation:
    """Of two parameters, one that is contracted as a whole is what the other acts on: a learned state or token."""
    views = [operand for operand in equation.operands if isinstance(operand, ParameterView)]
    if len(views) < 2 or len(views[0].own_axes) == len(views[1].own_axes):
        return equation
    contracting, _ = equation.parameters["dimension_numbers"]
    operands: list[Value] = list(equation.operands)
    for side, view in enumerate(views):
        if set(view.own_axes) <= set(contracting[side]) and len(view.own_axes) < len(views[1 - side].own_axes):
            operands[side] = as_signal(interpreter, equation, view)
    return replace(equation, operands=tuple(operands))


def _multiplied(interpreter: Interpreter, equation: Equation) -> list[Value]:
    """The operands, a parameter of which nothing is contracted as a signal: the product is one of entries."""
    contracting, _ = equation.parameters["dimension_numbers"]
    return [
        as_signal(interpreter, equation, operand)
        if isinstance(operand, ParameterView) and not contracting[side]
        else operand
        for side, operand in enumerate(equation.operands)
    ]


def _check_made_weights(equation: Equation) -> None:
    """A matrix computed from parameters alone, such as a masked or a normalised weight, is no weight."""
    contracting, batch = equation.parameters["dimension_numbers"]
    for side, operand in enumerate(equation.operands):
        if not isinstance(operand, Signal) or isinstance(equation.operands[1 - side], Known):
            continue
        free = [a for a in range(len(operand.shape)) if a not in (*contracting[side], *batch[side])]
        if not any(operand.shape[a] != 1 and operand.layout.axes[a] for a in free):
            continue
        leaves = frozenset().union(*map(width_leaves, operand.segments))
        if leaves and all(isinstance(leaf, ParameterLeaf | LinearLeaf | SumLeaf | ViewLeaf) for leaf in leaves):
            names = ", ".join(sorted({root.name for leaf in leaves for root in leaf.roots}))
            raise equation.refuse(made_from_parameters(names), MADE_ADVICE)


@dataclass
class _Contraction:
    """The input of a weight while its axes are sorted into contracted, unshared, sliding and free ones."""

    interpreter: Interpreter
    equation: Equation
    view: ParameterView
    signal: Signal
    contracted: list[int]
    unshared: list[int]
    windows: list[tuple[int, Window]]

    @property
    def shaper(self) -> Shaper:
        return Shaper(self.interpreter, self.equation.source)

    def atoms(self, axis: int) -> Axis:
        return self.signal.layout.axes[axis]

    def spread(self, axis: int, kinds: tuple[type, ...]) -> None:
        """Turn the atoms of these kinds on an array axis into positions."""
        for position, atom in enumerate(self.atoms(axis)):
            if isinstance(atom, kinds):
                self.signal = self.shaper.spread(self.signal, axis, position)

    def leaf(self, contracting: Sequence[int], batch: Sequence[int], groups: int = 1) -> WeightLeaf:
        """The product, once the array axes that are contracted or have weights of their own are known."""
        view, equation = self.view, self.equation
        for axis in contracting:
            self.spread(axis, (Repeat,))
            self.contracted += [atom.index for atom in self.atoms(axis) if isinstance(atom, Space)]
        for axis in batch:
            self.spread(axis, (Repeat,))
            self.unshared += [atom.index for atom in self.atoms(axis) if isinstance(atom, Space)]
            groups *= prod(atom.length for atom in self.atoms(axis) if isinstance(atom, Width))
        if groups > 1 and (
            len(self.signal.segments) > 1 or any(t.varies for s in self.signal.segments for t in s.terms)
        ):
            raise equation.refuse(
                "it applies a weight to groups of features that differ from each other", "Use one group"
            )
        _check_bottleneck(equation, view, self.signal)
        return self.interpreter.interned(
            WeightLeaf(
                view.parameter,
                self.signal.segments,
                view.scale,
                tuple(sorted(self.contracted)),
                tuple(sorted(self.unshared)),
                tuple(sorted(self.windows, key=lambda pair: pair[0])),
                groups,
                view.stopped,
                source=equation.source,
            )
        )


def _check_bottleneck(equation: Equation, view: ParameterView, signal: Signal) -> None:
    """A single unit does not become many: a law of large numbers over it has no meaning."""
    if signal.layout.width > 1:
        return
    leaves = frozenset().union(*map(width_leaves, signal.segments))
    if any(isinstance(leaf, CopiesLeaf) for leaf in leaves):
        raise equation.refuse(
            f"the weight {view.parameter.name} mixes positions and keeps the features apart, as in an MLP-mixer",
            "Contract the features too, or mix positions by a fixed matrix or by attention",
        )
    if any(isinstance(leaf, WeightLeaf | EmbeddingLeaf) for leaf in leaves if not is_degenerate(leaf)):
        raise equation.refuse(
            f"the weight {view.parameter.name} reads a layer of one unit, which stays random however wide the others",
            "Give that layer more units",
        )


def _weight(interpreter: Interpreter, equation: Equation) -> Value:
    left, right = equation.operands
    view_is_left = isinstance(left, ParameterView)
    view, other = (left, right) if view_is_left else (right, left)
    assert isinstance(view, ParameterView)
    if isinstance(other, Constant) and is_number(other, 0.0):
        return kn.constant(np.zeros(equation.shape))
    check_parts(equation, (other,))
    contracting, batch = equation.parameters["dimension_numbers"]
    mine, theirs = contracting if view_is_left else contracting[::-1]
    my_batch, their_batch = batch if view_is_left else batch[::-1]
    _check_weight(equation, view, range(len(view.shape)))
    role = frozenset().union(*(view.axes[axis] for axis in mine))
    interpreter.claim(view.parameter, ("weight", role), equation.source)
    work = _Contraction(interpreter, equation, view, as_signal(interpreter, equation, other), [], [], [])
    free = [a for a in range(len(work.signal.shape)) if a not in (*theirs, *their_batch)]
    for axis in free:
        work.spread(axis, (Width,))
    leaf = work.leaf(theirs, their_batch)
    new = [view.shape[a] for a in range(len(view.shape)) if a not in (*mine, *my_batch)]
    rows: list[Axis] = [_after(work, work.atoms(axis)) for axis in their_batch]
    count = sum(isinstance(atom, Width) for row in rows for atom in row)
    rows = _renumbered(rows)
    free_rows = [_after(work, work.atoms(axis)) for axis in free]
    new_rows: list[Axis] = []
    for length in new:
        new_rows.append((Width(count, length),) if length != 1 else ())
        count += length != 1
    rows += [*new_rows, *free_rows] if view_is_left else [*free_rows, *new_rows]
    layout = Layout(tuple(rows))
    segment = Segment(layout.width, (of_leaf(leaf),), leaf.space)
    return Shaper(interpreter, equation.source).tidy(Signal(layout, (segment,)))


def _after(work: _Contraction, row: Axis) -> Axis:
    """The atoms of an axis after the contracted positions are gone."""
    gone = work.contracted
    return tuple(
        replace(atom, index=atom.index - sum(g < atom.index for g in gone)) if isinstance(atom, Space) else atom
        for atom in row
    )


def _renumbered(rows: list[Axis]) -> list[Axis]:
    """Number the parts of the width that are left from zero, in their order."""
    indices = sorted(atom.index for row in rows for atom in row if isinstance(atom, Width))
    return [tuple(replace(a, index=indices.index(a.index)) if isinstance(a, Width) else a for a in row) for row in rows]


def _check_weight(equation: Equation, view: ParameterView, axes: Sequence[int]) -> None:
    if np.any(view.mean != 0):
        raise equation.refuse(
            f"the weight {view.parameter.name} has mean {float(np.mean(view.mean)):g}, not 0; a sum over the width "
            "then grows with it",
            "Initialise the weight with mean zero",
        )
    if view.parameter.learning_rate is None and not view.stopped:
        raise equation.refuse(
            f"the weight {view.parameter.name} starts at exactly zero, so its learning rate has no natural scale",
            "Give one with learning_rate=",
        )
    if any(view.shape[axis] != 1 and not view.axes[axis] for axis in axes):
        raise equation.refuse(
            f"entries of the weight {view.parameter.name} are repeated before they are contracted",
            "Store the weight in the shape in which it is used",
        )


def _two_signals(interpreter: Interpreter, equation: Equation, left: Signal, right: Signal) -> Value:
    """Σ over the contracted axes of the product; over a width that is Known, by the law of large numbers."""
    (contracting, batch) = equation.parameters["dimension_numbers"]
    operands = []
    free = [
        [a for a in range(len(s.shape)) if a not in (*contracting[side], *batch[side])]
        for side, s in enumerate((left, right))
    ]
    for side, signal in enumerate((left, right)):
        rows = [signal.layout.axes[axis] for axis in batch[side]]
        for owner, own in enumerate(free):
            for axis in own:
                length = (left, right)[owner].shape[axis]
                repeat: Axis = (Repeat(length),) if length != 1 else ()
                rows.append(signal.layout.axes[axis] if owner == side else repeat)
        rows += [signal.layout.axes[axis] for axis in contracting[side]]
        operands.append(replace(signal, layout=Layout(tuple(rows))))
    kept = len(batch[0]) + sum(map(len, free))
    shape = (*equation.shape, *(left.shape[axis] for axis in contracting[0]))
    aligned = align(interpreter, equation, operands, shape)
    segments = []
    for first, second in aligned.columns(interpreter, equation):
        assert isinstance(first, Segment) and isinstance(second, Segment)
        segments.append(interpreter.algebra.multiply(first, second, equation.source))
    product = Signal(aligned.layout, tuple(segments))
    return summed(interpreter, equation, product, tuple(range(kept, len(shape))))


@rule("conv_general_dilated")
def convolve(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A weight that slides over positions: a Gaussian whose second moment is a windowed sum of its input's."""
    if all_known(equation):
        return default(interpreter, equation)
    other, view = equation.operands
    p = equation.parameters
    if not isinstance(view, ParameterView) or isinstance(other, ParameterView):
        raise equation.refuse(
            "it convolves a random signal with a fixed or random filter", "Pool instead, or train the filter"
        )
    check_parts(equation, (other,))
    if p["batch_group_count"] != 1:
        raise equation.refuse("it convolves groups of the batch", "Call the model on one example at a time")
    if interpreter.numerical and is_depthwise(equation):
        return interpreter.run(by_taps(equation), equation.operands, equation.source)
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    _check_weight(equation, view, range(len(view.shape)))
    role = frozenset().union(*(view.axes[axis] for axis in rhs[1:]))
    interpreter.claim(view.parameter, ("weight", role), equation.source)
    work = _Contraction(interpreter, equation, view, as_signal(interpreter, equation, other), [], [], [])
    shaper = work.shaper
    work.spread(lhs[0], (Width,))
    feature, own_groups = lhs[1], 1
    if groups > 1:
        lengths = [n for n in (groups, work.signal.shape[feature] // groups) if n != 1]
        work.spread(feature, (Repeat,))
        if len(work.atoms(feature)) != 1 and [atom.length for atom in work.atoms(feature)] != lengths:
            raise equation.refuse("its groups are not those that its input is made of", "Use one group")
        work.signal = shaper.split_axis(work.signal, feature, lengths)
        first = work.atoms(feature)[0]
        if isinstance(first, Space):
            work.unshared.append(first.index)
        else:
            own_groups = groups
    for dimension, axis in enumerate(lhs[2:]):
        work.signal, index = shaper.as_positions(work.signal, axis)
        low, high = p["padding"][dimension]
        window = Window(
            view.shape[rhs[2 + dimension]],
            p["window_strides"][dimension],
            low,
            high,
            p["lhs_dilation"][dimension],
            p["rhs_dilation"][dimension],
        )
        work.windows.append((index, window))
    # Positions are renumbered by the steps above, so the groups' index is looked up again.
    if work.unshared:
        first = work.atoms(feature)[0]
        assert isinstance(first, Space)
        work.unshared = [first.index]
        work.contracted += [atom.index for atom in work.atoms(feature)[1:] if isinstance(atom, Space)]
        leaf = work.leaf((), (), own_groups)
    else:
        leaf = work.leaf((feature,), (), own_groups)
    units = equation.shape[out[1]] // (groups if work.unshared else 1)
    feature_row: Axis = (Width(0, units),) if units != 1 else ()
    if work.unshared:
        feature_row = (*_after(work, work.atoms(feature)[:1]), *feature_row)
    rows: list[Axis] = [()] * len(equation.shape)
    rows[out[0]] = _after(work, work.atoms(lhs[0]))
    rows[out[1]] = feature_row
    for dimension, axis in enumerate(out[2:]):
        (atom,) = _after(work, work.atoms(lhs[2 + dimension]))
        rows[axis] = (replace(atom, length=leaf.space[atom.index]),)  # pyright: ignore[reportAttributeAccessIssue]
    layout = Layout(tuple(rows))
    segment = Segment(layout.width, (of_leaf(leaf),), leaf.space)
    return [shaper.tidy(Signal(layout, (segment,)))]
