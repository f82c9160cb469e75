"""The recursion over a limit graph: second moments K and tangents Θ, on one pair of examples.

Two memoised queries, demanded from the output. For leaves that come from one weight with variance v and learning rate
η, applied to signals s and s' of the same width,

    K(Ws, Ws') = v Σ_c E[s_c s'_c],      Θ(Ws, Ws') = η Σ_c E[s_c s'_c] + v Σ_c Θ(s_c, s'_c),

and both vanish for leaves of different weights (Jacot, Gabriel, Hongler 2018, arXiv:1806.07572, theorem 1; for
convolutions Novak et al. 2019, arXiv:1810.05148; for shared weights and correlated branches Yang 2019,
arXiv:1902.04760 and 2020, arXiv:2006.14548). For a term Π_i φ_i(u_i),

    Θ(t, t') = Σ_ij E[∂_i t ∂_j t'] Θ(u_i, u'_j).

A query names a label for each axis of positions on both sides. Equal labels ask for the diagonal only; so a network
that never mixes positions never pays for pairs of them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import UnsupportedModelError
from ..graph.elementwise import IDENTITY
from ..graph.graph import Graph
from ..graph.known import Apply, Constant, Input, Known, WidthSum
from ..graph.signal import (
    CarryLeaf,
    CopiesLeaf,
    EmbeddingLeaf,
    JointLeaf,
    Leaf,
    LinearLeaf,
    MergeLeaf,
    ParameterLeaf,
    ParameterStatistics,
    Segment,
    SelectLeaf,
    StopLeaf,
    SumLeaf,
    Term,
    ViewLeaf,
    WeightLeaf,
    of_leaf,
)
from . import joint
from .expectation import DualUse, Expectations
from .fields import Field, add, broadcastable, contract, identity
from .loops import carried
from .placed import Placed
from .weights import weights

_DEPTH = 1_000_000
_WIDTH = -1
"""The label of the width, over which coefficients are summed."""

Labels = tuple[int, ...]


@contextlib.contextmanager
def deep_recursion() -> Iterator[None]:
    """Queries recurse through the depth of the network, in Python alone."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@dataclass
