"""The text of a fused program for a network without positions."""

from __future__ import annotations

from .layout import Layout
from .program import Inner
from .source import ENTRY, HEADER, Source, indented, prologue


def dense_body(source: Source) -> tuple[list[str], list[str], list[str]]:
    """Constants, what is the same along a row, and what is done at each entry, for a network without positions."""
    layout, program = source.layout, source.layout.program
    places = source.offsets()
    inner = [i for i in layout.fields if isinstance(program.statements[i], Inner)]
    row: list[str] = []

    def load(index: int) -> str:
        return f"load(G, ({inner.index(index)} * rows + i) * columns + j)"

    def side(which: str, slot: int, number: str) -> str:
        place = places[slot] + layout.number(slot, number)
        if which == "b" or source.mode == "first":
            return f"load(B, {place} * columns + j)"
        line = f"a{place} = spread(A, {place})"
        if line not in row:
            row.append(line)
        return f"a{place}"

    def keep(slot: int, number: str, name: str) -> str:
        return f"store(B, {places[slot] + layout.number(slot, number)} * columns + j, {name})"

    writer = source.writer(load, side, keep)
    for index in layout.tail:
        writer.write(index)
        writer.after_load(index)
    if source.mode == "pair":
        for k, index in enumerate(source.outputs):
            value = writer.constant(0.0) if index is None else writer.of(index)
            writer.lines.append(f"store(out, ({k} * rows + i) * columns + j, {value})")
    start = len(source.factors)
    source.factors.extend(writer.factors)
    return [f"c0 = {start}", *prologue(writer)], row, writer.lines


def inner_fields(layout: Layout) -> list[tuple[int, int]]:
    """The (left, right) arrays of each inner product of a network without positions, in the order of `G`."""
    statements = (layout.program.statements[i] for i in layout.fields)
    return [(s.left, s.right) for s in statements if isinstance(s, Inner)]


def dense_text(source: Source, cache: bool) -> str:
    numbers, row, each = dense_body(source)
    L = source.lanes
    head = ENTRY.format(cache=cache)
    if source.mode == "first":
        entry = [head, "def entry(G, B, columns, cs):", "    rows = 1", "    i = 0", indented(numbers, 1)]
        entry += [f"    for j in range(0, columns, {L}):", indented(each, 2)]
    else:
        entry = [head, "def entry(G, A2, B, columns, cs, out, rows, first, last, skip):", indented(numbers, 1)]
        entry += ["    for i in range(first, last):", "        A = A2[i]", indented(row, 2)]
        entry += [f"        for j in range(max(0, (i - skip) // {L} * {L}), columns, {L}):", indented(each, 3)]
    return (
        HEADER.format(dtype=source.dtype, lanes=L) + "\n\n" + "\n".join(line for line in entry if line.strip()) + "\n"
    )
