"""Which rows train and which test."""

import numpy as np
from sklearn.model_selection import train_test_split

from ..errors import InputError
from .columns import Task


def split_rows(target: np.ndarray, fraction: float, *, task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (train, test), both sorted; stratified by class. A class with one row goes to the training part.

    Raises `InputError` when a part would be empty or could not hold every class.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--test {fraction:g}: the test part must be a fraction between 0 and 1, or a file")
    rows, alone = np.arange(target.shape[0]), np.array([], dtype=int)
    if task == "classification":
        _, inverse, counts = np.unique(target, return_inverse=True, return_counts=True)
        alone = np.flatnonzero(counts[inverse] == 1)
        rows = np.setdiff1d(rows, alone)
        if not rows.size:
            raise InputError(
                f"--test {fraction:g}: every class has one row only, and those stay in training, so that "
                f"{target.shape[0]} rows cannot be split; for numbers say --task regression, else give more rows or a "
                "file with the test part"
            )
    stratify = target[rows] if task == "classification" else None
    try:
        train, test = train_test_split(rows, test_size=fraction, random_state=seed, stratify=stratify)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--test {fraction:g}: {target.shape[0]} rows cannot be split: {reason}") from error
    return np.sort(np.concatenate([train, alone])), np.sort(test)
