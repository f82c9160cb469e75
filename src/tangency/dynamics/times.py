"""Training times as they are given: one, several, or the end."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from ..errors import InputError

Times: TypeAlias = float | Float[np.ndarray, " T"] | None
"""None is t = ∞; a vector of T times adds a leading axis T to the result."""


def checked_times(t: Times) -> np.ndarray:
    """A scalar or a vector of times in [0, ∞]. Raises InputError on anything else."""
    if t is None:
        return np.asarray(np.inf)
    try:
        times = np.asarray(t, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"t is {t!r}; give a number ≥ 0, a vector of them, or None for t = ∞") from None
    if times.ndim > 1 or times.size == 0:
        raise InputError(f"t has shape {times.shape}; give a number ≥ 0, a vector of them, or None for t = ∞")
    bad = ~(times >= 0)
    if bad.any():
        raise InputError(f"t holds {times[bad][0] if times.ndim else times}; training time is a number ≥ 0")
    return times
