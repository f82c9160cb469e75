"""Lines of code for what happens at one position of one pair, `lanes` examples of x2 at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .error_function import MEAN, error_functions, noisy_inverse
from .layout import COUNTS, TABLED, Layout, mean_of, noise_of
from .polynomials import absolute_series, arccosine, arctangent
from .power_series import series
from .program import (
    Dual,
    ErrorFunctions,
    Formula,
    Inner,
    One,
    Operand,
    Piecewise,
    PiecewiseLinear,
    Pool,
    Series,
    Slide,
    Sum,
    Times,
    Total,
    Truncated,
    noises,
    tables,
)
from .quadrant import truncated
from .tables import AIM

if TYPE_CHECKING:
    from .source import Source

TINY = {"float32": 1e-30, "float64": 1e-250}
"""Variances below it are not divided by; the caller refuses them, unless they are zero."""

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {
    "lt": ("where_less", False),
    "gt": ("where_less", True),
    "le": ("where_less_equal", False),
    "ge": ("where_less_equal", True),
    "eq": ("where_equal", False),
}
"""Each comparison as a selection, and whether its operands change places."""

OPERATIONS = frozenset((*INFIX, *COMPARISONS, "neg", "sqrt", "abs", "max", "min", "atan2", "select_n", "or", "and"))
"""What a `Formula` may consist of. The second operand of atan2 must not be negative."""


class Access(Protocol):
    """Where the numbers that a piece of code reads lie in memory, as expressions. `which` is the side, "a" or "b"."""

    def load(self, writer: Writer, index: int) -> str:
        """A field that is not computed here: a slid one, a stored one, a total."""
        ...

    def side(self, which: str, slot: int, number: str) -> str:
        """One of a slot's numbers."""
        ...

    def address(self, slot: int, number: str) -> str:
        """Its place in B."""
        ...

    def row(self, which: str, slot: int, table: int) -> str:
        """Where the coefficients from a table start, in C or H."""
        ...

    def terms(self, slot: int, table: int) -> str:
        """How many of them there are."""
        ...

    def count(self, which: str, slot: int, table: int) -> str:
        """How many of them are needed."""
        ...


