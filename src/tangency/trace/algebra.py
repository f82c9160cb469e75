"""The algebra of signals in normal form: sums, products and nonlinear functions of one segment.

Gaussian sums are sealed into one leaf at once, so that every later function sees one Gaussian. Functions of the same
leaf are composed. A parameter of zero variance is kept to first order, which is all that K and Θ see of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import numpy as np

from ..errors import UnsupportedModelError
from ..graph.elementwise import IDENTITY, Elementwise
from ..graph.elementwise import apply as compose_program
from ..graph.known import ONE, ZERO, Constant, Known, Operation, is_number
from ..graph.signal import (
    Factor,
    JointLeaf,
    Leaf,
    LinearLeaf,
    ParameterLeaf,
    Segment,
    SumLeaf,
    Term,
    ViewLeaf,
    WeightLeaf,
    base_of,
    is_degenerate,
    of_leaf,
)
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

    joint: Callable[[Operation | None, Sequence[Segment], str | None], Segment] | None = None
    """Makes a function of several Gaussians; None where such are refused."""
    _sums: dict[Any, SumLeaf] = field(default_factory=dict)

    def add(self, segments: Sequence[Segment], source: str | None) -> Segment:
        if self.joint is not None and sum(_is_joint(segment) for segment in segments) > 1:
            return self.joint(None, segments, source)
        terms = [term for segment in segments for term in segment.terms]
        return self.normal(segments[0], terms, source)

    def scale(self, segment: Segment, coefficient: Known, source: str | None) -> Segment:
        terms = [Term(kn.multiply(coefficient, term.coefficient), term.factors) for term in segment.terms]
        return self.normal(segment, terms, source)

    def multiply(self, a: Segment, b: Segment, source: str | None) -> Segment:
        repeated = _repeated(a, b)
        several = _is_joint(a) or _is_joint(b) or repeated is not None
        if self.joint is not None and several and _is_random(a) and _is_random(b):
            return self.joint(kn.MULTIPLY, (a, b), source)
        if repeated is not None and not _squares_maps(a, b):
            raise _not_gaussian(kn.MULTIPLY, repeated, source)
        terms = [product for s in a.terms for t in b.terms for product in _product(s, t)]
        return self.normal(a, terms, source)

    def compose(self, operation: Operation, operands: Sequence[Segment | Known], source: str | None) -> Segment:
        """A nonlinear elementwise operation. Its random operands must be functions of one Gaussian.

        Raises:
            UnsupportedModelError: several Gaussians meet in one nonlinearity, or its shift varies along the width.
        """
        like = next(o for o in operands if isinstance(o, Segment))
        places = _places(operands)
        if self.joint is not None and (len(places) > 1 or not all(place[0].gaussian for place in places)):
            whole = [
                o if isinstance(o, Segment) else Segment(like.size, (Term(with_width(o)),), like.space)
                for o in (o if isinstance(o, Segment) else _over_positions(o, operation, source) for o in operands)
            ]
            return self.joint(operation, whole, source)
        place = _common_place(operation, places, source)
        if place is not None:
            operands = [o if isinstance(o, Segment) else _over_positions(o, operation, source) for o in operands]
        values = [_univariate(o, place, operation, source) if isinstance(o, Segment) else o for o in operands]
        if place is None:
            value = _known_result(operation, operands)
            terms = [Term(value)]
        else:
            terms = [Term(ONE, (Factor(compose_program(operation, tuple(values)), *place),))]
        for index, operand in enumerate(operands):
            if isinstance(operand, Segment) and operation.name not in _FLAT and (operation.name, index) != _CONDITION:
                terms += self._first_order(operation, index, operand, values, operands, place, source)
        return self.normal(like, terms, source)

    def one_gaussian(self, operands: Sequence[Segment | Known]) -> bool:
        """Whether a nonlinear function of these is one of a single Gaussian, and no product would be simpler."""
        places = _places(operands)
        return len(places) < 2 and all(leaf.gaussian for leaf, _ in places)

    def _first_order(
        self,
        operation: Operation,
        index: int,
        operand: Segment,
        values: Sequence[Elementwise | Known],
        operands: Sequence[Segment | Known],
        place: Place | None,
        source: str | None,
    ) -> list[Term]:
        """What a zero-variance parameter inside a nonlinearity contributes: its own factor times ∂operation."""
        terms = []
        for term in operand.terms:
            if not term.degenerate:
                continue
            slope_operation: Any = Partial(operation, index)
            if place is None:
                known = [_known_part(o) if isinstance(o, Segment) else o for o in operands]
                rate = kn.apply(slope_operation, known, _joint_shape(known))
                terms.append(Term(kn.multiply(rate, term.coefficient), term.degenerate))
                continue
            slope = compose_program(slope_operation, tuple(values))
            terms += _product(Term(ONE, (Factor(slope, *place),)), term)
        return terms

    def normal(self, like: Segment, terms: Sequence[Term], source: str | None) -> Segment:
        """The segment of these terms in normal form, of the size and positions of `like`."""
        terms = _merge_equal([t for t in terms if not is_number(t.coefficient, 0.0) and len(t.degenerate) < 2])
        terms = _compose_equal_leaves(terms)
        constant = [term for term in terms if not term.factors]
        # A zero-variance parameter times a random leaf differs from unit to unit together with the slopes of what
        # follows; it is no part of one Gaussian. Alone, as a bias, it is.
        mixed = [term for term in terms if term.degenerate and term.random]
        gaussian = [term for term in terms if term.factors and not (term.degenerate and term.random)]
        if mixed and sum(bool(term.random) for term in gaussian) == 1:
            mixed += [term for term in gaussian if term.degenerate]
            gaussian = [term for term in gaussian if not term.degenerate]
        random = any(term.random for term in gaussian)
        if random and all(_is_gaussian(term) for term in gaussian) and not _is_plain(gaussian):
            sealed = of_leaf(self._sum(like, gaussian, source))
            terms = [sealed, *(_in_terms_of(sealed, gaussian, term) for term in mixed), *constant]
        return replace(like, terms=tuple(terms) or (Term(ZERO),))

    def _sum(self, like: Segment, terms: Sequence[Term], source: str | None) -> SumLeaf:
        parts = frozenset((_coefficient_key(t.coefficient), frozenset(f.place for f in t.factors)) for t in terms)
        key = (like.size, like.space, parts)
        if key not in self._sums:
            self._sums[key] = SumLeaf(replace(like, terms=tuple(terms)), source=source)
        return self._sums[key]


_FLAT = frozenset(
    ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "is_finite", "sign", "floor", "ceil", "round")
)
"""Operations with zero derivative, to which a zero-variance parameter contributes nothing."""
_CONDITION = ("select_n", 0)

Place: TypeAlias = tuple[Leaf, tuple[int, ...]]
"""A random variable: a leaf, and the axes of the field that the leaf's own axes run along."""


