"""From a limit graph to the statements of a fused program, by the rules of the limit's recursion.

Only what has a fused form is lowered; anything else raises `NotFusedError`, and nothing is approximated. The rules are
those of `limit.recursion`, for the two sides of one leaf: K' = σ_w² Σ K, Θ' = η Σ K + σ_w² Σ Θ, duals, and linear maps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from ..graph.elementwise import Elementwise
from ..graph.graph import Graph
from ..graph.known import Constant, Known
from ..graph.signal import (
    Factor,
    Leaf,
    LinearLeaf,
    ParameterLeaf,
    Segment,
    SelectLeaf,
    StopLeaf,
    SumLeaf,
    Term,
    WeightLeaf,
    is_degenerate,
    of_leaf,
)
from ..graph.space import Window
from .carry import carried
from .grids import REARRANGED, Grids, arranged, described
from .program import (
    Dual,
    Inner,
    NotFusedError,
    One,
    Piecewise,
    Pool,
    Program,
    Rule,
    Slide,
    Space,
    Statement,
    Sum,
    Times,
    Total,
    operands,
)

Knowns = tuple[int, ...]
Linear = Mapping[tuple[Knowns, Knowns, int], float]
"""A linear combination of fields: factors by (left quantities, right quantities, field)."""


Rules = Callable[[Elementwise, Elementwise, bool], Rule]
Array = tuple[Known, tuple[int, ...]]
"""A Known array over (*positions, width), with the axes of positions that are taken to be width."""


@dataclass
class Lowering:
    """The statements so far. `rules` says how E[f(u) g(v)], or if True E[f′ g′], is found, or raises NotFusedError."""

    rules: Rules
    statements: list[Statement] = field(default_factory=list)
    spaces: list[Space] = field(default_factory=list)
    arrays: dict[Array, int] = field(default_factory=dict)
    quantities: dict[Known, int] = field(default_factory=dict)
    memo: dict[tuple[Leaf, Leaf], tuple[Linear, Linear]] = field(default_factory=dict)
    places: dict[tuple[Statement, Space], int] = field(default_factory=dict)
    grids: Grids = field(default_factory=Grids)

    def emit(self, statement: Statement, space: Space) -> int:
        key = (statement, space)
        if key not in self.places:
            self._check_grid(statement, space)
            self.places[key] = len(self.statements)
            self.statements.append(statement)
            self.spaces.append(space)
        return self.places[key]

    def _check_grid(self, statement: Statement, space: Space) -> None:
        for grid in (self.spaces[i] for i in operands(statement) if self.statements[i] != One()):
            if isinstance(statement, Sum | Times) and grid != space:
                raise NotFusedError("a signal that is repeated along positions")
            if isinstance(statement, Slide | Pool | Total) and not grid:
                raise NotFusedError("a layer over positions on a signal without any")

    def one(self, space: Space) -> Linear:
        return {((), (), self.emit(One(), space)): 1.0}

    def field_of(self, linear: Linear, space: Space) -> int | None:
        """The combination as one field; None for zero."""
        if not linear:
            return None
        if len(linear) == 1:
            ((left, right, place), factor), *_ = linear.items()
            if factor == 1.0 and not left and not right and self.spaces[place] == space:
                return place
        parts = tuple((factor, left, right, place) for (left, right, place), factor in linear.items())
        return self.emit(Sum(parts), space)

    # Leaves

    def query(self, a: Leaf, b: Leaf) -> tuple[Linear, Linear]:
        """(K, Θ) of two leaves, the first of one example and the second of the other."""
        if a.roots.isdisjoint(b.roots):
            return {}, {}
        if (a, b) not in self.memo:
            self.memo[a, b] = self._query(a, b)
        return self.memo[a, b]

    def _query(self, a: Leaf, b: Leaf) -> tuple[Linear, Linear]:
        if isinstance(a, StopLeaf) or isinstance(b, StopLeaf):
            inner = (x.leaf if isinstance(x, StopLeaf) else x for x in (a, b))
            return self.query(*inner)[0], {}
        if isinstance(a, SumLeaf) or isinstance(b, SumLeaf):
            if not (a.gaussian and b.gaussian):
                raise NotFusedError("a sum that meets a map of activations")
            pair = self.pairs(_segment(a), _segment(b))
            sealed = (self.field_of(part, self.grids.of(a)) for part in pair)
            k, theta = ({} if place is None else {((), (), place): 1.0} for place in sealed)
            return k, theta
        if a is not b:
            raise NotFusedError("a weight that is used twice")
        match a:
            case WeightLeaf():
                return self.weight(a)
            case LinearLeaf():
                return self.pooled(a)
            case SelectLeaf():
                return self.selected(a)
            case ParameterLeaf(parameter=parameter):
                if parameter.noise or a.space:
                    raise NotFusedError("dropout" if parameter.noise else "a parameter with positions of its own")
                sizes = parameter.variance * a.scale**2, parameter.rate * a.scale**2
                k, theta = (_scaled(self.one(()), size) for size in sizes)
                return k, theta
        raise NotFusedError(described(a))

    def weight(self, leaf: WeightLeaf) -> tuple[Linear, Linear]:
        if leaf.depthwise or leaf.unshared:
            raise NotFusedError("a depthwise convolution" if leaf.depthwise else "a locally connected layer")
        weight, scale = leaf.weight, leaf.scale**2
        k, theta = self._summed(leaf)
        k, theta = (_scaled(part, scale / leaf.groups) for part in (k, theta))
        moment = _scaled(k, weight.variance)
        rate = 0.0 if leaf.stopped else weight.rate
        tangent = _added(_scaled(k, rate), _scaled(theta, weight.variance))
        return moment, tangent

    def _summed(self, leaf: WeightLeaf) -> tuple[Linear, Linear]:
        """Sums over everything that a weight contracts: the width, all positions, or windows."""
        k: Linear = {}
        theta: Linear = {}
        contracted = leaf.contracted
        folded = bool(contracted) and all(segment.is_known for segment in leaf.input)
        for segment in leaf.input:
            first, second = self.pairs(segment, segment, width=contracted if folded else ())
            k, theta = _added(k, first), _added(theta, second)
        if contracted and not folded:
            if leaf.space:
                raise NotFusedError("a weight that contracts some axes of positions and not others")
            return self._moved((k, theta), self.grids.of(leaf.input[0]), lambda i: Total(i, True), ())
        lengths = leaf.input[0].space
        windows = {axis: _plain(window, lengths[axis]) for axis, window in leaf.windows}
        if all(window.is_trivial for window in windows.values()):
            return k, theta
        axes = self.grids.axes(leaf)
        kept = [axis for axis in range(len(lengths)) if axis not in contracted]
        slides = arranged(axes, [windows.get(axis, Window(1)) for axis in kept], Window(1))
        before = arranged(axes, [lengths[axis] for axis in kept], 1)
        return self._moved((k, theta), before, lambda i: Slide(i, slides), self.grids.of(leaf))

    def _moved(
        self, pair: tuple[Linear, Linear], space: Space, statement: Callable[[int], Statement], after: Space
    ) -> tuple[Linear, Linear]:
        """A linear map of positions applied to K and Θ; a common factor is left outside."""
        moved: list[Linear] = []
        for linear in pair:
            factor = next(iter(linear.values()), 0.0)
            place = self.field_of({key: value / factor for key, value in linear.items()}, space)
            moved.append({} if place is None else {((), (), self.emit(statement(place), after)): factor})
        return moved[0], moved[1]

    def pooled(self, leaf: LinearLeaf) -> tuple[Linear, Linear]:
        """A chain of maps along different axes, as one map."""
        if leaf.matrix is not None:
            raise NotFusedError("a matrix over positions")
        chain, inner = [leaf], leaf.segment
        while (within := _map_inside(inner, chain)) is not None:
            chain.append(within)
            inner = within.segment
        before = self.grids.of(inner)
        k, theta = self.pairs(inner, inner)
        if leaf.window is None:
            if len(chain) != len(inner.space):
                raise NotFusedError("a sum over some axes of positions and not others")
            return self._moved((k, theta), before, lambda i: Total(i, False), ())
        windows = [Window(1)] * len(inner.space)
        for link in chain:
            assert link.window is not None
            windows[link.axis] = _plain(link.window, inner.space[link.axis])
        if all(window.is_trivial for window in windows):
            return k, theta
        chosen = arranged(self.grids.axes(inner), windows, Window(1))
        return self._moved((k, theta), before, lambda i: Pool(i, chosen), self.grids.of(leaf))

    def selected(self, leaf: SelectLeaf) -> tuple[Linear, Linear]:
        """The only position along an axis: nothing moves, unless it is the last axis."""
        if leaf.index.shape or leaf.leaf.space[leaf.axis] != 1:
            raise NotFusedError("chosen positions")
        k, theta = self.query(leaf.leaf, leaf.leaf)
        grid = self.grids.of(leaf.leaf)
        if leaf.space or all(self.spaces[i] != grid for part in (k, theta) for *_, i in part):
            return k, theta
        return self._moved((k, theta), grid, lambda i: Total(i, True), ())

    # Sums of terms

    def pairs(self, a: Segment, b: Segment, *, width: tuple[int, ...] | None = None) -> tuple[Linear, Linear]:
        """Every pair of terms with its coefficients; summed over the width and these axes unless `width` is None."""
        k: Linear = {}
        theta: Linear = {}
        if a is not b and self.grids.axes(a) != self.grids.axes(b):
            raise NotFusedError(REARRANGED)
        placed = any(factor.leaf.space for term in a.terms for factor in term.factors)
        grid = self.grids.of(a) if placed else ()
        for s in a.terms:
            for t in b.terms:
                if not s.factors or not t.factors:
                    k = _added(k, self._known(s, t, a, width))
                    continue
                size = 1.0 if width is None else float(a.size)
                (f, left), (g, right) = self._coefficient(s), self._coefficient(t)
                first, second = self._terms(s, t, grid)
                if (left or right) and not self.grids.ordered(a):
                    raise NotFusedError(REARRANGED)
                k = _added(k, _scaled(first, size * f * g, left, right))
                theta = _added(theta, _scaled(second, size * f * g, left, right))
        return k, theta

    def _known(self, s: Term, t: Term, segment: Segment, width: tuple[int, ...] | None) -> Linear:
        if s.factors or t.factors:
            others = (*s.factors, *t.factors)
            if len(others) == 1 and others[0].function.is_identity and others[0].leaf.gaussian:
                return {}
            raise NotFusedError("a constant beside a random signal")
        if width is None:
            raise NotFusedError("a constant output")
        if not self.grids.ordered(segment, width):
            raise NotFusedError(REARRANGED)
        left, right = (self._array(term.coefficient, segment, width) for term in (s, t))
        kept = [axis for axis in range(len(segment.space)) if axis not in width]
        space = arranged(self.grids.kept(segment, width), [segment.space[axis] for axis in kept], 1)
        return {((), (), self.emit(Inner(left, right), space)): 1.0}

    def _array(self, known: Known, segment: Segment, width: tuple[int, ...]) -> int:
        if known.shape != (*segment.space, segment.size):
            raise NotFusedError("an input that is constant along some axes")
        return self.arrays.setdefault((known, width), len(self.arrays))

    def _coefficient(self, term: Term) -> tuple[float, Knowns]:
        known = term.coefficient
        if isinstance(known, Constant) and known.scalar is not None:
            return known.scalar, ()
        if term.varies or (known.shape and any(length == 1 for length in known.shape[:-1])):
            raise NotFusedError("a coefficient that differs along the width")
        return 1.0, (self.quantities.setdefault(known, len(self.quantities)),)

    def _terms(self, s: Term, t: Term, space: Space) -> tuple[Linear, Linear]:
        """E[s t'] and Θ(s, t')."""
        k: Linear = {}
        if not any(is_degenerate(factor.leaf) for factor in (*s.factors, *t.factors)):
            k = self._expectation(list(s.factors), list(t.factors), space)
        theta: Linear = {}
        for f in s.factors:
            for g in t.factors:
                if f.leaf.roots.isdisjoint(g.leaf.roots) or _stopped(f) or _stopped(g):
                    continue
                rest = [x for x in s.factors if x is not f], [x for x in t.factors if x is not g]
                if any(is_degenerate(x.leaf) for part in rest for x in part):
                    continue
                theta = _added(theta, self._tangent(f, g, rest[0], rest[1], space))
        return k, theta

    def _tangent(self, f: Factor, g: Factor, left: list[Factor], right: list[Factor], space: Space) -> Linear:
        theta = self.query(f.leaf, g.leaf)[1]
        if not left and not right:
            if f.function.is_identity and g.function.is_identity:
                return theta
            slopes = self._dual(f, g, True)
        else:
            if not (is_degenerate(f.leaf) and is_degenerate(g.leaf)):
                raise NotFusedError("a product of random signals")
            slopes = self._expectation(left, right, space)
        return self._product(slopes, theta, space)

    def _product(self, first: Linear, second: Linear, space: Space) -> Linear:
        if not first or not second:
            return {}
        for one, other in ((first, second), (second, first)):
            number = self._number(one)
            if number is not None:
                return _scaled(other, number)
        left, right = self.field_of(first, space), self.field_of(second, space)
        assert left is not None and right is not None
        return {((), (), self.emit(Times(left, right), space)): 1.0}

    def _number(self, linear: Linear) -> float | None:
        """The number that a combination is everywhere, if it is one."""
        if all(not left and not right and self.statements[i] == One() for left, right, i in linear):
            return sum(linear.values())
        return None

    def _expectation(self, left: list[Factor], right: list[Factor], space: Space) -> Linear:
        if len(left) != 1 or len(right) != 1:
            raise NotFusedError("a product of random signals")
        f, g = left[0], right[0]
        if f.leaf.roots.isdisjoint(g.leaf.roots):
            if any(x.function.is_identity and x.leaf.gaussian for x in (f, g)):
                return {}
            raise NotFusedError("means of two independent activations")
        if f.function.is_identity and g.function.is_identity:
            return self.query(f.leaf, g.leaf)[0]
        return self._dual(f, g, False)

    def _dual(self, f: Factor, g: Factor, slopes: bool) -> Linear:
        u, v = (x.leaf.leaf if isinstance(x.leaf, StopLeaf) else x.leaf for x in (f, g))
        if u is not v or not u.gaussian:
            raise NotFusedError("an expectation of two different signals")
        if f.function.parameters or g.function.parameters:
            raise NotFusedError("an activation with parameters that depend on the input")
        rule = self.rules(f.function, g.function, slopes)
        place = self.field_of(self.query(u, u)[0], self.grids.of(u))
        if place is None:
            raise NotFusedError("an activation of a signal without randomness")
        # Numbers that later sums multiply by anyway cost nothing there.
        number, rule = rule.normalised() if isinstance(rule, Piecewise) else (1.0, rule)
        return {((), (), self.emit(Dual(place, rule), self.grids.of(u))): number}


def lower(graph: Graph, rules: Rules) -> tuple[Program, list[Array], list[Known]]:
    """The program of a graph, the Known arrays its inner products read, and its one-sided Known quantities.

    Raises:
        NotFusedError: some part of the graph has no fused form; it says which.
    """
    if graph.integers or graph.sampling is not None:
        raise NotFusedError("integer inputs" if graph.integers else "a numerical rule")
    if len(graph.output.segments) != 1 or graph.output.segments[0].space:
        raise NotFusedError("an output that keeps positions")
    lowering = Lowering(rules)
    segment = graph.output.segments[0]
    for leaf in graph.leaves:
        # In their order, so that no query goes deep; what is refused here may not be needed.
        with contextlib.suppress(NotFusedError):
            lowering.query(leaf, leaf)
    k, theta = (lowering.field_of(part, ()) for part in lowering.pairs(segment, segment))
    widths = tuple(prod([known.shape[-1], *(known.shape[i] for i in axes)]) for known, axes in lowering.arrays)
    program = Program(tuple(lowering.statements), tuple(lowering.spaces), k, theta, widths, len(lowering.quantities))
    return carried(program), list(lowering.arrays), list(lowering.quantities)


def _segment(leaf: Leaf) -> Segment:
    return leaf.segment if isinstance(leaf, SumLeaf) else Segment(1, (of_leaf(leaf),), leaf.space)


def _map_inside(segment: Segment, chain: list[LinearLeaf]) -> LinearLeaf | None:
    """The map that a chain of sums, or of windows along different axes, is applied to and that continues it."""
    leaf = segment.leaf
    if not isinstance(leaf, LinearLeaf) or leaf.matrix is not None:
        return None
    if (leaf.window is None) != (chain[0].window is None):
        return None
    return leaf if leaf.window is None or all(leaf.axis != link.axis for link in chain) else None


def _plain(window: Window, length: int) -> Window:
    """The window, or the trivial one that does the same on an axis of this length.

    Raises:
        NotFusedError: programs do not have such windows.
    """
    if window.base_dilation != 1 or window.low < 0 or window.high < 0:
        raise NotFusedError("a transposed convolution or a negative padding")
    alone = length == window.output_length(length) == 1
    covered = window.low % window.dilation == 0 and window.low // window.dilation < window.size
    return Window(1) if alone and covered else window


def _stopped(factor: Factor) -> bool:
    return isinstance(factor.leaf, StopLeaf)


def _scaled(linear: Linear, factor: float, left: Knowns = (), right: Knowns = ()) -> Linear:
    if factor == 0.0:
        return {}
    return {
        (tuple(sorted(a + left)), tuple(sorted(b + right)), place): value * factor
        for (a, b, place), value in linear.items()
    }


def _added(first: Linear, second: Linear) -> Linear:
    total = dict(first)
    for key, value in second.items():
        total[key] = total.get(key, 0.0) + value
    return total
