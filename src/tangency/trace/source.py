"""Where in the user's own code an equation of a jaxpr comes from."""

import functools
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import jax.extend as jex

# Frames inside these packages are never what the user wrote; jaxtyping wraps the user's functions with its own.
_LIBRARIES = ("jax", "jaxlib", "equinox", "flax", "haiku", "jaxtyping", "tangency")
_STANDARD_MODULES = ("contextlib", "dataclasses", "functools", "threading")


def source_line(eqn: jex.core.JaxprEqn) -> str | None:
    """The innermost line of the user's own code that led to `eqn`, as "file.py:line".

    Frames inside JAX, Equinox, Flax, Haiku, Tangency (except `tangency.models`, which is read as user code) and the
    standard library's wrappers are skipped. The path is relative to the working directory for a file below it;
    otherwise it is the last two parts of the path. None if no frame is left: JAX trims the traceback of an equation
    inside a cached `jit`, so ask for the enclosing equation then.
    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    for frame in traceback.frames:
        if _is_user_code(frame.file_name, frame.function_name):
            return f"{_shown_path(frame.file_name)}:{frame.line_num}"
    return None


@functools.lru_cache(maxsize=4096)
def _is_user_code(file_name: str, function_name: str) -> bool:
    if file_name.startswith("<frozen "):
        return False
    if file_name == "<string>":
        # A generated method (a dataclass's __init__) also has no file; code given to `python -c` is the user's.
        return not function_name.rpartition(".")[2].startswith("__")
    path = Path(os.path.abspath(file_name))
    if any(path.is_relative_to(folder) for folder in _model_folders()):
        return True
    if path in _standard_files():
        return False
    return not any(path.is_relative_to(folder) for folder in _library_folders())


def _shown_path(file_name: str) -> str:
    if file_name.startswith("<"):
        return file_name
    path = Path(os.path.abspath(file_name))
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return "/".join(path.parts[-2:])


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    return tuple(folder for name in _LIBRARIES for folder in _package_folders(name))


@functools.cache
def _model_folders() -> tuple[Path, ...]:
    return tuple(folder / "models" for folder in _package_folders("tangency"))


@functools.cache
def _standard_files() -> frozenset[Path]:
    return frozenset(Path(sysconfig.get_path("stdlib")) / f"{name}.py" for name in _STANDARD_MODULES)


def _package_folders(name: str) -> Iterator[Path]:
    """The folders of a top-level package, found without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(os.path.abspath(location))
