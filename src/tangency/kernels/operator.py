"""A kernel matrix as a linear operator: products, blocks, diagonal and trace, without the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator

from ..errors import InputError, NonFiniteError
from .tiles import TILE, cuts

if TYPE_CHECKING:
    import lineax

Rows: TypeAlias = slice | np.ndarray


class Matrix(Protocol):
    """What an operator needs to know of a matrix A, `[n·k, m·k]`: k rows and columns for each example."""

    @property
    def examples(self) -> tuple[int, int]:
        """n and m."""
        ...

    @property
    def outputs(self) -> int:
        """k."""
        ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def symmetric(self) -> bool:
        """A = Aᴴ, because both sides are the same examples."""
        ...

    def product(self, v: np.ndarray) -> np.ndarray:
        """A v for v `[m·k, q]`."""
        ...

    def traced_product(self, v: jax.Array) -> jax.Array:
        """A v for v `[m·k]` in pure JAX, under the caller's trace."""
        ...

    def block(self, rows: Rows, columns: Rows) -> np.ndarray:
        """The rows and columns of some examples of x1 and of x2."""
        ...

    def diagonal(self) -> np.ndarray:
        """`[n·k]`, if symmetric."""
        ...

    def adjoint(self) -> Matrix: ...


class TraceEstimate(NamedTuple):
    """A trace and its standard error."""

    value: float
    standard_error: float


