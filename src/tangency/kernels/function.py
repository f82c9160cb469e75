"""A kernel given as a plain function of two sets of examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..types import Array, Inputs, Kind, Progress
from .base import Kernel

_DIAGONAL_BLOCK = 64


class FunctionKernel(Kernel):
    """The kernel k(x1, x2) -> `[n, m]`, as both K and Θ: a plain kernel has no network behind it to tell them apart.

    With K = Θ the trained ensemble of `kernel_flow` starts at f_0 ~ GP(0, k) and trains with k.

    scikit-learn's pairwise kernels and Gaussian-process kernels are such functions. k is always called with two
    arguments, so a `WhiteKernel` inside it contributes nothing: give its variance as the ridge. JAX functions see
    NumPy inputs at their own precision, float64 included.

    Raises InputError when k is not callable or returns another shape than `[n, m]`.
    """

    def __init__(self, k: Callable[[Any, Any], Any]):
        if not callable(k):
            raise InputError(f"k is {k!r}; give a function k(x1, x2) that returns an [n, m] matrix")
        self.k = k

    def __repr__(self) -> str:
        return f"FunctionKernel({getattr(self.k, '__name__', None) or repr(self.k)})"

    def evaluate(
        self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None
    ) -> Float[Array, "*kinds n m"]:
        values = self._call(x1, x1 if x2 is None else x2)
        if x2 is None:
            module = jnp if isinstance(values, jax.Array) else np
            values = module.tril(values) + module.tril(values, -1).T
        if progress is not None:
            progress(1, 1)
        return of_kind(kind, values)

    def diagonal(self, kind: Kind, x: Inputs) -> Float[Array, "*kinds n"]:
        starts = range(0, len(x), _DIAGONAL_BLOCK)
        blocks = [x[start : start + _DIAGONAL_BLOCK] for start in starts]
        diagonals = [self._call(block, block).diagonal() for block in blocks]
        module = jnp if isinstance(x, jax.Array) else np
        return of_kind(kind, module.concatenate(diagonals))

    def _call(self, x1: Inputs, x2: Inputs) -> Array:
        if isinstance(x1, jax.Array) or isinstance(x2, jax.Array):
            values = jnp.asarray(self.k(x1, x2))
        else:
            with jax.enable_x64(True):
                values = np.asarray(self.k(x1, x2))
            if x1.dtype.kind == "f":
                values = values.astype(x1.dtype, copy=False)
        if values.shape != (len(x1), len(x2)):
            raise InputError(f"{self!r} returned shape {values.shape}; [{len(x1)}, {len(x2)}] is needed")
        return values


def of_kind(kind: Kind, values: Array) -> Array:
    """The values as they are, or stacked with themselves where both K and Θ are asked for."""
    if kind != "both":
        return values
    return jnp.stack([values, values]) if isinstance(values, jax.Array) else np.stack([values, values])
