"""The fused path of a limit kernel: what it needs of the graph, of the duals, and of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ..fused import (
    OPERATIONS,
    ErrorFunction,
    ErrorFunctions,
    Formula,
    FusedKernel,
    Inputs,
    NotFusedError,
    Operand,
    Piecewise,
    PiecewiseLinear,
    Rule,
    lower,
)
from ..graph.elementwise import Elementwise
from ..graph.graph import Graph
from ..graph.known import Known
from ..kernels.tiles import cuts, filled, padded
from .duals import Activation, dual, error_span, is_closed, piecewise_linear
from .expectation import analysed
from .recursion import Recursion, deep_recursion
from .tabulate import integrated, series, truncated

PAYS = 1e7
"""Gaussian expectations from which on the program of a network with positions repays the seconds that compiling it
takes. Without positions it takes no longer to compile than XLA's, which has to be compiled for every number of
examples."""

LONGEST = 2048
"""Lines up to which that holds: a hundred layers of ReLU. The time that one long piece of code takes grows faster."""

_CHUNK = 1024


@dataclass(frozen=True)
class Fusion:
    """A graph's fused kernel, or why it has none.

    `arrays` are Known arrays with the axes of positions that are summed over with the width, `quantities` numbers of
    one example at each position.
    """

    graph: Graph
    kernel: FusedKernel | None = None
    reason: str = ""
    arrays: tuple[tuple[Known, tuple[int, ...]], ...] = ()
    quantities: tuple[Known, ...] = ()

    def inputs(self, x: np.ndarray) -> Inputs:
        """What the fused kernel reads of examples, in the precision that JAX gives them."""
        chunk = min(_CHUNK, filled(len(x)))
        parts: list[list[np.ndarray]] = []
        for start, stop in cuts(len(x), chunk):
            part = padded(x, start, stop, chunk)
            parts.append([np.asarray(a)[: stop - start] for a in self._evaluate(jnp.asarray(part))])
        whole = [np.ascontiguousarray(np.concatenate(columns)) for columns in zip(*parts, strict=True)]
        return Inputs(tuple(whole[: len(self.arrays)]), tuple(whole[len(self.arrays) :]))

    @cached_property
    def least_pairs(self) -> int:
        """From how many pairs of examples on the fused kernel repays its compilation."""
        assert self.kernel is not None
        quick = self.kernel.is_dense and self.kernel.lines <= LONGEST
        return 1 if quick else ceil(PAYS / max(self.kernel.work, 1.0))

    @cached_property
    def _evaluate(self) -> Callable[[jax.Array], list[Any]]:
        def one(example: jax.Array) -> list[jax.Array]:
            recursion = Recursion(self.graph, (example,))
            with deep_recursion():
                arrays = [_positions_by_width(recursion.known(known, 0), axes) for known, axes in self.arrays]
                return arrays + [recursion.known(known, 0).reshape(-1) for known in self.quantities]

        return jax.jit(jax.vmap(one))


def fuse(graph: Graph, threads: int | None) -> Fusion:
    try:
        program, arrays, quantities = lower(graph, _rule)
        return Fusion(graph, FusedKernel(program, threads), "", tuple(arrays), tuple(quantities))
    except NotFusedError as refusal:
        return Fusion(graph, reason=str(refusal))


def _rule(left: Elementwise, right: Elementwise, slopes: bool) -> Rule:
    """How E[f(u) g(v)], or E[f′ g′], is found in a fused program: in closed form where it can hold that, by moments of
    truncated normal variables, else by a series; parts of the last two serve both.

    Raises:
        NotFusedError: both functions have kinks elsewhere than at 0, are not piecewise linear or quadratic, and
            have no closed form.
    """
    errors = _error_functions(left, right)
    if errors is not None:
        return ErrorFunctions(*errors, slopes)
    f, g = (analysed(function.derivative if slopes else function) for function in (left, right))
    first, second = _piecewise(f), _piecewise(g)
    if first is not None and second is not None:
        return Piecewise(first, second)
    clipped = truncated(f, g, slopes)
    if clipped is not None:
        return clipped
    closed = f.span is not None and g.span is not None and is_closed(f.span, g.span)
    rule = _formula(f, g) if closed else None
    if rule is None:
        whole = not slopes and f.is_continuous and g.is_continuous
        rule = integrated(f, g, analysed(left.derivative), analysed(right.derivative)) if whole else series(f, g)
    if rule is None:
        label = (f if any(f.breakpoints) else g).label
        raise NotFusedError(
            f"the activation {label}: it has a kink elsewhere than at 0, and no closed form that a program can hold"
        )
    return rule


def _piecewise(activation: Activation) -> PiecewiseLinear | None:
    found = None if activation.span is None else piecewise_linear(activation.span)
    if found is None or activation.zero_value is None:
        return None
    return PiecewiseLinear(*found, at_zero=activation.zero_value)


def _error_functions(left: Elementwise, right: Elementwise) -> tuple[ErrorFunction, ErrorFunction] | None:
    """Both functions where they are of this family, and not both linear."""
    spans = [analysed(function).span for function in (left, right)]
    first, second = (None if span is None else error_span(span) for span in spans)
    if first is None or second is None:
        return None
    # A linear function goes with the noise of the other.
    noise = first.noise if second.noise is None else second.noise
    if noise is None:
        return None
    f, g = (ErrorFunction(**each._asdict() | {"noise": each.noise or noise}) for each in (first, second))
    return f, g


@lru_cache(maxsize=256)
def _formula(f: Activation, g: Activation) -> Formula | None:
    """The closed form as the operations that JAX traces; None if one of them has no fused form."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        traced = jax.make_jaxpr(lambda a, b, c: dual(f, g, a, b, c))(1.0, 1.0, 0.5)
    steps: list[tuple[str, tuple[Operand, ...]]] = []
    known: dict[Any, Any] = dict(zip(traced.jaxpr.invars, (-1, -2, -3), strict=True))
    try:
        known.update(zip(traced.jaxpr.constvars, map(_number, traced.consts), strict=True))
        (result,) = _steps(traced.jaxpr, known, steps)
    except _NoFormError:
        return None
    return Formula((*steps, ("add", (result, 0.0)))) if result != len(steps) - 1 else Formula(tuple(steps))


