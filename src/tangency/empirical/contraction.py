"""Products of the gradients of two sets of examples in one parameter, summed over its entries.

Gradients come either whole, D[o, n, p], or as what they are made of, a[n, b, s, i] and g[o, n, b, s, j] at every site
(see `sites`), and are then contracted in the cheaper of two ways: through Gram matrices of a and of g over pairs of
positions, Σ_{s,t} (a_s · a'_t)(g_s · g'_t), or by forming D = Σ_s a_s ⊗ g_s first. Outputs come first, so that those
of one output lie side by side: most products then need no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .einsum import HIGHEST, einsum
from .sites import Site

Pairing: TypeAlias = Literal["sum", "each", "all"]
"""What becomes of outputs o, o': the sum over o = o', `[n, m]`; each one, `[n, m, o]`; all pairs, `[n, m, o, o']`."""

STRIPS = 2
"""Strips of rows that symmetric matrices are cut into: more save little, and make each product smaller."""

CACHED = 2**22
"""Numbers of whole gradients that are formed and contracted at a time: what a processor keeps at hand."""

LONGEST = 2**17
"""Of these, those of one gradient: XLA for the CPU copies both factors of a product, badly where they are long."""

_OTHER = str.maketrans("nstop", "mtspo")
"""The letters of the second set of examples."""


@dataclass(frozen=True)
class Part:
    """The gradients at sites of one parameter with the same orientation, side by side along s.

    `signal` has the axes `signal_axes`, "nbsi" or "nbis", or holds the row numbers "nbs" of a lookup; `cotangent` has
    "onbsj" or "onbjs".
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

    @property
    def rows(self) -> Any:
        """The cotangent of every position of every example, [o, b, n·s, j]."""
        lies = jnp.transpose(self.cotangent, [self.cotangent_axes.index(a) for a in "obnsj"])
        return lies.reshape(*lies.shape[:2], -1, lies.shape[-1])

    def of_examples(self, start: int, stop: int | None) -> Part:
        return replace(self, signal=self.signal[start:stop], cotangent=self.cotangent[:, start:stop])


def parts(sites: Sequence[Site], signals: Sequence[Any], cotangents: Sequence[Any]) -> list[Part]:
    """The parts of one parameter's gradient, from the arranged arrays of its sites."""
    groups: dict[Any, list[int]] = {}
    for k, site in enumerate(sites):
        groups.setdefault((site.inner, site.signal_order, site.cotangent_order), []).append(k)
    found = []
    for (inner, signal, cotangent), group in groups.items():
        axes, other = f"n{signal}", f"on{cotangent}"
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
    if left is not right:
        return sum(_pair(first, second, pairing, [(0, None)]) for first in left for second in right)
    cuts = strips(left[0].signal.shape[0])
    total = sum(_pair(first, second, pairing, cuts) for first in left for second in right)
    return completed(total, pairing, jnp)


