"""The matrix of any kernel on two sets of examples, computed a tile at a time and never held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..types import Inputs, Kind
from .operator import Matrix, Rows
from .tiles import TILE, cuts, padded

if TYPE_CHECKING:
    from .base import Kernel


class TileMatrix:
    """K or Θ of x1 and x2, for `KernelOperator`."""

    outputs = 1

    def __init__(self, kernel: Kernel, kind: Kind, x1: Inputs, x2: Inputs | None):
        if kind not in ("nngp", "ntk") or kind not in kernel.kinds:
            raise InputError(f"kind: expected {_choices(kernel)} for an operator, got {kind!r}")
        for name, x in (("x1", x1), ("x2", x2)):
            if x is not None and (not np.shape(x) or 0 in np.shape(x)):
                raise InputError(f"{name}: expected examples along the first axis, got shape {np.shape(x)}")
        if x2 is not None and np.shape(x1)[1:] != np.shape(x2)[1:]:
            raise InputError(f"an example of x1 has shape {np.shape(x1)[1:]}, one of x2 {np.shape(x2)[1:]}")
        self._kernel = kernel
        self._kind: Kind = kind
        self._x1, self._x2 = x1, x2
        self.examples = len(x1), len(x1 if x2 is None else x2)
        self.symmetric = x2 is None
        given = np.dtype(getattr(x1, "dtype", None) or np.asarray(x1).dtype)
        self.dtype = given if given.kind == "f" else np.dtype(np.float64)

    def product(self, v: np.ndarray) -> np.ndarray:
        first = concrete(self._x1)
        second = first if self.symmetric else concrete(self._x2)
        tall, wide = min(TILE, len(first)), min(TILE, len(second))
        rows, columns = cuts(len(first), tall), cuts(len(second), wide)
        result = np.zeros((len(first), v.shape[1]), np.result_type(self.dtype, v.dtype))
        for i, row in enumerate(rows):
            left = padded(first, *row, tall)
            for j, column in enumerate(columns):
                if self.symmetric and j < i:
                    continue
                own = self.symmetric and i == j
                part = self._evaluated(left, None if own else padded(second, *column, wide))
                part = part[: row[1] - row[0], : column[1] - column[0]]
                result[slice(*row)] += part @ v[slice(*column)]
                if self.symmetric and not own:
                    result[slice(*column)] += part.T @ v[slice(*row)]
        return result

    def traced_product(self, v: jax.Array) -> jax.Array:
        x1 = jnp.asarray(self._x1)
        x2 = x1 if self.symmetric else jnp.asarray(self._x2)
        tile = min(max(self.examples), self._kernel.tile(self._kind, x1))
        n, m = self.examples
        diagonal = self._kernel.diagonal(self._kind, x1) if self.symmetric else jnp.zeros(n, v.dtype)
        columns = stacked(x2, tile), stacked(jnp.arange(m), tile), stacked(jnp.pad(v, (0, -m % tile)), tile)

        def row(part: Any) -> jax.Array:
            left, own, alone = part

            def add(total: jax.Array, column: Any) -> tuple[jax.Array, None]:
                right, other, u = column
                found = _single(jnp.asarray(self._kernel.evaluate(self._kind, left, right))).astype(v.dtype)
                if self.symmetric:
                    # In float32 the entries of pairs differ from the diagonal's own by more than rounding.
                    found = jnp.where(own[:, None] == other[None, :], alone.astype(v.dtype)[:, None], found)
                return total + jnp.matmul(found, u, precision="highest"), None

            return jax.lax.scan(add, jnp.zeros(tile, v.dtype), columns)[0]

        parts = stacked(x1, tile), stacked(jnp.arange(n), tile), stacked(jnp.asarray(diagonal), tile)
        return jax.lax.map(row, parts).reshape(-1)[:n]

    def block(self, rows: Rows, columns: Rows) -> np.ndarray:
        first = concrete(self._x1)
        second = first if self.symmetric else concrete(self._x2)
        same = self.symmetric and same_rows(rows, columns)
        return self._evaluated(first[rows], None if same else second[columns])

    def diagonal(self) -> np.ndarray:
        return np.asarray(self._kernel.diagonal(self._kind, concrete(self._x1)))

    def adjoint(self) -> Matrix:
        return self if self._x2 is None else TileMatrix(self._kernel, self._kind, self._x2, self._x1)

    def _evaluated(self, x1: np.ndarray, x2: np.ndarray | None) -> np.ndarray:
        return _single(np.asarray(self._kernel.evaluate(self._kind, x1, x2))).astype(self.dtype, copy=False)


def _single(block: Any) -> Any:
    if block.ndim != 2:
        raise InputError(f"an operator needs one value for each pair of examples; the kernel gives {block.shape[2:]}")
    return block


def same_rows(rows: Rows, columns: Rows) -> bool:
    """Both select the same examples of one set."""
    if isinstance(rows, slice) or isinstance(columns, slice):
        return isinstance(rows, slice) and isinstance(columns, slice) and rows == columns
    return np.array_equal(rows, columns)


def stacked(x: jax.Array, size: int) -> jax.Array:
    """`[tiles, size, ...]`, filled up with the last example."""
    missing = -len(x) % size
    filled = jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else x
    return filled.reshape(-1, size, *x.shape[1:])


def concrete(x: Any) -> np.ndarray:
    """The values of examples outside of any trace."""
    try:
        return np.asarray(x)
    except jax.errors.TracerArrayConversionError as error:
        raise InputError("an operator on tracers has no values: use its as_lineax() inside jit") from error


def _choices(kernel: Kernel) -> str:
    return " or ".join(f'"{kind}"' for kind in kernel.kinds if kind != "both")
