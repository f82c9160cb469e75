"""What a fit leaves behind besides the model: `metrics.json`, the report, and the table on the terminal."""

import json
import platform
from importlib.metadata import version
from typing import Any

import numpy as np

from .. import report
from .console import Stages, print_table
from .fit import OURS, Fit, FitRequest
from .metrics import METRICS, format_metric, score

_VERSIONS = ("tangency", "jax", "equinox", "numpy", "scipy", "scikit-learn", "polars")
LEAVE_ONE_OUT = {"classification": "accuracy", "regression": "R²"}


def metrics_json(fit: Fit, request: FitRequest) -> bytes:
    """Every number of the run, for programs."""
    estimator, problem = fit.estimator, fit.problem
    leave_one_out = estimator.leave_one_out_score_
    content: dict[str, Any] = {
        "format": "tangency metrics",
        "format_version": 1,
        "data": request.data,
        "test": request.test,
        "seed": request.seed,
        "target": problem.target,
        "task": problem.task,
        "model": request.model,
        "n_train": problem.train.target.size,
        "n_test": problem.test.target.size,
        "n_features": fit.model.preprocessing.size,
        "ridge": fit.model.ridge,
        "ridge_chosen": "leave-one-out" if request.ridge is None else "given",
        "time": request.time,
        "leave_one_out": {
            "metric": LEAVE_ONE_OUT[problem.task],
            "score": None if leave_one_out is None else float(leave_one_out),
        },
        "test_metrics": fit.metrics,
        "seconds": {name: round(seconds, 4) for name, seconds in fit.seconds.items()},
        "versions": _versions(),
        "notes": list(fit.notes),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}


def print_summary(fit: Fit, request: FitRequest) -> None:
    """The comparison on the test part, and what the model is."""
    names = METRICS[fit.problem.task]
    rows = [(model, *_cells(fit, model)) for model in fit.metrics]
    print_table(f"{fit.problem.name}: test part, {fit.problem.test.target.size} rows", ("model", *names), rows)
    print(f"{fit.problem.task} of '{fit.problem.target}', " + ", ".join(f"{k} {v}" for k, v in facts(fit, request)[1:]))
    for note in fit.notes:
        print(f"note: {note}")


def _cells(fit: Fit, model: str) -> list[str]:
    return [format_metric(fit.problem.task, fit.metrics[model][name]) for name in METRICS[fit.problem.task]]


def facts(fit: Fit, request: FitRequest) -> list[tuple[str, str]]:
    """Name and value of what was run."""
    chosen = "chosen by leave-one-out" if request.ridge is None else "given"
    leave_one_out = fit.estimator.leave_one_out_score_
    lines = [
        ("data", request.data),
        ("model", request.model),
        ("training rows", f"{fit.problem.train.target.size:,}"),
        ("test rows", f"{fit.problem.test.target.size:,}"),
        ("features", f"{fit.model.preprocessing.size:,}"),
        ("ridge", f"{fit.model.ridge:.3g} ({chosen})"),
        ("training time", "∞" if request.time is None else f"{request.time:g}"),
    ]
    if leave_one_out is not None:
        lines.append((f"leave-one-out {LEAVE_ONE_OUT[fit.problem.task]}", f"{leave_one_out:.3f}"))
    return lines


def report_html(fit: Fit, request: FitRequest, stages: Stages) -> bytes:
    """The page, with its figures computed from the fitted flow."""
    with stages("report"):
        page = report.Report(
            title=f"{fit.problem.name}: {fit.problem.task} of {fit.problem.target}",
            summary=_summary(fit),
            facts=facts(fit, request),
            metric_names=METRICS[fit.problem.task],
            metric_rows=[(model, _cells(fit, model)) for model in fit.metrics],
            figures=[_kernel_matrix(fit), _spectrum(fit), _learning_curve(fit), _outcome(fit)],
            graph=str(fit.kernel.kernel),
            recursion=fit.kernel.kernel.explain(),
            latex=fit.kernel.kernel.explain(format="latex"),
            notes=fit.notes,
            footer=" · ".join(f"{name} {number}" for name, number in _versions().items()),
        )
        return report.render(page).encode()


