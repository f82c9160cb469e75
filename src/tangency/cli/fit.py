"""`tangency fit`: from a table to a fitted infinite network, its test metrics and its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from .. import models, report
from ..errors import InputError, SingularMatrixError
from ..estimators import NTKClassifier, NTKRegressor
from ..kernels import Kernel
from ..models.suggestion import listed
from .baselines import predict_baselines
from .columns import (
    Column,
    Task,
    check_target_varies,
    describe_columns,
    infer_task,
    inputs,
    target_name,
    target_values,
)
from .console import Stages
from .data import Table, read_table
from .metrics import score
from .model import PROBE_ROWS, FittedModel, WatchedKernel, derive_kernel, expand
from .preprocessing import Preprocessing
from .split import split_rows

OURS = "infinite network (NTK)"


@dataclass(frozen=True)
class FitRequest:
    """What the user asked for. `test` is a fraction of the rows or a second table; `ridge` None means automatic."""

    data: str
    target: str | None
    model: str
    test: float | str
    ridge: float | None
    time: float | None
    task: Task | None
    seed: int


@dataclass(frozen=True)
class Part:
    """Some rows of a table: their numbers in it (from 1), the input columns, and the target `[n]`."""

    rows: np.ndarray
    frame: pl.DataFrame
    target: np.ndarray


@dataclass(frozen=True)
class Problem:
    """A table understood: what is predicted from what, and which rows train and which test."""

    name: str
    task: Task
    target: str
    columns: tuple[Column, ...]
    train: Part
    test: Part
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """A fitted model and everything measured on the way; `scores` and `std` belong to the test part.

    `path` `[T, n_test, ...]` are the scores on the test part at the gradient-flow `times` `[T]`.
    """

    problem: Problem
    model: FittedModel
    kernel: WatchedKernel
    estimator: NTKClassifier | NTKRegressor
    times: np.ndarray
    path: np.ndarray
    scores: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None
    metrics: Mapping[str, Mapping[str, float | None]]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]


def read_problem(request: FitRequest) -> Problem:
    """Read DATA (and the test file) and split it. Raises `InputError` for everything that is wrong with them."""
    table = read_table(request.data, request.target)
    target = target_name(table, request.target)
    columns = describe_columns(table, target)
    task = infer_task(table, target, request.task)
    values = target_values(table, target, task)
    check_target_varies(values, target, task, "data")
    frame = inputs(table, columns)
    if isinstance(request.test, str):
        rows = np.arange(values.size)
        test = _whole_table(read_table(request.test, target), target, columns, task)
        if values.dtype.kind != test.target.dtype.kind:
            raise InputError(f"target '{target}' is of another type in {request.test} than in {request.data}")
    else:
        rows, test_rows = split_rows(values, request.test, task=task, seed=request.seed)
        test = Part(test_rows + 1, frame[test_rows], values[test_rows])
    train = Part(rows + 1, frame[rows], values[rows])
    check_target_varies(train.target, target, task, "training part")
    return Problem(table.name, task, target, columns, train, test, table.notes + _column_notes(table, columns))


def _whole_table(table: Table, target: str, columns: tuple[Column, ...], task: Task) -> Part:
    name = target_name(table, target)
    values = target_values(table, name, task)
    return Part(np.arange(values.size) + 1, inputs(table, columns), values)


def _column_notes(table: Table, columns: tuple[Column, ...]) -> tuple[str, ...]:
    rows = table.frame.height
    wide = [c.name for c in columns if c.kind == "category" and table.frame[c.name].n_unique() > max(20, rows // 2)]
    return tuple(
        f"column '{name}' has {table.frame[name].n_unique()} distinct texts in {rows} rows: "
        "one-hot encoded, it says little about new rows"
        for name in wide
    )


def fit(request: FitRequest, stages: Stages) -> Fit:
    """Everything up to the comparison with the baselines. Raises a `TangencyError` with one line for the user."""
    models.parse_spec(request.model)
    with stages("read"):
        problem = read_problem(request)
        preprocessing = Preprocessing.fit(problem.train.frame, problem.columns)
        x, x_test = preprocessing(problem.train.frame), preprocessing(problem.test.frame)
    labels = np.unique(problem.train.target) if problem.task == "classification" else None
    with stages("derive the kernel"):
        kernel = WatchedKernel(derive_kernel(request.model, x.shape[1], 1 if labels is None else labels.size))
    target, centre, scale = problem.train.target, 0.0, 1.0
    if labels is None:
        # The ensemble starts from networks of variance K, so its spread means something for a target of unit variance.
        centre, scale = float(target.mean()), float(target.std())
        target = (target - centre) / scale
    with stages("fit") as kernel.on_progress:
        estimator = _fit_estimator(request, problem, kernel, x, target)
    flow = estimator.flow_
    model = FittedModel(
        spec=request.model,
        task=problem.task,
        target=problem.target,
        columns=problem.columns,
        preprocessing=preprocessing,
        ridge=float(estimator.ridge_),
        time=request.time,
        inputs=x,
        targets=np.asarray(flow.y),
        coefficients=np.asarray(flow.coefficients(request.time)),
        probe=flow.eigen.matrix[:PROBE_ROWS, :PROBE_ROWS].copy(),
        labels=labels,
        centre=centre,
        scale=scale,
    )
    times = report.time_grid(flow.eigenvalues, model.ridge)
    with stages("predict") as progress:
        kernel.on_progress = None
        coefficients = np.stack([model.coefficients, *flow.coefficients(times)], axis=1)
        values = model.in_units(np.moveaxis(expand(kernel, x_test, x, coefficients, progress), 1, 0))
        scores, path = values[0], values[1:]
        std = None if labels is not None else model.std(flow, x_test)
    predicted = model.predict(scores)
    metrics = {OURS: score(problem.task, problem.test.target, predicted)}
    with stages("baselines") as progress:
        opponents = predict_baselines(problem.task, x, problem.train.target, x_test, seed=request.seed)
        for done, (name, values) in enumerate(opponents):
            metrics[name] = score(problem.task, problem.test.target, values)
            progress(done + 1, 4)
    notes = problem.notes + _gap_note(problem, preprocessing) + _constant_note(preprocessing)
    return Fit(problem, model, kernel, estimator, times, path, scores, predicted, std, metrics, stages.seconds, notes)


def _fit_estimator(
    request: FitRequest, problem: Problem, kernel: Kernel, x: np.ndarray, y: np.ndarray
) -> NTKClassifier | NTKRegressor:
    estimator = NTKClassifier if problem.task == "classification" else NTKRegressor
    ridge = "auto" if request.ridge is None else request.ridge
    try:
        fitted = estimator(kernel, ridge=ridge, time=request.time).fit(x, y)
        fitted.flow_.coefficients(request.time)
    except SingularMatrixError as error:
        raise _explain_singular(error, problem, x, y) from error
    return fitted


def _explain_singular(error: SingularMatrixError, problem: Problem, x: np.ndarray, y: np.ndarray) -> InputError:
    """The same refusal in the user's terms: which rows contradict each other, and which --ridge works."""
    smallest = f"use --ridge {error.smallest_ridge:.2g} or more" if error.smallest_ridge else "use a larger --ridge"
    _, inverse = np.unique(x, axis=0, return_inverse=True)
    first: dict[int, int] = {}
    for row, group in enumerate(inverse.ravel()):
        other = first.setdefault(int(group), row)
        if y[other] != y[row]:
            a, b = problem.train.rows[other], problem.train.rows[row]
            return InputError(
                f"rows {a} and {b} have equal inputs but different targets, so the kernel matrix is singular at this "
                f"ridge and no network fits both; {smallest}, or --ridge auto"
            )
    return InputError(f"the kernel matrix of the training rows is singular at this ridge; {smallest}, or --ridge auto")


