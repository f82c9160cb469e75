"""What the reader of a limit must know about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..graph.graph import Graph
from ..graph.known import Known
from ..graph.signal import JointLeaf, ParameterLeaf, ParameterStatistics, SumLeaf, WeightLeaf


def notes_on(graph: Graph, unused: Sequence[ParameterStatistics]) -> tuple[str, ...]:
    """Remarks on a derived limit, each said once with the names it is true of."""
    subjects: dict[str, dict[str, None]] = {}
    for subject, remark in [*_on_leaves(graph), *_on_widths(graph), *_on_output(graph)]:
        subjects.setdefault(remark, {}).setdefault(subject)
    for parameter in unused:
        subjects.setdefault("does not reach the output", {}).setdefault(parameter.name)
    return tuple(f"{', '.join(names)}: {remark}" for remark, names in subjects.items())


_NARROW = 8
"""A layer this many times narrower than the widest is remarked on."""


def _on_leaves(graph: Graph) -> Iterator[tuple[str, str]]:
    widest = max((leaf.width for leaf in graph.leaves if isinstance(leaf, WeightLeaf)), default=1)
    for leaf in graph.leaves:
        if isinstance(leaf, WeightLeaf):
            yield from _on_weight(leaf)
            if 1 < leaf.width <= widest // _NARROW and not all(segment.is_known for segment in leaf.input):
                yield leaf.weight.name, f"reads only {leaf.width} units; the limit takes all widths as many"
        elif isinstance(leaf, ParameterLeaf) and not leaf.degenerate:
            parameter = leaf.parameter
            if parameter.noise:
                yield parameter.name, "drawn anew for each example; its noise is in the diagonals of K and Θ alone"
            elif parameter.distribution not in ("normal", "constant"):
                yield parameter.name, f"{parameter.distribution}; the limit uses a Gaussian of the same variance"
        elif isinstance(leaf, JointLeaf):
            rule = graph.sampling
            assert rule is not None
            yield (
                "functions of several Gaussians",
                f"by quasi-Monte-Carlo, {rule.replicates} replicates of {rule.points} points; kernel.estimate gives "
                "the standard error",
            )
        elif isinstance(leaf, SumLeaf):
            yield from _on_shrinking_bias(leaf)


def _on_weight(leaf: WeightLeaf) -> Iterator[tuple[str, str]]:
    weight = leaf.weight
    narrow = leaf.width == 1
    varying = [term for segment in leaf.input for term in segment.terms if term.varies or narrow]
    if varying and weight.distribution not in ("normal", "constant"):
        yield (
            weight.name,
            f"{weight.distribution} and applied to the input itself; the limit uses its mean and variance, exact as "
            "the input features grow many",
        )
    if any(term.factors for term in varying):
        yield weight.name, "parameters act on single input features before it; the limit takes the features as many"
    if len(leaf.input) > 1:
        shares = " : ".join(str(segment.size) for segment in leaf.input)
        yield weight.name, f"reads a concatenation; its parts grow in the proportion {shares}"


def _on_shrinking_bias(leaf: SumLeaf) -> Iterator[tuple[str, str]]:
    leaves = [factor.leaf for term in leaf.segment.terms for factor in term.factors]
    variances = [inner.weight.variance for inner in leaves if isinstance(inner, WeightLeaf)]
    for inner in leaves:
        # A normal bias of that variance was chosen by hand; a fan-in rule draws uniformly, like its weight.
        if not isinstance(inner, ParameterLeaf) or inner.degenerate or inner.parameter.distribution == "normal":
            continue
        if np.isclose(inner.parameter.variance, variances, rtol=1e-9).any():
            yield (
                inner.parameter.name,
                "its variance is that of one weight and shrinks with the fan-in; the limit keeps the traced value",
            )


def _on_widths(graph: Graph) -> Iterator[tuple[str, str]]:
    used: dict[Known, None] = {}
    for segment in graph.segments:
        for term in segment.terms:
            for known in (term.coefficient, *(p for factor in term.factors for p in factor.function.parameters)):
                used.setdefault(known)
    for known in used:
        if known.pending is not None and not known.pending.vanishing:
            width = known.pending.width
            yield f"a sum over {width} units", f"used without its 1/{width}; the limit keeps the traced width there"


def _on_output(graph: Graph) -> Iterator[tuple[str, str]]:
    if any(not factor.function.is_identity for term in graph.output.segments[0].terms for factor in term.random):
        yield "the output", "a nonlinear function of a Gaussian; the NNGP is its second moment, the NTK its mean"
