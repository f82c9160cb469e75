"""Blocks of pairs of examples, and of pairs of outputs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

Pairing: TypeAlias = Literal["sum", "each", "all"]
"""What becomes of outputs o, o': the sum over o = o', `[n, m]`; each one, `[n, m, o]`; all pairs, `[n, m, o, o']`."""

STRIPS = 2
"""Strips of rows that symmetric matrices are cut into: more save little, and make each product smaller."""


def strips(n: int) -> list[tuple[int, int]]:
    """Rows of a symmetric matrix that are computed at a time, from the diagonal on."""
    return list(pairwise(sorted({n * k // STRIPS for k in range(STRIPS + 1)})))


def transposed(result: Any, pairing: Pairing) -> Any:
    """Examples exchanged, and for "all" outputs too."""
    return result.transpose((1, 0, 3, 2) if pairing == "all" else (1, 0, *range(2, result.ndim)))


def completed(result: Any, pairing: Pairing, xp: Any = np) -> Any:
    """Exactly symmetric, from the blocks on and above the diagonal."""
    n = len(result)
    swapped = transposed(result, pairing)
    row, column = np.arange(n)[:, None], np.arange(n)[None, :]
    spread = (n, n, *(1,) * (result.ndim - 2))
    upper = xp.where((row < column).reshape(spread), result, swapped)
    return xp.where((row == column).reshape(spread), (result + swapped) / 2, upper)
