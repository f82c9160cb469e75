"""The limit graph: what a random network is, as the width grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from .known import Apply, Known, WidthSum
from .sampling import QuasiMonteCarlo
from .signal import Leaf, ParameterStatistics, Segment, Signal


@dataclass(frozen=True, eq=False)
class Graph:
    """A derived network.

    Attributes:
        output: the network's output, a random signal.
        input_shape: shape of one example.
        integers: whether examples are integers (tokens).
        sampling: how expectations without a closed rule are taken; None where they are refused.
        unused: trainable parameters that the output does not depend on.
        notes: what the reader must know about this limit (uniform weights at the first layer, …).
        name: the model's name, for people.
    """

    output: Signal
    input_shape: tuple[int, ...]
    unused: tuple[ParameterStatistics, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = "model"
    integers: bool = False
    sampling: QuasiMonteCarlo | None = None

    def example(self) -> jax.ShapeDtypeStruct:
        """The shape and type of one example."""
        return jax.ShapeDtypeStruct(self.input_shape, jnp.int32 if self.integers else jnp.float64)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every leaf the output needs, each after those it is made from."""
        return tuple(node for node in self.order if isinstance(node, Leaf))

    @cached_property
    def known(self) -> tuple[Known, ...]:
        """Every Known value the output needs, each after those it is made from."""
        return tuple(node for node in self.order if isinstance(node, Known))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Every sum of terms in the graph: those that leaves and averages are made from, and the output's."""
        inner: list[Segment] = []
        for node in self.order:
            inner.extend(node.inputs if isinstance(node, Leaf) else getattr(node, "segments", ()))
        return (*inner, *self.output.segments)

    @cached_property
    def order(self) -> tuple[Leaf | Known, ...]:
        """Every node the output needs, each after those it is made from."""
        order: dict[Leaf | Known, None] = {}
        stack: list[tuple[Leaf | Known, bool]] = [(node, False) for s in self.output.segments for node in nodes(s)]
        stack.reverse()
        seen: set[Leaf | Known] = set()
        while stack:
            node, expanded = stack.pop()
            if expanded:
                order.setdefault(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(list(children(node))) if child not in seen)
        return tuple(order)


def children(node: Leaf | Known) -> Iterator[Leaf | Known]:
    """The nodes that a node is made from."""
    if isinstance(node, Leaf):
        yield from node.bases
        yield from node.indices
        for segment in node.inputs:
            yield from nodes(segment)
    elif isinstance(node, Apply):
        yield from node.arguments
    elif isinstance(node, WidthSum):
        for segment in node.segments:
            yield from nodes(segment)


def nodes(segment: Segment) -> Iterator[Leaf | Known]:
    """The nodes that a segment's terms name."""
    for term in segment.terms:
        yield term.coefficient
        for factor in term.factors:
            yield from factor.function.parameters
            yield factor.leaf
