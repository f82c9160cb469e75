"""Descent and flow with one kernel matrix on the squared loss: all steps and times from one eigendecomposition."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ..solve import Eigen


class MatrixTraining:
    """f_t = f_0 + K(·, X) A_t (y − f_0(X)), with A_t = (I − (I − ηK/N)^t) K⁻¹ in descent, (I − e^{−Kt/N}) K⁻¹ in flow.

    `matrix` `[N, N]` is K(X, X) and `cross` `[M, N]` K at M other examples, for outputs that train alike; a
    matrix-valued kernel is `[N, N, o, o]` and `[M, N, o, o]`.
    """

    def __init__(self, matrix: np.ndarray, cross: np.ndarray):
        self.coupled = matrix.ndim == 4
        self.examples = len(matrix)
        self._all = np.concatenate([_flat(matrix), _flat(cross)])
        self._eigen = Eigen(self._all[: len(_flat(matrix))])

    @property
    def bound(self) -> float:
        """2N/λ_max: the learning rate above which descent diverges."""
        largest = float(self._eigen.eigenvalues[-1])
        return 2 * self.examples / largest if largest > 0 else np.inf

    def descent(
        self, start: Float[np.ndarray, "NM o"], y: Float[np.ndarray, "N o"], rate: float, steps: Float[np.ndarray, " T"]
    ) -> Float[np.ndarray, "T NM o"]:
        """f after each number of steps of rate η, from the values `start` at all examples."""
        return self._trained(start, y, lambda eigenvalues: _descended(eigenvalues * rate / self.examples, steps), rate)

    def flow(
        self, start: Float[np.ndarray, "NM o"], y: Float[np.ndarray, "N o"], rate: float, steps: Float[np.ndarray, " T"]
    ) -> Float[np.ndarray, "T NM o"]:
        """f at the times η · steps of gradient flow."""
        return self._trained(start, y, lambda eigenvalues: _flowed(eigenvalues * rate / self.examples, steps), rate)

    def _trained(self, start: np.ndarray, y: np.ndarray, response: object, rate: float) -> np.ndarray:
        residual = y - start[: len(y)]
        target = residual.reshape(-1) if self.coupled else residual
        scale = rate / self.examples
        with np.errstate(over="ignore", invalid="ignore"):
            coefficients = scale * self._eigen.filter(response, target)  # pyright: ignore[reportArgumentType]
            learnt = coefficients @ self._all.T if self.coupled else self._all @ coefficients
        return start + learnt.reshape(len(learnt), *start.shape)


def _descended(z: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(1 − (1 − z)^k) / z, `[T, n]`: k at z = 0."""
    k, z = steps[:, None], z[None, :]
    small = z < 0.5
    with np.errstate(over="ignore", invalid="ignore"):
        shrunk = np.where(small, -np.expm1(k * np.log1p(-np.where(small, z, 0.0))), 1 - (1 - z) ** k)
    return np.where(z > 0, np.divide(shrunk, z, out=np.zeros_like(shrunk), where=z > 0), k)


def _flowed(z: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(1 − e^{−z k}) / z, `[T, n]`: k at z = 0."""
    k, z = steps[:, None], z[None, :]
    decayed = -np.expm1(-z * k)
    return np.where(z > 0, np.divide(decayed, z, out=np.zeros_like(decayed), where=z > 0), k)


def _flat(block: np.ndarray) -> np.ndarray:
    """`[n, m, o, o]` as `[n·o, m·o]`; `[n, m]` as it is."""
    if block.ndim == 2:
        return block
    n, m, o, _ = block.shape
    return np.ascontiguousarray(block.transpose(0, 2, 1, 3)).reshape(n * o, m * o)
