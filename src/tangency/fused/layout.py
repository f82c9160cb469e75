"""Where a program's fields live: which stage computes them, on planes of which size, in which buffers.

Convolutions and activations keep the offset between the two positions of a pair. So a *segment* of a network, from its
input or a pool to the next pool or sum, is evaluated on one plane of pairs (s, s') of one offset after the other: a
small image, zero outside. A *stage* slides its windows over planes that earlier stages have written and does what
follows position by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..graph.space import Window
from .carry import numbered
from .program import (
    Dual,
    ErrorFunctions,
    Formula,
    Inner,
    NotFusedError,
    One,
    Piecewise,
    Pool,
    Program,
    Rule,
    Series,
    Slide,
    Sum,
    Tabled,
    Total,
    Truncated,
    needed,
    noises,
    nonnegative,
    operands,
    tables,
)

Pair = tuple[int, int]

COUNTS = "terms", "most"
TABLED = "mean", *COUNTS
"""Beginnings of the names of numbers that are counts of terms, and of all that come from tables."""


@dataclass(frozen=True)
class Geometry:
    """A grid of positions, and by how much one step of the segment's last offset moves the offset on this grid."""

    rows: int
    columns: int
    step: Pair


@dataclass(frozen=True)
class Stored:
    """The planes that are kept of a pool: at the offsets that are up to `most` of its geometry's steps."""

    geometry: Geometry
    most: Pair

    @property
    def pairs(self) -> Pair:
        """Pairs on each axis."""
        g = self.geometry
        rows = pairs_within(g.rows, self.most[0], g.step[0])
        return rows, pairs_within(g.columns, self.most[1], g.step[1])


@dataclass
class Stage:
    """Statements that are evaluated position by position in one pass."""

    geometry: Geometry
    body: list[int] = field(default_factory=list)
    slides: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)


@dataclass
class Segment:
    """Stages on the planes of one offset, then where they go: pools, or totals."""

    stages: list[Stage]
    pools: list[int]
    totals: list[int]
    geometry: dict[int, Geometry]
    buffers: dict[int, int]
    sink: Pair


