"""The user's network on one example, as a program that shows where each parameter meets a signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from .._jax import scan_counts
from ..trace.equations import applied, closed
from .pools import Pool, pool_of
from .sites import Site, in_loop, is_site, joined, rearranged, site_of
from .views import View, whole

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}


@dataclass(frozen=True)
class Program:
    """`jaxpr` of (parameters, state, example) → outputs, flat; `sites` are the uses of the `structured` leaves.

    All other leaves are differentiated as they are. `pairs` are the leaves that are the real and the imaginary part of
    one complex parameter; its sites are those of the real part. `pools` tells of those sites that may be seen from a
    pool behind them, by their number, and `pooled` which of them are.
    """

    jaxpr: jex.ClosedJaxpr
    leaves: int
    sites: tuple[Site, ...]
    structured: frozenset[int]
    pairs: frozenset[tuple[int, int]]
    pools: Mapping[int, Pool]
    pooled: frozenset[int] = frozenset()

    def __call__(
        self, parameters: Sequence[Any], rest: Sequence[Any], probes: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The outputs with zero `probes` added where a signal has met a parameter, and the signals there.

        Of a pooled site, the signal and the derivative of the pool's output.
        """
        run = _Run(self.structured, self.pairs, list(probes), {k: self.pools[k] for k in self.pooled})
        return run.outputs(self.jaxpr, self.leaves, [*parameters, *rest]), run.signals

    def seen_from(self, pooled: frozenset[int]) -> Program:
        """The same with these sites, numbers of `pools`, seen from the pools behind them."""
        sites = [self.pools[k].site if k in pooled else site for k, site in enumerate(self.sites)]
        return replace(self, sites=tuple(sites), pooled=pooled)

    def with_parts_apart(self, leaf: int) -> Program:
        """The same, but if the leaf is a part of a complex parameter, both parts are differentiated as they are."""
        parts = frozenset(chain(*(pair for pair in self.pairs if leaf in pair))) & self.structured
        if not parts:
            return self
        sites = tuple(site for site in self.sites if site.leaf not in parts)
        return replace(self, sites=sites, structured=self.structured - parts, pools={}, pooled=frozenset())

    def plain(self, values: Sequence[Any]) -> list[Any]:
        """The outputs alone, of (parameters, state, example)."""
        return jex.jaxpr_as_fun(self.jaxpr)(*values)


def opened(
    jaxpr: jex.ClosedJaxpr, leaves: int, allowed: frozenset[int], pairs: frozenset[tuple[int, int]] = frozenset()
) -> Program:
    """Find the sites of those of the first `leaves` arguments, `allowed`, that meet signals by known rules only."""
    structured = allowed
    while True:
        run = _Run(structured, pairs, None)
        jax.eval_shape(lambda *values, run=run: run.outputs(jaxpr, leaves, values), *jaxpr.in_avals)
        refused = run.taken | _incompatible(run.sites)
        if not refused & structured:
            break
        structured = structured - refused
    uses = [site.leaf for site in run.sites]
    alone = [uses.count(leaf) == 1 for leaf in uses]
    sites = tuple(
        replace(site, keeps_image=one and _keeps_image(site)) for site, one in zip(run.sites, alone, strict=True)
    )
    found = {k: pool_of(inside, place, sites[k]) for k, (inside, place) in run.places.items() if alone[k]}
    pools = {k: pool for k, pool in found.items() if pool is not None}
    parts = frozenset(site.imaginary for site in sites if site.imaginary is not None)
    return Program(jaxpr, leaves, sites, structured & (frozenset(uses) | parts), pairs, pools)


def _keeps_image(site: Site) -> bool:
    return site.window is not None and not site.window.in_loop and not site.takes_real_part


def _incompatible(sites: Sequence[Site]) -> frozenset[int]:
    """Leaves whose sites cut them in different ways, so that products between sites have no simple form."""
    cuts: dict[int, set[Any]] = {}
    for site in sites:
        ways = frozenset((site.inner, site.outer)), site.batch
        cuts.setdefault(site.leaf, set()).add(ways)
    return frozenset(leaf for leaf, found in cuts.items() if len(found) > 1)


