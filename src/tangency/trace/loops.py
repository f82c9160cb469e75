"""Rules for `lax.scan` and for `lax.cond` on constants.

A recurrent network is one step, seen at all times at once: time becomes an axis of positions, and what a step receives
from the one before is a leaf of its own (`CarryLeaf`), whose second moments follow from the step's result at the time
before. Where that is not possible (layers of one stacked array, a state that is added to), the loop is unrolled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from ..graph.known import Constant, Known, is_number
from ..graph.layout import Axis, Layout, Space, Width
from ..graph.signal import CarryLeaf, Loop, ParameterStatistics, Segment, Signal, of_leaf
from . import known as kn
from .align import align, known_segment
from .interpreter import Equation, Interpreter, rule, width_leaves
from .structure import expanded, joined, reshaped, taken
from .values import ParameterView, Value

_LONGEST = 256


@dataclass(frozen=True)
class _Scan:
    """The parts of a scan's operands."""

    body: jex.ClosedJaxpr
    constants: tuple[Value, ...]
    carry: tuple[Value, ...]
    inputs: tuple[Value, ...]
    length: int
    reverse: bool

    @classmethod
    def of(cls, equation: Equation) -> _Scan:
        p = equation.parameters
        first, second = p["num_consts"], p["num_consts"] + p["num_carry"]
        values = equation.operands
        parts = values[:first], values[first:second], values[second:]
        return cls(p["jaxpr"], parts[0], parts[1], parts[2], p["length"], p.get("reverse", False))

    def passed_on(self) -> list[bool]:
        """For each part of the state, whether every step hands it on as it is."""
        variables = self.body.jaxpr.invars[len(self.constants) :]
        return [a is b for a, b in zip(variables, self.body.jaxpr.outvars[: len(self.carry)], strict=False)]


