"""The algebra of signals in normal form: sums, products and nonlinear functions of one segment.

Gaussian sums are sealed into one leaf at once, so that every later function sees one Gaussian. Functions of the same
leaf are composed. A parameter of zero variance is kept to first order, which is all that K and Θ see of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from ..errors import UnsupportedModelError
from ..graph.elementwise import IDENTITY, Elementwise
from ..graph.elementwise import apply as compose_program
from ..graph.known import ONE, ZERO, Constant, Known, Operation, is_number
from ..graph.signal import Factor, Leaf, Segment, SumLeaf, Term, is_degenerate, of_leaf
from . import known as kn


@dataclass(frozen=True)
class Partial:
    """∂ operation / ∂ operand[index], an operation of the same operands."""

    operation: Operation
    index: int

    @property
    def name(self) -> str:
        return f"∂{self.operation.name}"

    def __call__(self, *operands: jax.Array, dtype: Any) -> jax.Array:
        def of_one(value: jax.Array) -> jax.Array:
            changed = [value if i == self.index else operand for i, operand in enumerate(operands)]
            return self.operation(*changed, dtype=dtype)

        here = operands[self.index]
        return jax.jvp(of_one, (here,), (jax.numpy.ones_like(here),))[1]


@dataclass
class Algebra:
    """Operations on segments. Equal Gaussian sums are one leaf, wherever the model forms them."""

    _sums: dict[Any, SumLeaf] = field(default_factory=dict)

    def add(self, segments: Sequence[Segment], source: str | None) -> Segment:
        terms = [term for segment in segments for term in segment.terms]
        return self._normal(segments[0].size, terms, source)

    def scale(self, segment: Segment, coefficient: Known, source: str | None) -> Segment:
        terms = [Term(kn.multiply(coefficient, term.coefficient), term.factors) for term in segment.terms]
        return self._normal(segment.size, terms, source)

    def multiply(self, a: Segment, b: Segment, source: str | None) -> Segment:
        terms = [product for s in a.terms for t in b.terms for product in _product(s, t)]
        return self._normal(a.size, terms, source)

    def compose(self, operation: Operation, operands: Sequence[Segment | Known], source: str | None) -> Segment:
        """A nonlinear elementwise operation. Its random operands must be functions of one Gaussian.

        Raises:
            UnsupportedModelError: several Gaussians meet in one nonlinearity, or its shift varies along the width.
        """
        size = next(o.size for o in operands if isinstance(o, Segment))
        leaf = _common_leaf(operation, operands, source)
        if leaf is not None:
            operands = [o if isinstance(o, Segment) else _one_number(o, operation, source) for o in operands]
        values = [_univariate(o, leaf, operation, source) if isinstance(o, Segment) else o for o in operands]
        if leaf is None:
            value = _known_result(operation, operands, size)
            terms = [Term(value)]
        else:
            terms = [Term(ONE, (Factor(compose_program(operation, tuple(values)), leaf),))]
        for index, operand in enumerate(operands):
            if isinstance(operand, Segment) and operation.name not in _FLAT and (operation.name, index) != _CONDITION:
                terms += self._first_order(operation, index, operand, values, leaf, source)
        return self._normal(size, terms, source)

    def _first_order(
        self,
        operation: Operation,
        index: int,
        operand: Segment,
        values: Sequence[Elementwise | Known],
        leaf: Leaf | None,
        source: str | None,
    ) -> list[Term]:
        """What a zero-variance parameter inside a nonlinearity contributes: its own factor times ∂operation."""
        terms = []
        for term in operand.terms:
            if not term.degenerate:
                continue
            slope_operation: Any = Partial(operation, index)
            if leaf is None:
                raise _refuse_known_nonlinearity(operation, source)
            slope = compose_program(slope_operation, tuple(values))
            rest = _univariate(Segment(operand.size, (Term(term.coefficient, term.random),)), leaf, operation, source)
            function = compose_program(kn.MULTIPLY, (slope, rest))
            terms.append(Term(ONE, (Factor(function, leaf), *term.degenerate)))
        return terms

    def _normal(self, size: int, terms: Sequence[Term], source: str | None) -> Segment:
        terms = _merge_equal([t for t in terms if not is_number(t.coefficient, 0.0) and len(t.degenerate) < 2])
        terms = _compose_equal_leaves(terms)
        constant = [term for term in terms if not term.factors]
        gaussian = [term for term in terms if term.factors]
        random = any(term.random for term in gaussian)
        if random and all(_is_gaussian(term) for term in gaussian) and not _is_plain(gaussian):
            gaussian = [of_leaf(self._sum(size, gaussian, source))]
            terms = [*gaussian, *constant]
        return Segment(size, tuple(terms) or (Term(ZERO),))

    def _sum(self, size: int, terms: Sequence[Term], source: str | None) -> SumLeaf:
        key = (size, frozenset((_coefficient_key(t.coefficient), frozenset(t.leaves)) for t in terms))
        if key not in self._sums:
            self._sums[key] = SumLeaf(Segment(size, tuple(terms)), source=source)
        return self._sums[key]


_FLAT = frozenset(
    ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "is_finite", "sign", "floor", "ceil", "round")
)
"""Operations with zero derivative, to which a zero-variance parameter contributes nothing."""
_CONDITION = ("select_n", 0)


def _coefficient_key(coefficient: Known) -> Any:
    return coefficient.scalar if isinstance(coefficient, Constant) and not coefficient.shape else coefficient


def _is_gaussian(term: Term) -> bool:
    """A number times one Gaussian leaf, times zero-variance parameters."""
    linear = all(factor.function.is_identity for factor in term.factors)
    return linear and len(term.random) <= 1 and not term.varies


def _is_plain(terms: Sequence[Term]) -> bool:
    """One leaf times a constant: nothing to seal."""
    return len(terms) == 1 and len(terms[0].factors) == 1 and isinstance(terms[0].coefficient, Constant)


def _product(s: Term, t: Term) -> list[Term]:
    shared = {leaf for leaf in s.leaves if leaf in t.leaves}
    if any(is_degenerate(leaf) for leaf in shared):
        return []
    functions = {factor.leaf: factor.function for factor in s.factors}
    for factor in t.factors:
        if factor.leaf in functions:
            product = compose_program(kn.MULTIPLY, (functions[factor.leaf], factor.function))
            functions[factor.leaf] = product
        else:
            functions[factor.leaf] = factor.function
    factors = tuple(Factor(function, leaf) for leaf, function in functions.items())
    return [Term(kn.multiply(s.coefficient, t.coefficient), factors)]


def _merge_equal(terms: Sequence[Term]) -> list[Term]:
    """Terms with the same factors become one."""
    merged: dict[frozenset[Factor], Term] = {}
    for term in terms:
        key = frozenset(term.factors)
        if key in merged:
            term = Term(kn.add(merged[key].coefficient, term.coefficient), term.factors)
        merged[key] = term
    return [term for term in merged.values() if not is_number(term.coefficient, 0.0)]


def _compose_equal_leaves(terms: list[Term]) -> list[Term]:
    """Constant combinations of functions of one leaf become one function: spans such as u/2 + |u|/2 are seen."""
    groups: dict[Leaf, list[Term]] = {}
    rest: list[Term] = []
    constants: list[Term] = []
    for term in terms:
        fixed = isinstance(term.coefficient, Constant) and not term.varies
        if fixed and len(term.factors) == 1 and not term.degenerate:
            groups.setdefault(term.factors[0].leaf, []).append(term)
        elif fixed and not term.factors:
            constants.append(term)
        else:
            rest.append(term)
    if len(groups) == 1 and not rest:
        leaf, group = next(iter(groups.items()))
        if not all(term.factors[0].function.is_identity for term in group):
            groups = {leaf: [*group, *constants]}
            constants = []
    combined = [t for leaf, group in groups.items() for t in _combine(leaf, group)]
    return [*combined, *rest, *constants]


def _combine(leaf: Leaf, group: list[Term]) -> list[Term]:
    plain = group[0].factors[0].function.is_identity or is_number(group[0].coefficient, 1.0)
    if len(group) == 1 and plain:
        return group
    return [Term(ONE, (Factor(_linear_combination(group), leaf),))]


def _linear_combination(terms: Sequence[Term]) -> Elementwise:
    """Σ coefficient · φ(u) over terms of at most one factor each."""
    total: Elementwise | Known = ZERO
    for term in terms:
        value: Elementwise | Known = term.factors[0].function if term.factors else term.coefficient
        if term.factors and not is_number(term.coefficient, 1.0):
            value = compose_program(kn.MULTIPLY, (term.factors[0].function, term.coefficient))
        if is_number_zero(total):
            total = value
        elif isinstance(total, Elementwise) or isinstance(value, Elementwise):
            total = compose_program(kn.ADD, (total, value))
        else:
            total = kn.add(total, value)
    if isinstance(total, Elementwise):
        return total
    return compose_program(kn.ADD, (compose_program(kn.MULTIPLY, (IDENTITY, ZERO)), total))


def is_number_zero(value: Elementwise | Known) -> bool:
    return isinstance(value, Known) and is_number(value, 0.0)


def _common_leaf(operation: Operation, operands: Sequence[Segment | Known], source: str | None) -> Leaf | None:
    leaves = {
        leaf: None
        for operand in operands
        if isinstance(operand, Segment)
        for term in operand.terms
        for leaf in (factor.leaf for factor in term.random)
    }
    if len(leaves) > 1:
        raise UnsupportedModelError(
            f"'{operation.name}'",
            reason=f"it is a nonlinear function of {len(leaves)} different Gaussians, which has no closed rule",
            advice="Apply the activation before the branches are added or multiplied, or put a dense layer in between",
            source=source,
        )
    return next(iter(leaves), None)


def _one_number(value: Known, operation: Operation, source: str | None) -> Known:
    if not value.shape:
        return value
    number = value.scalar if isinstance(value, Constant) else None
    if number is None:
        raise _varies(operation, source)
    return Constant.of(number)


def _varies(operation: Operation, source: str | None) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{operation.name}'",
        reason="its argument has a coefficient or shift that differs from unit to unit along the width",
        advice="Put a dense layer between the varying array and the activation",
        source=source,
    )


def _univariate(segment: Segment, leaf: Leaf | None, operation: Operation, source: str | None) -> Elementwise | Known:
    """The part of a segment without zero-variance parameters, as a function of its one leaf."""
    terms = [term for term in segment.terms if not term.degenerate]
    if leaf is None:
        return ZERO
    if any(term.varies for term in terms):
        raise _varies(operation, source)
    if len(terms) == 1 and terms[0].factors and is_number(terms[0].coefficient, 1.0):
        return terms[0].factors[0].function
    return _linear_combination(terms)


def _known_result(operation: Operation, operands: Sequence[Segment | Known], size: int) -> Known:
    values: list[Known] = []
    for operand in operands:
        if isinstance(operand, Segment):
            total: Known = ZERO
            for term in operand.terms:
                if not term.degenerate:
                    total = kn.add(total, term.coefficient)
            operand = total
        values.append(operand)
    shape = (size,) if any(value.shape for value in values) else ()
    return kn.apply(operation, values, shape)


def _refuse_known_nonlinearity(operation: Operation, source: str | None) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{operation.name}'",
        reason="it is a nonlinear function of the input plus a trainable shift or scale, before any dense layer",
        advice="Freeze that parameter with trainable=, or put a dense layer before the activation",
        source=source,
    )
