"""A finite network as a function of flat lists: its trainable parameters, everything else, and one example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, TangencyError
from ..trace.derive import parameter_name
from ..trace.initialisers import UnresolvedInitialiser, initialiser_statistics
from ..trace.model import Initialised, is_nnx, open_model


@dataclass(frozen=True)
class Network:
    """`call(parameters, state, x)` is the network's output on one example, any pytree.

    `parameters` are the trainable arrays, `state` all other arrays, `rates` the learning rates of the parameters'
    entries, numbers or arrays of their shapes. A complex parameter stands in the list as its real and imaginary parts,
    of which `pairs` are the places.
    """

    name: str
    names: tuple[str, ...]
    parameters: tuple[Any, ...]
    state: Any
    rates: tuple[Any, ...]
    call: Callable[[Sequence[Any], Any, Any], Any]
    rebuild: Callable[[Sequence[Any]], Any]
    pairs: frozenset[tuple[int, int]]


def opened(
    model: Any,
    parameters: Any,
    *,
    state: Any = None,
    key: Any = None,
    batched: bool | None = None,
    trainable: Any = True,
    learning_rate: Any = None,
    scale: str | None = None,
    example: Any = None,
) -> Network:
    """The network that `tangency.empirical` was given. Raises InputError where it cannot be read."""
    made, name, statistics = _initialised(model, parameters, state, key, batched, example)
    arrays, structure = jax.tree.flatten(made.parameters)
    paths = [parameter_name(path) for path, _ in jax.tree.leaves_with_path(made.parameters)]
    own = jax.tree.leaves(made.trains)
    chosen = _spread(trainable, made.parameters, "trainable")
    for value in chosen:
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"trainable: expected True or False for each parameter, got {value!r}")
    rates = _rates(learning_rate, scale, made.parameters, statistics, paths)
    trained = [k for k in range(len(arrays)) if own[k] and chosen[k]]
    if not trained:
        raise InputError(f"trainable: no parameter of {name} trains; there are {', '.join(paths) or 'none'}")
    single = not (made.batched if batched is None else batched)
    names: list[str] = []
    leaves: list[Any] = []
    kept: list[Any] = []
    pairs: set[tuple[int, int]] = set()
    for k in trained:
        if jnp.iscomplexobj(arrays[k]):
            pairs.add((len(leaves), len(leaves) + 1))
            names += [f"{paths[k]} (real)", f"{paths[k]} (imaginary)"]
            leaves += [arrays[k].real, arrays[k].imag]
            kept += [rates[k], rates[k]]
        else:
            names.append(paths[k])
            leaves.append(arrays[k])
            kept.append(rates[k])

    def rebuild(values: Sequence[Any]) -> Any:
        filled, left = list(arrays), list(values)
        for k in trained:
            filled[k] = jax.lax.complex(left.pop(0), left.pop(0)) if jnp.iscomplexobj(arrays[k]) else left.pop(0)
        return jax.tree.unflatten(structure, filled)

    def call(values: Sequence[Any], rest: Any, x: Any) -> Any:
        frozen, own_state = rest
        filled, left = list(frozen), list(values)
        for k in trained:
            filled[k] = jax.lax.complex(left.pop(0), left.pop(0)) if jnp.iscomplexobj(arrays[k]) else left.pop(0)
        whole = jax.tree.unflatten(structure, filled)
        if single:
            return made.call(whole, own_state, x)
        return jax.tree.map(lambda leaf: leaf[0], made.call(whole, own_state, x[None]))

    frozen = [None if k in trained else array for k, array in enumerate(arrays)]
    own_state = frozen, made.state
    return Network(name, tuple(names), tuple(leaves), own_state, tuple(kept), call, rebuild, frozenset(pairs))


def _initialised(
    model: Any, parameters: Any, state: Any, key: Any, batched: bool | None, example: Any
) -> tuple[Initialised, str, Any]:
    """The model's functions, and how its parameters were drawn if that can be known."""
    if parameters is not None:
        if not callable(model):
            raise InputError(f"model: with parameters, expected a function (parameters, x), got {type(model).__name__}")
        # NumPy's arrays keep their precision for inputs in float64, which JAX would cut to float32 here.
        arrays = jax.tree.map(lambda leaf: leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf), parameters)
        trains = jax.tree.map(lambda leaf: bool(jnp.issubdtype(leaf.dtype, jnp.inexact)), arrays)

        def call(values: Any, _: Any, x: Any) -> Any:
            return model(values, x)

        return Initialised(arrays, trains, (), call, call), getattr(model, "__name__", "model"), None
    if isinstance(model, eqx.Module) and state is not None:
        return _with_state(model, state), type(model).__name__, None
    if isinstance(model, eqx.Module):
        return open_model(lambda key: model, batched).initialise(None, None), type(model).__name__, None
    if is_nnx(model):
        from flax import nnx  # The model is one of Flax's.

        own = nnx.merge(*nnx.split(model))
        return open_model(lambda key: own, batched).initialise(None, None), type(model).__name__, None
    if key is None:
        raise InputError(
            "model: expected a network, or a function (parameters, x) with its parameters, or a function "
            f"key -> network with key=; got {type(model).__name__}"
        )
    functions = open_model(model, batched)
    try:
        x = example if not functions.batched else example[None]
        made = functions.initialise(key, x)
        draws = jax.make_jaxpr(lambda key: jax.tree.leaves(functions.initialise(key, x).parameters))(jax.random.key(0))
    except TangencyError:
        raise
    except Exception as error:
        raise InputError(f"model {functions.name}: could not be initialised: {error}") from error
    return made, functions.name, draws


