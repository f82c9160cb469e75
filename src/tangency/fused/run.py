"""Running fused programs: examples across the lanes, one-sided quantities first, then pairs on all threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..memory import available_memory, require
from ..types import Kind
from .compile import compiled
from .dense import dense_text, inner_fields
from .layout import arrange, pairs_within
from .lookup import CHUNK, NODES
from .planes import plane_text
from .pointwise import TINY
from .program import Dual, NotFusedError, Program, Tabled, Truncated, tables
from .sides import Inputs, Sided, aligned, by_example, equal_examples, own_products, padded_to, positive_range
from .simd import vector_lanes
from .source import Source
from .tables import GROUP, OutOfRangeError, terms

DENSE_BITS = 512
"""The least width of a vector where nothing has to stay in the cache; longer ones hide the latency of operations."""

_SIDE = 2**26
"""Bytes that the one-sided quantities of a block of examples may take."""

_COEFFICIENTS = 2**28
"""Bytes that their coefficients of series may take."""

DENSE_ROWS = 512
"""Rows of a dense matrix whose products are taken at once: much less, and the product is slow; more, and they leave the
cache."""

MIRRORED = 64
"""Rows of the squares on the diagonal that are mirrored as a whole."""

DENSE_BLOCK = 16384
ROWS_AT_ONCE = 64


@dataclass
class Variant:
    """The compiled programs for one kind of kernel and one type of number."""

    first: Any
    pair: Any
    source: Source
    scratch: int
    pair_numbers: tuple[np.ndarray, ...]
    first_numbers: tuple[np.ndarray, ...]

    @property
    def plane_bytes(self) -> int:
        """What the planes of one thread take."""
        return self.scratch * self.source.together * np.dtype(self.source.dtype).itemsize

    def scratch_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Planes, totals, and totals rounded to the type of the planes."""
        dtype, size = self.source.dtype, max(1, len(self.source.totals())) * self.source.lanes
        together = self.source.together
        return aligned(max(1, self.scratch) * together, dtype), np.zeros(size * together), np.zeros(size, dtype)


