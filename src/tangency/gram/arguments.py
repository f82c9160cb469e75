"""What examples and targets must be."""

import numpy as np
from jaxtyping import Float

from ..errors import InputError, NonFiniteError


def check_examples(values: object, name: str) -> Float[np.ndarray, "n *shape"]:
    """`values` as float64 examples along a leading axis: numeric, finite, at least one.

    Raises InputError that names the argument, NonFiniteError that names the first offending row too.
    """
    array = _real(values, name)
    if array.ndim == 0:
        raise InputError(f"{name} is a single number; give an array with a leading example axis")
    if array.size == 0:
        raise InputError(f"{name} is empty: its shape is {array.shape}")
    _check_finite(array, name)
    return array


def check_targets(values: object, n: int, name: str = "y") -> Float[np.ndarray, "n *o"]:
    """`values` as float64 targets [n] or [n, o] for n examples. Raises as `check_examples` does."""
    array = _real(values, name)
    if array.ndim not in (1, 2) or len(array) != n or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; the {n} examples need [{n}] or [{n}, outputs]")
    _check_finite(array, name)
    return array


def check_new_examples(values: object, training: np.ndarray) -> Float[np.ndarray, "n *shape"]:
    """Examples x to predict for, which must be shaped like the training examples. Raises as `check_examples` does."""
    x = check_examples(values, "x")
    check_same_examples(x, training, ("x", "the training examples"))
    return x


def check_same_examples(x1: np.ndarray, x2: np.ndarray, names: tuple[str, str] = ("x1", "x2")) -> None:
    """Raises InputError unless one example has the same shape in both."""
    if x1.shape[1:] != x2.shape[1:]:
        raise InputError(
            f"an example of {names[0]} has shape {x1.shape[1:]} but one of {names[1]} has {x2.shape[1:]}; "
            "they must be the same"
        )


def _real(values: object, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} is ragged: its rows have different shapes") from None
    if array.dtype.kind in "OUSMmc":
        raise InputError(f"{name} has dtype {array.dtype}; give real numbers")
    return array.astype(np.float64, copy=False)


def _check_finite(array: np.ndarray, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
        value = array[row][~finite[row]][0] if array.ndim > 1 else array[row]
        shown = "NaN" if np.isnan(value) else value
        raise NonFiniteError(f"{name} is not finite: row {row} has {shown}; remove or impute it")
