"""Rules for maxima and minima over positions, which are functions of several Gaussians: max-pooling, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from ..graph.known import Known, Operation
from ..graph.layout import Layout, Width
from ..graph.signal import Segment, Signal
from ..graph.space import Window
from . import known as kn
from .align import as_signal
from .interpreter import Equation, Interpreter, rule
from .joint import LONGEST
from .linear import windows, without_axis
from .rules import default
from .shaping import Shaper
from .values import ParameterView, Value

_NUMERICAL = "ask for quasi-Monte-Carlo: tangency.limit(..., numerical=True)"


@rule("reduce_max", "reduce_min")
def extreme(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """The largest or smallest over positions."""
    signal = _signal(
        interpreter,
        equation,
        "A maximum or softmax of random signals has no closed limit: pool by an average, return the logits, scale "
        f"attention scores by 1/d, with which they become deterministic, or {_NUMERICAL}",
    )
    if signal is None:
        return default(interpreter, equation)
    for axis in sorted(equation.parameters["axes"], reverse=True):
        signal, space = _over_positions(interpreter, equation, signal, axis)
        shaper = Shaper(interpreter, equation.source)
        places = [kn.constant(np.asarray(place)) for place in range(signal.layout.space[space])]
        segments = [
            _folded(interpreter, equation, [shaper.select(segment, space, place) for place in places])
            for segment in signal.segments
        ]
        signal = without_axis(signal, axis, segments)
    kept = tuple(row for axis, row in enumerate(signal.layout.axes) if axis not in equation.parameters["axes"])
    return [replace(signal, layout=Layout(kept))]


@rule("reduce_window_max", "reduce_window_min")
def pooled(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """Max-pooling: the largest in a window that slides over positions."""
    signal = _signal(
        interpreter,
        equation,
        "Max-pooling is a function of several correlated Gaussians without a closed limit: pool by an average, or "
        + _NUMERICAL,
    )
    if signal is None:
        return default(interpreter, equation)
    for axis, window in windows(equation):
        if window.base_dilation != 1:
            raise equation.refuse("it takes maxima over an array spread by zeros", "Use base_dilation=1")
        signal, space = _over_positions(interpreter, equation, signal, axis)
        segments = tuple(_slid(interpreter, equation, segment, space, window) for segment in signal.segments)
        shaper = Shaper(interpreter, equation.source)
        signal = shaper.tidy(Signal(shaper.with_axis(signal, axis, segments[0].space[space]), segments))
    return [signal]


def _signal(interpreter: Interpreter, equation: Equation, advice: str) -> Signal | None:
    """The random operand; None if it is Known."""
    (operand,) = equation.operands
    if isinstance(operand, Known):
        return None
    if not interpreter.numerical:
        raise equation.refuse("no rule for it on a random signal is known yet", advice)
    if isinstance(operand, ParameterView):
        raise equation.refuse("it takes the largest of a parameter's entries", "Use the parameter entry by entry")
    return as_signal(interpreter, equation, operand)


def _over_positions(interpreter: Interpreter, equation: Equation, signal: Signal, axis: int) -> tuple[Signal, int]:
    if any(isinstance(atom, Width) for atom in signal.layout.axes[axis]):
        raise equation.refuse(
            "it takes the largest of many features, which does not converge as their number grows",
            "Take it over positions, or put it after the network",
        )
    return Shaper(interpreter, equation.source).as_positions(signal, axis)


def _slid(interpreter: Interpreter, equation: Equation, segment: Segment, axis: int, window: Window) -> Segment:
    """The largest in each window; what a window reads of the padding is replaced by a place that it reads as well."""
    length = segment.space[axis]
    start = np.arange(window.output_length(length)) * window.stride - window.low
    index = start[:, None] + np.arange(window.size) * window.dilation
    inside = (index >= 0) & (index < length)
    if not inside.any(axis=1).all():
        raise equation.refuse("some of its windows lie in the padding altogether", "Use less padding")
    first = np.take_along_axis(index, inside.argmax(axis=1)[:, None], axis=1)
    taps = np.where(inside, index, first).T
    shaper = Shaper(interpreter, equation.source)
    return _folded(interpreter, equation, [shaper.select(segment, axis, kn.constant(tap)) for tap in taps])


def _folded(interpreter: Interpreter, equation: Equation, parts: Sequence[Segment]) -> Segment:
    if len(parts) > LONGEST:
        raise equation.refuse(
            f"it compares {len(parts)} positions; the numerical rule takes at most {LONGEST}", "Use a smaller window"
        )
    larger: Operation = kn.operation_of("max" if equation.name.endswith("max") else "min")
    return reduce(lambda a, b: interpreter.algebra.compose(larger, (a, b), equation.source), parts)
