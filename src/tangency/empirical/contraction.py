"""Products of the gradients of two sets of examples in one parameter, summed over its entries.

Gradients come either whole, D[n, o, p], or as what they are made of, a[n, b, s, i] and g[n, o, b, s, j] at every site
(see `sites`), and are then contracted in the cheaper of two ways: through Gram matrices of a and of g over pairs of
positions, Σ_{s,t} (a_s · a'_t)(g_s · g'_t), or by forming D = Σ_s a_s ⊗ g_s first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from jax import lax

from .sites import Site

Pairing: TypeAlias = Literal["sum", "each", "all"]
"""What becomes of outputs o, o': the sum over o = o', `[n, m]`; each one, `[n, m, o]`; all pairs, `[n, m, o, o']`."""

HIGHEST = lax.Precision.HIGHEST


@dataclass(frozen=True)
class Part:
    """The gradients at sites of one parameter with the same orientation, side by side along s.

    `signal` is `[n, b, s, i]` or row numbers `[n, b, s]` of a lookup, `cotangent` is `[n, o, b, s, j]`.
    """

    signal: Any
    cotangent: Any
    inner: Any
    """Which entries of the parameter i runs along: equal where two parts are oriented alike."""

    @property
    def lookup(self) -> bool:
        return self.signal.ndim == 3


def parts(sites: Sequence[Site], signals: Sequence[Any], cotangents: Sequence[Any]) -> list[Part]:
    """The parts of one parameter's gradient, from the arranged arrays of its sites."""
    groups: dict[Any, list[int]] = {}
    for k, site in enumerate(sites):
        groups.setdefault((site.inner, site.is_lookup), []).append(k)
    return [
        Part(
            jnp.concatenate([signals[k] for k in group], axis=2),
            jnp.concatenate([cotangents[k] for k in group], axis=3),
            inner,
        )
        for (inner, _), group in groups.items()
    ]


def by_positions(left: Sequence[Part], right: Sequence[Part], pairing: Pairing) -> Any:
    """Σ over pairs of positions of the products of signals and cotangents."""
    return sum(_pair(first, second, pairing) for first in left for second in right)


def _pair(first: Part, second: Part, pairing: Pairing) -> Any:
    if first.inner != second.inner:
        return _crossed(first, second, pairing)
    g, h = first.cotangent, second.cotangent
    if not first.lookup and not second.lookup and first.signal.shape[2] == second.signal.shape[2] == 1:
        return _at_one_position(first, second, pairing)
    signals = _signal_products(first, second)
    if pairing == "all":
        return _einsum("nbsmt,nobsmpt->nmop", signals, _einsum("nobsj,mpbtj->nobsmpt", g, h))
    if pairing == "each":
        return _einsum("nbsmt,nobsmt->nmo", signals, _einsum("nobsj,mobtj->nobsmt", g, h))
    return _einsum("bnsmt,bnsmt->nm", jnp.moveaxis(signals, 1, 0), _einsum("nobsj,mobtj->bnsmt", g, h))


def _at_one_position(first: Part, second: Part, pairing: Pairing) -> Any:
    """(a · a')(g · g') where each parameter is used once."""
    a, c = first.signal[:, :, 0], second.signal[:, :, 0]
    g, h = first.cotangent[:, :, :, 0], second.cotangent[:, :, :, 0]
    signals = _einsum("nbi,mbi->bnm", a, c)
    if pairing == "all":
        return _einsum("bnm,bnomp->nmop", signals, _einsum("nobj,mpbj->bnomp", g, h))
    if pairing == "each":
        return _einsum("bnm,bonm->nmo", signals, _einsum("nobj,mobj->bonm", g, h))
    return _einsum("bnm,bnm->nm", signals, _einsum("nobj,mobj->bnm", g, h))


