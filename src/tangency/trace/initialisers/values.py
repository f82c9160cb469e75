"""The abstract values of the interpretation."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from .laws import Law


@dataclass(frozen=True)
class Known:
    """A concrete constant. Floating-point numbers are kept in float64, whatever the program's own format.

    PRNG keys are held as raw bytes (dtype void, one entry a key). `epsilon` is the coarsest rounding unit that the
    number has passed through, `from_key` whether it was computed from the initialiser's key.
    """

    array: np.ndarray
    epsilon: float = 0.0
    from_key: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def common_entry(self) -> float | None:
        """The value of every entry, if they are all equal."""
        array = compact(self.array)
        if array.size == 0 or array.dtype.kind not in "biuf":
            return None
        first = array.flat[0]
        return float(first) if array.size == 1 or bool(np.all(array == first)) else None


@dataclass(frozen=True)
class Draw:
    """One call of the bit generator: which keys, in which order, and the shape of the result."""

    keys: tuple[bytes, ...]
    shape: tuple[int, ...]
    bit_width: int


@dataclass(frozen=True)
class Origin:
    """A draw, and the moves of entries (reshape, transpose, slice, …) since."""

    draw: Draw
    moves: tuple = ()

    def moved(self, step: tuple) -> "Origin":
        return replace(self, moves=(*self.moves, step))

    def overlaps(self, other: "Origin") -> bool:
        """Whether the two may hold some of the same random numbers."""
        if not set(self.draw.keys) & set(other.draw.keys):
            return False
        if self.draw != other.draw:
            return True
        (frame, box), (other_frame, other_box) = self.part, other.part
        if frame != other_frame or box is None or other_box is None:
            return True
        return all(a < d and c < b for (a, b), (c, d) in zip(box, other_box, strict=True))

    @property
    def part(self) -> tuple[tuple, tuple | None]:
        """The first slice taken, as the moves before it and its (start, limit) along each axis."""
        for i, step in enumerate(self.moves):
            if step[0] == "slice":
                return self.moves[:i], step[1]
        return self.moves, None


@dataclass(frozen=True)
class Bits:
    """Random bits on their way to a number in [1, 2): `shifted` is by how much they have moved to the right."""

    origin: Origin
    shape: tuple[int, ...]
    width: int
    shifted: int = 0
    exponent: int | None = None


@dataclass(frozen=True)
class Random:
    """Each entry is the same function of its own entry of one draw."""

    origin: Origin
    shape: tuple[int, ...]
    law: Law
    epsilon: float

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (self.origin,)


@dataclass(frozen=True)
class Summary:
    """Only mean and variance are known; the entries depend on several draws, or on each other."""

    origins: tuple[Origin, ...]
    shape: tuple[int, ...]
    mean: float | np.ndarray
    variance: float
    distribution: str
    epsilon: float


@dataclass(frozen=True)
class Factor:
    """Something computed from the QR decomposition of a Gaussian matrix.

    role "Q" or "R" is a factor itself, "diagonal" the diagonal of R, "signs" its signs along the last axis.
    """

    role: str
    origin: Origin
    shape: tuple[int, ...]
    epsilon: float


@dataclass(frozen=True)
class Unresolved:
    """Nothing is known, and why."""

    reason: str
    source: str | None = None


Value: TypeAlias = Known | Bits | Random | Summary | Factor | Unresolved


def compact(array: np.ndarray) -> np.ndarray:
    """The array with the axes along which it was broadcast reduced to length 1."""
    index = tuple(slice(0, 1) if stride == 0 and size > 1 else slice(None) for size, stride in _axes(array))
    return array[index]


def _axes(array: np.ndarray) -> Iterable[tuple[int, int]]:
    return zip(array.shape, array.strides, strict=True)


def aval(atom) -> Any:
    """The shape and dtype of a variable or literal of a jaxpr."""
    return atom.aval
