"""From the user's model to its limit graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ..errors import InputError, TangencyError, UnsupportedModelError
from ..graph.graph import Graph
from ..graph.known import Constant, Input, Known
from ..graph.sampling import QuasiMonteCarlo
from ..graph.signal import ParameterStatistics, Signal
from . import contraction as contraction
from . import lookup as lookup
from . import loops as loops
from . import maxima as maxima
from .initialisers import InitialiserStatistics, UnresolvedInitialiser, initialiser_statistics
from .interpreter import Interpreter, live_inputs
from .model import Initialised, ModelFunctions
from .notes import notes_on
from .values import Opaque, ParameterView, Value

VARIANCE = "variance"
"""The default learning rate of a parameter: its variance at initialisation."""


@dataclass(frozen=True)
class Settings:
    """How parameters train: see `tangency.limit` for the meaning of each."""

    trainable: Any = True
    learning_rate: Any = None
    init_stats: Mapping[str, tuple[float, float]] | None = None
    strict: bool = False
    sampling: QuasiMonteCarlo | None = None


@dataclass(frozen=True)
class _Traced:
    initialise: jex.ClosedJaxpr
    forward: jex.ClosedJaxpr
    names: tuple[str, ...]
    trains: tuple[bool, ...]
    rates: tuple[float | None, ...]


def derive(
    functions: ModelFunctions, input_shape: Sequence[int], settings: Settings, *, integers: bool = False
) -> Graph:
    """Trace the model on one example of `input_shape` (of `integers`, such as tokens) and derive its limit graph.

    Raises:
        InputError: the model cannot be called on such an example, or a setting does not fit it.
        UnsupportedModelError: some operation or parameter has no infinite-width rule.
    """
    shape = tuple(int(length) for length in input_shape)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        traced = _trace(functions, shape, settings, jnp.int32 if integers else jnp.float64)
        _check_names(settings, traced.names)
        statistics = initialiser_statistics(traced.initialise)
        live = live_inputs(traced.forward.jaxpr)
        _refuse_reused_draws(traced, statistics, live)
        arguments = [_argument(traced, i, statistics[i], settings, live[i]) for i in range(len(traced.names))]
        interpreter = Interpreter(numerical=settings.sampling is not None)
        output = _check_output(interpreter.run(traced.forward, [*arguments, Input(shape)])[0])
        interpreter.check_averages(output)
    graph = Graph(output, shape, name=functions.name, integers=integers, sampling=settings.sampling)
    interpreter.check_pieces(graph.leaves)
    parameters = [a.parameter for a in arguments if isinstance(a, ParameterView)]
    used = {root for leaf in graph.leaves for root in leaf.roots}
    unused = tuple(p for p in parameters if p not in used and p.learning_rate != 0.0)
    notes = notes_on(graph, unused)
    if settings.strict and notes:
        raise UnsupportedModelError("strict=True", reason=notes[0], advice="Change the model or drop strict=True")
    return replace(graph, unused=unused, notes=notes)


def _trace(functions: ModelFunctions, shape: tuple[int, ...], settings: Settings, dtype: Any) -> _Traced:
    key = jax.random.key(0)
    captured: list[Initialised] = []

    def initialise(key: Any) -> list[Any]:
        example = jnp.zeros(shape, dtype)
        captured.append(functions.initialise(key, example[None] if functions.batched else example))
        return jax.tree.leaves((captured[-1].parameters, captured[-1].state))

    initial = _call_user(functions, shape, "be initialised", lambda: jax.make_jaxpr(initialise)(key))
    made = captured[-1]
    batched = made.batched if functions.batched is None else functions.batched
    structure = jax.tree.structure((made.parameters, made.state))

    def forward(leaves: list[Any], x: Any) -> Any:
        parameters, state = jax.tree.unflatten(structure, leaves)
        return made.call(parameters, state, x[None] if batched else x)

    avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in initial.out_avals]
    jaxpr = _call_user(functions, shape, "be called", lambda: _forward_program(forward, avals, shape, dtype))
    dtype = jaxpr.in_avals[-1].dtype
    if len(jaxpr.out_avals) != 1 or not jnp.issubdtype(jaxpr.out_avals[0].dtype, jnp.floating):
        raise InputError(
            f"model {functions.name}: expected one array of real numbers as output, got "
            f"{[str(aval) for aval in jaxpr.out_avals]}"
        )
    if batched:
        # Positive numbers suit variances and scales; mixed signs keep a ReLU from hiding a difference.
        for spread in (0.1, 1.0):
            arrays = jax.tree.unflatten(structure, [_sample(aval, spread) for aval in initial.out_avals])
            _call_user(
                functions, shape, "be called", partial(_refuse_mixed_batch, partial(made.still, *arrays), shape, dtype)
            )
    trains, rates = _training(made, settings)
    paths = [path for tree in (made.parameters, made.state) for path, _ in jax.tree.leaves_with_path(tree)]
    return _Traced(initial, jaxpr, tuple(map(parameter_name, paths)), trains, rates)


def _forward_program(forward: Any, avals: list[Any], shape: tuple[int, ...], dtype: Any) -> jex.ClosedJaxpr:
    """The forward pass on float64 examples, in which its literals keep their digits, or on float32 ones.

    Some loops do not take the former, where their state is float32.
    """
    try:
        return jax.make_jaxpr(forward)(avals, jax.ShapeDtypeStruct(shape, dtype))
    except TypeError as error:
        if dtype != jnp.float64:
            raise
        try:
            return jax.make_jaxpr(forward)(avals, jax.ShapeDtypeStruct(shape, jnp.float32))
        except TangencyError:
            raise
        except Exception:
            # The model's own error, where all is float32, and not one about mixed precisions.
            single = [jax.ShapeDtypeStruct(a.shape, jnp.float32 if a.dtype == jnp.float64 else a.dtype) for a in avals]
            with jax.enable_x64(False):
                jax.make_jaxpr(forward)(single, jax.ShapeDtypeStruct(shape, jnp.float32))
            raise error from None


def _sample(aval: Any, spread: float) -> Any:
    """Some values for one array of the model."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.extended):
        return jax.random.split(jax.random.key(0), max(1, prod(aval.shape)))[: prod(aval.shape)].reshape(aval.shape)
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        return jnp.zeros(aval.shape, aval.dtype)
    return jnp.asarray(0.5 + spread * np.random.default_rng(0).standard_normal(aval.shape), aval.dtype)


