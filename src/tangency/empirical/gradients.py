"""Gradients of a network's outputs for a set of examples, and the NTK of two sets from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from .by_gradients import by_gradients, of_gradients
from .by_positions import by_positions
from .pairs import Pairing, strips
from .parts import Part, parts
from .program import Program
from .sites import Site


@dataclass(frozen=True)
class Gradients:
    """The gradients of k functionals of the output for n examples, per parameter: at its sites, or whole, [k, n, …]."""

    parts: dict[int, list[Part]]
    whole: dict[int, Any]


def output_vector(outputs: Sequence[Any]) -> Any:
    """All outputs of one example as one real vector; imaginary parts, if any, follow all real parts."""
    flat = jnp.concatenate([jnp.ravel(value) for value in outputs])
    return jnp.concatenate([flat.real, flat.imag]) if jnp.iscomplexobj(flat) else flat


def gradients(program: Program, parameters: Sequence[Any], rest: Sequence[Any], x: Any, functionals: Any) -> Gradients:
    """Gradients of `functionals` [k, o] of the outputs at examples x, [n, ...]."""
    direct = [k for k in range(program.leaves) if k not in program.structured]
    zeros = [jnp.zeros(site.probe, site.dtype) for site in program.sites]

    def one(example: Any, functional: Any) -> tuple[Any, Any, Any]:
        def forward(values: Sequence[Any], probes: Sequence[Any]) -> tuple[Any, Any]:
            own = list(parameters)
            for k, value in zip(direct, values, strict=True):
                own[k] = value
            outputs, signals = program(own, [*rest, example], probes)
            return output_vector(outputs), signals

        output, back, signals = jax.vjp(forward, [parameters[k] for k in direct], zeros, has_aux=True)
        whole, cotangents = back(functional.astype(output.dtype))
        arranged = [arranged_signal(k, found) for k, found in enumerate(signals)]
        turned = [site.arranged_cotangent(g) for site, g in zip(program.sites, cotangents, strict=True)]
        return whole, arranged, turned

    def arranged_signal(number: int, found: Any) -> Any:
        """Of a pooled site, both that it is the sum of products of."""
        site = program.sites[number]
        dtype = parameters[site.leaf].dtype
        if number not in program.pooled:
            return _in(site.arranged_signal(found), dtype)
        (signal, derivative), origin = found, program.pools[number].origin
        return _in(origin.arranged_signal(signal), dtype), _in(origin.arranged_cotangent(derivative), dtype)

    # Outputs outside: what does not depend on them is computed once, what does has them first.
    for_all = jax.vmap(lambda functional: jax.vmap(one, (0, None))(x, functional), out_axes=(0, None, 0))
    whole, signals, cotangents = for_all(functionals)
    for number in program.pooled:
        signals[number] = program.pools[number].signals(*signals[number])
    found: dict[int, list[Part]] = {}
    for leaf in sorted({site.leaf for site in program.sites}):
        places = [k for k, site in enumerate(program.sites) if site.leaf == leaf]
        dtype = parameters[leaf].dtype
        found[leaf] = parts(
            [program.sites[k] for k in places],
            [signals[k] for k in places],
            [_in(cotangents[k], dtype) for k in places],
        )
    return Gradients(found, dict(zip(direct, whole, strict=True)))


def _in(array: Any, dtype: Any) -> Any:
    """Sums over positions and parameters are taken in the parameters' own precision."""
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def contributions(
    program: Program,
    rates: Sequence[Any],
    left: Gradients,
    right: Gradients,
    pairing: Pairing,
    always_by_positions: bool = False,
) -> dict[int, Any]:
    """The part of the NTK that each parameter contributes, in the cheaper way."""
    same = left is right
    found: dict[int, Any] = {}
    for leaf, own in left.parts.items():
        other = right.parts[leaf]
        n, m = own[0].signal.shape[0], other[0].signal.shape[0]
        sites = [site for site in program.sites if site.leaf == leaf]
        if always_by_positions or cost(sites, n, m, len(own[0].cotangent), pairing, same).positions_first:
            found[leaf] = rates[leaf] * by_positions(own, other, pairing)
        else:
            found[leaf] = rates[leaf] * by_gradients(own, own if same else other, pairing, sites[0].sizes[2:])
    for leaf, own in left.whole.items():
        rate = jnp.asarray(rates[leaf], own.dtype)
        weighted = own * rate.reshape(1, 1, *rate.shape) if rate.shape else own * rate
        found[leaf] = of_gradients(weighted, right.whole[leaf], pairing)
    return found


