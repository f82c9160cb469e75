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


def as_kernel(kernel: Any) -> Kernel:
    """A `Kernel` as it is; a plain function k(x1, x2) as a `FunctionKernel`. Raises InputError on anything else."""
    if isinstance(kernel, Kernel):
        return kernel
    if not callable(kernel):
        raise InputError(f"kernel is {kernel!r}; give a function k(x1, x2) that returns an [n, m] matrix, or a kernel")
    return FunctionKernel(kernel)


class FunctionKernel(Kernel):
    """The kernel k(x1, x2) -> `[n, m]`, as both K and Θ: a plain kernel has no network behind it to tell them apart.

    A matrix-valued kernel returns `[n, m, o, o]`.

    With K = Θ the trained ensemble of `kernel_flow` starts at f_0 ~ GP(0, k) and trains with k.

    scikit-learn's pairwise kernels and Gaussian-process kernels are such functions. k is always called with two
    arguments, so a `WhiteKernel` inside it contributes nothing: give its variance as the ridge. JAX functions see
    NumPy inputs at their own precision, float64 included.

    Raises InputError when k is not callable or returns another shape than `[n, m]` or `[n, m, o, o]`.
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
            values = _symmetric(values)
        if progress is not None:
            progress(1, 1)
        return of_kind(kind, values)

    def diagonal(self, kind: Kind, x: Inputs) -> Float[Array, "*kinds n"]:
        starts = range(0, len(x), _DIAGONAL_BLOCK)
        blocks = [x[start : start + _DIAGONAL_BLOCK] for start in starts]
        module: Any = jnp if isinstance(x, jax.Array) else np
        diagonals = [module.moveaxis(self._call(block, block).diagonal(), -1, 0) for block in blocks]
        return of_kind(kind, module.concatenate(diagonals))

    def _call(self, x1: Inputs, x2: Inputs) -> Array:
        if isinstance(x1, jax.Array) or isinstance(x2, jax.Array):
            values = jnp.asarray(self.k(x1, x2))
        else:
            with jax.enable_x64(True):
                values = np.asarray(self.k(x1, x2))
            if x1.dtype.kind == "f":
                values = values.astype(x1.dtype, copy=False)
        outputs = values.shape[2:]
        if values.shape[:2] != (len(x1), len(x2)) or not (
            outputs == () or (len(outputs) == 2 and len(set(outputs)) == 1)
        ):
            raise InputError(f"{self!r} returned shape {values.shape}; [{len(x1)}, {len(x2)}] is needed")
        return values


def _symmetric(values: Array) -> Array:
    """The lower triangle mirrored: k(x, x') = k(x', x)ᵀ."""
    module = jnp if isinstance(values, jax.Array) else np
    if values.ndim == 2:
        return module.tril(values) + module.tril(values, -1).T
    mirrored = module.transpose(values, (1, 0, 3, 2))
    row, column = (index[:, :, None, None] for index in np.indices(values.shape[:2]))
    return module.where(row > column, values, module.where(row < column, mirrored, (values + mirrored) / 2))


def of_kind(kind: Kind, values: Array) -> Array:
    """The values as they are, or stacked with themselves where both K and Θ are asked for."""
    if kind != "both":
        return values
    return jnp.stack([values, values]) if isinstance(values, jax.Array) else np.stack([values, values])
