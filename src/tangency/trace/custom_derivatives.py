"""Custom derivatives: inlined where they are the true derivative, refused where the user's gradient is another."""

from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from ..errors import UnsupportedModelError

_SCALES = (0.3, 1.0, 4.0)
_checked: set[Any] = set()


def check_custom_derivative(equation: jex.JaxprEqn, inlined: jex.ClosedJaxpr, source: str | None) -> None:
    """Compare the gradient the function declares with that of its own computation, at random points.

    A straight-through estimator, say, declares another one: inlining it would give the NTK of another network.

    Raises:
        UnsupportedModelError: the two gradients differ.
    """
    rule = equation.params.get("jvp_jaxpr_fun") or equation.params.get("jvp") or equation.params.get("fwd")
    key = (str(inlined), str(rule))
    if key in _checked:
        return
    one = jex.Jaxpr(
        constvars=(),
        invars=[atom for atom in equation.invars if not isinstance(atom, jex.Literal)],
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
        debug_info=inlined.jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )
    literals = {i: atom.val for i, atom in enumerate(equation.invars) if isinstance(atom, jex.Literal)}
    declared = jex.jaxpr_as_fun(jex.ClosedJaxpr(one, ()))
    computed = jex.jaxpr_as_fun(inlined)

    def complete(arguments: tuple[Any, ...]) -> list[Any]:
        rest = iter(arguments)
        return [literals[i] if i in literals else next(rest) for i in range(len(equation.invars))]

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        for seed, scale in enumerate(_SCALES):
            rng = np.random.default_rng(seed)
            points = [_point(atom.aval, rng, scale) for atom in one.invars]
            expected = _pullback(lambda *a: computed(*complete(a)), points)
            if not _close(_pullback(declared, points), expected):
                raise UnsupportedModelError(
                    f"the custom derivative of '{equation.params.get('name', inlined.jaxpr.debug_info.func_name)}'",
                    reason="it differs from the derivative of its own computation (a straight-through estimator?), "
                    "so the kernel of its forward pass would not be the NTK of its training",
                    advice="Remove the custom derivative for the limit, or use the finite-width kernel",
                    source=source,
                )
    _checked.add(key)


def _point(aval: Any, rng: np.random.Generator, scale: float) -> Any:
    if jax.numpy.issubdtype(aval.dtype, jax.numpy.floating):
        return jax.numpy.asarray(scale * rng.standard_normal(aval.shape), aval.dtype)
    return jax.numpy.zeros(aval.shape, aval.dtype)


def _pullback(function: Any, points: list[Any]) -> list[np.ndarray]:
    outputs, pull = jax.vjp(function, *points)
    cotangents = pull([jax.numpy.ones_like(output) for output in outputs])
    return [np.asarray(c) for c in cotangents if c.dtype != jax.dtypes.float0]


def _close(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True) for a, b in zip(left, right, strict=True))
