"""Losses of one example, `(prediction, target) -> number`, and what training needs to know of them.

The squared, softmax, logistic, Huber and hinge losses are those of optax; quantile and Poisson are written here. A
prediction is one number where targets are `[N]`, else a vector `[o]`; losses of several outputs are summed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .errors import InputError, NonFiniteError

Targets: TypeAlias = Literal["any", "real", "classes", "probabilities", "signs", "counts"]


@dataclass(frozen=True)
class Loss:
    """A loss, its curvature, and the targets it takes.

    `curvature` is the largest eigenvalue that its Hessian can have; None where that is unbounded or unknown. `smooth`
    says that the derivative is continuous, `quadratic` that the Hessian is the identity.
    """

    name: str
    function: Callable[[Any, Any], Any]
    targets: Targets = "any"
    curvature: float | None = None
    smooth: bool = True
    quadratic: bool = False
    derivative: Callable[[Any, Any], Any] | None = None
    """By the prediction; None leaves it to automatic differentiation."""

    def __call__(self, prediction: Any, target: Any) -> Any:
        return self.function(prediction, target)


@cache
def squared() -> Loss:
    """½ Σ (f − y)²: `optax.l2_loss`."""
    return Loss("squared", _half_squares, "real", 1.0, quadratic=True)


def _half_squares(prediction: Any, target: Any) -> Any:
    # At the module's level, so that fitted estimators can be pickled.
    return jnp.sum(optax.l2_loss(prediction, target))


@cache
def softmax() -> Loss:
    """−log softmax(f)_y for labels 0 … C − 1 `[N]`, −Σ_c y_c log softmax(f)_c for distributions `[N, C]`:
    `optax.softmax_cross_entropy_with_integer_labels` and `optax.softmax_cross_entropy`."""

    def function(prediction: Any, target: Any) -> Any:
        if jnp.ndim(target) == 0:
            return optax.softmax_cross_entropy_with_integer_labels(prediction, target)
        return optax.softmax_cross_entropy(prediction, target)

    def derivative(prediction: Any, target: Any) -> Any:
        classes = len(prediction)
        shares = jnp.eye(classes)[target] if jnp.ndim(target) == 0 else target
        p = jax.nn.softmax(prediction)
        # 1 − p_c as a sum: near certainty the difference, which is all that still moves f, would be lost in rounding.
        others = (1 - jnp.eye(classes)) @ p
        return p * (1 - shares) - shares * others

    return Loss("softmax", function, "classes", 0.5, derivative=derivative)


@cache
def logistic() -> Loss:
    """−y log σ(f) − (1 − y) log σ(−f) for targets in [0, 1]: `optax.sigmoid_binary_cross_entropy`."""

    def function(prediction: Any, target: Any) -> Any:
        return jnp.sum(optax.sigmoid_binary_cross_entropy(prediction, target))

    return Loss("logistic", function, "probabilities", 0.25)


@cache
def huber(delta: float = 1.0) -> Loss:
    """½ r² where |r| ≤ δ, else δ (|r| − δ/2), with r = f − y: `optax.huber_loss`."""
    delta = _positive(delta, "delta")

    def function(prediction: Any, target: Any) -> Any:
        return jnp.sum(optax.huber_loss(prediction, target, delta=delta))

    return Loss(f"huber({delta:g})", function, "real", 1.0)


@cache
def hinge(smoothing: float = 0.0) -> Loss:
    """max(0, u) with u = 1 − y f, for y = ±1: `optax.hinge_loss`. At the kink the derivative is the subgradient −y/2.

    A `smoothing` ε > 0 rounds the kink off, as u²/(2ε) for 0 ≤ u ≤ ε and u − ε/2 above (its Moreau envelope).
    """
    smoothing = _smoothing(smoothing)

    def kinked(prediction: Any, target: Any) -> Any:
        return jnp.sum(optax.hinge_loss(prediction, target))

    def smooth(prediction: Any, target: Any) -> Any:
        return jnp.sum(_rounded(1 - prediction * target, 1.0, 0.0, smoothing))

    return _with_kinks("hinge", kinked, smooth, "signs", smoothing)


@cache
def quantile(level: float = 0.5, smoothing: float = 0.0) -> Loss:
    """max(q r, (q − 1) r) with r = y − f, minimised by the q-quantile of y (Koenker and Bassett 1978).

    At the kink the derivative is the mean of the two one-sided ones. A `smoothing` ε > 0 rounds the kink off, as
    r²/(2ε) for (q − 1) ε ≤ r ≤ q ε (its Moreau envelope).
    """
    if not (isinstance(level, int | float) and 0 < level < 1):
        raise InputError(f"level is {level!r}; a quantile lies between 0 and 1")
    smoothing = _smoothing(smoothing)

    def kinked(prediction: Any, target: Any) -> Any:
        rest = target - prediction
        return jnp.sum(jnp.maximum(level * rest, (level - 1) * rest))

    def smooth(prediction: Any, target: Any) -> Any:
        return jnp.sum(_rounded(target - prediction, level, 1 - level, smoothing))

    return _with_kinks(f"quantile({level:g})", kinked, smooth, "real", smoothing)


@cache
def poisson() -> Loss:
    """e^f − y f, the negative log likelihood of counts y with mean e^f, less log y!. Its curvature is unbounded."""

    def function(prediction: Any, target: Any) -> Any:
        return jnp.sum(jnp.exp(prediction) - target * prediction)

    return Loss("poisson", function, "counts")


NAMED: dict[str, Callable[[], Loss]] = {
    "squared": squared,
    "softmax": softmax,
    "logistic": logistic,
    "huber": huber,
    "hinge": hinge,
    "quantile": quantile,
    "poisson": poisson,
}


def as_loss(cost: Any) -> Loss:
    """A `Loss`, the loss of a name, or the user's own JAX function. Raises InputError on anything else."""
    if isinstance(cost, Loss):
        return cost
    if isinstance(cost, str):
        if cost not in NAMED:
            raise InputError(f"cost is {cost!r}; give one of {', '.join(NAMED)}, or a function (prediction, target)")
        return NAMED[cost]()
    if callable(cost):
        return Loss(getattr(cost, "__name__", None) or repr(cost), cost)
    raise InputError(f"cost is {cost!r}; give one of {', '.join(NAMED)}, or a function (prediction, target) -> number")


