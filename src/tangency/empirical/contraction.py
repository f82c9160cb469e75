"""Products of the gradients of two sets of examples in one parameter, summed over its entries.

Gradients come either whole, D[n, o, p], or as what they are made of, a[n, b, s, i] and g[n, o, b, s, j] at every site
(see `sites`), and are then contracted in the cheaper of two ways: through Gram matrices of a and of g over pairs of
positions, Σ_{s,t} (a_s · a'_t)(g_s · g'_t), or by forming D = Σ_s a_s ⊗ g_s first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from jax import lax

from .einsum import HIGHEST, einsum
from .sites import Site

Pairing: TypeAlias = Literal["sum", "each", "all"]
"""What becomes of outputs o, o': the sum over o = o', `[n, m]`; each one, `[n, m, o]`; all pairs, `[n, m, o, o']`."""

_OTHER = str.maketrans("nstop", "mtspo")
"""The letters of the second set of examples."""


@dataclass(frozen=True)
class Part:
    """The gradients at sites of one parameter with the same orientation, side by side along s.

    `signal` has the axes `signal_axes`, "nbsi" or "nbis", or holds the row numbers "nbs" of a lookup; `cotangent` has
    "nobsj" or "nobjs".
    """

    signal: Any
    cotangent: Any
    signal_axes: str
    cotangent_axes: str
    inner: Any
    """Which entries of the parameter i runs along: equal where two parts are oriented alike."""

    @property
    def lookup(self) -> bool:
        return self.signal_axes == "nbs"

    @property
    def steps(self) -> int:
        return self.signal.shape[self.signal_axes.index("s")]


def parts(sites: Sequence[Site], signals: Sequence[Any], cotangents: Sequence[Any]) -> list[Part]:
    """The parts of one parameter's gradient, from the arranged arrays of its sites."""
    groups: dict[Any, list[int]] = {}
    for k, site in enumerate(sites):
        groups.setdefault((site.inner, site.signal_order, site.cotangent_order), []).append(k)
    found = []
    for (inner, signal, cotangent), group in groups.items():
        axes, other = f"n{signal}", f"no{cotangent}"
        a = [signals[k] for k in group]
        g = [cotangents[k] for k in group]
        found.append(Part(_joined(a, axes.index("s")), _joined(g, other.index("s")), axes, other, inner))
    return found


