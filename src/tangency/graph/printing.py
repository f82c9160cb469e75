"""The limit graph as text and as LaTeX."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite

from .elementwise import Derivative, Elementwise, Operand, Parameter, Result
from .graph import Graph
from .known import Apply, Constant, Input, Known, WidthSum, is_number
from .signal import (
    CarryLeaf,
    CopiesLeaf,
    EmbeddingLeaf,
    Factor,
    JointLeaf,
    Leaf,
    LinearLeaf,
    MergeLeaf,
    ParameterLeaf,
    Segment,
    SelectLeaf,
    StopLeaf,
    SumLeaf,
    Term,
    WeightLeaf,
)

MANY = 60
"""Formulas longer than this are named rather than written out."""

_INFIX = {"add": "+", "sub": "−", "mul": "·", "div": "/"}
_TRANSPARENT = {"reshape", "broadcast_in_dim", "squeeze", "convert_element_type", "copy", "transpose", "slice"}


def number(value: float) -> str:
    """A number as people write it: 0.25 and 1/3 where those are exact to rounding, else six digits."""
    short = f"{value:.4g}"
    if not isfinite(value) or float(short) == value:
        return short.replace("-", "−")
    fraction = Fraction(value).limit_denominator(9999)
    exact = abs(float(fraction) - value) <= 1e-14 * abs(value) and abs(fraction.numerator) < 100
    return (str(fraction) if exact else f"{value:.6g}").replace("-", "−")


@dataclass
class Printer:
    """Names the leaves and Known numbers of a graph, and writes formulas in them."""

    graph: Graph
    latex: bool = False
    leaf_names: dict[Leaf, str] = field(default_factory=dict)
    known_names: dict[Known, str] = field(default_factory=dict)
    functions: dict[Elementwise, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for leaf in self.graph.leaves:
            self.leaf_names[leaf] = self._leaf_name(leaf)
        terms = [term for segment in self.graph.segments for term in segment.terms]
        for term in terms:
            for known in (term.coefficient, *(p for f in term.factors for p in f.function.parameters)):
                if not known.shape and not isinstance(known, Constant):
                    self.known_names.setdefault(known, self._indexed("k", len(self.known_names) + 1))
        for function in (factor.function for term in terms for factor in term.factors):
            if not function.is_identity and function.program not in self.functions:
                self.functions[function.program] = self._function_name(function)

    def _indexed(self, symbol: str, index: int) -> str:
        return f"{symbol}_{{{index}}}" if self.latex else f"{symbol}{index}"

    def _leaf_name(self, leaf: Leaf) -> str:
        if isinstance(leaf, ParameterLeaf):
            if self.latex:
                return rf"\texttt{{{leaf.parameter.name}}}".replace("_", r"\_")
            return definition(self, leaf)
        count = sum(not isinstance(other, ParameterLeaf) for other in self.leaf_names)
        return self._indexed("u", count + 1)

    def _function_name(self, function: Elementwise) -> str:
        if function.label and function.label not in self.functions.values():
            return rf"\mathrm{{{function.label}}}".replace("_", r"\_") if self.latex else function.label
        count = sum(name.startswith(("φ", r"\phi")) for name in self.functions.values())
        return self._indexed(r"\phi" if self.latex else "φ", count + 1)

    @property
    def dot(self) -> str:
        return r"\," if self.latex else "·"

    def leaf(self, leaf: Leaf) -> str:
        return self.leaf_names[leaf]

    def number(self, value: float) -> str:
        text = number(value)
        if self.latex and "/" in text:
            top, bottom = text.replace("−", "-").split("/")
            return rf"\tfrac{{{top}}}{{{bottom}}}"
        return text.replace("−", "-") if self.latex else text

    def function_name(self, function: Elementwise) -> str:
        return self.functions[function.program]

    def factor(self, factor: Factor, prime: str = "") -> str:
        leaf = self.leaf(factor.leaf) + prime
        if factor.function.is_identity:
            return leaf
        return f"{self.function_name(factor.function)}({leaf})"

    def coefficient(self, known: Known, prime: str = "") -> str:
        if isinstance(known, Constant):
            return self.number(known.scalar) if known.scalar is not None else "const"
        if known in self.known_names:
            return self.known_names[known] + prime
        return self.known(known) + prime

    def term(self, term: Term, prime: str = "") -> str:
        parts = [] if is_number(term.coefficient, 1.0) and term.factors else [self.coefficient(term.coefficient, prime)]
        return self.dot.join(parts + [self.factor(factor, prime) for factor in term.factors])

    def segment(self, segment: Segment, prime: str = "") -> str:
        return " + ".join(self.term(term, prime) for term in segment.terms)

    def signal(self, segments: tuple[Segment, ...], prime: str = "") -> str:
        if len(segments) == 1:
            return self.segment(segments[0], prime)
        return "[" + "; ".join(self.segment(segment, prime) for segment in segments) + "]"

    def known(self, node: Known) -> str:
        """A formula for a Known value."""
        match node:
            case Input():
                return "x"
            case Constant():
                return self.number(node.scalar) if node.scalar is not None else "const"
            case WidthSum(segments=segments):
                sums = [f"{s.size}{self.dot}{self._expectation(self.segment(s))}" for s in segments]
                return " + ".join(sums)
            case Apply(operation=operation, arguments=arguments):
                inner = [self.known_names.get(a) or self.known(a) for a in arguments]
                if operation.name in _TRANSPARENT:
                    return inner[0]
                if operation.name in _INFIX and len(inner) == 2:
                    return f"({inner[0]} {_INFIX[operation.name]} {inner[1]})"
                return f"{operation.name}({', '.join(inner)})"
        return "?"

    def _expectation(self, body: str) -> str:
        return rf"\mathbb{{E}}[{body}]" if self.latex else f"E[{body}]"


def formula(function: Elementwise, known_names: dict[Known, str] | None = None, variable: str = "u") -> str:
    """The function written out, with Known parameters by name (p0, p1, … if they have none)."""
    results: list[str] = []

    def text(operand: Operand) -> str:
        match operand:
            case Result(index):
                return variable if index < 0 else results[index]
            case Parameter(index):
                parameters = function.parameters
                name = (known_names or {}).get(parameters[index]) if index < len(parameters) else None
                return name or f"p{index}"
            case bool():
                return str(operand)
            case _:
                return number(operand)

    for step in function.steps:
        operands = [text(operand) for operand in step.operands]
        name = step.operation.name
        if isinstance(step.operation, Derivative):
            results.append(f"({formula(step.operation.function, known_names, variable)})′")
        elif name == "integer_pow":
            results.append(f"{operands[0]}^{step.operation.parameters['y']}")
        elif name in _INFIX and len(operands) == 2:
            results.append(f"({operands[0]} {_INFIX[name]} {operands[1]})")
        elif name in _TRANSPARENT:
            results.append(operands[0])
        else:
            results.append(f"{name}({', '.join(operands)})")
    return results[-1] if results else variable


def short_name(function: Elementwise) -> str:
    """The function's label, or its formula where that is short."""
    written = function.label or formula(function)
    return written if len(written) <= MANY else "φ"


