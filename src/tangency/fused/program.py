"""What a fused program does to one pair of examples, as plain data: statements on fields of moments.

A field is K or Θ of two signals over pairs of positions (s, s') or, where the network has no positions left, a number.
Statements name fields by their place in the list. `left` and `right` are places among the one-sided quantities, numbers
of one example (at each position) that the caller computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from itertools import chain
from typing import TypeAlias

from ..graph.space import Window
from .tables import Table

Space: TypeAlias = tuple[int, ...]


class NotFusedError(Exception):
    """Something in a graph has no fused form; the message says what. The XLA path evaluates it."""


@dataclass(frozen=True)
class PiecewiseLinear:
    """one + linear·u + absolute·|u| + sign·sign(u), and the function's own value at 0."""

    one: float
    linear: float
    absolute: float
    sign: float
    at_zero: float

    @property
    def nonnegative(self) -> bool:
        """Whether it is negative nowhere."""
        values = self.linear + self.absolute, self.absolute - self.linear, self.one + self.sign, self.one - self.sign
        return min(*values, self.at_zero) >= 0.0


@dataclass(frozen=True)
class Piecewise:
    """E[f(u) g(v)] of two such functions."""

    f: PiecewiseLinear
    g: PiecewiseLinear

    def normalised(self) -> tuple[float, Piecewise]:
        """A number and a rule whose product this is, with E[f′ g′] = 1 at correlation 1 if there are slopes at all."""
        size = self.f.linear * self.g.linear + self.f.absolute * self.g.absolute
        if size <= 0.0:
            return 1.0, self
        return size, Piecewise(PiecewiseLinear(*(x / size for x in astuple(self.f))), self.g)


@dataclass(frozen=True)
class ErrorFunction:
    """one + linear·u + (step + ramp·u) · erf(u / √(2 noise)), noise > 0: GELU, the error function and their kin."""

    one: float
    linear: float
    ramp: float
    step: float
    noise: float


@dataclass(frozen=True)
class ErrorFunctions:
    """E[f(u) g(v)] of two such functions, or of their slopes."""

    f: ErrorFunction
    g: ErrorFunction
    slopes: bool


Operand: TypeAlias = int | float
"""A step's place, or −1, −2, −3 for the two variances and the covariance; or, as a `float`, a number."""


@dataclass(frozen=True)
class Formula:
    """E[f(u) g(v)] as elementwise operations on two variances and a covariance, each a name with its operands."""

    steps: tuple[tuple[str, tuple[Operand, ...]], ...]


@dataclass(frozen=True)
class Series:
    """E[f(u) g(v)] as a polynomial of the correlation ρ; `mean` is E[f(u) g(u)].

    The tables are of Hermite coefficients h_k of f and g, the value is Σ_k h_k h'_k ρ^k; or, if it is `integrated`,
    those of their slopes, and the value is E f · E g + c Σ_k h_k h'_k ρ^k / (k + 1), because ∂_c E[f g] = E[f′ g′].
    `origins` are E f and E g, None where one of them is zero.
    """

    f: Table
    g: Table
    mean: Table
    integrated: bool = False
    origins: tuple[Table, Table] | None = None

    @property
    def kinked(self) -> bool:
        """Whether both functions have a kink at 0."""
        return self.f.whole is not None and self.g.whole is not None

    @property
    def rows(self) -> tuple[tuple[Table, Table], ...]:
        """The tables of both sides whose coefficients are multiplied with each other."""
        return ((self.f, self.g),)

    @property
    def means(self) -> tuple[Table, ...]:
        """Tables of which the mean alone is needed."""
        return (self.mean, *(self.origins or ()))


@dataclass(frozen=True)
class Threshold:
    """Σ_n coefficients[n] xⁿ where x = sign · u − threshold > 0, sign = ±1, else 0; what `owen` tabulates of it."""

    threshold: float
    sign: float
    coefficients: tuple[float, float, float]
    table: Table | None


@dataclass(frozen=True)
class PiecewiseQuadratic:
    """A piecewise linear or quadratic function: core + square·u² around 0, and what it has beyond its thresholds."""

    core: PiecewiseLinear
    square: float
    levels: tuple[Threshold, ...]


@dataclass(frozen=True)
class Truncated:
    """E[f(u) g(v)] of two such functions, with kinks or jumps elsewhere than at 0.

    Attributes:
        served: the variances between which it is no small difference of large numbers.
    """

    f: PiecewiseQuadratic
    g: PiecewiseQuadratic
    served: tuple[float, float]

    @property
    def rows(self) -> tuple[tuple[Table, Table], ...]:
        tables = dict.fromkeys(level.table for level in self.f.levels + self.g.levels)
        return tuple((table, table) for table in tables if table is not None)

    @property
    def means(self) -> tuple[Table, ...]:
        return ()


