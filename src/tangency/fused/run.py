"""Running fused programs: examples across the lanes, one-sided quantities first, then pairs on all threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..types import Kind
from .compile import compiled
from .dense import dense_text, inner_fields
from .layout import arrange
from .planes import pairs_within, plane_text
from .pointwise import TINY
from .program import Dual, NotFusedError, Program
from .source import Source

LANES = {"float32": 8, "float64": 4}
DENSE_LANES = {"float32": 16, "float64": 8}
_SIDE = 2**26
"""Bytes that the one-sided quantities of a block of examples may take."""

DENSE_ROWS = 1024
DENSE_BLOCK = 16384
ROWS_AT_ONCE = 64


class OutOfRangeError(Exception):
    """Variances too close to zero for the fused arithmetic; the XLA path must serve."""


@dataclass(frozen=True)
class Inputs:
    """What the caller evaluates for a set of examples.

    Attributes:
        arrays: for each Known array that inner products read, [n, positions, width].
        quantities: for each one-sided Known quantity, [n, positions].
    """

    arrays: tuple[np.ndarray, ...]
    quantities: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        return len(self.arrays[0])

    def rows(self, start: int, stop: int) -> Inputs:
        return Inputs(tuple(a[start:stop] for a in self.arrays), tuple(q[start:stop] for q in self.quantities))


@dataclass
class Variant:
    """The compiled programs for one kind of kernel and one type of number."""

    first: Any
    pair: Any
    source: Source
    scratch: int
    pair_numbers: tuple[np.ndarray, ...]
    first_numbers: tuple[np.ndarray, ...]

    def scratch_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Planes, totals, and totals rounded to the type of the planes."""
        dtype, size = self.source.dtype, max(1, len(self.source.totals())) * self.source.lanes
        return np.zeros(max(1, self.scratch), dtype), np.zeros(size), np.zeros(size, dtype)


