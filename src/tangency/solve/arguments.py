"""What a matrix, a right-hand side and a ridge must be."""

import numpy as np

from ..errors import InputError, NonFiniteError

ROWS_AT_ONCE = 1024
"""Checks go through a matrix in blocks of rows, so that they need no second matrix."""


def numeric(values: object, name: str) -> np.ndarray:
    """`values` as a real array, in its own dtype."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} is not a rectangular array of numbers: {error}") from None
    if array.dtype.kind in "OUSMmc":
        raise InputError(f"{name} has dtype {array.dtype}; give real numbers")
    return array


def symmetric_matrix(matrix: object) -> np.ndarray:
    """A float64 [n, n] array, checked to be square, finite and symmetric to the rounding of its own dtype."""
    given = numeric(matrix, "matrix")
    if given.ndim != 2 or given.shape[0] != given.shape[1] or given.shape[0] == 0:
        raise InputError(f"matrix has shape {given.shape}; a square matrix [n, n] with n ≥ 1 is needed")
    precision = np.finfo(given.dtype).eps if given.dtype.kind == "f" else np.finfo(np.float64).eps
    array = given.astype(np.float64, copy=False)
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(array), ROWS_AT_ONCE)]
    for rows in blocks:
        bad = np.argwhere(~np.isfinite(array[rows]))
        if len(bad):
            row, column = bad[0][0] + rows.start, bad[0][1]
            raise NonFiniteError(f"matrix[{row}, {column}] is {array[row, column]}; every entry must be finite")
    largest = max(float(np.abs(array[rows]).max()) for rows in blocks)
    for rows in blocks:
        bad = np.argwhere(np.abs(array[rows] - array[:, rows].T) > 16 * precision * largest)
        if len(bad):
            row, column = bad[0][0] + rows.start, bad[0][1]
            raise InputError(
                f"matrix is not symmetric: [{row}, {column}] is {array[row, column]:.6g} but "
                f"[{column}, {row}] is {array[column, row]:.6g}; symmetrise it first"
            )
    return array


def right_hand_side(b: object, n: int) -> np.ndarray:
    """A finite float64 [n] or [n, o] array."""
    array = numeric(b, "b").astype(np.float64, copy=False)
    if array.ndim not in (1, 2) or len(array) != n:
        raise InputError(f"b has shape {array.shape}; [{n}] or [{n}, o] is needed")
    finite = np.isfinite(array.reshape(n, -1)).all(axis=1)
    if not finite.all():
        raise NonFiniteError(f"b is not finite in row {int(np.argmin(finite))}")
    return array


def ridge_value(ridge: object) -> float:
    """A finite ridge λ ≥ 0."""
    try:
        value = float(ridge)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise InputError(f"ridge is {ridge!r}; give a number ≥ 0") from None
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"ridge is {value}; give a finite number ≥ 0")
    return value
