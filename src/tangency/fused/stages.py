"""The function of one stage of a network with positions: windows slide over planes, then position by position.

Its arguments, after the arrays: where its numbers start; the buffers it reads and writes; where its slots start on both
sides and, of those with series, their entries in K and their first positions; where its inputs start on both sides, and
its stored fields; rows and columns of the plane, and rows of those that it slides over, for each of their geometries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from .layout import Geometry, Segment, Stage, axis_windows, terms_of
from .pointwise import Writer
from .program import Inner, Pool, Slide, operands
from .source import NJIT, Source, indented, plus, prologue, scaled

Item = TypeVar("Item")

ARRAYS = "S, A, B, X, Y, T, U, cs, e, n"
"""Scratch; one-sided quantities and inputs of x1 and x2; totals, also rounded; numbers of the layers; the first of the
examples of x1 that are taken together, and how many they are."""


@dataclass(frozen=True)
class StageFunction:
    """The name of a stage's function, and what its arguments stand for.

    Attributes:
        numbers: where the numbers of its layers start.
        reads, kept: fields that it reads from buffers, and writes to them.
        slots: one-sided quantities.
        inputs: inner products of Known arrays.
        stored: fields that pools have stored.
        over: the geometries of the planes that it slides over.
    """

    name: str
    numbers: int
    reads: list[int]
    kept: list[int]
    slots: list[int]
    inputs: list[int]
    stored: list[int]
    over: list[Geometry]


@dataclass
class StageAccess:
    """Where a stage's numbers lie; what it uses becomes an argument of its function.

    Attributes:
        over: the geometries of the planes that windows slide over.
        slid: the variables of the windowed sums.
        starts: variables of places that depend on the row alone, with their values.
    """

    source: Source
    segment: Segment
    stage: Stage
    reads: list[int] = field(default_factory=list)
    over: list[Geometry] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    slid: dict[int, str] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)

    def load(self, writer: Writer, index: int) -> str:
        statement, lanes = self.source.layout.program.statements[index], self.source.lanes
        if index in self.stage.body:
            match statement:
                case Slide():
                    _noted(self.reads, statement.field)
                    return self.slid[index]
                case Inner():
                    return self._inner(writer, index, statement)
                case Pool():
                    k = _noted(self.stored, index)
                    return f"load(S, {self._of_row(f'st{k}', f's0 + st{k} + i * w * {lanes}')} + pl)"
        return f"load(S, {self.row_of(f'in{_noted(self.reads, index)}')} + pl)"

    def row_of(self, buffer: str) -> str:
        """Where the row starts in a buffer."""
        left = self.source.layout.left * self.source.lanes
        return self._of_row(buffer, f"s0 + {buffer} + (i + 1) * {self.source.row} + {left}")

    def _of_row(self, name: str, value: str) -> str:
        """A variable of this value, which depends on the row."""
        self.starts[f"{name}_i"] = value
        return f"{name}_i"

    def _inner(self, writer: Writer, index: int, statement: Inner) -> str:
        source = self.source
        columns, width = source.layout.grid(index)[1], source.layout.program.widths[statement.left]
        k, lanes, on_lanes = _noted(self.inputs, index), source.lanes, self._on_lanes("a")
        name = f"inner{k}"
        x = self._of_row(f"x{k}", f"{'' if on_lanes else _example(source.inputs()[-1])}x{k} + i * {columns * width}")
        y = self._of_row(f"y{k}", f"y{k} + i * {columns * width}")
        step = f"{scaled('p', width)} + c"
        here = f"load(X, ({x} + {step}) * {lanes})" if on_lanes else f"spread(X, {x} + {step})"
        there = f"load(Y, ({y} + {step}) * {lanes})"
        writer.lines += [
            f"{name} = {writer.constant(0.0)}",
            f"for c in range({width}):",
            f"    {name} = fma({here}, {there}, {name})",
        ]
        return name

    def _on_lanes(self, which: str) -> bool:
        """Whether this side's numbers differ from lane to lane."""
        return which == "b" or self.source.mode != "pair"

    def start_of(self, which: str, slot: int) -> str:
        """Where the numbers of the row's first position start."""
        k, own = _noted(self.slots, slot), self.source.layout.slots[slot]
        place = f"{which}{k} + i * {own.grid[1] * own.count}"
        value = f"({place}) * {self.source.lanes}"
        return self._of_row(
            f"{which}{k}", value if self._on_lanes(which) else _example(self.source.offsets()[-1]) + place
        )

    def _place_of(self, which: str, slot: int, number: str) -> str:
        """Where a number of this position lies, or its first lane."""
        layout, each = self.source.layout, self.source.lanes if self._on_lanes(which) else 1
        step = scaled("p", layout.slots[slot].count * each)
        return plus(f"{self.start_of(which, slot)} + {step}", layout.number(slot, number) * each)

    def side(self, which: str, slot: int, number: str) -> str:
        place = self._place_of(which, slot, number)
        return f"load({which.upper()}, {place})" if self._on_lanes(which) else f"spread(A, {place})"

    def address(self, slot: int, number: str) -> str:
        return self._place_of("b", slot, number)

    def row(self, which: str, slot: int, table: int) -> str:
        k, own, lanes = _noted(self.slots, slot), self.source.layout.slots[slot], self.source.lanes
        step = self.terms(slot, table)
        place = f"K[k{k} + {2 * own.series.index(table)}] + (r{which}{k} + i * {own.grid[1]}) * {step}"
        on_lanes = self._on_lanes(which)
        start = f"({place}) * {lanes}" if on_lanes else _example(f"K[{self.source.series_places()[-1]}]") + place
        name = self._of_row(f"r{which}{k}_{table}", start)
        return f"{name} + p * {step}" + (f" * {lanes}" if on_lanes else "")

    def terms(self, slot: int, table: int) -> str:
        k, series = _noted(self.slots, slot), self.source.layout.slots[slot].series
        return self._of_row(f"t{k}_{table}", f"K[k{k} + {2 * series.index(table) + 1}]")

    def count(self, which: str, slot: int, table: int) -> str:
        start, on_lanes = self.start_of(which, slot), self._on_lanes(which)
        number = self.source.layout.number(slot, terms_of(table, on_lanes))
        place = plus(start, number * (self.source.lanes if on_lanes else 1))
        return self._of_row(f"n{which}{self.slots.index(slot)}_{table}", f"{which.upper()}[{place}]")

    def arguments(self, kept: list[int]) -> list[str]:
        slots = self.source.layout.slots
        found = ["c0", *(f"in{k}" for k in range(len(self.reads))), *(f"out{k}" for k in range(len(kept)))]
        found += [f"{x}{k}" for k in range(len(self.slots)) for x in "ab"]
        found += [f"{x}{k}" for k, slot in enumerate(self.slots) if slots[slot].series for x in ("k", "ra", "rb")]
        found += [f"{x}{k}" for k in range(len(self.inputs)) for x in "xy"]
        found += [f"st{k}" for k in range(len(self.stored))]
        return [*found, "h", "w", *(f"h{k}" for k in range(len(self.over)))]