class _NoFormError(Exception):
    pass


def _number(value: Any) -> float:
    array = np.asarray(value)
    if array.shape or array.dtype.kind not in "fiu":
        raise _NoFormError
    return float(array)


def _steps(jaxpr: Any, known: dict[Any, Any], steps: list[tuple[str, tuple[Operand, ...]]]) -> list[Any]:
    """Adds the equations of a program to the steps; what its results are."""

    def read(variable: Any) -> Any:
        return _number(variable.val) if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        name = equation.primitive.name
        inner = next((p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")), None)
        if inner is not None:
            body = getattr(inner, "jaxpr", inner)
            if name not in ("jit", "pjit", "custom_jvp_call", "closed_call", "core_call", "remat"):
                raise _NoFormError
            within = dict(zip(body.invars, operands, strict=True))
            within.update(zip(body.constvars, (_number(x) for x in getattr(inner, "consts", ())), strict=True))
            known.update(zip(equation.outvars, _steps(body, within, steps), strict=True))
            continue
        if name in ("convert_element_type", "stop_gradient", "copy") and equation.outvars[0].aval.dtype.kind == "f":
            known[equation.outvars[0]] = operands[0]
            continue
        if name == "square":
            name, operands = "mul", operands * 2
        if name == "integer_pow":
            power = equation.params["y"]
            if power < 1:
                raise _NoFormError
            total = operands[0]
            for _ in range(power - 1):
                steps.append(("mul", (total, operands[0])))
                total = len(steps) - 1
            known[equation.outvars[0]] = total
            continue
        if name not in OPERATIONS:
            raise _NoFormError
        steps.append((name, tuple(operands)))
        known[equation.outvars[0]] = len(steps) - 1
    return [read(v) for v in jaxpr.outvars]


def _positions_by_width(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """[positions, width] of an array over (*positions, width), some axes of which are width as well."""
    kept = [axis for axis in range(array.ndim - 1) if axis not in axes]
    array = jnp.transpose(array, [*kept, *axes, array.ndim - 1])
    positions = int(np.prod(array.shape[: len(kept)], dtype=int))
    return array.reshape(positions, -1)
