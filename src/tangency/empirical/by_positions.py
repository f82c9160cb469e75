"""Products of gradients without forming them: Σ_{s,t} (a_s · a'_t)(g_s · g'_t), over pairs of positions.

Those of complex parameters are the real part of this with a' and g' conjugated.

Most products need no copy, as the cotangents of one output lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from .einsum import HIGHEST, einsum
from .pairs import Pairing, completed, strips
from .parts import Part
from .turns import over_outputs

_OTHER = str.maketrans("nstop", "mtspo")
"""The letters of the second set of examples."""


def by_positions(left: Sequence[Part], right: Sequence[Part], pairing: Pairing) -> Any:
    """Σ over pairs of positions of the products of signals and cotangents."""
    same = left is right
    left = [part.opened for part in left]
    right = left if same else [part.opened for part in right]
    if jnp.iscomplexobj(left[0].cotangent):
        right = [part.conjugated for part in right]
    if not same:
        return sum(_pair(first, second, pairing, [(0, None)]) for first in left for second in right)
    cuts = strips(left[0].signal.shape[0])
    total = sum(_pair(first, second, pairing, cuts) for first in left for second in right)
    return completed(total, pairing, jnp)


def _pair(first: Part, second: Part, pairing: Pairing, cuts: Sequence[tuple[int, int | None]]) -> Any:
    """Rows start to stop of each cut, from column start on; what lies below is zero, or counts as well."""
    if first.inner != second.inner:
        return _crossed(first, second, pairing)
    found = _cotangent_products(first, second, pairing, cuts)
    rows = []
    for (start, stop), cotangents in zip(cuts, found, strict=True):
        signals = _signal_products(first.of_examples(start, stop), second.of_examples(start, None))
        if pairing == "sum":
            products = (signals * cotangents).sum((0, 2, 4))
        elif pairing == "each":
            products = jnp.einsum("bnsmt,obnsmt->nmo", signals, cotangents, precision=HIGHEST)
        else:
            products = jnp.einsum("bnsmt,bonspmt->nmop", signals, cotangents, precision=HIGHEST)
        rows.append(jnp.pad(products.real, [(0, 0), (start, 0), *[(0, 0)] * (products.ndim - 2)]))
    return jnp.concatenate(rows)


def _cotangent_products(first: Part, second: Part, pairing: Pairing, cuts: Sequence[tuple[int, int | None]]) -> Any:
    """g · g' for all pairs of positions: [b, n, s, m, t], for "each" [o, …], for "all" [b, o, n, s, p, m, t]."""
    g = first.rows
    h = g if first is second else second.rows
    s, t = first.steps, second.steps
    everything = pairing == "all"

    def products(g: Any, h: Any, summed: bool) -> list[Any]:
        # An axis of length one is no sum: XLA for the CPU would copy what has two contracted axes.
        batch, contracted = ((1,), (0, 3)) if summed and len(g) > 1 else ((1,) if everything else (0, 1), (3,))
        found = []
        for start, stop in cuts:
            own, other = g[:, :, start * s : None if stop is None else stop * s], h[:, :, start * t :]
            product = lax.dot_general(own, other, ((contracted, contracted), (batch, batch)), precision=HIGHEST)
            first, second = (own.shape[2] // s, s), (other.shape[2] // t, t)
            if everything:
                shape = g.shape[1], g.shape[0], *first, h.shape[0], *second
            else:
                shape = *(() if summed else g.shape[:1]), g.shape[1], *first, *second
            found.append(product.reshape(shape))
        return found

    if pairing != "sum":
        return products(g, h, False)
    return over_outputs(lambda own: products(own[0], own[-1], True), [g] if g is h else [g, h])


def _signal_products(first: Part, second: Part) -> Any:
    """a · a' for all pairs of positions, [b, n, s, m, t]."""
    if first.lookup and second.lookup:
        rows, others = (jnp.moveaxis(part.signal, 1, 0) for part in (first, second))
        rows, others = rows[..., None, None], others[:, None, None]
        return ((rows == others) & (rows >= 0)).astype(first.cotangent.dtype)
    if first.lookup:
        return _rows_of(second.signal, second.signal_axes, first.signal).transpose(0, 3, 4, 1, 2)
    if second.lookup:
        return _rows_of(first.signal, first.signal_axes, second.signal)
    axes = f"{first.signal_axes},{second.signal_axes.translate(_OTHER)}"
    return einsum(f"{axes}->bnsmt", first.signal, second.signal)


def _rows_of(dense: Any, axes: str, rows: Any) -> Any:
    """dense[n, b, s, i] at the entries i = rows[m, b, t], as [b, n, s, m, t]; 0 for row −1."""
    lies = jnp.transpose(dense, [axes.index(a) for a in "bnsi"])
    batch = jnp.arange(lies.shape[0])[None, :, None]
    picked = lies[batch, :, :, jnp.maximum(rows, 0)]
    picked = jnp.where((rows >= 0)[..., None, None], picked, 0)
    return jnp.transpose(picked, (1, 3, 4, 0, 2))


def _crossed(first: Part, second: Part, pairing: Pairing) -> Any:
    """Parts of opposite orientation, as of W and of its transpose: Σ (a · g')(g · a')."""
    left = _against(first, second)
    right = _against(second, first)
    letters = {"all": "bnspmt,bmtons->nmop", "each": "bnsomt,bmtons->nmo", "sum": "bnsomt,bmtons->nm"}
    return jnp.einsum(letters[pairing], left, right, precision=HIGHEST).real


def _against(part: Part, other: Part) -> Any:
    """The signal of one part times the cotangent of another, [b, n, s, o, m, t]."""
    cotangent = other.cotangent
    if not part.lookup:
        axes = other.cotangent_axes.translate(str.maketrans("nsj", "mti"))
        return einsum(f"{part.signal_axes},{axes}->bnsomt", part.signal, cotangent)
    cotangent = jnp.transpose(cotangent, [other.cotangent_axes.index(a) for a in "nbosj"])
    m, b, o, t, i = cotangent.shape
    rows = _rows_of(cotangent.reshape(m, b, o * t, i), "nbsi", part.signal)
    return jnp.transpose(rows.reshape(b, m, o, t, *rows.shape[3:]), (0, 4, 5, 2, 1, 3))
