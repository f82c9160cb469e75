"""Kernels of finitely many random functions: Monte Carlo for a kernel, and a linear model of as many parameters."""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from ..errors import InputError, NonFiniteError
from ..trace.convolutions import arranged
from ..types import Array, Inputs, Kind, Progress
from .base import Kernel
from .function import of_kind

Draw: TypeAlias = Callable[[Any], Callable[[Any], Any]]
"""`key -> function`, the function of one example with a number or a vector `[o]` as its value, both in JAX."""

_NUMBERS_AT_ONCE = 2**23


class RandomFunctions(Kernel):
    """K̃_P = 1/P Σ_p f⁽ᵖ⁾ ⊗ f⁽ᵖ⁾ for functions f⁽¹⁾ … f⁽ᴾ⁾ drawn independently from any distribution.

    Its expectation is K(x, x′) = E[f(x) f(x′)], from which it strays by O(P^{−1/2}). Gradient descent on the
    coefficients θ of f_θ = P^{−1/2} Σ_p θ_p f⁽ᵖ⁾ is kernel descent with K̃_P, which is therefore both the NTK of that
    model and, for θ ~ N(0, I), its K (Jacot, Gabriel, Hongler 2018, arXiv:1806.07572, section 3.1).

    Args:
        draw: `key -> function`. A network does, such as `lambda key: eqx.nn.MLP(3, 1, 8, 1, key=key)`.
        count: P. The first functions of a larger count are the same.
        key: of the draws.
        outputs: for functions with a vector `[o]` as their value, "mean" averages over outputs, `[n, m]`, and "full"
            gives `[n, m, o, o]`. Functions with a number as their value give `[n, m]` either way.

    Functions are drawn in float64 and the result has the dtype of the inputs. Only under the caller's own `jit` or
    `grad` is the caller's precision used, and JAX then draws other functions in float32.

    Raises InputError on a bad argument or when the functions fail, NonFiniteError that names a row where they are
    not finite.
    """

    def __init__(self, draw: Draw, count: int, *, key: Any, outputs: Literal["mean", "full"] = "mean"):
        if not callable(draw):
            raise InputError(f"draw is {draw!r}; give a function key -> function")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"count is {count!r}; give the number of functions, an integer ≥ 1")
        if outputs not in ("mean", "full"):
            raise InputError(f'outputs: expected "mean" or "full", got {outputs!r}')
        self.draw, self.count, self.outputs = draw, int(count), outputs
        self._keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(self.count))
        self._values = jax.jit(arranged(lambda keys, x: jax.vmap(lambda key: jax.vmap(draw(key))(x), out_axes=1)(keys)))

    @classmethod
    def fourier(
        cls, count: int, *, key: Any, length_scale: float | np.ndarray = 1.0, nu: float = math.inf
    ) -> "RandomFunctions":
        """√2 cos(ω·x + b), whose expectation is the Matérn kernel of smoothness ν, the RBF kernel for ν = ∞.

        ω follows the kernel's spectral law, N(0, ℓ⁻²) for RBF and Student's t with 2ν degrees of freedom for Matérn,
        and b is uniform on [0, 2π) (Rahimi and Recht 2007; Rasmussen and Williams 2006, eq. 4.15). `length_scale` ℓ is
        a number or one for each input dimension, as in scikit-learn's kernels of the same names.
        """
        scale = np.asarray(length_scale, dtype=np.float64)
        if scale.ndim > 1 or not (np.isfinite(scale) & (scale > 0)).all():
            raise InputError(f"length_scale is {length_scale!r}; give a number > 0, or a vector of them")
        if not nu > 0:
            raise InputError(f"nu is {nu!r}; give a smoothness > 0, or math.inf for the RBF kernel")

        def draw(key: Any) -> Callable[[Any], Any]:
            normal, mixing, phase = jax.random.split(key, 3)

            def function(x: Any) -> Any:
                frequency = jax.random.normal(normal, x.shape, x.dtype)
                if math.isfinite(nu):
                    frequency = frequency * jnp.sqrt(nu / jax.random.gamma(mixing, nu, (), x.dtype))
                shift = jax.random.uniform(phase, (), x.dtype, 0.0, 2 * math.pi)
                return math.sqrt(2) * jnp.cos(jnp.sum(frequency * (x / jnp.asarray(scale, x.dtype))) + shift)

            return function

        return cls(draw, count, key=key)

    @classmethod
    def relu(cls, count: int, *, key: Any) -> "RandomFunctions":
        """√2 relu(w·x) with w ~ N(0, I), whose expectation is the arc-cosine kernel of order 1.

        That is the NNGP kernel of a network with one hidden layer of ReLU (Cho and Saul 2009, eq. 3, with J_1).
        """

        def draw(key: Any) -> Callable[[Any], Any]:
            return lambda x: math.sqrt(2) * jax.nn.relu(jnp.sum(jax.random.normal(key, x.shape, x.dtype) * x))

        return cls(draw, count, key=key)

    def features(self, x: Inputs) -> Float[Array, "n P *o"]:
        """f⁽ᵖ⁾(x_i), `[n, P]`, or `[n, P, o]` for functions with a vector as their value."""
        if isinstance(x, Tracer):
            return self._evaluated(slice(None), x)
        found = np.concatenate([self._concrete(part, x, "x") for part in self._parts(len(x))], axis=1)
        return _like(found, x)

    def evaluate(self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None) -> Array:
        if isinstance(x1, Tracer) or isinstance(x2, Tracer):
            first = self._evaluated(slice(None), x1)
            return of_kind(kind, self._product(first, first if x2 is None else self._evaluated(slice(None), x2)))
        total: Any = 0.0
        parts = self._parts(len(x1) + (0 if x2 is None else len(x2)))
        for done, part in enumerate(parts):
            first = self._concrete(part, x1, "x1")
            total = total + self._product(first, first if x2 is None else self._concrete(part, x2, "x2"))
            if progress is not None:
                progress(done + 1, len(parts))
        if x2 is None:
            total = (total + total.transpose((1, 0, 3, 2)[: total.ndim])) / 2
        return _like(of_kind(kind, total), x1)

    def diagonal(self, kind: Kind, x: Inputs) -> Array:
        if isinstance(x, Tracer):
            return of_kind(kind, self._squares(self._evaluated(slice(None), x)))
        total: Any = sum(self._squares(self._concrete(part, x, "x")) for part in self._parts(len(x)))
        return _like(of_kind(kind, total), x)

    def _parts(self, examples: int) -> list[slice]:
        step = max(1, _NUMBERS_AT_ONCE // max(examples, 1))
        return [slice(start, min(start + step, self.count)) for start in range(0, self.count, step)]

    def _concrete(self, part: slice, x: Inputs, name: str) -> np.ndarray:
        with jax.enable_x64(True):
            values = np.asarray(self._evaluated(part, jnp.asarray(np.asarray(x), jnp.float64)))
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))
            raise NonFiniteError(f"a random function is not finite at {name}[{row}]; check the data and the functions")
        return values

    def _evaluated(self, part: slice, x: Any) -> Any:
        try:
            values = self._values(self._keys[part], x)
            if values.ndim not in (2, 3):
                raise TypeError(f"a value has shape {values.shape[2:]}, where a number or a vector must be")
        except (TypeError, ValueError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"draw: the functions fail on an example of shape {x.shape[1:]}: {reason}") from error
        return values

    def _product(self, first: Any, second: Any) -> Any:
        if first.ndim == 3 and self.outputs == "full":
            module = jnp if isinstance(first, jax.Array) else np
            return module.einsum("npo,mpq->nmoq", first, second) / self.count
        outputs = first.shape[2] if first.ndim == 3 else 1
        return first.reshape(len(first), -1) @ second.reshape(len(second), -1).T / (self.count * outputs)

    def _squares(self, values: Any) -> Any:
        if values.ndim == 3 and self.outputs == "full":
            module = jnp if isinstance(values, jax.Array) else np
            return module.einsum("npo,npq->noq", values, values) / self.count
        outputs = values.shape[2] if values.ndim == 3 else 1
        return (values**2).reshape(len(values), -1).sum(axis=1) / (self.count * outputs)


def _like(values: Array, x: Inputs) -> Array:
    """In the dtype of the inputs, and a JAX array where they are one."""
    if x.dtype.kind == "f":
        values = values.astype(x.dtype, copy=False)
    return jnp.asarray(values) if isinstance(x, jax.Array) else values
