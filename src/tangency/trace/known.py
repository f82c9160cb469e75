"""Building Known values: constants fold, equal values are one, and a sum over a width is followed to its 1/width."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import jax
import numpy as np
from jax.extend.core import primitives

from ..graph.known import ONE, ZERO, Apply, Constant, Known, Operation, PendingWidth, is_number

_applied: weakref.WeakValueDictionary[Any, Apply] = weakref.WeakValueDictionary()
_constants: weakref.WeakValueDictionary[Any, Constant] = weakref.WeakValueDictionary()
_SMALL = 4096


def evaluate_constants(operation: Operation, arguments: Sequence[np.ndarray]) -> np.ndarray:
    """Apply an operation to concrete arrays in float64, whatever trace is going on around."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(operation(*map(_widened, arguments), dtype=np.float64))


def _widened(array: np.ndarray) -> jax.Array:
    """Every float as float64: the program's own narrower types are not what the limit is evaluated in."""
    return jax.numpy.asarray(array, np.float64 if jax.numpy.issubdtype(array.dtype, np.floating) else None)


def constant(value: Any) -> Constant:
    """A constant; equal small arrays are one node."""
    array = np.asarray(value)
    if array.shape == () and array.dtype == np.float64:
        if array == 1.0:
            return ONE
        if array == 0.0:
            return ZERO
    if array.size > _SMALL:
        return Constant.of(array)
    key = (array.shape, array.dtype.str, array.tobytes())
    found = _constants.get(key)
    if found is None:
        found = _constants[key] = Constant.of(array)
    return found


def apply(operation: Operation, arguments: Sequence[Known], shape: Sequence[int]) -> Known:
    """The operation's value, folded when every argument is constant; the same value is one node wherever it is used."""
    constants = [a.value for a in arguments if isinstance(a, Constant)]
    pending = _pending(operation, arguments)
    if len(constants) == len(arguments):
        value = evaluate_constants(operation, constants)
        return constant(value) if pending is None else Constant(value.shape, value=value, pending=pending)
    if any(argument.pending and argument.pending.zero_mean for argument in arguments):
        if pending is None:
            return constant(np.zeros(tuple(shape)))
        if pending.vanishing:
            return Constant(tuple(shape), value=np.zeros(tuple(shape)), pending=pending)
    key = (operation, tuple(arguments), tuple(shape))
    found = _applied.get(key)
    if found is None:
        found = Apply(tuple(shape), operation=operation, arguments=tuple(arguments), pending=pending)
        _applied[key] = found
    return found