def _joined(arrays: Sequence[Any], axis: int) -> Any:
    """Side by side along an axis; not at once, because of a fault of jaxlib (see `_jax`)."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.moveaxis(jnp.concatenate([jnp.moveaxis(array, axis, 0) for array in arrays]), 0, axis)


def by_positions(left: Sequence[Part], right: Sequence[Part], pairing: Pairing) -> Any:
    """Σ over pairs of positions of the products of signals and cotangents."""
    return sum(_pair(first, second, pairing) for first in left for second in right)


def _pair(first: Part, second: Part, pairing: Pairing) -> Any:
    if first.inner != second.inner:
        return _crossed(first, second, pairing)
    g, h = first.cotangent, second.cotangent
    cotangents = f"{first.cotangent_axes},{second.cotangent_axes.translate(_OTHER)}->"
    signals = _signal_products(first, second)
    if pairing == "all":
        return jnp.einsum("bnsmt,bnsmtop->nmop", signals, einsum(cotangents + "bnsmtop", g, h))
    own = cotangents.replace("p", "o")
    if pairing == "each":
        return jnp.einsum("bnsmt,obnsmt->nmo", signals, einsum(own + "obnsmt", g, h))
    return (signals * einsum(own + "bnsmt", g, h)).sum((0, 2, 4))


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
    letters = {"all": ("nbsmpt,mbtnos->nmop"), "each": ("nbsmot,mbtnos->nmo"), "sum": ("nbsmot,mbtnos->nm")}
    return jnp.einsum(letters[pairing], left, right, precision=HIGHEST)


def _against(part: Part, other: Part) -> Any:
    """The signal of one part times the cotangent of another, [n, b, s, m, o, t]."""
    cotangent = other.cotangent
    if not part.lookup:
        axes = other.cotangent_axes.translate(str.maketrans("nsj", "mti"))
        return einsum(f"{part.signal_axes},{axes}->nbsmot", part.signal, cotangent)
    cotangent = jnp.transpose(cotangent, [other.cotangent_axes.index(a) for a in "nbosj"])
    m, b, o, t, i = cotangent.shape
    rows = _rows_of(cotangent.reshape(m, b, o * t, i), "nbsi", part.signal)
    return jnp.transpose(rows.reshape(b, m, o, t, *rows.shape[3:]), (4, 0, 5, 1, 2, 3))


CACHED = 2**22
"""Numbers of whole gradients that are formed and contracted at a time: what a processor keeps at hand."""

LONGEST = 2**17
"""Of these, those of one example: XLA for the CPU copies both factors of a product, badly where they are long."""


def by_gradients(left: Sequence[Part], right: Sequence[Part], pairing: Pairing, shape: tuple[int, int]) -> Any:
    """Σ_p D[n, o, p] D'[m, o', p] of whole gradients D, of which only some entries j are formed at a time.

    `shape` is (i, j), of the first part's orientation.
    """
    same = left is right

    def products(start: Any, width: int | None) -> Any:
        first, second = ([_cut(part, start, width) for part in side] for side in (left, right))
        own = shape if width is None else (shape[0], width)
        gradients = whole_gradients(first, own)
        return of_gradients(gradients, gradients if same else whole_gradients(second, own), pairing)

    inner = left[0].inner
    if any(part.lookup or part.inner != inner for part in (*left, *right)):
        return products(0, None)
    sides = left if same else (*left, *right)
    numbers = sum(part.cotangent.size // (part.steps * shape[1]) for part in sides) * shape[0]
    longest = left[0].cotangent[0].size // (left[0].steps * shape[1]) * shape[0]
    width = max(1, min(CACHED // numbers, LONGEST // longest))
    if width >= shape[1]:
        return products(0, None)
    count, rest = divmod(shape[1], width)
    starts = width * jnp.arange(count)
    total = lax.scan(lambda sofar, start: (sofar + products(start, width), None), products(0, width), starts[1:])[0]
    return total + products(count * width, rest) if rest else total


def _cut(part: Part, start: Any, width: int | None) -> Part:
    """The gradient at `width` entries j alone."""
    if width is None:
        return part
    axis = part.cotangent_axes.index("j")
    return replace(part, cotangent=lax.dynamic_slice_in_dim(part.cotangent, start, width, axis))


def whole_gradients(found: Sequence[Part], shape: tuple[int, int]) -> Any:
    """D[n, o, b, j, i] of the first part's orientation; `shape` is (i, j)."""
    inner = found[0].inner
    total: Any = 0
    for part in found:
        own = shape if part.inner == inner else shape[::-1]
        gradient = _rows_added(part, own[0]) if part.lookup else _formed(part)
        total = total + (gradient if part.inner == inner else jnp.swapaxes(gradient, -1, -2))
    return total


def _formed(part: Part) -> Any:
    """D[n, o, b, j, i] = Σ_s a_s ⊗ g_s."""
    return einsum(f"{part.cotangent_axes},{part.signal_axes}->nobji", part.cotangent, part.signal)


def _rows_added(part: Part, rows: int) -> Any:
    """D[n, o, b, j, i] of a lookup in a table of so many rows i."""
    cotangent = jnp.transpose(part.cotangent, [part.cotangent_axes.index(a) for a in "nbsoj"])
    n, b, _, o, j = cotangent.shape
    places = jnp.where(part.signal >= 0, part.signal, rows)
    zero = jnp.zeros((n, b, rows, o, j), cotangent.dtype)
    at = (jnp.arange(n)[:, None, None], jnp.arange(b)[None, :, None], places)
    return zero.at[at].add(cotangent, mode="drop").transpose(0, 3, 1, 4, 2)


def of_gradients(left: Any, right: Any, pairing: Pairing) -> Any:
    """Σ_p D[n, o, p] D'[m, o', p]."""
    left = left.reshape(*left.shape[:2], -1)
    right = right.reshape(*right.shape[:2], -1)
    letters = {"all": "nop,mqp->nmoq", "each": "nop,mop->nmo", "sum": "nop,mop->nm"}
    return einsum(letters[pairing], left, right)