def _refuse_mixed_batch(call: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Compare batches of one and two: a batch of one cannot show whether examples meet, as in BatchNorm's training."""
    rng = np.random.default_rng(1)
    integers = jnp.issubdtype(dtype, jnp.integer)
    x = jnp.asarray(rng.integers(0, 2, (2, *shape)) if integers else rng.standard_normal((2, *shape)), dtype)
    alone = [np.asarray(call(one)) for one in (x[:1], x[1:])]
    together = np.asarray(call(x))
    if alone[0].shape[:1] != (1,) or together.shape != (2, *alone[0].shape[1:]):
        raise UnsupportedModelError(
            "the batch axis",
            reason=f"one example in a batch gives an output of shape {alone[0].shape}, two give {together.shape}; the "
            "first axis should be that of the examples",
            advice="Count the model's axes from that of the examples, x.mean((1, 2)), or from the last one",
        )
    if not np.allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise UnsupportedModelError(
            "the batch axis",
            reason="the output for one example depends on the others in the batch, so there is no kernel on pairs",
            advice="Take averages over features, not over the batch; use BatchNorm with its running averages",
        )


def _call_user(functions: ModelFunctions, shape: tuple[int, ...], what: str, run: Any) -> Any:
    try:
        return run()
    except TangencyError:
        raise
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise InputError(
            f"model {functions.name}: could not {what} on an example of shape {shape}: {type(error).__name__}: {first}"
        ) from error


def parameter_name(path: Any) -> str:
    parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return ".".join(part.strip(".[]'\"") for part in parts) or "parameters"


def _training(made: Initialised, settings: Settings) -> tuple[tuple[bool, ...], tuple[float | None, ...]]:
    own = jax.tree.leaves(made.trains)

    def spread(prefix: Any, name: str) -> list[Any]:
        if prefix is None:
            return [None] * len(own)
        try:
            return jax.tree.leaves(jax.tree.broadcast(prefix, made.parameters))
        except ValueError as error:
            raise InputError(f"{name}: not a prefix of the model's parameters: {str(error).splitlines()[0]}") from error

    chosen = spread(settings.trainable, "trainable")
    rates = spread(settings.learning_rate, "learning_rate")
    still = [False] * len(jax.tree.leaves(made.state))
    for value in chosen:
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"trainable: expected True or False for each parameter, got {_shown(value)}")
    trains = [bool(a) and bool(b) for a, b in zip(chosen, own, strict=True)] + still
    return tuple(trains), tuple(_rate(rate) for rate in [*rates, *still])


