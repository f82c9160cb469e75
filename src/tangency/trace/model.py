"""The user's model as two pure functions: `key -> parameters` and `(parameters, one example) -> output`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp

from ..errors import InputError

Model: TypeAlias = Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]]
"""`key -> equinox.Module`, `key -> flax.nnx.Module`, or a pair `(init, apply)` of functions."""


@dataclass(frozen=True)
class Initialised:
    """What initialisation leaves: parameters, a mask of those that may train, state that never does, and the call.

    `call(parameters, state, x)` is the model's output; `still` is the same without random draws.
    """

    parameters: Any
    trains: Any
    state: Any
    call: Callable[[Any, Any, Any], Any]
    still: Callable[[Any, Any, Any], Any]
    batched: bool = False


@dataclass(frozen=True)
class ModelFunctions:
    """`initialise(key, x)` builds the model; `batched` says whether it is called on a batch."""

    initialise: Callable[[Any, Any], Initialised]
    batched: bool | None
    name: str


def open_model(model: Model, batched: bool | None, training: bool = False) -> ModelFunctions:
    """Recognise the three ways in which a random network is given; `training` leaves dropout on.

    Raises:
        InputError: it is none of them; the message says what to pass.
    """
    if isinstance(model, tuple | list):
        if len(model) != 2 or not all(callable(part) for part in model):
            raise InputError("model: a pair must be (init, apply), two functions; see tangency.limit")
        init, apply = model
        return ModelFunctions(_pair(init, apply), bool(batched), _name(apply))
    if isinstance(model, eqx.Module) or is_nnx(model):
        raise InputError(
            f"model: got a network that is already initialised ({type(model).__name__}); the limit is that of a random "
            "one, so pass a function of a key, such as lambda key: MyNetwork(..., key=key)"
        )
    if not callable(model):
        raise InputError(
            f"model: expected a function key -> network or a pair (init, apply), got {type(model).__name__}"
        )

    def initialise(key: Any, x: Any) -> Initialised:
        network = model(key)
        if isinstance(network, eqx.Module):
            return _equinox(network, training)
        if is_nnx(network):
            return _nnx(network, training)
        raise InputError(
            f"model: the function returned {type(network).__name__}; expected an equinox.Module or a flax.nnx.Module "
            "(plain functions go in as a pair (init, apply))"
        )

    return ModelFunctions(initialise, batched, _name(model))


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _equinox(network: eqx.Module, training: bool) -> Initialised:
    """Called on one example: in inference mode, or in training with a key if it takes one."""
    if not callable(network):
        raise InputError(f"model: {type(network).__name__} has no __call__(self, x)")
    network = eqx.nn.inference_mode(network, value=not training)
    arrays, static = eqx.partition(network, eqx.is_array)
    trains = jax.tree.map(eqx.is_inexact_array, arrays)
    keyed = training and "key" in inspect.signature(type(network).__call__).parameters

    def call(arrays: Any, state: tuple[Any, ...], x: Any) -> Any:
        network = eqx.combine(arrays, static)
        return network(x, key=state[0]) if state else network(x)

    def still(arrays: Any, _: Any, x: Any) -> Any:
        return eqx.nn.inference_mode(eqx.combine(arrays, static))(x)

    # As a part of the state the key is a variable: a constant one would fold into constant masks.
    return Initialised(arrays, trains, (jax.random.key(0),) if keyed else (), call, still)


def is_nnx(network: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(network, nnx.Module)


def _nnx(network: Any, training: bool) -> Initialised:
    """Called on a batch, in inference mode or in training; variables that are not `nnx.Param` do not train."""
    nnx = sys.modules["flax.nnx"]
    if training:
        network.train()
    else:
        network.eval()
    graph, parameters, rest = nnx.split(network, nnx.Param, ...)
    pure, state = nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)

    def merged(arrays: Any, state: Any) -> Any:
        nnx.replace_by_pure_dict(parameters, arrays)
        nnx.replace_by_pure_dict(rest, state)
        return nnx.merge(graph, parameters, rest)

    def call(arrays: Any, state: Any, x: Any) -> Any:
        return merged(arrays, state)(x)

    def still(arrays: Any, state: Any, x: Any) -> Any:
        network = merged(arrays, state)
        network.set_attributes(deterministic=True, raise_if_not_found=False)
        return network(x)

    return Initialised(pure, jax.tree.map(_is_inexact, pure), state, call, still, batched=True)


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _pair(init: Callable[..., Any], apply: Callable[..., Any]) -> Callable[[Any, Any], Initialised]:
    takes_input = _takes_input(init)

    def initialise(key: Any, x: Any) -> Initialised:
        arrays = init(key, x) if takes_input else init(key)
        trains = jax.tree.map(lambda leaf: _is_inexact(jnp.asarray(leaf)), arrays)
        if isinstance(arrays, dict) and "params" in arrays:
            trains = {
                name: mask if name == "params" else jax.tree.map(lambda _: False, mask) for name, mask in trains.items()
            }

        def call(arrays: Any, _: Any, x: Any) -> Any:
            return apply(arrays, x)

        return Initialised(jax.tree.map(jnp.asarray, arrays), trains, (), call, call)

    return initialise


def _takes_input(init: Callable[..., Any]) -> bool:
    """Flax Linen and Haiku initialise on an example; a plain `init(key)` does not."""
    try:
        parameters = list(inspect.signature(init).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(required) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
