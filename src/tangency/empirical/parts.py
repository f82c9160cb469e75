"""The gradients of a set of examples in one parameter, as what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax.numpy as jnp

from .einsum import einsum
from .sites import Site, Window


@dataclass(frozen=True)
class Part:
    """The gradients at sites of one parameter with the same orientation, side by side along s.

    `signal` has the axes `signal_axes`, "nbsi" or "nbis", or holds the row numbers "nbs" of a lookup; `cotangent` has
    "onbsj" or "onbjs". With a `window` the signal is an image, [n, b, c, e, *space], and `opened` has its patches.
    """

    signal: Any
    cotangent: Any
    signal_axes: str
    cotangent_axes: str
    inner: Any
    """Which entries of the parameter i runs along: equal where two parts are oriented alike."""
    window: Window | None = None

    @property
    def opened(self) -> Part:
        if self.window is None:
            return self
        patches = self.window.patches(self.signal)
        n, b, c, e, *rest = patches.shape
        taps = len(self.window.shape)
        by_channel = jnp.moveaxis(patches, 3, 3 + taps).reshape(n, b, c * prod(rest[:taps]), e * prod(rest[taps:]))
        return replace(self, signal=by_channel, window=None)

    @property
    def conjugated(self) -> Part:
        return replace(self, signal=jnp.conj(self.signal), cotangent=jnp.conj(self.cotangent))

    @property
    def taps(self) -> int:
        """How many entries i there are for each that can be cut out."""
        return 1 if self.window is None else prod(self.window.shape)

    @property
    def lookup(self) -> bool:
        return self.signal_axes == "nbs"

    @property
    def steps(self) -> int:
        if self.window is not None:
            return self.signal.shape[3] * prod(self.window.positions)
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
        groups.setdefault((site.inner, site.signal_order, site.cotangent_order, site.takes_real_part), []).append(k)
    found = []
    for (inner, signal, cotangent, real), group in groups.items():
        axes, other = f"n{signal}", f"on{cotangent}"
        a = [signals[k] for k in group]
        g = [cotangents[k] for k in group]
        window = sites[group[0]].window if sites[group[0]].keeps_image else None
        signal, cotangent = a[0] if window else _joined(a, axes.index("s")), _joined(g, other.index("s"))
        if real:
            signal, cotangent = _real_part(signal, cotangent, axes, other)
        if sites[group[0]].is_small and cotangent.shape[other.index("s")] > 1:
            # Not over pairs of positions even where that is asked for: jaxlib 0.10.1 crashes on sums of products of an
            # array with itself, which are left in float32 where the signal is 1.
            found.append(_summed(signal, cotangent, axes, other, inner))
        else:
            found.append(Part(signal, cotangent, axes, other, inner, window))
    return found


def _real_part(signal: Any, cotangent: Any, axes: str, other: str) -> tuple[Any, Any]:
    """Real arrays with the real part of a · g as the product; rows of a lookup are met by the real part alone."""
    if axes == "nbs":
        return signal, cotangent.real
    joined = [signal.real, -signal.imag], [cotangent.real, cotangent.imag]
    return _joined(joined[0], axes.index("s")), _joined(joined[1], other.index("s"))


def _summed(signal: Any, cotangent: Any, axes: str, other: str, inner: Any) -> Part:
    """The gradient itself as the only position's cotangent, with the signal 1."""
    place = other.index("s")
    gradient = einsum(f"{axes},{other}->{other.replace('s', '')}", signal, cotangent)
    one = jnp.ones([n if axis in "nb" else 1 for axis, n in zip(axes, signal.shape, strict=True)], signal.dtype)
    return Part(one, jnp.expand_dims(gradient, place), axes, other, inner)


def _joined(arrays: Sequence[Any], axis: int) -> Any:
    """Side by side along an axis; not at once, because of a fault of jaxlib (see `_jax`)."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.moveaxis(jnp.concatenate([jnp.moveaxis(array, axis, 0) for array in arrays]), 0, axis)
