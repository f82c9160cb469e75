"""A kernel whose outputs are coupled by one matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..types import Array, Inputs, Kind, Progress
from .base import Kernel
from .function import as_kernel

_TOLERANCE = 1e-10


class CoupledKernel(Kernel):
    """The matrix-valued kernel k(x, x') B with a symmetric positive semi-definite `coupling` B, `[o, o]`.

    B is the covariance between outputs: their prior's, and how much training one moves another (a separable kernel;
    Álvarez, Rosasco and Lawrence 2012, arXiv:1106.6251, §4). `kernel` is a scalar one, `[n, m]`, or a function
    k(x1, x2). Evaluating gives `[n, m, o, o]`; training uses the two factors.

    Raises InputError when B is not square, symmetric and positive semi-definite.
    """

    def __init__(self, kernel: Any, coupling: Float[Array, "o o"]):
        self.kernel = as_kernel(kernel)
        self.kinds = self.kernel.kinds  # pyright: ignore[reportAttributeAccessIssue]
        self.coupling = _checked(coupling)

    def __repr__(self) -> str:
        return f"CoupledKernel({self.kernel!r}, {len(self.coupling)} outputs)"

    @property
    def outputs(self) -> int:
        return len(self.coupling)

    def evaluate(
        self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None
    ) -> Float[Array, "*kinds n m o o"]:
        return self._coupled(self.kernel.evaluate(kind, x1, x2, progress=progress))

    def diagonal(self, kind: Kind, x: Inputs) -> Float[Array, "*kinds n o o"]:
        return self._coupled(self.kernel.diagonal(kind, x))

    def _coupled(self, values: Array) -> Array:
        coupling = self.coupling.astype(values.dtype)
        module = jnp if isinstance(values, jax.Array) else np
        return module.multiply(values[..., None, None], coupling.reshape((1,) * values.ndim + coupling.shape))


def _checked(coupling: object) -> np.ndarray:
    try:
        matrix = np.asarray(coupling, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("coupling is not a matrix of numbers") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise InputError(f"coupling has shape {matrix.shape}; a square matrix [outputs, outputs] is needed")
    if not np.isfinite(matrix).all():
        raise InputError("coupling is not finite")
    size = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > _TOLERANCE * size:
        raise InputError("coupling is not symmetric; symmetrise it first")
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    if smallest < -_TOLERANCE * size:
        raise InputError(f"coupling has the eigenvalue {smallest:.3g}; it must be positive semi-definite")
    return (matrix + matrix.T) / 2