def _gap_note(problem: Problem, preprocessing: Preprocessing) -> tuple[str, ...]:
    train, test = (preprocessing.gaps(part.frame) for part in (problem.train, problem.test))
    names = [f"{name} ({train[name]} + {test[name]})" for name in train if train[name] or test[name]]
    if not names:
        return ()
    return (f"missing numbers, replaced by the training mean (training + test rows): {listed(names, 6)}",)


def _constant_note(preprocessing: Preprocessing) -> tuple[str, ...]:
    names = preprocessing.constant
    if not names:
        return ()
    return (f"left out, constant in the training part: {listed(names, 6)}",)


def predictions_csv(fit: Fit) -> bytes:
    """The test part: row number, truth, prediction, and a score for each class or the ensemble's spread."""
    columns = {"row": fit.problem.test.rows, "true": fit.problem.test.target}
    return pl.DataFrame(columns | prediction_columns(fit.model, fit.scores, fit.std)).write_csv().encode()


def prediction_columns(model: FittedModel, scores: np.ndarray, std: np.ndarray | None) -> dict[str, np.ndarray]:
    """ "prediction", then "score CLASS" for each class of a classification, "std" for a regression."""
    columns = {"prediction": model.predict(scores)}
    if model.labels is not None:
        return columns | {f"score {label}": scores[:, i] for i, label in enumerate(model.labels)}
    return columns if std is None else columns | {"std": std}


def default_folder(data: str) -> Path:
    """`tangency-NAME` in the current directory."""
    return Path(f"tangency-{Path(data).stem}")