def _noted(items: list[Item], item: Item) -> int:
    """The place of an item, which is added if it is new."""
    if item not in items:
        items.append(item)
    return items.index(item)


def _example(size: str | int) -> str:
    """Where the numbers of an example of x1 start, to which others are added."""
    return f"(e + r) * {size} + "


def stage_function(source: Source, segment: Segment, stage: Stage, totals: dict[int, int]) -> StageFunction:
    """Writes a stage's function, which stages of one text share; `totals` are the places of sums over positions."""
    access = StageAccess(source, segment, stage)
    writer = source.writer(access)
    windows = _slides(access)
    for index in stage.body:
        writer.write(index)
        writer.after_load(index)
    arguments = access.arguments(stage.kept)
    end = _stores(access, writer)
    summed, zeros = _sums(segment, stage, totals, writer)
    end += summed
    before_columns = [*windows.columns, *zeros]
    text = [NJIT, f"def {{name}}({ARRAYS}{source.series}, {', '.join(arguments)}):"]
    text += [indented(prologue(writer, [*windows.rows, *before_columns, *end]), 1)]
    before_rows = [*windows.rows, *(f"{name} = {value}" for name, value in access.starts.items())]
    body = [f"pl = p * {source.lanes}", *prologue(writer), *windows.each, *writer.lines]
    passed = [*before_rows, *before_columns, "for p in range(w):", indented(body, 1), *end]
    if source.together == 1:
        text += ["    r = 0", "    s0 = 0", "    for i in range(h):", indented(passed, 2)]
    else:
        text += ["    for i in range(h):", "        for r in range(n):", f"            s0 = r * {source.scratch}"]
        text += [indented(passed, 3)]
    name = source.function("stage", "\n".join(line for line in text if line.strip()))
    numbers = source.block(writer)
    return StageFunction(
        name, numbers, access.reads, stage.kept, access.slots, access.inputs, access.stored, access.over
    )


