"""The kernel of a random network at infinite width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, NonFiniteError
from ..fused import FusedKernel, OutOfRangeError
from ..fused import Inputs as Fused
from ..graph.graph import Graph
from ..graph.sampling import QuasiMonteCarlo
from ..graph.signal import ParameterStatistics
from ..kernels.base import Kernel
from ..kernels.tiles import TILE, assemble, cuts, filled, padded
from ..trace import derive
from ..trace.derive import Settings
from ..trace.model import ModelFunctions
from ..trace.tracers import outside_of_traces
from ..types import Array, Inputs, Kind, Progress
from .estimate import Estimate, averaged
from .explain import check_format, explain, summary
from .fusion import Fusion, fuse
from .orders import required_order
from .recursion import Recursion
from .survey import survey

_KINDS = ("nngp", "ntk", "both")
_FUSED_TYPES = (np.dtype(np.float32), np.dtype(np.float64))


class LimitKernel(Kernel):
    """What `tangency.limit` returns: K and Θ of the user's own network as its layers grow wide.

    The network is traced once for each shape of input, when the kernel is first called on it (or printed, if
    `input_shape` was given).
    """

    def __init__(
        self,
        functions: ModelFunctions,
        settings: Settings,
        input_shape: tuple[int, ...] | None = None,
        integers: bool = False,
        *,
        fused: bool | None = None,
        threads: int | None = None,
        precision: str | None = None,
    ):
        self._fused, self._threads, self._precision = fused, threads, precision
        self._left_to_xla = ""
        self._fusions: dict[Graph, Fusion] = {}
        self._functions = functions
        self._settings = settings
        self._graphs: dict[tuple[tuple[int, ...], bool], Graph] = {}
        self._block = jax.jit(self._block_of, static_argnames=("kind", "order", "only"))
        self._diagonal = jax.jit(self._diagonal_of, static_argnames=("kind", "only"))
        self._shape = input_shape
        self._integers = integers
        if input_shape is not None:
            self.graph(input_shape)

    def graph(self, input_shape: tuple[int, ...] | None = None, integers: bool | None = None) -> Graph:
        """The derived graph for one shape and kind of example (default: those given or last used).

        Raises:
            InputError: no shape is known yet, or the model does not take that shape.
            UnsupportedModelError: something in the model has no infinite-width rule.
        """
        shape = self._shape if input_shape is None else input_shape
        if shape is None:
            raise InputError("the shape of an example is not known yet: call the kernel, or give limit(input_shape=)")
        kind = self._integers if integers is None else integers
        if (shape, kind) not in self._graphs:
            graph = derive(self._functions, shape, self._settings, integers=kind)
            # What has no rule is refused before any data is seen.
            survey(graph, tangent=True)
            survey(graph, tangent=True, diagonal=True)
            self._graphs[shape, kind] = graph
        self._shape, self._integers = shape, kind
        return self._graphs[shape, kind]

    def evaluate(self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None) -> Array:
        """The Gram matrix of one kind, `[n, m]`; `"both"` stacks (K, Θ) as `[2, n, m]`.

        Where the network's output keeps positions, their axes follow: `[n, m, s…, s'…]`.

        Raises:
            InputError: shapes or dtypes of the inputs do not fit.
            NonFiniteError: NaN or infinity in the inputs or in the result, with the first offending row.
            AccuracyError: a numerically integrated activation cannot reach 1e-9 at these variances.
        """
        _check_kind(kind)
        host = _on_host(x1) and (x2 is None or _on_host(x2))
        concrete = [_concrete(x, name, self._precision) for x, name in ((x1, "x1"), (x2, "x2")) if x is not None]
        _check_shapes(x1, x2)
        self.graph(tuple(np.shape(x1)[1:]), _holds_integers(x1))
        if any(x is None for x in concrete):
            return self._traced(kind, x1, x2)
        arrays = [x for x in concrete if x is not None]
        double = (host and arrays[0].dtype.kind in "iub") or arrays[0].dtype == np.float64
        with outside_of_traces(), jax.enable_x64(bool(double) or _x64_enabled()):
            result = self._estimated(kind, arrays[0], arrays[1] if len(arrays) > 1 else None, progress).value
            _check_result(result, 1 if kind == "both" else 0)
            return result if host else jnp.asarray(result)

    def diagonal(self, kind: Kind, x: Inputs) -> Array:
        """k(x_i, x_i), `[n]`, from the recursion on single examples; `"both"` stacks (K, Θ) as `[2, n]`."""
        _check_kind(kind)
        host, concrete = _on_host(x), _concrete(x, "x", self._precision)
        _check_shapes(x, None)
        self.graph(tuple(np.shape(x)[1:]), _holds_integers(x))
        if concrete is None:
            return self._mean(lambda k: self._diagonal(x, k, kind=kind))
        double = (host and concrete.dtype.kind in "iub") or concrete.dtype == np.float64
        with outside_of_traces(), jax.enable_x64(bool(double) or _x64_enabled()):
            fused = self._fused_result(kind, concrete, None, len(concrete), lambda f, x, _: f.diagonal(kind, x))
            if fused is not None:
                return fused if host else jnp.asarray(fused)
            rule = self._rule()
            found = (
                np.concatenate([np.asarray(part) for part in self._diagonals(kind, concrete, replicate)], axis=-1)
                for replicate in range(1 if rule is None else rule.replicates)
            )
            result = averaged(found).value
            result = _positions_last(result, 1, 2 * len(self.graph().output.layout.space))
            return result if host else jnp.asarray(result)

    def _diagonals(self, kind: Kind, x: np.ndarray, replicate: int) -> Iterator[np.ndarray]:
        """The diagonal in chunks that fit, examples last."""
        chunk = min(tile_size(self.graph(), kind, diagonal=True), filled(len(x)))
        for start, stop in cuts(len(x), chunk):
            part = padded(x, start, stop, chunk)
            found = np.asarray(self._diagonal(jnp.asarray(part), replicate, kind=kind))
            axis = 1 if kind == "both" else 0
            yield np.moveaxis(found, axis, -1)[..., : stop - start]

    def tile(self, kind: Kind, x: Inputs) -> int:
        """How many examples of a tile keep its largest arrays within a quarter of a gigabyte."""
        return tile_size(self.graph(tuple(np.shape(x)[1:]), _holds_integers(x)), kind)

    def estimate(self, x1: Inputs, x2: Inputs | None = None, *, kind: Kind = "ntk") -> Estimate:
        """A kernel with its standard error, entry by entry: zero where every expectation has a closed rule.

        With `limit(..., numerical=True)`, functions of several Gaussians (max-pooling, GRU, LSTM, activations after a
        sum of branches) are integrated by quasi-Monte-Carlo; the standard error is that of the mean over its
        replicates, for each of which the whole recursion is evaluated on points of its own. `kernel(x1, x2)` is the
        same value.

        Raises:
            InputError, NonFiniteError, AccuracyError: as for the kernel itself.
        """
        _check_kind(kind)
        first, second, double = self._on_data("estimate", x1, x2)
        with outside_of_traces(), jax.enable_x64(double or _x64_enabled()):
            found = self._estimated(kind, first, second, None)
            _check_result(found.value, 1 if kind == "both" else 0)
        return Estimate(found.value, np.array(found.standard_error))

    def contributions(self, x1: Inputs, x2: Inputs | None = None) -> dict[str, np.ndarray]:
        """Θ split by the parameters that train, `{name: [n, m]}`; the parts sum to `kernel(x1, x2)`.

        The part of a parameter is what its own training moves, Σ_p η_p ∂_p f ∂_p f' over its entries. Each part takes
        a pass of its own.

        Raises:
            InputError, NonFiniteError, AccuracyError: as for the kernel itself.
        """
        first, second, double = self._on_data("contributions", x1, x2)
        graph = self.graph()
        parts: dict[str, set[ParameterStatistics]] = {}
        for leaf in graph.leaves:
            for root in leaf.roots:
                if root.rate:
                    parts.setdefault(root.origin.name, set()).add(root)
        with outside_of_traces(), jax.enable_x64(double or _x64_enabled()):
            found = {
                name: self._estimated("ntk", first, second, None, only=frozenset(roots)).value
                for name, roots in sorted(parts.items())
            }
            for result in found.values():
                _check_result(result, 0)
        return found

    def _on_data(self, method: str, x1: Inputs, x2: Inputs | None) -> tuple[np.ndarray, np.ndarray | None, bool]:
        """Checked examples, the graph of their shape derived, and whether they are evaluated in float64."""
        arrays = [_concrete(x, name, self._precision) for x, name in ((x1, "x1"), (x2, "x2")) if x is not None]
        _check_shapes(x1, x2)
        if any(x is None for x in arrays):
            raise InputError(f"{method}: needs concrete arrays, not tracers; take kernel(x1, x2) inside jit")
        first, second = arrays[0], arrays[1] if len(arrays) > 1 else None
        assert first is not None
        self.graph(tuple(first.shape[1:]), _holds_integers(first))
        return first, second, first.dtype.kind in "iub" or first.dtype == np.float64

    def explain(self, format: str = "text") -> str:
        """The recursion that the kernel evaluates, layer by layer: `format` is "text" or "latex"."""
        check_format(format)
        return explain(self.graph(), format)

    def __str__(self) -> str:
        if self._shape is None:
            return (
                f"limit of {self._functions.name}: not traced yet (call it on data, or give limit(..., input_shape=))"
            )
        return f"{summary(self.graph())}\n  {self._path()}"

    def _path(self) -> str:
        """How host-level evaluation goes about this graph, in one line."""
        return self._evaluator() + (f"; inputs are taken to {self._precision}" if self._precision else "")

    def _evaluator(self) -> str:
        if self._fused is False:
            return "evaluated by XLA: the fused path is switched off"
        fusion = self._fusion()
        if fusion.kernel is None:
            return f"evaluated by XLA: no fused form for {fusion.reason}"
        least = 1 if self._fused else fusion.least_pairs
        pairs = "" if least <= 1 else f" from {least:,} pairs of examples on"
        last = f"; the last examples were left to XLA: {self._left_to_xla}" if self._left_to_xla else ""
        return f"the whole network is fused on the CPU{pairs}{last}"

    def _fusion(self) -> Fusion:
        graph = self.graph()
        if graph not in self._fusions:
            self._fusions[graph] = fuse(graph, self._threads)
        return self._fusions[graph]

    def _fused_result(
        self,
        kind: Kind,
        x1: np.ndarray,
        x2: np.ndarray | None,
        pairs: int,
        evaluate: Callable[[FusedKernel, Fused, Fused | None], np.ndarray],
    ) -> np.ndarray | None:
        """What the fused path makes of examples; None where it does not serve."""
        self._left_to_xla = ""
        examples = [x1] if x2 is None else [x1, x2]
        dtypes = {jnp.asarray(x[:1]).dtype for x in examples}
        if self._fused is False or jnp.zeros(()).devices().pop().platform != "cpu" or not dtypes <= {*_FUSED_TYPES}:
            return None
        fusion = self._fusion()
        if len(dtypes) > 1 or fusion.kernel is None or not (self._fused or pairs >= fusion.least_pairs):
            return None
        sides = [fusion.inputs(x) for x in examples]
        try:
            return evaluate(fusion.kernel, sides[0], sides[1] if len(sides) > 1 else None)
        except OutOfRangeError as reason:
            self._left_to_xla = str(reason)
            return None

    def _estimated(
        self,
        kind: Kind,
        x1: np.ndarray,
        x2: np.ndarray | None,
        progress: Progress | None,
        only: frozenset[ParameterStatistics] | None = None,
    ) -> Estimate:
        """The mean over replicates of the numerical rule with its error; most kernels are exact, and need one."""
        rule = self._rule()
        if rule is None:
            value = self._replicate(kind, x1, x2, progress, only, 0)
            # Zeros that take no memory: few callers want the error of what is exact.
            return Estimate(value, np.broadcast_to(np.zeros((), value.dtype), value.shape))
        found = (self._replicate(kind, x1, x2, progress, only, k) for k in range(rule.replicates))
        return averaged(found)

    def _rule(self) -> QuasiMonteCarlo | None:
        """The numerical rule, if anything in this network needs it."""
        graph = self.graph()
        return graph.sampling if survey(graph, tangent=True).sampled else None

    def _replicate(
        self,
        kind: Kind,
        x1: np.ndarray,
        x2: np.ndarray | None,
        progress: Progress | None,
        only: frozenset[ParameterStatistics] | None,
        replicate: int,
    ) -> np.ndarray:
        if only is None:
            pairs = len(x1) * len(x1 if x2 is None else x2)
            fused = self._fused_result(kind, x1, x2, pairs, lambda f, a, b: f.matrix(kind, a, b, progress))
            if fused is not None:
                return fused
        graph = self.graph()
        order = required_order(graph, x1, x2, tangent=kind != "nngp")
        positions = 2 * len(graph.output.layout.space)
        lead = 1 if kind == "both" else 0

        def block(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            arguments = jnp.asarray(a), jnp.asarray(b), replicate
            found = np.asarray(self._block(*arguments, kind=kind, order=order, only=only))
            return np.moveaxis(found, (lead, lead + 1), (-2, -1))

        def diagonal(a: np.ndarray) -> np.ndarray:
            return np.moveaxis(np.asarray(self._diagonal(jnp.asarray(a), replicate, kind=kind, only=only)), lead, -1)

        tile = tile_size(graph, kind)
        fill = _fills(graph, kind, len(x1), len(x1 if x2 is None else x2))
        if positions:
            result = assemble(block, x1, x1 if x2 is None else x2, tile=tile, fill=fill, progress=progress)
            result = _positions_last(result, 2, positions)
            return _symmetric(result, lead, positions) if x2 is None else result
        return assemble(block, x1, x2, diagonal=diagonal, tile=tile, fill=fill, progress=progress)

    def _mean(self, replicate_of: Callable[[Any], jax.Array]) -> jax.Array:
        """The mean over replicates, inside the caller's own trace."""
        rule = self._rule()
        return replicate_of(0) if rule is None else jax.lax.map(replicate_of, jnp.arange(rule.replicates)).mean(axis=0)

    def _traced(self, kind: Kind, x1: Any, x2: Any) -> jax.Array:
        matrix = self._mean(lambda k: self._block(x1, x1 if x2 is None else x2, k, kind=kind, order=None))
        if x2 is not None:
            return matrix
        axes = (1, 2) if kind == "both" else (0, 1)
        positions = 2 * len(self.graph().output.layout.space)
        row, column = (jnp.arange(len(x1)).reshape(shape) for shape in ((-1, 1), (1, -1)))
        spread = (len(x1), len(x1), *(1,) * positions)
        mirrored = jnp.swapaxes(matrix, *axes)
        first, half = axes[1] + 1, positions // 2
        if positions:
            mirrored = jnp.moveaxis(mirrored, range(first, first + half), range(first + half, first + positions))
        result = jnp.where((row <= column).reshape(spread), matrix, mirrored)
        diagonal = jnp.expand_dims(self._mean(lambda k: self._diagonal(x1, k, kind=kind)), axes[1])
        if positions:
            turned = jnp.moveaxis(diagonal, range(first, first + half), range(first + half, first + positions))
            diagonal = (diagonal + turned) / 2
        return jnp.where((row == column).reshape(spread), diagonal, result)

    def _block_of(
        self,
        x1: jax.Array,
        x2: jax.Array,
        replicate: Any,
        kind: Kind,
        order: int | None,
        only: frozenset[ParameterStatistics] | None = None,
    ) -> jax.Array:
        graph = self._graphs[x1.shape[1:], _holds_integers(x1)]

        finite = _runtime_true(x1)

        def pair(a: jax.Array, b: jax.Array) -> jax.Array:
            recursion = Recursion(graph, (a, b), order, finite, only, replicate)
            return _select(recursion.kernels(tangent=kind != "nngp"), kind)

        axis = 1 if kind == "both" else 0
        rows = jax.vmap(pair, (None, 0), out_axes=axis)
        return jax.vmap(rows, (0, None), out_axes=axis)(x1, x2)

    def _diagonal_of(
        self, x: jax.Array, replicate: Any, kind: Kind, only: frozenset[ParameterStatistics] | None = None
    ) -> jax.Array:
        graph = self._graphs[x.shape[1:], _holds_integers(x)]

        finite = _runtime_true(x)

        def single(a: jax.Array) -> jax.Array:
            recursion = Recursion(graph, (a,), finite=finite, only=only, replicate=replicate)
            return _select(recursion.kernels(tangent=kind != "nngp"), kind)

        return jax.vmap(single, out_axes=1 if kind == "both" else 0)(x)


def _positions_last(result: np.ndarray, examples: int, positions: int) -> np.ndarray:
    """The axes of examples, which come last, moved before those of positions."""
    last = result.ndim
    first = last - examples - positions
    return np.moveaxis(result, range(last - examples, last), range(first, first + examples))


def _symmetric(result: np.ndarray, lead: int, positions: int) -> np.ndarray:
    """The upper triangle mirrored, each pair of examples with its positions exchanged, up to the last bit."""
    half = positions // 2
    first = lead + 2
    mirrored = np.moveaxis(
        np.swapaxes(result, lead, lead + 1), range(first, first + half), range(first + half, first + positions)
    )
    n = result.shape[lead]
    row, column = np.arange(n)[:, None], np.arange(n)[None, :]
    spread = (n, n, *(1,) * positions)
    upper = np.where((row < column).reshape(spread), result, mirrored)
    return np.where((row == column).reshape(spread), (result + mirrored) / 2, upper)


def _runtime_true(x: jax.Array) -> jax.Array:
    """True unless the first number is NaN, which the compiler cannot know."""
    first = x.ravel()[0]
    return first == first


def _select(kernels: tuple[jax.Array, jax.Array | None], kind: Kind) -> jax.Array:
    k, theta = kernels
    if theta is None:
        return k
    # One array out of a jit: with several, XLA on CPU computes what they share once for each.
    return jnp.stack([k, theta]) if kind == "both" else theta


_BUDGET = 2**28
_TEMPORARIES = 4


def tile_size(graph: Graph, kind: Kind, diagonal: bool = False) -> int:
    """How many examples a tile has on each side, so that its largest arrays stay within a quarter of a gigabyte."""
    largest = survey(graph, tangent=kind != "nngp", diagonal=diagonal).largest
    examples = _BUDGET / (8 * _TEMPORARIES * largest)
    return int(min(TILE, max(1, examples if diagonal else examples**0.5)))


_FILLING = 2**30
"""Numbers that may be computed in vain so that a program serves another number of examples: about a second's work,
which compiling takes as well."""


def _fills(graph: Graph, kind: Kind, n: int, m: int) -> bool:
    """Whether a matrix of n × m pairs is computed as a larger one that is compiled for their neighbours too."""
    found = survey(graph, tangent=kind != "nngp")
    times = graph.sampling.replicates if found.sampled and graph.sampling is not None else 1
    return (filled(n) * filled(m) - n * m) * times * found.numbers <= _FILLING


def _check_kind(kind: str) -> None:
    if kind not in _KINDS:
        raise InputError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")


def _x64_enabled() -> bool:
    return jnp.zeros(()).dtype == jnp.float64


def _on_host(x: Any) -> bool:
    return not isinstance(x, jax.Array)


def _holds_integers(x: Any) -> bool:
    return np.dtype(getattr(x, "dtype", None) or np.asarray(x).dtype).kind in "iub"


def _concrete(x: Any, name: str, precision: str | None) -> np.ndarray | None:
    """The values of an array outside of any trace, checked to be finite numbers; None for a tracer.

    Real numbers are taken to `precision`, if one is given.
    """
    try:
        array = np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return None
    if array.dtype.kind in "iub":
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name}: expected real numbers, got an array of dtype {array.dtype}")
    _check_finite(array, f"{name}: row %d holds NaN or infinity; remove or impute it")
    if precision is None or array.dtype == precision:
        return array
    with np.errstate(over="ignore"):
        array = array.astype(precision)
    _check_finite(array, f"{name}: row %d goes beyond the range of {precision}; scale it, or give another precision=")
    return array


def _check_finite(array: np.ndarray, message: str) -> None:
    if array.ndim and len(array):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise NonFiniteError(message % int(np.argmax(bad)))


def _check_shapes(x1: Any, x2: Any) -> None:
    for name, x in (("x1", x1), ("x2", x2)):
        shape = np.shape(x)
        if x is not None and (not shape or prod(shape) == 0):
            raise InputError(f"{name}: expected examples along the first axis, got an array of shape {shape}")
    if x2 is not None and np.shape(x1)[1:] != np.shape(x2)[1:]:
        raise InputError(
            f"x2: examples of shape {np.shape(x2)[1:]} do not fit those of x1, of shape {np.shape(x1)[1:]}"
        )


def _check_result(result: np.ndarray, lead: int) -> None:
    finite = np.isfinite(result)
    if not finite.all():
        first = np.argwhere(~finite)[0][lead:]
        raise NonFiniteError(
            f"the kernel between rows {int(first[0])} and {int(first[1])} is not finite: the recursion overflows "
            f"{result.dtype}; scale the inputs, or use float64"
        )
