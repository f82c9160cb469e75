"""The Bayesian posterior of the infinite network: Gaussian-process regression with the NNGP kernel."""

from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from ..gram import check_examples, check_new_examples, check_targets, gram, gram_rows, require_factorisation
from ..kernels import Kernel, as_kernel
from ..solve import Eigen, RidgeSystem, ridge_value
from ..types import Inputs, Progress


def gaussian_process(
    kernel: Any,
    x: Inputs,
    y: Float[np.ndarray, "n *o"],
    *,
    ridge: float = 0.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> "GaussianProcess":
    """Condition f ~ GP(0, K) on y_i = f(x_i) + noise of variance σ² = `ridge`; outputs are independent.

    `kernel` is a `Kernel`, or a function k(x1, x2) -> `[n, m]`. x `[N, ...]`, y `[N]` or `[N, o]`. `memory` is the
    number of bytes that may be used (default: the physical memory available); `progress` follows the kernel matrix.

    Raises InputError on a bad argument, NonFiniteError that names the row, MemoryLimitError when the exact solution
    does not fit.
    """
    kernel, examples = as_kernel(kernel), check_examples(x, "x")
    targets = check_targets(y, len(examples))
    ridge = ridge_value(ridge)
    require_factorisation(len(examples), 1, memory)
    matrix = gram(kernel, examples, kind="nngp", memory=memory, progress=progress)
    return GaussianProcess(kernel, examples, targets, RidgeSystem(matrix), ridge, memory)


class GaussianProcess:
    """The posterior of f, noise not included (Rasmussen and Williams 2006, eqs. 2.23–2.24, 2.30).

    mean(x) = K(x, X) (K(X, X) + σ²I)⁻¹ y and cov(x, x') = K(x, x') − K(x, X) (K(X, X) + σ²I)⁻¹ K(X, x'), per output
    coordinate. Built by `gaussian_process`. Methods raise SingularMatrixError when the system has no reliable
    solution at this σ², InputError on a bad x.
    """

    def __init__(
        self, kernel: Kernel, x: np.ndarray, y: np.ndarray, system: RidgeSystem, ridge: float, memory: int | None
    ):
        self.kernel, self.x, self.y, self.ridge = kernel, x, y, ridge
        self._system, self._memory = system, memory

    @property
    def eigen(self) -> Eigen:
        """The eigendecomposition of K(X, X)."""
        return self._system.eigen

    @property
    def eigenvalues(self) -> Float[np.ndarray, " N"]:
        """The eigenvalues of K(X, X), ascending."""
        return self.eigen.eigenvalues

    @property
    def clipped(self) -> float:
        """The largest magnitude of an eigenvalue below zero, from rounding, that was set to zero."""
        return self.eigen.clipped

    def with_ridge(self, ridge: float) -> "GaussianProcess":
        """The posterior with another noise variance; the kernel matrix and its factorisation are shared."""
        return GaussianProcess(self.kernel, self.x, self.y, self._system, ridge_value(ridge), self._memory)

    def coefficients(self) -> Float[np.ndarray, "N *o"]:
        """α = (K(X, X) + σ²I)⁻¹ y, with which mean(x) = K(x, X) α."""
        return self._coefficients

    @cached_property
    def _coefficients(self) -> np.ndarray:
        return self._system.solve(self.y, self.ridge)

    def mean(self, x: Inputs) -> Float[np.ndarray, "n *o"]:
        """The posterior mean, `[n]` or `[n, o]` as y is."""
        x = check_new_examples(x, self.x)
        mean = np.empty((len(x), *self.y.shape[1:]))
        for rows, cross in gram_rows(self.kernel, x, self.x, "nngp"):
            mean[rows] = cross @ self._coefficients
        return mean

    def covariance(self, x: Inputs) -> Float[np.ndarray, "n n"]:
        """The posterior covariance of f, symmetric."""
        x = check_new_examples(x, self.x)
        prior = gram(self.kernel, x, kind="nngp", memory=self._memory)
        cross = gram(self.kernel, x, self.x, kind="nngp", memory=self._memory)
        half = prior / 2 - cross @ self._system.solve(cross.T, self.ridge) / 2
        return half + half.T

    def variance(self, x: Inputs) -> Float[np.ndarray, " n"]:
        """The diagonal of `covariance(x)` without the `[n, n]` matrix; rounding below zero is set to zero."""
        x = check_new_examples(x, self.x)
        variance = np.array(self.kernel.diagonal("nngp", x), dtype=np.float64)
        for rows, cross in gram_rows(self.kernel, x, self.x, "nngp"):
            variance[rows] -= np.einsum("ni,in->n", cross, self._system.solve(cross.T, self.ridge))
        return np.maximum(variance, 0.0)

    def log_marginal_likelihood(self) -> float:
        """log p(y), summed over outputs: −½ yᵀα − ½ log det(K + σ²I) − N/2 log 2π each."""
        n, outputs = len(self.y), self.y.size // len(self.y)
        fit = float(np.vdot(self.y, self._coefficients))
        determinant = self._system.log_determinant(self.ridge)
        return -0.5 * (fit + outputs * (determinant + n * float(np.log(2 * np.pi))))

    def leave_one_out(self, ridge: float | None = None) -> Float[np.ndarray, "N *o"]:
        """For each training example, the posterior mean without it; `ridge` defaults to this process's."""
        return self.y - self.eigen.leave_one_out(self.y, self.ridge if ridge is None else ridge)
