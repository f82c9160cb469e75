"""Windows that slide along one axis of positions."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Window:
    """A window of `size` taps, `dilation` apart, moved by `stride` over an axis padded with `low` and `high` zeros.

    `base_dilation` − 1 zeros stand between neighbours of the axis itself (transposed convolution). Negative padding
    crops.
    """

    size: int
    stride: int = 1
    low: int = 0
    high: int = 0
    base_dilation: int = 1
    dilation: int = 1

    def padded_length(self, length: int) -> int:
        return (length - 1) * self.base_dilation + 1 + self.low + self.high

    def output_length(self, length: int) -> int:
        reach = (self.size - 1) * self.dilation + 1
        return max(0, (self.padded_length(length) - reach) // self.stride + 1)

    @property
    def is_trivial(self) -> bool:
        """Whether it reads each position once, in place."""
        return self == Window(1)


def slide(array: jax.Array, axes: tuple[int, ...], window: Window) -> jax.Array:
    """Sums over a window that slides along several axes at once, tap by tap the same: Σ_k a[… + k, … + k].

    One axis gives windowed sums; two give what a convolution with independent weights does to a second moment. XLA's
    own windowed sum compiles in a fraction of the time of taps that are written out. It slides along one axis; so two
    are read as one, along which a step on both is a step of one row and one entry.
    """
    if len(axes) == 1:
        return _windowed(array, axes[0], window)
    first, second = axes
    around = (window.low, window.high, window.base_dilation - 1)
    if around != (0, 0, 0):
        zero = jnp.zeros((), array.dtype)
        array = jax.lax.pad(array, zero, [around if axis in axes else (0, 0, 0) for axis in range(array.ndim)])
    array = jnp.moveaxis(array, axes, (-2, -1))
    rows, columns = array.shape[-2:]
    reach = (window.size - 1) * window.dilation
    flat = array.reshape((*array.shape[:-2], rows * columns))
    along = Window(window.size, 1, 0, reach, 1, window.dilation * (columns + 1))
    sums = _windowed(flat, flat.ndim - 1, along).reshape((*array.shape[:-2], rows - reach, columns))
    sums = sums[..., :: window.stride, : columns - reach : window.stride]
    return jnp.moveaxis(sums, (-2, -1), (first, second))


def _windowed(array: jax.Array, axis: int, window: Window) -> jax.Array:
    def along(value: int) -> list[int]:
        return [value if i == axis else 1 for i in range(array.ndim)]

    return jax.lax.reduce_window(
        array,
        jnp.zeros((), array.dtype),
        jax.lax.add,
        along(window.size),
        along(window.stride),
        [(window.low, window.high) if i == axis else (0, 0) for i in range(array.ndim)],
        along(window.base_dilation),
        along(window.dilation),
    )