class FusedKernel:
    """A program, compiled as it is needed. `lines` says how long its text is."""

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
        self.lines = self._texts("both", "float32", False)[1].count("\n")

    def _lanes(self, dtype: str) -> int:
        return vector_lanes(dtype, least=DENSE_BITS) if self.is_dense else vector_lanes(dtype)

    @cached_property
    def _table_rows(self) -> np.ndarray:
        return np.concatenate([table.packed for table in tables(self.program)])

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
        lanes = self._lanes(dtype)
        first = Source(self._nngp, (program.nngp,), dtype, lanes, "first", guarded)
        pair = Source(layout, outputs, dtype, lanes, "pair", guarded)
        if self.is_dense:
            return dense_text(first, True), dense_text(pair, True), first, pair, 0
        first_text, first_scratch = plane_text(first, self._deep_tail, True)
        pair_text, pair_scratch = plane_text(pair, True, True)
        return first_text, pair_text, first, pair, max(first_scratch, pair_scratch)

    def _numbers(self, source: Source) -> tuple[np.ndarray, ...]:
        """What a program reads beside its examples."""
        numbers = aligned(len(source.numbers) * source.lanes, source.dtype)
        numbers[:] = np.repeat(source.numbers, source.lanes)
        return (numbers,) if self.is_dense else (numbers, np.array([*source.table, 0], np.int64))

    def _variant(self, form: Kind, dtype: str, guarded: bool) -> Variant:
        key = (form, dtype, guarded)
        if key not in self._variants:
            first_text, pair_text, first, pair, scratch = self._texts(form, dtype, guarded)
            self._variants[key] = Variant(
                compiled(first_text), compiled(pair_text), pair, scratch, self._numbers(pair), self._numbers(first)
            )
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
            OutOfRangeError: variances are too small to divide by, or beyond what the tables of a series serve for.
        """
        return self._matrix(kind, x1, x2, self._terms(kind, x1, x2), progress)

    def _matrix(
        self,
        kind: Kind,
        x1: Inputs,
        x2: Inputs | None,
        places: np.ndarray,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        dtype = x1.arrays[0].dtype.name
        other = x1 if x2 is None else x2
        form = self._form(kind)
        outputs = 2 if form == "both" else 1
        result = np.empty((outputs, x1.count, other.count), dtype)
        block = self._block(dtype, places)
        rows = [(s, min(s + block, x1.count)) for s in range(0, x1.count, block)]
        columns = [(s, min(s + block, other.count)) for s in range(0, other.count, block)]
        jobs = [(r, c) for r in rows for c in columns if x2 is not None or c[0] >= r[0]]
        with ThreadPoolExecutor(self._workers(form, dtype)) as pool:
            done: tuple[tuple[int, int], Any] | None = None
            for number, (r, c) in enumerate(jobs):
                if done is None or done[0] != r:
                    done = r, self._sided(form, dtype, x1.rows(*r), places, pool)
                left = done[1]
                right = left if x2 is None and r == c else self._sided(form, dtype, other.rows(*c), places, pool)
                diagonal = x2 is None and r == c
                self._tile(form, left, right, result[:, r[0] : r[1], c[0] : c[1]], diagonal, places, pool)
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
        lanes = self._lanes(dtype)
        found = np.empty((2, x.count) if kind == "both" else x.count, dtype)
        places = self._terms(kind, x, None)
        for start in range(0, x.count, lanes):
            part = self._matrix(kind, x.rows(start, start + lanes), None, places)
            found[..., start : start + lanes] = np.diagonal(part, axis1=-2, axis2=-1)
        return found

    def _terms(self, kind: Kind, x1: Inputs, x2: Inputs | None) -> np.ndarray:
        """What `Source.series_places` describes, for as many terms as the variances of all examples need.

        Behind a pool, variances depend a little on the terms that they are computed with; without one they do not, and
        are searched once.
        """
        form, dtype, known = self._form(kind), x1.arrays[0].dtype.name, tables(self.program)
        statements = [self.program.statements[i] for i in (self._nngp if form == "nngp" else self._both).fields]
        rules = {(s.field, s.rule) for s in statements if isinstance(s, Dual) and isinstance(s.rule, Tabled)}
        tabled = [(field, pair) for field, rule in rules for pair in rule.rows]
        needed = {
            (field, known.index(table)): GROUP if table.whole is None else table.whole[dtype]
            for field, pair in tabled
            for table in pair
        }
        counts: dict[tuple[int, int], int] = {}
        with ThreadPoolExecutor(self._workers(form, dtype)) as pool:
            while any(number > counts.get(key, 0) for key, number in needed.items()):
                counts = needed
                places = self._places(counts)
                ranges = self._ranges(form, dtype, (x1,) if x2 is None else (x1, x2), places, pool)
                needed = dict.fromkeys(counts, 0)
                for field, rule in rules:
                    _check_served(rule, ranges[field])
                for field, pair in tabled:
                    number = terms(*pair, ranges[field], dtype)
                    for table in pair:
                        key = field, known.index(table)
                        needed[key] = max(needed[key], number)
                if len(self._both.segments) < 2:
                    return self._places(needed)
        return self._places(counts)

    def _places(self, counts: dict[tuple[int, int], int]) -> np.ndarray:
        found, start = [], 0
        for slot in self._both.slots:
            for table in slot.series:
                number = counts.get((slot.source, table), 0)
                found += [start, number]
                start += slot.cells * number
        return np.array([*found, start], np.int64)

    def _ranges(
        self, form: Kind, dtype: str, sets: tuple[Inputs, ...], places: np.ndarray, pool: ThreadPoolExecutor
    ) -> dict[int, tuple[float, float]]:
        """The smallest variance, other than 0, and the largest of every field that has a series."""
        found: dict[int, tuple[float, float]] = {}
        block = self._block(dtype, places)
        for x in sets:
            for start in range(0, x.count, block):
                part = self._sided(form, dtype, x.rows(start, start + block), places, pool).variances
                for field, (low, high) in part.items():
                    before = found.get(field, (np.inf, 0.0))
                    found[field] = min(low, before[0]), max(high, before[1])
        return {field: ends if ends[1] else (1.0, 1.0) for field, ends in found.items()}

    @property
    def _threads(self) -> int:
        """As many as there are processors and the user allows."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(available, self.threads or available))

    def _workers(self, form: Kind, dtype: str) -> int:
        """As many threads as half of the memory has room for the planes of.

        Raises:
            MemoryLimitError: there is no room for those of one.
        """
        planes, memory = self._variant(form, dtype, False).plane_bytes, available_memory()
        if memory is None or self._threads * planes <= memory // 2:
            return self._threads
        require(planes, memory, "what one thread keeps of the layers of a pair of examples", "use smaller images")
        return max(1, min(self._threads, memory // 2 // planes))

    def _block(self, dtype: str, places: np.ndarray) -> int:
        """How many examples are taken at once."""
        source = self._variant("nngp", dtype, False).source
        lanes, size = source.lanes, np.dtype(dtype).itemsize
        coefficients = size * int(places[-1])
        if coefficients * lanes > _COEFFICIENTS:
            raise OutOfRangeError("its series take more memory than all else")
        most = _COEFFICIENTS // max(coefficients, 1)
        if self.is_dense:
            return min(DENSE_BLOCK, most // lanes * lanes)
        numbers = size * (source.offsets()[-1] + source.inputs()[-1] + 1)
        return max(lanes, min(1024, _SIDE // numbers, most) // lanes * lanes)

    def _sided(self, form: Kind, dtype: str, x: Inputs, places: np.ndarray, pool: ThreadPoolExecutor) -> Sided:
        """The one-sided quantities of a block of examples, with so many coefficients of each series."""
        sided = self._sided_once(form, dtype, x, places, False, pool)
        smallest = sided.smallest_root
        if smallest == 0.0:
            sided = self._sided_once(form, dtype, x, places, True, pool)
            smallest = sided.smallest_positive_root
        if smallest**2 < TINY[dtype] * 1e3:
            raise OutOfRangeError("variances are too small to divide by")
        return sided

    def _sided_once(
        self, form: Kind, dtype: str, x: Inputs, places: np.ndarray, guarded: bool, pool: ThreadPoolExecutor
    ) -> Sided:
        variant = self._variant(form, dtype, guarded)
        source = variant.source
        lanes, starts, slots = source.lanes, source.offsets(), source.layout.slots
        padded = padded_to(x, lanes)
        groups = padded.count // lanes
        right = aligned((groups, starts[-1], lanes), dtype)
        for place, slot in zip(starts, slots, strict=False):
            if slot.known:
                values = padded.quantities[slot.source].reshape(groups, lanes, -1).swapaxes(1, 2)
                right[:, place : place + values.shape[1]] = values
        right = right.reshape(groups, -1)
        coefficients = aligned((groups, int(places[-1]) * lanes), dtype)

        def series(group: Any) -> tuple[Any, ...]:
            rows = coefficients[group].reshape(-1)
            return (rows, rows, self._table_rows, np.empty(NODES + CHUNK), places) if source.series else ()

        if self.is_dense:
            inputs = np.stack([own_products(padded, *pair) for pair in inner_fields(source.layout)])
            lanes_of = np.empty(0)
            further = series(slice(None))
            variant.first(inputs.reshape(-1), right.reshape(-1), padded.count, *variant.first_numbers, *further)
        else:
            inputs = np.concatenate([a.reshape(padded.count, -1) for a in padded.arrays], axis=1)
            lanes_of = np.ascontiguousarray(inputs.reshape(groups, lanes, -1).swapaxes(1, 2)).reshape(groups, -1)
            inputs = inputs[: x.count]

            def one(group: int) -> None:
                scratch, out = variant.scratch_arrays(), np.empty(2 * lanes, dtype)
                own = right[group], lanes_of[group], *variant.first_numbers, *scratch, out, *series(group)
                variant.first(*own)

            list(pool.map(one, range(groups)))
        left, rows = (by_example(a, lanes)[: x.count] for a in (right, coefficients))
        roots, ranges = [np.ones(1, dtype)], {}
        for place, slot in zip(starts, slots, strict=False):
            for number, name in enumerate(slot.numbers):
                values = left[:, place + number : place + slot.cells * slot.count : slot.count]
                if name == "root":
                    roots.append(values.reshape(-1))
                if name == "variance" and slot.series:
                    ranges[slot.source] = positive_range(values)
        return Sided(
            x.count, guarded, padded, left, right, inputs, lanes_of, rows, coefficients, np.concatenate(roots), ranges
        )

    def _tile(
        self,
        form: Kind,
        left: Sided,
        right: Sided,
        result: np.ndarray,
        diagonal: bool,
        places: np.ndarray,
        pool: ThreadPoolExecutor,
    ) -> None:
        """K and Θ between two blocks; on the diagonal of a symmetric matrix at least those above it."""
        variant = self._variant(form, result.dtype.name, left.guarded or right.guarded)
        tile = self._dense_tile if self.is_dense else self._plane_tile
        tile(variant, left, right, result, diagonal, places, pool)

    def _dense_tile(
        self, variant, left: Sided, right: Sided, result: np.ndarray, diagonal: bool, places: np.ndarray, pool
    ) -> None:
        """Panel by panel: a matrix product into a buffer that stays in the cache, then all layers in place."""
        lanes, dtype, columns = variant.source.lanes, result.dtype, right.padded.count
        per_column, per_row = variant.source.offsets()[-1], int(places[-1])
        pairs, outputs = inner_fields(variant.source.layout), len(variant.source.outputs)
        names = equal_examples(left, right)
        spare = aligned(
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
                with np.errstate(over="ignore", invalid="ignore"):  # What is not finite is refused, with its rows.
                    np.matmul(left.padded.arrays[a][start:stop, 0], right.padded.arrays[b][skip:, 0].T, out=products[k])
                if diagonal:
                    index = np.arange(rows)
                    products[k, index, index + start - skip] = left.inputs[k, start:stop]
                if names is not None:
                    equal = names[0][start:stop, None] == names[1][None, skip:]
                    np.copyto(products[k, :, : right.count - skip], left.inputs[k, start:stop, None], where=equal)
            fixed = (
                products.reshape(-1),
                left.left[start:stop].reshape(-1),
                right.right.reshape(-1)[skip * per_column :],
                wide,
                *variant.pair_numbers,
                out.reshape(-1),
                rows,
            )
            further: tuple[Any, ...] = ()
            if variant.source.series:
                behind = right.coefficients.reshape(-1)[skip * per_row :]
                further = left.rows[start:stop].reshape(-1), behind, places
            step = -(-rows // (4 * self._threads))
            cuts = range(0, rows, step)
            ends = [min(cut + step, rows) for cut in cuts]
            after = skip - start if diagonal else rows
            list(
                pool.map(
                    lambda cut, end, fixed=fixed, tail=(after, *further): variant.pair(*fixed, cut, end, *tail),
                    cuts,
                    ends,
                )
            )
            found = out[:, :, : right.count - skip]
            result[:, start:stop, skip:] = found
            if diagonal:
                mirror(result[:, start:stop, start:stop], MIRRORED, inside=True)
                result[:, stop:, start:stop] = np.swapaxes(found[:, :, stop - skip :], 1, 2)

    def _plane_tile(
        self, variant, left: Sided, right: Sided, result: np.ndarray, diagonal: bool, places: np.ndarray, pool
    ) -> None:
        lanes, outputs = variant.source.lanes, len(variant.source.outputs)
        rows_at_once = ROWS_AT_ONCE if variant.source.layout.traced and len(variant.source.layout.segments) == 1 else 4

        def run(job: tuple[int, int, int]) -> None:
            group, start, stop = job
            out = np.empty((stop - start, outputs, lanes), result.dtype)
            rows = left.rows[start:stop].reshape(-1)
            series = (rows, right.coefficients[group], places) if variant.source.series else ()
            variant.pair(
                left.left[start:stop].reshape(-1), right.right[group],
                left.inputs[start:stop].reshape(-1), right.lanes_of[group],
                *variant.pair_numbers, *variant.scratch_arrays(), out.reshape(-1), 0, stop - start,
                *series,
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


def mirror(result: np.ndarray, block: int, inside: bool) -> None:
    """Copy what is above the diagonal below it, by blocks; `inside` those on the diagonal too."""
    n = result.shape[-1]
    for start in range(0, n, block):
        stop = min(start + block, n)
        if inside:
            square = result[:, start:stop, start:stop]
            result[:, start:stop, start:stop] = np.triu(square) + np.swapaxes(np.triu(square, 1), 1, 2)
        result[:, stop:, start:stop] = np.swapaxes(result[:, start:stop, stop:], 1, 2)


def _check_served(rule: Tabled, variances: tuple[float, float]) -> None:
    """Whether a rule serves all variances between these.

    Raises:
        OutOfRangeError: it does not.
    """
    low, high = variances
    if isinstance(rule, Truncated) and not rule.served[0] <= low <= high <= rule.served[1]:
        raise OutOfRangeError(
            f"with variances from {low:.3g} to {high:.3g}, what an activation has beyond its thresholds is a small "
            "difference of large numbers"
        )
