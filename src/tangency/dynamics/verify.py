"""The equivalence of training and kernel methods, measured on the user's own network and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..empirical.kernel import EmpiricalKernel
from ..empirical.model import Network, opened
from ..errors import InputError
from ..gram import check_examples, check_targets, gram
from ..limit import limit
from ..memory import factorisation_bytes, require
from ..types import Inputs, Progress
from .matrix_training import MatrixTraining
from .training import Training
from .verification import (
    EMPIRICAL_DESCENT,
    EMPIRICAL_FLOW,
    LIMIT_DESCENT,
    LIMIT_FLOW,
    LINEARISED,
    Run,
    Verification,
)

_RECORDED = 40
_DRIFT_POINTS = 8
_KERNELS = 4
"""Units of progress for the kernels of one network; a recorded step is one."""


def verify(
    make_model: Callable[[int], Any],
    x: Inputs,
    y: np.ndarray,
    *,
    x_test: Inputs | None = None,
    widths: Sequence[int] = (64, 256, 1024),
    seeds: int | Sequence[int] = 3,
    learning_rate: float | None = None,
    steps: int = 200,
    band: float = 0.1,
    batched: bool | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Trains networks of several widths and compares them with what their kernels predict.

    For each width and seed: the NTK at initialisation against the limit; the network trained by gradient descent
    (optax) from its own initial outputs f_0; beside it, from the same f_0, its linearisation trained likewise, kernel
    descent and gradient flow with its own NTK, and both with the limit NTK; and how far the NTK moves.

    The loss is C(f) = 1/(2N) Σ_i |f(x_i) − y_i|². A parameter's learning rate is η times its variance at
    initialisation (η where that is zero), the NTK parameterisation, in which finite networks converge to the limit.

    Args:
        make_model: `width -> model`, with a model as `tangency.limit` takes it; for example `lambda width: lambda key:
            eqx.nn.MLP(64, 10, width, 2, key=key)`. All hidden layers should grow with the width.
        x, y: N examples, `[N, ...]`, and targets `[N]` or `[N, o]`. Training runs in the precision of x, float32 or
            float64; matrices are in float64.
        x_test: M other examples to follow.
        widths: which to try, at least one.
        seeds: how many, or which; network s has the key `jax.random.key(s)`.
        learning_rate: η; by default a quarter of 2N/λ_max of the limit NTK at the largest width, up to which descent
            is stable: narrow networks, whose NTK strays from the limit, need the room.
        steps: of gradient descent.
        band: the distance from the prediction, as a share of the initial error, that counts as agreement.
        batched: as for `tangency.limit`.
        memory: bytes that may be used (default: the physical memory available).
        progress: follows networks and their steps.

    A network whose loss is not finite, or grows ten-thousandfold, has diverged: its run says at which step, and the
    others go on.

    Raises:
        InputError, NonFiniteError: an argument is not what it must be. UnsupportedModelError: the network has no
        limit. MemoryLimitError: the matrices do not fit; take fewer examples.

    References:
        Jacot, Gabriel, Hongler 2018 (arXiv:1806.07572); Lee et al. 2019 (arXiv:1902.06720); Chizat, Oyallon, Bach 2019
        (arXiv:1812.07956) for lazy training.
    """
    task = _task(x, y, x_test, widths, seeds, learning_rate, steps, band, memory, batched)
    models = [_model(make_model, width) for width in task.widths]
    limits = _limits(models, task)
    stable = limits[-1].training.bound
    if task.rate is None:
        task = replace(task, rate=stable / 4)
    count = _Count(progress, len(models) * len(task.seeds) * (len(task.recorded) + _KERNELS))
    runs = tuple(
        _Width(task, width, model, found.training, found.ntk, count).runs()
        for width, model, found in zip(task.widths, models, limits, strict=True)
    )
    assert task.rate is not None
    return Verification(
        task.widths,
        task.seeds,
        task.recorded,
        task.rate,
        stable,
        task.y,
        runs,
        float(band),
        limits[-1].remarks,
        limits[-1].recursion,
        limits[-1].graph,
        limits[-1].latex,
    )