def _summary(fit: Fit) -> str:
    task, headline = fit.problem.task, METRICS[fit.problem.task][0]
    ours = fit.metrics[OURS][headline]
    others = {name: values[headline] for name, values in fit.metrics.items() if name != OURS}
    pick = max if task == "classification" else min
    best = pick(others, key=lambda name: others[name] or 0.0)
    return (
        f"On {fit.problem.test.target.size:,} held-out rows the infinite-width network reaches {headline} "
        f"{format_metric(task, ours)}; the best of the baselines, {best}, reaches {format_metric(task, others[best])}."
    )


def _class_names(fit: Fit) -> tuple[np.ndarray, tuple[str, ...]]:
    """All labels, those that only the test part has included, and their names."""
    labels = np.union1d(fit.problem.train.target, fit.problem.test.target)
    return labels, tuple(str(label) for label in labels)


def _kernel_matrix(fit: Fit) -> report.FigureCard:
    target, names = fit.problem.train.target, None
    if fit.problem.task == "classification":
        labels, names = _class_names(fit)
        target = np.searchsorted(labels, target)
    rows = report.sorted_rows(target)
    matrix = fit.estimator.flow_.eigen.matrix[np.ix_(rows, rows)]
    display = report.KernelMatrixDisplay.compute(matrix, target[rows], class_names=names)
    order = "class" if names else "target"
    thinned = f" ({rows.size} of {target.size} rows)" if rows.size < target.size else ""
    return report.FigureCard(
        "kernel",
        "Kernel matrix",
        f"NTK between training rows{thinned}, sorted by {order}, scaled to 1 on the diagonal. "
        f"Bright blocks mean that the network sees rows of one {order} as alike before any training.",
        display,
    )


def _spectrum(fit: Fit) -> report.FigureCard:
    display = report.SpectrumDisplay.compute(fit.estimator.flow_.eigenvalues, ridge=fit.model.ridge)
    dropped = f" {display.dropped} eigenvalues are zero to rounding and not shown." if display.dropped else ""
    return report.FigureCard(
        "spectrum",
        "Spectrum",
        "Eigenvalues of the training kernel. Directions above the ridge are learned, those below are damped; "
        f"the error along each decays at a rate proportional to its eigenvalue.{dropped}",
        display,
    )


def _learning_curve(fit: Fit) -> report.FigureCard:
    task, metric = fit.problem.task, METRICS[fit.problem.task][0]

    def curve(path: np.ndarray, true: np.ndarray) -> np.ndarray:
        return np.array([score(task, true, fit.model.predict(scores))[metric] for scores in path])

    train = curve(fit.model.in_units(fit.estimator.flow_.train(fit.times)), fit.problem.train.target)
    test = curve(fit.path, fit.problem.test.target)
    display = report.LearningCurveDisplay.compute(fit.times, train, test, metric=metric, chosen=fit.model.time)
    return report.FigureCard(
        "curve",
        "Learning curve",
        "The mean of the trained ensemble along gradient flow on the squared loss averaged over the training rows, "
        "with the chosen ridge. It shows what stopping early would do; nothing was chosen by it.",
        display,
    )


def _outcome(fit: Fit) -> report.FigureCard:
    true = fit.problem.test.target
    if fit.std is not None:
        return report.FigureCard(
            "outcome",
            "Predicted against true",
            "Test rows. Bars are ±2 standard deviations over the ensemble of trained networks; "
            "noise in the target is not included.",
            report.PredictionDisplay.compute(true, fit.predicted, fit.std),
        )
    labels, names = _class_names(fit)
    return report.FigureCard(
        "outcome",
        "Confusion matrix",
        "Test rows. Numbers count rows; colour is the share of the true class.",
        report.ConfusionMatrixDisplay.compute(
            np.searchsorted(labels, true), np.searchsorted(labels, fit.predicted), class_names=names
        ),
    )