@rule("scan")
def scan(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A loop of fixed length."""
    loop = _Scan.of(equation)
    together = _at_once(interpreter, equation, loop)
    return _unrolled(interpreter, equation, loop) if together is None else together


@rule("steps")
def steps(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A loop that Python wrote out (see `reroll`), if it is a recurrence."""
    together = _at_once(interpreter, equation, _Scan.of(equation))
    if together is None:
        raise equation.refuse("its steps are no plain recurrence", "Use lax.scan")
    return together


def _at_once(interpreter: Interpreter, equation: Equation, loop: _Scan) -> list[Value] | None:
    """All steps at once: independent ones (`lax.map`), or a recurrence of one layer's features that starts from zero;
    None for any other loop."""
    passed = loop.passed_on()
    moving = [k for k, same in enumerate(passed) if not same]
    if any(isinstance(x, ParameterView) for x in loop.inputs):
        return None
    if not moving:
        program = _over_time(loop, passed)
        values = [*loop.constants, *loop.carry, *loop.inputs]
        found = interpreter.attempt(lambda: interpreter.run(program, values, equation.source))
        return None if found is None else [*loop.carry, *found[len(loop.carry) :]]
    starts = [loop.carry[k] for k in moving]
    if not all(isinstance(s, Constant) and is_number(s, 0.0) for s in starts):
        return None
    order = range(loop.length)[::-1] if loop.reverse else range(loop.length)
    first = [_at(interpreter, equation, x, order[0]) for x in loop.inputs]
    once = interpreter.run(loop.body, [*loop.constants, *loop.carry, *first], equation.source)
    carries = [once[k] for k in moving]
    if not all(isinstance(c, Signal) and _is_features(c) for c in carries):
        return None
    state = Loop(loop.length, len(moving), _parameters(equation.operands))
    carry: list[Value] = list(loop.carry)
    for k, value in zip(moving, carries, strict=True):
        assert isinstance(value, Signal)
        leaf = CarryLeaf(state, moving.index(k), source=equation.source)
        rows: tuple[Axis, ...] = ((Space(0, loop.length),), *value.layout.axes)
        layout = Layout(rows)
        carry[k] = Signal(layout, (Segment(layout.width, (of_leaf(leaf),), layout.space),))
    inputs = [_reversed(interpreter, equation, x) if loop.reverse else x for x in loop.inputs]
    program = _over_time(loop, passed)
    results = interpreter.run(program, [*loop.constants, *carry, *inputs], equation.source)
    outputs: list[Segment] = []
    for k in moving:
        value = results[k]
        if not isinstance(value, Signal) or value.layout.space != (loop.length,) or len(value.segments) != 1:
            return None
        if any(isinstance(leaf, CarryLeaf) for leaf in width_leaves(value.segments[0])):
            return None
        outputs.append(value.segments[0])
    state.outputs.extend(outputs)
    final: list[Value] = list(loop.carry)
    for k in moving:
        final[k] = _at(interpreter, equation, results[k], loop.length - 1)
    rest = results[len(loop.carry) :]
    return [*final, *(_reversed(interpreter, equation, y) if loop.reverse else y for y in rest)]


def _is_features(signal: Signal) -> bool:
    """One part of a width and nothing else."""
    atoms = list(signal.layout.atoms)
    return len(atoms) == 1 and isinstance(atoms[0], Width) and len(signal.segments) == 1


def _parameters(operands: Sequence[Value]) -> frozenset[ParameterStatistics]:
    found: set[ParameterStatistics] = set()
    for operand in operands:
        if isinstance(operand, ParameterView):
            found.add(operand.parameter)
        elif isinstance(operand, Signal):
            found.update(root for segment in operand.segments for root in segment.roots)
    return frozenset(found)


def _over_time(loop: _Scan, passed: Sequence[bool]) -> jex.ClosedJaxpr:
    """The step with a leading axis of time on its state, inputs and outputs."""
    variables = loop.body.jaxpr.invars
    fixed = [None] * len(loop.constants) + [None if same else 0 for same in passed]
    axes = [*fixed, *[0] * len(loop.inputs)]
    avals: list[Any] = []
    for variable, axis in zip(variables, axes, strict=True):
        aval: Any = variable.aval
        shape = aval.shape if axis is None else (loop.length, *aval.shape)
        avals.append(jax.ShapeDtypeStruct(shape, aval.dtype))
    step = jax.vmap(jex.jaxpr_as_fun(loop.body), in_axes=axes, axis_size=loop.length)
    return jax.make_jaxpr(step)(*avals)


def _unrolled(interpreter: Interpreter, equation: Equation, loop: _Scan) -> list[Value]:
    if loop.length > _LONGEST:
        raise equation.refuse(
            f"it is a loop of {loop.length} steps that is no plain recurrence, and would be written out step by step",
            f"Use at most {_LONGEST} steps, or a state that starts from zero and goes through a weight at each step",
        )
    carry = list(loop.carry)
    outputs: list[list[Value]] = []
    order = range(loop.length)[::-1] if loop.reverse else range(loop.length)
    for step in order:
        inputs = [_at(interpreter, equation, x, step) for x in loop.inputs]
        results = interpreter.run(loop.body, [*loop.constants, *carry, *inputs], equation.source)
        carry = results[: len(carry)]
        outputs.append(results[len(carry) :])
    if loop.reverse:
        outputs.reverse()
    stacked = [_stacked(interpreter, equation, ys) for ys in zip(*outputs, strict=True)]
    return [*carry, *stacked]


def _stacked(interpreter: Interpreter, equation: Equation, values: Sequence[Value]) -> Value:
    parts = [expanded(interpreter, equation, value, 0) for value in values]
    shape = (len(parts), *parts[0].shape[1:])  # pyright: ignore[reportAttributeAccessIssue]
    known = [part for part in parts if isinstance(part, Known)]
    if len(known) == len(parts):
        return kn.apply(kn.operation_of("concatenate", dimension=0), known, shape)
    return joined(interpreter, equation, parts, 0, shape)


def _at(interpreter: Interpreter, equation: Equation, value: Value, step: int) -> Value:
    """One entry along the first axis, which goes."""
    if isinstance(value, Known):
        return kn.reshape(kn.cut(value, 0, step, step + 1), value.shape[1:])
    entry = taken(interpreter, equation, value, 0, np.array([step]))
    if isinstance(entry, ParameterView):
        return entry.reshaped(entry.shape[1:])
    assert isinstance(entry, Signal)
    return reshaped(interpreter, equation, entry, entry.shape[1:])


def _reversed(interpreter: Interpreter, equation: Equation, value: Value) -> Value:
    if isinstance(value, Known):
        return kn.take(value, 0, kn.constant(np.arange(value.shape[0])[::-1].copy()))
    assert isinstance(value, Signal | ParameterView)
    return taken(interpreter, equation, value, 0, np.arange(value.shape[0])[::-1])


@rule("cond")
def branch(interpreter: Interpreter, equation: Equation) -> Sequence[Value]:
    """A branch that constants choose, or that each example chooses: then the branches' results times 0 or 1."""
    which, *operands = equation.operands
    branches = equation.parameters["branches"]
    if isinstance(which, Constant):
        chosen = branches[int(np.clip(int(which.value), 0, len(branches) - 1))]
        return interpreter.run(chosen, operands, equation.source)
    if not isinstance(which, Known):
        raise equation.refuse("its branch is chosen by a random signal", "Use jnp.where on the values")
    last = len(branches) - 1
    places = kn.apply(kn.operation_of("clamp"), [kn.constant(np.int32(0)), which, kn.constant(np.int32(last))], ())
    chosen = [
        kn.as_number(kn.apply(kn.operation_of("eq"), [places, kn.constant(np.int32(i))], ())) for i in range(last + 1)
    ]
    results = [interpreter.run(branch, operands, equation.source) for branch in branches]
    return [_weighted(interpreter, equation, values, chosen) for values in zip(*results, strict=True)]


def _weighted(interpreter: Interpreter, equation: Equation, values: Sequence[Value], weights: Sequence[Known]) -> Value:
    """Σ weights[i] · values[i], one of the weights 1 and the others 0."""
    known = [value for value in values if isinstance(value, Known)]
    if len(known) == len(values):
        total = kn.constant(0.0)
        for value, weight in zip(known, weights, strict=True):
            total = kn.add(total, kn.multiply(weight, value))
        return total
    shape = values[0].shape  # pyright: ignore[reportAttributeAccessIssue]
    aligned = align(interpreter, equation, values, shape)
    segments = []
    for column in aligned.columns(interpreter, equation):
        like = next(part for part in column if isinstance(part, Segment))
        parts = [p if isinstance(p, Segment) else known_segment(p, like.size, like.space) for p in column]
        scaled = [interpreter.algebra.scale(p, w, equation.source) for p, w in zip(parts, weights, strict=True)]
        segments.append(interpreter.algebra.add(scaled, equation.source))
    return Signal(aligned.layout, tuple(segments))
