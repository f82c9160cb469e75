"""What the axes of a random array are: positions, parts of a width, or repetitions, and products of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import TypeAlias


@dataclass(frozen=True)
class Space:
    """The `index`-th axis of the signal's positions."""

    index: int
    length: int


@dataclass(frozen=True)
class Width:
    """A part of the width, which is the product of its parts in the order of their indices."""

    index: int
    length: int


@dataclass(frozen=True)
class Repeat:
    """Entries that are all the same."""

    length: int


Atom: TypeAlias = Space | Width | Repeat
Axis: TypeAlias = tuple[Atom, ...]


@dataclass(frozen=True)
class Layout:
    """The axes of an array, each the product of atoms in row-major order; an axis of length one has none."""

    axes: tuple[Axis, ...] = ()

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(atom.length for atom in axis) for axis in self.axes)

    @cached_property
    def space(self) -> tuple[int, ...]:
        """The lengths of the axes of positions, by index."""
        lengths = {atom.index: atom.length for atom in self.atoms if isinstance(atom, Space)}
        return tuple(lengths[index] for index in range(len(lengths)))

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """The lengths of the parts of the width, by index."""
        lengths = {atom.index: atom.length for atom in self.atoms if isinstance(atom, Width)}
        return tuple(lengths[index] for index in range(len(lengths)))

    @property
    def width(self) -> int:
        return prod(self.parts)

    @property
    def atoms(self) -> Iterator[Atom]:
        for axis in self.axes:
            yield from axis

    def permuted(self, permutation: Sequence[int]) -> Layout:
        return Layout(tuple(self.axes[axis] for axis in permutation))


def prefix_products(lengths: Sequence[int]) -> tuple[int, ...]:
    """The cumulative products, which say where a row-major axis is cut."""
    products, total = [], 1
    for length in lengths:
        total *= length
        products.append(total)
    return tuple(products)


def refine(*factorings: Sequence[int]) -> tuple[int, ...] | None:
    """The coarsest lengths that every factoring of one length can be split into; None if there are none."""
    cuts = sorted({1}.union(*(prefix_products(lengths) for lengths in factorings)))
    if any(b % a for a, b in pairwise(cuts)):
        return None
    return tuple(b // a for a, b in pairwise(cuts))
