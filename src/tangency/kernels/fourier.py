"""Fourier feature mappings of inputs, which let a network or a kernel see high frequencies."""

import inspect
import math
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..types import Array


class FourierFeatures(eqx.Module):
    """γ(x) = [cos 2πBx, sin 2πBx], with fixed frequencies B `[m, d]`: `[..., d]` to `[..., 2m]` (Tancik et al. 2020).

    A kernel of γ(x) that depends on angles, as the NTK of a dense network does, is shift-invariant in x, and B sets
    its bandwidth. `kernel.of(features)` maps the inputs of any kernel, `features.into(model)` those of any model. The
    frequencies do not train.

    Raises InputError when the frequencies are not a finite matrix; the constructors when an argument is out of range.

    References:
        Tancik et al. 2020 (arXiv:2006.10739), sections 4 to 6.
    """

    # Numbers in a static field, so that no framework takes them for a parameter and the mapping can be hashed.
    _rows: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    def __init__(self, frequencies: Float[Array, "m d"]):
        matrix = np.array(frequencies, dtype=np.float64)
        if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
            raise InputError(f"frequencies: expected a finite matrix [m, d], got shape {matrix.shape}")
        self._rows = tuple(map(tuple, matrix.tolist()))

    @property
    def frequencies(self) -> Float[np.ndarray, "m d"]:
        """B."""
        return np.array(self._rows)

    @classmethod
    def basic(cls, dimension: int) -> "FourierFeatures":
        """[cos 2πx, sin 2πx]: each input once around the circle."""
        return cls(np.eye(_positive(dimension, "dimension")))

    @classmethod
    def positional(cls, dimension: int, frequencies: int, scale: float) -> "FourierFeatures":
        """[cos 2πσ^{j/m} x, sin 2πσ^{j/m} x] for j = 0 … m − 1, log-spaced along each axis; σ is `scale`."""
        m = _positive(frequencies, "frequencies")
        steps = _number(scale, "scale") ** (np.arange(m) / m)
        return cls(np.kron(steps[:, None], np.eye(_positive(dimension, "dimension"))))

    @classmethod
    def gaussian(cls, dimension: int, frequencies: int, scale: float, *, key: Any) -> "FourierFeatures":
        """B of m × d entries drawn from N(0, σ²); σ is `scale`."""
        shape = _positive(frequencies, "frequencies"), _positive(dimension, "dimension")
        with jax.enable_x64(True):
            return cls(_number(scale, "scale") * np.asarray(jax.random.normal(key, shape, jnp.float64)))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[jax.Array, "*batch 2*m"]:
        """γ along the last axis, in the precision of x."""
        x = jnp.asarray(x)
        matrix = self.frequencies
        if x.shape[-1:] != matrix.shape[1:]:
            raise InputError(f"x: these Fourier features take {matrix.shape[1]} inputs, got shape {x.shape}")
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        phase = 2 * math.pi * jnp.matmul(x, matrix.T.astype(dtype), precision="highest")
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)

    def into(self, model: Any) -> Any:
        """The random model with γ before it, in the form in which the model was given.

        `model` is what `tangency.limit` takes: `key -> equinox.Module`, `key -> flax.nnx.Module` or `(init, apply)`.
        """
        if isinstance(model, tuple | list):
            init, apply = model
            return init, lambda parameters, x: apply(parameters, self(x))
        if not callable(model):
            raise InputError(f"model: expected a function key -> network or a pair (init, apply), got {model!r}")

        def make(key: Any) -> Any:
            network = model(key)
            nnx = sys.modules.get("flax.nnx")
            if nnx is not None and isinstance(network, nnx.Module):
                return nnx.Sequential(self, network)
            return _Behind(self, network)

        return make


class _Behind(eqx.Module):
    """A network with a mapping before it."""

    mapping: FourierFeatures
    network: Any

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        takes_key = key is not None and "key" in inspect.signature(type(self.network).__call__).parameters
        return self.network(self.mapping(x), key=key) if takes_key else self.network(self.mapping(x))


def _positive(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}; give an integer ≥ 1")
    return int(value)


def _number(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value!r}; give a number > 0")
    return float(value)
