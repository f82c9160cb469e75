"""Compiling generated text, once for each text: Numba's disk cache beside a file named by the text's hash."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba

VARIABLE = "TANGENCY_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled programs are kept: $TANGENCY_CACHE_DIR, else the user's cache folder."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tangency"


@lru_cache(maxsize=256)
def compiled(text: str) -> Any:
    """The function `entry` of a program's text."""
    stem = f"fused_{_digest(text)}"
    path = _written(stem, text)
    if path is None:
        text = text.replace("cache=True", "cache=False")
        namespace: dict[str, Any] = {"__name__": stem}
        exec(compile(text, f"<{stem}>", "exec"), namespace)
        return namespace["entry"]
    name = f"tangency_{stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Numba finds a cached function's module by its name.
    spec.loader.exec_module(module)
    return module.entry


def _digest(text: str) -> str:
    """Everything that the machine code depends on and that Numba's own index does not watch."""
    parts = (text, _instructions(), numba.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@lru_cache
def _instructions() -> str:
    return "\0".join(Path(__file__).with_name(name).read_text() for name in ("simd.py", "lookup.py"))


def _written(stem: str, text: str) -> Path | None:
    """The file with the text, written at once or not at all; None where the folder cannot be written."""
    folder = cache_folder()
    path = folder / f"{stem}.py"
    try:
        if not path.exists() or path.read_text() != text:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(temporary, path)
        if not os.access(folder, os.W_OK):
            return None
    except (OSError, RuntimeError):
        return None
    return path
