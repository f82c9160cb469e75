"""The solution of a linear system, and whether it can be relied on."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

import numpy as np
from jaxtyping import Float

RESIDUAL_TOLERANCE = 1e-6
"""Largest ‖(A + λI) α − b‖ / ‖b‖ of a reliable solution, in the worst column."""

RANGE_TOLERANCE = 1e-8
"""Largest share of b in directions that rounding cannot tell from the null space, in the worst column."""


@dataclass(frozen=True)
class Solution:
    """`value` solves (A + λI) value = b; `residual` is the largest relative residual over the columns of b."""

    value: Float[np.ndarray, "n *o"]
    residual: float
    reliable: bool


def largest_ratio(part: np.ndarray, whole: np.ndarray) -> float:
    """The largest ‖part‖ / ‖whole‖ over columns; a column where both vanish counts as 0."""
    above = np.linalg.norm(part, axis=0)
    below = np.linalg.norm(whole, axis=0)
    ratio = np.divide(above, below, out=np.where(above > 0, np.inf, 0.0), where=below > 0)
    return float(ratio.max(initial=0.0))


def relative_residual(matrix: np.ndarray, ridge: float, value: np.ndarray, b: np.ndarray) -> float:
    """max over columns of ‖(A + λI) value − b‖ / ‖b‖, for two-dimensional `value` and `b`."""
    return largest_ratio(matrix @ value + ridge * value - b, b)


def round_up(value: float) -> float:
    """The smallest number of two significant digits that is not below `value`: short enough to be typed."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(float(value))))
