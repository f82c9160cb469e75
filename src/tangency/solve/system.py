"""One matrix, many ridges and right-hand sides: the cheapest factorisation that answers, each computed once."""

from functools import cached_property

import numpy as np
from jaxtyping import Float

from .arguments import symmetric_matrix
from .cholesky import Cholesky
from .eigen import Eigen


class RidgeSystem:
    """(A + λI) α = b for one symmetric positive semi-definite A, `[n, n]`.

    A solve alone is answered by a Cholesky factorisation. Once `eigen` has been asked for, it answers everything; it
    also decides what Cholesky cannot (see `Eigen.solve`). Raises what `Eigen` raises.
    """

    def __init__(self, matrix: Float[np.ndarray, "n n"]):
        self.matrix = symmetric_matrix(matrix)
        self._cholesky: tuple[float, Cholesky | None] | None = None

    @cached_property
    def eigen(self) -> Eigen:
        """The eigendecomposition of A."""
        self._cholesky = None
        return Eigen(self.matrix)

    def solve(self, b: Float[np.ndarray, "n *o"], ridge: float = 0.0) -> Float[np.ndarray, "n *o"]:
        """α with (A + λI) α = b. Raises SingularMatrixError as `Eigen.solve` does."""
        factor = self._factor(ridge)
        if factor is not None and (solution := factor.attempt(b)).reliable:
            return solution.value
        return self.eigen.solve(b, ridge)

    def log_determinant(self, ridge: float = 0.0) -> float:
        """log det(A + λI). Raises SingularMatrixError if it is not resolved."""
        factor = self._factor(ridge)
        return self.eigen.log_determinant(ridge) if factor is None else factor.log_determinant()

    def _factor(self, ridge: float) -> Cholesky | None:
        """The Cholesky factorisation for this ridge; None when it fails or the eigendecomposition is there."""
        if "eigen" in self.__dict__:
            return None
        if self._cholesky is None or self._cholesky[0] != ridge:
            self._cholesky = (ridge, Cholesky.attempt_factor(self.matrix, ridge))
        return self._cholesky[1]