def _coefficient_key(coefficient: Known) -> Any:
    return coefficient.scalar if isinstance(coefficient, Constant) and not coefficient.shape else coefficient


def _is_gaussian(term: Term) -> bool:
    """A number times one Gaussian leaf, times zero-variance parameters."""
    linear = all(factor.function.is_identity and factor.leaf.gaussian for factor in term.factors)
    return linear and len(term.random) <= 1 and not term.varies


def _in_terms_of(sealed: Term, parts: Sequence[Term], term: Term) -> Term:
    """A term that repeats the one part of a sealed sum, with the sealed leaf in its place."""
    if len(parts) != 1 or parts[0].coefficient is not term.coefficient:
        return term
    (part,) = parts[0].factors
    if part not in term.factors:
        return term
    return Term(ONE, tuple(sealed.factors[0] if factor == part else factor for factor in term.factors))


def _is_plain(terms: Sequence[Term]) -> bool:
    """One leaf times a number, or one leaf over all positions: nothing to seal."""
    if len(terms) != 1 or len(terms[0].factors) != 1:
        return False
    return isinstance(terms[0].coefficient, Constant) and not terms[0].coefficient.shape


def _product(s: Term, t: Term) -> list[Term]:
    shared = {leaf for leaf in s.leaves if leaf in t.leaves}
    if any(is_degenerate(leaf) for leaf in shared):
        return []
    functions = {factor.place: factor.function for factor in s.factors if factor.leaf.gaussian}
    for factor in t.factors:
        if factor.leaf.gaussian:
            known = functions.get(factor.place)
            functions[factor.place] = (
                factor.function if known is None else compose_program(kn.MULTIPLY, (known, factor.function))
            )
    factors = [Factor(function, *place) for place, function in functions.items()]
    others = [factor for factor in (*s.factors, *t.factors) if not factor.leaf.gaussian]
    return [Term(kn.multiply(s.coefficient, t.coefficient), (*factors, *others))]


