"""A fitted model as a folder: `model.json` and `arrays.npz`, both plain data. Loading them runs no code."""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .columns import Column
from .model import FittedModel
from .preprocessing import Preprocessing

FORMAT = "tangency model"
FORMAT_VERSION = 1
_ARRAYS = ("inputs", "targets", "coefficients", "probe")
_PREPROCESSING_ARRAYS = ("fill", "centre", "scale", "kept")


@dataclass(frozen=True)
class OutputKind:
    """What one command writes: a folder with these files, known by the format that `marker` names."""

    command: str
    marker: str
    format: str
    files: frozenset[str]


FITTED = OutputKind(
    "fit",
    "model.json",
    FORMAT,
    frozenset({"model.json", "arrays.npz", "metrics.json", "predictions.csv", "report.html"}),
)
VERIFIED = OutputKind(
    "verify",
    "verification.json",
    "tangency verification",
    frozenset({"verification.json", "verification.npz", "report.html"}),
)


def check_output_folder(folder: Path, kind: OutputKind = FITTED) -> None:
    """Raise `InputError` unless the folder is new, empty, or an earlier output of that kind with nothing else in it."""
    if not folder.exists():
        blocked = next((parent for parent in folder.absolute().parents if parent.exists()), None)
        if blocked is not None and not blocked.is_dir():
            raise InputError(f"--out {folder}: {blocked} is a file, not a folder")
        if blocked is not None and not os.access(blocked, os.W_OK):
            raise InputError(f"--out {folder}: {blocked} may not be written; name a folder elsewhere")
        return
    if not folder.is_dir():
        raise InputError(f"--out {folder} is a file; name a folder")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return
    if not _is_output(folder, kind):
        raise InputError(
            f"--out {folder} is not empty and was not written by tangency {kind.command}; name another folder"
        )
    predicted = {name for name in names if name.startswith("predictions-") and name.endswith(".csv")}
    foreign = sorted(names - kind.files - (predicted if kind is FITTED else set()))
    if foreign:
        raise InputError(f"--out {folder} holds '{foreign[0]}', which tangency did not write; move it or name another")


def _is_output(folder: Path, kind: OutputKind) -> bool:
    try:
        return json.loads((folder / kind.marker).read_text(encoding="utf-8")).get("format") == kind.format
    except (OSError, ValueError, AttributeError):
        return False


def write_folder(folder: Path, files: Mapping[str, bytes], kind: OutputKind = FITTED) -> None:
    """Write all files, or none: into a folder beside the target, which then takes its name."""
    check_output_folder(folder, kind)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            for name, content in files.items():
                (new / name).write_bytes(content)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror or error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
            new = Path(beside, "new")
            new.write_bytes(content)
            new.replace(path)
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror or error}") from error


def model_files(model: FittedModel) -> dict[str, bytes]:
    """The two files that `load_model` reads."""
    arrays = {name: getattr(model, name) for name in _ARRAYS}
    arrays |= {f"preprocessing_{name}": getattr(model.preprocessing, name) for name in _PREPROCESSING_ARRAYS}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model.spec,
        "task": model.task,
        "target": model.target,
        "labels": None if model.labels is None else model.labels.tolist(),
        "centre": model.centre,
        "scale": model.scale,
        "ridge": model.ridge,
        "time": model.time,
        "columns": [asdict(column) for column in model.columns],
        "preprocessing": {
            "numeric": model.preprocessing.numeric,
            "indicated": model.preprocessing.indicated,
            "category": model.preprocessing.category,
            "levels": model.preprocessing.levels,
        },
        "arrays_sha256": hashlib.sha256(content).hexdigest(),
    }
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
    return {"model.json": text.encode() + b"\n", "arrays.npz": content}


def load_model(folder: Path) -> FittedModel:
    """The model that `model_files` wrote. Nothing is unpickled and nothing imported.

    Raises `InputError` when the folder is not such a model, is of a newer format, or has been changed or damaged.
    """
    if not _is_output(folder, FITTED):
        what = "is not a folder that tangency fit wrote" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; run tangency fit first")
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if description.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder}/model.json has format version {description.get('format_version')}, but this version of tangency "
            f"reads {FORMAT_VERSION}; use the tangency that wrote it, or fit again"
        )
    try:
        content = (folder / "arrays.npz").read_bytes()
    except OSError as error:
        raise InputError(f"{folder}/arrays.npz cannot be read: {error.strerror}; fit again") from error
    if hashlib.sha256(content).hexdigest() != description.get("arrays_sha256"):
        raise InputError(f"{folder}/arrays.npz is not the file that was written with model.json; fit again")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _model(description, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder} is damaged ({type(error).__name__}: {error}); fit again") from error


def _model(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> FittedModel:
    constants = description["preprocessing"]
    preprocessing = Preprocessing(
        numeric=tuple(constants["numeric"]),
        indicated=tuple(constants["indicated"]),
        category=tuple(constants["category"]),
        levels=tuple(tuple(levels) for levels in constants["levels"]),
        **{name: arrays[f"preprocessing_{name}"] for name in _PREPROCESSING_ARRAYS},
    )
    labels = description["labels"]
    return FittedModel(
        spec=description["model"],
        task=description["task"],
        target=description["target"],
        columns=tuple(Column(**column) for column in description["columns"]),
        preprocessing=preprocessing,
        ridge=description["ridge"],
        time=description["time"],
        labels=None if labels is None else np.asarray(labels),
        centre=description["centre"],
        scale=description["scale"],
        **{name: arrays[name] for name in _ARRAYS},
    )
