"""What each primitive does to random values."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from .concrete import MOVES, rounding_unit, slice_index, split_bounds
from .elementwise import apply, is_elementwise
from .laws import NORMAL, UNIFORM, affine_law
from .values import Bits, Draw, Factor, Known, Origin, Random, Summary, Unresolved, Value, aval

_RESHAPES = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze", "tile")
_SAME = ("copy", "copy_p", "name", "optimization_barrier", "reduce_precision", "sharding_constraint", "stop_gradient")


class NoRuleError(Exception):
    """Why the statistics cannot be derived."""


def random_values(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """The results of an equation with at least one random input. Raises NoRuleError."""
    name = eqn.primitive.name
    if name == "random_bits":
        return [_random_bits(eqn, inputs)]
    if name.startswith("random_"):
        raise NoRuleError(f"draws with {name}, which has no rule")
    if all(isinstance(value, Known) for value in inputs):
        raise NoRuleError(f"draws random numbers inside {name}")
    if name in MOVES and name != "concatenate":
        return [moved for value in inputs for moved in _move(eqn, value)]
    rule = _RULES.get(name)
    if rule is not None:
        return rule(eqn, inputs)
    if any(isinstance(value, Bits) for value in inputs):
        raise NoRuleError(f"computes {name} of random bits")
    return [_elementwise(eqn, inputs)]


def _random_bits(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> Bits:
    (keys,) = inputs
    assert isinstance(keys, Known)
    shape, width = aval(eqn.outvars[0]).shape, eqn.params["bit_width"]
    names = tuple(key.tobytes() for key in keys.array.reshape(-1))
    if len(set(names)) < len(names):
        raise NoRuleError("repeats one draw (the same key is used more than once)")
    return Bits(Origin(Draw(names, shape, width)), shape, width)


def _move(eqn: jex.core.JaxprEqn, value: Value) -> list[Value]:
    """Reshape, transpose, slice and the like: entries change places."""
    name, shapes = eqn.primitive.name, [aval(var).shape for var in eqn.outvars]
    if name in _SAME:
        return [value]
    if name in _RESHAPES:
        if math.prod(shapes[0]) != math.prod(value.shape):  # pyright: ignore[reportAttributeAccessIssue]
            raise NoRuleError("repeats one draw, so its entries are not independent")
        steps = [("reshape", value.shape, shapes[0])]  # pyright: ignore[reportAttributeAccessIssue]
    elif name == "transpose":
        steps = [("transpose", tuple(map(int, eqn.params["permutation"])))]
    elif name == "rev":
        steps = [("rev", tuple(map(int, eqn.params["dimensions"])))]
    elif name == "slice":
        index = slice_index(eqn.params)
        steps = [("slice", tuple((s.start, s.stop) for s in index), tuple(s.step for s in index))]
    else:
        steps = _split_steps(eqn, value)
    arrays = [None] * len(shapes)
    if isinstance(value, Summary) and isinstance(value.mean, np.ndarray):
        arrays = MOVES[name](eqn.params, value.mean)
    return [_moved(value, *parts) for parts in zip(steps, shapes, arrays, strict=True)]


def _split_steps(eqn: jex.core.JaxprEqn, value: Value) -> list[tuple]:
    shape, axis = value.shape, eqn.params["axis"]  # pyright: ignore[reportAttributeAccessIssue]
    whole = tuple((0, size) for size in shape)
    return [
        ("slice", (*whole[:axis], bounds, *whole[axis + 1 :]), (1,) * len(shape)) for bounds in split_bounds(eqn.params)
    ]


def _moved(value: Value, step: tuple, shape: tuple[int, ...], mean: np.ndarray | None) -> Value:
    if isinstance(value, Summary):
        origins = tuple(_moved_origin(origin, step) for origin in value.origins)
        return replace(value, origins=origins, shape=shape, mean=value.mean if mean is None else mean)
    if isinstance(value, Factor):
        if value.role == "signs" and [n for n in shape if n != 1] == [n for n in value.shape if n != 1]:
            return replace(value, shape=shape)
        raise NoRuleError("rearranges a factor of a QR decomposition")
    assert isinstance(value, (Bits, Random))
    return replace(value, origin=_moved_origin(value.origin, step), shape=shape)


def _moved_origin(origin: Origin, step: tuple) -> Origin:
    """The origin after one more move. Consecutive reshapes are one, and none if they cancel."""
    if step[0] == "reshape":
        moves = origin.moves
        if moves and moves[-1][0] == "reshape":
            step, moves = ("reshape", moves[-1][1], step[2]), moves[:-1]
        return replace(origin, moves=moves if step[1] == step[2] else (*moves, step))
    return origin.moved(step)


def _dynamic_slice(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    value, starts = inputs[0], [known_scalar(start) for start in inputs[1:]]
    shape, sizes = aval(eqn.invars[0]).shape, eqn.params["slice_sizes"]
    if isinstance(value, Known) or any(start is None for start in starts):
        raise NoRuleError("slices at a random position")
    starts = [min(max(int(s or 0), 0), n - m) for s, n, m in zip(starts, shape, sizes, strict=True)]
    box = tuple((s, s + m) for s, m in zip(starts, sizes, strict=True))
    mean = None
    if isinstance(value, Summary) and isinstance(value.mean, np.ndarray):
        mean = value.mean[tuple(slice(a, b) for a, b in box)]
    return [_moved(value, ("slice", box, (1,) * len(box)), tuple(sizes), mean)]


def _select(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    which = known_scalar(inputs[0])
    return [_elementwise(eqn, inputs) if which is None else inputs[1 + int(which)]]


def known_scalar(value: Value) -> float | None:
    return value.common_entry if isinstance(value, Known) else None


def _shift_right(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    bits, amount = inputs[0], known_scalar(inputs[1])
    if not isinstance(bits, Bits) or amount is None or bits.exponent is not None:
        raise NoRuleError("shifts random bits in an unknown way")
    return [replace(bits, shifted=bits.shifted + int(amount))]


def _or(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    bits, mask = inputs if isinstance(inputs[0], Bits) else inputs[::-1]
    if not isinstance(bits, Bits):
        return [_elementwise(eqn, inputs)]
    pattern = mask.common_entry if isinstance(mask, Known) else None
    if pattern is None or bits.exponent is not None:
        raise NoRuleError("combines random bits in an unknown way")
    return [replace(bits, exponent=int(np.asarray(mask.array).flat[0]))]  # pyright: ignore[reportAttributeAccessIssue]


def _bitcast(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Random mantissa bits under the exponent of 1.0 are uniform on [1, 2)."""
    (bits,), dtype = inputs, aval(eqn.outvars[0]).dtype
    if not isinstance(bits, Bits) or not jnp.issubdtype(dtype, jnp.floating):
        raise NoRuleError("reads random bits as something other than floating-point numbers")
    one = np.ones((), dtype).view(f"u{np.dtype(dtype).itemsize}")
    if bits.exponent != int(one) or bits.width - bits.shifted != jnp.finfo(dtype).nmant:
        raise NoRuleError("builds floating-point numbers from random bits in an unknown way")
    return [Random(bits.origin, bits.shape, affine_law(UNIFORM, 1.0, 1.0), rounding_unit(dtype))]