@dataclass
class Writer:
    """Emits statements in order; each field becomes a variable.

    Attributes:
        mode: "pair"; "first" where an example meets itself at equal positions, which finds its variances; "self" where
            it meets itself at different ones.
        guarded: whether variances may be zero.
        access: where what it reads lies.
        source: the program that the code is for.
        lanes: examples of x2 in a vector.
    """

    layout: Layout
    dtype: str
    lanes: int
    mode: str
    guarded: bool
    access: Access
    source: Source
    constants: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    shared: dict[int, dict[str, str]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    looked_up: list[tuple[int, int]] = field(default_factory=list)

    def constant(self, value: float) -> str:
        """A number that is handed to the program, so that layers that differ in numbers alone share their code."""
        return self.constants.setdefault(repr(value), f"n{len(self.constants)}")

    def piece(self) -> Writer:
        """A writer for a function of its own (see `Source.piece`)."""
        return Writer(self.layout, self.dtype, self.lanes, self.mode, self.guarded, self.access, self.source)

    def define(self, name: str, expression: str) -> str:
        self.lines.append(f"{name} = {expression}")
        return name

    def shared_value(self, expression: str) -> str:
        """The variable of an expression of variables that do not change, which is written once."""
        if expression not in self.values:
            self.values[expression] = self.define(f"w{len(self.values)}", expression)
        return self.values[expression]

    def horner(self, coefficients: Sequence[float], x: str) -> str:
        """A polynomial, coefficients lowest first."""
        total = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = f"fma({total}, {x}, {self.constant(coefficient)})"
        return total

    def coefficient(self, side: str, row: str, column: str | int) -> str:
        """A coefficient that has been looked up, of the row that starts there."""
        if side == "a" and self.mode == "pair":
            return f"spread(C, {row} + {column})"
        return f"load({'C' if side == 'a' else 'H'}, {row} + ({column}) * {self.lanes})"

    def of(self, index: int) -> str:
        """The variable of a field."""
        if index not in self.names:
            self.names[index] = self.define(f"v{len(self.names)}", self.access.load(self, index))
        return self.names[index]

    def write(self, index: int) -> None:
        """A field's own statement."""
        statement = self.layout.program.statements[index]
        match statement:
            case Slide() | Pool() | Total() | Inner():
                self.of(index)
                return
            case Sum(parts):
                value = self.sum(parts)
            case Times(first, second):
                value = f"{self.of(first)} * {self.of(second)}"
            case Dual(place, Piecewise(f, g)):
                value = self.dual(place, f, g)
            case Dual(place, ErrorFunctions() as rule):
                value = error_functions(self, place, rule)
            case Dual(place, Formula(steps)):
                value = self.formula(place, steps)
            case Dual(place, Series() as rule):
                value = series(self, place, rule)
            case Dual(place, Truncated() as rule):
                value = truncated(self, place, rule)
            case One():
                value = self.constant(1.0)
        self.names[index] = self.define(f"v{len(self.names)}", value)
        if self.mode == "first":
            self._find_variance(index)

    def after_load(self, index: int) -> None:
        """A field that was only loaded may be a variance all the same."""
        if self.mode == "first":
            self._find_variance(index)

    def slot(self, source: int, known: bool) -> int | None:
        for number, slot in enumerate(self.layout.slots):
            if slot.source == source and slot.known == known:
                return number
        return None

    def _find_variance(self, index: int) -> None:
        """The one-sided numbers of a field, which are stored for the pairs."""
        slot = self.slot(index, False)
        if slot is None or index in self.shared:
            return
        c, local = self.of(index), len(self.shared)
        names = self.shared[index] = {"id": str(local)}
        for number in self.layout.slots[slot].numbers:
            if not number.startswith(TABLED):
                name = self._number(number, c, local)
                self.lines.append(f"store(B, {self.access.address(slot, number)}, {name})")
                names["a" + number] = names["b" + number] = name
        for table in self.layout.slots[slot].means:
            number = mean_of(table)
            self._look_up(slot, table)
            names["a" + number] = self.define(f"{number}_{local}", f"load(B, {self.access.address(slot, number)})")
            names["b" + number] = names["a" + number]

    def _look_up(self, slot: int, table: int) -> None:
        """A table's mean and coefficients at the variances of the lanes, which have been stored."""
        known = tables(self.layout.program)
        start = sum(t.size for t in known[:table])
        rows = table in self.layout.slots[slot].series
        place = self.access.row("b", slot, table) if rows else "0"
        places = (self.access.address(slot, number) for number in ("variance", mean_of(table)))
        self.lines.append(
            f"look_up(B, {', '.join(places)}, M, {start}, {known[table].padded}, H, {place}, "
            f"{self.access.terms(slot, table) if rows else '0'}, W, {self.lanes}, {AIM[self.dtype]}, "
            f"{known[table].whole is not None}, {known[table].first}, {known[table].step})"
        )
        if not rows:
            return
        self.looked_up.append((slot, table))
        before = known[table].chebyshev
        if before is not None:
            count = f"{self.access.terms(slot, table)} - {before}"
            self.lines.append(f"to_powers(H, {place} + {before * self.lanes}, {count}, {self.lanes})")

    def _number(self, number: str, c: str, local: int) -> str:
        if number == "variance":
            return c
        if number in ("root", "inverse"):
            return self._root(c, local) if number == "root" else self._inverse(c, local)
        return noisy_inverse(self, c, noises(self.layout.program)[noise_of(number)], f"{number}_{local}")

    def _root(self, c: str, local: int) -> str:
        zero = self.constant(0.0)
        return self.define(f"root{local}", f"sqrt(where_less({zero}, {c}, {c}, {zero}))")

    @property
    def next_number(self) -> str:
        """What a number is multiplied by to become the next one."""
        return self.constant(1.0 + (2.0**-23 if self.dtype == "float32" else 2.0**-52))

    def _inverse(self, c: str, local: int) -> str:
        """1/√c, rounded up until (c · inverse) · inverse ≥ 1: equal inputs then have correlation 1."""
        one, zero, tiny = self.constant(1.0), self.constant(0.0), self.constant(TINY[self.dtype])
        safe = f"sqrt(where_less({c}, {tiny}, {one}, {c}))"
        inverse = self.define(f"inverse{local}", f"where_less({c}, {tiny}, {zero}, {one} / {safe})")
        for _ in range(4):
            up = f"{inverse} * {self.next_number}"
            self.define(inverse, f"where_less(({c} * {inverse}) * {inverse}, {one}, {up}, {inverse})")
        return inverse

    def sum(self, parts: tuple[tuple[float, tuple[int, ...], tuple[int, ...], int], ...]) -> str:
        total: str = ""
        for factor, left, right, place in parts:
            statement = self.layout.program.statements[place]
            value = None if isinstance(statement, One) else self.of(place)
            for side, quantities in (("a", left), ("b", right)):
                for quantity in quantities:
                    slot = self.slot(quantity, True)
                    assert slot is not None
                    other = self.access.side(side, slot, "value")
                    value = other if value is None else f"({value} * {other})"
            scale = None if factor == 1.0 and value is not None else self.constant(factor)
            if not total:
                total = str(value if scale is None else scale if value is None else f"{scale} * {value}")
            elif scale is None or value is None:
                total = f"({total}) + {value or scale}"
            else:
                total = f"fma({scale}, {value}, {total})"
        return total

    def roots(self, place: int) -> dict[str, str]:
        """The one-sided numbers of a field, by side and name."""
        if place not in self.shared:
            slot = self.slot(place, False)
            assert slot is not None
            names = self.shared[place] = {"id": str(len(self.shared))}
            for number in self.layout.slots[slot].numbers:
                if number.startswith(COUNTS):
                    continue
                for side in "ab":
                    key = f"{side}{number}"
                    names[key] = self.define(f"{key}_{names['id']}", self.access.side(side, slot, number))
        return self.shared[place]

    def correlation(self, place: int) -> str:
        """ρ, which rounding may have taken a little beyond ±1."""
        names = self.roots(place)
        if "rho" not in names:
            value = f"({self.of(place)} * {names['ainverse']}) * {names['binverse']}"
            names["rho"] = self.define(f"rho_{names['id']}", value)
        return names["rho"]

    def held_correlation(self, place: int) -> str:
        """ρ, held within ±1."""
        names = self.roots(place)
        if "held" not in names:
            one, minus, rho = self.constant(1.0), self.constant(-1.0), self.correlation(place)
            held = names["held"] = self.define(f"r_{names['id']}", f"where_less({rho}, {one}, {rho}, {one})")
            self.define(held, f"where_less({minus}, {held}, {held}, {minus})")
        return names["held"]

    def _angle(self, place: int) -> dict[str, str]:
        """ρ, |ρ| and the parts of the arc cosine that all duals of the field use."""
        names = self.roots(place)
        if "m" in names:
            return names
        local, one = names["id"], self.constant(1.0)
        m = self.correlation(place)
        if place not in self.layout.nonnegative:
            m = self.define(f"size_{local}", f"absolute({m})")
        names["m"] = self.define(f"m_{local}", f"where_less({m}, {one}, {m}, {one})")
        names["y"] = self.define(f"y_{local}", f"{one} - {names['m']}")
        names["t"] = self.define(f"t_{local}", f"sqrt({names['y']})")
        names["s"] = self.define(f"s_{local}", f"{names['aroot']} * {names['broot']}")
        names["cube"] = self.define(f"cube_{local}", f"{names['t']} * {names['y']}")
        return names

    def _polynomial(self, place: int, coefficients: tuple[float, ...], factor: float) -> str:
        """A polynomial in y, times a number."""
        names, scaled = self._angle(place), [factor * coefficient for coefficient in coefficients]
        key = repr(scaled)
        if key not in names:
            names[key] = self.define(f"p{len(self.lines)}", self.horner(scaled, names["y"]))
        return names[key]

    def dual(self, place: int, f: PiecewiseLinear, g: PiecewiseLinear) -> str:
        """E[f(u) g(v)], also where a variance is zero."""
        value, names = self.plain_dual(place, f, g), self.roots(place)
        if not self.guarded:
            return value
        return self.guard(names, f, g, (self.mean(f, names["aroot"]), self.mean(g, names["broot"])), value)

    def plain_dual(self, place: int, f: PiecewiseLinear, g: PiecewiseLinear) -> str:
        """Moments of {1, u, |u|, sign u}: Cho & Saul 2009, equations 3 and 6."""
        names, c = self.roots(place), self.of(place)
        one, linear = f.one * g.one, f.linear * g.linear
        absolute, sign = f.absolute * g.absolute, f.sign * g.sign
        terms: list[tuple[str, str]] = []

        def add(weight: float, value: Callable[[], str]) -> None:
            if weight:
                terms.append(("" if weight == 1.0 else self.constant(weight), value()))

        if place in self.layout.nonnegative:
            # s |ρ| is the covariance, and sign ρ = 1: the polynomials carry the weights.
            one, linear = one + sign, linear + absolute
            if absolute:
                angle = self._angle(place)
                scale = f"({angle['s']} * {angle['cube']})"
                terms.append((scale, self._polynomial(place, absolute_series(self.dtype), 2.0 * absolute)))
            if sign:
                terms.append((self._angle(place)["t"], self._polynomial(place, arccosine(self.dtype), -2.0 * sign)))
        else:
            add(absolute, lambda: self._absolute(place))
            add(sign, lambda: self._sign(place))
        add(linear, lambda: c)
        add(f.one * g.absolute * MEAN, lambda: names["broot"])
        add(f.absolute * g.one * MEAN, lambda: names["aroot"])
        add(f.linear * g.sign * MEAN, lambda: f"({c} * {names['binverse']})")
        add(f.sign * g.linear * MEAN, lambda: f"({c} * {names['ainverse']})")
        value = self.constant(one) if one else ""
        for x, y in reversed(terms):
            if not x:
                value = f"({y} + {value})" if value else y
            else:
                value = f"fma({x}, {y}, {value})" if value else f"{x} * {y}"
        return value or self.constant(0.0)

    def _absolute(self, place: int) -> str:
        """E|u||v| = s (|ρ| + 2 t³ R(y))."""
        names = self._angle(place)
        if "absolute" not in names:
            r = self._polynomial(place, absolute_series(self.dtype), 2.0)
            value = f"{names['s']} * fma({names['cube']}, {r}, {names['m']})"
            names["absolute"] = self.define(f"absolute_{names['id']}", value)
        return names["absolute"]

    def _sign(self, place: int) -> str:
        """E sign u sign v = ±(1 − 2 t P(y))."""
        names = self._angle(place)
        if "sign" not in names:
            p = self._polynomial(place, arccosine(self.dtype), -2.0)
            size = f"fma({names['t']}, {p}, {self.constant(1.0)})"
            names["sign"] = self.define(f"sign_{names['id']}", f"copysign({size}, {names['rho']})")
        return names["sign"]

    def mean(self, f: PiecewiseLinear, root: str) -> str:
        """E f(u)."""
        return f"fma({self.constant(f.absolute * MEAN)}, {root}, {self.constant(f.one)})"

    def guard(
        self, names: dict[str, str], f: PiecewiseLinear, g: PiecewiseLinear, means: tuple[str, str], value: str
    ) -> str:
        """Where a variance is zero the signal is 0: f(0) E g(v), with f's own value at 0; `means` are E f and E g."""
        zero, a, b = self.constant(0.0), names["aroot"], names["broot"]
        at_zero = self.constant(f.at_zero), self.constant(g.at_zero)
        no_a = f"{at_zero[0]} * where_equal({b}, {zero}, {at_zero[1]}, {means[1]})"
        no_b = f"{at_zero[1]} * where_equal({a}, {zero}, {at_zero[0]}, {means[0]})"
        return f"where_equal({a}, {zero}, {no_a}, where_equal({b}, {zero}, {no_b}, {value}))"

    def formula(self, place: int, steps: tuple[tuple[str, tuple[Operand, ...]], ...]) -> str:
        """A closed form, operation by operation. Comparisons are written where a selection asks for them."""
        names = self.roots(place)
        given = {-1: names["avariance"], -2: names["bvariance"], -3: self.of(place)}
        results: dict[int, str] = {}
        asked: dict[int, tuple[str, tuple[Operand, ...]]] = {}

        def value(operand: Operand) -> str:
            if isinstance(operand, float):
                return self.constant(operand)
            return given[operand] if operand < 0 else results[operand]

        def choose(condition: Operand, yes: str, no: str) -> str:
            assert isinstance(condition, int)
            name, operands = asked[condition]
            if name == "or":
                return choose(operands[0], yes, choose(operands[1], yes, no))
            if name == "and":
                return choose(operands[0], choose(operands[1], yes, no), no)
            function, swap = COMPARISONS[name]
            x, y = (value(operand) for operand in (operands[::-1] if swap else operands))
            return f"{function}({x}, {y}, {yes}, {no})"

        for index, (name, operands) in enumerate(steps):
            if name in COMPARISONS or name in ("or", "and"):
                asked[index] = name, operands
            elif name == "select_n":
                no, yes = (value(operand) for operand in operands[1:])
                results[index] = self.define(f"e{len(self.lines)}", choose(operands[0], yes, no))
            else:
                written = self._operation(name, [value(operand) for operand in operands])
                results[index] = self.define(f"e{len(self.lines)}", written)
        return results[len(steps) - 1]

    def _operation(self, name: str, x: list[str]) -> str:
        match name:
            case "add" | "sub" | "mul" | "div":
                return f"{x[0]} {INFIX[name]} {x[1]}"
            case "neg":
                return f"{self.constant(-0.0)} - {x[0]}"
            case "sqrt":
                return f"sqrt({x[0]})"
            case "abs":
                return f"absolute({x[0]})"
            case "max":
                return f"where_less({x[0]}, {x[1]}, {x[1]}, {x[0]})"
            case "min":
                return f"where_less({x[0]}, {x[1]}, {x[0]}, {x[1]})"
            case "atan2":
                return self._arctangent(*x)
        raise ValueError(name)

    def _arctangent(self, y: str, x: str) -> str:
        """atan2(y, x) for x ≥ 0, with the smaller over the larger of the two."""
        zero, one, size = self.constant(0.0), self.constant(1.0), self.define(f"e{len(self.lines)}", f"absolute({y})")
        small = self.define(f"e{len(self.lines)}", f"where_less({size}, {x}, {size}, {x})")
        large = self.define(f"e{len(self.lines)}", f"where_less({size}, {x}, {x}, {size})")
        ratio = self.define(f"e{len(self.lines)}", f"{small} / where_equal({large}, {zero}, {one}, {large})")
        square = self.define(f"e{len(self.lines)}", f"{ratio} * {ratio}")
        angle = self.define(f"e{len(self.lines)}", f"{ratio} * {self.horner(arctangent(self.dtype), square)}")
        return f"copysign(where_less({x}, {size}, {self.constant(math.pi / 2)} - {angle}, {angle}), {y})"
