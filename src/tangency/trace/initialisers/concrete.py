"""Evaluation of equations whose inputs are all known, in float64."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from .elementwise import elementwise_function
from .values import Known, aval, compact

_KEY_IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
# A constant that was rounded to a narrow format, and the number it stands for: √2 in a normal draw, and the standard
# deviation of a standard normal truncated to [-2, 2] by which variance-scaling initialisers divide.
_FAMOUS_CONSTANTS = (math.sqrt(2.0), 0.87962566103423978)


class CannotEvaluateError(Exception):
    """A known value cannot be computed; the text says why."""


def is_key(dtype) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def rounding_unit(dtype) -> float:
    """Twice the largest relative rounding error of a floating-point format; 0 for exact formats."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def known(value, dtype=None, *, epsilon: float = 0.0, from_key: bool = False) -> Known:
    """A constant from a JAX or NumPy array (or number) of the given dtype, widened to float64."""
    if dtype is None:
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    if is_key(dtype):
        data = np.asarray(jax.random.key_data(value))
        packed = np.ascontiguousarray(data).view(f"V{data.itemsize * data.shape[-1]}")[..., 0]
        return Known(packed, 0.0, from_key)
    epsilon = max(epsilon, rounding_unit(dtype))
    array = np.asarray(value)
    if not jnp.issubdtype(dtype, jnp.inexact):
        array = array.astype(dtype, copy=False)
    if jnp.issubdtype(dtype, jnp.floating) and array.dtype != np.float64:
        array = array.astype(np.float64)
    if array.ndim == 0 and jnp.issubdtype(dtype, jnp.floating) and rounding_unit(dtype) > np.finfo(np.float64).eps:
        for constant in _FAMOUS_CONSTANTS:
            if float(array) == float(np.asarray(constant).astype(dtype)):
                array = np.asarray(constant)
    return Known(array, epsilon, from_key)


@functools.cache
def root_key(dtype) -> jax.Array:
    """A concrete key of the given key dtype."""
    for name in _KEY_IMPLEMENTATIONS:
        key = jax.random.key(0, impl=name)
        if key.dtype == dtype:
            return key
    raise CannotEvaluateError(f"the PRNG implementation of {dtype} is not one of JAX's own")


def fold(eqn: jex.core.JaxprEqn, inputs: Sequence[Known]) -> list[Known]:
    """The results of an equation. Raises CannotEvaluateError."""
    name = eqn.primitive.name
    epsilon = max((value.epsilon for value in inputs), default=0.0)
    from_key = any(value.from_key for value in inputs)
    out = aval(eqn.outvars[0])
    if name in MOVES:
        arrays = MOVES[name](eqn.params, *(value.array for value in inputs))
        return [Known(array, epsilon, from_key) for array in arrays]
    if name == "convert_element_type" and out.dtype != jnp.bool_ and not jnp.issubdtype(out.dtype, jnp.complexfloating):
        return [_converted(inputs[0], out.dtype)]
    if name == "iota":
        return [Known(_iota(eqn.params, out.shape))]
    function = elementwise_function(name, eqn.params)
    in_float = [jnp.issubdtype(aval(var).dtype, jnp.floating) for var in eqn.invars]
    if function is not None and any(in_float) and not jnp.issubdtype(out.dtype, jnp.complexfloating):
        with np.errstate(all="ignore"):
            result = np.asarray(function(*(compact(value.array) for value in inputs)))
        return [Known(np.broadcast_to(result, out.shape), max(epsilon, rounding_unit(out.dtype)), from_key)]
    return [known(x, epsilon=epsilon, from_key=from_key) for x in _bind(eqn, inputs)]


def _converted(value: Known, dtype) -> Known:
    if jnp.issubdtype(dtype, jnp.floating):
        array = compact(value.array).astype(np.float64)
        return Known(np.broadcast_to(array, value.shape), max(value.epsilon, rounding_unit(dtype)), value.from_key)
    array = compact(value.array)
    array = (np.trunc(array) if array.dtype.kind == "f" else array).astype(dtype)
    return Known(np.broadcast_to(array, value.shape), value.epsilon, value.from_key)


