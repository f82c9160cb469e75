"""Gradient flow with the NTK on the squared loss: all of training, in closed form."""

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..gram import check_examples, check_new_examples, check_targets, gram, gram_rows, require_factorisation
from ..kernels.base import Kernel
from ..solve import Eigen, RidgeSystem, ridge_value
from ..types import Inputs, Progress

Times: TypeAlias = float | Float[np.ndarray, " T"] | None
"""None is t = ∞; a vector of T times adds a leading axis T to the result."""


def kernel_flow(
    kernel: Kernel,
    x: Inputs,
    y: Float[np.ndarray, "n *o"],
    *,
    ridge: float = 0.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> "KernelFlow":
    """Train on examples x, `[N, ...]`, and targets y, `[N]` or `[N, o]`, for all times at once.

    The loss is averaged over the N examples, C(f) = 1/(2N) Σ_i ‖f(x_i) − y_i‖² + λ/(2N) ‖f − f_0‖²_Θ with the ridge λ,
    and t is the time of its gradient flow ∂_t f = −∇_Θ C; one step of gradient descent with learning rate η advances t
    by η. `memory` is the number of bytes that may be used (default: the physical memory available); `progress` follows
    the kernel matrix.

    Raises InputError on a bad argument, NonFiniteError that names the row, MemoryLimitError when the exact solution
    does not fit.
    """
    examples = check_examples(x, "x")
    targets = check_targets(y, len(examples))
    ridge = ridge_value(ridge)
    require_factorisation(len(examples), 1, memory)
    matrix = gram(kernel, examples, memory=memory, progress=progress)
    return KernelFlow(_Training(kernel, examples, targets, RidgeSystem(matrix), memory), ridge)


class KernelFlow:
    """The mean and covariance, at any time, of the infinite ensemble of networks trained from random f_0 ~ GP(0, K).

    With A_t = (Θ + λI)⁻¹ (I − e^{−(Θ + λI) t/N}) and X the training examples,

        mean_t(x) = Θ(x, X) A_t y
        cov_t(x, x') = K(x, x') − Θ(x, X) A_t K(X, x') − K(x, X) A_t Θ(X, x') + Θ(x, X) A_t K(X, X) A_t Θ(X, x')

    (Lee et al. 2019, arXiv:1902.06720, eqs. 14–16, in the time of the averaged loss and with a ridge). Everything is
    per output coordinate. Built by `kernel_flow`.

    Directions whose eigenvalue is lost in rounding count as null once t is long enough to matter (t/N above the
    inverse of that rounding).
    """

    def __init__(self, training: "_Training", ridge: float):
        self._training = training
        self.ridge = ridge

    @property
    def kernel(self) -> Kernel:
        return self._training.kernel

    @property
    def x(self) -> Float[np.ndarray, "N *shape"]:
        """The training examples."""
        return self._training.x

    @property
    def y(self) -> Float[np.ndarray, "N *o"]:
        """The training targets."""
        return self._training.y

    @property
    def eigen(self) -> Eigen:
        """The eigendecomposition of Θ(X, X)."""
        return self._training.system.eigen

    @property
    def eigenvalues(self) -> Float[np.ndarray, " N"]:
        """The eigenvalues of Θ(X, X), ascending. The error along number i decays as e^{−(eigenvalues[i] + λ) t/N}."""
        return self.eigen.eigenvalues

    @property
    def clipped(self) -> float:
        """The largest magnitude of an eigenvalue below zero, from rounding, that was set to zero."""
        return self.eigen.clipped

    def with_ridge(self, ridge: float) -> "KernelFlow":
        """The flow with another ridge; kernel matrices and factorisations are shared."""
        return KernelFlow(self._training, ridge_value(ridge))

    def coefficients(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """α_t = A_t y, with which mean_t(x) = Θ(x, X) α_t.

        Raises SingularMatrixError if t is ∞ and the system with this ridge has no reliable solution, InputError if a
        time is negative or NaN.
        """
        times = _times(t)
        if times.ndim == 0:
            return self._coefficients if np.isinf(times) else self._apply(self.y, float(times))
        return np.stack([self._coefficients if np.isinf(time) else self._apply(self.y, time) for time in times])

    def __call__(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "..."]:
        """mean_t(x), `[n]` or `[n, o]` as y is. Raises as `coefficients` does, and InputError on a bad x."""
        x = check_new_examples(x, self.x)
        coefficients = self.coefficients(t)
        mean = np.empty((*_times(t).shape, len(x), *self.y.shape[1:]))
        if self.y.ndim == 1:
            for rows, theta in gram_rows(self.kernel, x, self.x, "ntk"):
                mean[..., rows] = coefficients @ theta.T
        else:
            for rows, theta in gram_rows(self.kernel, x, self.x, "ntk"):
                mean[..., rows, :] = theta @ coefficients
        return mean

    def train(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """mean_t at the training examples, `[N]` or `[N, o]`. Raises as `coefficients` does."""
        matrix = self._training.system.matrix
        coefficients = self.coefficients(t)
        return coefficients @ matrix if self.y.ndim == 1 else matrix @ coefficients

    def covariance(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "*T n n"]:
        """cov_t(x, x), symmetric. Needs a kernel with both K and Θ. Raises as `__call__` does."""
        x = check_new_examples(x, self.x)
        prior = gram(self.kernel, x, kind="nngp", memory=self._training.memory)
        kernels = gram(self.kernel, x, self.x, kind="both", memory=self._training.memory)

        def at(time: float) -> np.ndarray:
            weights = self._weights(kernels[1].T, time)
            half = prior / 2 - weights.T @ kernels[0].T + weights.T @ (self._training.nngp @ weights) / 2
            return half + half.T

        return _over_times(at, t)

    def variance(self, x: Inputs, t: Times = None) -> Float[np.ndarray, "*T n"]:
        """The diagonal of `covariance(x, t)` without the `[n, n]` matrix; rounding below zero is set to zero."""
        x = check_new_examples(x, self.x)
        times = _times(t)
        prior = np.asarray(self.kernel.diagonal("nngp", x), dtype=np.float64)
        variance = np.empty(times.shape + prior.shape)
        for rows, kernels in gram_rows(self.kernel, x, self.x, "both"):

            def at(time: float, rows: slice = rows, kernels: np.ndarray = kernels) -> np.ndarray:
                weights = self._weights(kernels[1].T, time)
                explained = np.einsum("in,ni->n", weights, kernels[0])
                return prior[rows] - 2 * explained + np.einsum("in,in->n", weights, self._training.nngp @ weights)

            variance[..., rows] = _over_times(at, times)
        return np.maximum(variance, 0.0)

    def leave_one_out(self, ridge: float | None = None) -> Float[np.ndarray, "N *o"]:
        """For each training example, the prediction at t = ∞ of the flow trained without it.

        `ridge` defaults to this flow's. Raises SingularMatrixError as `Eigen.leave_one_out` does.
        """
        return self.y - self.eigen.leave_one_out(self.y, self.ridge if ridge is None else ridge)

    @cached_property
    def _coefficients(self) -> np.ndarray:
        return self._training.system.solve(self.y, self.ridge)

    def _weights(self, b: np.ndarray, time: float) -> np.ndarray:
        """A_t b, `[N, n]`."""
        return self._training.system.solve(b, self.ridge) if np.isinf(time) else self._apply(b, time)

    def _apply(self, b: np.ndarray, time: float) -> np.ndarray:
        """A_t b at a finite time."""
        return self.eigen.filter(lambda eigenvalues: self._response(eigenvalues + self.ridge, time / len(self.x)), b)

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


class _Training:
    """What flows with different ridges share."""

    def __init__(self, kernel: Kernel, x: np.ndarray, y: np.ndarray, system: RidgeSystem, memory: int | None):
        self.kernel, self.x, self.y, self.system, self.memory = kernel, x, y, system, memory

    @cached_property
    def nngp(self) -> Float[np.ndarray, "N N"]:
        """K(X, X)."""
        return gram(self.kernel, self.x, kind="nngp", memory=self.memory)


def _times(t: Times) -> np.ndarray:
    """A scalar or a vector of times in [0, ∞]."""
    if t is None:
        return np.asarray(np.inf)
    try:
        times = np.asarray(t, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"t is {t!r}; give a number ≥ 0, a vector of them, or None for t = ∞") from None
    if times.ndim > 1 or times.size == 0:
        raise InputError(f"t has shape {times.shape}; give a number ≥ 0, a vector of them, or None for t = ∞")
    bad = ~(times >= 0)
    if bad.any():
        raise InputError(f"t holds {times[bad][0] if times.ndim else times}; training time is a number ≥ 0")
    return times


def _over_times(at: Callable[[float], np.ndarray], t: Times) -> np.ndarray:
    times = _times(t)
    return at(float(times)) if times.ndim == 0 else np.stack([at(float(time)) for time in times])
