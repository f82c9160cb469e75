"""Functions f = Σ_i K(·, z_i) α_i in the reproducing kernel Hilbert space, and the gradient of a cost among them."""

from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..gram import check_new_examples
from ..kernels import Kernel
from ..types import Inputs
from .operator import KernelOperator, same_kernel
from .problem import problem


def kernel_gradient(
    kernel: Any,
    cost: Any,
    x: Inputs,
    y: Float[np.ndarray, "N *o"],
    f: Any = None,
    *,
    outputs: int | None = None,
) -> "RKHSFunction":
    """∇_K C|_f = (1/N) Σ_i K(·, x_i) d|_f(x_i), with d|_f(x_i) the derivative of example i's loss at f(x_i).

    It is the gradient of C(f) = (1/N) Σ_i loss(f(x_i), y_i) in the RKHS of K: dC(f)[g] = ⟨∇_K C|_f, g⟩_K (Jacot,
    Gabriel and Hongler 2018, arXiv:1806.07572, §3.1).

    Args:
        kernel: a `Kernel` (its NTK is used), or a function k(x1, x2) -> `[n, m]`. Several outputs are independent,
            K ⊗ I, unless the kernel is matrix-valued, `[n, m, o, o]`, or a `CoupledKernel`.
        cost: a loss of `tangency.losses`, its name ("squared", "softmax", "logistic", "huber", "hinge", "quantile",
            "poisson"), or any JAX function `(prediction, target) -> number` of one example.
        x, y: the N training examples and their targets, `[N]`, `[N, o]`, or what the cost takes.
        f: where the gradient is taken: a function of a batch of examples, values at x, or None for zero.
        outputs: the number of outputs, where neither y nor f shows it.

    Raises:
        InputError: an argument is not what it must be. NonFiniteError: it is not finite, with the row.
    """
    task = problem(kernel, cost, x, y, f, outputs)
    coefficients = task.derivatives(task.start.train) / len(task.x)
    return RKHSFunction(task.operator.given, task.x, task.shown(coefficients))


class RKHSFunction:
    """f = Σ_i K(·, z_i) α_i with centres z `[M, ...]` and coefficients α, `[M]` or `[M, o]`.

    Call it on examples `[n, ...]` for values `[n]` or `[n, o]`. Functions of the same kernel add, subtract and have the
    inner product ⟨f, g⟩_K = Σ_ij α_iᵀ K(z_i, w_j) β_j; other operands raise InputError.
    """

    def __init__(self, kernel: Any, centres: Inputs, coefficients: Float[np.ndarray, "M *o"]):
        self.centres = np.asarray(centres)
        self.coefficients = np.asarray(coefficients, dtype=np.float64)
        if self.coefficients.ndim not in (1, 2) or len(self.coefficients) != len(self.centres):
            raise InputError(
                f"coefficients has shape {self.coefficients.shape}; {len(self.centres)} centres need "
                f"[{len(self.centres)}] or [{len(self.centres)}, outputs]"
            )
        self._operator = KernelOperator(kernel, 1 if self.coefficients.ndim == 1 else self.coefficients.shape[1])

    @property
    def kernel(self) -> Kernel:
        return self._operator.given

    def __call__(self, x: Inputs) -> Float[np.ndarray, "n *o"]:
        """f(x). Raises InputError where x does not look like the centres."""
        x = check_new_examples(x, self.centres)
        values = self._operator.evaluate(x, self.centres, self._columns)
        return values.reshape(len(x), *self.coefficients.shape[1:])

    def inner(self, other: "RKHSFunction") -> float:
        """⟨f, g⟩_K."""
        self._check(other)
        values = self._operator.evaluate(self.centres, other.centres, other._columns)
        return float(np.vdot(self._columns, values))

    def norm(self) -> float:
        """‖f‖_K; rounding of its square below zero counts as zero."""
        return float(np.sqrt(max(self.inner(self), 0.0)))

    def __add__(self, other: "RKHSFunction") -> "RKHSFunction":
        if not isinstance(other, RKHSFunction):
            return NotImplemented
        self._check(other)
        if self.centres is other.centres:
            return self._with(self.coefficients + other.coefficients)
        return RKHSFunction(
            self.kernel,
            np.concatenate([self.centres, other.centres]),
            np.concatenate([self.coefficients, other.coefficients]),
        )

    def __sub__(self, other: "RKHSFunction") -> "RKHSFunction":
        return self + -other if isinstance(other, RKHSFunction) else NotImplemented

    def __neg__(self) -> "RKHSFunction":
        return self._with(-self.coefficients)

    def __mul__(self, factor: float) -> "RKHSFunction":
        return self._with(float(factor) * self.coefficients) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "RKHSFunction":
        return self._with(self.coefficients / float(divisor)) if _is_number(divisor) else NotImplemented

    @property
    def _columns(self) -> np.ndarray:
        return self.coefficients.reshape(len(self.centres), -1)

    def _with(self, coefficients: np.ndarray) -> "RKHSFunction":
        return RKHSFunction(self.kernel, self.centres, coefficients)

    def _check(self, other: "RKHSFunction") -> None:
        if not same_kernel(self.kernel, other.kernel):
            raise InputError(
                f"the functions have different kernels, {self.kernel!r} and {other.kernel!r}: only functions of one "
                "kernel can be combined"
            )
        if self.coefficients.shape[1:] != other.coefficients.shape[1:]:
            raise InputError(
                f"the functions have outputs {self.coefficients.shape[1:]} and {other.coefficients.shape[1:]}; they "
                "must be the same"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
