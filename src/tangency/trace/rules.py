"""The rules of the dense family: one for each family of primitives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import prod

import numpy as np

from ..errors import UnsupportedModelError
from ..graph.known import ELEMENTWISE, Constant, Known, Operation, PendingWidth, WidthSum
from ..graph.signal import DenseLeaf, Segment, Signal, Term, of_leaf
from . import known as kn
from .interpreter import Equation, Interpreter, rule, width_leaves
from .values import ParameterView, Value, known_segment, width_axis

SegmentRule = Callable[[Sequence[Segment | Known]], Segment]


def _operation(equation: Equation, output: int = 0) -> Operation:
    primitive = equation.jaxpr_equation.primitive
    return Operation.of(primitive, equation.parameters, output=output, source=equation.source)


@rule("default")
def default(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A primitive without a rule of its own: fine on Known values, refused on anything random."""
    operands = [operand for operand in equation.operands if isinstance(operand, Known)]
    if len(operands) == len(equation.operands) and "jaxpr" not in " ".join(equation.parameters):
        shapes = [variable.aval.shape for variable in equation.jaxpr_equation.outvars]  # pyright: ignore[reportAttributeAccessIssue]
        return [kn.apply(_operation(equation, i), operands, shape) for i, shape in enumerate(shapes)]
    what = "a parameter" if any(isinstance(o, ParameterView) for o in equation.operands) else "a random signal"
    if len(operands) == len(equation.operands):
        what = "the input"
    raise equation.refuse(f"no rule for it on {what} is known yet", _ADVICE.get(equation.name, _GENERAL_ADVICE))


_GENERAL_ADVICE = (
    "Covered are dense layers, biases, residual sums, concatenation of features, LayerNorm, RMSNorm and elementwise "
    "activations"
)
_ADVICE = {
    "conv_general_dilated": "Convolutions are not covered yet; flatten the input and use dense layers",
    "scan": "Loops are not covered yet; write the layers out, one after the other",
    "while": "Loops are not covered yet; write the layers out, one after the other",
    "cond": "Branches are not covered yet; choose the branch outside the model",
    "random_bits": "Dropout is covered in its inference form only: switch the model to inference",
    "reduce_max": "A maximum or softmax over units has no closed limit; return the logits",
    "sort": "Order statistics of units have no limit rule; remove the sort",
    "stop_gradient": "Freeze parameters with trainable= instead of stopping gradients inside the model",
}


