"""scikit-learn estimators on the infinite-width limit of a network."""

from collections.abc import Callable
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .dynamics import GaussianProcess, KernelFlow, gaussian_process, kernel_flow
from .errors import InputError
from .gram import check_examples
from .kernels.base import Kernel
from .kernels.function import as_kernel
from .solve import Score, choose_ridge, leave_one_out_residuals, ridge_value
from .types import Array, Inputs

KernelLike: TypeAlias = Kernel | Callable[[Any, Any], Any]

_PARAMETERS = """
    Parameters
    ----------
    kernel: a `Kernel`, or a function k(x1, x2) -> [n, m] (then both K and Θ).
    ridge: λ ≥ 0, or "auto": the best leave-one-out score at t = ∞ over the default grid of `choose_ridge`.
    time: training time t of the gradient flow for the loss averaged over the examples; None is t = ∞.
    inference: "ntk" for the ensemble of trained networks, "nngp" for the Bayesian posterior (time must be None).
"""


class _InfiniteWidthEstimator(BaseEstimator):
    """What regression and classification share: from targets to a fitted `KernelFlow` or `GaussianProcess`."""

    flow_: KernelFlow
    process_: GaussianProcess

    def __init__(
        self,
        kernel: KernelLike,
        *,
        ridge: float | Literal["auto"] = "auto",
        time: float | None = None,
        inference: Literal["ntk", "nngp"] = "ntk",
    ):
        self.kernel = kernel
        self.ridge = ridge
        self.time = time
        self.inference = inference

    def _fit(self, x: np.ndarray, targets: np.ndarray, *, score: Score, centred: bool) -> np.ndarray | None:
        """Fits `targets`; gives back their leave-one-out predictions, None where they are not defined."""
        self._check_parameters(len(x))
        kernel = as_kernel(self.kernel)
        start = 0.0 if self.ridge == "auto" else ridge_value(self.ridge)
        build = kernel_flow if self.inference == "ntk" else gaussian_process
        fitted = build(kernel, x, targets, ridge=start)
        if isinstance(fitted, KernelFlow) and fitted.matrix_valued:
            raise InputError("the kernel is matrix-valued; estimators take a scalar one: use tangency.kernel_flow")
        self.ridge_path_ = None
        if self.ridge == "auto":
            chosen, self.ridge_path_ = choose_ridge(fitted.eigen, targets, score=score, centred=centred)
            fitted = fitted.with_ridge(chosen)
        self.ridge_ = fitted.ridge
        if isinstance(fitted, KernelFlow):
            self.flow_ = fitted
            fitted.coefficients(self.time)
        else:
            self.process_ = fitted
            fitted.coefficients()
        residuals = leave_one_out_residuals(fitted.eigen, targets, fitted.ridge, centred=centred)
        return None if residuals is None else targets - residuals

    def _check_parameters(self, n: int) -> None:
        if self.inference not in ("ntk", "nngp"):
            raise InputError(f'inference is {self.inference!r}; give "ntk" or "nngp"')
        if self.inference == "nngp" and self.time is not None:
            raise InputError(f'time is {self.time!r}, but inference="nngp" does not train; give time=None')
        if self.time is not None and np.ndim(self.time) != 0:
            raise InputError(f"time is {self.time!r}; give one number ≥ 0, or None for t = ∞")
        if isinstance(self.ridge, str) and self.ridge != "auto":
            raise InputError(f'ridge is {self.ridge!r}; give a number ≥ 0 or "auto"')
        if self.ridge == "auto" and n < 2:
            raise InputError(f'ridge="auto" leaves examples out and needs at least 2; n_samples = {n}: give a number')

    def _training_data(self, X: Any, y: Any, **checks: Any) -> tuple[np.ndarray, Any]:
        x, y = validate_data(self, X, y, dtype=np.float64, allow_nd=True, ensure_all_finite=False, **checks)
        return check_examples(x, "X"), y

    def _new_data(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, allow_nd=True, ensure_all_finite=False, reset=False)
        return check_examples(x, "X")

    def _mean(self, x: np.ndarray) -> np.ndarray:
        return self.flow_(x, self.time) if self.inference == "ntk" else self.process_.mean(x)


