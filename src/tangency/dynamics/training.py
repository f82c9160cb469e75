"""A finite network, and its linearisation, trained step by step in parameter space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..empirical.model import Network
from ..trace.convolutions import arranged

BLOW_UP = 1e4
"""Growth of the loss beyond its start that counts as divergence; the transient growth of a catapult stays below."""


@dataclass(frozen=True)
class Trained:
    """Flat outputs `[T, n, o]` at the recorded steps, NaN from the step on at which the loss blew up, if it did."""

    outputs: np.ndarray
    diverged_at: int | None


class Training:
    """Gradient descent by optax on C = 1/(2N) Σ_i |f(x_i) − y_i|², compiled once for all seeds of one width.

    The rate of a parameter is η times its own rate in the network: in the NTK parameterisation, its variance at
    initialisation.
    """

    def __init__(self, network: Network, x: Any, y: Any, rate: float, *, linearised: bool = False):
        """`x` are all examples of which outputs are recorded, `y` `[N, o]` the targets of the first N of them."""
        self._x, self._y = jnp.asarray(x), jnp.asarray(y)
        self._call = _linearised(network.call) if linearised else network.call
        rates = network.rates
        per_parameter = optax.stateless(lambda updates, _: jax.tree.map(lambda r, u: r * u, list(rates), updates))
        self._optimiser = optax.chain(per_parameter, optax.sgd(rate))
        self._linearised = linearised
        self._advance = jax.jit(arranged(self._advanced))

    def __call__(self, network: Network, recorded: np.ndarray, after: Callable[[int, Any], None]) -> Trained:
        """From the parameters of this network, which differs from the first in values alone.

        `recorded` are steps, ascending from 0; `after` is called with each, and the parameters there, once it is
        reached, unless training has diverged by then.
        """
        dtype = self._x.dtype
        parameters = [_cast(array, dtype) for array in network.parameters]
        state = jax.tree.map(lambda array: _cast(array, dtype), network.state)
        extra = (state, tuple(parameters)) if self._linearised else state
        memory, first = self._optimiser.init(parameters), jnp.asarray(-1)
        outputs, limit, step, diverged = [], jnp.asarray(np.inf, dtype), 0, None
        for stop in recorded:
            parameters, memory, first, found = self._advance(parameters, memory, first, extra, limit, step, int(stop))
            outputs.append(np.asarray(found, dtype=np.float64))
            if stop == 0:
                start = 0.5 * float(np.mean(np.sum((outputs[0][: len(self._y)] - np.asarray(self._y)) ** 2, axis=1)))
                limit = jnp.asarray(BLOW_UP * max(start, np.finfo(np.float32).tiny), dtype)
            step = int(stop)
            if int(first) >= 0:
                diverged = int(first)
                outputs[-1] = np.full_like(outputs[-1], np.nan)
                break
            after(step, tuple(parameters))
        missing = [np.full_like(outputs[0], np.nan)] * (len(recorded) - len(outputs))
        return Trained(np.stack(outputs + missing), diverged)

    def _outputs(self, parameters: Any, extra: Any, x: Any) -> Any:
        def single(example: Any) -> Any:
            leaves = jax.tree.leaves(self._call(parameters, extra, example))
            return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

        return jax.vmap(single)(x)

    def _advanced(
        self, parameters: Any, memory: Any, first: Any, extra: Any, limit: Any, start: Any, stop: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Steps from `start` to `stop`; `first` is the step after which the loss was first above the limit, or −1."""
        y = self._y

        def loss(parameters: Any) -> Any:
            residual = self._outputs(parameters, extra, self._x[: len(y)]) - y
            return jnp.sum(residual**2) / (2 * len(y))

        def body(step: Any, carry: Any) -> Any:
            parameters, memory, first = carry
            value, gradient = jax.value_and_grad(loss)(parameters)
            updates, memory = self._optimiser.update(gradient, memory, parameters)
            # Written so that NaN counts as beyond the limit.
            first = jnp.where((first < 0) & ~(value <= limit), step, first)
            return optax.apply_updates(parameters, updates), memory, first

        parameters, memory, first = jax.lax.fori_loop(start, stop, body, (parameters, memory, first))
        outputs = self._outputs(parameters, extra, self._x)
        final = jnp.sum((outputs[: len(y)] - y) ** 2) / (2 * len(y))
        return parameters, memory, jnp.where((first < 0) & ~(final <= limit), stop, first), outputs


def _linearised(call: Callable[..., Any]) -> Callable[..., Any]:
    """f(x; p₀) + ∂f(x; p₀)·(p − p₀), with p₀ beside the state."""

    def linear(parameters: Any, extra: Any, x: Any) -> Any:
        state, centre = extra
        moved = [p - c for p, c in zip(parameters, centre, strict=True)]
        value, tangent = jax.jvp(lambda p: call(p, state, x), (list(centre),), (moved,))
        return jax.tree.map(jnp.add, value, tangent)

    return linear


def _cast(array: Any, dtype: Any) -> Any:
    """Floating-point arrays at the precision of the examples; everything else as it is."""
    kind = getattr(array, "dtype", None)
    return jnp.asarray(array, dtype) if kind is not None and jnp.issubdtype(kind, jnp.floating) else array
