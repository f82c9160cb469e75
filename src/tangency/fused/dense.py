"""The text of a fused program for a network without positions."""

from __future__ import annotations

from dataclasses import dataclass, field

from .layout import Layout, terms_of
from .pointwise import Writer
from .program import Inner
from .source import ENTRY, Source, indented, prologue

ROWS = 32
"""Rows whose coefficients stay in the cache while one group of columns after the other passes by."""


@dataclass(frozen=True)
class DenseAccess:
    """Where the numbers of entry (i, j) lie; `same` collects what does not change along a row."""

    source: Source
    same: list[str] = field(default_factory=list)

    def load(self, writer: Writer, index: int) -> str:
        layout = self.source.layout
        inner = [i for i in layout.fields if isinstance(layout.program.statements[i], Inner)]
        return f"load(G, ({inner.index(index)} * rows + i) * columns + j)"

    def side(self, which: str, slot: int, number: str) -> str:
        if which == "b" or self.source.mode == "first":
            return f"load(B, {self.address(slot, number)})"
        place = self.source.number_place(slot, number)
        line = f"a{place} = spread(A, i * {self.source.offsets()[-1]} + {place})"
        if line not in self.same:
            self.same.append(line)
        return f"a{place}"

    def address(self, slot: int, number: str) -> str:
        return f"j * {self.source.offsets()[-1]} + {self.source.number_place(slot, number) * self.source.lanes}"

    def row(self, which: str, slot: int, table: int) -> str:
        each, place = f"K[{self.source.series_places()[-1]}]", f"K[{self.source.series_place(slot, table)}]"
        return f"i * {each} + {place}" if which == "a" else f"j * {each} + {place} * {self.source.lanes}"

    def terms(self, slot: int, table: int) -> str:
        return f"K[{self.source.series_place(slot, table) + 1}]"

    def count(self, which: str, slot: int, table: int) -> str:
        if which == "b":
            return f"B[{self.address(slot, terms_of(table, True))}]"
        return f"A[i * {self.source.offsets()[-1]} + {self.source.number_place(slot, terms_of(table, False))}]"


def dense_body(source: Source) -> tuple[list[str], list[str], list[str]]:
    """Constants, what is the same along a row, and what is done at each entry, for a network without positions."""
    layout, access = source.layout, DenseAccess(source)
    writer = source.writer(access)
    for index in layout.tail:
        writer.write(index)
        writer.after_load(index)
    if source.mode == "pair":
        for k, index in enumerate(source.outputs):
            value = writer.constant(0.0) if index is None else writer.of(index)
            writer.lines.append(f"store(out, ({k} * rows + i) * columns + j, {value})")
    return [f"c0 = {source.block(writer)}"], access.same, [*prologue(writer), *writer.lines]


def inner_fields(layout: Layout) -> list[tuple[int, int]]:
    """The (left, right) arrays of each inner product of a network without positions, in the order of `G`."""
    statements = (layout.program.statements[i] for i in layout.fields)
    return [(s.left, s.right) for s in statements if isinstance(s, Inner)]


def dense_text(source: Source, cache: bool) -> str:
    numbers, same, each = dense_body(source)
    L = source.lanes
    head = ENTRY.format(cache=cache)
    if source.mode == "first":
        entry = [head, f"def entry(G, B, columns, cs{source.series}):", "    rows = 1", "    i = 0"]
        entry.append(indented(numbers, 1))
        entry += [f"    for j in range(0, columns, {L}):", indented(each, 2)]
    else:
        entry = [head, f"def entry(G, A, B, columns, cs, out, rows, first, last, skip{source.series}):"]
        entry.append(indented(numbers, 1))
        if source.series:
            entry.append(f"    for block in range(first, last, {ROWS}):")
            entry.append(f"        for j in range(max(0, (block - skip) // {L} * {L}), columns, {L}):")
            entry.append(f"            for i in range(block, min(block + {ROWS}, last)):")
            entry.append(indented([*same, *each], 4))
        else:
            entry += ["    for i in range(first, last):", indented(same, 2)]
            entry += [f"        for j in range(max(0, (i - skip) // {L} * {L}), columns, {L}):", indented(each, 3)]
    parts = [source.header, *source.texts, "\n".join(line for line in entry if line.strip())]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"
