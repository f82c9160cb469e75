"""Random draws in the forward pass: dropout's masks, from keys that no rule may look into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..graph.known import Constant, Known
from ..graph.signal import ParameterStatistics
from .values import Opaque, ParameterView, Value

if TYPE_CHECKING:
    from .interpreter import Equation, Interpreter

_ON_KEYS = frozenset(
    (
        "random_split",
        "random_fold_in",
        "random_wrap",
        "random_unwrap",
        "slice",
        "squeeze",
        "reshape",
        "transpose",
        "dynamic_slice",
        "gather",
        "unstack",
    )
)
"""Primitives that make keys of keys."""


def keys(interpreter: Interpreter, equation: Equation) -> list[Value] | None:
    """The keys that an equation makes of keys, one object for each key; None if it is no such equation."""
    if equation.name not in _ON_KEYS or not all(isinstance(o, Opaque | Known) for o in equation.operands):
        return None
    operands = tuple(_content(operand) for operand in equation.operands)
    signature = (equation.name, repr(sorted(equation.parameters.items(), key=lambda item: item[0])), operands)
    count = len(equation.jaxpr_equation.outvars)
    return [interpreter.keys.setdefault((*signature, place), Opaque("a random key")) for place in range(count)]


def mask(interpreter: Interpreter, equation: Equation) -> Value | None:
    """The mask that `jax.random.bernoulli` draws, an array of independent entries; None if it is not that.

    The same key draws the same mask, wherever the model uses it.
    """
    if equation.parameters.get("name") != "_bernoulli" or len(equation.operands) != 2:
        return None
    key, share = equation.operands
    if not isinstance(key, Opaque) or not isinstance(share, Constant) or share.scalar is None:
        return None
    keep, shape = share.scalar, equation.shape
    if (key, keep, shape) not in interpreter.masks:
        name = f"mask {len(interpreter.masks) + 1} of dropout"
        statistics = ParameterStatistics(name, shape, keep, keep * (1 - keep), 0.0, "bernoulli", noise=True)
        axes = tuple(frozenset((axis,)) if n != 1 else frozenset[int]() for axis, n in enumerate(shape))
        interpreter.masks[key, keep, shape] = ParameterView(statistics, shape, axes, np.full(shape, keep))
    return interpreter.masks[key, keep, shape]


def _content(operand: Value) -> object:
    if isinstance(operand, Constant):
        return operand.value.tobytes(), operand.shape
    return operand
