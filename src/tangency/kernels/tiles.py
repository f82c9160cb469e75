"""Assembling a Gram matrix from tiles on concrete arrays: half of them where the matrix is symmetric."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..types import Progress

TILE = 1024


def assemble(
    block: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x1: np.ndarray,
    x2: np.ndarray | None,
    *,
    diagonal: Callable[[np.ndarray], np.ndarray] | None = None,
    tile: int = TILE,
    fill: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """The matrix `[..., n, m]` from `block(rows of x1, rows of x2) -> [..., a, b]`.

    With `x2=None` only the tiles on and above the diagonal are computed, the rest is mirrored, and the diagonal comes
    from `diagonal(rows) -> [..., a]`. All tiles but those of a matrix smaller than one tile have the same shape, so
    `block` is compiled once. With `fill` smaller ones have as many rows and columns as `filled` says.
    """
    other = x1 if x2 is None else x2
    tall, wide = (min(tile, filled(len(x)) if fill else len(x)) for x in (x1, other))
    rows, columns = cuts(len(x1), tall), cuts(len(other), wide)
    jobs = [(i, j) for i in range(len(rows)) for j in range(len(columns)) if x2 is not None or j >= i]
    result = None
    for done, (i, j) in enumerate(jobs):
        (start1, stop1), (start2, stop2) = rows[i], columns[j]
        part = np.asarray(block(padded(x1, start1, stop1, tall), padded(other, start2, stop2, wide)))
        part = part[..., : stop1 - start1, : stop2 - start2]
        if result is None:
            result = np.empty((*part.shape[:-2], len(x1), len(other)), part.dtype)
        result[..., start1:stop1, start2:stop2] = part
        if progress is not None:
            progress(done + 1, len(jobs))
    assert result is not None
    if x2 is None:
        _mirror(result, diagonal, x1, tall)
    return result


def cuts(length: int, tile: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive tiles; the last may be shorter."""
    return [(start, min(start + tile, length)) for start in range(0, length, tile)]


def filled(length: int) -> int:
    """The length rounded up to one of four sizes in every octave: what is compiled for one serves its neighbours."""
    step = 1 << max((length - 1).bit_length() - 3, 0)
    return -(-length // step) * step


def even(length: int, most: int) -> int:
    """The size of tiles, all but the last of them equal, that are as few as with `most` examples in each."""
    return -(-length // -(-length // most))


def padded(x: Any, start: int, stop: int, tile: int) -> Any:
    """One tile of examples, a short one filled up with its last example."""
    return x[start:stop] if stop - start == tile else x[np.minimum(np.arange(start, start + tile), stop - 1)]


def _mirror(result: np.ndarray, diagonal: Callable[[np.ndarray], np.ndarray] | None, x: np.ndarray, tile: int) -> None:
    """Copy the upper triangle below the diagonal, tile by tile so that no full-size temporary is made."""
    for start, stop in cuts(len(x), tile):
        square = result[..., start:stop, start:stop]
        upper = np.triu(square, 1)
        middle = np.zeros_like(square)
        index = np.arange(stop - start)
        if diagonal is None:
            middle[..., index, index] = square[..., index, index]
        else:
            rows = np.asarray(diagonal(padded(x, start, stop, tile)))
            middle[..., index, index] = rows[..., : stop - start]
        result[..., start:stop, start:stop] = upper + np.swapaxes(upper, -1, -2) + middle
        result[..., stop:, start:stop] = np.swapaxes(result[..., start:stop, stop:], -1, -2)
