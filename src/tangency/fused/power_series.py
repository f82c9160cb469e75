"""Expectations without a closed form at one position of one pair, as lines of code: polynomials of the correlation.

E[f(u) g(v)] = Σ_k h_k(a) h'_k(b) ρ^k, with coefficients that are looked up for each example (see `tables`, and `kinks`
for functions with a kink at 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kinks import TAILS, beyond
from .layout import mean_of
from .lookup import GROUP
from .program import Dual, Series, tables

if TYPE_CHECKING:
    from .pointwise import Writer


def series(writer: Writer, place: int, rule: Series) -> str:
    """A polynomial of ρ; the mean where u and v are equal."""
    names, known = writer.roots(place), tables(writer.layout.program)
    mean = "a" + mean_of(known.index(rule.mean))
    if writer.mode == "first":
        return names[mean]
    total, slope = _sums(writer, place, rule)
    first, step = rule.f.first, rule.f.step
    value = f"{writer.of(place)} * {total}" if rule.integrated else _combined(writer, first + 1, total, step, slope)
    if first:
        value = f"{writer.held_correlation(place)} * ({value})"
    if rule.origins:
        left, right = (mean_of(known.index(table)) for table in rule.origins)
        value = f"{value} + {names['a' + left]} * {names['b' + right]}"
    value = writer.define(f"e{len(writer.lines)}", value)
    equal = f"where_equal({names['ainverse']}, {names['binverse']}, {names[mean]}, {value})"
    return f"where_less({names['rho']}, {writer.constant(1.0)}, {value}, {equal})"


def _combined(writer: Writer, m: int, x: str, n: int, y: str) -> str:
    left = x if m == 1 else f"{writer.constant(float(m))} * {x}"
    return f"{left} + {y}" if n == 1 else f"fma({writer.constant(float(n))}, {y}, {left})"


def _sums(writer: Writer, place: int, rule: Series) -> tuple[str, str]:
    """Q(x) = Σ_j t_j t'_j x^j and x Q'(x), where x is ρ or ρ²; the latter is "" if nothing needs it.

    Terms of even and of odd j are two polynomials of x², whose sums do not wait for each other.
    """
    names, known = writer.roots(place), tables(writer.layout.program)
    f, g = known.index(rule.f), known.index(rule.g)
    key, slot = f"sums {f} {g}", writer.slot(place, False)
    if key in names:
        return names[key], names[f"slope of {key}"]
    assert slot is not None
    x, square = _powers(writer, place, rule.f.step)
    access, local, sloped = writer.access, len(writer.lines), _needs_slope(writer, place, rule)
    left, right = (writer.define(f"h{side}{local}", access.row(side, slot, t)) for side, t in (("a", f), ("b", g)))
    sums = [f"{kind}{parity}_{local}" for kind in ("qd" if sloped else "q") for parity in (0, 1)]
    if rule.kinked:
        beyond(writer, (left, right), x, sums)
        loops = TAILS[writer.dtype].loops
    elif f == g:
        both = f"{access.count('a', slot, f)} + {access.count('b', slot, g)}"
        loops = ((0, writer.define(f"k{local}", f"int({both} + {2 * GROUP - 1}) // {2 * GROUP} * {GROUP}")),)
    else:
        loops = ((0, writer.define(f"k{local}", f"min({access.terms(slot, f)}, {access.terms(slot, g)})")),)
    if not rule.kinked:
        for name in sums:
            writer.define(name, writer.constant(0.0))
    for first, end in loops:
        writer.lines.append(f"for k in range({end} - {GROUP}, {first - 1}, -{GROUP}):")
        for term in sorted(range(GROUP), key=lambda term: (-(term // 2), term)):
            q, d = f"q{term % 2}_{local}", f"d{term % 2}_{local}"
            here = f"{writer.coefficient('a', left, f'k + {term}')} * {writer.coefficient('b', right, f'k + {term}')}"
            if sloped:
                writer.lines.append(f"    {d} = fma({d}, {square}, {q})")
            writer.lines.append(f"    {q} = fma({q}, {square}, {here})")
    names[key] = writer.define(f"q_{local}", f"fma({x}, q1_{local}, q0_{local})")
    names[f"slope of {key}"] = ""
    if sloped:
        inner = f"fma({x}, d1_{local}, d0_{local})"
        value = f"fma({writer.constant(2.0)} * {square}, {inner}, {x} * q1_{local})"
        names[f"slope of {key}"] = writer.define(f"d_{local}", value)
    return names[key], names[f"slope of {key}"]


def _needs_slope(writer: Writer, place: int, rule: Series) -> bool:
    statements = (writer.layout.program.statements[i] for i in writer.layout.fields)
    rules = [s.rule for s in statements if isinstance(s, Dual) and s.field == place]
    return any(isinstance(r, Series) and not r.integrated and (r.f, r.g) == (rule.f, rule.g) for r in rules)


def _powers(writer: Writer, place: int, step: int) -> tuple[str, str]:
    """x = ρ or ρ², and x², for ρ held within ±1."""
    names, x = writer.roots(place), writer.held_correlation(place)
    local = names["id"]
    if f"power{step}" not in names:
        names[f"power{step}"] = x if step == 1 else writer.define(f"x2_{local}", f"{x} * {x}")
    x = names[f"power{step}"]
    if f"square{step}" not in names:
        names[f"square{step}"] = writer.define(f"square{step}_{local}", f"{x} * {x}")
    return x, names[f"square{step}"]
