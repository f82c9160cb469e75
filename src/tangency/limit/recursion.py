"""The recursion over a limit graph: second moments K and tangents Θ, on one pair of examples.

Two memoised queries, demanded from the output. For leaves that come from one weight with variance v and learning rate
η, applied to signals s and s' of the same width,

    K(Ws, Ws') = v Σ_c E[s_c s'_c],      Θ(Ws, Ws') = η Σ_c E[s_c s'_c] + v Σ_c Θ(s_c, s'_c),

and both vanish for leaves of different weights (Jacot, Gabriel, Hongler 2018, arXiv:1806.07572, theorem 1; for shared
weights and correlated branches Yang 2019, arXiv:1902.04760 and 2020, arXiv:2006.14548). For a term Π_i φ_i(u_i),

    Θ(t, t') = Σ_ij E[∂_i t ∂_j t'] Θ(u_i, u'_j).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ..errors import UnsupportedModelError
from ..graph.elementwise import Elementwise
from ..graph.elementwise import apply as compose
from ..graph.graph import Graph
from ..graph.known import Apply, Constant, Input, Known, WidthSum
from ..graph.printing import short_name
from ..graph.signal import DenseLeaf, Factor, Leaf, ParameterLeaf, Segment, SumLeaf, Term, is_degenerate, of_leaf
from ..trace.known import MULTIPLY
from .duals import Activation, dual, mean, product_mean

# Traced once for each pair of activations, however many layers use it.
_DUAL = jax.jit(dual, static_argnums=(0, 1), static_argnames="order")
_MEAN = jax.jit(mean, static_argnums=0)
_PRODUCT_MEAN = jax.jit(product_mean, static_argnums=(0, 1))

Value: TypeAlias = Any
"""A traced number, or None for a zero that is known from the graph alone."""


@lru_cache(maxsize=4096)
def activation(program: Elementwise, parameters: int) -> Activation:
    """The analysed activation of a program; one analysis serves every layer that uses it."""
    return Activation(program, parameters=parameters, label=short_name(program))


def analysed(function: Elementwise) -> Activation:
    return activation(function.program, len(function.parameters))


@dataclass(frozen=True, eq=False)
class DualUse:
    """A two-dimensional Gaussian expectation that the recursion takes: E[f(u) g(v)]."""

    f: Elementwise
    g: Elementwise
    u: Leaf
    v: Leaf


@dataclass
class Recursion:
    """The recursion on given examples: one for the diagonal, two for a pair.

    `order` is that of the Hermite series of activations without closed form. `finite` is a boolean known only at run
    time, the same for all pairs, such as that the data are not NaN: each expectation is then a branch on it. XLA does
    not fuse across branches; without them it repeats a layer's arithmetic in all later ones, and compile time grows
    with the square of the depth.
    """

    graph: Graph
    examples: tuple[jax.Array, ...]
    order: int | None = None
    finite: jax.Array | None = None
    uses: list[DualUse] = field(default_factory=list)
    _memo: dict[Any, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = self.examples[0].dtype
        self.last = len(self.examples) - 1

    def kernels(self, *, tangent: bool) -> tuple[jax.Array, jax.Array | None]:
        """(K, Θ) of the network's output between the first and the last example; Θ only if asked for."""
        self.sweep(tangent=tangent)
        segment = self.graph.output.segments[0]
        sides = (0, self.last)
        k = self._add(self._pairs(segment, segment, sides, None, tangent=False))
        theta = self._add(self._pairs(segment, segment, sides, None, tangent=True)) if tangent else None
        return self._number(k), self._number(theta) if tangent else None

    def sweep(self, *, tangent: bool) -> None:
        """Fill the memo from the input on, so that no query recurses through the depth of the network."""
        for node in self.graph.order:
            for side in range(len(self.examples)):
                if isinstance(node, Known):
                    self.known(node, side)
                else:
                    self.second_moment(node, side, node, side)
            if isinstance(node, Leaf):
                self.second_moment(node, 0, node, self.last)
                if tangent:
                    self.tangent(node, 0, node, self.last)

    def variance(self, leaf: Leaf, side: int) -> jax.Array:
        """K(leaf, leaf) on one example."""
        return self._number(self.second_moment(leaf, side, leaf, side))

    # Known values

    def known(self, node: Known, side: int) -> jax.Array:
        key = (node, side)
        if key not in self._memo:
            self._memo[key] = self._evaluate_known(node, side)
        return self._memo[key]

    def _evaluate_known(self, node: Known, side: int) -> jax.Array:
        match node:
            case Input():
                return self.examples[side]
            case Constant(value=value):
                floating = jnp.issubdtype(value.dtype, jnp.floating)
                return jnp.asarray(value, self.dtype if floating else None)
            case Apply(operation=operation, arguments=arguments):
                return operation(*[self.known(a, side) for a in arguments], dtype=self.dtype)
            case WidthSum(segments=segments):
                return self._number(self._add([self._expected_sum(s, side) for s in segments]))
        raise TypeError(f"no evaluation for {type(node).__name__}")

    def _expected_sum(self, segment: Segment, side: int) -> Value:
        terms = []
        for term in segment.terms:
            expected = self._expectation([(factor, side) for factor in term.factors])
            if expected is not None:
                coefficient = self.known(term.coefficient, side)
                count = jnp.sum(coefficient) if term.varies else segment.size * coefficient
                terms.append(count * expected)
        return self._add(terms)

    # Queries on leaves

    def second_moment(self, a: Leaf, side_a: int, b: Leaf, side_b: int) -> Value:
        """K: E[a b] between two places."""
        return self._query("K", a, side_a, b, side_b)

    def tangent(self, a: Leaf, side_a: int, b: Leaf, side_b: int) -> Value:
        """Θ: Σ_p η_p ∂_p a ∂_p b between two places."""
        return self._query("Θ", a, side_a, b, side_b)

    def _query(self, what: str, a: Leaf, side_a: int, b: Leaf, side_b: int) -> Value:
        if a.roots.isdisjoint(b.roots):
            return None
        key = (what, a, side_a, b, side_b)
        if key not in self._memo:
            mirrored = (what, b, side_b, a, side_a)
            value = self._leaf_pair(what == "Θ", a, b, (side_a, side_b))
            self._memo[key] = self._memo[mirrored] = value
        return self._memo[key]

    def _leaf_pair(self, tangent: bool, a: Leaf, b: Leaf, sides: tuple[int, int]) -> Value:
        if isinstance(a, SumLeaf) or isinstance(b, SumLeaf):
            return self._add(self._pairs(_as_segment(a), _as_segment(b), sides, None, tangent=tangent))
        if isinstance(a, ParameterLeaf) and isinstance(b, ParameterLeaf):
            return a.scale * b.scale * (a.parameter.rate if tangent else a.parameter.variance)
        if isinstance(a, DenseLeaf) and isinstance(b, DenseLeaf):
            return self._dense_pair(tangent, a, b, sides)
        raise UnsupportedModelError(
            f"the parameter {next(iter(a.roots & b.roots)).name}",
            reason="it is used both as a weight and as a bias",
            advice="Use two parameters",
        )

    def _dense_pair(self, tangent: bool, a: DenseLeaf, b: DenseLeaf, sides: tuple[int, int]) -> Value:
        weight, scale = a.weight, a.scale * b.scale
        moment = self._contract(a, b, sides, tangent=False)
        if not tangent:
            return None if moment is None else weight.variance * scale * moment
        inner = self._contract(a, b, sides, tangent=True)
        parts = [(weight.rate, moment), (weight.variance, inner)]
        return self._add([rate * scale * part for rate, part in parts if part is not None and rate != 0])

    def _contract(self, a: DenseLeaf, b: DenseLeaf, sides: tuple[int, int], *, tangent: bool) -> Value:
        """Σ_c of E[s_c s'_c] or Θ(s_c, s'_c) over the width that a weight contracts."""
        key = ("Σ", tangent, a, b, sides)
        if key not in self._memo:
            if [s.size for s in a.input] != [s.size for s in b.input]:
                raise UnsupportedModelError(
                    f"the weight {a.weight.name}",
                    reason="it is applied to two signals that are concatenated in different places",
                    advice="Use separate weights",
                    source=b.source,
                )
            parts = []
            for s, t in zip(a.input, b.input, strict=True):
                parts += self._pairs(s, t, sides, s.size, tangent=tangent)
            self._memo[key] = self._add(parts)
        return self._memo[key]

    # Sums of terms

    def _pairs(self, a: Segment, b: Segment, sides: tuple[int, int], size: int | None, *, tangent: bool) -> list[Any]:
        """E or Θ of every pair of terms with coefficients, at one place (`size` None) or summed over `size` places."""
        found = []
        for s in a.terms:
            for t in b.terms:
                value = self._term_tangent(s, t, sides) if tangent else self._term_moment(s, t, sides)
                if value is not None:
                    found.append(self._coefficients(s, t, sides, size) * value)
        return found

    def _coefficients(self, s: Term, t: Term, sides: tuple[int, int], size: int | None) -> jax.Array:
        left, right = self.known(s.coefficient, sides[0]), self.known(t.coefficient, sides[1])
        if s.varies and t.varies:
            return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)
        if s.varies or t.varies:
            return jnp.sum(left) * right if s.varies else left * jnp.sum(right)
        return left * right * (1 if size is None else size)

    def _term_moment(self, s: Term, t: Term, sides: tuple[int, int]) -> Value:
        placed = [(factor, sides[0]) for factor in s.factors] + [(factor, sides[1]) for factor in t.factors]
        return self._expectation(placed)

    def _term_tangent(self, s: Term, t: Term, sides: tuple[int, int]) -> Value:
        found = []
        for f in s.factors:
            for g in t.factors:
                if f.leaf.roots.isdisjoint(g.leaf.roots):
                    continue
                placed = [(factor, sides[0]) for factor in _differentiated(s.factors, f)]
                placed += [(factor, sides[1]) for factor in _differentiated(t.factors, g)]
                slopes = self._expectation(placed)
                tangent = None if slopes is None else self.tangent(f.leaf, sides[0], g.leaf, sides[1])
                if slopes is not None and tangent is not None:
                    found.append(slopes * tangent)
        return self._add(found)

    # Expectations of products of univariate functions

    def _expectation(self, placed: Sequence[tuple[Factor, int]]) -> Value:
        """E[Π φ_i(u_i)], by independent groups of at most two Gaussians each."""
        variables: dict[tuple[Leaf, int], list[Elementwise]] = {}
        for factor, side in placed:
            if is_degenerate(factor.leaf):
                return None
            variables.setdefault((factor.leaf, side), []).append(factor.function)
        total: Value = jnp.ones((), self.dtype)
        for group in _correlated_groups(list(variables)):
            value = self._group(group, variables)
            if value is None:
                return None
            total = total * value
        return total

    def _group(self, group: Sequence[tuple[Leaf, int]], variables: dict[tuple[Leaf, int], list[Elementwise]]) -> Value:
        if len(group) > 2:
            raise UnsupportedModelError(
                f"the product of {len(group)} correlated Gaussians",
                reason="only expectations of two correlated Gaussians have a closed rule",
                advice="Put a dense layer between the branches",
                source=next((leaf.source for leaf, _ in group if leaf.source), None),
            )
        if len(group) == 1:
            (leaf, side), functions = group[0], variables[group[0]]
            return self._one_gaussian(leaf, side, functions)
        (u, side_u), (v, side_v) = group
        f, g = _product(variables[group[0]]), _product(variables[group[1]])
        covariance = self.second_moment(u, side_u, v, side_v)
        if f.is_identity and g.is_identity:
            return covariance
        self.uses.append(DualUse(f, g, u, v))

        return self._branch(
            partial(_DUAL, analysed(f), analysed(g), order=self.order),
            self.variance(u, side_u),
            self.variance(v, side_v),
            self._number(covariance),
            self._parameters(f, side_u),
            self._parameters(g, side_v),
        )

    def _branch(self, function: Callable[..., Any], *operands: Any) -> Any:
        if self.finite is None:
            return function(*operands)
        return jax.lax.cond(self.finite, function, lambda *_: jnp.full((), jnp.nan, self.dtype), *operands)

    def _one_gaussian(self, leaf: Leaf, side: int, functions: list[Elementwise]) -> Value:
        if all(function.is_identity for function in functions):
            return None if len(functions) % 2 else self._even_power(leaf, side, len(functions))
        variance = self.variance(leaf, side)
        f = functions[0]
        if len(functions) == 1:
            return self._branch(partial(_MEAN, analysed(f)), variance, self._parameters(f, side))
        g = _product(functions[1:])
        return self._branch(
            partial(_PRODUCT_MEAN, analysed(f), analysed(g)),
            variance,
            self._parameters(f, side),
            self._parameters(g, side),
        )

    def _even_power(self, leaf: Leaf, side: int, power: int) -> Value:
        """E[u^p] = (p − 1)!! a^(p/2)."""
        variance = self.variance(leaf, side)
        result = jnp.ones((), self.dtype)
        for odd in range(1, power, 2):
            result = result * odd * variance
        return result

    def _parameters(self, function: Elementwise, side: int) -> tuple[jax.Array, ...]:
        return tuple(self.known(parameter, side) for parameter in function.parameters)

    # Structural zeros

    def _add(self, values: Sequence[Value]) -> Value:
        total: Value = None
        for value in values:
            if value is not None:
                total = value if total is None else total + value
        return total

    def _number(self, value: Value) -> jax.Array:
        return jnp.zeros((), self.dtype) if value is None else jnp.asarray(value, self.dtype)


def _as_segment(leaf: Leaf) -> Segment:
    return leaf.segment if isinstance(leaf, SumLeaf) else Segment(1, (of_leaf(leaf),))


def _differentiated(factors: Sequence[Factor], which: Factor) -> list[Factor]:
    """The factors with one replaced by its derivative; the derivative of a bare leaf is 1."""
    result = []
    for factor in factors:
        if factor is not which:
            result.append(factor)
        elif not factor.function.is_identity:
            result.append(Factor(factor.function.derivative, factor.leaf))
    return result


def _product(functions: Sequence[Elementwise]) -> Elementwise:
    product = functions[0]
    for function in functions[1:]:
        product = compose(MULTIPLY, (product, function))
    return product


def _correlated_groups(places: list[tuple[Leaf, int]]) -> list[list[tuple[Leaf, int]]]:
    """Connected components of the relation "came from a common parameter"."""
    groups: list[list[tuple[Leaf, int]]] = []
    for place in places:
        related = [g for g in groups if any(not place[0].roots.isdisjoint(leaf.roots) for leaf, _ in g)]
        merged = [other for group in related for other in group]
        groups = [g for g in groups if g not in related]
        groups.append([*merged, place])
    return groups
