"""Elementwise functions with what is known about them: their closed form, or where they break."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import NonFiniteError, UnsupportedModelError
from ._fit import fit_span
from ._mixture import Mixture, fit_mixture
from ._numerical import Numerical
from ._singular import singular_part
from ._terms import Span
from ._watch import Features, Watcher, breakpoints, features

# Parameters are scales such as inverse norms, or shifts of either sign; kinks that stay put for these are taken to.
_SAMPLES = (1.0, -0.618, 1.732, -0.271, 2.414)


class Activation:
    """An elementwise function of one Gaussian variable, analysed once at construction. Compared by identity.

    `function(u, *params)` is a JAX function; u has any shape, and each of the `parameters` params is a scalar that
    may differ from example to example and is passed at evaluation. `label` names the function in messages.

    Raises UnsupportedModelError if the function is not elementwise, rounds, loops, is not finite, or breaks at
    points that depend on its parameters.
    """

    span: Span | None
    breakpoints: tuple[float, ...]
    zero_value: float | None
    """The function's own value at 0; None if it depends on parameters."""

    def __init__(self, function: Callable, *, parameters: int = 0, label: str = "φ"):
        self.function = function
        self.parameters = parameters
        self.label = label
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            watcher = Watcher(function, parameters, label)
            self._values = watcher.values
            found = self._breakpoints(watcher)
            self._check_finite()
            self.span = None
            self.zero_value = None if parameters else float(self._values(np.zeros(1))[0])
            if not parameters:
                noted = features(watcher) if watcher.kinds else Features((), (), (), ())
                self.span = fit_span(self._values, found, noted)
            singular = singular_part(self._values, found, parameters)
        self.numerical = Numerical(self._elementwise, singular)
        self.breakpoints = singular.breakpoints

    def _elementwise(self, u, *params):
        return jnp.broadcast_to(jnp.asarray(self.function(u, *params), u.dtype), u.shape)

    def _breakpoints(self, watcher: Watcher) -> tuple[float, ...]:
        samples = [tuple(_SAMPLES[(i + j) % 5] for j in range(self.parameters)) for i in range(5)]
        found = [breakpoints(watcher, sample) for sample in (samples if self.parameters else samples[:1])]
        for other in found[1:]:
            if len(other) != len(found[0]) or not np.allclose(other, found[0], rtol=0.0, atol=1e-9):
                raise UnsupportedModelError(
                    self.label,
                    reason="the place of a kink or jump depends on a parameter",
                    advice="Scale the activation's input instead, or use a smooth activation.",
                )
        return found[0]

    def _check_finite(self):
        u = np.random.default_rng(0).normal(size=301) * 3.0
        values = self._values(u, tuple(np.abs(_SAMPLES[: self.parameters])))
        if not np.all(np.isfinite(values)):
            where = float(u[np.flatnonzero(~np.isfinite(values))[0]])
            raise NonFiniteError(
                f"Activation {self.label} is not finite at u = {where:.4g}: use a function that is finite everywhere."
            )

    @property
    def is_continuous(self) -> bool:
        """Whether it is known to jump nowhere."""
        jumps = self.numerical.singular.coefficients
        return not self.breakpoints if jumps is None else not np.any(jumps[:, 0])

    @functools.cached_property
    def derivative(self) -> "Activation":
        """The derivative by JAX's AD: that of sign is 0, that of ReLU a step, as in the model's own gradients."""

        def slope(u, *params):
            # Reverse mode, because it alone sees a custom_vjp (a straight-through estimator).
            value, pull_back = jax.vjp(lambda x: self._elementwise(x, *params), u)
            return pull_back(jnp.ones_like(value))[0]

        return Activation(slope, parameters=self.parameters, label=f"{self.label}′")

    @functools.cached_property
    def mixture(self) -> Mixture | None:
        """The function as a sum of Gaussian windows, for large variances; None if there is none that is accurate."""
        if self.parameters or any(self.breakpoints):
            return None
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return fit_mixture(self._values)

    def describe(self) -> str:
        """The closed form, or how the numerical rule will treat the function, in one line of plain text."""
        if self.span is not None:
            return self.span.describe()
        if not self.breakpoints:
            return "numerical: Hermite series"
        places = ", ".join(f"{t:.6g}".replace("-", "−") for t in self.breakpoints)
        return f"numerical: Hermite series, kinks at {places}"

    def latex(self) -> str:
        """The closed form in LaTeX, or the label applied to u."""
        if self.span is not None:
            return self.span.latex()
        return rf"\operatorname{{{self.label}}}(u)" if self.label.isascii() else rf"{self.label}(u)"

    def __repr__(self) -> str:
        return f"Activation({self.label}: {self.describe()})"
