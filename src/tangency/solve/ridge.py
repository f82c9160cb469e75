"""The ridge with the best leave-one-out score, in closed form."""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from ..errors import InputError, SingularMatrixError
from .arguments import ridge_value, right_hand_side
from .eigen import Eigen

Score: TypeAlias = Literal["squared_error", "error_rate"]


def leave_one_out_residuals(
    eigen: Eigen, y: Float[np.ndarray, "n *o"], ridge: float, *, centred: bool = False
) -> Float[np.ndarray, "n *o"] | None:
    """y_i − f_{−i}(x_i), `[n]` or `[n, o]`, as `Eigen.leave_one_out`; None where they are not defined.

    `centred=True` says that y has been centred by its mean over the n examples and that each refit recomputes the mean
    without example i. That mean differs by −y_i / (n − 1), and the residual is linear in it.

    Not defined: a system that is singular to float64, or a single example with a mean of its own.
    """
    y = right_hand_side(y, len(eigen.eigenvalues))
    n = len(y)
    if not centred:
        return eigen.attempt_leave_one_out(y, ridge)
    if n < 2 or (residuals := eigen.attempt_leave_one_out(_with_ones(y), ridge)) is None:
        return None
    return residuals[:, :-1].reshape(y.shape) + y / (n - 1) * residuals[:, -1].reshape((n,) + (1,) * (y.ndim - 1))


def _with_ones(y: np.ndarray) -> np.ndarray:
    """The columns of y and, for the effect of a mean, a column of ones."""
    return np.column_stack([y, np.ones(len(y))])


def choose_ridge(
    eigen: Eigen,
    y: Float[np.ndarray, "n *o"],
    candidates: Float[np.ndarray, " r"] | None = None,
    score: Score = "squared_error",
    *,
    centred: bool = False,
) -> tuple[float, Float[np.ndarray, "r 2"]]:
    """The ridge with the lowest leave-one-out score, and the table of (ridge, score) rows.

    `candidates` are ridges ≥ 0; by default 31 from 1e-8 to 1e2 times the mean eigenvalue, evenly in the logarithm.
    `score`: "squared_error" is the mean over examples and outputs; "error_rate" is the share of examples whose largest
    output is not where the largest target is, ties decided by the squared error. `centred`: see
    `leave_one_out_residuals`. Candidates at which the system is singular to float64 are left out of the table.

    Raises InputError on a bad argument, SingularMatrixError if no candidate is usable.
    """
    y = right_hand_side(y, len(eigen.eigenvalues))
    if score not in ("squared_error", "error_rate"):
        raise InputError(f'score is {score!r}; give "squared_error" or "error_rate"')
    if score == "error_rate" and (y.ndim != 2 or y.shape[1] < 2):
        raise InputError(f"y has shape {y.shape}; the error rate needs one column per class, [n, classes]")
    if centred and len(y) < 2:
        raise InputError("leave-one-out with a centred target needs at least 2 examples; there is 1")
    if candidates is None:
        candidates = (float(eigen.eigenvalues.mean()) or 1.0) * np.logspace(-8, 2, 31)
    ridges = [ridge_value(candidate) for candidate in np.ravel(candidates)]
    if not ridges:
        raise InputError("candidates is empty; give at least one ridge")
    table, ranks = [], []
    for ridge in ridges:
        residuals = leave_one_out_residuals(eigen, y, ridge, centred=centred)
        if residuals is None:
            continue
        squared = float(np.mean(residuals**2))
        value = squared
        if score == "error_rate":
            value = float(np.mean(np.argmax(y - residuals, axis=1) != np.argmax(y, axis=1)))
        table.append((ridge, value))
        ranks.append((value, squared))
    if not table:
        smallest = eigen.smallest_ridge(_with_ones(y) if centred else y)
        raise SingularMatrixError(
            f"the system is singular to float64 at every candidate ridge (up to {max(ridges):g}): "
            f"include one of at least {smallest:g}",
            smallest,
        )
    return table[min(range(len(table)), key=ranks.__getitem__)][0], np.array(table)