def _convert(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    (value,), dtype = inputs, aval(eqn.outvars[0]).dtype
    if isinstance(value, Bits):
        if jnp.issubdtype(dtype, jnp.unsignedinteger) and np.dtype(dtype).itemsize * 8 >= value.width:
            return [value]
        raise NoRuleError("converts random bits to numbers")
    if isinstance(value, (Random, Summary, Factor)) and jnp.issubdtype(dtype, jnp.floating):
        return [replace(value, epsilon=max(value.epsilon, rounding_unit(dtype)))]
    if isinstance(value, Random) and value.law.is_discrete and jnp.issubdtype(dtype, jnp.integer):
        entries = [float(piece.constant or 0) for piece in value.law.pieces]
        if all(entry.is_integer() for entry in entries):
            return [value]
    raise NoRuleError(f"converts a random draw to {np.dtype(dtype).name}")


def _concatenate(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    return [joined(inputs, aval(eqn.outvars[0]).shape)]


def joined(parts: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """Independent draws with equal statistics, side by side. Raises NoRuleError."""
    if not all(isinstance(part, (Random, Summary)) for part in parts):
        raise NoRuleError("joins constants and random draws, so its entries have different variances")
    summaries = [summary(part) for part in parts]
    first = summaries[0]
    for part in summaries[1:]:
        same = math.isclose(part.variance, first.variance, rel_tol=1e-12) and part.distribution == first.distribution
        if not same or np.ndim(part.mean) or np.ndim(first.mean) or not _close(part.mean, first.mean, first.variance):
            raise NoRuleError("joins random draws with different means or variances")
    origins = tuple(origin for part in summaries for origin in part.origins)
    if any(a.overlaps(b) for a, b in itertools.combinations(origins, 2)):
        raise NoRuleError("repeats one draw, so its entries are not independent")
    return replace(first, origins=origins, shape=shape, epsilon=max(part.epsilon for part in summaries))


def _close(a, b, variance: float) -> bool:
    return abs(a - b) <= 1e-12 * max(abs(b), math.sqrt(variance))


def _qr(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    (matrix,) = inputs
    if not isinstance(matrix, Random) or matrix.law.base != NORMAL or not matrix.law.affine or matrix.law.affine[1]:
        raise NoRuleError("takes the QR decomposition of something other than a centred normal draw")
    if eqn.params["full_matrices"] and matrix.shape[-1] != matrix.shape[-2]:
        raise NoRuleError("takes a full QR decomposition")
    if eqn.params.get("pivoting") or matrix.shape[-2] < matrix.shape[-1]:
        raise NoRuleError("takes a pivoted or wide QR decomposition")
    shapes = [aval(var).shape for var in eqn.outvars]
    return [Factor(role, matrix.origin, shape, matrix.epsilon) for role, shape in zip("QR", shapes, strict=True)]


def _gather(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """The diagonal of R; any other gather may take an entry twice."""
    matrix, index = inputs
    if not isinstance(matrix, Factor) or matrix.role != "R" or not isinstance(index, Known):
        raise NoRuleError("picks entries of a random draw by index")
    size = matrix.shape[-1]
    places = jnp.arange(math.prod(matrix.shape), dtype=jnp.int64).reshape(matrix.shape)
    taken = np.asarray(eqn.primitive.bind(places, jnp.asarray(index.array), **eqn.params))
    diagonal = np.diagonal(np.asarray(places), axis1=-2, axis2=-1)
    if taken.shape != diagonal.shape or not np.array_equal(taken, diagonal):
        raise NoRuleError("picks entries of a QR decomposition that are not the diagonal")
    return [replace(matrix, role="diagonal", shape=(*matrix.shape[:-2], size))]


def summary(value: Value) -> Summary:
    """Mean and variance of a random value; NoFiniteMomentError if it has none."""
    if isinstance(value, Summary):
        return value
    assert isinstance(value, Random)
    mean, variance = value.law.moments()
    return Summary((value.origin,), value.shape, mean, variance, value.law.distribution, value.epsilon)


def _elementwise(eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> Value:
    name, out = eqn.primitive.name, aval(eqn.outvars[0])
    if any(isinstance(value, Factor) for value in inputs):
        return _haar(name, inputs)
    if not is_elementwise(name):
        raise NoRuleError(f"applies {name} to a random draw, which has no rule")
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise NoRuleError("draws complex numbers")
    if any(isinstance(value, Known) and value.from_key for value in inputs):
        raise NoRuleError("uses the key's own bits as numbers")
    randoms = [value for value in inputs if isinstance(value, (Random, Summary))]
    if any(value.shape != out.shape for value in randoms):
        raise NoRuleError(f"computes {name} of a random draw across its entries")
    epsilon = max([rounding_unit(out.dtype), *(value.epsilon for value in inputs if not isinstance(value, Unresolved))])  # pyright: ignore[reportAttributeAccessIssue]
    operands = [known_scalar(value) if isinstance(value, Known) else value for value in inputs]
    one_draw = all(isinstance(value, Random) and value.origin == randoms[0].origins[0] for value in randoms)
    if one_draw and None not in operands:
        laws = [value.law if isinstance(value, Random) else value for value in operands]
        law = apply(name, eqn.params, laws, epsilon=epsilon)  # pyright: ignore[reportArgumentType]
        if law is None:
            raise NoRuleError(f"applies {name} to a random draw, which has no rule")
        return Random(randoms[0].origins[0], out.shape, law, epsilon)
    return replace(_linear(name, inputs, operands), shape=out.shape, epsilon=epsilon)


def _haar(name: str, inputs: Sequence[Value]) -> Value:
    """Q times the signs of the diagonal of R is uniform on the orthogonal matrices.

    F. Mezzadri (2007), "How to generate random matrices from the classical compact groups", section 5. A column of
    length n has unit norm and exchangeable entries with random signs: mean 0, variance 1/n.
    """
    roles = {value.role: value for value in inputs if isinstance(value, Factor)}
    if name == "sign" and set(roles) == {"diagonal"}:
        return replace(roles["diagonal"], role="signs")
    if name == "mul" and set(roles) == {"Q", "signs"} and roles["Q"].origin == roles["signs"].origin:
        q, signs = roles["Q"], roles["signs"]
        *batch, _, columns = q.shape
        if signs.shape in ((*batch, 1, columns), (columns,) if not batch else ()):
            return Summary((q.origin,), q.shape, 0.0, 1 / q.shape[-2], "orthogonal", q.epsilon)
    raise NoRuleError("uses a QR decomposition other than as an orthogonal initialiser (Q times the signs of diag R)")


def _linear(name: str, inputs: Sequence[Value], operands: Sequence) -> Summary:
    """Sums, and multiples by a constant, of values of which only mean and variance are needed."""
    if name == "neg":
        return _scaled(summary(inputs[0]), -1.0)
    if name in ("add", "add_any"):
        return _sum(*inputs)
    if name == "sub":
        return _sum(inputs[0], _negated(inputs[1]))
    if name == "mul" and any(isinstance(x, float) for x in operands):
        value, factor = (inputs[0], operands[1]) if isinstance(operands[1], float) else (inputs[1], operands[0])
        return _scaled(summary(value), factor)
    if name == "div" and isinstance(operands[1], float) and operands[1] != 0:
        return _scaled(summary(inputs[0]), 1 / operands[1])
    draws = [origin for value in inputs if isinstance(value, (Random, Summary)) for origin in value.origins]
    if name in ("mul", "div", "select_n") and len(draws) > 1:
        if any(a.overlaps(b) for a, b in itertools.combinations(draws, 2)):
            raise NoRuleError("multiplies two overlapping arrangements of one draw (a reused key)")
        raise NoRuleError("multiplies two independent random draws (a masked draw)")
    if None in operands:
        raise NoRuleError(
            f"combines a random draw with an array of constants by {name}, so its entries have different laws"
        )
    raise NoRuleError(f"computes {name} of a combination of draws")


def _negated(value: Value) -> Value:
    return replace(value, array=-value.array) if isinstance(value, Known) else _scaled(summary(value), -1.0)


def _scaled(value: Summary, factor: float) -> Summary:
    return replace(value, mean=value.mean * factor, variance=value.variance * factor**2)


def _sum(first: Value, second: Value) -> Summary:
    if isinstance(first, Known) or isinstance(second, Known):
        constant, value = (first, second) if isinstance(first, Known) else (second, first)
        assert isinstance(constant, Known)
        entry, total = constant.common_entry, summary(value)
        shift = np.broadcast_to(constant.array, total.shape) if entry is None else entry
        return replace(total, mean=total.mean + shift)
    a, b = summary(first), summary(second)
    if any(x.overlaps(y) for x, y in itertools.product(a.origins, b.origins)):
        raise NoRuleError("adds two different arrangements of one draw (a reused key)")
    distribution = "normal" if a.distribution == b.distribution == "normal" else "other"
    return replace(
        a,
        origins=a.origins + b.origins,
        mean=a.mean + b.mean,
        variance=a.variance + b.variance,
        distribution=distribution,
    )


_RULES: dict[str, Callable[[jex.core.JaxprEqn, Sequence[Value]], list[Value]]] = {
    "bitcast_convert_type": _bitcast,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "or": _or,
    "qr": _qr,
    "select_n": _select,
    "shift_right_logical": _shift_right,
}