def strips(n: int) -> list[tuple[int, int]]:
    """Rows of a symmetric matrix that are computed at a time, from the diagonal on."""
    return list(pairwise(sorted({n * k // STRIPS for k in range(STRIPS + 1)})))


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
        rows.append(jnp.pad(products, [(0, 0), (start, 0), *[(0, 0)] * (products.ndim - 2)]))
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
    return _over_outputs(lambda own: products(own[0], own[-1], True), [g] if g is h else [g, h])


def _over_outputs(sum_of: Callable[[Any], Any], arrays: Any) -> Any:
    """`sum_of` arrays, or lists of arrays, [o, …], which is a sum over outputs o: on a CPU of one after the other.

    At once, XLA for the CPU would copy them, or fail: jaxlib 0.10.1 crashes on sums of products of an array with
    itself. Elsewhere a loop would take longer than what is in it.
    """
    first = jax.tree.map(lambda array: array[:1], arrays)
    if jax.tree.leaves(first)[0].shape == jax.tree.leaves(arrays)[0].shape:
        return sum_of(arrays)

    def in_turn(arrays: Any) -> Any:
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(sum_of, first))
        count, of_output = _one_by_one(arrays)
        return lax.scan(lambda total, k: (jax.tree.map(jnp.add, total, sum_of(of_output(k))), None), zeros, count)[0]

    return _by_platform(in_turn, sum_of, arrays)


def _by_platform(on_cpu: Callable[[Any], Any], elsewhere: Callable[[Any], Any], arrays: Any) -> Any:
    return lax.platform_dependent(arrays, cpu=on_cpu, default=elsewhere)


def _one_by_one(arrays: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The numbers of the outputs, and what gives the arrays of one output, [1, …], from arrays [o, …].

    They are cut from matrices, the shape in which products have used them before: XLA for the CPU would compute them
    for each shape anew, and copy what has another shape inside a loop than outside.
    """
    rows = jax.tree.map(lambda array: array.reshape(-1, array.shape[-1]), arrays)

    def of_output(k: Any) -> Any:
        def cut(flat: Any, array: Any) -> Any:
            length = len(flat) // len(array)
            return lax.dynamic_slice_in_dim(flat, k * length, length).reshape(1, *array.shape[1:])

        return jax.tree.map(cut, rows, arrays)

    return jnp.arange(len(jax.tree.leaves(arrays)[0])), of_output


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
    return jnp.einsum(letters[pairing], left, right, precision=HIGHEST)


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


def by_gradients(left: Sequence[Part], right: Sequence[Part], pairing: Pairing, shape: tuple[int, int]) -> Any:
    """Σ_p D[o, n, p] D'[o', m, p] of whole gradients D; those of different outputs are not held together without need.

    `shape` is (i, j), of the first part's orientation.
    """
    if pairing == "all" or left[0].cotangent.shape[0] == 1:
        return _few_columns(left, right, pairing, shape)
    sides = [left] if left is right else [left, right]
    # Without axes of length one, as products use them in the loop: see `_one_by_one`.
    lean = [[part.signal.reshape([n for n in part.signal.shape if n != 1]) for part in side] for side in sides]

    def of(cotangents: Any, pairing: Pairing) -> Any:
        own = [
            [replace(part, signal=a.reshape(part.signal.shape), cotangent=g) for part, a, g in zip(*each, strict=True)]
            for each in zip(sides, lean, cotangents, strict=True)
        ]
        return _few_columns(own[0], own[-1], pairing, shape)

    cotangents = [[part.cotangent for part in side] for side in sides]
    if pairing == "sum":
        return _over_outputs(lambda own: of(own, "sum"), cotangents)

    def in_turn(cotangents: Any) -> Any:
        count, of_output = _one_by_one(cotangents)
        return jnp.moveaxis(lax.map(lambda k: of(of_output(k), "sum"), count), 0, 2)

    return _by_platform(in_turn, lambda own: of(own, "each"), cotangents)


def _few_columns(left: Sequence[Part], right: Sequence[Part], pairing: Pairing, shape: tuple[int, int]) -> Any:
    """The same, with only some entries j at a time where all of them are too many."""
    same, order = left is right, _natural(left[0])

    def products(start: Any, width: int | None) -> Any:
        first, second = ([_cut(part, start, width) for part in side] for side in (left, right))
        own = shape if width is None else (shape[0], width)
        gradients = whole_gradients(first, own, order)
        return of_gradients(gradients, gradients if same else whole_gradients(second, own, order), pairing)

    inner = left[0].inner
    if any(part.lookup or part.inner != inner for part in (*left, *right)):
        return products(0, None)
    sides = left if same else (*left, *right)
    numbers = sum(part.cotangent.size // (part.steps * shape[1]) for part in sides) * shape[0]
    longest = numbers // sum(part.signal.shape[0] for part in sides)
    width = max(1, min(CACHED // numbers, LONGEST // longest))
    if width >= shape[1]:
        return products(0, None)
    width = ceil(shape[1] / ceil(shape[1] / width))
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
    """Σ_p D[o, n, p] D'[o', m, p]."""
    same = left is right
    left = left.reshape(*left.shape[:2], -1)
    right = left if same else right.reshape(*right.shape[:2], -1)
    if pairing == "all":
        return einsum("onp,qmp->onqm", left, right).transpose(1, 3, 0, 2)
    if pairing == "each":
        return einsum("onp,omp->onm", left, right).transpose(1, 2, 0)
    return _over_outputs(lambda own: einsum("onp,omp->nm", own[0], own[-1]), [left] if same else [left, right])


def transposed(result: Any, pairing: Pairing) -> Any:
    """Examples exchanged, and for "all" outputs too."""
    return result.transpose((1, 0, 3, 2) if pairing == "all" else (1, 0, *range(2, result.ndim)))


def completed(result: Any, pairing: Pairing, xp: Any = np) -> Any:
    """Exactly symmetric, from the blocks on and above the diagonal."""
    n = len(result)
    swapped = transposed(result, pairing)
    row, column = np.arange(n)[:, None], np.arange(n)[None, :]
    spread = (n, n, *(1,) * (result.ndim - 2))
    upper = xp.where((row < column).reshape(spread), result, swapped)
    return xp.where((row == column).reshape(spread), (result + swapped) / 2, upper)
