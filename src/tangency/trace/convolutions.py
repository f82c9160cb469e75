"""Convolutions in the forms that XLA computes fast on a CPU, wherever they stand in a program.

XLA's fast convolution there is for `[n, positions, c]` with one group. XLA brings convolutions into that order, but not
those inside of loops, which run 30 times as long otherwise; and most with groups, such as those of several networks at
once and their gradients, are never brought into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from .equations import PROGRAM, applied, closed

_KEPT = ("scan", "while", "cond", "checkpoint", "remat2")
_INLINED = ("jit", "pjit", "closed_call")
_TAPS = 100
"""Taps of a depthwise convolution up to which it is written as a sum over them."""


def arranged(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, to be compiled, with its convolutions as a CPU computes them fast; elsewhere the function.

    Keyword arguments are static. Functions with a derivative of their own stay as they are.
    """

    def call(*arguments: Any, **static: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*arguments, **static)
        program, shape = jax.make_jaxpr(partial(function, **static), return_shape=True)(*arguments)
        run = partial(_run, program) if _convolves(program) else lambda values: jex.jaxpr_as_fun(program)(*values)
        return jax.tree.unflatten(jax.tree.structure(shape), run(jax.tree.leaves(arguments)))

    return call


def _run(program: jex.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    environment: dict[jex.Var, Any] = dict(zip(program.jaxpr.invars, values, strict=True))
    environment.update(zip(program.jaxpr.constvars, program.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else environment[atom]

    for equation in program.jaxpr.eqns:
        results = _equation(equation, [read(atom) for atom in equation.invars])
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.jaxpr.outvars]


def _equation(equation: jex.JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    name = equation.primitive.name
    if _is_convolution(equation):
        return [_Convolution(equation.params)(*operands)]
    inner = [p for p in _programs(equation) if _convolves(p)]
    if inner and name in _INLINED:
        return _run(inner[0], operands)
    if inner:
        params = {key: _within(value) for key, value in equation.params.items()}
        return equation.primitive.bind(*operands, **params)
    return applied(equation, operands)


def _is_convolution(equation: jex.JaxprEqn) -> bool:
    """Whether it is one of arrays with entries; a kernel may reach beyond its signal and leave nothing."""
    arrays: list[Any] = [*equation.invars, *equation.outvars]
    return equation.primitive.name == "conv_general_dilated" and all(prod(array.aval.shape) for array in arrays)


def _programs(equation: jex.JaxprEqn) -> list[jex.ClosedJaxpr]:
    """The programs inside an equation that may be rewritten."""
    if equation.primitive.name not in _KEPT + _INLINED:
        return []
    return [closed(leaf) for leaf in jax.tree.leaves(list(equation.params.values())) if isinstance(leaf, PROGRAM)]


def _convolves(program: jex.ClosedJaxpr) -> bool:
    return any(
        _is_convolution(equation) or any(_convolves(p) for p in _programs(equation)) for equation in program.jaxpr.eqns
    )


def _within(parameter: Any) -> Any:
    """An equation's parameter with the programs in it rewritten."""
    if isinstance(parameter, tuple):
        return tuple(_within(each) for each in parameter)
    if not isinstance(parameter, PROGRAM) or not _convolves(closed(parameter)):
        return parameter
    program = closed(parameter)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in program.in_avals]
    found = jax.make_jaxpr(lambda *values: _run(program, values))(*shapes)
    return found if program is parameter else found.jaxpr


class _Convolution:
    """One convolution, computed on signals `[n, positions, c]` and kernels `[taps, c, o]`."""

    def __init__(self, params: dict[str, Any]):
        self._params = params
        self._features, self._batches = params["feature_group_count"], params["batch_group_count"]

    def __call__(self, signal: Any, kernel: Any) -> Any:
        signal, kernel = channels_last(signal, kernel, self._params)
        *sizes, into, out = kernel.shape
        wide = kernel.dtype in (jnp.float32, jnp.float64)
        if self._features == into * self._features == out and wide and prod(sizes) <= _TAPS:
            dtype = self._params["preferred_element_type"] or signal.dtype
            found = over_taps(signal.astype(dtype), kernel.astype(dtype), self._params)
        elif self._features > 1 or self._batches > 1:
            found = self._by_groups(signal, kernel)
        else:
            found = self._plain(signal, kernel)
        return in_own_order(found, self._params)

    def _plain(self, signal: Any, kernel: Any) -> Any:
        rank = signal.ndim
        last = (0, rank - 1, *range(1, rank - 1))
        p = self._params
        return jax.lax.conv_general_dilated(
            signal,
            kernel,
            p["window_strides"],
            p["padding"],
            lhs_dilation=p["lhs_dilation"],
            rhs_dilation=p["rhs_dilation"],
            dimension_numbers=jax.lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last),
            precision=p["precision"],
            preferred_element_type=p["preferred_element_type"],
        )

    def _by_groups(self, signal: Any, kernel: Any) -> Any:
        """One group after the other: of the entries of a signal, or of the examples, each with its own outputs."""
        groups = max(self._features, self._batches)
        axis = 0 if self._batches > 1 else signal.ndim - 1
        pairs = _split(signal, axis, groups), _split(kernel, kernel.ndim - 1, groups)
        found = jax.lax.map(lambda pair: self._plain(*pair), pairs)
        found = jnp.moveaxis(found, 0, -2)
        return found.reshape(*found.shape[:-2], -1)


def channels_last(signal: Any, kernel: Any, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
    """`[n, positions, c]` and `[taps, c, o]` of a convolution with the parameters of `conv_general_dilated`."""
    numbers = parameters["dimension_numbers"]
    (n, c, *positions), (o, i, *taps) = numbers.lhs_spec, numbers.rhs_spec
    return jnp.transpose(signal, (n, *positions, c)), jnp.transpose(kernel, (*taps, i, o))


def in_own_order(found: Any, parameters: Mapping[str, Any]) -> Any:
    """A result `[n, positions, c]` with the axes where the convolution has them."""
    own = parameters["dimension_numbers"].out_spec
    places = (0, found.ndim - 1, *range(1, found.ndim - 1))
    return jnp.transpose(found, [places[own.index(axis)] for axis in range(found.ndim)])


def over_taps(signal: Any, kernel: Any, parameters: Mapping[str, Any]) -> Any:
    """A depthwise convolution of `[n, positions, c]` with `[taps, 1, c]` as a sum over taps.

    Each is the shifted signal times one number for each entry.
    """
    *taps, _, channels = kernel.shape
    strides, steps = parameters["window_strides"], parameters["rhs_dilation"]
    pads = [(*pad, base - 1) for pad, base in zip(parameters["padding"], parameters["lhs_dilation"], strict=True)]
    padded = jax.lax.pad(signal, jnp.zeros((), signal.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    reach = [size - (count - 1) * step for size, count, step in zip(padded.shape[1:-1], taps, steps, strict=True)]
    total: Any = None
    for tap in product(*map(range, taps)):
        starts = [place * step for place, step in zip(tap, steps, strict=True)]
        ends = [start + size for start, size in zip(starts, reach, strict=True)]
        shifted = jax.lax.slice(padded, (0, *starts, 0), (len(padded), *ends, channels), (1, *strides, 1))
        number = jax.lax.slice(kernel, (*tap, 0, 0), (*(place + 1 for place in tap), 1, channels))
        part = number.reshape(*(1 for _ in tap), 1, channels) * shifted
        total = part if total is None else total + part
    return total


def _split(array: Any, axis: int, groups: int) -> Any:
    """`[groups, …]`: an axis cut into groups."""
    shape = array.shape
    cut = array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)
