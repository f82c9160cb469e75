"""Random fields in normal form: sums of Known coefficients times univariate functions of random leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from .elementwise import IDENTITY, Elementwise
from .known import ONE, Known, is_number


@dataclass(frozen=True, eq=False)
class ParameterStatistics:
    """What the limit needs to know of one array of parameters.

    `variance` is that of one entry at initialisation, `learning_rate` that of one entry in training (None: a
    zero-variance weight whose rate nobody gave).
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    variance: float
    learning_rate: float | None
    distribution: str = "normal"

    @property
    def rate(self) -> float:
        """The learning rate of an entry; 1 for a bias or scale of zero variance whose rate nobody gave."""
        return 1.0 if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True, eq=False)
class Leaf:
    """A zero-mean Gaussian, independent and identically distributed over the width.

    `source` is the line of the user's model that made it.
    """

    source: str | None = field(default=None, kw_only=True)

    @property
    def roots(self) -> frozenset[ParameterStatistics]:
        """The parameters it came from; disjoint roots mean independent, with zero tangent."""
        raise TypeError(f"{type(self).__name__} is not a leaf")

    @property
    def inputs(self) -> tuple[Segment, ...]:
        """The signals it was made from."""
        return ()


@dataclass(frozen=True, eq=False)
class ParameterLeaf(Leaf):
    """A bias-like parameter less its mean, times `scale`; one entry for each place along the width.

    With zero variance (a zero bias, a LayerNorm scale at 1) its value is 0 and only its tangent counts.
    """

    parameter: ParameterStatistics
    scale: float = 1.0

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset((self.parameter,))

    @property
    def degenerate(self) -> bool:
        return self.parameter.variance == 0.0


@dataclass(frozen=True, eq=False)
class DenseLeaf(Leaf):
    """scale · W s: a weight contracted with the width of a signal, a Gaussian by the central limit theorem."""

    weight: ParameterStatistics
    input: tuple[Segment, ...]
    scale: float = 1.0

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset((self.weight,))

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return self.input

    @property
    def fan_in(self) -> int:
        return sum(segment.size for segment in self.input)


@dataclass(frozen=True, eq=False)
class SumLeaf(Leaf):
    """A sum of Gaussian terms, which is one Gaussian again."""

    segment: Segment

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return self.segment.roots

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return (self.segment,)


@dataclass(frozen=True)
class Factor:
    """φ(leaf)."""

    function: Elementwise
    leaf: Leaf


@dataclass(frozen=True)
class Term:
    """coefficient · Π φ_i(leaf_i); the leaves differ.

    The coefficient is a number, of shape `()`, or varies over the width, `(size,)`.
    """

    coefficient: Known = ONE
    factors: tuple[Factor, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether the coefficient differs from place to place along the width."""
        return bool(self.coefficient.shape)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(factor.leaf for factor in self.factors)

    @property
    def degenerate(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if is_degenerate(factor.leaf))

    @property
    def random(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if not is_degenerate(factor.leaf))


def is_degenerate(leaf: Leaf) -> bool:
    """Whether a leaf is a parameter of zero variance."""
    return isinstance(leaf, ParameterLeaf) and leaf.degenerate


@dataclass(frozen=True, eq=False)
class Segment:
    """`size` places along the width over which a signal is one sum of terms."""

    size: int
    terms: tuple[Term, ...]

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset().union(*(leaf.roots for term in self.terms for leaf in term.leaves))

    @property
    def is_known(self) -> bool:
        return not any(term.factors for term in self.terms)

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that the segment simply is, if it is one."""
        if len(self.terms) != 1:
            return None
        term = self.terms[0]
        plain = len(term.factors) == 1 and term.factors[0].function.is_identity and is_number(term.coefficient, 1.0)
        return term.factors[0].leaf if plain else None


@dataclass(frozen=True, eq=False)
class Signal:
    """A random array of one example.

    `width` is the axis along which it has a law of large numbers; None for a single number. All other axes have length
    one. Concatenations along the width are kept as segments.
    """

    shape: tuple[int, ...]
    width: int | None
    segments: tuple[Segment, ...] = field()

    def __post_init__(self) -> None:
        size = 1 if self.width is None else self.shape[self.width]
        if sum(segment.size for segment in self.segments) != size:
            raise ValueError(f"segments of sizes {[s.size for s in self.segments]} do not fill a width of {size}")
        if any(length != 1 for axis, length in enumerate(self.shape) if axis != self.width):
            raise ValueError(f"a signal of shape {self.shape} has a width on axis {self.width} and other long axes")


def of_leaf(leaf: Leaf) -> Term:
    return Term(ONE, (Factor(IDENTITY, leaf),))
