"""The state of a recurrent network: its moments and tangents between all pairs of times."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..errors import UnsupportedModelError
from ..graph.signal import CarryLeaf, Leaf, Loop
from .fields import Field

if TYPE_CHECKING:
    from .recursion import Recursion

Labels = tuple[int, ...]


def carried(
    recursion: Recursion, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]
) -> Field | None:
    first, second = a[0], b[0]
    if not isinstance(first, CarryLeaf) or not isinstance(second, CarryLeaf) or first.loop is not second.loop:
        raise UnsupportedModelError(
            "'scan'",
            reason="its state meets something that is made from the same weights at another time",
            advice="Write the loop out step by step, for few steps",
            source=first.source or second.source,
        )
    if a[1] > b[1]:
        a, b = b, a
    (here,), (there,) = a[2], b[2]
    found = solved(recursion, tangent, first.loop, (a[1], b[1]), here == there)
    parts = tuple(leaf.part for leaf, *_ in (a, b) if isinstance(leaf, CarryLeaf))
    return Field(found[parts], (0,) if here == there else (0, 1)).relabelled({0: here, 1: there})


def solved(
    recursion: Recursion, tangent: bool, loop: Loop, sides: tuple[int, int], diagonal: bool
) -> dict[Any, jax.Array]:
    """Moments or tangents of the state at all pairs of times (or at equal ones).

    They follow from those one step before; so as many rounds as there are steps, each over all pairs, are exact.
    """
    key = ("loop", tangent, loop, sides, diagonal)
    if key in recursion.memo:
        return recursion.memo[key]
    if tangent or not diagonal or sides[0] != sides[1]:
        for side in sides:
            solved(recursion, False, loop, (side, side), True)
    if tangent:
        solved(recursion, False, loop, sides, diagonal)
    axes = 1 if diagonal else 2
    labels: tuple[Labels, Labels] = ((0,), (0,) if diagonal else (1,))
    places = [(i, j) for i in range(loop.parts) for j in range(loop.parts)]

    def step(state: dict[Any, jax.Array], _: None) -> tuple[dict[Any, jax.Array], None]:
        inner = replace(recursion, memo={**recursion.memo, key: state})
        new = {}
        for i, j in places:
            found = inner.pairs(loop.outputs[i], loop.outputs[j], sides, labels, tangent=tangent)
            after = recursion.number(found).full(tuple(range(axes)), (loop.length,) * axes)
            new[i, j] = jnp.pad(after, [(1, 0)] * axes)[(slice(None, -1),) * axes]
        return new, None

    start = {place: jnp.zeros((loop.length,) * axes, recursion.dtype) for place in places}
    recursion.memo[key] = jax.lax.scan(step, start, None, length=loop.length)[0]
    return recursion.memo[key]
