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

    One axis gives windowed sums; two give what a convolution with independent weights does to a second moment.
    """
    zero = jnp.zeros((), array.dtype)
    around = (window.low, window.high, window.base_dilation - 1)
    if around != (0, 0, 0):
        array = jax.lax.pad(array, zero, [around if axis in axes else (0, 0, 0) for axis in range(array.ndim)])
    total = None
    for tap in range(window.size):
        start, stop = [0] * array.ndim, list(array.shape)
        strides = [1] * array.ndim
        for axis in axes:
            reach = (window.size - 1) * window.dilation
            start[axis] = tap * window.dilation
            stop[axis] = array.shape[axis] - reach + tap * window.dilation
            strides[axis] = window.stride
        part = jax.lax.slice(array, start, stop, strides)
        total = part if total is None else total + part
    assert total is not None
    return total
