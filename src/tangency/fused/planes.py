"""The text of a fused program for a network with positions.

One function for each distinct stage (equal layers share it), one for each pooling, and a driver that calls them plane
by plane. Scratch memory is one flat array: buffers of planes, each a block of rows with a row of zeros first and
columns of zeros at both ends, then what pools have stored.
"""

from __future__ import annotations

from .layout import Segment, Stage, axis_windows, pool_windows, terms_of
from .program import Inner, Pool, Slide, operands
from .source import ENTRY, NJIT, Source, indented, plus, prologue, scaled

ARRAYS = "S, A, B, X, Y, T, U, cs, e, n"
"""Scratch; one-sided quantities and inputs of x1 and x2; totals, also rounded; numbers of the layers; the first of the
examples of x1 that are taken together, and how many they are."""


def stage_function(source: Source, segment: Segment, stage: Stage, totals: dict[int, int]) -> tuple[str, dict]:
    """The function of a stage, and what its arguments stand for.

    Arguments, after the arrays: where its numbers start; the buffers it reads and writes; where its slots, its inputs
    and its stored fields start on both sides; rows and columns of the plane, and of those that it slides over.
    """
    layout, program, L = source.layout, source.layout.program, source.lanes
    reads: list[int] = []
    slots: list[int] = []
    inputs: list[int] = []
    stored: list[int] = []
    slid: dict[int, str] = {}
    starts: dict[str, str] = {}
    lanes_on_both, places = source.mode != "pair", source.offsets()

    def note(items: list[int], item: int) -> int:
        if item not in items:
            items.append(item)
        return items.index(item)

    def load(index: int) -> str:
        statement = program.statements[index]
        if isinstance(statement, Slide) and index in stage.body:
            note(reads, statement.field)
            return slid[index]
        if isinstance(statement, Inner) and index in stage.body:
            return inner(index, statement)
        if isinstance(statement, Pool) and index in stage.body:
            k = note(stored, index)
            return f"load(S, {of_row(f'st{k}', f's0 + st{k} + i * w * {L}')} + pl)"
        return f"load(S, {row_of(f'in{note(reads, index)}')} + pl)"

    def of_row(name: str, value: str) -> str:
        """A variable of this value, which depends on the row."""
        starts[f"{name}_i"] = value
        return f"{name}_i"

    def row_of(buffer: str) -> str:
        """Where the row starts in a buffer."""
        return of_row(buffer, f"s0 + {buffer} + (i + 1) * {source.row} + {layout.left * L}")

    def inner(index: int, statement: Inner) -> str:
        columns, width = layout.grid(index)[1], program.widths[statement.left]
        k = note(inputs, index)
        name = f"inner{k}"
        x = of_row(f"x{k}", f"{'' if lanes_on_both else example(source.inputs()[-1])}x{k} + i * {columns * width}")
        y = of_row(f"y{k}", f"y{k} + i * {columns * width}")
        step = f"{scaled('p', width)} + c"
        here = f"load(X, ({x} + {step}) * {L})" if lanes_on_both else f"spread(X, {x} + {step})"
        there = f"load(Y, ({y} + {step}) * {L})"
        writer.lines += [
            f"{name} = {writer.constant(0.0)}",
            f"for c in range({width}):",
            f"    {name} = fma({here}, {there}, {name})",
        ]
        return name

    def place_of(which: str, slot: int, number: str) -> str:
        """Where a number of this position lies, or its first lane."""
        each = 1 if is_single(which) else L
        step = scaled("p", layout.slots[slot].count * each)
        return plus(f"{start_of(which, slot)} + {step}", layout.number(slot, number) * each)

    def start_of(which: str, slot: int) -> str:
        """Where the numbers of the row's first position start."""
        k, (_, columns), size = note(slots, slot), layout.slots[slot].grid, layout.slots[slot].count
        place = f"{which}{k} + i * {columns * size}"
        return of_row(f"{which}{k}", example(places[-1]) + place if is_single(which) else f"({place}) * {L}")

    def example(size: str | int) -> str:
        """Where the numbers of an example of x1 start, to which others are added."""
        return f"(e + r) * {size} + "

    def side(which: str, slot: int, number: str) -> str:
        place = place_of(which, slot, number)
        return f"spread(A, {place})" if is_single(which) else f"load({which.upper()}, {place})"

    def is_single(which: str) -> bool:
        return which == "a" and not lanes_on_both

    def address(slot: int, number: str) -> str:
        return place_of("b", slot, number)

    def row(which: str, slot: int, table: int) -> str:
        k, (_, columns), series = note(slots, slot), layout.slots[slot].grid, layout.slots[slot].series
        place = f"K[k{k} + {2 * series.index(table)}] + (r{which}{k} + i * {columns}) * {terms(slot, table)}"
        start = example(f"K[{source.series_places()[-1]}]") + place if is_single(which) else f"({place}) * {L}"
        name = of_row(f"r{which}{k}_{table}", start)
        return f"{name} + p * {terms(slot, table)}" + ("" if is_single(which) else f" * {L}")

    def terms(slot: int, table: int) -> str:
        k = note(slots, slot)
        return of_row(f"t{k}_{table}", f"K[k{k} + {2 * layout.slots[slot].series.index(table) + 1}]")

    def count(which: str, slot: int, table: int) -> str:
        start, single = start_of(which, slot), is_single(which)
        place = plus(start, layout.number(slot, terms_of(table, not single)) * (1 if single else L))
        return of_row(f"n{which}{slots.index(slot)}_{table}", f"{which.upper()}[{place}]")

    writer = source.writer(load, side, address, row, terms, count)
    before_rows, before_columns, each = slides(source, stage, reads, slid)
    for index in stage.body:
        writer.write(index)
        writer.after_load(index)
    sums = [i for i in segment.totals if operands(program.statements[i])[0] in stage.body]
    kept = stage.kept
    arguments = ["c0", *(f"in{k}" for k in range(len(reads))), *(f"out{k}" for k in range(len(kept)))]
    arguments += [f"{x}{k}" for k in range(len(slots)) for x in "ab"]
    arguments += [f"{x}{k}" for k, slot in enumerate(slots) if layout.slots[slot].series for x in ("k", "ra", "rb")]
    arguments += [f"{x}{k}" for k in range(len(inputs)) for x in "xy"]
    arguments += [f"st{k}" for k in range(len(stored))] + ["h", "w", "hs"]
    end = []
    for k, index in enumerate(kept):
        start = row_of(f"out{k}")
        writer.lines.append(f"store(S, {start} + pl, {writer.of(index)})")
        edges = (plus(f"{start} + w * {L}", m * L) for m in range(layout.right))
        end += [f"store(S, {edge}, {writer.constant(0.0)})" for edge in edges]
    for slot, table in writer.looked_up:
        for most in (False, True):
            place = plus(start_of("b", slot), layout.number(slot, terms_of(table, most)) * L)
            end.append(f"level(B, {place}, w, {layout.slots[slot].count * L}, {L})")
    zero = writer.constant(0.0)
    for k, index in enumerate(sums):
        writer.lines.append(f"row{k} = row{k} + {writer.of(operands(program.statements[index])[0])}")
        before_columns.append(f"row{k} = {zero}")
        end += [f"store(U, 0, row{k})", f"for l in range({L}):"]
        end += [f"    T[(r * {len(totals)} + {totals[index]}) * {L} + l] += np.float64(U[l])"]
    text = [NJIT, f"def {{name}}({ARRAYS}{source.series}, {', '.join(arguments)}):"]
    text += [indented(prologue(writer, [*before_rows, *before_columns, *end]), 1)]
    before_rows += [f"{name} = {value}" for name, value in starts.items()]
    body = [f"pl = p * {L}", *prologue(writer), *each, *writer.lines]
    passed = [*before_rows, *before_columns, "for p in range(w):", indented(body, 1), *end]
    if source.together == 1:
        text += ["    r = 0", "    s0 = 0", "    for i in range(h):", indented(passed, 2)]
    else:
        text += ["    for i in range(h):", "        for r in range(n):", f"            s0 = r * {source.scratch}"]
        text += [indented(passed, 3)]
    name = source.function("stage", "\n".join(line for line in text if line.strip()))
    return name, {
        "c0": source.block(writer),
        "reads": reads,
        "kept": kept,
        "slots": slots,
        "inputs": inputs,
        "stored": stored,
    }


