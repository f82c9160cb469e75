"""Rules for elementwise operations, and for what has no rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..graph.known import ELEMENTWISE, Constant, Known, Operation
from ..graph.signal import Segment, Signal
from . import known as kn
from .align import align, as_signal, known_segment
from .interpreter import Equation, Interpreter, rule
from .joint import stopped_segment
from .values import ParameterView, Value

SegmentRule = Callable[[Sequence[Segment | Known]], Segment]


def operation_of(equation: Equation, output: int = 0) -> Operation:
    primitive = equation.jaxpr_equation.primitive
    return Operation.of(primitive, equation.parameters, output=output, source=equation.source)


@rule("default")
def default(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A primitive without a rule of its own: fine on Known values, refused on anything random."""
    operands = [operand for operand in equation.operands if isinstance(operand, Known)]
    if len(operands) == len(equation.operands) and "jaxpr" not in " ".join(equation.parameters):
        shapes = [variable.aval.shape for variable in equation.jaxpr_equation.outvars]  # pyright: ignore[reportAttributeAccessIssue]
        return [kn.apply(operation_of(equation, i), operands, shape) for i, shape in enumerate(shapes)]
    what = "a parameter" if any(isinstance(o, ParameterView) for o in equation.operands) else "a random signal"
    if len(operands) == len(equation.operands):
        what = "the input"
    raise equation.refuse(f"no rule for it on {what} is known yet", _ADVICE.get(equation.name, _GENERAL_ADVICE))


_GENERAL_ADVICE = (
    "Covered are weights (dense, convolution, embedding), norms, elementwise activations, products, and linear maps "
    "over positions"
)
_ADVICE = {
    "while": "Its length is not known when it is traced: use lax.scan, or write the steps out",
    "sort": "Order statistics of units have no limit rule; remove the sort",
}


