"""One Cholesky factorisation, for one ridge."""

from typing import Self

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs

from ..errors import SingularMatrixError
from .arguments import ridge_value, right_hand_side, symmetric_matrix
from .eigen import Eigen
from .solution import RESIDUAL_TOLERANCE, Solution, relative_residual

_POTRF, _POTRS, _POCON = get_lapack_funcs(("potrf", "potrs", "pocon"), dtype=np.float64)
_EPS = float(np.finfo(np.float64).eps)


class Cholesky:
    """A + λI = L Lᵀ for a symmetric positive semi-definite A, `[n, n]`, and one ridge λ.

    A tenth of the cost of `Eigen`, for one ridge and without the pseudo-inverse. `matrix` is A itself, kept for
    residuals: do not change it.

    Raises InputError and NonFiniteError as `Eigen` does, and SingularMatrixError when A + λI is not positive definite
    or its condition number (1-norm) is above 1 / eps.
    """

    def __init__(self, matrix: Float[np.ndarray, "n n"], ridge: float = 0.0):
        self.matrix, self.ridge = symmetric_matrix(matrix), ridge_value(ridge)
        factor = _factor(self.matrix, self.ridge)
        if factor is None:
            raise self._singular(np.zeros(len(self.matrix)))
        self._lower = factor

    @classmethod
    def attempt_factor(cls, matrix: Float[np.ndarray, "n n"], ridge: float = 0.0) -> Self | None:
        """The factorisation, or None where the constructor would raise SingularMatrixError."""
        self = cls.__new__(cls)
        self.matrix, self.ridge = symmetric_matrix(matrix), ridge_value(ridge)
        factor = _factor(self.matrix, self.ridge)
        if factor is None:
            return None
        self._lower = factor
        return self

    def attempt(self, b: Float[np.ndarray, "n *o"]) -> Solution:
        """α with (A + λI) α = b, judged rather than refused."""
        b = right_hand_side(b, len(self.matrix))
        columns = b.reshape(len(b), -1)
        value, _ = _POTRS(self._lower, columns, lower=1)
        residual = relative_residual(self.matrix, self.ridge, value, columns)
        return Solution(value.reshape(b.shape), residual, residual <= RESIDUAL_TOLERANCE)

    def solve(self, b: Float[np.ndarray, "n *o"]) -> Float[np.ndarray, "n *o"]:
        """α with (A + λI) α = b. Raises SingularMatrixError if the relative residual is above 1e-6."""
        solution = self.attempt(b)
        if not solution.reliable:
            raise self._singular(b)
        return solution.value

    def log_determinant(self) -> float:
        """log det(A + λI)."""
        return 2.0 * float(np.log(np.diagonal(self._lower)).sum())

    def _singular(self, b: Float[np.ndarray, "n *o"]) -> SingularMatrixError:
        smallest = Eigen(self.matrix).smallest_ridge(b)
        # The 1-norm condition number can exceed the one of the eigenvalues, by which the ridge was chosen.
        while (factor := Cholesky.attempt_factor(self.matrix, smallest)) is None or not factor.attempt(b).reliable:
            smallest = 2 * smallest or _EPS
        n = len(self.matrix)
        return SingularMatrixError(
            f"the {n} × {n} system is singular to float64 at ridge {self.ridge:g}: "
            f"use a ridge of at least {smallest:g}, or remove duplicated rows",
            smallest,
        )


def _factor(matrix: np.ndarray, ridge: float) -> np.ndarray | None:
    """L in the lower triangle, or None where A + λI is singular to float64."""
    shifted = matrix.T.copy(order="F")
    np.fill_diagonal(shifted, np.diagonal(matrix) + ridge)
    norm = max(float(np.abs(shifted[:, column]).sum()) for column in range(len(shifted)))
    factor, info = _POTRF(shifted, lower=1, clean=0, overwrite_a=1)
    if info != 0:
        return None
    reciprocal_condition, _ = _POCON(factor, norm, uplo="L")
    return factor if reciprocal_condition >= _EPS else None
