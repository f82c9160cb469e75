"""Custom derivatives: inlined where they are the true derivative, refused where the user's gradient is another."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from ..errors import UnsupportedModelError
from .equations import constants_of

_SCALES = (0.3, 1.0, 4.0)
_COTANGENT_SCALES = (1e-3, 1.0, 1e3)
_checked: set[str] = set()
"""Programs of declared gradients that were found true; text decides, as JAX makes a new object for every call."""


def check_custom_derivative(
    equation: jex.JaxprEqn, inlined: jex.ClosedJaxpr, constants: Mapping[int, Any], source: str | None
) -> None:
    """Compare the gradient the function declares with that of its own computation, at random points.

    A straight-through estimator, say, declares another one: inlining it would give the NTK of another network.
    `constants` are the values of those operands that are the same for all examples and parameters: arrays in the
    function's closure are operands too, and nothing is declared for them.

    Raises:
        UnsupportedModelError: the two gradients differ.
    """
    one = jex.Jaxpr(
        constvars=(),
        invars=[atom for atom in equation.invars if not isinstance(atom, jex.Literal)],
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
        debug_info=inlined.jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )
    literals = {i: atom.val for i, atom in enumerate(equation.invars) if isinstance(atom, jex.Literal)}
    operands: list[Any] = [atom.aval for atom in equation.invars]
    fixed = {i: np.asarray(value, operands[i].dtype) for i, value in constants.items()} | literals

    def complete(arguments: tuple[Any, ...]) -> list[Any]:
        rest = iter(arguments)
        return [fixed[i] if i in fixed else next(rest) for i in range(len(operands))]

    def declared(*arguments: Any) -> list[Any]:
        values = [value for i, value in enumerate(complete(arguments)) if i not in literals]
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(one, ()))(*values)

    def computed(*arguments: Any) -> list[Any]:
        return jex.jaxpr_as_fun(inlined)(*complete(arguments))

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        avals = [aval for i, aval in enumerate(operands) if i not in fixed]
        ends: list[Any] = [atom.aval for atom in one.outvars]
        shapes = ([jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in group] for group in (avals, ends))
        program = jax.make_jaxpr(lambda points, weights: jax.vjp(declared, *points)[1](weights))(*shapes)
        text = f"{program} {inlined} {_digest([*constants_of(program), *constants_of(inlined), *fixed.values()])}"
        if text in _checked:
            return
        for seed, (scale, weight) in enumerate(zip(_SCALES, _COTANGENT_SCALES, strict=True)):
            rng = np.random.default_rng(seed)
            points = [_point(aval, rng, scale) for aval in avals]

            def cotangent(output: Any, seed: int = seed, weight: float = weight) -> Any:
                return _point(output, np.random.default_rng(seed), weight)

            expected = _pullback(computed, points, cotangent)
            if not _close(_pullback(declared, points, cotangent), expected):
                raise UnsupportedModelError(
                    f"the custom derivative of '{equation.params.get('name', inlined.jaxpr.debug_info.func_name)}'",
                    reason="it differs from the derivative of its own computation (a straight-through estimator?), "
                    "so the kernel of its forward pass would not be the NTK of its training",
                    advice="Remove the custom derivative for the limit, or use the finite-width kernel",
                    source=source,
                )
    _checked.add(text)


def _digest(arrays: Sequence[Any]) -> str:
    """Of constants that the text of a program does not show."""
    digest = hashlib.sha256()
    for array in arrays:
        is_key = jax.dtypes.issubdtype(jax.numpy.asarray(array).dtype, jax.dtypes.prng_key)
        plain = np.asarray(jax.random.key_data(array) if is_key else array)
        digest.update(f"{plain.dtype} {plain.shape} ".encode() + plain.tobytes())
    return digest.hexdigest()


def _point(aval: Any, rng: np.random.Generator, scale: float) -> Any:
    if jax.numpy.issubdtype(aval.dtype, jax.numpy.floating):
        return jax.numpy.asarray(scale * rng.standard_normal(aval.shape), aval.dtype)
    return jax.numpy.zeros(aval.shape, aval.dtype)


def _pullback(function: Any, points: Sequence[Any], cotangent: Callable[[Any], Any]) -> list[Any]:
    outputs, pull = jax.vjp(function, *points)
    return [c for c in pull([cotangent(output) for output in outputs]) if c.dtype != jax.dtypes.float0]


def _close(left: list[Any], right: list[Any]) -> bool:
    return all(np.allclose(a, b, rtol=1e-6, atol=1e-12, equal_nan=True) for a, b in zip(left, right, strict=True))