@dataclass(frozen=True)
class _Task:
    """Checked arguments; `everything` are the training examples and the test examples after them."""

    everything: np.ndarray
    y: np.ndarray
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    recorded: np.ndarray
    rate: float | None
    memory: int | None
    batched: bool | None

    @property
    def x(self) -> np.ndarray:
        return self.everything[: len(self.y)]


@dataclass
class _Count:
    progress: Progress | None
    total: int
    done: int = field(default=0)

    def __call__(self, units: int = 1) -> None:
        self.done += units
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _task(
    x: Any, y: Any, x_test: Any, widths: Any, seeds: Any, rate: Any, steps: Any, band: Any, memory: Any, batched: Any
) -> _Task:
    examples = check_examples(x, "x")
    targets = check_targets(y, len(examples))
    everything = examples
    if x_test is not None:
        test = check_examples(x_test, "x_test")
        if test.shape[1:] != examples.shape[1:]:
            raise InputError(f"an example of x_test has shape {test.shape[1:]}, one of x {examples.shape[1:]}")
        everything = np.concatenate([examples, test])
    chosen = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    found = _integers(chosen, "seeds", 0)
    sizes = tuple(sorted(_integers(widths, "widths", 1)))
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise InputError(f"steps is {steps!r}; give an integer ≥ 1")
    for value, name in ((rate, "learning_rate"), (band, "band")):
        if value is not None and not (isinstance(value, int | float | np.floating) and 0 < value < np.inf):
            raise InputError(f"{name} is {value!r}; give a number > 0")
    recorded = np.unique(np.append(0, np.geomspace(1, steps, min(_RECORDED, steps)).round().astype(int)))
    single = getattr(x, "dtype", None) == np.float32
    outputs = targets.reshape(len(targets), -1)
    return _Task(
        everything.astype(np.float32 if single else np.float64),
        outputs,
        sizes,
        found,
        recorded,
        None if rate is None else float(rate),
        memory,
        batched,
    )


def _integers(values: Any, name: str, least: int) -> tuple[int, ...]:
    found = tuple(values) if isinstance(values, Sequence | range | np.ndarray) and not isinstance(values, str) else ()
    good = all(isinstance(v, int | np.integer) and not isinstance(v, bool) and v >= least for v in found)
    if not found or not good or len(set(found)) < len(found):
        raise InputError(f"{name} is {values!r}; give distinct integers ≥ {least}, at least one")
    return tuple(int(value) for value in found)


def _model(make_model: Any, width: int) -> Any:
    if not callable(make_model):
        raise InputError("make_model: give a function width -> model, with a model as tangency.limit takes it")
    model = make_model(width)
    if not (callable(model) or isinstance(model, tuple | list)) or hasattr(model, "__jax_array__"):
        raise InputError(
            f"make_model({width}) returned {type(model).__name__}; give a function width -> model, such as "
            "lambda width: lambda key: MyNetwork(width, key=key)"
        )
    return model


@dataclass(frozen=True)
class _Limit:
    """The limit NTK, `[N, N]`, as the width grows, with the variances of a network of one width."""

    training: MatrixTraining
    ntk: np.ndarray
    remarks: tuple[str, ...]
    recursion: str
    graph: str
    latex: str


def _limits(models: Sequence[Any], task: _Task) -> list[_Limit]:
    """One for each width; where the recursion is the same one, so are the matrices."""
    x = task.everything.astype(np.float64)
    n = len(task.y)
    found: dict[str, _Limit] = {}
    result = []
    for model in models:
        kernel = limit(model, batched=task.batched, input_shape=x.shape[1:])
        latex = kernel.explain(format="latex")
        # A bias whose variance shrinks with the fan-in, say, gives each width a recursion of its own.
        if latex not in found:
            matrix = gram(kernel, x, memory=task.memory)
            training = MatrixTraining(matrix[:n, :n], matrix[n:, :n])
            found[latex] = _Limit(training, matrix[:n, :n], tuple(map(str, kernel.graph().notes)), "", "", latex)
        result.append(replace(found[latex], recursion=kernel.explain(), graph=str(kernel)))
    return result


