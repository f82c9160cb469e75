"""`tangency verify`: networks of several widths, trained on a table beside what their kernels predict."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import models, report
from ..dynamics import Verification
from ..dynamics import verify as verify_networks
from ..dynamics.verification import LIMIT_DESCENT, LINEARISED
from .console import Stages, print_table
from .fit import FitRequest, Part, Problem, read_problem
from .preprocessing import Preprocessing


@dataclass(frozen=True)
class VerifyRequest:
    """What the user asked for; `rate` None is chosen, `rows` bounds the training and the test rows."""

    table: FitRequest
    widths: tuple[int, ...]
    seeds: int
    steps: int
    rate: float | None
    rows: int


@dataclass(frozen=True)
class Verified:
    """The measurement and what it was measured on."""

    problem: Problem
    result: Verification
    test_rows: int
    notes: tuple[str, ...]


def default_folder(data: str) -> Path:
    """The folder for what DATA names."""
    return Path(f"tangency-verify-{Path(data).stem}")


def verify(request: VerifyRequest, stages: Stages) -> Verified:
    """Read, choose rows, train and compare. Raises a `TangencyError` with one line for the user."""
    models.parse_spec(request.table.model)
    with stages("read"):
        problem = read_problem(request.table)
        train, test = (_chosen(part, request) for part in (problem.train, problem.test))
        preprocessing = Preprocessing.fit(train.frame, problem.columns)
        x, x_test = preprocessing(train.frame), preprocessing(test.frame)
        y = _targets(train.target, problem)
    make_model = models.make_of_width(request.table.model, x.shape[1], 1 if y.ndim == 1 else y.shape[1])
    with stages("verify") as progress:
        result = verify_networks(
            make_model,
            x,
            y,
            x_test=x_test,
            widths=request.widths,
            seeds=request.seeds,
            steps=request.steps,
            learning_rate=request.rate,
            progress=progress,
        )
    notes = problem.notes
    if len(train.rows) < len(problem.train.rows):
        notes = (*notes, f"{len(train.rows)} of {len(problem.train.rows)} training rows are used; --rows sets how many")
    return Verified(problem, result, len(test.rows), notes)


def _chosen(part: Part, request: VerifyRequest) -> Part:
    """At most `rows` of them, drawn at random, in the table's order."""
    count = len(part.rows)
    if count <= request.rows:
        return part
    kept = np.sort(np.random.default_rng(request.table.seed).permutation(count)[: request.rows])
    return Part(part.rows[kept], part.frame[kept], part.target[kept])


def _targets(target: np.ndarray, problem: Problem) -> np.ndarray:
    """Two classes are ±1 `[n]`, C classes one-hot rows less 1/C `[n, C]`; a number is standardised, `[n]`."""
    if problem.task == "regression":
        deviation = float(target.std())
        return (target - target.mean()) / (deviation if deviation > 0 else 1.0)
    labels = np.unique(problem.train.target)
    if labels.size == 2:
        return np.where(target == labels[1], 1.0, -1.0)
    return (target[:, None] == labels[None, :]).astype(np.float64) - 1 / labels.size


def files(done: Verified, request: VerifyRequest, stages: Stages) -> dict[str, bytes]:
    """`verification.json`, all trajectories, and the report."""
    with stages("report"):
        page = report.verification_html(
            done.result,
            title=f"{done.problem.name}: {request.table.model}",
            facts=_facts(done, request),
            notes=done.notes,
        )
        arrays = io.BytesIO()
        done.result.save(arrays)
    return {
        "report.html": page.encode(),
        "verification.json": json.dumps(_content(done, request, stages.seconds), indent=2, ensure_ascii=False).encode(),
        "verification.npz": arrays.getvalue(),
    }


def _facts(done: Verified, request: VerifyRequest) -> list[tuple[str, str]]:
    return [
        ("data", request.table.data),
        ("target", done.problem.target),
        ("model", request.table.model),
        ("test examples", f"{done.test_rows:,}"),
    ]


def _content(done: Verified, request: VerifyRequest, seconds: Mapping[str, float]) -> dict[str, Any]:
    numbers = done.result.to_dict()
    return numbers | {
        "data": request.table.data,
        "target": done.problem.target,
        "task": done.problem.task,
        "model": request.table.model,
        "seed": request.table.seed,
        "test_examples": done.test_rows,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "versions": report.versions(
            ("tangency", "jax", "equinox", "optax", "numpy", "scipy", "scikit-learn", "polars")
        ),
        "notes": list(done.notes),
    }


def print_verification(done: Verified) -> None:
    """The numbers by width, and the verdict."""
    result = done.result
    columns = (
        result.limit_error.mean(axis=1),
        result.drift.mean(axis=1),
        result.gap(LINEARISED).max(axis=2).mean(axis=1),
        result.gap(LIMIT_DESCENT).max(axis=2).mean(axis=1),
    )
    rows = [
        (f"{width:,}", *(report.percent(values[place]) for values in columns))
        for place, width in enumerate(result.widths)
    ]
    title = f"{done.problem.name}: {len(result.y)} training rows, mean over {len(result.seeds)} networks of each width"
    print_table(title, ("width", "NTK to limit", "NTK drift", "to linearised", "to limit"), rows)
    for sentence in result.verdict():
        print(sentence)
    for note in done.notes:
        print(f"note: {note}")