@dataclass(frozen=True)
class Slot:
    """One-sided quantities: these numbers at each position. `source` is a Dual's field or a Known's index.

    `series`: the tables whose coefficients are needed as well. They are kept in an array of their own, because how many
    there are is decided by the variances. `means`: the tables whose mean is; where coefficients are needed, how many
    of them and how many at most in a group of examples follow it.
    """

    source: int
    grid: Pair
    numbers: tuple[str, ...]
    known: bool = False
    series: tuple[int, ...] = ()
    means: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.numbers)

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass
class Layout:
    """Everything that code is generated from."""

    program: Program
    fields: tuple[int, ...]
    segments: list[Segment]
    tail: list[int]
    slots: list[Slot]
    left: int
    right: int

    @cached_property
    def nonnegative(self) -> frozenset[int]:
        """Fields that are negative nowhere."""
        return nonnegative(self.program)

    @property
    def buffers(self) -> int:
        return max((b + 1 for s in self.segments for b in s.buffers.values()), default=0)

    @property
    def rows(self) -> int:
        return max((g.rows for s in self.segments for g in s.geometry.values()), default=0)

    @property
    def columns(self) -> int:
        return max((g.columns for s in self.segments for g in s.geometry.values()), default=0)

    @property
    def traced(self) -> bool:
        """Whether only equal positions are summed at the end."""
        totals = [self.program.statements[i] for i in self.segments[-1].totals]
        return all(isinstance(total, Total) and total.trace for total in totals)

    def number(self, slot: int, name: str) -> int:
        """The place of a number within its slot."""
        return self.slots[slot].numbers.index(name)

    def grid(self, index: int) -> Pair:
        return grid(self.program.spaces[index])

    def bounds(self, everything: bool) -> list[Pair]:
        """For each segment, the largest offset of its last grid that is needed (`everything`: for the output)."""
        rows, columns = self.segments[-1].sink
        last = (rows - 1, columns - 1) if everything and not self.traced else (0, 0)
        found = {len(self.segments) - 1: last}
        for number in reversed(range(len(self.segments) - 1)):
            segment = self.segments[number]
            reach = [self._reach(i, self.stored(i, found)) for i in segment.pools]
            rows, columns = (
                min(max(ends), n - 1) for ends, n in zip(zip(*reach, strict=True), segment.sink, strict=True)
            )
            found[number] = rows, columns
        return [found[number] for number in range(len(self.segments))]

    def stored(self, pool: int, bounds: Mapping[int, Pair] | list[Pair]) -> Stored:
        """What is stored of a pool, given the offsets that the segment which reads it needs."""
        number = next(n for n, segment in enumerate(self.segments) if pool in segment.geometry)
        (rows, columns), g = bounds[number], self.segments[number].geometry[pool]
        return Stored(g, (min(rows, (g.rows - 1) // g.step[0]), min(columns, (g.columns - 1) // g.step[1])))

    def _reach(self, pool: int, stored: Stored) -> Pair:
        """The largest offset of the source that a pool needs."""
        windows, (down, across) = pool_windows(self.program, pool), stored.geometry.step
        rows, columns = (
            window.stride * most + (window.size - 1) * window.dilation
            for window, most in zip(windows, (down * stored.most[0], across * stored.most[1]), strict=True)
        )
        return rows, columns


def terms_of(table: int, most: bool) -> str:
    """The name of the number of its terms, or of the largest number in a group of examples."""
    return f"{'most' if most else 'terms'}{table}"


def _tabled(table: int, series: bool) -> tuple[str, ...]:
    """The names of what a slot keeps of a table."""
    return (mean_of(table), terms_of(table, False), terms_of(table, True)) if series else (mean_of(table),)


def numbers_of(program: Program, rule: Rule) -> set[str]:
    """What a rule needs of a variance: itself, its root, the root's inverse, or that of a variance with noise added."""
    match rule:
        case Piecewise():
            return {"inverse", "root"}
        case ErrorFunctions(f, g):
            known = noises(program)
            found = {noisy(known.index(function.noise)) for function in (f, g)}
            return found | {"variance"} if f.ramp or g.ramp else found
        case Formula():
            return {"variance"}
        case Series():
            return {"inverse", "variance"}
        case Truncated():
            return {"inverse", "root", "variance"}


def noisy(noise: int) -> str:
    """The name of 1 / √(variance + noise)."""
    return f"noisy{noise}"


def noise_of(number: str) -> int:
    """The noise in such a name."""
    return int(number.removeprefix("noisy"))


def mean_of(table: int) -> str:
    """The name of a table's mean among the numbers of a slot."""
    return f"mean{table}"


def grid(space: tuple[int, ...]) -> Pair:
    if len(space) > 2:
        raise NotFusedError("more than two axes of positions")
    rows, columns = (1, 1, *space)[-2:]
    return rows, columns


def axis_windows(windows: tuple[Window, ...]) -> tuple[Window, Window]:
    rows, columns = (Window(1), Window(1), *windows)[-2:]
    return rows, columns


def pool_windows(program: Program, pool: int) -> tuple[Window, Window]:
    statement = program.statements[pool]
    assert isinstance(statement, Pool)
    return axis_windows(statement.windows)


def pairs_within(n: int, most: int, step: int = 1) -> int:
    """Pairs on one axis of length n at the offsets that are -most .. most steps."""
    return sum(n - step * abs(d) for d in range(-most, most + 1))


def arrange(program: Program, results: tuple[int | None, ...], slots: list[Slot] | None = None) -> Layout:
    """Decide where and when every field is computed; `slots` are those of another layout of the same program.

    Raises:
        NotFusedError: the program does not fit the scheme of planes.
    """
    statements, spaces = program.statements, program.spaces
    wanted = needed(program, results)
    on_planes = [i for i in wanted if spaces[i] and not isinstance(statements[i], One)]
    tail = [i for i in wanted if not spaces[i] and not isinstance(statements[i], Total)]
    totals = [i for i in wanted if isinstance(statements[i], Total)]
    if totals and any(isinstance(statements[i], Inner) for i in tail):
        raise NotFusedError("a skip from the input around a network with positions")
    slots = list(slots) if slots is not None else _slots(program, wanted)
    number = numbered(program)
    count = max(number.values(), default=-1) + 1
    segments = [_segment(program, [i for i in on_planes if number[i] == n], on_planes, totals) for n in range(count)]
    windows = [w for i in on_planes if isinstance(s := statements[i], Slide) for w in axis_windows(s.windows)[1:]]
    left = max((w.low for w in windows), default=0)
    right = max((w.high for w in windows), default=0)
    return Layout(program, wanted, segments, tail, slots, left, right)


def _slots(program: Program, wanted: tuple[int, ...]) -> list[Slot]:
    """The one-sided quantities: the variance of every Dual's field, and Known coefficients."""
    spaces = program.spaces
    numbers: dict[int, set[str]] = {}
    series: dict[int, set[int]] = {}
    means: dict[int, set[int]] = {}
    known = tables(program)
    for i in wanted:
        statement = program.statements[i]
        if isinstance(statement, Dual):
            numbers.setdefault(statement.field, set()).update(numbers_of(program, statement.rule))
            if isinstance(rule := statement.rule, Tabled):
                rows = {known.index(table) for pair in rule.rows for table in pair}
                series.setdefault(statement.field, set()).update(rows)
                means.setdefault(statement.field, set()).update(rows, map(known.index, rule.means))
    slots = []
    for i in sorted(numbers):
        rows, mean = (tuple(sorted(used.get(i, ()))) for used in (series, means))
        names = (*sorted(numbers[i]), *(name for table in mean for name in _tabled(table, table in rows)))
        slots.append(Slot(i, grid(spaces[i]), names, series=rows, means=mean))
    used = {q for i in wanted for part in _parts(program, i) for q in (*part[1], *part[2])}
    for quantity in sorted(used):
        grids = {grid(spaces[i]) for i in wanted for part in _parts(program, i) if quantity in (*part[1], *part[2])}
        if len(grids) > 1:
            raise NotFusedError("a coefficient that is used on several grids")
        slots.append(Slot(quantity, grids.pop(), ("value",), known=True))
    return slots


def _parts(program: Program, index: int) -> tuple[tuple[float, tuple[int, ...], tuple[int, ...], int], ...]:
    statement = program.statements[index]
    return statement.parts if isinstance(statement, Sum) else ()


def _segment(program: Program, members: list[int], on_planes: list[int], totals: list[int]) -> Segment:
    statements = program.statements
    pools = [i for i in on_planes if isinstance(s := statements[i], Pool) and s.field in members]
    sums = [i for i in totals if isinstance(s := statements[i], Total) and s.field in members]
    if bool(pools) == bool(sums):
        raise NotFusedError("sums over positions beside a pool" if pools else "positions that are never summed over")
    if len({s.trace for i in sums if isinstance(s := statements[i], Total)}) > 1:
        raise NotFusedError("a flattened and an averaged branch side by side")
    ends = [operands(statements[i])[0] for i in (*pools, *sums)]
    steps = _steps(program, members, ends)
    geometry = {i: Geometry(*grid(program.spaces[i]), steps[i]) for i in members}
    level: dict[int, int] = {}
    for i in members:
        inner = [level[j] for j in operands(statements[i]) if j in level and not isinstance(statements[i], Pool)]
        level[i] = max(inner, default=0) + isinstance(statements[i], Slide)
    groups: dict[tuple[int, Geometry], list[int]] = {}
    for i in members:
        groups.setdefault((level[i], geometry[i]), []).append(i)
    stages = [Stage(key[1], groups[key]) for key in sorted(groups, key=lambda key: key[0])]
    place = {i: number for number, stage in enumerate(stages) for i in stage.body}
    for number, stage in enumerate(stages):
        stage.slides = [i for i in stage.body if isinstance(statements[i], Slide)]
        later = [j for j in members if place[j] > number]
        read = {j for i in later for j in operands(statements[i]) if not isinstance(statements[i], Pool)}
        read.update(operands(statements[i])[0] for i in pools)
        stage.kept = [i for i in stage.body if i in read]
    buffers = _buffers(program, stages, place, pools)
    sizes = {grid(program.spaces[i]) for i in ends}
    if len(sizes) != 1:
        raise NotFusedError("branches of different sizes")
    return Segment(stages, pools, sums, geometry, buffers, sizes.pop())


def _steps(program: Program, members: list[int], ends: Iterable[int]) -> dict[int, Pair]:
    steps: dict[int, Pair] = dict.fromkeys(ends, (1, 1))
    for i in reversed(members):
        if i not in steps:
            raise NotFusedError("a field that leads nowhere")
        statement = program.statements[i]
        if isinstance(statement, Pool):
            continue
        step = steps[i]
        if isinstance(statement, Slide):
            rows, columns = axis_windows(statement.windows)
            step = step[0] * rows.stride, step[1] * columns.stride
        for j in operands(statement):
            if program.spaces[j] and steps.setdefault(j, step) != step:
                raise NotFusedError("branches of different strides")
    return steps


def _buffers(program: Program, stages: list[Stage], level: dict[int, int], pools: list[int]) -> dict[int, int]:
    """A buffer for each field that outlives its stage; one is used again after its last reader."""
    last: dict[int, int] = {}
    for i, stage in level.items():
        for j in operands(program.statements[i]):
            last[j] = max(last.get(j, 0), stage)
    for i in pools:
        last[operands(program.statements[i])[0]] = len(stages)
    found: dict[int, int] = {}
    for place, stage in enumerate(stages):
        busy = {found[i] for i in found if last[i] >= place}
        for i in stage.kept:
            found[i] = next(b for b in range(len(busy) + 1) if b not in busy)
            busy.add(found[i])
    return found
