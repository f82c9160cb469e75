"""What a function's own operations reveal: kinks, jumps, and the slopes of the special functions it calls.

The function is traced for one number and its jaxpr is run again with every comparison and every special function
noting its operand, so that any spelling of a kink or of erf(βu) is seen alike.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ...errors import UnsupportedModelError

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_lin": "call_jaxpr",
}
_COMPARISONS = {"max", "min", "gt", "lt", "ge", "le"}
_CREASED_AT_ZERO = {"abs", "sign", "cbrt", "sqrt", "rsqrt", "pow", "log"}
_REFUSED = {
    "round": "it rounds",
    "floor": "it rounds",
    "ceil": "it rounds",
    "rem": "it takes a remainder",
    "while": "it loops or branches inside the activation",
    "scan": "it loops or branches inside the activation",
    "cond": "it loops or branches inside the activation",
    "nextafter": "it steps through floating-point numbers",
    "random_bits": "it draws random numbers",
}
_SLOPED = {"erf": "erf", "erfc": "erf", "sin": "trig", "cos": "trig", "exp": "exp", "expm1": "exp", "exp2": "exp2"}
_SLOPED |= {"sinh": "exp", "cosh": "exp"}


@dataclasses.dataclass(frozen=True)
class Features:
    """Slopes β found in erf(βu + …), exp(βu), sin(βu), and curvatures γ in exp(−γu²)."""

    erf: tuple[float, ...]
    trig: tuple[float, ...]
    exp: tuple[float, ...]
    gaussian: tuple[float, ...]


class Watcher:
    """Runs a function while noting the operands of interest; all in float64, at concrete numbers.

    `function(u, *params)` is traced with scalar arguments. Raises UnsupportedModelError for operations whose
    kinks cannot be located.
    """

    def __init__(self, function: Callable, parameters: int, label: str):
        self._parameters = parameters
        scalars = [jax.ShapeDtypeStruct((), jnp.float64)] * (1 + parameters)
        closed = jax.make_jaxpr(function)(*scalars)
        if [v.aval.shape for v in closed.jaxpr.outvars] != [()]:
            raise UnsupportedModelError(
                label, reason="it does not map one number to one number", advice="Pass an elementwise function."
            )
        self._closed = closed
        self._label = label
        self.kinds: list[str] = []
        self._run = jax.jit(jax.vmap(self._notes, in_axes=(0, *[None] * parameters)))

    def operands(self, u: np.ndarray, params: tuple[float, ...]) -> list[np.ndarray]:
        """Every noted operand at every u, in the order of `self.kinds`."""
        return self._evaluated(u, params)[0]

    def values(self, u: np.ndarray, params: tuple[float, ...] = ()) -> np.ndarray:
        """The function itself at every u."""
        return self._evaluated(u, params)[1]

    def _evaluated(self, u: np.ndarray, params: tuple[float, ...]) -> tuple[list[np.ndarray], np.ndarray]:
        # Blocks of one length, so that the function is compiled once.
        blocks = [
            self._run(block, *params) for block in np.pad(u, (0, -len(u) % _BLOCK), mode="edge").reshape(-1, _BLOCK)
        ]
        joined = [np.concatenate([np.asarray(x) for x in parts])[: len(u)] for parts in zip(*blocks, strict=True)]
        return joined[:-1], joined[-1]

    def _notes(self, u, *params):
        notes: list[tuple[str, jax.Array]] = []
        (result,) = self._evaluate(self._closed.jaxpr, self._closed.consts, (u, *params), notes)
        self.kinds = [kind for kind, _ in notes]
        return [jnp.asarray(value, jnp.float64) for value in (*(value for _, value in notes), result)]

    def _evaluate(self, jaxpr, consts, args, notes):
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(variable):
            return variable.val if isinstance(variable, Literal) else env[variable]

        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            name = eqn.primitive.name
            if name in _REFUSED:
                raise UnsupportedModelError(
                    self._label,
                    reason=f"{_REFUSED[name]} ({name}), so its kinks and jumps cannot be located",
                    advice="Write it with comparisons (where, maximum, clip), or use a smooth activation.",
                )
            if name in _CALLS:
                inner = eqn.params[_CALLS[name]]
                body, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
                results = self._evaluate(body, constants, operands, notes)
            else:
                notes += _operands_of_interest(name, operands)
                bound = eqn.primitive.bind(*operands, **eqn.params)
                results = bound if eqn.primitive.multiple_results else [bound]
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]


def _operands_of_interest(name, operands):
    def is_real(x):
        return jnp.issubdtype(jnp.result_type(x), jnp.floating)

    if not operands or not is_real(operands[0]):
        return []
    if name in _COMPARISONS:
        return [("crease", jnp.subtract(*operands))]
    if name == "clamp":
        low, x, high = operands
        return [("crease", x - low), ("crease", x - high)]
    notes = []
    if name in _CREASED_AT_ZERO:
        notes.append(("crease", operands[0]))
    if name == "pow":
        # With a constant base this is an exponential; log of a negative base is NaN and finds no slope.
        notes.append(("exp", jnp.log(operands[0]) * operands[1]))
    if name in _SLOPED:
        kind = _SLOPED[name]
        notes.append(("exp", operands[0] * math.log(2.0)) if kind == "exp2" else (kind, operands[0]))
    return notes


_REACH = 64.0
_BLOCK = 1024


def breakpoints(watcher: Watcher, params: tuple[float, ...]) -> tuple[float, ...]:
    """Where the creased operations of the function change branch for these parameters, within |u| ≤ 64."""
    # An irrational offset keeps the grid off the round numbers where kinks usually are.
    grid = np.linspace(-_REACH, _REACH, 16001) + 1.0e-3 / math.pi
    values = watcher.operands(grid, params)
    found: list[Any] = []
    for index, kind in enumerate(watcher.kinds):
        if kind != "crease":
            continue
        x = values[index]
        finite = np.isfinite(x)
        crossing = np.flatnonzero(finite[1:] & finite[:-1] & (np.sign(x[1:]) != np.sign(x[:-1])))
        if len(crossing):
            found += _bisect(watcher, index, grid[crossing], grid[crossing + 1], params).tolist()
        size = np.where(finite, np.abs(x), np.inf)
        dips = np.flatnonzero((size[1:-1] < size[:-2]) & (size[1:-1] < size[2:])) + 1
        dips = dips[~np.isin(dips, crossing) & ~np.isin(dips, crossing + 1)]
        dips = dips[size[dips] < 1e-3 * (1.0 + np.minimum(size[dips - 1], size[dips + 1])) ** 2]
        found += [t for t in (_touch(watcher, index, grid[i - 1], grid[i + 1], params) for i in dips) if t is not None]
    return _distinct(found)


def _bisect(watcher, index, left, right, params):
    start = np.sign(watcher.operands(left, params)[index])
    for _ in range(70):
        middle = 0.5 * (left + right)
        same = np.sign(watcher.operands(middle, params)[index]) == start
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    return 0.5 * (left + right)


def _touch(watcher, index, left, right, params):
    """The minimum of |x| in a bracket, if x reaches 0 there without changing sign (as u² under a root does)."""
    for _ in range(25):
        points = np.linspace(left, right, 17)
        size = np.abs(watcher.operands(points, params)[index])
        best = int(np.argmin(size))
        left, right = points[max(best - 1, 0)], points[min(best + 1, 16)]
    return 0.5 * (left + right) if size[best] < 1e-14 else None


def _distinct(points: list[float]) -> tuple[float, ...]:
    rounded = sorted(_snapped(t, 1e-7) if abs(t) < 1e-7 else _snapped(t, 1e-12) for t in points if abs(t) < _REACH)
    kept: list[float] = []
    for t in rounded:
        if not kept or t - kept[-1] > 1e-9:
            kept.append(t)
    return tuple(kept)


def _snapped(t: float, tolerance: float) -> float:
    nearest = round(float(t), 6)
    return float(nearest) + 0.0 if abs(nearest - t) < tolerance else float(t)


def features(watcher: Watcher) -> Features:
    """Slopes of the special functions wherever their operand is linear or quadratic in u on a half-line."""
    found: dict[str, list[float]] = {"erf": [], "trig": [], "exp": [], "gaussian": []}
    half = np.linspace(0.05, 3.0, 41)
    for u in (half, -half):
        basis = np.stack([np.ones_like(u), u, u * u], axis=1)
        for kind, x in zip(watcher.kinds, watcher.operands(u, ()), strict=True):
            if kind == "crease" or not np.all(np.isfinite(x)):
                continue
            coefficients = np.linalg.lstsq(basis, x, rcond=None)[0]
            scale = np.max(np.abs(x)) + 1e-300
            if np.max(np.abs(basis @ coefficients - x)) > 1e-12 * scale:
                continue
            offset, slope, curvature = np.where(np.abs(coefficients) * 9.0 > 1e-11 * scale, coefficients, 0.0)
            if not offset and not curvature:
                # Exact to the last digit, which exp(βu) at |u| = 60 needs and least squares does not give.
                slope = np.median(x / u)
            if not offset and not slope:
                curvature = np.median(x / u**2)
            if kind == "exp" and curvature < 0:
                found["gaussian"].append(float(-curvature))
            if slope and not curvature:
                found[kind].append(float(slope if kind == "exp" else abs(slope)))
    return Features(**{kind: _merged(slopes) for kind, slopes in found.items()})


def _merged(slopes: list[float]) -> tuple[float, ...]:
    kept: list[float] = []
    for slope in slopes:
        if all(abs(slope - other) > 1e-11 * abs(other) for other in kept):
            kept.append(slope)
    return tuple(kept)