def _stores(access: StageAccess, writer: Writer) -> list[str]:
    """Adds what writes the kept fields; returns what follows a row: zeros beside it, and equal numbers of terms."""
    source, layout = access.source, access.source.layout
    lanes, end = source.lanes, []
    for k, index in enumerate(access.stage.kept):
        start = access.row_of(f"out{k}")
        writer.lines.append(f"store(S, {start} + pl, {writer.of(index)})")
        edges = (plus(f"{start} + w * {lanes}", m * lanes) for m in range(layout.right))
        end += [f"store(S, {edge}, {writer.constant(0.0)})" for edge in edges]
    for slot, table in writer.looked_up:
        for most in (False, True):
            place = plus(access.start_of("b", slot), layout.number(slot, terms_of(table, most)) * lanes)
            end.append(f"level(B, {place}, w, {layout.slots[slot].count * lanes}, {lanes})")
    return end


def _sums(segment: Segment, stage: Stage, totals: dict[int, int], writer: Writer) -> tuple[list[str], list[str]]:
    """Adds what sums up rows; returns what follows a row and what comes before it."""
    lanes, end, zeros = writer.lanes, [], []
    statements = writer.layout.program.statements
    sums = [i for i in segment.totals if operands(statements[i])[0] in stage.body]
    zero = writer.constant(0.0)
    for k, index in enumerate(sums):
        writer.lines.append(f"row{k} = row{k} + {writer.of(operands(statements[index])[0])}")
        zeros.append(f"row{k} = {zero}")
        end += [f"store(U, 0, row{k})", f"for l in range({lanes}):"]
        end += [f"    T[(r * {len(totals)} + {totals[index]}) * {lanes} + l] += np.float64(U[l])"]
    return end, zeros


@dataclass(frozen=True)
class Windows:
    """Lines before each row, before its columns, and for each column."""

    rows: list[str]
    columns: list[str]
    each: list[str]


def _slides(access: StageAccess) -> Windows:
    """Windowed sums, as variables.

    The rows of a window are added up first. With stride 1 these sums of neighbouring columns are kept in variables,
    which move on by one from column to column.
    """
    source, layout, L = access.source, access.source.layout, access.source.lanes
    rows_lines: list[str] = []
    first: list[str] = []
    each: list[str] = []
    for number, index in enumerate(access.stage.slides):
        statement = layout.program.statements[index]
        assert isinstance(statement, Slide)
        rows, columns = axis_windows(statement.windows)
        base = f"in{_noted(access.reads, statement.field)}"
        height = f"h{_noted(access.over, access.segment.geometry[statement.field])}"
        for tap in range(rows.size):
            shift = tap * rows.dilation - rows.low
            place = scaled("i", rows.stride)
            rows_lines.append(f"r{number}_{tap} = s0 + {base}")
            rows_lines.append(f"if 0 <= {plus(place, shift)} < {height}:")
            rows_lines.append(f"    r{number}_{tap} = s0 + {base} + ({plus(place, shift + 1)}) * {source.row}")

        def vertical(column: str, place: int, number: int = number, count: int = rows.size) -> str:
            return " + ".join(f"load(S, {plus(f'r{number}_{tap}{column}', place * L)})" for tap in range(count))

        start = layout.left - columns.low
        names = [f"z{number}_{tap}" for tap in range(columns.size)]
        if columns.stride == 1 and columns.dilation == 1:
            first += [f"{names[tap]} = {vertical('', start + tap)}" for tap in range(columns.size - 1)]
            each.append(f"{names[-1]} = {vertical(' + pl', start + columns.size - 1)}")
        else:
            for tap in range(columns.size):
                column = f" + {scaled('pl', columns.stride)}"
                each.append(f"{names[tap]} = {vertical(column, start + tap * columns.dilation)}")
        each.append(f"z{number} = {' + '.join(names)}")
        if columns.stride == 1 and columns.dilation == 1:
            each += [f"{names[tap]} = {names[tap + 1]}" for tap in range(columns.size - 1)]
        access.slid[index] = f"z{number}"
    return Windows(rows_lines, first, each)