class Recursion:
    """The recursion on given examples: one for the diagonal, two for a pair.

    `order` is that of the Hermite series of activations without closed form. `finite` is a boolean known only at run
    time, the same for all pairs, such as that the data are not NaN: each expectation is then a branch on it. XLA does
    not fuse across branches; without them it repeats a layer's arithmetic in all later ones, and compile time grows
    with the square of the depth. `only` limits the tangent to the contribution of these parameters.
    `replicate` is which points the expectations by quasi-Monte-Carlo take; `sampled` fills up when there are any.
    """

    graph: Graph
    examples: tuple[jax.Array, ...]
    order: int | None = None
    finite: jax.Array | None = None
    only: frozenset[ParameterStatistics] | None = None
    replicate: Any = 0
    sampled: list[bool] = field(default_factory=list)
    uses: list[DualUse] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    fresh: Iterator[int] = field(default_factory=lambda: count(1000))

    def __post_init__(self) -> None:
        example = self.examples[0]
        self.dtype = example.dtype if jnp.issubdtype(example.dtype, jnp.floating) else jnp.zeros(()).dtype
        self.last = len(self.examples) - 1
        self.expectations = Expectations(self)

    def kernels(self, *, tangent: bool) -> tuple[jax.Array, jax.Array | None]:
        """(K, Θ) of the network's output between the first and the last example; Θ only if asked for.

        Arrays over the output's positions of the first, then of the last example.
        """
        segment = self.graph.output.segments[0]
        rank = len(segment.space)
        labels = tuple(range(rank)), tuple(range(rank, 2 * rank))
        sides, lengths = (0, self.last), (*segment.space, *segment.space)
        with deep_recursion():
            fields = [
                self.pairs(segment, segment, sides, labels, tangent=which) for which in ((False, True)[: 1 + tangent])
            ]
        arrays = [self.number(found).full((*labels[0], *labels[1]), lengths) for found in fields]
        return arrays[0], arrays[1] if tangent else None

    def variance(self, leaf: Leaf, side: int, labels: Labels) -> Field:
        """K(leaf, leaf) on one example, at equal positions."""
        return self.number(self.query("K", (leaf, side, labels), (leaf, side, labels)))

    def number(self, value: Field | None) -> Field:
        if value is None:
            return Field(jnp.zeros((), self.dtype))
        return Field(jnp.asarray(value.array, self.dtype), value.labels)

    # Known values

    def known(self, node: Known, side: int) -> jax.Array:
        key = (node, side)
        if key not in self.memo:
            self.memo[key] = self._evaluate_known(node, side)
        return self.memo[key]

    def _evaluate_known(self, node: Known, side: int) -> jax.Array:
        match node:
            case Input():
                # The program was traced on tokens of this type, which its comparisons expect.
                return self.examples[side].astype(jnp.int32) if self.graph.integers else self.examples[side]
            case Constant(value=value):
                floating = jnp.issubdtype(value.dtype, jnp.floating)
                return jnp.asarray(value, self.dtype if floating else None)
            case Apply(operation=operation, arguments=arguments):
                return operation(*[self.known(a, side) for a in arguments], dtype=self.dtype)
            case WidthSum(segments=segments, shape=shape, share=share):
                labels = tuple(range(len(shape)))
                parts = [self._expected_sum(s, side, labels) for s in segments]
                return self.number(add(parts)).times(share).full(labels, shape)
        raise TypeError(f"no evaluation for {type(node).__name__}")

    def _expected_sum(self, segment: Segment, side: int, labels: Labels) -> Field | None:
        found = []
        for term in segment.terms:
            expected = self.expectations.of([Placed.of(f, side, labels) for f in term.factors])
            if expected is not None:
                parts = [self.coefficient(term.coefficient, side, labels), expected]
                found.append(contract(parts, {_WIDTH: segment.size}))
        return add(found)

    def coefficient(self, known: Known, side: int, labels: Labels) -> Field:
        array = self.known(known, side)
        return Field.of(array, (*labels, _WIDTH)) if known.shape else Field(array)

    def over_positions(self, known: Known, side: int, labels: Labels) -> Field:
        """A Known number or array over positions."""
        array = jnp.asarray(self.known(known, side), self.dtype)
        return Field.of(array, labels) if known.shape else Field(array)

    # Queries on leaves

    def query(self, what: str, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]) -> Field | None:
        """K: E[a b], or Θ: Σ_p η_p ∂_p a ∂_p b; leaves with their sides and a label for each axis of positions."""
        if a[0].roots.isdisjoint(b[0].roots):
            return None
        for first, second in ((a, b), (b, a)):
            names: dict[int, int] = {}
            for label in (*first[2], *second[2]):
                names.setdefault(label, len(names))
            there = tuple(names[label] for label in second[2])
            key = (what, first[0], first[1], second[0], second[1], there)
            if key in self.memo:
                found: Field | None = self.memo[key]
                break
        else:
            names = {}
            for label in (*a[2], *b[2]):
                names.setdefault(label, len(names))
            mine, there = tuple(range(len(a[2]))), tuple(names[label] for label in b[2])
            found = self._pair(what == "Θ", (a[0], a[1], mine), (b[0], b[1], there))
            self.memo[what, a[0], a[1], b[0], b[1], there] = found
        back = {own: label for label, own in names.items()}
        return None if found is None else found.relabelled(back)

    def _pair(self, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]) -> Field | None:
        # A sum is taken apart first, except beside a map of activations: that one must see the sum's functions whole.
        if (isinstance(a[0], SumLeaf) and b[0].gaussian) or (isinstance(b[0], SumLeaf) and a[0].gaussian):
            return self.pairs(as_segment(a[0]), as_segment(b[0]), (a[1], b[1]), (a[2], b[2]), tangent=tangent)
        functions = [isinstance(leaf, JointLeaf) for leaf, *_ in (a, b)]
        if any(functions) and all(which or leaf.gaussian for which, (leaf, *_) in zip(functions, (a, b), strict=True)):
            return self._functions(tangent, a, b)
        for kind in (StopLeaf, SelectLeaf, MergeLeaf, LinearLeaf):
            if isinstance(a[0], kind):
                return self._view(tangent, a, b)
            if isinstance(b[0], kind):
                return self._view(tangent, b, a)
        if any(functions):
            raise UnsupportedModelError(
                "a function of several Gaussians",
                reason="it meets a depthwise signal or a recurrent state that is made from the same weights",
                advice="Put a dense layer between the two",
                source=a[0].source or b[0].source,
            )
        if isinstance(a[0], CarryLeaf) or isinstance(b[0], CarryLeaf):
            return carried(self, tangent, a, b)
        if isinstance(a[0], CopiesLeaf) or isinstance(b[0], CopiesLeaf):
            return self._copies(tangent, a, b)
        return self._base(tangent, a, b)

    def _functions(self, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]) -> Field | None:
        left, right = (Placed(IDENTITY, leaf, side, labels, labels) for leaf, side, labels in (a, b))
        return joint.tangent(self, [left], [right]) if tangent else joint.expectation(self, [left, right])

    def _view(self, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]) -> Field | None:
        """A rearranged or linearly mapped leaf `a`: ask for what it was made from, then rearrange or map."""
        leaf, side, labels = a
        what = "Θ" if tangent else "K"
        match leaf:
            case StopLeaf():
                return None if tangent else self.query(what, (leaf.leaf, side, labels), b)
            case SelectLeaf():
                own = labels[leaf.axis : leaf.axis + len(leaf.index.shape)]
            case MergeLeaf():
                own = labels[-1:]
            case LinearLeaf():
                maps = leaf.window is not None or leaf.matrix is not None
                own = labels[leaf.axis : leaf.axis + maps]
            case _:
                raise TypeError(type(leaf).__name__)
        if any(label in b[2] for label in own):
            together = self._together(what, a, b, own)
            if together is not None:
                return together[0]
            return self._apart(tangent, a, b, [label for label in own if label in b[2]])
        if isinstance(leaf, LinearLeaf):
            return self._mapped(tangent, leaf, side, labels, b)
        assert isinstance(leaf, SelectLeaf | MergeLeaf)
        inner, restore = self.inner(leaf, side, labels)
        found = self.query(what, (leaf.leaf, side, inner), b)
        return None if found is None else restore(found)

    def inner(self, leaf: SelectLeaf | MergeLeaf, side: int, labels: Labels) -> tuple[Labels, Any]:
        """Labels of what a selection or merger is made from, and the way back."""
        if isinstance(leaf, SelectLeaf):
            label = next(self.fresh)
            own = labels[leaf.axis : leaf.axis + len(leaf.index.shape)]
            inner = (*labels[: leaf.axis], label, *labels[leaf.axis + len(own) :])
            index = self.known(leaf.index, side)
            return inner, lambda found: found.taken(label, index, own)
        new = {axis: next(self.fresh) for axis in leaf.axes}
        rest = iter(labels[:-1])
        inner = tuple(new[axis] if axis in new else next(rest) for axis in range(len(leaf.leaf.space)))
        lengths = [leaf.leaf.space[axis] for axis in leaf.axes]
        return inner, lambda found: found.merged(list(new.values()), lengths, labels[-1])

    def _together(
        self, what: str, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels], own: Labels
    ) -> tuple[Field | None] | None:
        """The diagonal of two leaves that are rearranged alike: rearrange the diagonal."""
        first, second = a[0], b[0]
        if isinstance(first, SelectLeaf) and isinstance(second, SelectLeaf):
            alike = first.index is second.index and (isinstance(first.index, Constant) or a[1] == b[1])
            place = slice(second.axis, second.axis + len(own))
            if not alike or b[2][place] != own:
                return None
            inner, restore = self.inner(first, a[1], a[2])
            there = (*b[2][: second.axis], inner[first.axis], *b[2][second.axis + len(own) :])
        elif isinstance(first, MergeLeaf) and isinstance(second, MergeLeaf):
            lengths = [[leaf.leaf.space[axis] for axis in leaf.axes] for leaf in (first, second)]
            if b[2][-1:] != own or lengths[0] != lengths[1]:
                return None
            inner, restore = self.inner(first, a[1], a[2])
            rest = iter(b[2][:-1])
            places = dict(zip(second.axes, (inner[axis] for axis in first.axes), strict=True))
            there = tuple(places[x] if x in places else next(rest) for x in range(len(second.leaf.space)))
        else:
            return None
        found = self.query(what, (first.leaf, a[1], inner), (second.leaf, b[1], there))
        return (None if found is None else restore(found),)

    def _apart(
        self, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels], shared: Sequence[int]
    ) -> Field | None:
        """A diagonal as that of all pairs of positions."""
        new = {label: next(self.fresh) for label in shared}
        there = tuple(new.get(label, label) for label in b[2])
        found = self._pair(tangent, a, (b[0], b[1], there))
        for label, other in new.items():
            found = None if found is None else found.diagonal(label, other)
        return found

    def _mapped(
        self, tangent: bool, leaf: LinearLeaf, side: int, labels: Labels, b: tuple[Leaf, int, Labels]
    ) -> Field | None:
        inner = self.labels_inside(leaf, labels)
        found = self.pairs(leaf.segment, as_segment(b[0]), (side, b[1]), (inner, b[2]), tangent=tangent)
        return None if found is None else self.apply_map(leaf, side, inner, labels, found)

    def labels_inside(self, leaf: LinearLeaf, labels: Labels) -> Labels:
        """Labels of the signal that a map is applied to."""
        maps = leaf.window is not None or leaf.matrix is not None
        return (*labels[: leaf.axis], next(self.fresh), *labels[leaf.axis + maps :])

    def apply_map(self, leaf: LinearLeaf, side: int, inner: Labels, labels: Labels, found: Field) -> Field:
        axis = leaf.axis
        label, length = inner[axis], leaf.segment.space[axis]
        if leaf.window is not None:
            return found.slid((label,), length, leaf.window).relabelled({label: labels[axis]})
        if leaf.matrix is not None:
            names = (*(inner[i] for i in leaf.batch), labels[axis], label)
            return contract([Field.of(self.known(leaf.matrix, side), names), found], {label: length})
        return found.summed(label, length)

    def _copies(self, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]) -> Field | None:
        first, second = a[0], b[0]
        if _own(first) is not _own(second):
            return None
        if not isinstance(first, CopiesLeaf) or not isinstance(second, CopiesLeaf) or first.length != second.length:
            raise UnsupportedModelError(
                f"the parameter {next(iter(first.roots & second.roots)).name}",
                reason="its units are used as positions in one place and as features in another",
                advice="Use separate layers",
                source=second.source,
            )
        here, there = a[2][-1], b[2][-1]
        what = "Θ" if tangent else "K"
        found = self.query(what, (first.leaf, a[1], a[2][:-1]), (second.leaf, b[1], b[2][:-1]))
        if found is None or here == there:
            return found
        return contract([found, identity(here, there, first.length, self.dtype)], {})

    def _base(self, tangent: bool, a: tuple[Leaf, int, Labels], b: tuple[Leaf, int, Labels]) -> Field | None:
        first, second = a[0], b[0]
        if _own(first) is not _own(second):
            return None
        if isinstance(first, ParameterLeaf) and isinstance(second, ParameterLeaf):
            if first.parameter.noise and a[1] != b[1]:
                return None
            size = first.scale * second.scale * self.size(first.parameter, tangent)
            field = Field(jnp.asarray(size, self.dtype))
            for here, there, length in zip(a[2], b[2], first.space, strict=True):
                if here != there:
                    field = contract([field, identity(here, there, length, self.dtype)], {})
            return field
        if isinstance(first, EmbeddingLeaf) and isinstance(second, EmbeddingLeaf):
            size = first.scale * second.scale * self.size(first.weight, tangent)
            rows = [
                Field.of(self.known(leaf.index, side), labels)
                for leaf, side, labels in ((first, *a[1:]), (second, *b[1:]))
            ]
            labels = tuple(sorted({*rows[0].labels, *rows[1].labels}))
            left, right = (broadcastable(row, labels) for row in rows)
            return Field(jnp.where(left == right, jnp.asarray(size, self.dtype), 0.0), labels)
        assert isinstance(first, WeightLeaf) and isinstance(second, WeightLeaf)
        return weights(self, tangent, (first, *a[1:]), (second, *b[1:]))

    def size(self, parameter: ParameterStatistics, tangent: bool) -> float:
        """An entry's variance, or its learning rate."""
        if not tangent:
            return parameter.variance
        return parameter.rate if self.only is None or parameter in self.only else 0.0

    # Sums of terms

    def pairs(
        self,
        a: Segment,
        b: Segment,
        sides: tuple[int, int],
        labels: tuple[Labels, Labels],
        *,
        tangent: bool,
        gone: dict[int, int] | None = None,
        summed: bool = False,
    ) -> Field | None:
        """E or Θ of every pair of terms with coefficients, at one place or `summed` over the width.

        Labels in `gone`, with their lengths, are summed over as well.
        """
        found = []
        for s in a.terms:
            for t in b.terms:
                value = self._terms(s, t, sides, labels, tangent)
                if value is None:
                    continue
                parts = [
                    self.coefficient(s.coefficient, sides[0], labels[0]),
                    self.coefficient(t.coefficient, sides[1], labels[1]),
                    value,
                ]
                found.append(contract(parts, {**(gone or {}), **({_WIDTH: a.size} if summed else {})}))
        return add(found)

    def _terms(
        self, s: Term, t: Term, sides: tuple[int, int], labels: tuple[Labels, Labels], tangent: bool
    ) -> Field | None:
        left = [Placed.of(factor, sides[0], labels[0]) for factor in s.factors]
        right = [Placed.of(factor, sides[1], labels[1]) for factor in t.factors]
        return self.expectations.pair(left, right, tangent=tangent)


def as_segment(leaf: Leaf) -> Segment:
    return leaf.segment if isinstance(leaf, SumLeaf) else Segment(1, (of_leaf(leaf),), leaf.space)


def _own(leaf: Leaf) -> ParameterStatistics | None:
    """The parameter that a leaf is linear in."""
    while isinstance(leaf, ViewLeaf):
        leaf = leaf.leaf
    if isinstance(leaf, ParameterLeaf):
        return leaf.parameter
    return leaf.weight if isinstance(leaf, WeightLeaf | EmbeddingLeaf) else None
