"""Kernel gradient flow of any smooth loss: solved to the times that are asked for, and to its end if it has one."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar

from ..errors import ConvergenceError, InputError
from ..gram import check_new_examples
from ..kernels import Kernel
from ..types import Inputs
from .ode import Equation, Solved, coordinates
from .problem import Problem
from .rkhs import RKHSFunction
from .times import Times, checked_times

_CLOSE = 1e-6
_EXACT = 1e-12
_NEWTON_STEPS = 30
_VANISHED = 1e-9
"""Derivatives this small, from which Newton's method still goes far, are those of a cost without a minimum."""
_FIRST, _LAST = 1.0, 16.0
"""Decades of τ = t λ_max / N at which the end of training is looked for."""


@dataclass(frozen=True)
class Convergence:
    """How far the flow was followed.

    `status`: "reached" the time asked for; "converged" to a stationary point, asked for t = ∞; "not converged" by
    `time`, because the cost has no minimum (separable classes), or a direction is too slow; "failed", the solver
    stopped at `time` for the `reason`. `gradient_norm` is ‖∇_K C‖_K there, `remaining` the largest change in a training
    prediction that a Newton step foresees (NaN unless t = ∞), `steps` the solver's steps so far.
    """

    status: Literal["reached", "converged", "not converged", "failed"]
    time: float
    gradient_norm: float
    remaining: float
    steps: int
    reason: str = ""


