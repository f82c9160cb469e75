"""Branches around pools: behind which pools a field is computed, and fields that are read behind pools further on.

The planes of one offset are all that a segment sees, so what a later segment reads of an earlier one is stored for all
offsets: what pools make, and *carried* fields, pools whose windows hold one position.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.space import Window
from .program import One, Pool, Program, Space, Statement, Total, needed, operands, reading


def numbered(program: Program) -> dict[int, int]:
    """The segment of every field over positions: as late as what reads it allows, so that it is evaluated on no more
    offsets than are needed there. A pool is in the segment that reads it, its source in an earlier one.
    """
    statements = program.statements
    wanted = needed(program, (program.nngp, program.ntk))
    fields = [i for i in wanted if program.spaces[i] and not isinstance(statements[i], One)]
    earliest: dict[int, int] = {}
    for i in fields:
        inner = (earliest[j] for j in operands(statements[i]) if j in earliest)
        earliest[i] = max(inner, default=0) + isinstance(statements[i], Pool)
    number = dict.fromkeys(fields, max(earliest.values(), default=0))
    for i in reversed(fields):
        for j in operands(statements[i]):
            if j in number:
                number[j] = min(number[j], number[i] - isinstance(statements[i], Pool))
    return number


def carried(program: Program) -> Program:
    """The same program, in which every field is read in its own segment, or by a pool."""
    number = numbered(program)
    last = max(number.values(), default=0)
    readers: dict[int, set[int]] = {}
    for i, statement in enumerate(program.statements):
        if isinstance(statement, Pool) or (i not in number and not isinstance(statement, Total)):
            continue
        for j in operands(statement):
            if number.get(j, last) < number.get(i, last):
                readers.setdefault(j, set()).add(number.get(i, last))
    statements: list[Statement] = []
    spaces: list[Space] = []
    places: dict[int, int] = {}
    copies: dict[tuple[int, int], int] = {}

    def add(statement: Statement, space: Space) -> int:
        statements.append(statement)
        spaces.append(space)
        return len(statements) - 1

    for i, (statement, space) in enumerate(zip(program.statements, program.spaces, strict=True)):
        # The source of a pool is read where it is.
        here = -1 if isinstance(statement, Pool) else number.get(i, last)
        places[i] = add(reading(statement, {j: copies.get((j, here), places[j]) for j in operands(statement)}), space)
        for reader in sorted(readers.get(i, ())):
            copies[i, reader] = add(Pool(places[i], (Window(1),) * len(space)), space)
    nngp, ntk = (None if result is None else places[result] for result in (program.nngp, program.ntk))
    return replace(program, statements=tuple(statements), spaces=tuple(spaces), nngp=nngp, ntk=ntk)
