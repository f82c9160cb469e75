"""The command line. Numerical libraries are imported by the command that needs them, so `--help` is instant."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from .._version import __version__
from ..errors import InputError
from .console import Commands, Stages

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a neural network into its Neural Tangent Kernel, and that kernel into predictions.",
)

ModelOption = Annotated[
    str,
    typer.Option(
        help="mlp, resmlp or linear, with options (mlp:depth=3,activation=gelu); "
        "or module:function, your own function key -> equinox.Module."
    ),
]


def main() -> None:
    """The console script."""
    app()


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tangency {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def fit(
    data: Annotated[
        str, typer.Argument(help="CSV, Parquet or .npz file; or digits, breast_cancer, wine, iris, diabetes.")
    ],
    target: Annotated[str | None, typer.Option(help="Column to predict. Data sets that ship know theirs.")] = None,
    model: ModelOption = "mlp",
    test: Annotated[str, typer.Option(help="Fraction of the rows to hold out, or a file of test rows.")] = "0.2",
    ridge: Annotated[str, typer.Option(help="λ ≥ 0 on the kernel's diagonal; auto: by leave-one-out.")] = "auto",
    time: Annotated[float | None, typer.Option(help="Gradient-flow time > 0 to stop at; default: ∞.")] = None,
    task: Annotated[
        Literal["classification", "regression"] | None,
        typer.Option(help="Default: text or at most 20 distinct integers are classes."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the split and of the baselines.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: tangency-NAME.")] = None,
) -> None:
    """Fit the infinite-width limit of a network to a table and compare it with scikit-learn."""
    chosen_ridge, chosen_test = _parse_ridge(ridge), _parse_test(test)
    if time is not None and not (math.isfinite(time) and time > 0):
        raise InputError(f"--time {time:g}: training time must be a number > 0; leave it out for ∞")
    from .fit import FitRequest, default_folder, predictions_csv
    from .fit import fit as run
    from .store import check_output_folder, model_files, write_folder
    from .summary import metrics_json, print_summary, report_html

    request = FitRequest(data, target, model, chosen_test, chosen_ridge, time, task, seed)
    folder = default_folder(data) if out is None else out
    check_output_folder(folder)
    stages = Stages()
    fitted = run(request, stages)
    page = report_html(fitted, request, stages)
    files = model_files(fitted.model) | {
        "predictions.csv": predictions_csv(fitted),
        "report.html": page,
        "metrics.json": metrics_json(fitted, request),
    }
    write_folder(folder, files)
    print_summary(fitted, request)
    typer.echo(f"wrote {folder}: {', '.join(sorted(files))}")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What tangency fit wrote.")],
    new_data: Annotated[str, typer.Argument(metavar="NEWDATA", help="A table with the columns of the fit.")],
    out: Annotated[Path | None, typer.Option(help="CSV file; default: DIR/predictions-NAME.csv.")] = None,
    model: Annotated[
        str | None, typer.Option(help="For a model of your own: its module:function again, to let it run.")
    ] = None,
) -> None:
    """Predict new rows with a fitted model."""
    from .metrics import format_metric
    from .predict import predict as run

    done = run(folder, new_data, out, model, Stages())
    if done.metrics is not None:
        typer.echo(", ".join(f"{name} {format_metric(done.task, value)}" for name, value in done.metrics.items()))
        if done.seen:
            typer.echo(f"note: {done.seen} of these rows have inputs that the model was trained on")
    typer.echo(f"wrote {done.path}: {done.rows} predictions")


@app.command()
def verify(
    data: Annotated[str, typer.Argument(help="As for tangency fit.")],
    target: Annotated[str | None, typer.Option(help="Column to predict. Data sets that ship know theirs.")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="As for tangency fit, without a width; or module:function with the keyword width: "
            "function(key, width=...) -> equinox.Module."
        ),
    ] = "mlp",
    widths: Annotated[str, typer.Option(help="Widths to train, separated by commas.")] = "64,256,1024",
    seeds: Annotated[int, typer.Option(min=1, help="Networks of each width.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 200,
    learning_rate: Annotated[
        str, typer.Option(help="η > 0; auto: a quarter of the largest stable one of the limit.")
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="At most as many training rows, and as many test rows.")] = 100,
    test: Annotated[str, typer.Option(help="Fraction of the rows to hold out, or a file of test rows.")] = "0.2",
    task: Annotated[
        Literal["classification", "regression"] | None,
        typer.Option(help="Default: text or at most 20 distinct integers are classes."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the split and of the choice of rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: tangency-verify-NAME.")] = None,
) -> None:
    """Train networks of several widths and compare them with what their kernels predict."""
    chosen_widths, rate, chosen_test = _parse_widths(widths), _parse_learning_rate(learning_rate), _parse_test(test)
    from .fit import FitRequest
    from .store import VERIFIED, check_output_folder, write_folder
    from .verify import VerifyRequest, default_folder, files, print_verification
    from .verify import verify as run

    table = FitRequest(data, target, model, chosen_test, None, None, task, seed)
    request = VerifyRequest(table, chosen_widths, seeds, steps, rate, rows)
    folder = default_folder(data) if out is None else out
    check_output_folder(folder, VERIFIED)
    stages = Stages()
    done = run(request, stages)
    written = files(done, request, stages)
    write_folder(folder, written, VERIFIED)
    print_verification(done)
    typer.echo(f"wrote {folder}: {', '.join(sorted(written))}")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="SPEC", help="As --model of tangency fit.")] = "mlp",
    input_shape: Annotated[str, typer.Option(help="Shape of one example: 784, or 32,32,3.")] = "1",
    latex: Annotated[bool, typer.Option("--latex", help="Print the recursion as LaTeX.")] = False,
) -> None:
    """Print the limit that follows from a model: its graph and the recursion of its kernel."""
    shape = _parse_shape(input_shape)
    from .. import models
    from ..limit import limit

    kernel = limit(models.make(model, math.prod(shape), 1), input_shape=shape)
    if latex:
        typer.echo(kernel.explain(format="latex"))
        return
    typer.echo(f"{kernel}\n\n{kernel.explain()}")


def _parse_ridge(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"--ridge {text}: give auto or a number ≥ 0")
    return value


def _parse_test(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    if not 0 < value < 1:
        raise InputError(f"--test {text}: give a fraction between 0 and 1, or a file")
    return value


def _parse_widths(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(map(int, parts))) < len(parts):
        raise InputError(f"--widths {text}: give distinct positive integers, as in 64,256,1024")
    return tuple(map(int, parts))


def _parse_learning_rate(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"--learning-rate {text}: give auto or a number > 0")
    return value


def _parse_shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--input-shape {text}: give positive integers, as in 784 or 32,32,3")
    return tuple(int(part) for part in parts)
