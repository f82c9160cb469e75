"""Test accuracy of infinitely wide ReLU networks on small classification sets, beside an SVM and a random forest.

python benchmarks/uci.py --data FOLDER [--all] [--json FILE]
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import friedmanchisquare, rankdata
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVC

import tangency
from tangency import models

LARGEST = 1500
FOLDS = 4
QUICK = (
    *("acute-inflammation", "breast-cancer-wisc", "dermatology", "ecoli", "glass", "heart-cleveland"),
    *("ionosphere", "iris", "seeds", "statlog-heart", "teaching", "zoo"),
)
DEPTHS = (1, 2, 3, 4)
GRIDS = {
    "RBF SVM": (SVC(), {"C": 10.0 ** np.arange(-2, 5), "gamma": 10.0 ** np.arange(-4, 2)}),
    "random forest": (RandomForestClassifier(500, random_state=0), {"max_features": ["sqrt", 0.5]}),
}
METHODS = (*(f"NTK depth {depth}" for depth in DEPTHS), "NTK", *GRIDS)


def data_sets(folder: Path, everything: bool) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for path in sorted(folder.glob("*.npz")):
        if everything or path.stem in QUICK:
            with np.load(path, allow_pickle=False) as arrays:
                if len(arrays["X"]) <= LARGEST:
                    yield path.stem, dict(arrays)


def scaled(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Columns standardised by their values in `rows`; columns that are constant there become 0."""
    deviation = x[rows].std(axis=0)
    return np.where(deviation > 0, (x - x[rows].mean(axis=0)) / np.where(deviation > 0, deviation, 1.0), 0.0)


def ntk(depth: int, features: int, classes: int) -> tangency.NTKClassifier:
    kernel = tangency.limit(lambda key: models.MLP(features, classes, depth=depth, width=64, key=key))
    return tangency.NTKClassifier(kernel)


def tuned(estimator: Any, grid: dict[str, Any], x: np.ndarray, y: np.ndarray, arrays: dict[str, np.ndarray]) -> Any:
    """The estimator with the options that do best on the tuning split."""
    train, val = arrays["tune_train"], arrays["tune_val"]
    rows = np.concatenate([train, val])
    split = PredefinedSplit(np.concatenate([np.full(len(train), -1), np.zeros(len(val), int)]))
    search = GridSearchCV(estimator, grid, cv=split, refit=False).fit(scaled(x, train)[rows], y[rows])
    return clone(estimator).set_params(**search.best_params_)


def accuracy(estimator: Any, x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    z = scaled(x, train)
    return float(np.mean(estimator.fit(z[train], y[train]).predict(z[test]) == y[test]))


def evaluated(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean test accuracy over the folds, and the seconds it took, of each method on one data set."""
    x, y = arrays["X"].astype(np.float64), arrays["y"]
    networks = {depth: ntk(depth, x.shape[1], len(np.unique(y))) for depth in DEPTHS}

    def folds(make: Callable[[], Any]) -> dict[str, float]:
        start, estimator = time.perf_counter(), make()
        scores = [accuracy(estimator, x, y, arrays[f"fold{k}_train"], arrays[f"fold{k}_test"]) for k in range(FOLDS)]
        return {"accuracy": float(np.mean(scores)), "seconds": time.perf_counter() - start}

    def best_depth() -> tangency.NTKClassifier:
        z, train, val = scaled(x, arrays["tune_train"]), arrays["tune_train"], arrays["tune_val"]
        scores = {d: np.mean(n.fit(z[train], y[train]).predict(z[val]) == y[val]) for d, n in networks.items()}
        return networks[max(scores, key=lambda depth: scores[depth])]

    results = {f"NTK depth {depth}": folds(lambda n=network: n) for depth, network in networks.items()}
    results["NTK"] = folds(best_depth)
    for name, (estimator, grid) in GRIDS.items():
        results[name] = folds(lambda e=estimator, g=grid: tuned(e, g, x, y, arrays))
    return results


def ranks(results: dict[str, dict[str, dict[str, float]]]) -> np.ndarray:
    """[sets, methods]: 1 for the most accurate method on a set, ties shared (Demšar 2006, JMLR 7, section 3.2.2)."""
    return np.stack([rankdata([-scores[m]["accuracy"] for m in METHODS]) for scores in results.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="FOLDER", type=Path, required=True, help="folder of .npz files")
    parser.add_argument("--all", action="store_true", help=f"all sets of at most {LARGEST} examples, not twelve")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")
    options = parser.parse_args()
    console, results = Console(), {}
    # Few examples of a class in a split are a property of these data sets, not a mistake.
    warnings.filterwarnings("ignore", message="The least populated class")
    for name, arrays in data_sets(options.data, options.all):
        with console.status(name):
            results[name] = evaluated(arrays)
    if not results:
        raise SystemExit(f"--data {options.data}: none of the data sets is there")
    table = Table("set", *METHODS, title=f"Test accuracy in %, mean of {FOLDS} folds")
    for name, scores in results.items():
        table.add_row(name, *(f"{100 * scores[m]['accuracy']:.1f}" for m in METHODS))
    average = {m: float(np.mean([s[m]["accuracy"] for s in results.values()])) for m in METHODS}
    seconds = {m: sum(s[m]["seconds"] for s in results.values()) for m in METHODS}
    rank = dict(zip(METHODS, ranks(results).mean(axis=0).tolist(), strict=True))
    table.add_section()
    table.add_row("mean", *(f"{100 * average[m]:.2f}" for m in METHODS))
    table.add_row("average rank", *(f"{rank[m]:.2f}" for m in METHODS))
    table.add_row("seconds", *(f"{seconds[m]:.0f}" for m in METHODS))
    console.print(table)
    p = float(friedmanchisquare(*ranks(results).T).pvalue) if len(results) > 2 else None
    if p is not None:
        console.print(f"Friedman test that all methods rank alike: p = {p:.3g}")
    if options.json:
        summary = {"mean": average, "average_rank": rank, "seconds": seconds, "friedman_p": p}
        options.json.write_text(json.dumps({"sets": results, "summary": summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