def _bind(eqn: jex.core.JaxprEqn, inputs: Sequence[Known]) -> Sequence:
    """Ask JAX itself. Numbers keep their float64 form where the primitive lets them."""
    keeps_types = eqn.primitive.name == "bitcast_convert_type" or any(jex.core.jaxprs_in_params(eqn.params))
    failure = ""
    for exact_types in (True,) if keeps_types else (False, True):
        arguments = [_to_jax(v, aval(var).dtype, exact_types) for v, var in zip(inputs, eqn.invars, strict=True)]
        try:
            results = eqn.primitive.bind(*arguments, **eqn.params)
        except Exception as error:
            failure = f"{eqn.primitive.name} of constants cannot be evaluated ({type(error).__name__})"
        else:
            return results if eqn.primitive.multiple_results else [results]
    raise CannotEvaluateError(failure)


def _to_jax(value: Known, dtype, exact_type: bool) -> jax.Array:
    if is_key(dtype):
        return jax.random.wrap_key_data(
            jnp.asarray(_key_words(value.array)), impl=str(jax.random.key_impl(root_key(dtype)))
        )
    widen = jnp.issubdtype(dtype, jnp.floating) and not exact_type
    return jnp.asarray(value.array, dtype=np.float64 if widen else dtype)


def _key_words(packed: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(packed[..., None]).view(np.uint32)


def _iota(params: Mapping, shape: tuple[int, ...]) -> np.ndarray:
    axis = params["dimension"]
    ramp = np.arange(shape[axis]).astype(params["dtype"])
    if jnp.issubdtype(params["dtype"], jnp.floating):
        ramp = ramp.astype(np.float64)
    return np.broadcast_to(ramp.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _broadcast_in_dim(params: Mapping, x: np.ndarray) -> list[np.ndarray]:
    shape = params["shape"]
    spread = [1] * len(shape)
    for axis, target in enumerate(params["broadcast_dimensions"]):
        spread[target] = x.shape[axis]
    return [np.broadcast_to(x.reshape(spread), shape)]


def slice_index(params: Mapping) -> tuple[slice, ...]:
    strides = params["strides"] or (1,) * len(params["start_indices"])
    parts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return tuple(slice(start, limit, stride) for start, limit, stride in parts)


def split_bounds(params: Mapping) -> list[tuple[int, int]]:
    ends = np.cumsum([0, *params["sizes"]])
    return [(int(a), int(b)) for a, b in itertools.pairwise(ends)]


def _split(params: Mapping, x: np.ndarray) -> list[np.ndarray]:
    return [np.take(x, np.arange(a, b), axis=params["axis"]) for a, b in split_bounds(params)]


MOVES: dict[str, Callable[..., list[np.ndarray]]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda params, *xs: [np.concatenate(xs, axis=params["dimension"])],
    "copy": lambda params, x: [x],
    "copy_p": lambda params, x: [x],
    "expand_dims": lambda params, x: [np.expand_dims(x, params["dimensions"])],
    "name": lambda params, x: [x],
    "optimization_barrier": lambda params, *xs: list(xs),
    "reduce_precision": lambda params, x: [x],
    "reshape": lambda params, x: [x.reshape(params["new_sizes"])],
    "rev": lambda params, x: [np.flip(x, params["dimensions"])],
    "sharding_constraint": lambda params, x: [x],
    "slice": lambda params, x: [x[slice_index(params)]],
    "split": _split,
    "squeeze": lambda params, x: [np.squeeze(x, tuple(params["dimensions"]))],
    "stop_gradient": lambda params, x: [x],
    "tile": lambda params, x: [np.tile(x, params["reps"])],
    "transpose": lambda params, x: [np.transpose(x, params["permutation"])],
}
"""Primitives that move entries and change none."""
