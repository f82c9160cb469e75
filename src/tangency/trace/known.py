"""Building Known values: constants fold, and a sum over a width is followed until it meets its 1/width."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
from jax.extend.core import primitives

from ..graph.known import ONE, Apply, Constant, Known, Operation, PendingWidth, is_number


def evaluate_constants(operation: Operation, arguments: Sequence[np.ndarray]) -> np.ndarray:
    """Apply an operation to concrete arrays in float64, whatever trace is going on around."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(operation(*map(_widened, arguments), dtype=np.float64))


def _widened(array: np.ndarray) -> jax.Array:
    """Every float as float64: the program's own narrower types are not what the limit is evaluated in."""
    return jax.numpy.asarray(array, np.float64 if jax.numpy.issubdtype(array.dtype, np.floating) else None)


def apply(operation: Operation, arguments: Sequence[Known], shape: Sequence[int]) -> Known:
    """The operation's value, folded when every argument is constant."""
    constants = [a.value for a in arguments if isinstance(a, Constant)]
    if len(constants) == len(arguments):
        return Constant.of(evaluate_constants(operation, constants))
    pending = _pending(operation, arguments)
    if pending is None and any(argument.pending and argument.pending.zero_mean for argument in arguments):
        return Constant.of(np.zeros(tuple(shape)))
    return Apply(tuple(shape), operation=operation, arguments=tuple(arguments), pending=pending)


KEEP = frozenset(("reshape", "broadcast_in_dim", "squeeze", "transpose", "neg", "convert_element_type", "copy", "abs"))
_POWER = {"square": Fraction(2), "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}
_SHIFT = frozenset(("add", "sub", "max", "min"))


def may_be_pending(name: str, arguments: Sequence[Known]) -> bool:
    """Whether an operation of Known values is meaningful while a sum among them still lacks its 1/width."""
    pending = [argument.pending for argument in arguments if argument.pending and not argument.pending.settled]
    if not pending or name in KEEP or name in ("mul", "div"):
        return True
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
    if (name in _POWER or name == "integer_pow") and powers[0]:
        factor = _POWER.get(name) or Fraction(operation.parameters["y"])
        return replace(powers[0], power=powers[0].power * factor, settled=True)
    if name in ("mul", "div"):
        sign = 1 if name == "mul" else -1
        left, right = powers[0], _scaled(powers[1], Fraction(sign))
        if left and right:
            power = left.power + right.power if left.width == right.width else left.power
            settled, zero_mean = left.settled and right.settled, left.zero_mean or right.zero_mean
            return PendingWidth(left.width, power, settled, zero_mean) if power else None
        pending = left or right
        other = arguments[1] if left else arguments[0]
        exponent = sign if left else 1
        number = other.scalar if isinstance(other, Constant) else None
        if pending and number is not None and _clears(pending, number, exponent):
            return None
        return pending
    return next(p for p in powers if p)


def _scaled(pending: PendingWidth | None, factor: Fraction) -> PendingWidth | None:
    return None if pending is None else replace(pending, power=pending.power * factor)


def _clears(pending: PendingWidth, number: float, exponent: int) -> bool:
    # A variance divides by width − 1 as often as by width; both are the same limit.
    inverse = [abs(w) ** -float(pending.power) for w in (pending.width, pending.width - 1) if w]
    return bool(np.any(np.isclose(abs(number) ** exponent, inverse, rtol=1e-6)))


def _operation(name: str, **parameters: object) -> Operation:
    return Operation.of(getattr(primitives, name + "_p"), parameters)


MULTIPLY = _operation("mul")
ADD = _operation("add")
NEGATE = _operation("neg")
DIVIDE = _operation("div")


def multiply(a: Known, b: Known) -> Known:
    """a · b for numbers and arrays along one width."""
    if is_number(a, 1.0) and not a.shape:
        return b
    if is_number(b, 1.0) and not b.shape:
        return a
    return apply(MULTIPLY, (a, b), a.shape or b.shape)


def add(a: Known, b: Known) -> Known:
    """a + b for numbers and arrays along one width."""
    if is_number(a, 0.0) and not a.shape:
        return b
    if is_number(b, 0.0) and not b.shape:
        return a
    return apply(ADD, (a, b), a.shape or b.shape)


def negate(a: Known) -> Known:
    return apply(NEGATE, (a,), a.shape)


def reciprocal(a: Known) -> Known:
    return apply(DIVIDE, (ONE, a), a.shape)


def reshape(a: Known, shape: Sequence[int]) -> Known:
    if tuple(shape) == a.shape:
        return a
    operation = _operation("reshape", new_sizes=tuple(shape), dimensions=None, sharding=None)
    return apply(operation, (a,), shape)


def take(a: Known, start: int, stop: int) -> Known:
    """Entries start … stop − 1 of a Known array along a width."""
    operation = _operation("slice", start_indices=(start,), limit_indices=(stop,), strides=None)
    return apply(operation, (a,), (stop - start,))


def as_number(mask: Known) -> Known:
    """A boolean as 0 or 1."""
    operation = _operation("convert_element_type", new_dtype=np.dtype(np.float64), weak_type=False, sharding=None)
    return apply(operation, (mask,), mask.shape)


def ones_like(a: Known) -> Known:
    return Constant.of(np.ones(a.shape))