# fmt: off
KEEP = frozenset((
    "reshape", "broadcast_in_dim", "squeeze", "transpose", "neg", "convert_element_type", "copy", "abs", "slice",
    "stop_gradient",
))
# fmt: on
_POWER = {"square": Fraction(2), "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}
_SHIFT = frozenset(("add", "sub", "max", "min"))


def may_be_pending(name: str, arguments: Sequence[Known]) -> bool:
    """Whether an operation of Known values is meaningful while a sum among them still lacks its 1/width."""
    pending = [argument.pending for argument in arguments if argument.pending and not argument.pending.settled]
    if not pending or name in KEEP or name in ("mul", "div"):
        return True
    if name == "reduce_sum":
        return all(p.power == 1 for p in pending)
    if any(p.zero_mean for p in pending):
        return False
    constant = all(isinstance(argument, Constant) for argument in arguments if not argument.pending)
    return name in _POWER or name == "integer_pow" or (name in _SHIFT and constant)


def _pending(operation: Operation, arguments: Sequence[Known]) -> PendingWidth | None:
    """The power of a width that is still in the result; a constant equal to its inverse clears it."""
    powers = [argument.pending for argument in arguments]
    if not any(powers):
        return None
    name = operation.name
    if name in KEEP:
        return powers[0]
    if any(p and p.vanishing for p in powers):
        return _grown(name, powers, arguments)
    if name == "reduce_sum" and powers[0]:
        summed = prod(arguments[0].shape[axis] for axis in operation.parameters["axes"])
        return replace(powers[0], positions=powers[0].positions * summed)
    if (name in _POWER or name == "integer_pow") and powers[0]:
        factor = _POWER.get(name) or Fraction(operation.parameters["y"])
        return replace(powers[0], power=powers[0].power * factor, settled=True)
    if name in ("mul", "div"):
        sign = 1 if name == "mul" else -1
        left, right = powers[0], _scaled(powers[1], Fraction(sign))
        if left and right:
            power = left.power + right.power if left.width == right.width else left.power
            settled, zero_mean = left.settled and right.settled, left.zero_mean or right.zero_mean
            return replace(left, power=power, settled=settled, zero_mean=zero_mean) if power else None
        pending = left or right
        other = arguments[1] if left else arguments[0]
        exponent = sign if left else 1
        number = other.scalar if isinstance(other, Constant) else None
        if pending and number is not None and _clears(pending, number, exponent):
            return replace(pending, power=Fraction(-1, 2), settled=True) if pending.zero_mean else None
        return pending
    return next(p for p in powers if p)


def _grown(name: str, powers: Sequence[PendingWidth | None], arguments: Sequence[Known]) -> PendingWidth | None:
    """An average of zero mean is of order 1/√width: times √width, it is a Gaussian."""
    if name not in ("mul", "div") or (powers[0] and powers[1]):
        return None
    pending = powers[0] or powers[1]
    other = arguments[1] if powers[0] else arguments[0]
    number = abs(other.scalar or 0.0) if isinstance(other, Constant) else 0.0
    if name == "div":
        number = 1.0 / number if number and powers[0] else 0.0
    assert pending is not None
    if number < 0.99 * pending.width**0.5:
        return pending
    return replace(pending, power=Fraction(0), settled=False)


def _scaled(pending: PendingWidth | None, factor: Fraction) -> PendingWidth | None:
    return None if pending is None else replace(pending, power=pending.power * factor)


def _clears(pending: PendingWidth, number: float, exponent: int) -> bool:
    # A variance divides by width − 1 as often as by width; both are the same limit.
    total = pending.width * pending.positions
    widths = {pending.width, pending.width - 1, total, total - 1}
    inverse = [abs(w) ** -float(pending.power) for w in widths if w]
    return bool(np.any(np.isclose(abs(number) ** exponent, inverse, rtol=1e-6)))


def operation_of(name: str, **parameters: object) -> Operation:
    return Operation.of(getattr(primitives, name + "_p"), parameters)


def arithmetic(function: Callable[..., Any], *operands: Any) -> Operation:
    """The operation that a function of JAX is on such operands, with all of the primitive's own parameters."""
    (equation,) = jax.make_jaxpr(function)(*operands).eqns
    return Operation.of(equation.primitive, equation.params)


MULTIPLY = arithmetic(jax.lax.mul, 1.0, 1.0)
ADD = arithmetic(jax.lax.add, 1.0, 1.0)
NEGATE = arithmetic(jax.lax.neg, 1.0)
DIVIDE = arithmetic(jax.lax.div, 1.0, 1.0)


def multiply(a: Known, b: Known) -> Known:
    """a · b of numbers and of arrays whose axes have equal length or length one."""
    if is_number(a, 1.0) and _fits(a, b):
        return b
    if is_number(b, 1.0) and _fits(b, a):
        return a
    return _broadcast_apply(MULTIPLY, a, b)


def add(a: Known, b: Known) -> Known:
    """a + b of numbers and of arrays whose axes have equal length or length one."""
    if is_number(a, 0.0) and _fits(a, b):
        return b
    if is_number(b, 0.0) and _fits(b, a):
        return a
    return _broadcast_apply(ADD, a, b)


def _fits(small: Known, large: Known) -> bool:
    """Whether the result has the shape of `large`."""
    return not small.shape or np.broadcast_shapes(small.shape, large.shape) == large.shape


def _broadcast_apply(operation: Operation, a: Known, b: Known) -> Known:
    if not a.shape or not b.shape:
        return apply(operation, (a, b), a.shape or b.shape)
    shape = np.broadcast_shapes(a.shape, b.shape)
    return apply(operation, (broadcast(a, shape), broadcast(b, shape)), shape)


def broadcast(a: Known, shape: Sequence[int]) -> Known:
    """Axes of length one repeated; a number filled in."""
    if tuple(shape) == a.shape:
        return a
    axes = tuple(range(len(shape))) if a.shape else ()
    operation = operation_of("broadcast_in_dim", shape=tuple(shape), broadcast_dimensions=axes, sharding=None)
    return apply(operation, (a,), shape)


def negate(a: Known) -> Known:
    return apply(NEGATE, (a,), a.shape)


def reciprocal(a: Known) -> Known:
    return apply(DIVIDE, (ONE, a), a.shape)


def reshape(a: Known, shape: Sequence[int]) -> Known:
    if tuple(shape) == a.shape:
        return a
    if isinstance(a, Apply) and a.operation.name == "reshape":
        return reshape(a.arguments[0], shape)
    operation = operation_of("reshape", new_sizes=tuple(shape), dimensions=None, sharding=None)
    return apply(operation, (a,), shape)


def transpose(a: Known, permutation: Sequence[int]) -> Known:
    if tuple(permutation) == tuple(range(len(a.shape))):
        return a
    operation = operation_of("transpose", permutation=tuple(permutation))
    return apply(operation, (a,), tuple(a.shape[axis] for axis in permutation))


def cut(a: Known, axis: int, start: int, stop: int) -> Known:
    """Entries start … stop − 1 along one axis."""
    if (start, stop) == (0, a.shape[axis]):
        return a
    starts, stops = [0] * len(a.shape), list(a.shape)
    starts[axis], stops[axis] = start, stop
    operation = operation_of("slice", start_indices=tuple(starts), limit_indices=tuple(stops), strides=None)
    return apply(operation, (a,), tuple(b - a for a, b in zip(starts, stops, strict=True)))


def total(a: Known, axes: Sequence[int]) -> Known:
    """The sum over some axes, which go."""
    if not axes:
        return a
    operation = operation_of("reduce_sum", axes=tuple(axes), out_sharding=None)
    return apply(operation, (a,), tuple(n for axis, n in enumerate(a.shape) if axis not in axes))


AS_NUMBER = operation_of("convert_element_type", new_dtype=np.dtype(np.float64), weak_type=False, sharding=None)


def as_number(mask: Known) -> Known:
    """A boolean as 0 or 1."""
    return apply(AS_NUMBER, (mask,), mask.shape)


class Take:
    """Entries along one axis by integer indices, whose axes take that axis's place."""

    def __init__(self, axis: int):
        self.axis = axis
        self.name = "take"
        self.parameters = {"axis": axis}

    def __call__(self, array: jax.Array, index: jax.Array, dtype: Any) -> jax.Array:
        return jax.numpy.take(array, index, axis=self.axis, mode="clip")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Take) and other.axis == self.axis

    def __hash__(self) -> int:
        return hash((Take, self.axis))


def take(a: Known, axis: int, index: Known) -> Known:
    """The entries of `a` at `index` along one axis, out of range: the nearest."""
    operation: Any = Take(axis)
    return apply(operation, (a, index), (*a.shape[:axis], *index.shape, *a.shape[axis + 1 :]))
