"""Gradient flow of any smooth loss as an ordinary differential equation, in coordinates that rounding cannot spoil.

With K = V Λ Vᵀ and the coupling B = V_B diag(β) V_Bᵀ (or I), f = f_0 + U w Cᵀ with U = V (Λ/λ_max)^½ and
C = V_B (β/β_max)^½. The coordinates w are the parameters of a linear model with kernel K ⊗ B, so that they follow a
gradient flow themselves,

    ∂_τ w = −Uᵀ d(f) C − λ/(λ_max β_max) w,    τ = t λ_max β_max / N.

Its Jacobian is symmetric, steps stay bounded however ill-conditioned K is, and directions that are lost in the rounding
of the eigendecomposition are left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..losses import BatchedLoss, Loss
from ..memory import require
from ..solve import Eigen
from .learning_rate import curvature_at
from .operator import flattened
from .problem import Problem

RELATIVE_TOLERANCE = 1e-10
"""Of one step; the absolute one is a hundredth of it in units of the first derivatives."""

MOST_STEPS = 30_000
_STABLE_STEP = 4.0
"""Dopri8's real stability interval is about 5.5 long; some of it is left for the error control."""

_FEW_STEPS = 10_000


@dataclass(frozen=True)
class Coordinates:
    """U, C and what leads back from w to the coefficients α."""

    eigen: Eigen
    basis: Float[np.ndarray, "rows r"]
    mixing: Float[np.ndarray, "p q"]
    to_coefficients: Float[np.ndarray, "rows r"]
    unmixing: Float[np.ndarray, "q p"]
    rate: float
    """τ / t."""
    scale: float
    """λ_max β_max."""
    unresolved: int
    """Directions left out."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of w."""
        return self.basis.shape[1], self.mixing.shape[1]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def coefficients(self, w: Float[np.ndarray, "r q"], shape: tuple[int, int]) -> Float[np.ndarray, "N o"]:
        """α with f = f_0 + Σ_i K(·, x_i) α_i."""
        return (self.to_coefficients @ w @ self.unmixing).reshape(shape)


def coordinates(task: Problem, block: Float[np.ndarray, "N N *oo"], memory: int | None) -> Coordinates:
    """Raises InputError where the kernel matrix is not positive semi-definite."""
    eigen = Eigen(flattened(block) if block.ndim == 4 else block)
    basis, inverse, largest, unresolved = _root(eigen.eigenvalues, eigen.eigenvectors, eigen.rounding())
    if task.operator.coupling is None:
        outputs = 1 if block.ndim == 4 else task.outputs
        mixing, unmixing, coupled = np.eye(outputs), np.eye(outputs), 1.0
    else:
        coupling = Eigen(task.operator.coupling)
        mixing, unmixing, coupled, _ = _root(coupling.eigenvalues, coupling.eigenvectors, coupling.rounding())
        unmixing = unmixing.T
    size = basis.shape[1] * mixing.shape[1]
    require(8 * 6 * size**2, memory, f"the implicit solver for {size} coordinates", "use fewer examples or outputs")
    scale = largest * coupled
    return Coordinates(eigen, basis, mixing, inverse, unmixing, scale / len(task.x), scale, unresolved)


def _root(values: np.ndarray, vectors: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray, float, int]:
    """V (Λ/λ_max)^½ and V (Λ λ_max)^−½ over the resolved directions, λ_max, and how many are not."""
    resolved = values > rounding
    kept, largest = values[resolved], float(values[-1])
    vectors = vectors[:, resolved]
    return vectors * np.sqrt(kept / largest), vectors / np.sqrt(kept * largest), largest, int((~resolved).sum())


@dataclass(frozen=True)
class Solved:
    """w at the time asked for, or where the solver stopped; `failure` says why it did, "" if it arrived."""

    w: Float[np.ndarray, "r q"]
    t: float
    steps: int
    failure: str


