"""Where positions that share a parameter come together again.

Behind a convolution, say, whose entries y[s, j] reach the outputs through P[j] = Σ_s φ(y[s, j]) alone, the gradient in
its filter is (Σ_s a[s, i] d[s, j]) c[j]: d, the derivative of P in y, is the same for all outputs, and only c, their
cotangent of P, is not. So one gradient of an example takes the place of one for each output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from ..graph.known import ELEMENTWISE
from ..trace.equations import function_of, taken
from .by_gradients import gathered
from .parts import parts
from .sites import Site

Axes: TypeAlias = tuple[int | None, ...]
"""Which axis of a site's output each axis of a later array is; None for positions, and what is left of them."""

_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max"}
_MOVES = {"reshape", "squeeze", "expand_dims"}


@dataclass(frozen=True)
class Pool:
    """The equations that lead from a site to where its positions have come together, and the site as seen from there.

    Seen so, its signal is the gradient Σ_s a[b, s, i] d[b, s, j], the entries j being entries b, with one position.
    """

    origin: Site
    start: jex.Var
    equations: tuple[jex.JaxprEqn, ...]
    end: jex.Var
    site: Site

    @property
    def others(self) -> list[jex.Var]:
        """What else the equations take."""
        made = {self.start, *(variable for equation in self.equations for variable in equation.outvars)}
        return list(dict.fromkeys(v for equation in self.equations for v in taken(equation) if v not in made))

    def derivative(self, environment: Mapping[jex.Var, Any]) -> Any:
        """d, in the shape of the site's output."""
        others = self.others
        function = function_of(self.equations, [self.start, *others], [self.end])
        rest = [environment[variable] for variable in others]
        (end,), back = jax.vjp(lambda y: function(y, *rest), environment[self.start])
        return back([jnp.ones_like(end)])[0]

    def signals(self, signals: Any, derivatives: Any) -> Any:
        """Σ_s a[n, b, s, i] d[n, b, s, j], arranged as the pooled site's signals; from arranged arrays."""
        (part,) = parts([self.origin], [signals], [derivatives[None]])
        found = gathered(part, self.origin.sizes[2:])
        return jax.vmap(self.site.arranged_signal)(found.reshape(-1, *self.site.signal_shape))


def pool_of(jaxpr: jex.Jaxpr, place: int, site: Site) -> Pool | None:
    """Where the output of the equation at `place`, a site, is pooled; None if its positions stay apart or mix."""
    spans = site.spans
    if site.is_lookup or site.sizes[1] == 1 or site.words > 1:
        return None
    (start,) = jaxpr.eqns[place].outvars
    found: dict[Any, Axes] = {start: tuple(k if _kept(site, span) else None for k, span in enumerate(spans))}
    equations: list[jex.JaxprEqn] = []
    end, last = None, ()
    for equation in jaxpr.eqns[place + 1 :]:
        if not any(variable in found for variable in taken(equation)):
            continue
        followed = _followed(equation, found)
        if end is not None or followed is None or equation.effects:
            return None
        equations.append(equation)
        if all(_is_pooled(variable, axes) for variable, axes in followed.items()) and len(followed) == 1:
            ((end, last),) = followed.items()
        else:
            found.update(followed)
    if end is None or any(variable in found for variable in jaxpr.outvars if isinstance(variable, jex.Var)):
        return None
    if not jnp.issubdtype(end.aval.dtype, jnp.floating):  # pyright: ignore[reportAttributeAccessIssue]
        return None
    return Pool(site, start, tuple(equations), end, _pooled(site, spans, last, end.aval))


def _kept(site: Site, span: Sequence[int]) -> bool:
    return bool(span) and site.cotangent[span[0]][0] != "s"


def _is_pooled(variable: jex.Var, axes: Axes) -> bool:
    shape: Sequence[int] = variable.aval.shape  # pyright: ignore[reportAttributeAccessIssue]
    return all(length == 1 for length, axis in zip(shape, axes, strict=True) if axis is None)


def _pooled(site: Site, spans: Sequence[Sequence[int]], axes: Axes, end: Any) -> Site:
    """The site seen from the pool's output, whose axes are `axes`."""
    order = [place for axis in axes if axis is not None for place in spans[axis]]
    entries = [*site.batch, *site.outer]
    signal = [*(("b", factor) for factor in entries), *(("i", factor) for factor in site.inner)]
    return replace(
        site,
        probe=tuple(end.shape),
        dtype=end.dtype,
        signal_shape=tuple(size for size, _ in (*entries, *site.inner)),
        signal=tuple(signal),
        cotangent_shape=tuple(site.cotangent_shape[place] for place in order),
        cotangent=tuple(("b", site.cotangent[place][1]) for place in order),
        channels_last=False,
        window=None,
        keeps_image=False,
        gathered=prod(site.sizes),
    )