class FusedKernel:
    """A program, compiled as it is needed."""

    def __init__(self, program: Program, threads: int | None = None):
        self.program = program
        self.threads = threads
        self._variants: dict[tuple[Kind, str, bool], Variant] = {}
        if program.nngp is None:
            raise NotFusedError("an output whose second moment is zero")
        layout = arrange(program, (program.nngp, program.ntk))
        # The same one-sided quantities serve every kind.
        self._both, self._nngp = layout, arrange(program, (program.nngp,), layout.slots)
        if {slot.source for slot in layout.slots if not slot.known} - set(self._nngp.fields):
            raise NotFusedError("a tangent that needs moments of its own")
        self.is_dense = not layout.segments
        self._deep_tail = any(isinstance(program.statements[i], Dual) for i in layout.tail)
        self._texts("both", "float32", False)

    @property
    def work(self) -> float:
        """Gaussian expectations in one pair of examples."""
        layout, statements, total = self._both, self.program.statements, 0.0
        bounds = layout.bounds(True) if layout.segments else []
        for segment, bound in zip(layout.segments, bounds, strict=True):
            for i, g in segment.geometry.items():
                if isinstance(statements[i], Dual):
                    most = (min(bound[0] * g.step[0], g.rows - 1), min(bound[1] * g.step[1], g.columns - 1))
                    pairs = pairs_within(g.rows, most[0]) * pairs_within(g.columns, most[1])
                    total += pairs / (g.step[0] * g.step[1])
        return total + sum(isinstance(statements[i], Dual) for i in layout.tail)

    def _texts(self, form: Kind, dtype: str, guarded: bool) -> tuple[str, str, Source, Source, int]:
        program = self.program
        layout = self._nngp if form == "nngp" else self._both
        outputs = {"nngp": (program.nngp,), "ntk": (program.ntk,), "both": (program.nngp, program.ntk)}[form]
        lanes = (DENSE_LANES if self.is_dense else LANES)[dtype]
        first = Source(self._nngp, (program.nngp,), dtype, lanes, "first", guarded)
        pair = Source(layout, outputs, dtype, lanes, "pair", guarded)
        if self.is_dense:
            return dense_text(first, True), dense_text(pair, True), first, pair, 0
        first_text, first_scratch = plane_text(first, self._deep_tail, True)
        pair_text, pair_scratch = plane_text(pair, True, True)
        return first_text, pair_text, first, pair, max(first_scratch, pair_scratch)

    def _variant(self, form: Kind, dtype: str, guarded: bool) -> Variant:
        key = (form, dtype, guarded)
        if key not in self._variants:
            first_text, pair_text, first, pair, scratch = self._texts(form, dtype, guarded)
            numbers = [
                (np.array([*s.factors, 0.0], dtype), *([] if self.is_dense else [np.array([*s.table, 0], np.int64)]))
                for s in (pair, first)
            ]
            self._variants[key] = Variant(compiled(first_text), compiled(pair_text), pair, scratch, *numbers)
        return self._variants[key]

    def matrix(
        self,
        kind: Kind,
        x1: Inputs,
        x2: Inputs | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """K, Θ, or both stacked, `[n, m]` or `[2, n, m]`. With `x2` None only entries on and above the diagonal are
        computed, and mirrored.

        Raises:
            OutOfRangeError: variances are too small to divide by.
        """
        dtype = x1.arrays[0].dtype.name
        other = x1 if x2 is None else x2
        form = self._form(kind)
        outputs = 2 if form == "both" else 1
        result = np.empty((outputs, x1.count, other.count), dtype)
        block = self._block(dtype)
        rows = [(s, min(s + block, x1.count)) for s in range(0, x1.count, block)]
        columns = [(s, min(s + block, other.count)) for s in range(0, other.count, block)]
        jobs = [(r, c) for r in rows for c in columns if x2 is not None or c[0] >= r[0]]
        with ThreadPoolExecutor(self._workers()) as pool:
            done: tuple[tuple[int, int], Any] | None = None
            for number, (r, c) in enumerate(jobs):
                if done is None or done[0] != r:
                    done = r, self._sided(form, dtype, x1.rows(*r), pool)
                left = done[1]
                right = left if x2 is None and r == c else self._sided(form, dtype, other.rows(*c), pool)
                diagonal = x2 is None and r == c
                self._tile(form, left, right, result[:, r[0] : r[1], c[0] : c[1]], diagonal, pool)
                if progress is not None:
                    progress(number + 1, len(jobs))
        if x2 is None:
            mirror(result, block, inside=not self.is_dense)
        return _select(result, kind)

    def _form(self, kind: Kind) -> Kind:
        """Which program serves a kind: beside a convolution a second output costs nothing, a second program does."""
        return "both" if kind == "ntk" and not self.is_dense else kind

    def diagonal(self, kind: Kind, x: Inputs) -> np.ndarray:
        """The diagonal of `matrix`, `[n]` or `[2, n]`."""
        dtype = x.arrays[0].dtype.name
        lanes = (DENSE_LANES if self.is_dense else LANES)[dtype]
        found = np.empty((2, x.count) if kind == "both" else x.count, dtype)
        for start in range(0, x.count, lanes):
            part = self.matrix(kind, x.rows(start, start + lanes), None)
            found[..., start : start + lanes] = np.diagonal(part, axis1=-2, axis2=-1)
        return found

    def _workers(self) -> int:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(available, self.threads or available))

    def _block(self, dtype: str) -> int:
        if self.is_dense:
            return DENSE_BLOCK
        source = self._variant("nngp", dtype, False).source
        lanes = source.lanes
        bytes_each = np.dtype(dtype).itemsize * (source.offsets()[-1] + source.inputs()[-1] + 1)
        return max(lanes, min(1024, _SIDE // bytes_each) // lanes * lanes)

    def _sided(self, form: Kind, dtype: str, x: Inputs, pool: ThreadPoolExecutor) -> Sided:
        """The one-sided quantities of a block of examples."""
        sided = self._sided_once(form, dtype, x, False, pool)
        smallest = sided.smallest_root
        if smallest == 0.0:
            sided = self._sided_once(form, dtype, x, True, pool)
            smallest = sided.smallest_positive_root
        if smallest**2 < TINY[dtype] * 1e3:
            raise OutOfRangeError
        return sided

    def _sided_once(self, form: Kind, dtype: str, x: Inputs, guarded: bool, pool: ThreadPoolExecutor) -> Sided:
        variant = self._variant(form, dtype, guarded)
        source = variant.source
        lanes, places = source.lanes, source.offsets()
        padded = _padded(x, lanes)
        known = [(places[k], slot) for k, slot in enumerate(source.layout.slots) if slot.known]
        roots = [
            (p + s.numbers.index("root"), s)
            for p, s in zip(places, source.layout.slots, strict=False)
            if "root" in s.numbers
        ]
        if self.is_dense:
            columns = padded.count
            own = np.stack([_own(padded, *pair) for pair in inner_fields(source.layout)])
            right = np.zeros((places[-1], columns), dtype)
            for place, slot in known:
                right[place] = padded.quantities[slot.source].reshape(columns)
            variant.first(own.reshape(-1), right.reshape(-1), columns, *variant.first_numbers)
            left = np.ascontiguousarray(right[:, : x.count].T)
            sizes = np.stack([right[place] for place, _ in roots]) if roots else np.ones((1, 1), dtype)
            return Sided(x.count, guarded, padded, left, right.reshape(-1), own, np.empty(0), sizes)
        inputs = np.concatenate([a.reshape(padded.count, -1) for a in padded.arrays], axis=1)
        groups = padded.count // lanes
        lanes_of = np.ascontiguousarray(inputs.reshape(groups, lanes, -1).swapaxes(1, 2)).reshape(groups, -1)
        right = np.zeros((groups, places[-1], lanes), dtype)
        for place, slot in known:
            values = padded.quantities[slot.source].reshape(groups, lanes, -1).swapaxes(1, 2)
            right[:, place : place + values.shape[1]] = values
        right = right.reshape(groups, -1)

        def one(group: int) -> None:
            scratch, out = variant.scratch_arrays(), np.empty(2 * lanes, dtype)
            variant.first(right[group], lanes_of[group], *variant.first_numbers, *scratch, out)

        list(pool.map(one, range(groups)))
        by_lane = right.reshape(groups, -1, lanes)
        left = np.ascontiguousarray(by_lane.swapaxes(1, 2)).reshape(groups * lanes, -1)[: x.count]
        sizes = [left[:, p : p + s.grid[0] * s.grid[1] * s.count : s.count].reshape(-1) for p, s in roots]
        return Sided(
            x.count, guarded, padded, left, right, inputs[: x.count], lanes_of,
            np.concatenate(sizes) if sizes else np.ones(1, dtype),
        )  # fmt: skip

    def _tile(
        self, form: Kind, left: Sided, right: Sided, result: np.ndarray, diagonal: bool, pool: ThreadPoolExecutor
    ) -> None:
        """K and Θ between two blocks; on the diagonal of a symmetric matrix at least those above it."""
        variant = self._variant(form, result.dtype.name, left.guarded or right.guarded)
        tile = self._dense_tile if self.is_dense else self._plane_tile
        tile(variant, left, right, result, diagonal, pool)

    def _dense_tile(self, variant, left: Sided, right: Sided, result: np.ndarray, diagonal: bool, pool) -> None:
        """Panel by panel: a matrix product into a buffer that stays in the cache, then all layers in place."""
        lanes, dtype, columns = variant.source.lanes, result.dtype, right.padded.count
        pairs, outputs = inner_fields(variant.source.layout), len(variant.source.outputs)
        names = equal_examples(left, right)
        spare = np.empty(
            (max(len(pairs), outputs) if len(pairs) == 1 else len(pairs) + outputs) * DENSE_ROWS * columns, dtype
        )
        for start in range(0, left.count, DENSE_ROWS):
            stop = min(start + DENSE_ROWS, left.count)
            skip = start // lanes * lanes if diagonal else 0
            rows, wide = stop - start, columns - skip
            products = spare[: len(pairs) * rows * wide].reshape(len(pairs), rows, wide)
            after = 0 if len(pairs) == 1 else products.size
            out = spare[after : after + outputs * rows * wide].reshape(outputs, rows, wide)
            for k, (a, b) in enumerate(pairs):
                np.matmul(left.padded.arrays[a][start:stop, 0], right.padded.arrays[b][skip:, 0].T, out=products[k])
                if diagonal:
                    index = np.arange(rows)
                    products[k, index, index + start - skip] = left.inputs[k, start:stop]
                if names is not None:
                    equal = names[0][start:stop, None] == names[1][None, skip:]
                    np.copyto(products[k, :, : right.count - skip], left.inputs[k, start:stop, None], where=equal)
            sides = np.ascontiguousarray(right.right.reshape(-1, columns)[:, skip:]).reshape(-1)
            fixed = (
                products.reshape(-1),
                left.left[start:stop],
                sides,
                wide,
                *variant.pair_numbers,
                out.reshape(-1),
                rows,
            )
            step = -(-rows // (4 * self._workers()))
            cuts = range(0, rows, step)
            ends = [min(cut + step, rows) for cut in cuts]
            run = partial(variant.pair, *fixed)
            list(pool.map(run, cuts, ends, [skip - start if diagonal else rows] * len(ends)))
            found = out[:, :, : right.count - skip]
            result[:, start:stop, skip:] = found
            if diagonal:
                square = found[:, :, start - skip : stop - skip]
                result[:, start:stop, start:stop] = np.triu(square) + np.swapaxes(np.triu(square, 1), 1, 2)
                result[:, stop:, start:stop] = np.swapaxes(found[:, :, stop - skip :], 1, 2)

    def _plane_tile(self, variant, left: Sided, right: Sided, result: np.ndarray, diagonal: bool, pool) -> None:
        lanes, outputs = variant.source.lanes, len(variant.source.outputs)
        rows_at_once = ROWS_AT_ONCE if variant.source.layout.traced and len(variant.source.layout.segments) == 1 else 4

        def run(job: tuple[int, int, int]) -> None:
            group, start, stop = job
            out = np.empty((stop - start, outputs, lanes), result.dtype)
            variant.pair(
                left.left[start:stop], right.right[group], left.inputs[start:stop], right.lanes_of[group],
                *variant.pair_numbers, *variant.scratch_arrays(), out.reshape(-1), 0, stop - start,
            )  # fmt: skip
            first = group * lanes
            last = min(first + lanes, right.count)
            result[:, start:stop, first:last] = out.transpose(1, 0, 2)[:, :, : last - first]

        jobs = []
        for group in range(len(right.right)):
            height = min(left.count, (group + 1) * lanes) if diagonal else left.count
            jobs += [(group, s, min(s + rows_at_once, height)) for s in range(0, height, rows_at_once)]
        list(pool.map(run, jobs))


def _select(result: np.ndarray, kind: Kind) -> np.ndarray:
    return result if kind == "both" else result[-1]


@dataclass
class Sided:
    """A block of examples with their one-sided quantities: of each example, and of groups of them across the lanes."""

    count: int
    guarded: bool
    padded: Inputs
    left: np.ndarray
    right: np.ndarray
    inputs: np.ndarray
    lanes_of: np.ndarray
    roots: np.ndarray

    @property
    def smallest_root(self) -> float:
        return float(self.roots.min())

    @property
    def smallest_positive_root(self) -> float:
        return float(np.min(self.roots, where=self.roots > 0, initial=np.inf))


def _padded(x: Inputs, lanes: int) -> Inputs:
    """As many examples as fill the lanes; the last one is repeated."""
    missing = -x.count % lanes

    def longer(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) if missing else np.ascontiguousarray(a)

    return Inputs(tuple(map(longer, x.arrays)), tuple(map(longer, x.quantities)))


def _own(x: Inputs, left: int, right: int) -> np.ndarray:
    return np.einsum("npw,npw->n", x.arrays[left], x.arrays[right])


def equal_examples(left: Sided, right: Sided) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers by which equal examples of two blocks know each other, None if there are none.

    A matrix product may round the products of equal rows in two ways, and where a kernel has a square root of 1 - c²
    that is no small difference.
    """
    a, b = left.inputs[0, : left.count], right.inputs[0, : right.count]
    if left is right:
        _, inverse, counts = np.unique(a, return_inverse=True, return_counts=True)
        rows = columns = np.flatnonzero(counts[inverse] > 1)
    else:
        rows, columns = np.flatnonzero(np.isin(a, b)), np.flatnonzero(np.isin(b, a))
    if not len(rows):
        return None
    known: dict[bytes, int] = {}
    found = np.full(left.count, -1), np.full(right.count, -2)
    for names, x, suspects in zip(found, (left.padded, right.padded), (rows, columns), strict=True):
        for i in suspects:
            names[i] = known.setdefault(b"".join(array[i].tobytes() for array in x.arrays), len(known))
    return found


def mirror(result: np.ndarray, block: int, inside: bool) -> None:
    """Copy what is above the diagonal below it, by blocks; `inside` those on the diagonal too."""
    n = result.shape[-1]
    for start in range(0, n, block):
        stop = min(start + block, n)
        if inside:
            square = result[:, start:stop, start:stop]
            result[:, start:stop, start:stop] = np.triu(square) + np.swapaxes(np.triu(square, 1), 1, 2)
        result[:, stop:, start:stop] = np.swapaxes(result[:, start:stop, stop:], 1, 2)