def _with_state(network: eqx.Module, state: Any) -> Initialised:
    """An Equinox network that is called as `network(x, state)`, in inference mode."""
    network = eqx.nn.inference_mode(network)
    arrays, static = eqx.partition(network, eqx.is_array)

    def call(values: Any, own: Any, x: Any) -> Any:
        return eqx.combine(values, static)(x, own)[0]  # pyright: ignore[reportCallIssue]

    return Initialised(arrays, jax.tree.map(eqx.is_inexact_array, arrays), state, call, call)


def _spread(prefix: Any, parameters: Any, name: str) -> list[Any]:
    try:
        return jax.tree.leaves(jax.tree.broadcast(prefix, parameters))
    except ValueError as error:
        raise InputError(f"{name}: not a prefix of the model's parameters: {str(error).splitlines()[0]}") from error


def _rates(given: Any, scale: str | None, parameters: Any, draws: Any, names: Sequence[str]) -> list[Any]:
    """For each array of parameters the learning rate of its entries: a number or an array of its shape."""
    arrays = jax.tree.leaves(parameters)
    if scale is None:
        rates = [1.0] * len(arrays) if given is None else _spread(given, parameters, "learning_rate")
        return [_rate(rate, array, name) for rate, array, name in zip(rates, arrays, names, strict=True)]
    if scale != "init":
        raise InputError(f'scale: expected None or "init", got {scale!r}')
    if given is not None:
        raise InputError("learning_rate: give it or scale, not both")
    if draws is None:
        raise InputError('scale="init" needs the initialiser: pass a function key -> network, and key=')
    rates = []
    for name, found in zip(names, initialiser_statistics(draws), strict=True):
        if isinstance(found, UnresolvedInitialiser):
            raise InputError(f'scale="init": the variance of {name} cannot be read; give learning_rate= instead')
        rates.append(float(found.variance) or 1.0)
    return rates


def _rate(rate: Any, array: Any, name: str) -> Any:
    values = np.asarray(rate, dtype=np.float64) if rate is not None else None
    if values is None or (values.shape and values.shape != array.shape):
        raise InputError(f"learning_rate of {name}: expected a number or an array of shape {array.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"learning_rate of {name}: expected finite numbers of at least 0")
    return float(values) if not values.shape else values


def precision_of(x: Any) -> AbstractContextManager[None]:
    """Float64 examples are computed in float64."""
    return jax.enable_x64(bool(x.dtype == np.float64 or jax.config.jax_enable_x64))  # pyright: ignore[reportAttributeAccessIssue]
