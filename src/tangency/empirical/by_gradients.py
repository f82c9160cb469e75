"""Products of gradients that are formed first, D = Σ_s a_s ⊗ g_s, a few entries and outputs at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import jax.numpy as jnp
from jax import lax

from .einsum import einsum
from .pairs import Pairing
from .parts import Part
from .turns import Turns, one_by_one, over_outputs, summed

CACHED = 2**22
"""Numbers of whole gradients that are formed and contracted at a time: what a processor keeps at hand."""

LONGEST = 2**17
"""Of these, those of one gradient: XLA for the CPU copies both factors of a product, badly where they are long."""


def by_gradients(left: Sequence[Part], right: Sequence[Part], pairing: Pairing, shape: tuple[int, int]) -> Any:
    """Σ_p D[o, n, p] D'[o', m, p] of whole gradients D; those of different outputs are not held together without need.

    `shape` is (i, j), of the first part's orientation.
    """
    sides = [left] if left is right else [left, right]
    cotangents = [[part.cotangent for part in side] for side in sides]
    if pairing == "all" or left[0].cotangent.shape[0] == 1:
        return _few_rows(sides, pairing, shape, None)

    def at_once(cotangents: Any) -> Any:
        return _few_rows(_with(sides, cotangent=cotangents), pairing, shape, None)

    def in_turn(cotangents: Any) -> Any:
        return _few_rows(sides, pairing, shape, one_by_one(cotangents))

    return lax.platform_dependent(cotangents, cpu=in_turn, default=at_once)


def _with(sides: Sequence[Sequence[Part]], **arrays: Any) -> list[list[Part]]:
    """The parts with other arrays of these names."""
    return [
        [replace(part, **{name: found[k][m] for name, found in arrays.items()}) for m, part in enumerate(side)]
        for k, side in enumerate(sides)
    ]


def _signals(sides: Sequence[Sequence[Part]]) -> Callable[[], list[list[Any]]]:
    """The signals, made where they are asked for from arrays without axes of length one: see `one_by_one`."""
    lean = [[part.signal.reshape([n for n in part.signal.shape if n != 1]) for part in side] for side in sides]
    shapes = [[part.signal.shape for part in side] for side in sides]
    return lambda: [[a.reshape(n) for a, n in zip(*each, strict=True)] for each in zip(lean, shapes, strict=True)]


def _few_rows(sides: Sequence[Sequence[Part]], pairing: Pairing, shape: tuple[int, int], turns: Turns | None) -> Any:
    """The same, with only some entries i at a time where all of them are too many."""
    taps, signals = sides[0][0].taps, _signals(sides)

    def products(start: Any, width: int | None) -> Any:
        own = [[_cut(part, start, width).opened for part in side] for side in _with(sides, signal=signals())]
        return _few_outputs(own, pairing, shape if width is None else (width * taps, shape[1]), turns)

    width = _width(sides, shape, turns is not None)
    if width is None:
        return products(0, None)
    times, rest = divmod(shape[0] // taps, width)
    total = summed(lambda start: products(start, width), width * jnp.arange(times))
    return total + products(times * width, rest) if rest else total


def gathered(part: Part, shape: tuple[int, int]) -> Any:
    """D[n, b, j, i] for a single output."""

    def formed(start: Any, width: int | None) -> Any:
        own = _cut(part, start, width).opened
        return whole_gradients([own], shape if width is None else (width * part.taps, shape[1]), "ji")[0]

    width = _width([[part]], shape, True)
    if width is None:
        return formed(0, None)
    times, rest = divmod(shape[0] // part.taps, width)
    found = jnp.moveaxis(lax.map(lambda start: formed(start, width), width * jnp.arange(times)), 0, 3)
    found = found.reshape(*found.shape[:3], -1)
    return jnp.concatenate([found, formed(times * width, rest)], 3) if rest else found


def _width(sides: Sequence[Sequence[Part]], shape: tuple[int, int], in_turn: bool) -> int | None:
    """How many entries i, or channels, to take at a time; None for all."""
    every = [part for side in sides for part in side]
    first, taps = every[0], every[0].taps
    if any(part.lookup or part.inner != first.inner for part in every):
        return None
    count, b = shape[0] // taps, first.signal.shape[1]
    longest = (1 if in_turn else len(first.cotangent)) * b * taps * shape[1]
    patches = 0 if first.window is None else b * taps * first.steps
    numbers = sum(side[0].signal.shape[0] for side in sides) * (longest + patches)
    width = max(1, min(CACHED // numbers, LONGEST // longest))
    return None if width >= count else ceil(count / ceil(count / width))


def _cut(part: Part, start: Any, width: int | None) -> Part:
    """The gradient at `width` entries i alone, or at those of so many channels."""
    if width is None:
        return part
    axis = 2 if part.window else part.signal_axes.index("i")
    return replace(part, signal=lax.dynamic_slice_in_dim(part.signal, start, width, axis))


def _few_outputs(sides: Sequence[Sequence[Part]], pairing: Pairing, shape: tuple[int, int], turns: Turns | None) -> Any:
    """The same, with all outputs at once, or one after the other."""
    order = _natural(sides[0][0])

    def of(own: Sequence[Sequence[Part]], pairing: Pairing) -> Any:
        gradients = [whole_gradients(side, shape, order) for side in own]
        return of_gradients(gradients[0], gradients[-1], pairing)

    if turns is None:
        return of(sides, pairing)
    signals, (count, of_output) = _signals(sides), turns

    def one(k: Any) -> Any:
        return of(_with(sides, signal=signals(), cotangent=of_output(k)), "sum")

    return summed(one, count) if pairing == "sum" else jnp.moveaxis(lax.map(one, count), 0, 2)


def whole_gradients(found: Sequence[Part], shape: tuple[int, int], order: str) -> Any:
    """D[o, n, b, …] of the first part's orientation, with `order` "ij" or "ji"; `shape` is (i, j)."""
    inner = found[0].inner
    total: Any = 0
    for part in found:
        own, rows = (order, shape[0]) if part.inner == inner else (order[::-1], shape[1])
        if not part.lookup:
            total = total + _formed(part, own)
        else:
            added = _rows_added(part, rows)
            total = total + (added if own == "ji" else jnp.swapaxes(added, -1, -2))
    return total


