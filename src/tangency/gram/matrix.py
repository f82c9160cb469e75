"""The kernel matrix of two sets of examples."""

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError, NonFiniteError
from ..kernels.base import Kernel
from ..kernels.function import as_kernel
from ..memory import available_memory, require
from ..types import Inputs, Kind, Progress
from .arguments import check_examples, check_same_examples

_FLOAT64 = 8

ENTRIES_AT_ONCE = 2**25
"""Entries of one block of `gram_rows`: 256 MiB."""


def gram(
    kernel: Kernel | Callable[[Any, Any], Any],
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    kind: Kind = "ntk",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "*kinds n m"]:
    """The kernel matrix in float64, `[n, m]`; `kind="both"` stacks (K, Θ) as `[2, n, m]`.

    `kernel` is a `Kernel`, or a function k(x1, x2) -> `[n, m]` (then both K and Θ). `x2=None` means `x1` and gives an
    exactly symmetric matrix. `memory` is the number of bytes the result may take
    (default: the physical memory available).

    Raises InputError when an argument is not numeric, is empty or does not fit the kernel, NonFiniteError that names
    the first row of an argument, or the first pair of the result, with NaN or infinity, MemoryLimitError when the
    result does not fit.
    """
    return _checked_gram(as_kernel(kernel), x1, x2, kind, memory, progress, matrix_valued=False)


def gram_blocks(
    kernel: Kernel,
    x1: Inputs,
    x2: Inputs | None = None,
    *,
    kind: Kind = "ntk",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "..."]:
    """As `gram`; a matrix-valued kernel gives `[n, m, o, o]`."""
    return _checked_gram(kernel, x1, x2, kind, memory, progress, matrix_valued=True)


def _checked_gram(
    kernel: Kernel,
    x1: Inputs,
    x2: Inputs | None,
    kind: Kind,
    memory: int | None,
    progress: Progress | None,
    *,
    matrix_valued: bool,
) -> np.ndarray:
    _check_kind(kernel, kind)
    first = check_examples(x1, "x1")
    second = None if x2 is None else check_examples(x2, "x2")
    if second is not None:
        check_same_examples(first, second)
    _check_memory(len(first), None if second is None else len(second), kind, memory)
    return _evaluate(kernel, kind, first, second, progress, matrix_valued=matrix_valued)


def gram_rows(
    kernel: Kernel,
    x1: Float[np.ndarray, "n *shape"],
    x2: Float[np.ndarray, "m *shape"],
    kind: Kind,
    *,
    outputs: int | None = None,
) -> Iterator[tuple[slice, Float[np.ndarray, "..."]]]:
    """The rows of `gram(kernel, x1, x2, kind=kind)` in blocks that memory holds.

    x1 are new examples, x2 the training examples; both have been checked. `outputs=o` allows a matrix-valued kernel,
    `[rows, m, o, o]`. Raises NonFiniteError as `gram` does.
    """
    _check_kind(kernel, kind)
    whole = max(1, ENTRIES_AT_ONCE // (len(x2) * _matrices(kind)))
    step, start = max(1, whole // (outputs or 1) ** 2), 0
    while start < len(x1):
        rows = slice(start, min(start + step, len(x1)))
        block = _evaluate(
            kernel,
            kind,
            x1[rows],
            x2,
            None,
            names=("x", "training x"),
            row_offset=start,
            matrix_valued=outputs is not None,
        )
        yield rows, block
        start = rows.stop
        if block.ndim == (3 if kind == "both" else 2):
            step = whole


def _evaluate(
    kernel: Kernel,
    kind: Kind,
    x1: np.ndarray,
    x2: np.ndarray | None,
    progress: Progress | None,
    *,
    names: tuple[str, str] = ("x1", "x2"),
    row_offset: int = 0,
    matrix_valued: bool = False,
) -> np.ndarray:
    result = np.asarray(kernel.evaluate(kind, x1, x2, progress=progress), dtype=np.float64)
    shape = (len(x1), len(x1 if x2 is None else x2))
    expected = (2, *shape) if kind == "both" else shape
    blocks = result.shape[len(expected) :]
    if matrix_valued and result.shape[: len(expected)] == expected and len(blocks) == 2 and blocks[0] == blocks[1]:
        expected = result.shape
    if result.shape != expected:
        raise InputError(
            f"the kernel returned shape {result.shape} for {shape[0]} and {shape[1]} examples; {expected} is needed: "
            "use a kernel with one value per pair of examples"
        )
    stacked = result if kind == "both" else result[None]
    for row in range(shape[0]):
        if not np.isfinite(stacked[:, row]).all():
            which, column, *_ = where = np.argwhere(~np.isfinite(stacked[:, row]))[0]
            name = {"nngp": "NNGP", "ntk": "NTK"}.get(kind) or ("NNGP", "NTK")[which]
            value = stacked[:, row][tuple(where)]
            raise NonFiniteError(
                f"the {name} of {names[0]}[{row + row_offset}] and {names[1]}[{column}] is {value}; "
                "rescale the inputs or check the model"
            )
    return result


def _check_kind(kernel: Kernel, kind: Kind) -> None:
    if kind not in ("nngp", "ntk", "both"):
        raise InputError(f'kind is {kind!r}; give "nngp", "ntk" or "both"')
    if kind not in kernel.kinds:
        raise InputError(f"{type(kernel).__name__} has no {kind!r} kernel; it has {', '.join(kernel.kinds)}")


def _check_memory(n: int, m: int | None, kind: Kind, memory: int | None) -> None:
    """The result itself; `m=None` means as many columns as rows."""
    word = _FLOAT64 * _matrices(kind)
    limit = available_memory() if memory is None else memory
    columns = n if m is None else m
    rows = n if limit is None else isqrt(max(limit, 0) // word) if m is None else max(limit, 0) // (word * m)
    require(word * n * columns, memory, f"a {n} × {columns} kernel matrix", f"about {rows} rows would fit")


def _matrices(kind: Kind) -> int:
    return 2 if kind == "both" else 1