class _Run:
    """One pass over the program. With `probes=None` nothing is added, sites are only found.

    `pools` are those behind sites that are to be pooled.
    """

    def __init__(
        self,
        structured: frozenset[int],
        pairs: frozenset[tuple[int, int]],
        probes: list[Any] | None,
        pools: Mapping[int, Pool] | None = None,
    ):
        self.structured = structured
        self.pairs = pairs
        self.probes = probes
        self.pools = dict(pools or {})
        self.waiting: dict[jex.Var, list[tuple[int, Any]]] = {}
        """The numbers and the probes of sites whose pools are yet to come, by what these will give."""
        self.sites: list[Site] = []
        self.places: dict[int, tuple[jex.Jaxpr, int]] = {}
        """In which program, and by which of its equations, a site is made that is in no loop."""
        self.signals: list[Any] = []
        self.taken: frozenset[int] = frozenset()
        """Leaves that were needed as they are."""

    def outputs(self, jaxpr: jex.ClosedJaxpr, leaves: int, values: Sequence[Any]) -> list[Any]:
        arguments = [
            whole(k, value) if k < leaves and k in self.structured else value for k, value in enumerate(values)
        ]
        return [self.plain(result) for result in self.walk(jaxpr, arguments)]

    def walk(self, jaxpr: jex.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        """The values of the outputs; views where they are parameters rearranged."""
        environment: dict[jex.Var, Any] = dict(zip(jaxpr.jaxpr.invars, arguments, strict=True))
        environment.update(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else environment[atom]

        for place, equation in enumerate(jaxpr.jaxpr.eqns):
            before = len(self.sites)
            results = self.equation(equation, [read(atom) for atom in equation.invars])
            environment.update(zip(equation.outvars, results, strict=True))
            if len(self.sites) > before and is_site(equation):
                self.places[before] = jaxpr.jaxpr, place
            for variable in equation.outvars:
                for number, probe in self.waiting.pop(variable, []):
                    derivative = self.pools[number].derivative({v: _value(a) for v, a in environment.items()})
                    self.signals[number] = self.signals[number], derivative
                    environment[variable] += probe
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    def plain(self, value: Any) -> Any:
        """The value itself; a parameter that is used so has no structure left."""
        if isinstance(value, View):
            self.taken |= value.leaves
            return value.value
        return value

    def equation(self, equation: jex.JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        views = [operand for operand in operands if isinstance(operand, View)]
        name = equation.primitive.name
        if not views:
            inner = equation.params.get(_INLINED.get(name, ""))
            if inner is None and name != "scan":
                return applied(equation, operands)
        if name in _INLINED:
            inner = equation.params[_INLINED[name]]
            return self.walk(closed(inner), operands) if views else applied(equation, operands)
        if name == "scan" and views:
            return self.scan(equation, operands)
        if len(views) == 1 == len(operands):
            (value,) = applied(equation, [views[0].value])
            view = rearranged(equation, views[0], value)
            if view is not None:
                return [view]
        if name == "complex" and len(views) == 2:
            (value,) = applied(equation, [view.value for view in views])
            view = joined(views, value, self.pairs)
            if view is not None:
                return [view]
        found = site_of(equation, operands)
        values = [o.value if isinstance(o, View) else o for o in operands]
        if found is None:
            for operand in operands:
                self.plain(operand)
            return applied(equation, values)
        site, signal = found
        (output,) = applied(equation, values)
        return [self.met(site, signal, output)]

    def met(self, site: Site, signal: Any, output: Any) -> Any:
        number = len(self.sites)
        self.sites.append(site)
        self.signals.append(signal)
        if self.probes is None:
            return output
        probe = self.probes.pop(0)
        if number not in self.pools:
            return output + probe
        self.waiting.setdefault(self.pools[number].end, []).append((number, probe))
        return output

    def scan(self, equation: jex.JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        """Every step as it is, with the probes of its sites handed in and their signals handed out."""
        p = equation.params
        (first, carried), length, body = scan_counts(p), p["length"], p["jaxpr"]
        second = first + carried
        operands = [
            self.plain(o)
            if isinstance(o, View) and (first <= k < second or (k >= second and len(o.axes[0]) > 1))
            else o
            for k, o in enumerate(operands)
        ]
        factors: dict[int, Any] = {}
        for k, operand in enumerate(operands):
            if isinstance(operand, View):
                factor = operand.axes[0][0] if k >= second and operand.axes[0] else None
                if factors.setdefault(operand.leaf, factor) != factor:
                    self.taken |= operand.leaves
        shapes = [_value(o) for o in operands]
        entries = [_value(o) for o in operands[second:]]

        def inside(run: _Run, values: Sequence[Any]) -> list[Any]:
            arguments = []
            for k, (outer, value) in enumerate(zip(operands, values, strict=True)):
                if isinstance(outer, View):
                    arguments.append(outer.seen(outer.axes[1:] if k >= second else outer.axes, value))
                else:
                    arguments.append(value)
            return [run.plain(result) for result in run.walk(body, arguments)]

        trial = _Run(self.structured, self.pairs, None)
        avals = [
            jax.ShapeDtypeStruct(jnp.shape(v)[1:] if k >= second else jnp.shape(v), jnp.result_type(v))
            for k, v in enumerate(shapes)
        ]
        jax.eval_shape(lambda *values: inside(trial, values), *avals)
        self.taken |= trial.taken
        own = None if self.probes is None else [self.probes.pop(0) for _ in trial.sites]

        def step(carry: Any, each: Any) -> tuple[Any, Any]:
            xs, probes = each
            run = _Run(self.structured, self.pairs, None if probes is None else list(probes))
            results = inside(run, [*shapes[:first], *carry, *xs])
            return results[: second - first], (results[second - first :], run.signals)

        final, (stacked, signals) = jax.lax.scan(
            step, list(shapes[first:second]), (entries, own), length=length, reverse=p["reverse"]
        )
        self.sites += [in_loop(site, length, factors[site.leaf]) for site in trial.sites]
        self.signals += signals
        return [*final, *stacked]


def _value(operand: Any) -> Any:
    return operand.value if isinstance(operand, View) else operand
