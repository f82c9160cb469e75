"""Gradient descent in function space, step by step."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from ..errors import DivergenceError, InputError
from ..gram import check_new_examples
from ..kernels import Kernel
from ..losses import BatchedLoss, Loss
from ..memory import require
from ..types import Inputs, Progress
from .learning_rate import check_learning_rate, curvature_at, largest_eigenvalue, learning_rate_bound
from .operator import flattened
from .problem import Problem, problem
from .rkhs import RKHSFunction

Steps: TypeAlias = int | Int[np.ndarray, " R"] | None
"""A recorded step, a vector of them (adds a leading axis R to the result), or None for the last."""

_BLOW_UP = 1e10
"""Growth of the predictions beyond their start, the targets and the first step that counts as divergence."""


def kernel_descent(
    kernel: Any,
    x: Inputs,
    y: Float[np.ndarray, "N *o"],
    *,
    learning_rate: float,
    steps: int,
    cost: Any = "squared",
    momentum: float | None = None,
    nesterov: bool = False,
    batch_size: int | None = None,
    key: Any = None,
    batches: Int[np.ndarray, "steps b"] | None = None,
    weight_decay: float = 0.0,
    decay_to: Literal["start", "zero"] = "start",
    f0: Any = None,
    outputs: int | None = None,
    record_every: int = 1,
    throw: bool = True,
    memory: int | None = None,
    progress: Progress | None = None,
) -> "KernelDescent":
    """f_{t+1} = f_t − η ∇_K C|_{f_t}, from f_0, with what optimisers add to it.

    For a model that is linear in its parameters, f = ⟨θ, φ(x)⟩, and its own kernel, this is `optax.sgd(learning_rate,
    momentum, nesterov)` on θ, conventions included: the velocity is v ← μ v + gradient, a step −η v, or −η (gradient +
    μ v) with Nesterov. State: coefficients α in f_t = c_t f_0 + Σ_i K(·, x_i) α_i, so that f_t can be evaluated
    anywhere. One step of rate η advances the time of `kernel_flow` by η.

    Args:
        kernel, cost, x, y, outputs: as for `kernel_gradient`.
        learning_rate: η > 0. With the squared loss and full batches a rate above 2 N / λ_max (with momentum μ, 1 + μ
            times that; with Nesterov (1 + μ) / (1 + 2μ) times that) is refused; elsewhere a bound that is only
            sufficient gives a `LearningRateWarning`. `learning_rate_bound` of the result holds it.
        steps: how many.
        momentum, nesterov: as in `optax.sgd`.
        batch_size, key: minibatches; each epoch is a permutation of the examples drawn from `key` (a JAX key or an
            integer), cut into N // batch_size batches, the remainder left out. The gradient is averaged over a batch.
        batches: or the order itself, indices of examples `[steps, b]`.
        weight_decay: w, added to the gradient as in `optax.add_decayed_weights` before `optax.sgd`: w θ with
            `decay_to="zero"`, which shrinks f_0 too (c_t < 1), w (θ − θ_0) with "start", which leaves it (c_t = 1)
            and descends C + w/2 ‖f − f_0‖²_K; w = ridge / N is the ridge of `kernel_flow`.
        f0: the function at step 0: a function of a batch of examples (`jax.vmap(model)`, an `RKHSFunction`), its
            values at x, or None for zero.
        record_every: how many steps lie between two recorded ones; step 0 and the last are always recorded.
        throw: whether divergence raises; else `diverged_at` of the result names the step.
        memory: bytes that the matrix and the record may take (default: the physical memory available).
        progress: follows the kernel matrix.

    Raises:
        InputError, NonFiniteError, MemoryLimitError: an argument. DivergenceError: the predictions are not finite, or
            have grown to 1e10 times what f_0, the targets and the first step are; names the step.
    """
    task = problem(kernel, cost, x, y, f0, outputs)
    n = len(task.x)
    settings = _settings(learning_rate, steps, momentum, nesterov, weight_decay, decay_to, record_every)
    order = _order(n, settings.steps, batch_size, key, batches)
    recorded = np.unique(np.append(np.arange(0, settings.steps + 1, settings.record_every), settings.steps))
    require(
        8 * (task.y.size + len(recorded) * n * task.outputs), memory, f"a record of {len(recorded)} steps",
        "raise record_every",
    )  # fmt: skip
    block = task.operator.gram(task.x, memory=memory, progress=progress)
    curvature, where = curvature_at(task, task.start.train)
    bound = np.inf
    if curvature is not None:
        bound = learning_rate_bound(
            largest_eigenvalue(task, block),
            n,
            curvature,
            momentum=settings.momentum or 0.0,
            nesterov=settings.nesterov,
            decay=settings.decay,
        )
        check_learning_rate(settings.rate, bound, task, where=where, full_batch=order is None)
    coefficients, scales, diverged = _descend(task, block, settings, order)
    if diverged is not None:
        if throw:
            raise DivergenceError(
                f"descent diverged at step {diverged} of {settings.steps} with learning_rate {settings.rate:g} (the "
                f"stability bound is {bound:.6g}): use a smaller one",
                diverged,
            )
        kept = int((recorded < diverged).sum()) or 1
        recorded, coefficients, scales = recorded[:kept], coefficients[:kept], scales[:kept]
    return KernelDescent(task, block, settings.rate, order, recorded, coefficients, scales, bound, diverged)


class KernelDescent:
    """The functions f_t of a descent, at its recorded steps. Built by `kernel_descent`.

    `steps` are the recorded ones, `[R]`, `times` η times them, `batches` the order of the examples (None for full
    batches), `learning_rate_bound` the bound that the rate was held to, `diverged_at` None or the step.
    """

    def __init__(
        self,
        task: Problem,
        block: np.ndarray,
        rate: float,
        batches: np.ndarray | None,
        steps: np.ndarray,
        coefficients: np.ndarray,
        scales: np.ndarray,
        bound: float,
        diverged_at: int | None,
    ):
        self._task, self._block, self._coefficients, self._scales = task, block, coefficients, scales
        self.learning_rate, self.batches, self.steps = rate, batches, steps
        self.learning_rate_bound, self.diverged_at = bound, diverged_at

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
    def times(self) -> Float[np.ndarray, " R"]:
        """The training times η · steps."""
        return self.learning_rate * self.steps

    def coefficients(self, step: Steps = None) -> Float[np.ndarray, "..."]:
        """α. Raises InputError where the step was not recorded."""
        return self._task.shown(self._coefficients[self._index(step)])

    def function(self, step: int | None = None) -> RKHSFunction:
        """f_t − c_t f_0, the part of f_t that training has made, as a function of the RKHS."""
        return RKHSFunction(self.kernel, self.x, self._task.shown(self._coefficients[self._one(step)]))

    def __call__(self, x: Inputs, step: Steps = None, *, f0: Any = None) -> Float[np.ndarray, "..."]:
        """f_t(x), `[n]` or `[n, o]`; `f0` are the values of f_0 at x where training knows it by values alone.

        Raises InputError on a bad x, where the step was not recorded, or where f_0 at x is not known.
        """
        x = check_new_examples(x, self.x)
        index = self._index(step)
        start = self._task.start.at(x, f0)
        values = self._task.operator.evaluate(x, self.x, self._coefficients[index])
        return self._task.shown(self._scaled(start, index) + values)

    def train(self, step: Steps = None) -> Float[np.ndarray, "..."]:
        """f_t at the training examples."""
        return self._task.shown(self._train(self._index(step)))

    def cost(self, step: Steps = None) -> Float[np.ndarray, "*R"]:
        """C(f_t), the loss averaged over the training examples, without weight decay."""
        index = self._index(step)
        values = self._train(index)
        costs = [self._task.costs(f).mean() for f in values.reshape(-1, *values.shape[-2:])]
        return np.asarray(costs).reshape(np.shape(index))

    def _train(self, index: Any) -> np.ndarray:
        learnt = self._task.operator.act(self._block, self._coefficients[index])
        return self._scaled(self._task.start.train, index) + learnt

    def _scaled(self, start: np.ndarray, index: Any) -> np.ndarray:
        return self._scales[index][..., None, None] * start

    def _one(self, step: int | None) -> int:
        if step is not None and np.ndim(step) != 0:
            raise InputError(f"step is {step!r}; give one recorded step")
        return int(self._index(step))

    def _index(self, step: Steps) -> Any:
        if step is None:
            return np.asarray(len(self.steps) - 1)
        wanted = np.asarray(step)
        if wanted.dtype.kind not in "iu" or wanted.ndim > 1:
            raise InputError(f"step is {step!r}; give an integer, a vector of them, or None for the last")
        found = np.minimum(np.searchsorted(self.steps, wanted), len(self.steps) - 1)
        missing = self.steps[found] != wanted
        if missing.any():
            first = wanted[missing][0] if wanted.ndim else wanted
            raise InputError(
                f"step {first} was not recorded (of {len(self.steps)} up to {self.steps[-1]}): set record_every"
            )
        return found


@dataclass(frozen=True)
class _Settings:
    rate: float
    steps: int
    momentum: float | None
    nesterov: bool
    decay: float
    to_zero: bool
    record_every: int


def _settings(
    rate: Any, steps: Any, momentum: Any, nesterov: Any, decay: Any, decay_to: Any, record_every: Any
) -> "_Settings":
    if not (_number(rate) and 0 < rate < np.inf):
        raise InputError(f"learning_rate is {rate!r}; give a number > 0")
    if momentum is not None and not (_number(momentum) and 0 <= momentum < 1):
        raise InputError(f"momentum is {momentum!r}; give a number in [0, 1)")
    if nesterov and momentum is None:
        raise InputError("nesterov=True needs a momentum")
    if not (_number(decay) and 0 <= decay < np.inf):
        raise InputError(f"weight_decay is {decay!r}; give a number ≥ 0")
    if decay_to not in ("start", "zero"):
        raise InputError(f'decay_to is {decay_to!r}; give "start" or "zero"')
    for value, name, least in ((steps, "steps", 0), (record_every, "record_every", 1)):
        if not _integer(value) or value < least:
            raise InputError(f"{name} is {value!r}; give an integer ≥ {least}")
    momentum = None if momentum is None else float(momentum)
    return _Settings(
        float(rate), int(steps), momentum, bool(nesterov), float(decay), decay_to == "zero", int(record_every)
    )


def _number(value: Any) -> bool:
    return (
        np.ndim(value) == 0 and isinstance(value, int | float | np.number | jax.Array) and not isinstance(value, bool)
    )


def _integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _order(n: int, steps: int, batch_size: Any, key: Any, batches: Any) -> np.ndarray | None:
    """The examples of each step, `[steps, b]`; None for full batches."""
    if batches is not None:
        if batch_size is not None or key is not None:
            raise InputError("batches is given, and batch_size or key too; give one of them")
        order = np.asarray(batches)
        if order.dtype.kind not in "iu" or order.ndim != 2 or len(order) != steps or order.shape[1] == 0:
            raise InputError(f"batches has shape {order.shape} and dtype {order.dtype}; give integers [{steps}, b]")
        if order.size and not (order.min() >= 0 and order.max() < n):
            raise InputError(f"batches holds {order.min()} to {order.max()}; the examples are 0 to {n - 1}")
        return order.astype(np.int64)
    if batch_size is None:
        if key is not None:
            raise InputError("key is given, but full batches draw nothing; give batch_size too")
        return None
    if not _integer(batch_size) or not 1 <= batch_size <= n:
        raise InputError(f"batch_size is {batch_size!r}; give an integer from 1 to {n}")
    if key is None:
        raise InputError("batch_size is given without a key; give a JAX key or an integer")
    if _integer(key):
        key = jax.random.key(int(key))
    each = n // batch_size
    keys = jax.random.split(key, max(1, -(-steps // each)))
    epochs = np.asarray(jax.vmap(lambda key: jax.random.permutation(key, n))(keys))
    return epochs[:, : each * batch_size].reshape(-1, batch_size)[:steps].astype(np.int64)


def _descend(
    task: Problem, block: np.ndarray, settings: "_Settings", order: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Coefficients `[R, N, o]` and scales of f_0 `[R]` at the recorded steps, and the step of divergence."""
    n, outputs = len(task.x), task.outputs
    matrix = flattened(block) if block.ndim == 4 else block
    first = settings.rate / n * task.operator.act(block, task.derivatives(task.start.train))
    targets = np.abs(task.y).max() if task.loss.targets == "real" else 0.0
    limit = _BLOW_UP * max(np.abs(task.start.train).max(), np.abs(first).max(), targets)
    with jax.enable_x64(True):
        coefficients, scales, diverged = _scanned(
            jnp.asarray(matrix),
            None if task.operator.coupling is None else jnp.asarray(task.operator.coupling),
            task.start.train,
            jnp.asarray(task.y),
            None if order is None else jnp.asarray(order),
            settings.rate,
            settings.decay,
            limit,
            loss=task.loss,
            scalar=task.scalar,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            to_zero=settings.to_zero,
            steps=settings.steps,
            record_every=settings.record_every,
        )
        found = int(diverged)
    start = np.zeros((1, n, outputs))
    return (
        np.concatenate([start, np.asarray(coefficients)]),
        np.concatenate([np.ones(1), np.asarray(scales)]),
        None if found < 0 else found,
    )