def slides(
    source: Source, stage: Stage, reads: list[int], slid: dict[int, str]
) -> tuple[list[str], list[str], list[str]]:
    """Windowed sums: lines for each row, lines before the columns, and lines for each column.

    The rows of a window are added up first. With stride 1 these sums of neighbouring columns are kept in variables,
    which move on by one from column to column.
    """
    layout, L = source.layout, source.lanes
    rows_lines: list[str] = []
    first: list[str] = []
    each: list[str] = []
    for number, index in enumerate(stage.slides):
        statement = layout.program.statements[index]
        assert isinstance(statement, Slide)
        rows, columns = axis_windows(statement.windows)
        if statement.field not in reads:
            reads.append(statement.field)
        base = f"in{reads.index(statement.field)}"
        for tap in range(rows.size):
            shift = tap * rows.dilation - rows.low
            place = scaled("i", rows.stride)
            rows_lines.append(f"r{number}_{tap} = s0 + {base}")
            rows_lines.append(f"if 0 <= {plus(place, shift)} < hs:")
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
        slid[index] = f"z{number}"
    return rows_lines, first, each


def pool_function(source: Source, segment: Segment, places: list[tuple[int, int]], most: tuple[int, int]) -> str:
    """Adds planes to the stored planes that their pairs of positions are pooled into.

    `places` are where planes and stored planes start; `most` bounds the offsets of the latter.
    """
    layout, L = source.layout, source.lanes
    rows, columns = pool_windows(layout.program, segment)
    out_rows, out_columns = layout.grid(segment.pools[0])
    (DH, DW), start = most, source.row + layout.left * L
    adding = [f"store(S, to + {dst}, load(S, to + {dst}) + load(S, at + {src + start}))" for src, dst in places]
    text = f"""
{NJIT}
def {{name}}(S, s0, h, w, dh, dw):
    one_row = before({out_columns}, {DW}, {DW + 1})
    for k in range({rows.size}):
        for l in range({rows.size}):
            e = dh - (k - l) * {rows.dilation}
            oh = e // {rows.stride}
            if e % {rows.stride} or abs(oh) > {DH}:
                continue
            ho = {out_rows} - abs(oh)
            i0 = {rows.stride} * max(oh, 0) + k * {rows.dilation} - {rows.low} - max(dh, 0)
            for k2 in range({columns.size}):
                for l2 in range({columns.size}):
                    e = dw - (k2 - l2) * {columns.dilation}
                    ow = e // {columns.stride}
                    if e % {columns.stride} or abs(ow) > {DW}:
                        continue
                    wo = {out_columns} - abs(ow)
                    j0 = {columns.stride} * max(ow, 0) + k2 * {columns.dilation} - {columns.low} - max(dw, 0)
                    base = before({out_rows}, {DH}, oh) * one_row + ho * before({out_columns}, {DW}, ow)
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


def driver(source: Source, everything: bool) -> tuple[list[str], int]:
    """The lines that run all segments on one example of x1 and the lanes of x2; and the scratch they need.

    `everything`: for the output; else only what the variances of the examples themselves need.
    """
    layout, L = source.layout, source.lanes
    bounds = layout.bounds(everything) if layout.segments else []
    source_bounds = layout.source_bounds(bounds) if layout.segments else []
    places, inputs = source.offsets(), source.inputs()
    totals = source.totals()
    top = max(1, layout.buffers) * source.plane if layout.segments else 0
    stores: dict[int, int] = {}
    lines: list[str] = [f"for k in range(n * {len(totals) * L}):", "    T[k] = 0.0"] if totals else []
    stored: list[str] = []
    for number, segment in enumerate(layout.segments):
        for index in segment.pools:
            rows, columns = layout.grid(index)
            most = source_bounds[number + 1]
            stores[index] = top
            size = pairs_within(rows, most[0]) * pairs_within(columns, most[1]) * L
            stored += [
                f"    for k in range(r * {{scratch}} + {top}, r * {{scratch}} + {top + size}):",
                "        S[k] = F(0)",
            ]
            top += size
    source.scratch = top
    if stored:
        lines += ["for r in range(n):", *(line.format(scratch=top) for line in stored)]
    for number, segment in enumerate(layout.segments):
        common = source, segment, source_bounds, number, stores, totals, places, inputs
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


def pairs_within(n: int, most: int) -> int:
    return sum(n - abs(d) for d in range(-most, most + 1))


def plane_lines(source, segment, source_bounds, number, stores, totals, places, inputs) -> list[str]:
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
        name, uses = stage_function(source, segment, stage, totals)
        g = geometry(stage.geometry)
        arguments: list[Argument] = [(uses["c0"], "")]
        arguments += [(segment.buffers[i] * source.plane, "") for i in (*uses["reads"], *uses["kept"])]
        for slot in uses["slots"]:
            count = layout.slots[slot].count
            arguments += [(places[slot], f"{x}{g} * {count}") for x in "pq"]
        for slot in uses["slots"]:
            if layout.slots[slot].series:
                arguments += [(series[slot], ""), (0, f"p{g}"), (0, f"q{g}")]
        for index in uses["inputs"]:
            statement = program.statements[index]
            width = program.widths[statement.left]
            arguments += [(inputs[statement.left], f"p{g} * {width}"), (inputs[statement.right], f"q{g} * {width}")]
        for index in uses["stored"]:
            rows, columns = layout.grid(index)
            dh, dw = source_bounds[number]
            place = f"before({rows}, {dh}, dh{g}) * {pairs_within(columns, dw)} + h{g} * before({columns}, {dw}, dw{g})"
            arguments.append((stores[index], f"({place}) * {L}"))
        slid = {segment.geometry[operands(program.statements[i])[0]] for i in stage.slides}
        hs = f"h{geometry(slid.pop())}" if slid else "0"
        stages.append((name, tuple(arguments), (f"h{g}", f"w{g}", hs)))
    calls += repeated(source, stages)
    pooled: dict[str, list[tuple[int, int]]] = {}
    for index in segment.pools:
        inside = operands(program.statements[index])[0]
        place = segment.buffers[inside] * source.plane, stores[index]
        pooled.setdefault(geometry(segment.geometry[inside]), []).append(place)
    for g, own in pooled.items():
        name = pool_function(source, segment, own, source_bounds[number + 1])
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


def tail_function(source: Source, totals: dict[int, int]) -> str:
    """What follows the last sum over positions: numbers, not planes."""
    layout, L = source.layout, source.lanes
    places, series = source.offsets(), source.series_places()

    def load(index: int) -> str:
        return f"load(U, {totals[index] * L})"

    def side(which: str, slot: int, number: str) -> str:
        if which == "a" and source.mode == "pair":
            return f"spread(A, e * {places[-1]} + {places[slot] + layout.number(slot, number)})"
        return f"load({which.upper()}, {(places[slot] + layout.number(slot, number)) * L})"

    def address(slot: int, number: str) -> str:
        return str((places[slot] + layout.number(slot, number)) * L)

    def row(which: str, slot: int, table: int) -> str:
        place = f"K[{series[slot] + 2 * layout.slots[slot].series.index(table)}]"
        return f"e * K[{series[-1]}] + {place}" if which == "a" and source.mode == "pair" else f"{place} * {L}"

    def terms(slot: int, table: int) -> str:
        return f"K[{series[slot] + 2 * layout.slots[slot].series.index(table) + 1}]"

    def count(which: str, slot: int, table: int) -> str:
        scalar = which == "a" and source.mode == "pair"
        place = places[slot] + layout.number(slot, terms_of(table, not scalar))
        return f"A[e * {places[-1]} + {place}]" if scalar else f"{which.upper()}[{place * L}]"

    writer = source.writer(load, side, address, row, terms, count)
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
    functions = [text.replace("{name}", name) for text, name in source.functions.items()]
    parts = [source.header, *functions, "\n".join(entry)]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n", scratch
