"""Expectations and tangents of functions of several Gaussians, by quasi-Monte-Carlo.

The Gaussians that a product of functions is made from are found with their covariances; samples of them go through the
functions, as the network itself would send them. For products F and G of both sides,

    Θ(F, G) = Σ_ij E[∂_i F ∂_j G] Θ(u_i, u_j),

with derivatives sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..errors import UnsupportedModelError
from ..graph.known import Operation, is_number
from ..graph.sampling import QuasiMonteCarlo
from ..graph.signal import Factor, JointLeaf, Leaf, Segment, StopLeaf, Term
from .fields import Field, lifted
from .placed import Placed

if TYPE_CHECKING:
    from .recursion import Recursion

Labels = tuple[int, ...]
Variable = tuple[Leaf, int, Labels]
Step = Callable[[list[Any], jax.Array, Sequence[Any]], Any]
"""What a step makes of the results before it, the samples [points, variables], and numbers."""

_HIGHEST = jax.lax.Precision.HIGHEST
_LOGICAL = frozenset(("and", "or", "not", "xor"))


def expectation(recursion: Recursion, placed: Sequence[Placed]) -> Field:
    """E[Π φ_i(u_i)]."""
    rule = _rule(recursion)
    program = Program(recursion)
    result = program.product(placed)
    covariances = program.covariances()
    count = len(covariances)

    def mean(*numbers: Any) -> jax.Array:
        samples = _samples(recursion, rule, numbers[:count])
        return jnp.mean(jnp.broadcast_to(program.run(samples, numbers[count:])[result], samples.shape[:1]))

    return lifted(mean, [*covariances, *program.numbers])


def tangent(recursion: Recursion, left: Sequence[Placed], right: Sequence[Placed]) -> Field | None:
    """Θ of two products of functions; None where they share no parameter."""
    rule = _rule(recursion)
    program = Program(recursion)
    first, second = program.product(left), program.product(right)
    variables = list(program.variables)
    pairs: dict[tuple[int, int], Field] = {}
    for i in sorted(program.reached[first]):
        for j in sorted(program.reached[second]):
            theta = recursion.query("Θ", variables[i], variables[j])
            if theta is not None:
                pairs[i, j] = theta
    if not pairs:
        return None
    covariances = program.covariances()
    counts = len(covariances), len(covariances) + len(program.numbers)

    def total(*numbers: Any) -> jax.Array:
        samples = _samples(recursion, rule, numbers[: counts[0]])

        def slopes(which: int) -> jax.Array:
            def value(u: jax.Array) -> jax.Array:
                return jnp.sum(jnp.broadcast_to(program.run(u, numbers[counts[0] : counts[1]])[which], u.shape[:1]))

            return jax.grad(value)(samples)

        mean = jnp.einsum("ni,nj->ij", slopes(first), slopes(second), precision=_HIGHEST) / len(samples)
        return _plus([mean[pair] * theta for pair, theta in zip(pairs, numbers[counts[1] :], strict=True)])

    return lifted(total, [*covariances, *program.numbers, *pairs.values()])


def _rule(recursion: Recursion) -> QuasiMonteCarlo:
    recursion.sampled.append(True)
    assert recursion.graph.sampling is not None
    return recursion.graph.sampling


def _samples(recursion: Recursion, rule: QuasiMonteCarlo, covariances: Sequence[Any]) -> jax.Array:
    """Samples [points, variables] of Gaussians with these covariances, the upper triangle row by row."""
    count = int((2 * len(covariances)) ** 0.5)
    if not count:
        return jnp.zeros((1, 0), recursion.dtype)
    rows, entries = [], iter(covariances)
    triangle = {(i, j): next(entries) for i in range(count) for j in range(i, count)}
    for i in range(count):
        rows.append(jnp.stack([triangle[min(i, j), max(i, j)] for j in range(count)]))
    normals = jnp.asarray(rule.normals(count), recursion.dtype)[recursion.replicate]
    return jnp.einsum("nk,ik->ni", normals, _root(jnp.stack(rows)), precision=_HIGHEST)


def _root(covariance: jax.Array) -> jax.Array:
    """A lower triangular L with L Lᵀ the covariance, which may be singular: Gaussians that are one, or zero."""
    count = len(covariance)
    places = jnp.arange(count)
    tiny = 64 * count * jnp.finfo(covariance.dtype).eps

    def column(j: Any, root: jax.Array) -> jax.Array:
        left = covariance[:, j] - jnp.einsum("ik,k->i", root, root[j], precision=_HIGHEST)
        positive = left[j] > tiny * covariance[j, j]
        scale = jnp.sqrt(jnp.where(positive, left[j], 1.0))
        return root.at[:, j].set(jnp.where(positive & (places >= j), left, 0.0) / scale)

    root = jax.lax.fori_loop(0, count, column, jnp.zeros_like(covariance))
    # NaN among the covariances would be taken for zero.
    return root + 0.0 * jnp.sum(covariance)


@dataclass
class Program:
    """Products of functions as steps on samples of the Gaussians that they are made from.

    `reached[step]` are the places of the variables that a step depends on.
    """

    recursion: Recursion
    variables: dict[Variable, int] = field(default_factory=dict)
    numbers: list[Field] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    reached: list[frozenset[int]] = field(default_factory=list)
    _made: dict[Any, int] = field(default_factory=dict)

    def run(self, samples: jax.Array, numbers: Sequence[Any]) -> list[Any]:
        """The results of all steps, one value for each sample."""
        results: list[Any] = []
        for step in self.steps:
            results.append(step(results, samples, numbers))
        return results

    def covariances(self) -> list[Field]:
        """K between the variables, the upper triangle row by row."""
        recursion, variables = self.recursion, list(self.variables)
        return [recursion.number(recursion.query("K", a, b)) for i, a in enumerate(variables) for b in variables[i:]]

    def product(self, placed: Sequence[Placed]) -> int:
        """The step that is the product of functions of leaves."""
        parts = [self._applied(p, self._value(p.leaf, p.side, p.labels)) for p in placed]
        return self._add(lambda results, *_: _times([results[part] for part in parts]), parts)

    def _add(self, step: Step, parts: Sequence[int], own: frozenset[int] = frozenset()) -> int:
        self.steps.append(step)
        self.reached.append(own.union(*(self.reached[part] for part in parts)))
        return len(self.steps) - 1

    def _number(self, value: Field) -> int:
        self.numbers.append(value)
        return len(self.numbers) - 1

    def _applied(self, p: Placed, part: int) -> int:
        """φ of a result."""
        if p.function.is_identity and not p.stopped:
            return part
        indices = [self._number(value) for value in self.recursion.expectations.parameters(p)]

        def step(results: list[Any], _: jax.Array, numbers: Sequence[Any]) -> jax.Array:
            value = p.function(results[part], *(numbers[i] for i in indices))
            return jax.lax.stop_gradient(value) if p.stopped else value

        return self._add(step, [part])

    def _value(self, leaf: Leaf, side: int, labels: Labels) -> int:
        key = (leaf, side, labels)
        if key not in self._made:
            self._made[key] = self._leaf(leaf, side, labels)
        return self._made[key]

    def _leaf(self, leaf: Leaf, side: int, labels: Labels) -> int:
        if isinstance(leaf, JointLeaf):
            parts = [self._segment(operand, side, labels) for operand in leaf.operands]
            return self._add(lambda results, u, _: _combined(leaf, [results[p] for p in parts], u.dtype), parts)
        if isinstance(leaf, StopLeaf) and not leaf.gaussian:
            inner = self._value(leaf.leaf, side, labels)
            return self._add(lambda results, *_: jax.lax.stop_gradient(results[inner]), [inner])
        if not leaf.gaussian:
            raise UnsupportedModelError(
                "a function of several Gaussians",
                reason="one of its arguments is a map of activations over positions, which is not Gaussian",
                advice="Put a dense layer before it",
                source=leaf.source,
            )
        place = self.variables.setdefault((leaf, side, labels), len(self.variables))
        return self._add(lambda _, u, __: u[:, place], [], frozenset((place,)))

    def _segment(self, segment: Segment, side: int, labels: Labels) -> int:
        parts = [self._term(term, side, labels) for term in segment.terms]
        if len(parts) == 1:
            return parts[0]
        return self._add(lambda results, *_: _plus([results[part] for part in parts]), parts)

    def _term(self, term: Term, side: int, labels: Labels) -> int:
        parts = [self._factor(factor, side, labels) for factor in term.factors]
        if not is_number(term.coefficient, 1.0) or not parts:
            index = self._number(self.recursion.coefficient(term.coefficient, side, labels))
            parts.append(self._add(lambda _, __, numbers: numbers[index], []))
        if len(parts) == 1:
            return parts[0]
        return self._add(lambda results, *_: _times([results[part] for part in parts]), parts)

    def _factor(self, factor: Factor, side: int, labels: Labels) -> int:
        p = Placed.of(factor, side, labels)
        return self._applied(p, self._value(p.leaf, p.side, p.labels))


def _combined(leaf: JointLeaf, values: list[Any], dtype: Any) -> Any:
    operation: Operation | None = leaf.operation
    if operation is None:
        return _plus(values)
    if operation.name in _LOGICAL:
        values = [jnp.asarray(value) != 0 for value in values]
    elif operation.name == "select_n":
        values = [jnp.asarray(values[0]) != 0, *(jnp.asarray(value, dtype) for value in values[1:])]
    else:
        values = [jnp.asarray(value, dtype) for value in values]
    return operation(*values, dtype=dtype)


def _times(values: Sequence[Any]) -> Any:
    total = values[0] if values else jnp.ones(())
    for value in values[1:]:
        total = total * value
    return total


def _plus(values: Sequence[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
