"""The text of a fused program for a network with positions.

One function for each distinct stage (equal layers share it), one for each pooling, and a driver that calls them plane
by plane. Scratch memory is one flat array: buffers of planes, each a block of rows with a row of zeros first and
columns of zeros at both ends, then what pools have stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.space import Window
from .layout import Stored, pool_windows, terms_of
from .pointwise import Writer
from .program import operands
from .source import ENTRY, NJIT, Source, indented, prologue
from .stages import ARRAYS, stage_function


def pool_function(source: Source, windows: tuple[Window, Window], stored: Stored, places: list[tuple[int, int]]) -> str:
    """Adds planes to the stored planes that their pairs of positions are pooled into.

    `places` are where planes and stored planes start.
    """
    (rows, columns), L = windows, source.lanes
    out_rows, out_columns = stored.geometry.rows, stored.geometry.columns
    (DH, DW), (th, tw) = stored.most, stored.geometry.step
    start = source.row + source.layout.left * L
    alone = rows.size == columns.size == 1
    adding = [
        f"store(S, to + {dst}, load(S, at + {src + start}){'' if alone else f' + load(S, to + {dst})'})"
        for src, dst in places
    ]
    text = f"""
{NJIT}
def {{name}}(S, s0, h, w, dh, dw):
    one_row = {stored.pairs[1]}
    for k in range({rows.size}):
        for l in range({rows.size}):
            e = dh - (k - l) * {rows.dilation}
            oh = e // {rows.stride}
            if e % {rows.stride * th} or abs(oh) > {DH * th}:
                continue
            ho = {out_rows} - abs(oh)
            i0 = {rows.stride} * max(oh, 0) + k * {rows.dilation} - {rows.low} - max(dh, 0)
            for k2 in range({columns.size}):
                for l2 in range({columns.size}):
                    e = dw - (k2 - l2) * {columns.dilation}
                    ow = e // {columns.stride}
                    if e % {columns.stride * tw} or abs(ow) > {DW * tw}:
                        continue
                    wo = {out_columns} - abs(ow)
                    j0 = {columns.stride} * max(ow, 0) + k2 * {columns.dilation} - {columns.low} - max(dw, 0)
                    base = {before(stored, 0, "oh")} * one_row + ho * {before(stored, 1, "ow")}
                    for i in range(ho):
                        ii = i * {rows.stride} + i0
                        if 0 <= ii < h:
                            for j in range(wo):
                                jj = j * {columns.stride} + j0
                                if 0 <= jj < w:
                                    to = s0 + (base + i * wo + j) * {L}
                                    at = s0 + ii * {source.row} + jj * {L}
