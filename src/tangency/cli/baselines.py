"""Honest opponents from scikit-learn, on the same features, training rows and test rows."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC, SVR

from .columns import Task

# An SVM needs between N² and N³ operations, so beyond this many rows it keeps C = 1 instead of searching.
MOST_ROWS_TO_SEARCH = 5000
C_GRID = (1.0, 10.0, 100.0)


def baselines(task: Task, targets: np.ndarray, *, seed: int) -> list[tuple[str, BaseEstimator]]:
    """Names and unfitted models. `targets` `[n]` are the training targets."""
    if task == "classification":
        return [
            ("constant (most frequent class)", DummyClassifier(strategy="most_frequent")),
            ("logistic regression", LogisticRegression(max_iter=1000)),
            _svm(SVC(), targets, int(np.unique(targets, return_counts=True)[1].min())),
            ("random forest (100 trees)", RandomForestClassifier(100, random_state=seed)),
        ]
    return [
        ("constant (mean)", DummyRegressor()),
        ("ridge regression", RidgeCV(alphas=np.logspace(-3, 4, 15))),
        _svm(SVR(), targets, targets.shape[0]),
        ("random forest (100 trees)", RandomForestRegressor(100, random_state=seed)),
    ]


def _svm(model: Any, targets: np.ndarray, smallest_class: int) -> tuple[str, BaseEstimator]:
    folds = min(3, smallest_class)
    if folds < 2 or targets.shape[0] > MOST_ROWS_TO_SEARCH:
        return "RBF SVM (C = 1)", model
    return f"RBF SVM (C by {folds}-fold CV)", GridSearchCV(model, {"C": list(C_GRID)}, cv=folds)


def predict_baselines(
    task: Task, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, *, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, predictions on `x_test`) of every baseline, one after the other.

    `y` is `[n]`: labels, or a regression target in any units; models are fitted on the standardised target.
    """
    centre, scale = (0.0, 1.0) if task == "classification" else (y.mean(), y.std())
    targets = y if task == "classification" else (y - centre) / scale
    for name, model in baselines(task, targets, seed=seed):
        with warnings.catch_warnings():
            # A solver that stops at its iteration limit still gives a fair opponent.
            warnings.simplefilter("ignore")
            predicted = model.fit(x, targets).predict(x_test)  # pyright: ignore[reportAttributeAccessIssue]
        yield name, predicted if task == "classification" else centre + scale * predicted