MOVED = 64.0
"""Multiplications that fit in the time that a number takes to be written and read again, on a CPU and on a GPU."""


@dataclass(frozen=True)
class Cost:
    """Real multiplications, numbers written and numbers held at once, by pairs of positions and by whole gradients."""

    positions: float
    positions_moved: float
    positions_held: float
    whole: float
    whole_moved: float
    whole_held: float

    @property
    def _by_positions(self) -> float:
        return self.positions + MOVED * self.positions_moved

    @property
    def _by_gradients(self) -> float:
        return self.whole + MOVED * self.whole_moved

    @property
    def positions_first(self) -> bool:
        return self._by_positions <= self._by_gradients

    @property
    def total(self) -> float:
        """Of the cheaper way, in multiplications."""
        return min(self._by_positions, self._by_gradients)


def cost(sites: Sequence[Site], n: int, m: int, k: int, pairing: Pairing, same: bool) -> Cost:
    """Of contracting the gradients at `sites` of one parameter, k functionals for n and for m examples."""
    b, _, i, j = sites[0].sizes
    steps = sum(site.sizes[1] for site in sites)
    lookup = any(site.is_lookup for site in sites)
    pairs = k * k if pairing == "all" else k
    upper = sum((stop - start) * (n - start) for start, stop in strips(n)) if same else n * m
    sides = n if same else n + m
    gradients = sides * k * b * i * j
    first = sides * sum(site.gathered for site in sites)
    if steps > 1 and all(site.is_small for site in sites):
        first, steps = first + sides * k * b * steps * j, 1
    blocks = upper * steps * steps * b
    first_moved = sides * sum(prod(site.signal_shape) for site in sites if site.gathered)
    numbers = 1 if sites[0].imaginary is None else 2
    return Cost(
        positions=numbers**2 * (first + blocks * ((0 if lookup else i) + pairs * j)),
        positions_moved=numbers * (first_moved + blocks * (1 + pairs)),
        positions_held=numbers * blocks * (2 if pairing == "sum" else 1 + pairs),
        whole=numbers**2 * (first + sides * k * b * steps * (j if lookup else i * j))
        + numbers * n * m * pairs * b * i * j,
        whole_moved=numbers * (first_moved + gradients),
        whole_held=numbers * gradients / (1 if pairing == "all" else k),
    )


def cheapest(program: Program, n: int, m: int, k: int, pairing: Pairing, same: bool) -> Program:
    """The program with those of its sites pooled that then cost less."""

    def total(site: Site) -> float:
        return cost([site], n, m, k, pairing, same).total

    pools = program.pools.items()
    return program.seen_from(frozenset(number for number, pool in pools if total(pool.site) < total(pool.origin)))


def held(program: Program, parameters: Sequence[Any], n: int, m: int, k: int, pairing: Pairing, same: bool) -> float:
    """About how many numbers are held at once for a block of n × m examples and k functionals."""
    sides = n if same else n + m
    total = 0.0
    for site in program.sites:
        total += sides * site.words * (site.signal_size + 2 * k * prod(site.probe))
    for leaf, array in enumerate(parameters):
        if leaf not in program.structured:
            total += sides * k * array.size
    most = 0.0
    for leaf in {site.leaf for site in program.sites}:
        own = [site for site in program.sites if site.leaf == leaf]
        found = cost(own, n, m, k, pairing, same)
        patches = sides * sum(site.words * prod(site.signal_shape) for site in own if site.keeps_image)
        most = max(most, patches + found.positions_held if found.positions_first else found.whole_held)
    return total + most
