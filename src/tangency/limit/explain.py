"""`print(kernel)` and `kernel.explain()`: what was derived, and the recursion that is evaluated."""

from __future__ import annotations

from math import isclose

from ..errors import InputError
from ..graph.graph import Graph
from ..graph.known import Constant, Known
from ..graph.printing import Printer, definition, formula, statistics
from ..graph.signal import (
    CarryLeaf,
    EmbeddingLeaf,
    Factor,
    JointLeaf,
    Leaf,
    LinearLeaf,
    ParameterLeaf,
    Segment,
    StopLeaf,
    SumLeaf,
    Term,
    WeightLeaf,
)
from .expectation import activation


def summary(graph: Graph) -> str:
    """The derived graph, one line a leaf: what it is, its variances, and the line of the model it comes from."""
    printer = Printer(graph)
    rows = []
    for leaf in graph.leaves:
        if isinstance(leaf, ParameterLeaf):
            rows.append((printer.leaf(leaf), statistics(leaf), _source(leaf)))
        else:
            what = f"{printer.leaf(leaf)} = {definition(printer, leaf)}"
            rows.append((what, statistics(leaf), _source(leaf)))
    widths = [min(max((len(row[i]) for row in rows), default=0), 60) for i in range(2)]
    lines = [f"limit of {graph.name}: examples of shape {graph.input_shape}, one kernel per output coordinate"]
    lines += [f"  {what:<{widths[0]}}  {numbers:<{widths[1]}}  {source}".rstrip() for what, numbers, source in rows]
    lines.append(f"  output = {printer.signal(graph.output.segments)}")
    lines += _where(printer)
    lines += [f"  note: {note}" for note in graph.notes]
    return "\n".join(lines)


def _where(printer: Printer) -> list[str]:
    """The Known numbers and the functions that the formulas name."""
    lines = [f"  {name} = {printer.known(known)}" for known, name in printer.known_names.items()]
    for function, name in printer.functions.items():
        described = activation(function, function.arity).describe()
        lines.append(f"  {name}(u) = {formula(function, printer.known_names)}; {described}")
    return lines


def check_format(format: str) -> None:
    if format not in ("text", "latex"):
        raise InputError(f"format: expected 'text' or 'latex', got {format!r}")


def explain(graph: Graph, format: str) -> str:
    """The recursion for K and Θ, leaf by leaf, as "text" or as "latex"."""
    latex = format == "latex"
    writer = _Writer(Printer(graph, latex=latex))
    lines = []
    for leaf in (leaf for leaf in graph.leaves if not isinstance(leaf, ParameterLeaf)):
        lines.append(writer.equation("K", leaf, writer.moment(leaf)))
        lines.append(writer.equation("Θ", leaf, writer.tangent(leaf)))
    output = graph.output.segments[0]
    lines.append(writer.define("K", writer.pairs(output, output)))
    lines.append(writer.define("Θ", writer.tangent_of(output)))
    if latex:
        return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}"
    head = f"{graph.name}: examples x, x′ of shape {graph.input_shape}; ′ marks what belongs to x′"
    return "\n".join([head, *_where(writer.printer), *(f"  {line}" for line in lines)])


def _source(leaf: Leaf) -> str:
    return leaf.source or ""