"""
    return source.function("pool", text.strip("\n") + "\n" + indented(adding, 9))


def before(stored: Stored, axis: int, offset: str) -> str:
    """Where the pairs of an offset start on one axis."""
    length = (stored.geometry.rows, stored.geometry.columns)[axis]
    step = stored.geometry.step[axis]
    return f"before({length}, {stored.most[axis]}, {step}, {offset if step == 1 else f'{offset} // {step}'})"


def driver(source: Source, everything: bool) -> tuple[list[str], int]:
    """The lines that run all segments on one example of x1 and the lanes of x2; and the scratch they need.

    `everything`: for the output; else only what the variances of the examples themselves need.
    """
    layout, L = source.layout, source.lanes
    bounds = layout.bounds(everything) if layout.segments else []
    places, inputs = source.offsets(), source.inputs()
    totals = source.totals()
    top = max(1, layout.buffers) * source.plane if layout.segments else 0
    stores: dict[int, tuple[int, Stored]] = {}
    lines: list[str] = [f"for k in range(n * {len(totals) * L}):", "    T[k] = 0.0"] if totals else []
    stored: list[str] = []
    for segment in layout.segments:
        for index in segment.pools:
            kept = layout.stored(index, bounds)
            stores[index] = top, kept
            size = kept.pairs[0] * kept.pairs[1] * L
            if not all(
                window.is_trivial for window in pool_windows(layout.program, index)
            ):  # Else each is written once.
                stored += [
                    f"    for k in range(r * {{scratch}} + {top}, r * {{scratch}} + {top + size}):",
                    "        S[k] = F(0)",
                ]
            top += size
    source.scratch = top
    if stored:
        lines += ["for r in range(n):", *(line.format(scratch=top) for line in stored)]
    for number, segment in enumerate(layout.segments):
        common = source, segment, stores, totals, places, inputs
        if source.mode == "first":
            lines += ["dh = 0", "dw = 0", *plane_lines(*common)]
            source.mode = "self"
            skip = ["if dh == 0 and dw == 0:", "    continue"]
            if bounds[number] != (0, 0):
                lines += over_planes(bounds[number], skip + plane_lines(*common))
            source.mode = "first"
        else:
            lines += over_planes(bounds[number], plane_lines(*common))
    return lines, top


def over_planes(bound: tuple[int, int], lines: list[str]) -> list[str]:
    head = [f"for dh in range({-bound[0]}, {bound[0] + 1}):", f"    for dw in range({-bound[1]}, {bound[1] + 1}):"]
    return [*head, *("        " + line for line in lines)]


def plane_lines(source, segment, stores, totals, places, inputs) -> list[str]:
    """All stages of a segment on the plane of offset (dh, dw)."""
    layout, program, L = source.layout, source.layout.program, source.lanes
    series = source.series_places()
    calls: list[str] = []
    stages: list[Call] = []
    seen: dict[object, str] = {}

    def geometry(g) -> str:
        if g not in seen:
            name = seen[g] = str(len(seen))
            calls.extend(
                [
                    f"dh{name} = {g.step[0]} * dh",
                    f"dw{name} = {g.step[1]} * dw",
                    f"h{name} = max({g.rows} - abs(dh{name}), 0)",
                    f"w{name} = max({g.columns} - abs(dw{name}), 0)",
                    f"p{name} = max(dh{name}, 0) * {g.columns} + max(dw{name}, 0)",
                    f"q{name} = max(-dh{name}, 0) * {g.columns} + max(-dw{name}, 0)",
                ]
            )
        return seen[g]

    for stage in segment.stages:
        function = stage_function(source, segment, stage, totals)
        g = geometry(stage.geometry)
        arguments: list[Argument] = [(function.numbers, "")]
        arguments += [(segment.buffers[i] * source.plane, "") for i in (*function.reads, *function.kept)]
        for slot in function.slots:
            count = layout.slots[slot].count
            arguments += [(places[slot], f"{x}{g} * {count}") for x in "pq"]
        for slot in function.slots:
            if layout.slots[slot].series:
                arguments += [(series[slot], ""), (0, f"p{g}"), (0, f"q{g}")]
        for index in function.inputs:
            statement = program.statements[index]
            width = program.widths[statement.left]
            arguments += [(inputs[statement.left], f"p{g} * {width}"), (inputs[statement.right], f"q{g} * {width}")]
        for index in function.stored:
            start, kept = stores[index]
            place = f"{before(kept, 0, f'dh{g}')} * {kept.pairs[1]} + h{g} * {before(kept, 1, f'dw{g}')}"
            arguments.append((start, f"({place}) * {L}"))
        sizes = f"h{g}", f"w{g}", *(f"h{geometry(other)}" for other in function.over)
        stages.append((function.name, tuple(arguments), sizes))
    calls += repeated(source, stages)
    pooled: dict[tuple[str, tuple[Window, Window], Stored], list[tuple[int, int]]] = {}
    for index in segment.pools:
        inside, (start, kept) = operands(program.statements[index])[0], stores[index]
        key = geometry(segment.geometry[inside]), pool_windows(program, index), kept
        pooled.setdefault(key, []).append((segment.buffers[inside] * source.plane, start))
    for (g, windows, kept), own in pooled.items():
        name = pool_function(source, windows, kept, own)
        calls += ["for r in range(n):", f"    {name}(S, r * {source.scratch}, h{g}, w{g}, dh, dw)"]
    return calls


Argument = tuple[int, str]
"""A number and what is added to it on a plane."""

Call = tuple[str, tuple[Argument, ...], tuple[str, ...]]
LONGEST = 8
"""Stages in the longest block of layers that is looked for."""


def repeated(source: Source, calls: list[Call]) -> list[str]:
    """Calls of stages; blocks that recur with other numbers become a loop over a table, so that depth costs no code."""
    lines: list[str] = []
    place = 0
    while place < len(calls):
        period, times = recurrence(calls[place:])
        block = calls[place : place + period * times]
        if times == 1:
            lines += [
                written(source, name, [str(n) + (f" + {rest}" if rest else "") for n, rest in own], sizes)
                for name, own, sizes in block
            ]
        else:
            start, width = len(source.table), sum(len(own) for _, own, _ in block[:period])
            source.table.extend(number for _, own, _ in block for number, _ in own)
            lines.append(f"for k in range({start}, {start + width * times}, {width}):")
            column = 0
            for name, own, sizes in block[:period]:
                arguments = [
                    f"cn[k + {column + i}]" + (f" + {rest}" if rest else "") for i, (_, rest) in enumerate(own)
                ]
                lines.append("    " + written(source, name, arguments, sizes))
                column += len(own)
        place += period * times
    return lines


def recurrence(calls: list[Call]) -> tuple[int, int]:
    """The length of the block that recurs first, and how often in a row; the one that covers most."""
    shapes = [(name, tuple(rest for _, rest in own), sizes) for name, own, sizes in calls]
    best = 1, 1
    for period in range(1, min(LONGEST, len(calls) // 2) + 1):
        times = 1
        while shapes[times * period : (times + 1) * period] == shapes[:period]:
            times += 1
        if times > 1 and times * period > best[0] * best[1]:
            best = period, times
    return best


def written(source: Source, name: str, arguments: list[str], sizes: tuple[str, ...]) -> str:
    return f"{name}({ARRAYS}{source.series}, {', '.join((*arguments, *sizes))})"


@dataclass(frozen=True)
class TailAccess:
    """Where the numbers of what follows the last sum over positions lie."""

    source: Source
    totals: dict[int, int]

    @property
    def _by_example(self) -> bool:
        """Whether the numbers of x1 are those of one example."""
        return self.source.mode == "pair"

    def load(self, writer: Writer, index: int) -> str:
        return f"load(U, {self.totals[index] * self.source.lanes})"

    def side(self, which: str, slot: int, number: str) -> str:
        if which == "a" and self._by_example:
            return f"spread(A, e * {self.source.offsets()[-1]} + {self.source.number_place(slot, number)})"
        return f"load({which.upper()}, {self.address(slot, number)})"

    def address(self, slot: int, number: str) -> str:
        return str(self.source.number_place(slot, number) * self.source.lanes)

    def row(self, which: str, slot: int, table: int) -> str:
        place = f"K[{self.source.series_place(slot, table)}]"
        if which == "a" and self._by_example:
            return f"e * K[{self.source.series_places()[-1]}] + {place}"
        return f"{place} * {self.source.lanes}"

    def terms(self, slot: int, table: int) -> str:
        return f"K[{self.source.series_place(slot, table) + 1}]"

    def count(self, which: str, slot: int, table: int) -> str:
        scalar = which == "a" and self._by_example
        number = terms_of(table, not scalar)
        if scalar:
            return f"A[e * {self.source.offsets()[-1]} + {self.source.number_place(slot, number)}]"
        return f"{which.upper()}[{self.address(slot, number)}]"


def tail_function(source: Source, totals: dict[int, int]) -> str:
    """What follows the last sum over positions: numbers, not planes."""
    layout, L = source.layout, source.lanes
    writer = source.writer(TailAccess(source, totals))
    for index in layout.tail:
        writer.write(index)
        writer.after_load(index)
    for k, index in enumerate(source.outputs):
        value = writer.constant(0.0) if index is None else writer.of(index)
        writer.lines.append(f"store(out, (o + {k}) * {L}, {value})")
    text = [
        NJIT,
        f"def {{name}}(A, B, U, cs, e{source.series}, c0, out, o):",
        indented([*prologue(writer), *writer.lines], 1),
    ]
    name = source.function("tail", "\n".join(text))
    return f"{name}(A, B, U, cs, e{{}}{source.series}, {source.block(writer)}, out"


def plane_text(source: Source, everything: bool, cache: bool) -> tuple[str, int]:
    """The text for a network with positions, and how many numbers of scratch it needs."""
    lines, scratch = driver(source, everything)
    L = source.lanes
    totals = source.totals()
    size = len(totals) * L
    finish = [f"for k in range({size}):", f"    U[k] = F(T[r * {size} + k])"]
    tail = tail_function(source, totals)
    head = ENTRY.format(cache=cache)
    if source.mode == "first":
        entry = [head, f"def entry(B, Y, cs, cn, S, T, U, out{source.series}):", "    A = B", "    X = Y"]
        entry += ["    e = 0", "    n = 1"]
        ending = ["r = 0", *finish, f"{tail.format('')}, 0)"] if everything else []
        entry += [indented([*lines, *ending], 1)]
    else:
        entry = [
            head,
            f"def entry(A, B, X, Y, cs, cn, S, T, U, out, first, last{source.series}):",
            f"    for e in range(first, last, {source.together}):",
            f"        n = min({source.together}, last - e)",
        ]
        ending = [*finish, f"{tail.format(' + r')}, (e + r) * {len(source.outputs)})"]
        entry += [indented([*lines, "for r in range(n):", *("    " + line for line in ending)], 2)]
    parts = [source.header, *source.texts, "\n".join(entry)]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n", scratch