def _natural(part: Part) -> str:
    """The order of D = Σ_s a_s ⊗ g_s in which it is a product of matrices as they lie."""
    return "ij" if (part.signal_axes, part.cotangent_axes) == ("nbis", "onbsj") else "ji"


def _formed(part: Part, order: str) -> Any:
    """D[o, n, b, …] = Σ_s a_s ⊗ g_s."""
    if order == "ij":
        return einsum(f"{part.signal_axes},{part.cotangent_axes}->onbij", part.signal, part.cotangent)
    return einsum(f"{part.cotangent_axes},{part.signal_axes}->onbji", part.cotangent, part.signal)


def _rows_added(part: Part, rows: int) -> Any:
    """D[o, n, b, j, i] of a lookup in a table of so many rows i."""
    cotangent = jnp.transpose(part.cotangent, [part.cotangent_axes.index(a) for a in "nbsoj"])
    n, b, _, o, j = cotangent.shape
    places = jnp.where(part.signal >= 0, part.signal, rows)
    zero = jnp.zeros((n, b, rows, o, j), cotangent.dtype)
    at = (jnp.arange(n)[:, None, None], jnp.arange(b)[None, :, None], places)
    return zero.at[at].add(cotangent, mode="drop").transpose(3, 0, 1, 4, 2)


def of_gradients(left: Any, right: Any, pairing: Pairing) -> Any:
    """Σ_p D[o, n, p] D'[o', m, p], of complex parameters the sum over both of their parts."""
    same = left is right
    left = _rows(left)
    right = left if same else _rows(right)
    if pairing == "all":
        return einsum("onp,qmp->onqm", left, right).transpose(1, 3, 0, 2)
    if pairing == "each":
        return einsum("onp,omp->onm", left, right).transpose(1, 2, 0)
    return over_outputs(lambda own: einsum("onp,omp->nm", own[0], own[-1]), [left] if same else [left, right])


def _rows(gradients: Any) -> Any:
    """[o, n, p], real."""
    rows = gradients.reshape(*gradients.shape[:2], -1)
    return jnp.concatenate([rows.real, rows.imag], axis=2) if jnp.iscomplexobj(rows) else rows
