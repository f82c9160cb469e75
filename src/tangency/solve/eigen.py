"""One eigendecomposition that serves every ridge and every function of a matrix."""

from collections.abc import Callable

import numpy as np
import scipy.linalg
from jaxtyping import Float

from ..errors import AccuracyError, InputError, SingularMatrixError
from .arguments import ROWS_AT_ONCE, ridge_value, right_hand_side, symmetric_matrix
from .solution import RANGE_TOLERANCE, RESIDUAL_TOLERANCE, Solution, largest_ratio, relative_residual, round_up

LARGEST_DIVIDE_AND_CONQUER = 32_700
"""LAPACK's syevd wants 1 + 6n + 2n² words of workspace, counted in an int32 that overflows at n = 32,766."""

NEGATIVE_TOLERANCE = 1e-6
"""Eigenvalues down to this share of the largest one below zero are taken for rounding, float32 kernels included."""

_EPS = float(np.finfo(np.float64).eps)


class Eigen:
    """A = V diag(e) Vᵀ for a symmetric positive semi-definite A, `[n, n]`.

    `eigenvalues` ascend, with rounding below zero set to zero; `clipped` is the largest magnitude set so (0.0 if none).
    `eigenvectors` are the columns of V. `matrix` is A itself, kept for residuals: do not change it.

    A direction is *unresolved* at ridge λ where e + λ is not above the rounding of the decomposition,
    max(n · eps · (e_max + λ), clipped).

    Raises InputError when the matrix is not square, not symmetric or not positive semi-definite, NonFiniteError when
    an entry is not finite.
    """

    eigenvalues: Float[np.ndarray, " n"]
    eigenvectors: Float[np.ndarray, "n n"]
    clipped: float

    def __init__(self, matrix: Float[np.ndarray, "n n"]):
        self.matrix = symmetric_matrix(matrix)
        try:
            values, vectors = scipy.linalg.eigh(self.matrix.T, driver=eigh_driver(len(self.matrix)), check_finite=False)
        except scipy.linalg.LinAlgError as error:
            raise AccuracyError(f"the eigendecomposition did not converge ({error}); rescale the matrix") from None
        if values[0] < -NEGATIVE_TOLERANCE * np.abs(values).max():
            raise InputError(
                f"matrix is not positive semi-definite: its eigenvalues reach from {values[0]:.3g} to "
                f"{values[-1]:.3g}; a kernel must be positive semi-definite"
            )
        self.clipped = float(max(0.0, -values[0]))
        self.eigenvalues = np.maximum(values, 0.0)
        self.eigenvectors = vectors

    def condition(self, ridge: float = 0.0) -> float:
        """(e_max + λ) / (e_min + λ); infinity where the denominator is 0."""
        ridge = ridge_value(ridge)
        smallest = float(self.eigenvalues[0]) + ridge
        return (float(self.eigenvalues[-1]) + ridge) / smallest if smallest > 0 else np.inf

    def rounding(self, ridge: float = 0.0) -> float:
        """The size at and below which e + λ is not resolved."""
        return max(len(self.eigenvalues) * _EPS * (float(self.eigenvalues[-1]) + ridge_value(ridge)), self.clipped)

    def filter(
        self, function: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, "*batch n"]], b: Float[np.ndarray, "n *o"]
    ) -> Float[np.ndarray, "..."]:
        """V diag(function(e)) Vᵀ b. A function that returns leading axes (several times, say) gives them back."""
        b = right_hand_side(b, len(self.eigenvalues))
        weights = function(self.eigenvalues)
        if weights.shape[-1:] != self.eigenvalues.shape:
            raise InputError(
                f"the filter returned shape {weights.shape}; its last axis must be {len(self.eigenvalues)} long"
            )
        coordinates = self.eigenvectors.T @ b.reshape(len(b), -1)
        filtered = self.eigenvectors @ (weights[..., None] * coordinates)
        return filtered.reshape(weights.shape + b.shape[1:])

    def attempt(self, b: Float[np.ndarray, "n *o"], ridge: float = 0.0) -> Solution:
        """α of least norm with (A + λI) α = b, judged rather than refused: see `solve`."""
        b, ridge = right_hand_side(b, len(self.eigenvalues)), ridge_value(ridge)
        columns = b.reshape(len(b), -1)
        shifted = self.eigenvalues + ridge
        resolved = shifted > self.rounding(ridge)
        inverse = np.divide(1.0, shifted, out=np.zeros_like(shifted), where=resolved)
        coordinates = self.eigenvectors.T @ columns
        value = self.eigenvectors @ (inverse[:, None] * coordinates)
        outside = largest_ratio(coordinates[~resolved], columns)
        residual = relative_residual(self.matrix, ridge, value, columns)
        reliable = outside <= RANGE_TOLERANCE and residual <= RESIDUAL_TOLERANCE
        return Solution(value.reshape(b.shape), residual, reliable)

    def solve(self, b: Float[np.ndarray, "n *o"], ridge: float = 0.0) -> Float[np.ndarray, "n *o"]:
        """α with (A + λI) α = b.

        Where A + λI is rank-deficient to rounding, the least-norm solution is returned if b lies in its range to 1e-8
        (duplicated rows with equal targets do). Raises SingularMatrixError if it does not, or if the relative
        residual is above 1e-6; its `smallest_ridge` is the smallest that works, up to two digits.
        """
        solution = self.attempt(b, ridge)
        if not solution.reliable:
            raise self._singular(b, ridge, f"relative residual {solution.residual:.1e}")
        return solution.value

    def invertible(self, ridge: float = 0.0) -> bool:
        """Whether every direction is resolved: a condition number below 1 / (n · eps)."""
        return float(self.eigenvalues[0]) + ridge_value(ridge) > self.rounding(ridge)

    def inverse_diagonal(self, ridge: float = 0.0) -> Float[np.ndarray, " n"]:
        """((A + λI)⁻¹)_ii. Raises SingularMatrixError if a direction is unresolved."""
        if not self.invertible(ridge):
            zeros = np.zeros(len(self.eigenvalues))
            raise self._singular(zeros, ridge, "its inverse is not resolved in float64")
        inverse = 1.0 / (self.eigenvalues + ridge_value(ridge))
        diagonal = np.empty_like(inverse)
        for start in range(0, len(inverse), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            diagonal[rows] = self.eigenvectors[rows] ** 2 @ inverse
        return diagonal

    def leave_one_out(self, y: Float[np.ndarray, "n *o"], ridge: float = 0.0) -> Float[np.ndarray, "n *o"]:
        """The residuals y_i − f_{−i}(x_i) of kernel ridge regression refitted without example i: α_i / ((A + λI)⁻¹)_ii.

        Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eq. 5.12. Raises SingularMatrixError
        as `solve` does, and also for duplicated rows at ridge 0.
        """
        residuals = self.attempt_leave_one_out(y, ridge)
        if residuals is None:
            raise self._singular(y, ridge, "leave-one-out needs an invertible matrix")
        return residuals

    def attempt_leave_one_out(
        self, y: Float[np.ndarray, "n *o"], ridge: float = 0.0
    ) -> Float[np.ndarray, "n *o"] | None:
        """`leave_one_out`, or None where that would raise SingularMatrixError."""
        if not self.invertible(ridge):
            return None
        solution = self.attempt(y, ridge)
        if not solution.reliable:
            return None
        return solution.value / self.inverse_diagonal(ridge).reshape((-1,) + (1,) * (solution.value.ndim - 1))

    def log_determinant(self, ridge: float = 0.0) -> float:
        """log det(A + λI). Raises SingularMatrixError if a direction is unresolved."""
        if not self.invertible(ridge):
            zeros = np.zeros(len(self.eigenvalues))
            raise self._singular(zeros, ridge, "its determinant is not resolved in float64")
        return float(np.log(self.eigenvalues + ridge_value(ridge)).sum())

    def smallest_ridge(self, b: Float[np.ndarray, "n *o"]) -> float:
        """The smallest ridge, to two digits rounded up, at which A + λI is invertible and `solve(b, λ)` is reliable."""

        def works(ridge: float) -> bool:
            return self.invertible(ridge) and self.attempt(b, ridge).reliable

        if works(0.0):
            return 0.0
        smallest, largest = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        unit = len(self.eigenvalues) * _EPS
        above = max((unit * largest - smallest) / (1 - unit), self.clipped - smallest, _EPS * largest)
        above = round_up(above) if above > 0 else _EPS
        below = above
        while not works(above):
            below, above = above, round_up(10 * above)
        while above > 1.1 * below:
            middle = round_up(float(np.sqrt(below * above)))
            if middle >= above:
                break
            below, above = (below, middle) if works(middle) else (middle, above)
        return above

    def _singular(self, b: Float[np.ndarray, "n *o"], ridge: float, why: str) -> SingularMatrixError:
        smallest = self.smallest_ridge(b)
        n = len(self.eigenvalues)
        return SingularMatrixError(
            f"the {n} × {n} system is singular to float64 at ridge {ridge:g} (condition number "
            f"{self.condition(ridge):.1e}; {why}): use a ridge of at least {smallest:g}, or remove duplicated rows",
            smallest,
        )


def eigh_driver(n: int) -> str:
    """LAPACK's divide and conquer where its workspace can be counted, else relatively robust representations."""
    return "evd" if n < LARGEST_DIVIDE_AND_CONQUER else "evr"