class NTKRegressor(MultiOutputMixin, RegressorMixin, _InfiniteWidthEstimator):
    __doc__ = f"""Regression by the infinite ensemble of trained networks, or its Bayesian counterpart.

    The targets are centred by their training mean, which is added to every prediction.
    {_PARAMETERS}
    Attributes
    ----------
    flow_ (inference="ntk") or process_ ("nngp"): fitted to the centred targets. intercept_: their mean, a float or [o].
    ridge_: the λ in use. ridge_path_: [r, 2] rows (ridge, mean squared leave-one-out error), None unless "auto".
    leave_one_out_score_: R² of the leave-one-out predictions at t = ∞, each with its own mean; None if it is not
    defined (one example, constant targets, or a matrix that is singular to float64).
    """

    def fit(self, X: Inputs, y: Float[Array, "n *o"]) -> Self:
        """X `[n, ...]`, y `[n]` or `[n, o]`. Raises InputError, MemoryLimitError, SingularMatrixError."""
        x, y = self._training_data(X, y, multi_output=True, y_numeric=True)
        targets = np.asarray(y, dtype=np.float64)
        mean = targets.mean(axis=0)
        left_out = self._fit(x, targets - mean, score="squared_error", centred=True)
        self.intercept_ = float(mean) if targets.ndim == 1 else mean
        varies = np.ptp(targets, axis=0).min() > 0
        self.leave_one_out_score_ = r2_score(targets, left_out + mean) if left_out is not None and varies else None
        return self

    def predict(
        self, X: Inputs, return_std: bool = False, return_cov: bool = False
    ) -> Float[np.ndarray, "n *o"] | tuple[Float[np.ndarray, "n *o"], np.ndarray]:
        """The mean, `[n]` or `[n, o]`; with it the standard deviation of f, shaped like the mean, or its covariance,
        `[n, n]` per output coordinate. The spread is the ensemble's (or posterior's); noise is not included."""
        if return_std and return_cov:
            raise InputError("return_std and return_cov are both set; ask for one of them")
        x = self._new_data(X)
        mean = self._mean(x) + self.intercept_
        if return_cov:
            return mean, (
                self.flow_.covariance(x, self.time) if self.inference == "ntk" else self.process_.covariance(x)
            )
        if return_std:
            variance = self.flow_.variance(x, self.time) if self.inference == "ntk" else self.process_.variance(x)
            deviation = np.sqrt(variance).reshape((-1,) + (1,) * (mean.ndim - 1))
            return mean, np.broadcast_to(deviation, mean.shape).copy()
        return mean


class NTKClassifier(ClassifierMixin, _InfiniteWidthEstimator):
    __doc__ = f"""Classification: regression on one-hot targets less 1/C, one output per class, and the largest wins.
    {_PARAMETERS}
    Attributes
    ----------
    classes_: the labels, sorted. flow_ (inference="ntk") or process_ ("nngp"): fitted to the targets [n, C].
    ridge_: the λ in use. ridge_path_: [r, 2] rows (ridge, leave-one-out error rate), None unless "auto".
    leave_one_out_score_: accuracy of the leave-one-out predictions at t = ∞; None if they are not defined.
    """

    def fit(self, X: Inputs, y: Any) -> Self:
        """X `[n, ...]`, labels y `[n]` of any type. Raises InputError, MemoryLimitError, SingularMatrixError."""
        x, y = self._training_data(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        count = len(self.classes_)
        if count == 1:
            raise InputError(
                f"y has only 1 class, {str(self.classes_[0])!r}, in {len(y)} rows; give at least two classes"
            )
        targets = np.eye(count)[labels] - 1 / count
        left_out = self._fit(x, targets, score="error_rate", centred=False)
        self.leave_one_out_score_ = None if left_out is None else accuracy_score(labels, left_out.argmax(axis=1))
        return self

    def decision_function(self, X: Inputs) -> np.ndarray:
        """One score per class, `[n, C]` in the order of `classes_`; for two classes that of the second, `[n]`."""
        scores = self._mean(self._new_data(X))
        return scores[:, 1] if len(self.classes_) == 2 else scores

    def predict(self, X: Inputs) -> np.ndarray:
        """The label with the largest score, `[n]`."""
        scores = self._mean(self._new_data(X))
        return self.classes_[scores.argmax(axis=1)]