def definition(printer: Printer, leaf: Leaf) -> str:
    """What a leaf is, in one line of text."""
    match leaf:
        case WeightLeaf():
            scale = "" if leaf.scale == 1.0 else f"{number(leaf.scale)}·"
            inner = printer.signal(leaf.input)
            inner = inner if inner.isidentifier() else f"[{inner}]" if not inner.startswith("[") else inner
            windows = [w for _, w in leaf.windows if not w.is_trivial]
            sign = "∗" if windows else "@"
            return f"{scale}{leaf.weight.name} {sign} {inner}"
        case ParameterLeaf():
            scale = "" if leaf.scale == 1.0 else f"{number(leaf.scale)}·"
            centred = f" − {number(leaf.parameter.mean)}" if leaf.parameter.mean not in (0.0,) else ""
            return f"{scale}({leaf.parameter.name}{centred})" if centred else f"{scale}{leaf.parameter.name}"
        case EmbeddingLeaf():
            scale = "" if leaf.scale == 1.0 else f"{number(leaf.scale)}·"
            return f"{scale}{leaf.weight.name}[{printer.known(leaf.index)}]"
        case SumLeaf():
            return printer.segment(leaf.segment)
        case LinearLeaf(window=window, matrix=matrix):
            what = "Σ" if window is None and matrix is None else "windows" if matrix is None else "matrix"
            return f"{what} over positions of [{printer.segment(leaf.segment)}]"
        case SelectLeaf():
            return f"{printer.leaf(leaf.leaf)} at chosen positions"
        case MergeLeaf():
            return f"{printer.leaf(leaf.leaf)}, positions merged"
        case CopiesLeaf():
            return f"{leaf.length} independent copies of {printer.leaf(leaf.leaf)}"
        case CarryLeaf(loop=loop):
            return f"the state before each of {loop.length} steps"
        case JointLeaf(operation=operation, operands=operands):
            name = "sum" if operation is None else operation.name
            return f"{name}({', '.join(printer.segment(operand) for operand in operands)})"
        case StopLeaf():
            return f"{printer.leaf(leaf.leaf)} without gradient"
    raise TypeError(f"no text for {type(leaf).__name__}")


def statistics(leaf: Leaf) -> str:
    """The variances and learning rates behind a leaf, in one line of text."""
    match leaf:
        case WeightLeaf(weight=weight, fan_in=fan_in, scale=scale):
            variance = f"σ_w² = {number(weight.variance * fan_in * scale**2)}"
            rate = "" if weight.rate == weight.variance else f", η·fan-in = {number(weight.rate * fan_in * scale**2)}"
            return f"{weight.distribution}, fan-in {fan_in}, {variance}{', no gradient' if leaf.stopped else rate}"
        case EmbeddingLeaf(weight=weight, scale=scale):
            return f"{weight.distribution}, σ² = {number(weight.variance * scale**2)}"
        case ParameterLeaf(parameter=parameter, scale=scale):
            kind = "zero variance" if leaf.degenerate else parameter.distribution
            variance = "" if leaf.degenerate else f", σ_b² = {number(parameter.variance * scale**2)}"
            rate = "" if parameter.rate == parameter.variance else f", η = {number(parameter.rate * scale**2)}"
            return f"{kind}{variance}{rate}"
    return ""