Tabled: TypeAlias = Series | Truncated
"""Rules that look up numbers of one variance."""

Rule: TypeAlias = Piecewise | ErrorFunctions | Formula | Tabled


@dataclass(frozen=True)
class Inner:
    """Σ_c x_c x'_c of two Known arrays over (*positions, width)."""

    left: int
    right: int


@dataclass(frozen=True)
class One:
    """The field that is 1 everywhere."""


@dataclass(frozen=True)
class Sum:
    """Σ factor · left · right' · field; left and right are tuples of one-sided quantities."""

    parts: tuple[tuple[float, tuple[int, ...], tuple[int, ...], int], ...]


@dataclass(frozen=True)
class Dual:
    """E[f(u) g(u')] of a Gaussian of covariance `field`, whose variances are one-sided quantities of their own."""

    field: int
    rule: Rule


@dataclass(frozen=True)
class Times:
    """The product of two fields."""

    first: int
    second: int


@dataclass(frozen=True)
class Slide:
    """Sums over windows that slide over both positions at once, one for each axis: what a convolution does."""

    field: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Pool:
    """Windowed sums over each of the two positions by itself: what pooling does."""

    field: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Total:
    """The sum over all pairs of positions (`trace`: over equal ones), which leaves one number."""

    field: int
    trace: bool


Statement: TypeAlias = Inner | One | Sum | Dual | Times | Slide | Pool | Total


@dataclass(frozen=True)
class Program:
    """A lowered graph.

    Attributes:
        statements: each uses fields of earlier ones only.
        spaces: the positions of each statement's field, of one example.
        nngp, ntk: the fields of K and Θ of the output; None is zero.
        widths: the width of each Known array that `Inner` names.
        coefficients: how many one-sided Known quantities `Sum` names.
    """

    statements: tuple[Statement, ...]
    spaces: tuple[Space, ...]
    nngp: int | None
    ntk: int | None
    widths: tuple[int, ...]
    coefficients: int


def operands(statement: Statement) -> tuple[int, ...]:
    """The fields that a statement reads."""
    match statement:
        case Sum(parts):
            return tuple(part[3] for part in parts)
        case Times(first, second):
            return first, second
        case Dual(field) | Slide(field) | Pool(field) | Total(field):
            return (field,)
    return ()


def reading(statement: Statement, places: Mapping[int, int]) -> Statement:
    """The statement with these places for the fields that it reads."""
    match statement:
        case Sum(parts):
            return Sum(tuple((*part[:3], places[part[3]]) for part in parts))
        case Times(first, second):
            return Times(places[first], places[second])
        case Dual(field) | Slide(field) | Pool(field) | Total(field):
            return replace(statement, field=places[field])
    return statement


def nonnegative(program: Program) -> frozenset[int]:
    """Fields that are negative nowhere, whatever the inputs."""
    found: set[int] = set()
    for index, statement in enumerate(program.statements):
        match statement:
            case Inner():
                continue
            case Sum(parts):
                holds = all(part[0] >= 0.0 and not part[1] and not part[2] and part[3] in found for part in parts)
            case Dual(_, Piecewise(f, g)):
                holds = f.nonnegative and g.nonnegative
            case Dual():
                holds = False
            case _:
                holds = found.issuperset(operands(statement))
        if holds:
            found.add(index)
    return frozenset(found)


def tables(program: Program) -> tuple[Table, ...]:
    """All tables of a program's rules; they are known by their places here."""
    rules = [s.rule for s in program.statements if isinstance(s, Dual) and isinstance(s.rule, Tabled)]
    return tuple(dict.fromkeys(t for rule in rules for t in (*chain(*rule.rows), *rule.means)))


def noises(program: Program) -> tuple[float, ...]:
    """The noises of all error functions of a program; they are known by their places here."""
    rules = [s.rule for s in program.statements if isinstance(s, Dual) and isinstance(s.rule, ErrorFunctions)]
    return tuple(dict.fromkeys(noise for rule in rules for noise in (rule.f.noise, rule.g.noise)))


def needed(program: Program, results: tuple[int | None, ...]) -> tuple[int, ...]:
    """The fields that the results are made from, in order."""
    found = {result for result in results if result is not None}
    for index in range(len(program.statements) - 1, -1, -1):
        if index in found:
            found.update(operands(program.statements[index]))
    return tuple(sorted(found))
