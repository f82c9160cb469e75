"""Kernels with a standard error."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A kernel and its standard error, arrays of one shape."""

    value: np.ndarray
    standard_error: np.ndarray


def averaged(replicates: Iterable[np.ndarray]) -> Estimate:
    """The mean of independent replicates with its standard error (Welford's running sums); one alone has no error."""
    mean: Any = 0.0
    squares: Any = 0.0
    count = 0
    for found in replicates:
        count += 1
        change = found - mean
        mean = mean + change / count
        squares = squares + change * (found - mean)
    error = np.sqrt(squares / (count * (count - 1))) if count > 1 else np.zeros_like(mean)
    return Estimate(mean, error.astype(mean.dtype))