def _merge_equal(terms: Sequence[Term]) -> list[Term]:
    """Terms with the same factors become one."""
    merged: dict[frozenset[tuple[Factor, int]], Term] = {}
    for term in terms:
        key = frozenset(Counter(term.factors).items())
        if key in merged:
            term = Term(kn.add(merged[key].coefficient, term.coefficient), term.factors)
        merged[key] = term
    return [term for term in merged.values() if not is_number(term.coefficient, 0.0)]


def _compose_equal_leaves(terms: list[Term]) -> list[Term]:
    """Constant combinations of functions of one leaf become one function: spans such as u/2 + |u|/2 are seen."""
    groups: dict[Place, list[Term]] = {}
    rest: list[Term] = []
    constants: list[Term] = []
    for term in terms:
        fixed = isinstance(term.coefficient, Constant) and not term.coefficient.shape
        if fixed and len(term.factors) == 1 and not term.degenerate:
            groups.setdefault(term.factors[0].place, []).append(term)
        elif fixed and not term.factors:
            constants.append(term)
        else:
            rest.append(term)
    if len(groups) == 1 and not rest:
        place, group = next(iter(groups.items()))
        if not all(term.factors[0].function.is_identity for term in group):
            groups = {place: [*group, *constants]}
            constants = []
    combined = [t for place, group in groups.items() for t in _combine(place, group)]
    return [*combined, *rest, *constants]


def _combine(place: Place, group: list[Term]) -> list[Term]:
    plain = group[0].factors[0].function.is_identity or is_number(group[0].coefficient, 1.0)
    if len(group) == 1 and plain:
        return group
    return [Term(ONE, (Factor(_linear_combination(group), *place),))]


def _linear_combination(terms: Sequence[Term]) -> Elementwise:
    """Σ coefficient · φ(u) over terms of at most one factor each."""
    total: Elementwise | Known = ZERO
    for term in terms:
        coefficient = positions_only(term.coefficient)
        value: Elementwise | Known = term.factors[0].function if term.factors else coefficient
        if term.factors and not is_number(coefficient, 1.0):
            value = compose_program(kn.MULTIPLY, (term.factors[0].function, coefficient))
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


def _is_joint(segment: Segment) -> bool:
    """Whether it has a function of several Gaussians in it, and nothing that differs from unit to unit."""
    leaves = (leaf for term in segment.terms for leaf in term.leaves)
    return any(isinstance(leaf, JointLeaf) for leaf in leaves) and not any(term.varies for term in segment.terms)


def _is_random(segment: Segment) -> bool:
    return any(term.random for term in segment.terms) and not any(term.varies for term in segment.terms)


def _repeated(a: Segment, b: Segment) -> Leaf | None:
    """A random leaf that is no Gaussian and a factor of both at the same place: their product is not linear in it."""
    shared = set(_places([a])) & set(_places([b]))
    return next((leaf for leaf, _ in shared if not leaf.gaussian), None)


def _squares_maps(a: Segment, b: Segment) -> bool:
    """Whether what is no Gaussian in both are maps of activations, at most once in each term: their second moments,
    which is what a norm takes of them, have a rule.
    """
    for leaf, _ in set(_places([a])) & set(_places([b])):
        if leaf.gaussian:
            continue
        base = base_of(leaf)
        if not isinstance(base, LinearLeaf | WeightLeaf) or _only_parameters(base):
            return False
    counts = (Counter(factor.place for factor in term.factors) for segment in (a, b) for term in segment.terms)
    return all(count == 1 for found in counts for count in found.values())


def _places(operands: Sequence[Segment | Known]) -> list[Place]:
    """The random variables that some segments are functions of."""
    found = {
        factor.place: None
        for operand in operands
        if isinstance(operand, Segment)
        for term in operand.terms
        if not term.degenerate
        for factor in term.random
    }
    return list(found)