@rule(*(ELEMENTWISE - {"add", "sub", "mul", "div", "neg", "select_n", "convert_element_type", "copy"}))
def nonlinear(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """φ(s, …): a function of one Gaussian, composed with what is there already."""
    if equation.name in ("round", "rem") and not _all_known(equation):
        return default(interpreter, equation)
    squared = equation.name == "square" or (equation.name == "integer_pow" and equation.parameters["y"] == 2)

    def act(operands: Sequence[Segment | Known]) -> Segment:
        first = operands[0]
        if squared and isinstance(first, Segment) and len(first.terms) > 1:
            return interpreter.algebra.multiply(first, first, equation.source)
        return interpreter.algebra.compose(_operation(equation), operands, equation.source)

    return _elementwise(interpreter, equation, act)


@rule("select_n")
def select(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A choice by a Known mask is linear: (1 − mask) s + mask t. By the signal itself, it is a nonlinearity."""
    which, *cases = equation.operands
    if not isinstance(which, Known) or _all_known(equation) or len(cases) != 2:
        return nonlinear(interpreter, equation)
    mask = kn.as_number(which)
    opposite = kn.add(kn.negate(mask), kn.ones_like(mask))
    algebra, source = interpreter.algebra, equation.source

    def act(operands: Sequence[Segment | Known]) -> Segment:
        size = next(o.size for o in operands if isinstance(o, Segment))
        first, second, *weights = operands
        parts = []
        for case, weight in zip((first, second), weights, strict=True):
            assert isinstance(weight, Known)
            segment = case if isinstance(case, Segment) else known_segment(case, size)
            parts.append(algebra.scale(segment, weight, source))
        return algebra.add(parts, source)

    return _elementwise(interpreter, replace(equation, operands=(*cases, opposite, mask)), act)


@rule("add", "sub", "neg", "mul", "div")
def arithmetic(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Sums list their terms, products distribute; a Known factor is a coefficient."""
    view = _scaled_parameter(equation)
    if view is not None:
        return [view]
    algebra, source = interpreter.algebra, equation.source

    def segment_of(operand: Segment | Known, size: int) -> Segment:
        return operand if isinstance(operand, Segment) else known_segment(operand, size)

    def act(operands: Sequence[Segment | Known]) -> Segment:
        size = next(o.size for o in operands if isinstance(o, Segment))
        if equation.name == "neg":
            return algebra.scale(segment_of(operands[0], size), Constant.of(-1.0), source)
        left, right = operands
        if equation.name == "add":
            return algebra.add((segment_of(left, size), segment_of(right, size)), source)
        if equation.name == "sub":
            minus = algebra.scale(segment_of(right, size), Constant.of(-1.0), source)
            return algebra.add((segment_of(left, size), minus), source)
        if equation.name == "div":
            if isinstance(right, Segment):
                return algebra.compose(_operation(equation), operands, source)
            right = kn.reciprocal(right)
        if isinstance(left, Segment) and isinstance(right, Segment):
            return algebra.multiply(left, right, source)
        signal, known = (left, right) if isinstance(left, Segment) else (right, left)
        assert isinstance(signal, Segment) and isinstance(known, Known)
        return algebra.scale(signal, known, source)

    return _elementwise(interpreter, equation, act)


def _all_known(equation: Equation) -> bool:
    return all(isinstance(operand, Known) for operand in equation.operands)


def _scaled_parameter(equation: Equation) -> ParameterView | None:
    """A parameter times a constant stays a parameter, whatever its shape."""
    views = [operand for operand in equation.operands if isinstance(operand, ParameterView)]
    constants = [o.scalar for o in equation.operands if isinstance(o, Constant) and o.scalar is not None]
    if len(views) != 1 or len(constants) + 1 != len(equation.operands) or views[0].shape != equation.shape:
        return None
    match equation.name:
        case "neg":
            return views[0].times(-1.0)
        case "mul":
            return views[0].times(constants[0])
        case "div" if equation.operands[0] is views[0] and constants[0] != 0:
            return views[0].times(1.0 / constants[0])
    return None


def _elementwise(interpreter: Interpreter, equation: Equation, act: SegmentRule) -> Sequence[Value]:
    """Bring the operands to one width and its segments, and act on each segment."""
    if _all_known(equation):
        return default(interpreter, equation)
    width = _common_width(equation)
    size = 1 if width is None else equation.shape[width]
    operands = [_as_segments(interpreter, equation, operand, width, size) for operand in equation.operands]
    cuts = sorted({0}.union(*(np.cumsum([s.size for s in o]).tolist() for o in operands if isinstance(o, tuple))))
    segments = []
    for start, stop in pairwise(cuts):
        segments.append(act([_cut(equation, operand, start, stop) for operand in operands]))
    return [Signal(equation.shape, width, tuple(segments))]


def _common_width(equation: Equation) -> int | None:
    axes = {width_axis(o) for o in equation.operands if isinstance(o, Signal | ParameterView)} - {None}
    if len(axes) > 1:
        raise equation.refuse(
            "it combines the widths of two signals as different axes", "Combine signals along one feature axis"
        )
    width = next(iter(axes), None)
    for axis, length in enumerate(equation.shape):
        if length != 1 and axis != width:
            raise equation.refuse(
                f"the result has shape {equation.shape}: positions beside the features are not covered yet"
                if width is not None
                else f"one random number is repeated over an array of shape {equation.shape}",
                "Give one feature vector per example, and one parameter per feature",
            )
    return width


def _as_segments(
    interpreter: Interpreter, equation: Equation, operand: Value, width: int | None, size: int
) -> tuple[Segment, ...] | Known:
    if isinstance(operand, Known):
        entries = prod(operand.shape)
        return kn.reshape(operand, () if entries == 1 else (size,)) if entries in (1, size) else operand
    if isinstance(operand, Signal):
        if operand.width is None and size != 1:
            raise _repeated(equation)
        return operand.segments
    assert isinstance(operand, ParameterView)
    if len(operand.long_axes) > 1:
        raise equation.refuse(
            f"the weight {operand.parameter.name} is changed entry by entry before it is used",
            "Only multiples of a weight by a constant are covered; scale the signal instead",
        )
    if size != prod(operand.shape):
        raise _repeated(equation, operand.parameter.name)
    return (interpreter.parameter_segment(operand, equation.source),)


def _repeated(equation: Equation, name: str | None = None) -> UnsupportedModelError:
    what = f"the parameter {name}" if name else "one random number"
    return equation.refuse(
        f"{what} is shared by all units along the width, so its tangent stays random however wide the layer",
        "Use one parameter per unit, or freeze it with trainable=",
    )


def _cut(equation: Equation, operand: tuple[Segment, ...] | Known, start: int, stop: int) -> Segment | Known:
    if isinstance(operand, Known):
        return operand if operand.shape == () else kn.take(operand, start, stop)
    position = 0
    for segment in operand:
        end = position + segment.size
        if position == start and end == stop:
            return segment
        if position <= start and stop <= end:
            return _part(equation, segment, start - position, stop - position)
        position = end
    raise AssertionError("cuts do not refine the segments")


def _part(equation: Equation, segment: Segment, start: int, stop: int) -> Segment:
    if not segment.is_known:
        raise equation.refuse(
            "it splits the units of a dense layer, or adds a concatenation to a signal that is not cut likewise",
            "Use one dense layer for each part",
        )
    terms = [Term(kn.take(t.coefficient, start, stop) if t.varies else t.coefficient) for t in segment.terms]
    return Segment(stop - start, tuple(terms))


@rule("convert_element_type", "copy", "optimization_barrier")
def identity(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Changes of precision do not change the limit; a cast of a random signal to integers is refused."""
    if _all_known(equation):
        return default(interpreter, equation)
    target = equation.parameters.get("new_dtype")
    if target is not None and not np.issubdtype(np.dtype(target), np.inexact) and "float" not in np.dtype(target).name:
        raise equation.refuse("it rounds a random signal to integers", "Keep the signal in floating point")
    if isinstance(equation.operands[0], Signal):
        return _mask_to_number(interpreter, equation)
    return equation.operands


def _mask_to_number(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    source_type = equation.jaxpr_equation.invars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]
    if source_type != np.bool_:
        return equation.operands

    def act(operands: Sequence[Segment | Known]) -> Segment:
        return interpreter.algebra.compose(_operation(equation), operands, equation.source)

    return _elementwise(interpreter, equation, act)


@rule("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose")
def regroup(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Axes of length one come and go; the width stays one axis."""
    operand, shape = equation.operands[0], equation.shape
    if isinstance(operand, Known):
        return default(interpreter, equation)
    if isinstance(operand, ParameterView):
        if equation.name == "transpose":
            return [operand.transposed(equation.parameters["permutation"])]
        view = operand.reshaped(shape)
        if view is None:
            raise equation.refuse(
                f"the parameter {operand.parameter.name} of shape {operand.shape} is regrouped or repeated as {shape}",
                "Store the parameter in the shape in which it is used",
            )
        return [view]
    assert isinstance(operand, Signal)
    long_axes = [axis for axis, length in enumerate(shape) if length != 1]
    if prod(shape) != prod(operand.shape) or len(long_axes) > 1:
        raise equation.refuse(
            f"a signal of shape {operand.shape} becomes {shape}: several long axes are not covered yet",
            "Keep one feature axis",
        )
    return [Signal(shape, long_axes[0] if long_axes else None, operand.segments)]


@rule("concatenate")
def concatenate(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Concatenation of features: the parts keep their own laws, and grow in the traced proportions."""
    if _all_known(equation):
        return default(interpreter, equation)
    axis = equation.parameters["dimension"]
    segments: list[Segment] = []
    for variable, operand in zip(equation.jaxpr_equation.invars, equation.operands, strict=True):
        size = variable.aval.shape[axis]  # pyright: ignore[reportAttributeAccessIssue]
        part = _as_segments(interpreter, equation, operand, axis, size)
        segments.extend((known_segment(part, size),) if isinstance(part, Known) else part)
    if any(length != 1 for i, length in enumerate(equation.shape) if i != axis):
        raise equation.refuse("positions beside the features are not covered yet", "Concatenate feature vectors")
    return [Signal(equation.shape, axis, tuple(segments))]


@rule("reduce_sum")
def total(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A sum over the width is its expectation, by the law of large numbers: Known, with zero tangent."""
    if _all_known(equation):
        return default(interpreter, equation)
    operand = equation.operands[0]
    if isinstance(operand, ParameterView):
        raise equation.refuse("it sums the entries of a parameter", "Use the parameter entry by entry")
    assert isinstance(operand, Signal)
    if operand.width is None or operand.width not in equation.parameters["axes"]:
        long_axes = [axis for axis, length in enumerate(equation.shape) if length != 1]
        return [Signal(equation.shape, long_axes[0] if long_axes else None, operand.segments)]
    return [kn.reshape(width_sum(interpreter, equation, operand.segments), equation.shape)]


def width_sum(interpreter: Interpreter, equation: Equation, segments: tuple[Segment, ...]) -> Known:
    """Σ_c E[s_c], leaving out the terms that are odd in a zero-mean leaf."""
    leaves = frozenset().union(*(width_leaves(segment) for segment in segments))
    random = any(term.random for segment in segments for term in segment.terms)
    if random and not any(isinstance(leaf, DenseLeaf) for leaf in leaves):
        raise equation.refuse(
            "it sums random parameters over the input's own features, whose number stays finite",
            "Write a contraction with a weight as a matrix product",
        )
    interpreter.averaged.append((leaves, equation))
    kept = [Segment(s.size, tuple(t for t in s.terms if not _has_zero_mean(t))) for s in segments]
    kept = [segment for segment in kept if segment.terms]
    pending = PendingWidth(sum(segment.size for segment in segments), Fraction(1), zero_mean=not kept)
    return WidthSum((), segments=tuple(kept), pending=pending)


def _has_zero_mean(term: Term) -> bool:
    """Whether some factor is a bare leaf that no other factor is correlated with."""
    for factor in term.factors:
        others = [other.leaf for other in term.factors if other is not factor]
        if factor.function.is_identity and all(factor.leaf.roots.isdisjoint(leaf.roots) for leaf in others):
            return True
    return False


@rule("dot_general")
def contract(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """W s: a Gaussian, by the central limit theorem over the contracted width."""
    if _all_known(equation):
        return default(interpreter, equation)
    left, right = equation.operands
    if isinstance(left, Signal) and isinstance(right, Signal):
        return _inner_product(interpreter, equation, left, right)
    if isinstance(left, ParameterView) == isinstance(right, ParameterView):
        raise equation.refuse(
            "it multiplies two parameters or mixes the units of a signal by a fixed matrix",
            "Apply one weight after the other to the signal; a fixed matrix has no infinite-width limit",
        )
    view, other = (left, right) if isinstance(left, ParameterView) else (right, left)
    assert isinstance(view, ParameterView)
    size, free_axis = _check_contraction(interpreter, equation, view, other, view is left)
    segments = (known_segment(other, size),) if isinstance(other, Known) else other.segments  # pyright: ignore
    _check_weight(equation, view)
    leaf = interpreter.dense_leaf(view, tuple(segments), equation.source)
    width = free_axis if free_axis is not None and equation.shape[free_axis] != 1 else None
    segment = Segment(1 if width is None else equation.shape[width], (of_leaf(leaf),))
    return [Signal(equation.shape, width, (segment,))]


def _check_contraction(
    interpreter: Interpreter, equation: Equation, view: ParameterView, other: Value, view_is_left: bool
) -> tuple[int, int | None]:
    """The contracted size, and the output axis that the weight's free axis becomes."""
    (contracting, batch) = equation.parameters["dimension_numbers"]
    mine, theirs = contracting if view_is_left else contracting[::-1]
    my_batch, their_batch = batch if view_is_left else batch[::-1]
    assert isinstance(other, Known | Signal)
    others = [n for axis, n in enumerate(other.shape) if axis not in (*theirs, *their_batch) and n != 1]
    if len(mine) != 1 or others or any(view.shape[axis] != 1 for axis in my_batch):
        raise equation.refuse(
            f"it contracts arrays of shapes {view.shape} and {other.shape}: only a weight matrix times one feature "
            "vector is covered yet",
            "Flatten the input to one feature vector per example",
        )
    free = [axis for axis in range(len(view.shape)) if axis not in (*mine, *my_batch)]
    long_free = [axis for axis in free if view.shape[axis] != 1]
    if len(long_free) > 1:
        raise equation.refuse(
            f"the weight {view.parameter.name} gives several feature axes", "Use one weight matrix for each"
        )
    role = view.axes[mine[0]]
    interpreter.claim(view.parameter, mine[0] if role is None else role, equation.source)
    before = len(batch[0])
    if not view_is_left:
        before += len([axis for axis in range(len(other.shape)) if axis not in (*theirs, *their_batch)])
    output_axis = before + free.index(long_free[0]) if long_free else None
    return view.shape[mine[0]], output_axis


def _check_weight(equation: Equation, view: ParameterView) -> None:
    if np.any(view.mean != 0):
        raise equation.refuse(
            f"the weight {view.parameter.name} has mean {float(np.mean(view.mean)):g}, not 0; a sum over the width "
            "then grows with it",
            "Initialise the weight with mean zero",
        )
    if view.parameter.learning_rate is None:
        raise equation.refuse(
            f"the weight {view.parameter.name} starts at exactly zero, so its learning rate has no natural scale",
            "Give one with learning_rate=",
        )


def _inner_product(interpreter: Interpreter, equation: Equation, left: Signal, right: Signal) -> Sequence[Value]:
    """⟨s, t⟩ over a common width: Known by the law of large numbers."""
    (mine, theirs), _ = equation.parameters["dimension_numbers"]
    if left.width not in mine or right.width not in theirs or len(left.segments) != len(right.segments):
        raise equation.refuse("an outer product of two signals is not covered yet", "Use one feature vector")
    products = [
        interpreter.algebra.multiply(s, t, equation.source)
        for s, t in zip(left.segments, right.segments, strict=True)
        if s.size == t.size
    ]
    if len(products) != len(left.segments):
        raise equation.refuse("the two signals are concatenated in different places", "Cut them alike")
    return [kn.reshape(width_sum(interpreter, equation, tuple(products)), equation.shape)]
