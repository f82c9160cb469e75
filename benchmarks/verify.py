"""Finite networks on the digits beside what their kernels predict: do their training curves stay within the band?

python benchmarks/verify.py [--rows N] [--steps T] [--seeds S] [--report FOLDER] [--json FILE]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits

import tangency as tg
from tangency import models
from tangency.dynamics import Verification
from tangency.dynamics.verification import LIMIT_DESCENT, LINEARISED

MODEL = "mlp:depth=2"
BAND = 0.1
"""Largest distance from descent with the limit NTK, root mean square, as a share of the error at the start."""


def tasks() -> dict[str, np.ndarray]:
    """Even digits against odd ones as ±1, and ten classes as centred one-hot rows."""
    labels = load_digits().target
    return {"even or odd": np.where(labels % 2, 1.0, -1.0), "ten classes": np.eye(10)[labels] - 0.1}


def measured(y: np.ndarray, options: argparse.Namespace, progress: Any) -> Verification:
    """In float32, as networks are trained; matrices are in float64."""
    x = (load_digits().data / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[: options.rows], order[options.rows : 2 * options.rows]
    outputs = 1 if y.ndim == 1 else y.shape[1]
    return tg.verify(
        models.make_of_width(MODEL, x.shape[1], outputs),
        x[train],
        y[train],
        x_test=x[test],
        widths=options.widths,
        seeds=options.seeds,
        steps=options.steps,
        band=BAND,
        progress=progress,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100, help="training rows, and as many test rows")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--report", metavar="FOLDER", type=Path, help="write a page for each task there")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")
    options = parser.parse_args()
    table = Table(
        "task", "width", "NTK to limit", "drift", "to linearised", "to limit", "on test", f"within {BAND:.0%}", "s",
        title=f"{MODEL}, {options.rows} rows of the digits, {options.steps} steps: largest over steps and seeds",
    )  # fmt: skip
    results, console = {}, Console()
    console.width = max(console.width, 110)
    for name, y in tasks().items():
        start = time.perf_counter()
        with Progress(transient=True) as bar:
            line = bar.add_task(name)
            result = measured(y, options, lambda done, total, b=bar, t=line: b.update(t, completed=done, total=total))
        seconds = time.perf_counter() - start
        results[name] = result.to_dict() | {"seconds": seconds}
        for sentence in result.verdict():
            console.print(f"{name}: {sentence}", highlight=False)
        for place, width in enumerate(result.widths):
            values = (
                result.limit_error[place].max(),
                result.drift[place].max(),
                result.gap(LINEARISED)[place].max(),
                result.gap(LIMIT_DESCENT)[place].max(),
                result.gap(LIMIT_DESCENT, part="test")[place].max(),
            )
            inside = "yes" if result.within_band[place].all() else "no"
            clock = f"{seconds:.0f}" if place == 0 else ""
            table.add_row(name, f"{width:,}", *(f"{100 * value:.1f} %" for value in values), inside, clock)
        table.add_section()
        if options.report:
            from tangency.report import verification_html

            options.report.mkdir(parents=True, exist_ok=True)
            page = verification_html(result, title=f"Digits, {name}: {MODEL}")
            (options.report / f"{name.replace(' ', '-')}.html").write_text(page, encoding="utf-8")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
