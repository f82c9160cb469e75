"""The largest learning rate with which descent is stable."""

import warnings

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float

from ..errors import InputError, LearningRateWarning
from .operator import flattened
from .problem import Problem

_DENSE = 300
_MARGIN = 1e-9


def largest_eigenvalue(task: Problem, block: Float[np.ndarray, "N N *oo"]) -> float:
    """λ_max of the kernel matrix over examples and outputs."""
    matrix = flattened(block) if block.ndim == 4 else block
    n = len(matrix)
    if n <= _DENSE:
        largest = scipy.linalg.eigh(matrix, eigvals_only=True, subset_by_index=(n - 1, n - 1))[0]
    else:
        start = np.random.default_rng(0).normal(size=n)
        largest = scipy.sparse.linalg.eigsh(matrix, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    coupling = 1.0 if task.operator.coupling is None else np.linalg.eigvalsh(task.operator.coupling)[-1]
    return max(float(largest * coupling), 0.0)


def learning_rate_bound(
    largest: float, n: int, curvature: float, *, momentum: float = 0.0, nesterov: bool = False, decay: float = 0.0
) -> float:
    """The η below which descent on a quadratic loss of this curvature converges; infinity where nothing moves.

    η (curvature · λ_max / N + decay) < 2 without momentum μ, 2 (1 + μ) with it, 2 (1 + μ) / (1 + 2μ) with Nesterov's:
    where the slowest mode's iteration matrix reaches the eigenvalue −1.
    """
    steepest = curvature * largest / n + decay
    limit = 2 * (1 + momentum) / ((1 + 2 * momentum) if nesterov else 1)
    return limit / steepest if steepest > 0 else np.inf


def curvature_at(task: Problem, f: Float[np.ndarray, "N o"]) -> tuple[float | None, str]:
    """The largest eigenvalue that the loss's Hessian has, and where that holds; None for a loss with kinks."""
    if not task.loss.smooth:
        return None, ""
    if task.loss.curvature is not None:
        return task.loss.curvature, "everywhere"
    hessians = task.hessians(f)
    if not np.isfinite(hessians).all():
        return None, ""
    return max(float(np.linalg.eigvalsh(hessians)[:, -1].max()), 0.0), "at f0"


def check_learning_rate(rate: float, bound: float, task: Problem, *, where: str, full_batch: bool) -> None:
    """Raises InputError above a bound that is necessary, warns with LearningRateWarning above one that may not be."""
    if rate <= bound * (1 + _MARGIN):
        return
    name = task.loss.name
    if task.loss.quadratic and full_batch:
        raise InputError(
            f"learning_rate is {rate:g}; descent on the squared loss diverges above {bound:.6g}, the bound that the "
            "largest eigenvalue of the kernel matrix sets: use a smaller one"
        )
    reason = (
        "the mean over batches diverges above it"
        if task.loss.quadratic
        else f"from the largest curvature of the {name} loss {where}; sufficient, not necessary"
    )
    warnings.warn(
        f"learning_rate is {rate:g}, above the stability bound {bound:.6g} ({reason}): watch the training cost",
        LearningRateWarning,
        stacklevel=4,
    )