class Equation:
    """The flow of one problem, to be carried on from any state to any later time."""

    def __init__(self, task: Problem, place: Coordinates, ridge: float):
        self._task, self.place = task, place
        self._decay = ridge / place.scale if place.scale > 0 else 0.0
        self._size = self.steepest(np.zeros(place.shape))
        self._curvature = curvature_at(task, task.start.train)[0]

    @property
    def still(self) -> bool:
        """Whether nothing moves: f_0 is stationary, or the kernel is zero."""
        return self._size == 0 or self.place.size == 0

    def solve(self, w: Float[np.ndarray, "r q"], t0: float, t1: float) -> Solved:
        """Carries w from t0 to t1."""
        if self.still or t0 == t1:
            return Solved(w, t1, 0, "")
        task, place = self._task, self.place
        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
            values, reached, steps, outcome = _integrate(
                jnp.asarray(w),
                t0 * place.rate,
                t1 * place.rate,
                (place.basis, place.mixing, task.start.train, jnp.asarray(task.y), self._decay),
                RELATIVE_TOLERANCE / 100 * self._size,
                loss=task.loss,
                scalar=task.scalar,
                explicit=self._explicit(t1 - t0),
            )
            arrived = bool(outcome == diffrax.RESULTS.successful)
            failure = "" if arrived else _reason(outcome)
            return Solved(np.asarray(values), t1 if arrived else float(reached) / place.rate, int(steps), failure)

    def gradient(self, w: Float[np.ndarray, "r q"]) -> Float[np.ndarray, "r q"]:
        """−∂_τ w."""
        task, place = self._task, self.place
        d = task.derivatives(self.values(w)).reshape(len(place.basis), -1)
        return place.basis.T @ d @ place.mixing + self._decay * w

    def steepest(self, w: Float[np.ndarray, "r q"]) -> float:
        """The largest derivative of an example's loss."""
        return float(np.abs(self._task.derivatives(self.values(w))).max())

    def values(self, w: Float[np.ndarray, "r q"]) -> Float[np.ndarray, "N o"]:
        """f at the training examples."""
        start = self._task.start.train
        return start + (self.place.basis @ w @ self.place.mixing.T).reshape(start.shape)

    def newton(self, w: Float[np.ndarray, "r q"]) -> Float[np.ndarray, "r q"]:
        """The Newton step from w towards a stationary point, of least norm where there are several."""
        place, hessians = self.place, self._task.hessians(self.values(w))
        if len(place.basis) == len(hessians):
            mixed = place.mixing.T @ hessians @ place.mixing
            matrix = np.einsum("ir,iab,is->rasb", place.basis, mixed, place.basis, optimize=True)
        else:
            rows = place.basis.reshape(*hessians.shape[:2], -1)
            matrix = np.einsum("ioa,iop,ipb->ab", rows, hessians, rows, optimize=True)
        matrix = matrix.reshape(place.size, place.size) + self._decay * np.eye(place.size)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        kept = values > place.size * np.finfo(np.float64).eps * np.abs(values).max()
        along = vectors[:, kept].T @ self.gradient(w).ravel()
        return -(vectors[:, kept] @ (along / values[kept])).reshape(w.shape)

    @property
    def size(self) -> float:
        """The largest derivative at f_0: what a prediction that still has to move looks like."""
        return self._size

    def _explicit(self, duration: float) -> bool:
        """Whether an explicit method is stable with few steps and cheaper than the implicit one's factorisations."""
        if self._curvature is None:
            return False
        stiffness = (self._curvature + self._decay) * duration * self.place.rate / _STABLE_STEP
        implicit = 200 * self.place.size**3
        explicit = (200 + stiffness) * 13 * 4 * self.place.basis.size * self.place.shape[1]
        return stiffness < _FEW_STEPS and explicit < implicit


def _reason(outcome: Any) -> str:
    if bool(outcome == diffrax.RESULTS.max_steps_reached):
        return f"{MOST_STEPS} steps were not enough: the loss has kinks, or its derivatives are lost in rounding"
    return diffrax.RESULTS[outcome]


@partial(jax.jit, static_argnames=("loss", "scalar", "explicit"))
def _integrate(
    w: Any, t0: Any, t1: Any, arguments: Any, atol: Any, *, loss: Loss, scalar: bool, explicit: bool
) -> tuple[Any, Any, Any, Any]:
    derivative = BatchedLoss(loss, scalar).derivative

    def field(t: Any, w: Any, arguments: Any) -> Any:
        basis, mixing, start, targets, decay = arguments
        f = start + (basis @ w @ mixing.T).reshape(start.shape)
        d = derivative(f, targets).reshape(len(basis), -1)
        return -(basis.T @ d @ mixing) - decay * w

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(scan_kind="lax") if explicit else diffrax.Kvaerno5(scan_kind="lax"),
        t0,
        t1,
        None,
        w,
        arguments,
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol=RELATIVE_TOLERANCE, atol=atol),
        max_steps=MOST_STEPS,
        throw=False,
        adjoint=diffrax.ForwardMode(),
    )
    assert solution.ys is not None and solution.ts is not None
    return solution.ys[-1], solution.ts[-1], solution.stats["num_steps"], solution.result
