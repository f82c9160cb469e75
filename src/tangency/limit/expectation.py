"""Expectations of products of univariate functions of leaves, over labelled positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..errors import UnsupportedModelError
from ..graph.elementwise import Elementwise
from ..graph.elementwise import apply as compose
from ..graph.printing import short_name
from ..graph.signal import (
    Factor,
    Leaf,
    LinearLeaf,
    MergeLeaf,
    Segment,
    SelectLeaf,
    StopLeaf,
    SumLeaf,
    Term,
    ViewLeaf,
    is_degenerate,
)
from ..trace.known import MULTIPLY
from . import joint
from .duals import Activation, dual, mean, product_mean
from .fields import Field, add, broadcastable, contract, identity, lifted
from .linear_factors import of_linear_factors, with_linear_factors
from .placed import Placed

if TYPE_CHECKING:
    from .recursion import Recursion

_LONGEST_PRODUCT = 8
Labels = tuple[int, ...]
Call = tuple[Any, ...]
"""The name of an expectation with the programs of its functions, and the order of their series."""


@lru_cache(maxsize=4096)
def activation(program: Elementwise, parameters: int) -> Activation:
    """The analysed activation of a program; one analysis serves every layer that uses it."""
    return Activation(program, parameters=parameters, label=short_name(program))


def analysed(function: Elementwise) -> Activation:
    return activation(function.program, len(function.parameters))


@dataclass(frozen=True)
class DualUse:
    """A two-dimensional Gaussian expectation that the recursion takes: E[f(u) g(v)]."""

    f: Placed
    g: Placed


@dataclass
class Expectations:
    """E[Π φ_i(u_i)] by independent groups of at most two leaves each, and tangents of such products."""

    recursion: Recursion
    _wrapped: dict[Any, SumLeaf] = field(default_factory=dict)

    def of(self, placed: Sequence[Placed]) -> Field | None:
        if any(is_degenerate(p.leaf) for p in placed):
            return None
        variables: dict[tuple[Leaf, int, Labels], list[Placed]] = {}
        for p in placed:
            variables.setdefault(p.variable, []).append(p)
        total = Field(jnp.ones((), self.recursion.dtype))
        for group in _correlated_groups(list(variables.values())):
            value = self._group(group)
            if value is None:
                return None
            total = contract([total, value], {})
        return total

    def pair(self, left: Sequence[Placed], right: Sequence[Placed], *, tangent: bool) -> Field | None:
        """E or Θ of two products."""
        for mine, other in ((left, right), (right, left)):
            # A map of activations sees the whole product on the other side, inside its sum over positions.
            if len(other) == 1 and other[0].is_map and mine and not (len(mine) == 1 and mine[0].is_map):
                if not any(p.roots & other[0].roots for p in mine):
                    break
                return self.recursion.query("Θ" if tangent else "K", self.whole(mine), self.whole(other))
        if not tangent:
            return self.of([*left, *right])
        if any(p.is_joint for p in (*left, *right)):
            if len(left) == len(right) == 1 and left[0].is_bare and right[0].is_bare:
                return self.recursion.query("Θ", left[0].variable, right[0].variable)
            return joint.tangent(self.recursion, left, right)
        return add([self.tangent(left, f, right, g) for f in left for g in right])

    def tangent(self, left: Sequence[Placed], f: Placed, right: Sequence[Placed], g: Placed) -> Field | None:
        """What one factor of each of two products contributes to Θ: E[∂_f left · ∂_g right] Θ(f, g)."""
        if f.roots.isdisjoint(g.roots) or f.stopped or g.stopped:
            return None
        rest = [p for p in left if p is not f] + [p for p in right if p is not g]
        if f.leaf.gaussian and g.leaf.gaussian:
            slopes = [p.differentiated() for p in (f, g) if not p.function.is_identity]
            expected = self.of([*slopes, *rest])
            if expected is None:
                return None
            theta = self.recursion.query("Θ", f.variable, g.variable)
        else:
            expected = self.of(rest)
            if expected is None:
                return None
            self._check_apart(rest, (f, g))
            theta = self.recursion.query("Θ", self.whole([f]), self.whole([g]))
        return None if theta is None else contract([expected, theta], {})

    def _check_apart(self, rest: Sequence[Placed], moved: Sequence[Placed]) -> None:
        for p in rest:
            if any(not p.roots.isdisjoint(other.roots) for other in moved):
                raise _too_many(3, [p.leaf, *(other.leaf for other in moved)])

    def _group(self, group: Sequence[list[Placed]]) -> Field | None:
        placed = [p for places in group for p in places]
        if any(p.is_joint for p in placed):
            if len(placed) == 2 and all(p.function.is_identity for p in placed):
                return self.recursion.query("K", placed[0].variable, placed[1].variable)
            return joint.expectation(self.recursion, placed)
        if len(group) > 2:
            return self._beside_linear(group)
        if len(group) == 1:
            return self._one(group[0])
        f, g = _product(group[0]), _product(group[1])
        if f.function.is_identity and g.function.is_identity:
            return self.recursion.query("K", f.variable, g.variable)
        if not (f.leaf.gaussian and g.leaf.gaussian):
            if not all(p.leaf.gaussian or p.function.is_identity for p in (f, g)):
                if self.recursion.graph.sampling is not None:
                    return joint.expectation(self.recursion, placed)
                raise _not_gaussian(next(p.leaf for p in (f, g) if not p.leaf.gaussian))
            return self.recursion.query("K", self.whole([f]), self.whole([g]))
        self.recursion.uses.append(DualUse(f.anywhere(), g.anywhere()))
        operands = [
            self.recursion.variance(*f.variable),
            self.recursion.variance(*g.variable),
            self.recursion.number(self.recursion.query("K", f.variable, g.variable)),
        ]
        value = self._branch(("dual", f.function.program, g.function.program, self.recursion.order), f, g, operands)
        if f.leaf is g.leaf and f.side == g.side:
            value = self._with_diagonal(value, f, g)
        return value

    def _beside_linear(self, group: Sequence[list[Placed]]) -> Field | None:
        """Three or four correlated Gaussians, of which at most two are in functions."""
        linear = [places[0] for places in group if len(places) == 1 and places[0].function.is_identity]
        rest = [_product(places) for places in group if places[0] not in linear]
        gaussian = all(places[0].leaf.gaussian for places in group)
        factors = [p for places in group for p in places]
        if gaussian and len(factors) <= _LONGEST_PRODUCT and all(p.function.is_identity for p in factors):
            return of_linear_factors(self, factors)
        if not gaussian or not 1 <= len(linear) <= 2 or not 1 <= len(rest) <= 2:
            if self.recursion.graph.sampling is not None:
                return joint.expectation(self.recursion, [p for places in group for p in places])
            raise _too_many(len(group), [places[0].leaf for places in group])
        return with_linear_factors(self, linear, rest)

    def _with_diagonal(self, value: Field, f: Placed, g: Placed) -> Field:
        """At equal positions of one example the two Gaussians are one, where rounding would part them."""
        new = {there: here for here, there in zip(f.labels, g.labels, strict=True) if here != there}
        same = replace(g, labels=f.labels, over=tuple(new.get(label, label) for label in g.over))
        equal = self._one([f, same])
        if equal is None:
            return value
        lengths = dict(zip(f.labels, f.leaf.space, strict=True))
        mask = Field(jnp.ones((), self.recursion.dtype))
        for there, here in new.items():
            mask = contract([mask, identity(here, there, lengths[here], self.recursion.dtype)], {})
        labels = tuple(sorted({*value.labels, *mask.labels, *equal.labels}))
        arrays = [broadcastable(part, labels) for part in (mask, equal, value)]
        return Field(jnp.where(arrays[0] > 0, arrays[1], arrays[2]), labels)

    def _branch(self, call: Call, f: Placed, g: Placed | None, operands: Sequence[Field]) -> Field:
        """An expectation, with the parameters of f and g, at every place; a branch if `finite` is given."""
        parameters = [self.parameters(f), () if g is None else self.parameters(g)]
        fields = [*operands, *parameters[0], *parameters[1]]
        labels = sorted({label for part in fields for label in part.labels})
        names = {label: place for place, label in enumerate(labels)}
        signature = tuple(tuple(names[label] for label in part.labels) for part in fields)
        run = partial(_everywhere, call, len(operands), len(parameters[0]), signature)
        arrays = [part.array for part in fields]
        finite = self.recursion.finite
        if finite is None:
            return Field(run(*arrays), tuple(labels))
        shape = jax.eval_shape(run, *arrays)

        def not_finite(*_: Any) -> jax.Array:
            return jnp.full(shape.shape, jnp.nan, shape.dtype)

        return Field(jax.lax.cond(finite, run, not_finite, *arrays), tuple(labels))

    def parameters(self, p: Placed) -> tuple[Field, ...]:
        return tuple(self.recursion.over_positions(known, p.side, p.over) for known in p.function.parameters)

    def _one(self, places: Sequence[Placed]) -> Field | None:
        """E[Π φ_i(u)] of one leaf."""
        first = places[0]
        if all(p.function.is_identity for p in places):
            if not first.leaf.gaussian:
                return self._plain(places)
            return None if len(places) % 2 else self._even_power(first, len(places))
        if not first.leaf.gaussian:
            raise _not_gaussian(first.leaf)
        variance = self.recursion.variance(*first.variable)
        if len(places) == 1:
            return self._branch(("mean", first.function.program), first, None, [variance])
        second = _product(places[1:])
        call = ("product mean", first.function.program, second.function.program)
        return self._branch(call, first, second, [variance])

    def _plain(self, places: Sequence[Placed]) -> Field | None:
        """The mean or second moment of a leaf that is no Gaussian."""
        if len(places) == 1:
            return self.mean(*places[0].variable)
        if len(places) == 2:
            return self.recursion.query("K", places[0].variable, places[1].variable)
        raise _not_gaussian(places[0].leaf)

    def mean(self, leaf: Leaf, side: int, labels: Labels) -> Field | None:
        """E[leaf]: zero but for linear maps of signals that have a mean."""
        recursion = self.recursion
        if leaf.gaussian or not isinstance(leaf, ViewLeaf | LinearLeaf):
            return None
        if isinstance(leaf, LinearLeaf):
            inner = recursion.labels_inside(leaf, labels)
            found = []
            for term in leaf.segment.terms:
                expected = self.of([Placed.of(factor, side, inner) for factor in term.factors])
                if expected is not None:
                    found.append(contract([recursion.coefficient(term.coefficient, side, inner), expected], {}))
            total = add(found)
            return None if total is None else recursion.apply_map(leaf, side, inner, labels, total)
        if isinstance(leaf, SelectLeaf | MergeLeaf):
            inner, restore = recursion.inner(leaf, side, labels)
            found_inner = self.mean(leaf.leaf, side, inner)
            return None if found_inner is None else restore(found_inner)
        rest = labels[: len(leaf.leaf.space)]
        return self.mean(leaf.leaf, side, rest)

    def _even_power(self, p: Placed, power: int) -> Field:
        """E[u^p] = (p − 1)!! a^(p/2)."""
        variance = self.recursion.variance(*p.variable)
        result = Field(jnp.ones((), self.recursion.dtype))
        for odd in range(1, power, 2):
            result = contract([result, variance], {}).times(float(odd))
        return result

    def whole(self, placed: Sequence[Placed]) -> tuple[Leaf, int, Labels]:
        """A product of functions of leaves as one thing that has second moments; a bare leaf is that already."""
        if len(placed) == 1 and placed[0].function.is_identity and not placed[0].stopped:
            return placed[0].variable
        over = placed[0].over
        if not any(p.function.parameters for p in placed):
            over = tuple(dict.fromkeys(label for p in placed for label in p.labels))
        lengths = dict.fromkeys(over, 1)
        for p in placed:
            lengths.update(zip(p.labels, p.leaf.space, strict=True))
            for known in p.function.parameters:
                lengths.update((label, n) for label, n in zip(over, known.shape, strict=False) if n != 1)
        factors = [(p.function, p.leaf, p.stopped, tuple(over.index(label) for label in p.labels)) for p in placed]
        space = tuple(lengths[label] for label in over)
        key = (tuple(factors), space)
        if key not in self._wrapped:
            made = tuple(Factor(f, StopLeaf(leaf) if stop else leaf, axes) for f, leaf, stop, axes in factors)
            self._wrapped[key] = SumLeaf(Segment(1, (Term(factors=made),), space))
        return self._wrapped[key], placed[0].side, over


def _evaluate(call: Call, numbers: Sequence[Any], fs: Sequence[Any], gs: Sequence[Any]) -> Any:
    match call:
        case ("dual", f, g, order):
            a, b, c = numbers
            return dual(activation(f, len(fs)), activation(g, len(gs)), a, b, c, tuple(fs), tuple(gs), order=order)
        case ("mean", f):
            return mean(activation(f, len(fs)), numbers[0], tuple(fs))
        case ("product mean", f, g):
            functions = activation(f, len(fs)), activation(g, len(gs))
            return product_mean(*functions, numbers[0], tuple(fs), tuple(gs))
    raise TypeError(call)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _everywhere(call: Call, operands: int, own: int, signature: tuple[Labels, ...], *arrays: Any) -> jax.Array:
    """An expectation at every place. Traced once for each pair of activations and shape, however many layers use it."""

    def scalar(*numbers: Any) -> Any:
        split = operands + own
        return _evaluate(call, numbers[:operands], numbers[operands:split], numbers[split:])

    fields = [Field(array, labels) for array, labels in zip(arrays, signature, strict=True)]
    return lifted(scalar, fields).array


def _product(places: Sequence[Placed]) -> Placed:
    function = places[0].function
    for p in places[1:]:
        function = compose(MULTIPLY, (function, p.function))
    if len(places) > 1 and any(p.over != places[0].over for p in places if p.function.parameters):
        raise _too_many(len(places), [places[0].leaf])
    over = next((p.over for p in places if p.function.parameters), places[0].over)
    return replace(places[0], function=function, over=over)


def _too_many(count: int, leaves: Sequence[Leaf]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the product of {count} correlated Gaussians",
        reason="only functions of two correlated Gaussians, times at most two more as they are, have a rule",
        advice="Put a dense layer between the branches, or ask for quasi-Monte-Carlo: tangency.limit(..., "
        "numerical=True)",
        source=next((leaf.source for leaf in leaves if leaf.source), None),
    )


def _not_gaussian(leaf: Leaf) -> UnsupportedModelError:
    return UnsupportedModelError(
        "a nonlinear function of a linear map of activations (a pooled or depthwise signal)",
        reason="it is not Gaussian: only its second moments have a rule, which a norm or a dense layer takes of it",
        advice="Put a dense layer or a full convolution before the function, or ask for quasi-Monte-Carlo: "
        "tangency.limit(..., numerical=True)",
        source=leaf.source,
    )


def _correlated_groups(places: list[list[Placed]]) -> list[list[list[Placed]]]:
    """Connected components of the relation "came from a common parameter"."""
    groups: list[list[list[Placed]]] = []
    for place in places:
        roots = place[0].roots
        related = [g for g in groups if any(not roots.isdisjoint(other[0].roots) for other in g)]
        merged = [other for group in related for other in group]
        groups = [g for g in groups if not any(g is r for r in related)]
        groups.append([*merged, place])
    return groups
