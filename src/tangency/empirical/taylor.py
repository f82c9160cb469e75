"""`tangency.linearize` and `tangency.taylor`: a network's Taylor polynomial in its parameters, which trains like it."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..trace.model import is_nnx

MAX_ORDER = 6


def linearize(model: Any, parameters: Any = None) -> Any:
    """The network linear in its parameters, f(x; θ_0) + J(x)(θ − θ_0), with θ_0 those that it has now.

    It trains as the original does, by the same optimiser, and starts from θ = θ_0. Gradient descent on it is gradient
    descent with the kernel `tangency.empirical(model)`, and what `tangency.kernel_flow` solves in closed form.

    Args:
        model: an `equinox.Module`, a `flax.nnx.Module`, or a function `(parameters, ...)` with its `parameters`.
        parameters: θ_0, a pytree of arrays, if the model is a plain function.

    Returns:
        What was given, linearised. All arguments of a call are handed on, so it is called as the original is. Of an
        Equinox module: a module whose trainable arrays are those of its part `network`, θ; `reference` is the network
        at θ_0, kept as integers, so give the optimiser `eqx.filter(module, eqx.is_inexact_array)`. Of a Flax NNX
        module: a module whose `nnx.Param`s are those of its part `network`. Of a function: a function of θ and the
        other arguments.

        Every real or complex array of the output is expanded, whatever its pytree. An `equinox.nn.State`, or Flax
        variables that do not train, come out as they do at θ_0. The mode of the network (training or inference) stays
        as it is; `tangency.empirical` takes inference mode.

    Raises:
        InputError: the model is none of these; on a call, it has no forward derivative (a `custom_vjp`).

    References:
        Lee et al. 2019 (arXiv:1902.06720), equation 5.
    """
    return taylor(model, 1, parameters)


def taylor(model: Any, order: int, parameters: Any = None) -> Any:
    """The network's Taylor polynomial of degree `order` around its parameters, Σ_k ∂^k f(x; θ_0)[(θ − θ_0)^k] / k!.

    As `tangency.linearize`, which is order 1; order 0 is the network at θ_0. The cost of a call doubles with each
    order.

    Raises:
        InputError: the order is not a whole number from 0 to 6, or what `tangency.linearize` raises.
    """
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or not 0 <= order <= MAX_ORDER:
        raise InputError(f"order: expected a whole number from 0 to {MAX_ORDER}, got {order!r}")
    order = int(order)
    if parameters is not None:
        if not callable(model):
            raise InputError(f"model: with parameters, expected a function of them, got {type(model).__name__}")
        return _of_function(model, parameters, order)
    if isinstance(model, eqx.Module):
        if not callable(model):
            raise InputError(f"model: {type(model).__name__} has no __call__(self, ...)")
        return TaylorExpansion(model, order)
    if is_nnx(model):
        from .taylor_nnx import NNXTaylorExpansion  # The model is one of Flax's.

        return NNXTaylorExpansion(model, order)
    raise InputError(
        "model: expected an equinox.Module, a flax.nnx.Module, or a function with its parameters; got "
        f"{type(model).__name__}"
    )


class TaylorExpansion(eqx.Module):
    """The Taylor polynomial of `network` in its parameters θ; `reference` is the same network at θ_0."""

    network: eqx.Module
    order: int = eqx.field(static=True)
    _frozen: list[Frozen]

    def __init__(self, network: eqx.Module, order: int):
        arrays, rest = eqx.partition(network, eqx.is_inexact_array)
        arrays = jax.tree.map(jnp.asarray, arrays)
        self.network = eqx.combine(arrays, rest)
        self.order = order
        self._frozen = [Frozen(array) for array in jax.tree.leaves(arrays)]

    @property
    def reference(self) -> eqx.Module:
        """The network at the parameters θ_0 around which it was expanded."""
        arrays, rest = eqx.partition(self.network, eqx.is_inexact_array)
        return eqx.combine(self._at_reference(arrays), rest)

    def _at_reference(self, arrays: Any) -> Any:
        leaves, structure = jax.tree.flatten(arrays)
        frozen = [own.value().astype(leaf.dtype) for own, leaf in zip(self._frozen, leaves, strict=True)]
        return jax.tree.unflatten(structure, frozen)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arrays, rest = eqx.partition(self.network, eqx.is_inexact_array)

        def call(values: Any) -> Any:
            network = cast(Callable[..., Any], eqx.combine(values, rest))
            return network(*args, **kwargs), ()

        return expanded(call, self._at_reference(arrays), arrays, self.order)[0]


class Frozen(eqx.Module):
    """An array of parameters that no optimiser touches: its bits, as integers, which nothing differentiates.

    A floating-point array in a module is trainable to Equinox's filters, and weight decay would move it even where
    its gradient is zero.
    """

    bits: tuple[jax.Array, ...]
    dtype: Any = eqx.field(static=True)

    def __init__(self, array: jax.Array):
        self.dtype = array.dtype
        parts = (array.real, array.imag) if jnp.iscomplexobj(array) else (array,)
        self.bits = tuple(jax.lax.bitcast_convert_type(part, f"uint{8 * part.dtype.itemsize}") for part in parts)

    def value(self) -> jax.Array:
        if len(self.bits) == 1:
            return jax.lax.bitcast_convert_type(self.bits[0], self.dtype)
        real = jnp.finfo(self.dtype).dtype
        return jax.lax.complex(*(jax.lax.bitcast_convert_type(part, real) for part in self.bits))


def expanded(call: Callable[[Any], tuple[Any, Any]], reference: Any, parameters: Any, order: int) -> tuple[Any, Any]:
    """Σ_{k ≤ order} ∂^k f(θ_0)[(θ − θ_0)^k] / k! for each inexact array of f(θ), where `call` gives (f, state).

    All else, and the state, as they are at θ_0.
    """

    def function(values: Any) -> tuple[list[Any], Any]:
        outputs, state = call(values)
        found, rest = eqx.partition(outputs, _is_expanded, is_leaf=_is_state)
        return [found], (rest, state)

    for _ in range(order):
        function = _one_higher(function, jax.tree.map(jnp.subtract, parameters, reference))
    try:
        derivatives, (rest, state) = function(reference)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise InputError(
            "model: part of it is a custom_vjp function, which has no forward derivative; use jax.custom_jvp there"
        ) from error
    terms = [jax.tree.map(lambda d, k=k: d / factorial(k), derivative) for k, derivative in enumerate(derivatives)]
    total = jax.tree.map(lambda *each: sum(each[1:], each[0]), *terms)
    return eqx.combine(total, rest, is_leaf=_is_state), state


def _one_higher(function: Callable[[Any], tuple[list[Any], Any]], direction: Any) -> Any:
    """The derivatives along `direction` that `function` gives, and the next one."""

    def higher(values: Any) -> tuple[list[Any], Any]:
        own, tangents, rest = jax.jvp(function, (values,), (direction,), has_aux=True)
        return [*own, tangents[-1]], rest

    return higher


def _is_state(value: Any) -> bool:
    return isinstance(value, eqx.nn.State)


def _is_expanded(value: Any) -> bool:
    return not _is_state(value) and eqx.is_inexact_array(value)


def _of_function(function: Callable[..., Any], parameters: Any, order: int) -> Callable[..., Any]:
    reference, _ = eqx.partition(jax.tree.map(jnp.asarray, parameters), eqx.is_inexact_array)

    def expansion(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        arrays, rest = eqx.partition(jax.tree.map(jnp.asarray, parameters), eqx.is_inexact_array)
        if jax.tree.structure(arrays) != jax.tree.structure(reference):
            raise InputError("parameters: not the same pytree as the parameters around which the model was expanded")
        own = jax.tree.map(lambda frozen, array: frozen.astype(array.dtype), reference, arrays)

        def call(values: Any) -> Any:
            return function(eqx.combine(values, rest), *args, **kwargs), ()

        return expanded(call, own, arrays, order)[0]

    return expansion