def _rate(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and value == VARIANCE):
        return None
    rate = _number(value)
    if rate is None or rate < 0:
        raise InputError(f"learning_rate: expected numbers of at least 0, or {VARIANCE!r}, got {_shown(value)}")
    return rate


def _shown(value: Any) -> str:
    return f"an array of shape {value.shape}" if getattr(value, "shape", ()) else repr(value)


def _number(value: Any) -> float | None:
    """A finite number, or None if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _check_names(settings: Settings, names: Sequence[str]) -> None:
    for name, given in (settings.init_stats or {}).items():
        if name not in names:
            raise InputError(f"init_stats: no parameter is called '{name}'; there are {', '.join(names)}")
        numbers = [_number(v) for v in given] if isinstance(given, tuple | list) else []
        if len(numbers) != 2 or None in numbers or numbers[1] < 0:  # pyright: ignore[reportOptionalOperand]
            raise InputError(f"init_stats: '{name}' needs (mean, variance), variance at least 0, got {_shown(given)}")


def _argument(
    traced: _Traced, index: int, found: InitialiserStatistics | UnresolvedInitialiser, settings: Settings, live: bool
) -> Value:
    name, aval = traced.names[index], traced.initialise.out_avals[index]
    given = (settings.init_stats or {}).get(name)
    if jnp.issubdtype(aval.dtype, jax.dtypes.extended):
        return Opaque("a random key")
    if given is not None:
        found = InitialiserStatistics(float(given[0]), float(given[1]), "normal", None)
    if isinstance(found, UnresolvedInitialiser):
        if live:
            raise UnsupportedModelError(
                f"the initialiser of {name}",
                reason=found.reason,
                advice=f"Give its mean and variance: init_stats={{'{name}': (mean, variance)}}",
                source=found.source,
            )
        found = InitialiserStatistics(0.0, 0.0, "constant", None)
    mean = np.broadcast_to(np.asarray(found.mean), aval.shape)
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        return Constant.of(mean.astype(aval.dtype)) if found.variance == 0 else Opaque("integers drawn at random")
    trains, rate = traced.trains[index], traced.rates[index]
    if found.variance == 0 and not trains:
        return Constant.of(mean.astype(np.float64))
    if not trains:
        rate = 0.0
    elif rate is None:
        rate = found.variance or None
    number = float(mean.flat[0]) if mean.size and np.all(mean == mean.flat[0]) else float("nan")
    parameter = ParameterStatistics(name, aval.shape, number, float(found.variance), rate, found.distribution)
    axes = tuple(frozenset((axis,)) if length != 1 else frozenset[int]() for axis, length in enumerate(aval.shape))
    return ParameterView(parameter, aval.shape, axes, mean)


def _refuse_reused_draws(traced: _Traced, statistics: Sequence[Any], live: Sequence[bool]) -> None:
    owners: dict[Any, str] = {}
    for name, found, used in zip(traced.names, statistics, live, strict=False):
        draw = getattr(found, "draw", None)
        if draw is None or not used:
            continue
        if draw in owners:
            raise UnsupportedModelError(
                f"the initialiser of {name}",
                reason=f"it holds the same random numbers as {owners[draw]}: a random key was used twice",
                advice="Split the key, one for each parameter",
            )
        owners[draw] = name


def _check_output(output: Value) -> Signal:
    if isinstance(output, Known):
        raise InputError("model: the output does not depend on any trainable or random parameter")
    if not isinstance(output, Signal):
        raise InputError("model: the output is a parameter, not a function of the input")
    if len(output.segments) > 1:
        raise UnsupportedModelError(
            "the output",
            reason="it concatenates parts with different laws, so its coordinates do not share one kernel",
            advice="Return one of the parts, or put a dense layer after the concatenation",
        )
    if any(term.varies for segment in output.segments for term in segment.terms):
        raise UnsupportedModelError(
            "the output",
            reason="it has a shift or scale that differs between coordinates, which then do not share one kernel",
            advice="Put a dense layer at the end",
        )
    return output