class _Writer:
    """Writes the recursion of `limit.recursion` in formulas; the structure is that module's."""

    def __init__(self, printer: Printer):
        self.printer = printer
        self.latex = printer.latex

    def equation(self, what: str, leaf: Leaf, right: str) -> str:
        left = self.kernel(what, leaf, leaf)
        return f"{left} &= {right}" if self.latex else f"{left} = {right}"

    def define(self, what: str, right: str) -> str:
        symbol = r"\Theta" if self.latex and what == "Θ" else what
        left = f"{symbol}(x, x')" if self.latex else f"{what}(x, x′)"
        return f"{left} &= {right}" if self.latex else f"{left} = {right}"

    def kernel(self, what: str, a: Leaf, b: Leaf) -> str:
        if isinstance(a, ParameterLeaf) and isinstance(b, ParameterLeaf):
            value = a.parameter.rate if what == "Θ" else a.parameter.variance
            return self.printer.number(value * a.scale * b.scale)
        first, second = self.printer.leaf(a), self.printer.leaf(b)
        symbol = r"\Theta" if self.latex and what == "Θ" else what
        inside = first if a is b else f"{first}, {second}"
        return f"{symbol}[{inside}]"

    def moment(self, leaf: Leaf) -> str:
        match leaf:
            case ParameterLeaf():
                return self.printer.number(leaf.parameter.variance * leaf.scale**2)
            case WeightLeaf():
                return self._times(leaf.weight.variance * leaf.scale**2, self._width_sums(leaf.input))
            case SumLeaf():
                return self.pairs(leaf.segment, leaf.segment)
        return self._elsewhere("K", leaf)

    def _elsewhere(self, what: str, leaf: Leaf) -> str:
        """The recursion of a leaf that rearranges or maps positions, or reads a table."""
        if isinstance(leaf, EmbeddingLeaf):
            size = leaf.weight.rate if what == "Θ" else leaf.weight.variance
            same = r"\,[\text{same row}]" if self.latex else "·[same row]"
            return self.printer.number(size * leaf.scale**2) + same
        if isinstance(leaf, StopLeaf) and what == "Θ":
            return "0"
        if isinstance(leaf, LinearLeaf):
            within = self.tangent_of(leaf.segment) if what == "Θ" else self.pairs(leaf.segment, leaf.segment)
            return rf"L\left({within}\right)L'^{{\top}}" if self.latex else f"L ({within}) L′ᵀ over positions"
        if isinstance(leaf, JointLeaf):
            return self._sampled(what, leaf)
        if isinstance(leaf, CarryLeaf):
            (after, *_) = leaf.inputs
            return self.tangent_of(after) if what == "Θ" else self.pairs(after, after)
        (inner,) = leaf.bases
        kernel = self.kernel(what, inner, inner)
        return rf"{kernel}\text{{ rearranged}}" if self.latex else f"{kernel}, rearranged"

    def _sampled(self, what: str, leaf: JointLeaf) -> str:
        """A function of several Gaussians, by quasi-Monte-Carlo."""
        name = self.printer.leaf(leaf)
        if what == "K":
            return self._expect(f"{name} {name}{self.prime}")
        slopes = rf"\partial_i {name}\,\partial_j {name}'" if self.latex else f"∂ᵢ{name} ∂ⱼ{name}′"
        theta = r"\Theta(u_i, u_j')" if self.latex else "Θ(uᵢ, uⱼ′)"
        total = r"\sum_{ij}" if self.latex else "Σᵢⱼ"
        return f"{total} {self._expect(slopes)}{self.printer.dot}{theta}"

    def tangent(self, leaf: Leaf) -> str:
        match leaf:
            case ParameterLeaf():
                return self.printer.number(leaf.parameter.rate * leaf.scale**2)
            case WeightLeaf():
                weight, scale = leaf.weight, leaf.scale**2
                inner = [self._scaled(s.size, self.tangent_of(s)) for s in leaf.input if self.tangent_of(s) != "0"]
                if leaf.stopped:
                    parts = []
                elif weight.rate == weight.variance:
                    parts = [self.kernel("K", leaf, leaf)]
                else:
                    parts = [self._times(weight.rate * scale, self._width_sums(leaf.input))]
                if inner:
                    parts.append(self._times(weight.variance * scale, inner))
                return " + ".join(parts) or "0"
            case SumLeaf():
                return self.tangent_of(leaf.segment)
        return self._elsewhere("Θ", leaf)

    def _width_sums(self, segments: tuple[Segment, ...]) -> list[tuple[float, str]]:
        return [part for segment in segments for part in self._width_sum(segment)]

    def _width_sum(self, segment: Segment) -> list[tuple[float, str]]:
        if segment.is_known and len(segment.terms) == 1 and segment.terms[0].coefficient.shape:
            known = self.printer.known(segment.terms[0].coefficient)
            known = known if len(known) < 30 else "x̃"
            inner = rf"\langle {known}, {known}' \rangle" if self.latex else f"⟨{known}, {known}′⟩"
            return [(1.0, inner)]
        if any(term.varies for term in segment.terms):
            return [(1.0, self._expect(f"Σ_c ({self.printer.segment(segment)}) (…)′"))]
        return [(float(segment.size), self.pairs(segment, segment))]

    def _times(self, factor: float, parts: list[tuple[float, str]] | list[str]) -> str:
        written = []
        for part in parts:
            count, body = part if isinstance(part, tuple) else (1.0, part)
            written.append(self._scaled_text(factor * count, body))
        return " + ".join(written) or "0"

    def _scaled(self, count: float, body: str) -> tuple[float, str]:
        return (float(count), body)

    def _scaled_text(self, factor: float, body: str) -> str:
        body = f"({body})" if " + " in body else body
        return body if isclose(factor, 1.0, rel_tol=1e-14) else f"{self.printer.number(factor)}{self.printer.dot}{body}"

    def _expect(self, body: str) -> str:
        return rf"\mathbb{{E}}\left[{body}\right]" if self.latex else f"E[{body}]"

    @property
    def prime(self) -> str:
        return "'" if self.latex else "′"

    def pairs(self, a: Segment, b: Segment) -> str:
        """E[a b′] by pairs of terms, leaving out structural zeros."""
        written = []
        for s in a.terms:
            for t in b.terms:
                if s.degenerate or t.degenerate or _uncorrelated(s, t):
                    continue
                written.append(self._coefficients(s.coefficient, t.coefficient, self._moment_of(s, t)))
        return " + ".join(written) or "0"

    def _moment_of(self, s: Term, t: Term) -> str:
        if not s.factors and not t.factors:
            return ""
        linear = [f.function.is_identity for f in (*s.factors, *t.factors)]
        if all(linear) and len(s.factors) == len(t.factors) == 1:
            return self.kernel("K", s.factors[0].leaf, t.factors[0].leaf)
        left = [self.printer.factor(f) for f in s.factors]
        right = [self.printer.factor(f, self.prime) for f in t.factors]
        return self._expect(" ".join(left + right))

    def _coefficients(self, left: Known, right: Known, body: str) -> str:
        factors, constant = [], 1.0
        for known, prime in ((left, ""), (right, self.prime)):
            if isinstance(known, Constant) and known.scalar is not None:
                constant *= known.scalar
            else:
                factors.append(self.printer.coefficient(known, prime))
        if constant != 1.0 or not (factors or body):
            factors.insert(0, self.printer.number(constant))
        return self.printer.dot.join([*factors, *([body] if body else [])])

    def tangent_of(self, segment: Segment) -> str:
        """Σ_ij E[∂_i s ∂_j s′] Θ(u_i, u_j′) over pairs of factors, leaving out structural zeros."""
        written = []
        for s in segment.terms:
            for t in segment.terms:
                for f in s.factors:
                    for g in t.factors:
                        if not f.leaf.roots.isdisjoint(g.leaf.roots):
                            written += self._tangent_pair(s, t, f, g)
        return " + ".join(written) or "0"

    def _tangent_pair(self, s: Term, t: Term, f: Factor, g: Factor) -> list[str]:
        rest = [h for h in s.factors if h is not f], [h for h in t.factors if h is not g]
        if any(isinstance(h.leaf, ParameterLeaf) and h.leaf.degenerate for part in rest for h in part):
            return []
        left = [self._slope(f, "")] + [self.printer.factor(h) for h in rest[0]]
        right = [self._slope(g, self.prime)] + [self.printer.factor(h, self.prime) for h in rest[1]]
        slopes = " ".join(text for text in (*left, *right) if text)
        expectation = self._expect(slopes) if slopes else ""
        if all(h.function.is_identity for h in (*rest[0], *rest[1])):
            same = len(rest[0]) == len(rest[1]) == 1 and f.function.is_identity and g.function.is_identity
            expectation = self.kernel("K", rest[0][0].leaf, rest[1][0].leaf) if same else expectation
        body = self.printer.dot.join(text for text in (expectation, self.kernel("Θ", f.leaf, g.leaf)) if text)
        return [self._coefficients(s.coefficient, t.coefficient, body)]

    def _slope(self, factor: Factor, prime: str) -> str:
        if factor.function.is_identity:
            return ""
        name = self.printer.function_name(factor.function)
        slope = rf"\partial {name}" if self.latex else f"∂{name}"
        return f"{slope}({self.printer.leaf(factor.leaf)}{prime})"


def _uncorrelated(s: Term, t: Term) -> bool:
    """A product with a bare zero-mean leaf that no other factor is correlated with."""
    factors = [*s.factors, *t.factors]
    for i, factor in enumerate(factors):
        others = factors[:i] + factors[i + 1 :]
        if factor.function.is_identity and all(factor.leaf.roots.isdisjoint(o.leaf.roots) for o in others):
            return True
    return False
