"""`tangency predict`: new rows through a fitted model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from ..models import is_user_function
from .columns import Task, inputs, target_values
from .console import Stages
from .data import Table, read_table
from .fit import prediction_columns
from .metrics import score
from .model import FittedModel
from .store import load_model, write_file


@dataclass(frozen=True)
class Predictions:
    """Where they were written, how many there are, and the metrics if the new data has the target.

    `seen` counts the rows whose inputs equal those of a training row: they flatter the metrics.
    """

    path: Path
    rows: int
    seen: int
    task: Task
    metrics: dict[str, float | None] | None


def predict(folder: Path, data: str, out: Path | None, allowed: str | None, stages: Stages) -> Predictions:
    """Write the predictions for every row of `data`.

    `allowed` is the user's own `module:function`, repeated: a folder alone never makes Tangency import code.
    Raises `InputError` for a bad folder, bad data, or a `--model` that is not the one of the fit.
    """
    model = load_model(folder)
    _check_allowed(model, folder, allowed)
    with stages("read"):
        table = read_table(data, model.target)
        x = model.preprocessing(inputs(table, model.columns))
    path = folder / f"predictions-{table.name}.csv" if out is None else out
    _check_path(path, data)
    with stages("derive the kernel"):
        kernel = model.kernel()
    with stages("predict") as progress:
        scores = model.mean(kernel, x, progress)
    std = None
    if model.task == "regression":
        with stages("spread") as kernel.on_progress:
            std = model.std(model.flow(kernel), x)
    columns = {"row": np.arange(table.frame.height) + 1} | prediction_columns(model, scores, std)
    write_file(path, pl.DataFrame(columns).write_csv().encode())
    return Predictions(
        path, table.frame.height, _seen(model, x), model.task, _metrics(model, table, model.predict(scores))
    )


def _seen(model: FittedModel, x: np.ndarray) -> int:
    trained = {row.tobytes() for row in model.inputs}
    return sum(row.tobytes() in trained for row in np.ascontiguousarray(x))


def _check_allowed(model: FittedModel, folder: Path, allowed: str | None) -> None:
    if is_user_function(model.spec) and allowed is None:
        raise InputError(
            f"{folder} was fitted with {model.spec}, which is code outside tangency; "
            f"add --model {model.spec} to let it run"
        )
    if allowed is not None and allowed != model.spec:
        raise InputError(f"--model {allowed}: {folder} was fitted with {model.spec}")


def _check_path(path: Path, data: str) -> None:
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name a file")
    if path.exists() and Path(data).exists() and path.samefile(data):
        raise InputError(f"--out {path} is the new data itself; name another file")


def _metrics(model: FittedModel, table: Table, predicted: np.ndarray) -> dict[str, float | None] | None:
    """The test metrics, when every row has a target of the fitted type."""
    if model.target not in table.columns:
        return None
    try:
        true = target_values(table, model.target, model.task)
    except InputError:
        return None
    return score(model.task, true, predicted) if true.dtype.kind == predicted.dtype.kind else None