def check_loss_targets(loss: Loss, values: object, n: int) -> np.ndarray:
    """Targets of n examples for the loss, labels as integers and the rest as float64.

    Raises InputError, NonFiniteError when they are not what the loss takes.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"y has dtype {array.dtype}; give numbers")
    if array.ndim == 0 or len(array) != n or array.size == 0 or (loss.targets != "any" and array.ndim > 2):
        raise InputError(f"y has shape {array.shape}; the {n} examples need [{n}] or [{n}, outputs]")
    _check(array, np.isfinite(array), "y is not finite", NonFiniteError)
    if array.dtype.kind in "iu" and (loss.targets == "any" or (loss.targets == "classes" and array.ndim == 1)):
        if loss.targets == "classes":
            _check(array, array >= 0, "labels are integers from 0 up")
        return array.astype(np.int64)
    if loss.targets == "classes" and array.ndim == 1:
        raise InputError(
            f"y has dtype {array.dtype}; softmax takes integer labels [{n}] or distributions [{n}, classes]"
        )
    array = array.astype(np.float64)
    if loss.targets == "classes":
        rows = np.all(array >= 0, axis=1) & (np.abs(array.sum(axis=1) - 1) < 1e-6)
        _check(array, np.broadcast_to(rows[:, None], array.shape), "each row must be a distribution over classes")
    if loss.targets == "probabilities":
        _check(array, (array >= 0) & (array <= 1), "the logistic loss takes 0, 1 or a probability")
    if loss.targets == "signs":
        _check(array, np.abs(array) == 1, "the hinge loss takes −1 and 1")
    if loss.targets == "counts":
        _check(array, array >= 0, "the Poisson loss takes counts ≥ 0")
    return array


def _check(array: np.ndarray, good: np.ndarray, why: str, error: type[InputError] = InputError) -> None:
    if not good.all():
        row = int(np.argmin(good.reshape(len(array), -1).all(axis=1)))
        raise error(f"{why}: row {row} of y has {array[row]}")


def _rounded(u: Any, above: float, below: float, smoothing: float) -> Any:
    """The Moreau envelope of max(above · u, −below · u)."""
    inside = jnp.clip(u, -below * smoothing, above * smoothing)
    return inside**2 / (2 * smoothing) + above * jnp.maximum(u - inside, 0) + below * jnp.maximum(inside - u, 0)


def _with_kinks(name: str, kinked: Any, smooth: Any, targets: Targets, smoothing: float) -> Loss:
    if smoothing == 0:
        return Loss(name, kinked, targets, smooth=False)
    return Loss(f"{name} smoothed by {smoothing:g}", smooth, targets, 1 / smoothing)


def _smoothing(value: Any) -> float:
    if not (isinstance(value, int | float) and 0 <= value < np.inf):
        raise InputError(f"smoothing is {value!r}; give a number ≥ 0")
    return float(value)


def _positive(value: Any, name: str) -> float:
    if not (isinstance(value, int | float) and 0 < value < np.inf):
        raise InputError(f"{name} is {value!r}; give a number > 0")
    return float(value)


class BatchedLoss:
    """A loss with its derivative d and Hessian, mapped over examples: predictions are `[b, o]`, targets `[b, ...]`.

    `scalar` says that the loss itself sees one number in place of a vector `[1]`.
    """

    def __init__(self, loss: Loss, scalar: bool):
        def single(prediction: Any, target: Any) -> Any:
            return loss.function(prediction[0] if scalar else prediction, target)

        self.single = single
        self.value = jax.vmap(single)
        derivative = jax.grad(single) if loss.derivative is None else loss.derivative
        self.derivative = jax.vmap(derivative)
        self.hessian = jax.vmap(jax.jacfwd(derivative))


def check_callable(loss: Loss, scalar: bool, target: np.ndarray, outputs: int) -> None:
    """Raises InputError when the user's function cannot be called on an example, or does not return one number."""
    shapes = f"a prediction of {outputs} output{'s' if outputs > 1 else ''} and a target of shape {target.shape[1:]}"
    with jax.enable_x64(True):
        prediction = jax.ShapeDtypeStruct((outputs,), np.float64)
        try:
            found = jax.eval_shape(BatchedLoss(loss, scalar).single, prediction, jnp.asarray(target[0]))
        except Exception as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
            raise InputError(
                f"cost {loss.name} could not be called on {shapes}: {type(error).__name__}: {first}"
            ) from error
    if getattr(found, "shape", None) != ():
        shape = getattr(found, "shape", found)
        raise InputError(f"cost {loss.name} returned shape {shape} for {shapes}; one number is needed: sum it")