@rule(*(ELEMENTWISE - {"add", "sub", "mul", "div", "neg", "select_n", "convert_element_type", "copy"}))
def nonlinear(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """φ(s, …): a function of one Gaussian, composed with what is there already."""
    if equation.name in ("round", "rem") and not all_known(equation):
        return default(interpreter, equation)
    squared = equation.name == "square" or (equation.name == "integer_pow" and equation.parameters["y"] == 2)

    def act(operands: Sequence[Segment | Known]) -> Segment:
        first = operands[0]
        algebra = interpreter.algebra
        if squared and isinstance(first, Segment) and (len(first.terms) > 1 or not algebra.one_gaussian([first])):
            return algebra.multiply(first, first, equation.source)
        return algebra.compose(operation_of(equation), operands, equation.source)

    return elementwise(interpreter, equation, act)


@rule("select_n")
def select(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A choice by a Known mask is linear: (1 − mask) s + mask t. By the signal itself, it is a nonlinearity."""
    which, *cases = equation.operands
    if isinstance(which, ParameterView) and which.parameter.noise and len(cases) == 2:
        return _dropped(interpreter, equation, which, cases)
    if isinstance(which, Signal) and len(cases) == 2 and interpreter.algebra.joint is None:
        return _gated(interpreter, equation)
    if not isinstance(which, Known) or all_known(equation) or len(cases) != 2:
        return nonlinear(interpreter, equation)
    mask = kn.as_number(which)
    opposite = kn.add(kn.negate(mask), kn.constant(np.ones(mask.shape)))
    algebra, source = interpreter.algebra, equation.source

    def act(operands: Sequence[Segment | Known]) -> Segment:
        like = next(o for o in operands if isinstance(o, Segment))
        first, second, *weights = operands
        parts = []
        for case, weight in zip((first, second), weights, strict=True):
            assert isinstance(weight, Known)
            segment = case if isinstance(case, Segment) else known_segment(_finite(case), like.size, like.space)
            parts.append(algebra.scale(segment, weight, source))
        return algebra.add(parts, source)

    return elementwise(interpreter, replace(equation, operands=(*cases, opposite, mask)), act)


def _gated(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A choice by other Gaussians than those of the cases: products with 0 or 1, through which no gradient goes."""
    algebra, source = interpreter.algebra, equation.source

    def act(operands: Sequence[Segment | Known]) -> Segment:
        which, *cases = operands
        if not isinstance(which, Segment) or algebra.one_gaussian(operands):
            return algebra.compose(operation_of(equation), operands, source)
        second = algebra.compose(kn.AS_NUMBER, [which], source)
        minus = algebra.scale(second, kn.constant(-1.0), source)
        first = algebra.add((known_segment(kn.constant(1.0), which.size, which.space), minus), source)
        parts = []
        for case, weight in zip(cases, (first, second), strict=True):
            if isinstance(case, Segment):
                parts.append(algebra.multiply(case, weight, source))
            else:
                parts.append(algebra.scale(weight, _finite(case), source))
        return algebra.add(parts, source)

    return elementwise(interpreter, equation, act)


def _dropped(
    interpreter: Interpreter, equation: Equation, mask: ParameterView, cases: Sequence[Value]
) -> Sequence[Value]:
    """A choice by dropout's own mask: s + mask · (t − s)."""
    algebra, source = interpreter.algebra, equation.source

    def act(operands: Sequence[Segment | Known]) -> Segment:
        like = next(o for o in operands if isinstance(o, Segment))
        kept = [o if isinstance(o, Segment) else known_segment(o, like.size, like.space) for o in operands]
        minus = algebra.scale(kept[0], kn.constant(-1.0), source)
        change = algebra.multiply(kept[2], algebra.add((kept[1], minus), source), source)
        return algebra.add((kept[0], change), source)

    return elementwise(interpreter, replace(equation, operands=(*cases, mask)), act)


def _finite(case: Known) -> Known:
    """What stands at masked places: −∞ there would make 0 · ∞."""
    if isinstance(case, Constant) and not np.all(np.isfinite(case.value)):
        return kn.constant(np.where(np.isfinite(case.value), case.value, 0.0))
    return case


@rule("add", "sub", "neg", "mul", "div")
def arithmetic(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Sums list their terms, products distribute; a Known factor is a coefficient."""
    view = _scaled_parameter(equation)
    if view is not None:
        return [view]
    algebra, source = interpreter.algebra, equation.source

    def segment_of(operand: Segment | Known, like: Segment) -> Segment:
        return operand if isinstance(operand, Segment) else known_segment(operand, like.size, like.space)

    def act(operands: Sequence[Segment | Known]) -> Segment:
        like = next(o for o in operands if isinstance(o, Segment))
        if equation.name == "neg":
            return algebra.scale(like, kn.constant(-1.0), source)
        left, right = operands
        if equation.name == "add":
            return algebra.add((segment_of(left, like), segment_of(right, like)), source)
        if equation.name == "sub":
            minus = algebra.scale(segment_of(right, like), kn.constant(-1.0), source)
            return algebra.add((segment_of(left, like), minus), source)
        if equation.name == "div":
            if isinstance(right, Segment):
                return algebra.compose(operation_of(equation), operands, source)
            right = kn.reciprocal(right)
        if isinstance(left, Segment) and isinstance(right, Segment):
            return algebra.multiply(left, right, source)
        signal, known = (left, right) if isinstance(left, Segment) else (right, left)
        assert isinstance(signal, Segment) and isinstance(known, Known)
        return algebra.scale(signal, known, source)

    return elementwise(interpreter, equation, act)


def all_known(equation: Equation) -> bool:
    return all(isinstance(operand, Known) for operand in equation.operands)


def _scaled_parameter(equation: Equation) -> ParameterView | None:
    """A parameter times a constant, or shifted by one, stays a parameter, whatever its shape."""
    views = [operand for operand in equation.operands if isinstance(operand, ParameterView)]
    others = [o for o in equation.operands if isinstance(o, Constant)]
    if len(views) != 1 or len(others) + 1 != len(equation.operands) or views[0].shape != equation.shape:
        return None
    view = views[0]
    numbers = [o.scalar for o in others]
    match equation.name:
        case "neg":
            return view.times(-1.0)
        case "mul" if numbers[0] is not None:
            return view.times(numbers[0])
        case "div" if equation.operands[0] is view and numbers[0]:
            return view.times(1.0 / numbers[0])
        case "add":
            return replace(view, mean=view.mean + others[0].value)
        case "sub" if equation.operands[0] is view:
            return replace(view, mean=view.mean - others[0].value)
        case "sub":
            minus = view.times(-1.0)
            return replace(minus, mean=minus.mean + others[0].value)
    return None


def elementwise(interpreter: Interpreter, equation: Equation, act: SegmentRule) -> Sequence[Value]:
    """Bring the operands to one layout and act on each part of the width."""
    if all_known(equation):
        return default(interpreter, equation)
    aligned = align(interpreter, equation, equation.operands, equation.shape)
    columns = aligned.columns(interpreter, equation)
    return [Signal(aligned.layout, tuple(act(column) for column in columns))]


@rule("convert_element_type", "copy", "optimization_barrier", "reduce_precision")
def identity(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Changes of precision do not change the limit; a cast of a random signal to integers is refused."""
    if all_known(equation):
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
        return interpreter.algebra.compose(operation_of(equation), operands, equation.source)

    return elementwise(interpreter, equation, act)


@rule("stop_gradient")
def stopped(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """The same values without a gradient."""
    (operand,) = equation.operands
    if isinstance(operand, Known):
        return [operand]
    if isinstance(operand, ParameterView):
        return [replace(operand, stopped=True)]
    signal = as_signal(interpreter, equation, operand)
    return [Signal(signal.layout, tuple(stopped_segment(s, interpreter) for s in signal.segments))]