def _signal_products(first: Part, second: Part) -> Any:
    """a · a' for all pairs of positions, [n, b, s, m, t]."""
    if first.lookup and second.lookup:
        rows, others = first.signal[..., None, None], jnp.moveaxis(second.signal, 1, 0)[None, :, None]
        return ((rows == others) & (rows >= 0)).astype(first.cotangent.dtype)
    if first.lookup:
        return _moved(_rows_of(second.signal, first.signal))
    if second.lookup:
        return _rows_of(first.signal, second.signal)
    return _einsum("nbsi,mbti->nbsmt", first.signal, second.signal)


def _rows_of(dense: Any, rows: Any) -> Any:
    """dense[n, b, s, i] at the entries i = rows[m, b, t], as [n, b, s, m, t]; 0 for row −1."""
    batch = jnp.arange(dense.shape[1])[None, :, None]
    picked = jnp.moveaxis(dense, 1, 0)[batch, :, :, jnp.maximum(rows, 0)]
    picked = jnp.where((rows >= 0)[..., None, None], picked, 0)
    return jnp.transpose(picked, (3, 1, 4, 0, 2))


def _moved(products: Any) -> Any:
    """[m, b, t, n, s] as [n, b, s, m, t]."""
    return jnp.transpose(products, (3, 1, 4, 0, 2))


def _crossed(first: Part, second: Part, pairing: Pairing) -> Any:
    """Parts of opposite orientation, as of W and of its transpose: Σ (a · g')(g · a')."""
    left = _against(first, second.cotangent)
    right = _against(second, first.cotangent)
    letters = {"all": ("nbsmpt,mbtnos->nmop"), "each": ("nbsmot,mbtnos->nmo"), "sum": ("nbsmot,mbtnos->nm")}
    return _einsum(letters[pairing], left, right)


def _against(part: Part, cotangent: Any) -> Any:
    """The signal of one part times the cotangent of another, [n, b, s, m, o, t]."""
    if not part.lookup:
        return _einsum("nbsi,mobti->nbsmot", part.signal, cotangent)
    m, o, b, t, i = cotangent.shape
    rows = _rows_of(cotangent.transpose(0, 2, 1, 3, 4).reshape(m, b, o * t, i), part.signal)
    return jnp.transpose(rows.reshape(m, b, o, t, *rows.shape[3:]), (4, 1, 5, 0, 2, 3))


def whole_gradients(found: Sequence[Part], shape: tuple[int, int]) -> Any:
    """D[n, o, b, i, j] of the first part's orientation; `shape` is (i, j)."""
    inner = found[0].inner
    total: Any = 0
    for part in found:
        own = shape if part.inner == inner else shape[::-1]
        if part.lookup:
            n, o, b, _, j = part.cotangent.shape
            rows = jnp.where(part.signal >= 0, part.signal, own[0])
            zero = jnp.zeros((n, b, own[0], o, j), part.cotangent.dtype)
            at = (jnp.arange(n)[:, None, None], jnp.arange(b)[None, :, None], rows)
            added = zero.at[at].add(part.cotangent.transpose(0, 2, 3, 1, 4), mode="drop")
            gradient = added.transpose(0, 3, 1, 2, 4)
        else:
            gradient = _einsum("nbsi,nobsj->nobij", part.signal, part.cotangent)
        total = total + (gradient if part.inner == inner else jnp.swapaxes(gradient, -1, -2))
    return total


def of_gradients(left: Any, right: Any, pairing: Pairing) -> Any:
    """Σ_p D[n, o, p] D'[m, o', p]."""
    left = left.reshape(*left.shape[:2], -1)
    right = right.reshape(*right.shape[:2], -1)
    letters = {"all": "nop,mqp->nmoq", "each": "nop,mop->nmo", "sum": "nop,mop->nm"}
    return _einsum(letters[pairing], left, right)


def _einsum(letters: str, *arrays: Any) -> Any:
    return jnp.einsum(letters, *arrays, precision=HIGHEST)
