"""Elementwise primitives: as float64 functions of numbers, and as maps of laws."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from .laws import Base, Law, Piece, affine_law, affine_piece, crossings, midpoint, refine
from .quadrature import Points

FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add": np.add,
    "add_any": np.add,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clamp": lambda lower, x, upper: np.minimum(np.maximum(x, lower), upper),
    "cos": np.cos,
    "cosh": np.cosh,
    "digamma": special.digamma,
    "div": np.divide,
    "eq": np.equal,
    "erf": special.erf,
    "erf_inv": special.erfinv,
    "erfc": special.erfc,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "lgamma": special.gammaln,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": special.expit,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    # In exact arithmetic the neighbour of x is x: edges moved by one rounding are an artefact of the number format.
    "nextafter": lambda x, y: x,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: np.select([np.asarray(which) == i for i in range(len(cases))], cases),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
}
"""What each primitive computes, for real arguments; each is smooth unless it is listed in `_BRANCHING`."""

_COMPARISONS = ("eq", "ge", "gt", "le", "lt", "ne")
_STEPS = ("ceil", "floor", "is_finite")
_LOGICAL = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}


def elementwise_function(name: str, params: Mapping) -> Callable[..., np.ndarray] | None:
    """The float64 function of an elementwise primitive, or None if it is not known here."""
    if name == "integer_pow":
        exponent = params["y"]
        return lambda x: np.power(np.asarray(x, dtype=np.float64), exponent)
    return FUNCTIONS.get(name)


def is_elementwise(name: str) -> bool:
    """Whether `apply` may have a rule for the primitive."""
    return name in FUNCTIONS or name in _LOGICAL or name == "integer_pow"


def apply(name: str, params: Mapping, operands: Sequence[Law | float], *, epsilon: float) -> Law | None:
    """The law of `name(*operands)`, where all laws are of one and the same draw.

    `epsilon` is the rounding unit of the number format; a distance of a few roundings from an edge of the support is
    read as the edge itself. None if the primitive has no rule.
    """
    if name == "square":
        return apply("mul", {}, [operands[0], operands[0]], epsilon=epsilon)
    if name == "clamp":
        lower, x, upper = operands
        inner = apply("max", {}, [x, lower], epsilon=epsilon)
        return None if inner is None else apply("min", {}, [inner, upper], epsilon=epsilon)
    if name in ("max", "min"):
        clipped = _clip_at_edge(name, operands, epsilon)
        return clipped if clipped is not None else _extremum(name, operands)
    if name in ("abs", "sign", *_COMPARISONS):
        return _by_sign(name, operands)
    if name == "select_n":
        return _select(operands)
    if name in _STEPS and not all(x.is_discrete for x in operands if isinstance(x, Law)):
        return None
    if name == "erf_inv" and isinstance(operands[0], Law):
        normal = _normal_from_uniform(operands[0])
        if normal is not None:
            return normal
    function = _LOGICAL.get(name) or elementwise_function(name, params)
    if function is None:
        return None
    base, cells = refine(operands)
    law = Law(base, tuple(_map_piece(name, function, cell) for cell in cells))
    return _snap(law, epsilon)


def _map_piece(name: str, function: Callable, cell: tuple[Piece, ...]) -> Piece:
    lower, upper = cell[0].lower, cell[0].upper
    constants = [piece.constant for piece in cell]
    if all(constant is not None for constant in constants):
        with np.errstate(all="ignore"):
            return affine_piece(lower, upper, 0.0, float(function(*constants)))
    affine = _affine_result(name, cell)
    if affine is not None:
        return affine_piece(lower, upper, *affine)
    if name in ("log", "log1p") and cell[0].affine is not None:
        scale, shift = cell[0].affine
        return _logarithm(lower, upper, scale, shift + 1 if name == "log1p" else shift)

    def mapped(points: Points) -> np.ndarray:
        with np.errstate(all="ignore"):
            return function(*(piece.function(points) for piece in cell))

    return Piece(lower, upper, mapped)


def _logarithm(lower: float, upper: float, scale: float, shift: float) -> Piece:
    """log(scale·b + shift), exact where the argument vanishes or is 1 at an end of the piece."""
    argument, less_one = affine_piece(lower, upper, scale, shift), affine_piece(lower, upper, scale, shift - 1)

    def function(points: Points) -> np.ndarray:
        x, y = argument.function(points), less_one.function(points)
        with np.errstate(all="ignore"):
            return np.where(np.abs(y) < 0.5, np.log1p(y), np.log(x))

    return Piece(lower, upper, function)


def _affine_result(name: str, cell: tuple[Piece, ...]) -> tuple[float, float] | None:
    if any(piece.affine is None for piece in cell):
        return None
    scale, shift = cell[0].affine or (0.0, 0.0)
    if name == "neg":
        return -scale, -shift
    if len(cell) != 2:
        return None
    other_scale, other_shift = cell[1].affine or (0.0, 0.0)
    if name in ("add", "add_any"):
        return scale + other_scale, shift + other_shift
    if name == "sub":
        return scale - other_scale, shift - other_shift
    if name == "mul" and other_scale == 0:
        return scale * other_shift, shift * other_shift
    if name == "mul" and scale == 0:
        return other_scale * shift, other_shift * shift
    if name == "div" and other_scale == 0 and other_shift != 0:
        return scale / other_shift, shift / other_shift
    return None


def _snap(law: Law, epsilon: float) -> Law:
    """Undo the roundings that number formats force on a uniform draw: one on [-1, 1) starts at nextafter(-1, 0)."""
    if law.affine is None or law.affine[0] == 0 or law.base.kind != "uniform":
        return law
    scale, shift = law.affine
    ends = [shift, shift + scale]
    size = max(abs(end) for end in ends)
    near = [[t for t in (-1.0, 0.0, 1.0) if abs(end - t) <= 4 * epsilon * size] for end in ends]
    start, stop = (targets[0] if targets else end for targets, end in zip(near, ends, strict=True))
    return affine_law(law.base, stop - start, start) if any(near) else law


def _normal_from_uniform(law: Law) -> Law | None:
    """erf_inv of U[lo, hi] ⊂ [-1, 1] is N(0, 1/2) truncated to [erf_inv(lo), erf_inv(hi)]."""
    if law.affine is None or law.base.kind != "uniform":
        return None
    scale, shift = law.affine
    if scale <= 0 or shift < -1 or shift + scale > 1:
        return None
    root = math.sqrt(2.0)
    lower, upper = (root * float(special.erfinv(end)) for end in (shift, shift + scale))
    return affine_law(Base("normal", lower, upper), 1 / root, 0.0)


def _clip_at_edge(name: str, operands: Sequence[Law | float], epsilon: float) -> Law | None:
    """A maximum or minimum with the edge of the support changes nothing, and says where the edge is meant to be."""
    laws = [operand for operand in operands if isinstance(operand, Law)]
    bounds = [operand for operand in operands if not isinstance(operand, Law)]
    if len(laws) != 1 or laws[0].affine is None or laws[0].affine[0] == 0:
        return None
    base, (scale, shift) = laws[0].base, laws[0].affine
    threshold = (float(bounds[0]) - shift) / scale
    at_lower_end = (name == "max") == (scale > 0)
    end, other_end = (base.lower, base.upper) if at_lower_end else (base.upper, base.lower)
    if not _is_edge(base, threshold, end, other_end, epsilon):
        outside = threshold < end if at_lower_end else threshold > end
        return laws[0] if outside else None
    if base.kind == "uniform" or math.isinf(threshold):
        return laws[0]
    lower, upper = (threshold, other_end) if at_lower_end else (other_end, threshold)
    return affine_law(Base("normal", lower, upper), scale, shift)


def _is_edge(base: Base, threshold: float, end: float, other_end: float, epsilon: float) -> bool:
    """Whether the law cannot tell the threshold from this end of its support, in its number format or in float64."""
    if threshold == end:
        return True
    between = base.probability(min(threshold, end), max(threshold, end))
    if math.isinf(end):
        return between * (1 + threshold**2) <= 1e-17
    width = abs(other_end - end) if math.isfinite(other_end) else 1.0
    return abs(threshold - end) <= 4 * epsilon * max(abs(end), width) or between <= 1e-15


def _cut_at_crossings(operands: Sequence[Law | float]):
    _, cells = refine(operands)
    cuts = [root for cell in cells for root in crossings(cell[0], cell[1])]
    return refine(operands, cuts)


def _extremum(name: str, operands: Sequence[Law | float]) -> Law:
    base, cells = _cut_at_crossings(operands)

    def chosen(first: Piece, second: Piece) -> Piece:
        x = midpoint(first)
        return first if (first.at(x) >= second.at(x)) == (name == "max") else second

    return Law(base, _joined([chosen(*cell) for cell in cells]))


def _by_sign(name: str, operands: Sequence[Law | float]) -> Law:
    """Functions that are smooth (or constant) as long as the first operand stays on one side of the second."""
    first, second = (operands[0], operands[1] if len(operands) == 2 else 0.0)
    base, cells = _cut_at_crossings([first, second])

    def decided(piece: Piece, other: Piece) -> Piece:
        x = midpoint(piece)
        value, reference = piece.at(x), other.at(x)
        if name == "abs":
            return piece if value >= 0 else _map_piece("neg", np.negative, (piece,))
        result = np.sign(value) if name == "sign" else FUNCTIONS[name](value, reference)
        return affine_piece(piece.lower, piece.upper, 0.0, float(result))

    return Law(base, _joined([decided(*cell) for cell in cells]))


def _select(operands: Sequence[Law | float]) -> Law | None:
    base, cells = refine(operands)
    if any(cell[0].constant is None for cell in cells):
        return None
    return Law(base, _joined([cell[1 + int(cell[0].constant or 0)] for cell in cells]))


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbours that are one affine function become one piece again."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.affine is not None and joined[-1].affine == piece.affine:
            joined[-1] = affine_piece(joined[-1].lower, piece.upper, *piece.affine)
        else:
            joined.append(piece)
    return tuple(joined)