class KernelOperator(LinearOperator):
    """A kernel matrix Θ(x1, x2) that is never formed: what `kernel.operator(x1, x2=None)` returns.

    A `scipy.sparse.linalg.LinearOperator` of shape `[n, m]`, or `[n·o, m·o]` where the kernel has all pairs of o
    outputs; an example's outputs are then neighbours. `@`, `matvec`, `matmat`, `rmatvec`, `rmatmat` and `.T` are
    SciPy's, as are sums and products of operators; NumPy arrays in, NumPy arrays out. Each product computes the kernel
    anew, in pieces that fit the memory.

    Raises, in any of them:
        InputError: a vector or an index does not fit, or the examples are tracers (use `as_lineax`).
        NonFiniteError: NaN or infinity in a vector or in a product.
    """

    def __init__(self, matrix: Matrix):
        n, m = matrix.examples
        super().__init__(matrix.dtype, (n * matrix.outputs, m * matrix.outputs))
        self._matrix = matrix

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(np.reshape(x, (-1, 1)))[:, 0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return _product(self._matrix, X)

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._rmatmat(np.reshape(x, (-1, 1)))[:, 0]

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return _product(self._matrix.adjoint(), X)

    def _adjoint(self) -> LinearOperator:
        return self if self._matrix.symmetric else KernelOperator(self._matrix.adjoint())

    def _transpose(self) -> LinearOperator:
        return super()._transpose() if _is_complex(self._matrix) else self._adjoint()

    def centred(self, rows: bool = True, columns: bool = True) -> KernelOperator:
        """H_n A H_m with H = I − 11ᵀ/n over examples (each output by itself): mean zero over rows, over columns."""
        return KernelOperator(Centred(self._matrix, rows, columns)) if rows or columns else self

    def weighted(
        self, weights: Float[np.ndarray, " n"], column_weights: Float[np.ndarray, " m"] | None = None
    ) -> KernelOperator:
        """D A D' with one weight for each example, D = diag(weights).

        `column_weights` are those of D'; they default to `weights` where x2 is x1. A weighted and then centred matrix
        is H D A D H.
        """
        n, m = self._matrix.examples
        left = _weights(weights, n, "weights")
        if column_weights is None and not self._matrix.symmetric:
            raise InputError("column_weights: x1 and x2 are not the same, so give weights for the examples of x2 too")
        right = left if column_weights is None else _weights(column_weights, m, "column_weights")
        return KernelOperator(Weighted(self._matrix, left, right, column_weights is None))

    def block(self, rows: Any, columns: Any) -> np.ndarray:
        """The dense block `[a·k, b·k]` of some examples of x1 and of x2: slices, integers, or arrays of them."""
        n, m = self._matrix.examples
        return self._matrix.block(_selection(rows, n, "rows"), _selection(columns, m, "columns"))

    def tiles(self, size: int = TILE) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """All blocks of up to `size` × `size` examples, one at a time: (rows, columns, block)."""
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise InputError(f"size: expected a whole number of at least 1, got {size!r}")
        n, m = self._matrix.examples
        for i in cuts(n, int(size)):
            for j in cuts(m, int(size)):
                yield slice(*i), slice(*j), self._matrix.block(slice(*i), slice(*j))

    def to_dense(self) -> np.ndarray:
        """The whole matrix."""
        n, m = self._matrix.examples
        return self._matrix.block(slice(0, n), slice(0, m))

    def diagonal(self) -> np.ndarray:
        """The diagonal, for x2=None, from single examples (and one product, if centred)."""
        self._needs_symmetry("diagonal")
        return self._matrix.diagonal()

    def trace(self) -> float:
        """The sum of the diagonal, exact, for x2=None."""
        self._needs_symmetry("trace")
        return float(np.sum(np.real(self._matrix.diagonal())))

    def estimate_trace(self, probes: int = 32, seed: int = 0) -> TraceEstimate:
        """Hutchinson's estimate of the trace: the mean of zᵀ A z over random signs z, with its standard error.

        The standard error is that of the mean over the probes, from their own spread.

        References:
            Hutchinson 1990 (Communications in Statistics 19, 433).
        """
        self._needs_symmetry("estimate_trace")
        if isinstance(probes, bool) or not isinstance(probes, int | np.integer) or probes < 2:
            raise InputError(f"probes: expected a whole number of at least 2, got {probes!r}")
        signs = np.random.default_rng(seed).integers(0, 2, (self.shape[1], int(probes)))
        z = (2 * signs - 1).astype(_real(self._matrix))
        found = np.sum(z * np.real(self._matmat(z)), axis=0, dtype=np.float64)
        return TraceEstimate(float(found.mean()), float(found.std(ddof=1) / np.sqrt(probes)))

    def as_lineax(self) -> lineax.FunctionLinearOperator:
        """The same operator for `lineax.linear_solve`, inside `jit` too: in pure JAX, at the precision that it has on.

        It is tagged symmetric and positive semi-definite where x2 is x1. Of float64 examples this needs
        `jax.enable_x64(True)`, else it is an operator in float32, as everything in JAX is then.

        Raises:
            InputError: a kernel of complex outputs, which no tag of lineax describes, or one that is not made of JAX.
        """
        import lineax

        if _is_complex(self._matrix):
            raise InputError("as_lineax: the kernel is complex (Hermitian); use it as a SciPy operator")
        tags = (lineax.symmetric_tag, lineax.positive_semidefinite_tag) if self._matrix.symmetric else ()
        structure = jax.ShapeDtypeStruct((self.shape[1],), jax.dtypes.canonicalize_dtype(self.dtype))
        try:
            return lineax.FunctionLinearOperator(self._matrix.traced_product, structure, tags)
        except jax.errors.TracerArrayConversionError as error:
            raise InputError(
                "as_lineax: the kernel's function is not made of JAX; use it as a SciPy operator"
            ) from error

    def _needs_symmetry(self, what: str) -> None:
        if not self._matrix.symmetric:
            raise InputError(f"{what}: needs an operator of one set of examples with itself (x2=None, same weights)")


class Weighted:
    """D A D'."""

    def __init__(self, matrix: Matrix, left: np.ndarray, right: np.ndarray, same: bool):
        self._matrix, self._left, self._right = matrix, left, right
        self.examples, self.outputs, self.dtype = matrix.examples, matrix.outputs, matrix.dtype
        self.symmetric = matrix.symmetric and same

    def product(self, v: np.ndarray) -> np.ndarray:
        return self._spread(self._left)[:, None] * self._matrix.product(self._spread(self._right)[:, None] * v)

    def traced_product(self, v: jax.Array) -> jax.Array:
        left, right = (jnp.asarray(self._spread(w), v.dtype) for w in (self._left, self._right))
        return left * self._matrix.traced_product(right * v)

    def block(self, rows: Rows, columns: Rows) -> np.ndarray:
        left, right = self._spread(self._left[rows]), self._spread(self._right[columns])
        return left[:, None] * self._matrix.block(rows, columns) * right[None, :]

    def diagonal(self) -> np.ndarray:
        return self._spread(self._left) ** 2 * self._matrix.diagonal()

    def adjoint(self) -> Matrix:
        return self if self.symmetric else Weighted(self._matrix.adjoint(), self._right, self._left, False)

    def _spread(self, weights: np.ndarray) -> np.ndarray:
        return np.repeat(weights, self.outputs).astype(_real(self))


class Centred:
    """H A H', or one of the two."""

    def __init__(self, matrix: Matrix, rows: bool, columns: bool):
        self._matrix, self._rows, self._columns = matrix, rows, columns
        self.examples, self.outputs, self.dtype = matrix.examples, matrix.outputs, matrix.dtype
        self.symmetric = matrix.symmetric and rows == columns
        self._means: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def product(self, v: np.ndarray) -> np.ndarray:
        found = self._matrix.product(self._projected(v) if self._columns else v)
        return self._projected(found) if self._rows else found

    def traced_product(self, v: jax.Array) -> jax.Array:
        found = self._matrix.traced_product(self._projected(v) if self._columns else v)
        return self._projected(found) if self._rows else found

    def block(self, rows: Rows, columns: Rows) -> np.ndarray:
        over_rows, over_columns, whole = self._averages()
        found = self._matrix.block(rows, columns)
        a, b = len(found) // self.outputs, found.shape[1] // self.outputs
        if self._rows:
            found = found - np.tile(over_rows[:, columns].reshape(self.outputs, -1), (a, 1))
        if self._columns:
            found = found - np.tile(over_columns[rows].reshape(-1, self.outputs), (1, b))
        return found + np.tile(whole, (a, b)) if self._rows and self._columns else found

    def diagonal(self) -> np.ndarray:
        over_rows, over_columns, whole = self._averages()
        taken = np.einsum("ini->ni", over_rows) + np.einsum("nii->ni", over_columns) - np.diag(whole)
        return self._matrix.diagonal() - taken.ravel()

    def adjoint(self) -> Matrix:
        return self if self.symmetric else Centred(self._matrix.adjoint(), self._columns, self._rows)

    def _projected(self, v: Any) -> Any:
        """H v, each output by itself."""
        apart = v.reshape(-1, self.outputs, *v.shape[1:])
        return (apart - apart.mean(0, keepdims=True)).reshape(v.shape)

    def _averages(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A averaged over the examples of x1 `[k, m, k]`, of x2 `[n, k, k]` and of both `[k, k]`."""
        if self._means is None:
            (n, m), k = self.examples, self.outputs
            eye = np.eye(k, dtype=self.dtype)
            over_columns = self._matrix.product(np.tile(eye / m, (m, 1))).reshape(n, k, k)
            if self.symmetric:
                over_rows = np.conj(np.transpose(over_columns, (2, 0, 1)))
            else:
                over_rows = np.conj(self._matrix.adjoint().product(np.tile(eye / n, (n, 1))).T).reshape(k, m, k)
            self._means = over_rows, over_columns, over_columns.mean(0)
        return self._means


def _is_complex(matrix: Matrix) -> bool:
    return np.issubdtype(matrix.dtype, np.complexfloating)


def _real(matrix: Matrix) -> np.dtype:
    """The precision of the matrix's real parts."""
    return np.real(np.empty(0, matrix.dtype)).dtype


def _product(matrix: Matrix, v: np.ndarray) -> np.ndarray:
    v = np.asarray(v)
    if v.dtype.kind not in "fciub":
        raise InputError(f"expected vectors of numbers, got dtype {v.dtype}")
    if not np.isfinite(v).all():
        raise NonFiniteError(f"the vector is not finite in row {int(np.argwhere(~np.isfinite(v))[0][0])}")
    found = matrix.product(v)
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0][0]) // matrix.outputs
        raise NonFiniteError(
            f"the kernel's product is not finite at example {row}: the kernel overflows or is NaN there"
        )
    return found


def _weights(weights: Any, n: int, name: str) -> np.ndarray:
    array = np.asarray(weights)
    if array.shape != (n,) or array.dtype.kind not in "fiub":
        raise InputError(f"{name}: expected {n} real numbers, one for each example, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite")
    return array


def _selection(index: Any, n: int, name: str) -> Rows:
    if isinstance(index, slice):
        return np.arange(n)[index] if index.step not in (None, 1) else slice(*index.indices(n)[:2])
    array = np.atleast_1d(np.asarray(index))
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{name}: expected a slice, an integer or a list of integers, got {index!r}")
    if len(array) and not (-n <= array.min() and array.max() < n):
        raise InputError(f"{name}: there are {n} examples, got an index out of that range")
    return array % n
