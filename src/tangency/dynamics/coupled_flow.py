"""The closed form for a kernel whose outputs are coupled by one matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from ..gram import check_new_examples
from ..solve import Eigen, ridge_value
from ..types import Inputs
from .flow import KernelFlow, Matrices, Training
from .problem import Problem, problem
from .times import Times, checked_times


class CoupledFlow(KernelFlow):
    """A `KernelFlow` of K ⊗ B and Θ ⊗ B with the coupling B = V diag(β) Vᵀ.

    In the basis V outputs are independent: number j trains with β_j Θ, which is Θ with the ridge λ/β_j at the time
    β_j t. One eigendecomposition of Θ serves them all. Directions with β_j = 0 never move. `covariance` is
    `[n, n, o, o]`, `variance` `[n, o]`.
    """

    def __init__(self, task: Problem, matrices: Matrices, ridge: float):
        super().__init__(Training(task, matrices), ridge)
        assert task.operator.coupling is not None
        coupling = Eigen(task.operator.coupling)
        self._rates = np.where(coupling.eigenvalues > coupling.rounding(), coupling.eigenvalues, 0.0)
        self._basis = coupling.eigenvectors
        rotated = self._training.residual @ self._basis
        self._parts = [
            None if rate == 0 else KernelFlow(Training(_part(task, matrices, rotated[:, j]), matrices), ridge / rate)
            for j, rate in enumerate(self._rates)
        ]

    @property
    def eigenvalues(self) -> Float[np.ndarray, " No"]:
        """The eigenvalues of Θ(X, X) ⊗ B, ascending."""
        return np.sort(np.outer(self.eigen.eigenvalues, self._rates).ravel())

    def with_ridge(self, ridge: float) -> "CoupledFlow":
        return CoupledFlow(self._training.task, self._training.matrices, ridge_value(ridge))

    def train(self, t: Times = None) -> Float[np.ndarray, "..."]:
        return self._training.task.start.train + self._turned(t, lambda part, times: part.train(times))

    def covariance(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "..."]:
        x, times = check_new_examples(x, self.x), checked_times(t)
        total = np.zeros((*times.shape, len(x), len(x), len(self._rates), len(self._rates)))
        for rate, direction, part in zip(self._rates, self._basis.T, self._parts, strict=True):
            if part is not None:
                total += rate * part.covariance(x, rate * times)[..., None, None] * np.outer(direction, direction)
        return total

    def variance(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "..."]:
        x, times = check_new_examples(x, self.x), checked_times(t)
        total = np.zeros((*times.shape, len(x), len(self._rates)))
        for rate, direction, part in zip(self._rates, self._basis.T, self._parts, strict=True):
            if part is not None:
                total += rate * part.variance(x, rate * times)[..., None] * direction**2
        return total

    def leave_one_out(self, ridge: float | None = None) -> Float[np.ndarray, "N o"]:
        ridge = self.ridge if ridge is None else ridge_value(ridge)
        start = self._training.task.start.train
        rotated = np.zeros_like(start)
        for j, (rate, part) in enumerate(zip(self._rates, self._parts, strict=True)):
            if part is not None:
                rotated[:, j] = part.leave_one_out(ridge / rate)
        return start + rotated @ self._basis.T

    def _learnt(self, x: np.ndarray, times: np.ndarray) -> Float[np.ndarray, "*T n o"]:
        return self._turned(times, lambda part, times: part(x, times), len(x))

    def _columns(self, t: Times) -> Float[np.ndarray, "*T N o"]:
        rates = np.where(self._rates > 0, self._rates, 1.0)
        return self._turned(t, lambda part, times: part.coefficients(times), basis=self._basis / rates)

    def _turned(
        self,
        t: Times,
        of: Callable[[KernelFlow, np.ndarray], np.ndarray],
        n: int | None = None,
        basis: np.ndarray | None = None,
    ) -> Float[np.ndarray, "*T n o"]:
        """Each independent output's own, at its own time, turned back to the outputs as they are."""
        times = checked_times(t)
        rotated = np.zeros((*times.shape, len(self.x) if n is None else n, len(self._rates)))
        for j, (rate, part) in enumerate(zip(self._rates, self._parts, strict=True)):
            if part is not None:
                rotated[..., j] = of(part, rate * times)
        return rotated @ (self._basis if basis is None else basis).T


def _part(task: Problem, matrices: Matrices, y: Any) -> Problem:
    """One independent output."""
    return problem(matrices.kernel, task.loss, task.x, y, None)