def _common_place(operation: Operation, places: Sequence[Place], source: str | None) -> Place | None:
    if len(places) > 1:
        raise UnsupportedModelError(
            f"'{operation.name}'",
            reason=f"it is a nonlinear function of {len(places)} different Gaussians, which has no closed rule",
            advice="Apply the activation before the branches are added or multiplied, put a dense layer in between, or "
            "ask for quasi-Monte-Carlo: tangency.limit(..., numerical=True)",
            source=source,
        )
    place = next(iter(places), None)
    if place is not None and not place[0].gaussian:
        raise _not_gaussian(operation, place[0], source)
    return place


def _not_gaussian(operation: Operation, leaf: Leaf, source: str | None) -> UnsupportedModelError:
    names = _only_parameters(leaf)
    reason, advice = made_from_parameters(names), MADE_ADVICE
    if not names:
        reason = (
            "it is a nonlinear function of a linear map of activations (a pooled or depthwise signal), which is not "
            "Gaussian"
        )
        advice = (
            "Put a dense layer or a full convolution before the activation, or ask for quasi-Monte-Carlo: "
            "tangency.limit(..., numerical=True)"
        )
    return UnsupportedModelError(f"'{operation.name}'", reason=reason, advice=advice, source=source)


MADE_ADVICE = (
    "Apply each weight to the signal as it is stored, and mask, scale or add up the results; a normalised weight is, "
    "in the limit, a Gaussian one of the same scale, so leave the normalisation out and put its trainable scale on the "
    "result, g * (w @ x)"
)


def made_from_parameters(names: str) -> str:
    """Why a weight that the forward pass computes from others is refused."""
    return (
        f"it uses a weight that the forward pass computes from {names} (normalised, standardised, masked, or added "
        "up); only scalings of a stored weight have a rule"
    )


def _only_parameters(leaf: Leaf) -> str:
    """The names of the parameters that a leaf is made from, if there is nothing else in it; else empty."""
    stack, names = [leaf], set[str]()
    while stack:
        node = stack.pop()
        if isinstance(node, ParameterLeaf):
            names.add(node.parameter.name)
        elif isinstance(node, LinearLeaf | SumLeaf | ViewLeaf | JointLeaf):
            stack += [*node.bases, *(inner for s in node.inputs for term in s.terms for inner in term.leaves)]
        else:
            return ""
    return ", ".join(sorted(names))


def _over_positions(value: Known, operation: Operation, source: str | None) -> Known:
    """A coefficient without its width, along which it must not vary."""
    if value.shape and value.shape[-1] != 1:
        raise _varies(operation, source)
    return positions_only(value)


def positions_only(coefficient: Known) -> Known:
    """A coefficient (*positions, 1) as an array over positions; a number where it is one everywhere."""
    if not coefficient.shape:
        return coefficient
    if isinstance(coefficient, Constant) and coefficient.scalar is not None:
        return kn.constant(coefficient.scalar)
    shape = coefficient.shape[:-1]
    return kn.reshape(coefficient, shape if any(n != 1 for n in shape) else ())


def with_width(value: Known) -> Known:
    """An array over positions as a coefficient (*positions, 1)."""
    return kn.reshape(value, (*value.shape, 1)) if value.shape else value


def _varies(operation: Operation, source: str | None) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{operation.name}'",
        reason="its argument has a coefficient or shift that differs from unit to unit along the width",
        advice="Put a dense layer between the varying array and the activation",
        source=source,
    )


def _univariate(segment: Segment, place: Place | None, operation: Operation, source: str | None) -> Elementwise | Known:
    """The part of a segment without zero-variance parameters, as a function of its one leaf."""
    terms = [term for term in segment.terms if not term.degenerate]
    if place is None:
        return ZERO
    if any(term.varies for term in terms):
        raise _varies(operation, source)
    if len(terms) == 1 and terms[0].factors and is_number(terms[0].coefficient, 1.0):
        return terms[0].factors[0].function
    return _linear_combination(terms)


def _known_part(segment: Segment) -> Known:
    """What a segment without random leaves is, its parameters of zero variance at their means."""
    total: Known = ZERO
    for term in segment.terms:
        if not term.degenerate:
            total = kn.add(total, term.coefficient)
    return total


def _joint_shape(values: Sequence[Known]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(value.shape for value in values if value.shape))


def _known_result(operation: Operation, operands: Sequence[Segment | Known]) -> Known:
    values = [_known_part(o) if isinstance(o, Segment) else o for o in operands]
    return kn.apply(operation, values, _joint_shape(values))