class _Width:
    """All networks of one width; what is compiled for the first serves the others."""

    def __init__(self, task: _Task, width: int, model: Any, prediction: MatrixTraining, ntk: np.ndarray, count: _Count):
        self.task, self.width, self.model, self.limit, self.ntk, self.count = task, width, model, prediction, ntk, count
        self.trainers: tuple[Training, Training] | None = None
        self.kernels: tuple[EmpiricalKernel, EmpiricalKernel] | None = None

    def runs(self) -> tuple[Run, ...]:
        networks = self._networks()
        with jax.enable_x64(self.task.everything.dtype == np.float64):
            return tuple(self._run(seed, network) for seed, network in networks)

    def _networks(self) -> list[tuple[int, Network]]:
        """Drawn in the caller's own precision, as `make_model(width)(key)` is outside."""
        example = jnp.asarray(self.task.x[0])

        def network(seed: int) -> Network:
            key, batched = jax.random.key(seed), self.task.batched
            return opened(self.model, None, key=key, batched=batched, scale="init", example=example)

        return [(seed, network(seed)) for seed in self.task.seeds]

    def _run(self, seed: int, network: Network) -> Run:
        task, n = self.task, len(self.task.y)
        assert task.rate is not None
        mean, full = self._kernels(network)
        before = np.asarray(mean(task.x), dtype=np.float64)
        block = np.asarray(full(task.everything, task.x), dtype=np.float64)
        if block.shape[2] != task.y.shape[1]:
            raise InputError(f"y has {task.y.shape[1]} outputs for each example, the network has {block.shape[2]}")
        own = MatrixTraining((block[:n] + block[:n].transpose(1, 0, 3, 2)) / 2, block[n:])
        self.count(_KERNELS)
        left = self.count.done + len(task.recorded)
        measured = task.recorded[np.linspace(0, len(task.recorded) - 1, _DRIFT_POINTS).round().astype(int)]
        drift = np.full(len(task.recorded), np.nan)

        def after(step: int, parameters: tuple[Any, ...]) -> None:
            if step in measured:
                moved = mean.at(replace(network, parameters=parameters))(task.x)
                drift[task.recorded == step] = _relative(np.asarray(moved), before)
            self.count()

        finite, linear = self._trainers(network)
        trained = finite(network, task.recorded, after)
        line = linear(network, task.recorded, lambda *_: None)
        self.count(left - self.count.done)
        start, steps = trained.outputs[0], task.recorded.astype(np.float64)
        predicted = {
            LINEARISED: line.outputs,
            EMPIRICAL_DESCENT: own.descent(start, task.y, task.rate, steps),
            EMPIRICAL_FLOW: own.flow(start, task.y, task.rate, steps),
            LIMIT_DESCENT: self.limit.descent(start, task.y, task.rate, steps),
            LIMIT_FLOW: self.limit.flow(start, task.y, task.rate, steps),
        }
        stable = {"empirical": own.bound, "limit": self.limit.bound}
        error = _relative(before, self.ntk)
        return Run(self.width, seed, trained.outputs, predicted, error, drift, stable, trained.diverged_at)

    def _kernels(self, network: Network) -> tuple[EmpiricalKernel, EmpiricalKernel]:
        """Θ averaged over outputs, and `[n, m, o, o]`."""
        task, outputs = self.task, self.task.y.shape[1]
        if self.kernels is None:
            n, rows = len(task.y), len(task.everything)
            require(
                8 * 3 * rows * n * outputs**2 + factorisation_bytes(n * outputs),
                task.memory,
                f"the NTK of {rows} × {n} examples with {outputs} outputs, and its eigenvectors,",
                "take fewer examples",
            )
            self.kernels = (
                EmpiricalKernel(lambda _: network, "mean", "auto", task.memory),
                EmpiricalKernel(lambda _: network, "full", "auto", task.memory),
            )
            return self.kernels
        return self.kernels[0].at(network), self.kernels[1].at(network)

    def _trainers(self, network: Network) -> tuple[Training, Training]:
        if self.trainers is None:
            task = self.task
            assert task.rate is not None
            arguments = (network, task.everything, task.y.astype(task.everything.dtype), task.rate)
            self.trainers = Training(*arguments), Training(*arguments, linearised=True)
        return self.trainers


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    norm = float(np.linalg.norm(expected))
    distance = float(np.linalg.norm(np.asarray(found, dtype=np.float64) - expected))
    return distance / norm if norm > 0 else float("nan")
