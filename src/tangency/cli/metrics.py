"""Test metrics, one small table for each task; the first of each is the headline."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, r2_score

from .columns import Task

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "balanced accuracy", "macro F1"),
    "regression": ("RMSE", "MAE", "R²"),
}


def score(task: Task, true: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    """Every metric of `METRICS[task]`. R² is None when the true values do not vary."""
    if task == "classification":
        present = np.unique(true)
        f1 = f1_score(true, predicted, average="macro", labels=present, zero_division=0)  # pyright: ignore[reportArgumentType]
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "balanced accuracy": float(np.mean([np.mean(predicted[true == c] == c) for c in present])),
            "macro F1": float(f1),
        }
    residual = predicted - true
    return {
        "RMSE": float(np.sqrt(np.mean(residual**2))),
        "MAE": float(np.mean(np.abs(residual))),
        "R²": float(r2_score(true, predicted)) if np.ptp(true) > 0 else None,
    }


def format_metric(task: Task, value: float | None) -> str:
    """For people: three decimals for a share, four digits for a quantity with units."""
    if value is None:
        return "–"
    return f"{value:.3f}" if task == "classification" else f"{value:.4g}"