def _followed(equation: jex.JaxprEqn, found: Mapping[Any, Axes], derived: bool = False) -> dict[jex.Var, Axes] | None:
    """The axes of what an equation makes of arrays of `found`; None where entries of a kept axis may mix.

    In a program that is `derived`, no derivatives are taken any more.
    """
    name, p = equation.primitive.name, equation.params
    operands: list[tuple[Any, Axes]] = [(v, found[v]) for v in taken(equation) if v in found]
    outputs: list[Any] = equation.outvars
    axes = operands[0][1]
    if name in ELEMENTWISE:
        alike = all(v.aval.shape == outputs[0].aval.shape and own == axes for v, own in operands)
        return {outputs[0]: axes} if alike else None
    if name == "jit":
        return _inside(equation, p["jaxpr"], equation.invars, found, derived)
    if name == "custom_jvp_call":
        if derived:
            return _inside(equation, p["call_jaxpr"], equation.invars, found, True)
        program = _with_derivative(equation)
        return program and _inside(equation, *program, found, True)
    if len(operands) > 1:
        return None
    shape, target = operands[0][0].aval.shape, outputs[0].aval.shape
    kept = [axis for axis, own in enumerate(axes) if own is not None]
    after: Axes | None = None
    if name in _REDUCTIONS and not set(kept) & set(p["axes"]):
        after = tuple(own for axis, own in enumerate(axes) if axis not in p["axes"])
    elif (name in _WINDOWS and all(_window(p, axis) == (1, 1, 1, (0, 0)) for axis in kept)) or (
        name == "slice" and all(_slice(p, axis) == (0, shape[axis], 1) for axis in kept)
    ):
        after = axes
    elif name == "transpose":
        after = tuple(axes[axis] for axis in p["permutation"])
    elif name in _MOVES or (name == "broadcast_in_dim" and prod(target) == prod(shape)):
        after = _moved(shape, axes, target)
    return None if after is None else {outputs[0]: after}


def _window(p: Mapping[str, Any], axis: int) -> tuple[int, int, int, tuple[int, int]]:
    return p["window_dimensions"][axis], p["window_strides"][axis], p["base_dilation"][axis], tuple(p["padding"][axis])


def _slice(p: Mapping[str, Any], axis: int) -> tuple[int, int, int]:
    return p["start_indices"][axis], p["limit_indices"][axis], 1 if p["strides"] is None else p["strides"][axis]


def _moved(shape: Sequence[int], axes: Axes, target: Sequence[int]) -> Axes | None:
    """After a reshape that only drops or adds axes of length one."""
    real = [(length, axis) for length, axis in zip(shape, axes, strict=True) if length != 1]
    if [length for length, _ in real] != [length for length in target if length != 1]:
        return None
    rest = iter(axis for _, axis in real)
    return tuple(None if length == 1 else next(rest) for length in target)


def _inside(
    equation: jex.JaxprEqn, program: jex.ClosedJaxpr, arguments: Sequence[Any], found: Mapping[Any, Axes], derived: bool
) -> dict[jex.Var, Axes] | None:
    """The same through a program inside an equation; outputs that it has beyond those of the equation lie alike."""
    pairs = zip(program.jaxpr.invars, arguments, strict=True)
    own = {inner: found[outer] for inner, outer in pairs if isinstance(outer, jex.Var) and outer in found}
    for step in program.jaxpr.eqns:
        if any(variable in own for variable in taken(step)):
            followed = _followed(step, own, derived)
            if followed is None or step.effects:
                return None
            own.update(followed)
    results = [own.get(atom) if isinstance(atom, jex.Var) else None for atom in program.jaxpr.outvars]
    first = results[0]
    if first is None or None in results[: len(equation.outvars)] or any(axes not in (None, first) for axes in results):
        return None
    return dict.fromkeys(equation.outvars, first)


def _with_derivative(equation: jex.JaxprEqn) -> tuple[jex.ClosedJaxpr, list[jex.Var]] | None:
    """A function and its declared derivative, which might mix what the function does not, and what both take."""
    variables: list[Any] = list(dict.fromkeys(taken(equation)))
    if not all(jnp.issubdtype(variable.aval.dtype, jnp.floating) for variable in variables):
        return None
    function = function_of([equation], variables, equation.outvars)
    shapes = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in variables]
    program = jax.make_jaxpr(lambda values, tangents: jax.jvp(function, values, tangents))
    return program(shapes, shapes), 2 * variables
