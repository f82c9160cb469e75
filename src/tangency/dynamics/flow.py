"""Gradient flow with the NTK on the squared loss: all of training, in closed form."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..gram import check_new_examples, gram_blocks, require_factorisation
from ..kernels import Kernel
from ..solve import Eigen, RidgeSystem, ridge_value
from ..types import Inputs
from .operator import flattened
from .problem import Problem
from .rkhs import RKHSFunction
from .times import Times, checked_times

_EPS = float(np.finfo(np.float64).eps)
_NOISE = 1e-11
"""Largest growth of rounding along unresolved directions that is let pass."""


class KernelFlow:
    """The mean and covariance, at any time, of the infinite ensemble of networks trained from random f_0 ~ GP(m, K).

    With A_t = (Θ + λI)⁻¹ (I − e^{−(Θ + λI) t/N}), X the training examples and m = `f0` (zero unless given),

        mean_t(x) = m(x) + Θ(x, X) A_t (y − m(X))
        cov_t(x, x') = K(x, x') − Θ(x, X) A_t K(X, x') − K(x, X) A_t Θ(X, x') + Θ(x, X) A_t K(X, X) A_t Θ(X, x')

    (Lee et al. 2019, arXiv:1902.06720, eqs. 14–16, in the time of the averaged loss and with a ridge). The mean is also
    the trajectory of a single function that starts at f_0 = m. Everything is per output coordinate, unless the kernel
    is matrix-valued. Built by `kernel_flow`.

    Directions whose eigenvalue is lost in rounding count as null once t is long enough to matter (t/N above the
    inverse of that rounding).
    """

    def __init__(self, training: "Training", ridge: float):
        self._training = training
        self.ridge = ridge

    @property
    def kernel(self) -> Kernel:
        return self._training.task.operator.given

    @property
    def x(self) -> Float[np.ndarray, "N *shape"]:
        """The training examples."""
        return self._training.task.x

    @property
    def y(self) -> Float[np.ndarray, "N *o"]:
        """The training targets."""
        return self._training.task.y

    @property
    def eigen(self) -> Eigen:
        """The eigendecomposition of Θ(X, X); of `[N o, N o]` for a matrix-valued kernel."""
        return self._training.matrices.system.eigen

    @property
    def eigenvalues(self) -> Float[np.ndarray, " N"]:
        """The eigenvalues of Θ(X, X), ascending. The error along number i decays as e^{−(eigenvalues[i] + λ) t/N}."""
        return self.eigen.eigenvalues

    @property
    def clipped(self) -> float:
        """The largest magnitude of an eigenvalue below zero, from rounding, that was set to zero."""
        return self.eigen.clipped

    @property
    def matrix_valued(self) -> bool:
        """Whether the kernel couples outputs, so that `eigen` or the covariance is not per output coordinate."""
        return self._training.matrices.outputs is not None or self._training.task.operator.coupling is not None

    def with_ridge(self, ridge: float) -> "KernelFlow":
        """The flow with another ridge; kernel matrices and factorisations are shared."""
        return KernelFlow(self._training, ridge_value(ridge))

    def coefficients(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """α_t = A_t (y − m(X)), with which mean_t(x) = m(x) + Θ(x, X) α_t.

        Raises SingularMatrixError if t is ∞ and the system with this ridge has no reliable solution, InputError if a
        time is negative or NaN.
        """
        return self._training.task.shown(self._columns(t))

    def function(self, t: float | None = None) -> RKHSFunction:
        """mean_t − m, what training has made, as a function of the RKHS of Θ."""
        if np.ndim(checked_times(t)) != 0:
            raise InputError("t is a vector; give one time")
        return RKHSFunction(self.kernel, self.x, self.coefficients(t))

    def __call__(self, x: Inputs, t: Times = None, *, f0: Any = None) -> Float[np.ndarray, "..."]:
        """mean_t(x), `[n]` or `[n, o]` as y is. `f0` are the values of m at x where it was given by values alone.

        Raises as `coefficients` does, and InputError on a bad x.
        """
        x, task = check_new_examples(x, self.x), self._training.task
        return task.shown(task.start.at(x, f0) + self._learnt(x, checked_times(t)))

    def train(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """mean_t at the training examples, `[N]` or `[N, o]`. Raises as `coefficients` does."""
        task, residual = self._training.task, self._training.residual

        def at(time: float) -> np.ndarray:
            if np.isinf(time):
                return self._training.matrices.system.matrix @ self._coefficients
            steps, unresolved = time / len(self.x), self._unresolved(time)

            def learnt(values: np.ndarray) -> np.ndarray:
                kept = np.arange(len(values)) >= unresolved
                return np.where(kept, values, 0.0) * self._response(values + self.ridge, steps)

            return self.eigen.filter(learnt, residual)

        times = checked_times(t)
        learnt = _over_times(at, times).reshape(*times.shape, *task.start.train.shape)
        return task.shown(task.start.train + learnt)

    def covariance(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "..."]:
        """cov_t(x, x), symmetric, `[n, n]`, or `[n, n, o, o]` for a matrix-valued kernel; a vector of times leads.

        Needs a kernel with both K and Θ. Raises as `__call__` does.
        """
        x, matrices = check_new_examples(x, self.x), self._training.matrices
        prior = matrices.flat(gram_blocks(matrices.kernel, x, kind="nngp", memory=matrices.memory), 2)
        kernels = matrices.flat(gram_blocks(matrices.kernel, x, self.x, kind="both", memory=matrices.memory), 3)

        def at(time: float) -> np.ndarray:
            weights = self._weights(kernels[1].T, time)
            half = prior / 2 - weights.T @ kernels[0].T + weights.T @ (matrices.nngp @ weights) / 2
            return matrices.blocks(half + half.T)

        return _over_times(at, t)

    def variance(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "..."]:
        """The diagonal of `covariance(x, t)`, `[n]` or `[n, o]`, without the matrix; rounding below zero is set to
        zero."""
        x, matrices = check_new_examples(x, self.x), self._training.matrices
        times = checked_times(t)
        prior = np.asarray(matrices.kernel.diagonal("nngp", x), dtype=np.float64)
        shape = prior.shape[:2]
        prior = prior.diagonal(axis1=1, axis2=2).ravel() if matrices.outputs else prior
        variance, step = np.empty(times.shape + prior.shape), matrices.outputs or 1
        for rows, block in self._training.task.operator.rows(x, self.x, "both"):
            kernels, places = matrices.flat(block, 3), slice(rows.start * step, rows.stop * step)

            def at(time: float, places: slice = places, kernels: np.ndarray = kernels) -> np.ndarray:
                weights = self._weights(kernels[1].T, time)
                explained = np.einsum("in,ni->n", weights, kernels[0])
                return prior[places] - 2 * explained + np.einsum("in,in->n", weights, matrices.nngp @ weights)

            variance[..., places] = _over_times(at, times)
        return np.maximum(variance, 0.0).reshape(times.shape + shape)

    def leave_one_out(self, ridge: float | None = None) -> Float[np.ndarray, "N *o"]:
        """For each training example, the prediction at t = ∞ of the flow trained without it.

        `ridge` defaults to this flow's. Raises SingularMatrixError as `Eigen.leave_one_out` does, InputError for a
        matrix-valued kernel.
        """
        if self._training.matrices.outputs:
            raise InputError("leave-one-out is not available for a matrix-valued kernel")
        task = self._training.task
        columns = self.y.reshape(len(self.x), -1)
        left = self.eigen.leave_one_out(self._training.residual, self.ridge if ridge is None else ridge)
        return task.shown(columns - left)

    def _learnt(self, x: np.ndarray, times: np.ndarray) -> Float[np.ndarray, "*T n o"]:
        """mean_t(x) − m(x).

        Along an unresolved direction v of Θ(X, X), α_t grows as t and Θ(x, X) v is zero up to rounding, which so long
        a time would blow up: what lies within rounding counts as zero.
        """
        task, matrices = self._training.task, self._training.matrices
        unresolved = self._unresolved(float(np.max(times, where=np.isfinite(times), initial=0.0)))
        if unresolved == 0:
            return task.operator.evaluate(x, self.x, self._columns(times))
        directions, rounding = self.eigen.eigenvectors[:, :unresolved], self.eigen.rounding(self.ridge)
        residual, step = self._training.residual, matrices.outputs or 1

        def rest_at(time: float) -> np.ndarray:
            return self._coefficients if np.isinf(time) else self._apply(residual, time, skip=unresolved)

        def along_at(time: float) -> np.ndarray:
            if np.isinf(time):
                return np.zeros((unresolved, residual.shape[1]))
            response = self._response(self.eigenvalues[:unresolved] + self.ridge, time / len(self.x))
            return response[:, None] * (directions.T @ residual)

        rest, along = _over_times(rest_at, times), _over_times(along_at, times)
        learnt = np.empty((*times.shape, len(x) * step, along.shape[-1]))
        for rows, block in task.operator.rows(x, self.x):
            flat = matrices.flat(block, 2)
            response = flat @ directions
            response[np.abs(response) <= rounding] = 0.0
            learnt[..., rows.start * step : rows.stop * step, :] = flat @ rest + response @ along
        return learnt.reshape(*times.shape, len(x), task.outputs)

    def _unresolved(self, longest: float) -> int:
        """How many directions are lost in rounding, if times are long enough for that to show."""
        if longest / len(self.x) * _EPS <= _NOISE:
            return 0
        return int((self.eigenvalues + self.ridge <= self.eigen.rounding(self.ridge)).sum())

    def _columns(self, t: Times) -> Float[np.ndarray, "*T N o"]:
        """α_t."""
        times, residual = checked_times(t), self._training.residual
        found = _over_times(lambda time: self._coefficients if np.isinf(time) else self._apply(residual, time), times)
        return found.reshape(*times.shape, len(self.x), self._training.task.outputs)

    @cached_property
    def _coefficients(self) -> np.ndarray:
        return self._training.matrices.system.solve(self._training.residual, self.ridge)

    def _weights(self, b: np.ndarray, time: float) -> np.ndarray:
        """A_t b."""
        return self._training.matrices.system.solve(b, self.ridge) if np.isinf(time) else self._apply(b, time)

    def _apply(self, b: np.ndarray, time: float, skip: int = 0) -> np.ndarray:
        """A_t b at a finite time, without the first `skip` directions."""

        def filtered(eigenvalues: np.ndarray) -> np.ndarray:
            response = self._response(eigenvalues + self.ridge, time / len(self.x))
            response[:skip] = 0.0
            return response

        return self.eigen.filter(filtered, b)

    def _response(self, rates: np.ndarray, time: float) -> np.ndarray:
        """(1 − e^{−μ τ}) / μ for rates μ ≥ 0 and τ = t/N, which is τ at μ = 0."""
        rounding = self.eigen.rounding(self.ridge)
        with np.errstate(over="ignore"):
            progress = np.minimum(rates * time, 1e3)
            lost = (rates <= rounding) & (rounding * time > 1)
        decayed = -np.expm1(-progress)
        response = time * np.divide(decayed, progress, out=np.ones_like(rates), where=progress > 0)
        np.divide(decayed, rates, out=response, where=progress > 1)
        return np.where(lost, 0.0, response)


class Matrices:
    """Θ(X, X) and K(X, X), shared by flows with different ridges, targets and starts.

    Those of a matrix-valued kernel are flattened to `[N o, N o]`, and `outputs` is its o; None for a scalar one.
    """

    def __init__(self, kernel: Kernel, x: np.ndarray, block: Float[np.ndarray, "N N *oo"], memory: int | None):
        self.kernel, self.x, self.memory = kernel, x, memory
        self.outputs = block.shape[-1] if block.ndim == 4 else None
        if self.outputs:
            require_factorisation(len(x) * self.outputs, 1, memory)
        self.system = RidgeSystem(self.flat(block, 2))

    @cached_property
    def nngp(self) -> Float[np.ndarray, "R R"]:
        """K(X, X)."""
        return self.flat(gram_blocks(self.kernel, self.x, kind="nngp", memory=self.memory), 2)

    def flat(self, block: np.ndarray, scalar: int) -> np.ndarray:
        """A kernel matrix as one matrix; `scalar` is how many axes that of a scalar kernel has."""
        return flattened(block) if block.ndim > scalar else block

    def blocks(self, matrix: Float[np.ndarray, "no mo"]) -> Float[np.ndarray, "n m *oo"]:
        """The inverse of `flat`."""
        if not self.outputs:
            return matrix
        shape = (len(matrix) // self.outputs, self.outputs, -1, self.outputs)
        return matrix.reshape(shape).swapaxes(1, 2)


class Training:
    """What is trained, and the matrices that serve it."""

    def __init__(self, task: Problem, matrices: Matrices):
        self.task, self.matrices = task, matrices
        residual = task.y.reshape(len(task.x), -1) - task.start.train
        self.residual = residual.reshape(-1, 1) if matrices.outputs else residual
        """y − m(X), one column for each output that is independent of the others."""


def _over_times(at: Callable[[float], np.ndarray], t: Times) -> np.ndarray:
    times = checked_times(t)
    return at(float(times)) if times.ndim == 0 else np.stack([at(float(time)) for time in times])