class LossFlow:
    """The solution f_t of ∂_t f = −∇_K C|_f from f_0, at any x and t. Built by `kernel_flow` with a cost.

    States are kept: a later time is solved from the nearest earlier one. Each agrees with the exact flow to about 1e-8
    of the size of the first derivatives.
    """

    def __init__(self, task: Problem, block: np.ndarray, ridge: float, memory: int | None):
        self._task, self._block, self._memory = task, block, memory
        self.ridge = ridge
        self._equation = Equation(task, coordinates(task, block, memory), ridge)
        self._times: list[float] = [0.0]
        self._states: dict[float, Solved] = {0.0: Solved(np.zeros(self._equation.place.shape), 0.0, 0, "")}
        self._failed: Solved | None = None

    @property
    def kernel(self) -> Kernel:
        return self._task.operator.given

    @property
    def x(self) -> Float[np.ndarray, "N *shape"]:
        """The training examples."""
        return self._task.x

    @property
    def y(self) -> np.ndarray:
        """The training targets."""
        return self._task.y

    @property
    def eigenvalues(self) -> Float[np.ndarray, " N"]:
        """The eigenvalues of the kernel matrix, ascending."""
        return self._equation.place.eigen.eigenvalues

    @property
    def unresolved(self) -> int:
        """How many eigenvalues are lost in rounding; their directions count as null."""
        return self._equation.place.unresolved

    def coefficients(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """α_t in f_t = f_0 + Σ_i K(·, x_i) α_i. Raises as `__call__` does."""
        return self._task.shown(self._coefficients(t))

    def function(self, t: float | None = None) -> RKHSFunction:
        """f_t − f_0 as a function of the RKHS."""
        if np.ndim(checked_times(t)) != 0:
            raise InputError("t is a vector; give one time")
        return RKHSFunction(self.kernel, self.x, self.coefficients(t))

    def __call__(self, x: Inputs, t: Times = None, *, f0: Any = None) -> Float[np.ndarray, "..."]:
        """f_t(x), `[n]` or `[n, o]`; a vector of times leads. None is t = ∞.

        `f0` are the values of f_0 at x where training knows it by values alone. Raises InputError on a bad argument,
        ConvergenceError where t is ∞ and the flow has no end that was found, or where the solver fails.
        """
        x = check_new_examples(x, self.x)
        start = self._task.start.at(x, f0)
        return self._task.shown(start + self._task.operator.evaluate(x, self.x, self._coefficients(t)))

    def train(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """f_t at the training examples. Raises as `__call__` does."""
        return self._over(t, lambda w: self._task.shown(self._equation.values(w)))

    def cost(self, t: Times = None) -> Float[np.ndarray, "..."]:
        """C(f_t), the loss averaged over the training examples, without the ridge. Raises as `__call__` does."""
        return self._over(t, lambda w: np.asarray(self._task.costs(self._equation.values(w)).mean()))

    def time_to(self, cost: float) -> float:
        """The time at which C(f_t) first falls to `cost`; 0 where it is there from the start.

        Looked for decade by decade from t λ_max / N = 1e-6, then to rounding. Raises ConvergenceError where the cost
        stays above as far as the solver gets.
        """
        if not np.isfinite(cost):
            raise InputError(f"cost is {cost}; give a finite number")
        before, now = 0.0, float(self.cost(0.0))
        if now <= cost:
            return 0.0
        for decade in np.arange(-6.0, -6.0 if self._equation.still else _LAST + 1):
            time = float(10.0**decade / self._equation.place.rate)
            if self._advance(time).failure:
                break
            now = float(self.cost(time))
            if now <= cost:
                root: Any = root_scalar(lambda t: float(self.cost(t)) - cost, bracket=(before, time), rtol=1e-13)
                return float(root.root)
            before = time
        raise ConvergenceError(f"the cost is {now:.6g} at t = {before:.3g} and has not fallen to {cost:g}: give more")

    def convergence(self, t: float | None = None) -> Convergence:
        """Follows the flow to t, or with None to its end, and says how that went; never raises ConvergenceError."""
        time = float(checked_times(t)) if np.ndim(checked_times(t)) == 0 else None
        if time is None:
            raise InputError("t is a vector; give one time")
        if np.isinf(time):
            return self._end[0]
        solved = self._advance(time)
        return self._report("failed" if solved.failure else "reached", solved)

    def _coefficients(self, t: Times) -> np.ndarray:
        shape = self._task.start.train.shape
        return self._over(t, lambda w: self._equation.place.coefficients(w, shape))

    def _over(self, t: Times, function: Any) -> np.ndarray:
        times = checked_times(t)
        states = {time: self._state(time) for time in sorted(set(times.ravel().tolist()))}
        found = [function(states[time]) for time in times.ravel().tolist()]
        return found[0] if times.ndim == 0 else np.stack(found)

    def _state(self, time: float) -> np.ndarray:
        if np.isinf(time):
            report, w = self._end
            if report.status != "converged":
                raise ConvergenceError(
                    f"the flow has no end that was found: by t = {report.time:.3g} the gradient norm is "
                    f"{report.gradient_norm:.3g} and predictions still move{_because(report)}; give a finite t, or a "
                    "ridge",
                    report,
                )
            return w
        solved = self._advance(time)
        if solved.failure:
            raise ConvergenceError(
                f"the solver stopped at t = {solved.t:.6g} on the way to t = {time:g} ({solved.failure}): ask for "
                "earlier times, or use a smoother cost",
                self._report("failed", solved),
            )
        return solved.w

    def _advance(self, time: float) -> Solved:
        """The state at a finite time, from the nearest earlier one."""
        before = self._times[bisect_right(self._times, time) - 1]
        if before == time:
            return self._states[time]
        if self._failed is not None and time >= self._failed.t:
            return self._failed
        start = self._states[before]
        solved = self._equation.solve(start.w, before, time)
        solved = Solved(solved.w, solved.t, start.steps + solved.steps, solved.failure)
        if not solved.failure and not np.isfinite(solved.w).all():
            solved = Solved(start.w, before, solved.steps, "the solution is not finite")
        if solved.failure:
            self._failed = solved
        else:
            self._times.insert(bisect_right(self._times, time), time)
            self._states[time] = solved
        return solved

    @cached_property
    def _end(self) -> tuple[Convergence, np.ndarray]:
        """t = ∞: followed decade by decade until Newton's method takes over without moving any prediction."""
        solved, remaining = self._states[0.0], 0.0
        if self._equation.still:
            return self._report("converged", solved, 0.0), solved.w
        for decade in np.arange(_FIRST, _LAST + 1):
            solved = self._advance(float(10.0**decade / self._equation.place.rate))
            if solved.failure:
                return self._report("failed", solved), solved.w
            w, remaining = self._polished(solved.w)
            if remaining <= _CLOSE * self._equation.size:
                return self._report("converged", Solved(w, solved.t, solved.steps, ""), remaining), w
            if self._equation.steepest(solved.w) <= _VANISHED * self._equation.size:
                break
        return self._report("not converged", solved, remaining), solved.w

    def _polished(self, w: np.ndarray) -> tuple[np.ndarray, float]:
        """The stationary point that Newton's method finds from w, and how far predictions went; ∞ if it finds none."""
        equation, start = self._equation, self._equation.values(w)
        for _ in range(_NEWTON_STEPS):
            step = equation.newton(w)
            moved = np.abs(equation.values(w + step) - equation.values(w)).max()
            w = w + step
            distance = float(np.abs(equation.values(w) - start).max())
            if not np.isfinite(distance) or distance > _CLOSE * equation.size:
                return w, distance
            if moved <= _EXACT * equation.size:
                return w, distance
        return w, np.inf

    def _report(self, status: Any, solved: Solved, remaining: float = np.nan) -> Convergence:
        place = self._equation.place
        norm = float(np.linalg.norm(self._equation.gradient(solved.w)) * np.sqrt(place.scale) / len(self.x))
        return Convergence(status, solved.t, norm, remaining, solved.steps, solved.failure)


def _because(report: Convergence) -> str:
    return f" ({report.reason})" if report.reason else " (separable classes have no minimum)"