@partial(
    jax.jit, static_argnames=("loss", "scalar", "momentum", "nesterov", "to_zero", "steps", "record_every")
)  # fmt: skip
def _scanned(
    matrix: Any,
    coupling: Any,
    start: Any,
    targets: Any,
    order: Any,
    rate: Any,
    decay: Any,
    limit: Any,
    *,
    loss: Loss,
    scalar: bool,
    momentum: float | None,
    nesterov: bool,
    to_zero: bool,
    steps: int,
    record_every: int,
) -> tuple[Any, Any, Any]:
    """α and c are parameters of a linear model, so that optax's own update acts on them as it would on θ."""
    n, outputs = start.shape
    optimiser = optax.sgd(rate, momentum, nesterov)
    derivative = BatchedLoss(loss, scalar).derivative

    def predict(rows: Any, alpha: Any, scale: Any) -> Any:
        if len(matrix) == n:
            learnt = matrix[rows] @ alpha
            learnt = learnt if coupling is None else learnt @ coupling
        else:
            flat = matrix.reshape(n, outputs, n * outputs)[rows].reshape(-1, n * outputs) @ alpha.reshape(-1)
            learnt = flat.reshape(-1, outputs)
        return scale * start[rows] + learnt

    def stable(f: Any) -> Any:
        return jnp.all(jnp.abs(f) <= limit)

    def step(state: Any, batch: Any) -> tuple[Any, None]:
        (alpha, scale), memory, number, diverged = state
        rows = slice(None) if batch is None else batch
        f = predict(rows, alpha, scale)
        d = derivative(f, targets[rows]) / len(f)
        gradient = (jnp.zeros_like(alpha).at[rows].add(d) + decay * alpha, decay * scale if to_zero else 0.0 * scale)
        update, memory = optimiser.update(gradient, memory)
        diverged = jnp.where((diverged < 0) & ~stable(f), number, diverged)
        return (optax.apply_updates((alpha, scale), update), memory, number + 1, diverged), None

    def several(state: Any, batches: Any, length: int) -> tuple[Any, Any]:
        state, _ = jax.lax.scan(step, state, batches, length=length)
        return state, state[0]

    parameters = (jnp.zeros_like(start), jnp.ones(()))
    state = (parameters, optimiser.init(parameters), jnp.asarray(0), jnp.asarray(-1))
    whole, rest = divmod(steps, record_every)
    batches = None if order is None else order[: whole * record_every].reshape(whole, record_every, order.shape[1])
    state, (alphas, scales) = jax.lax.scan(lambda s, b: several(s, b, record_every), state, batches, length=whole)
    if rest:
        state, (alpha, scale) = several(state, None if order is None else order[whole * record_every :], rest)
        alphas, scales = jnp.concatenate([alphas, alpha[None]]), jnp.concatenate([scales, scale[None]])
    (alpha, scale), _, number, diverged = state
    diverged = jnp.where((diverged < 0) & ~stable(predict(slice(None), alpha, scale)), number, diverged)
    return alphas, scales, diverged
