"""Weights contracted with signals: sums over a width, over positions, and over windows that slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModelError
from ..graph.signal import WeightLeaf
from .fields import Field, add, contract, identity

if TYPE_CHECKING:
    from .recursion import Recursion

Labels = tuple[int, ...]


def weights(
    recursion: Recursion, tangent: bool, a: tuple[WeightLeaf, int, Labels], b: tuple[WeightLeaf, int, Labels]
) -> Field | None:
    weight, scale = a[0].weight, a[0].scale * b[0].scale
    if not tangent:
        moment = summed(recursion, False, a, b)
        return None if moment is None else moment.times(weight.variance * scale)
    rate, parts = 0.0 if a[0].stopped or b[0].stopped else recursion.size(weight, True), []
    if rate:
        if weight.variance:
            moment = recursion.query("K", a, b)
            parts.append(None if moment is None else moment.times(rate / weight.variance))
        else:
            moment = summed(recursion, False, a, b)
            parts.append(None if moment is None else moment.times(rate * scale))
    inner = summed(recursion, True, a, b)
    parts.append(None if inner is None else inner.times(weight.variance * scale))
    return add(parts)


def summed(
    recursion: Recursion, tangent: bool, a: tuple[WeightLeaf, int, Labels], b: tuple[WeightLeaf, int, Labels]
) -> Field | None:
    """Σ of E[s s'] or Θ(s, s') over everything that a weight contracts."""
    first, second = a[0], b[0]
    _check_alike(first, second)
    here, there = _input_labels(first, a[2]), _input_labels(second, b[2])
    for own, other in zip(first.unshared, second.unshared, strict=True):
        if here[own] != there[other]:
            return _unshared(recursion, tangent, a, b, here[own], there[other], first.input[0].space[own])
    gone: dict[int, int] = {}
    for own, other in zip(first.contracted, second.contracted, strict=True):
        here[own] = there[other] = next(recursion.fresh)
        gone[here[own]] = first.input[0].space[own]
    slides: list[tuple[dict[int, int], int, Any]] = []
    for (own, window), (other, its) in zip(first.windows, second.windows, strict=True):
        length, its_length = first.input[0].space[own], second.input[0].space[other]
        if window.is_trivial and its.is_trivial:
            continue
        left, right = here[own], there[other]
        new = {next(recursion.fresh): left}
        here[own] = next(iter(new))
        if left == right and window == its and length == its_length:
            there[other] = here[own]
        elif right in here.values() or left in there.values() or left == right:
            return _apart(recursion, tangent, a, b)
        else:
            there[other] = next(recursion.fresh)
            new[there[other]] = right
        if window != its or length != its_length:
            raise UnsupportedModelError(
                f"the weight {first.weight.name}",
                reason="it slides over two arrays of different sizes or with different strides",
                advice="Use a weight of its own for each",
                source=second.source,
            )
        slides.append((new, length, window))
    found = []
    labels = tuple(here[axis] for axis in sorted(here)), tuple(there[axis] for axis in sorted(there))
    for s, t in zip(first.input, second.input, strict=True):
        found.append(recursion.pairs(s, t, (a[1], b[1]), labels, tangent=tangent, gone=gone, summed=True))
    moment = add(found)
    if moment is None:
        return None
    for new, length, window in slides:
        moment = moment.slid(tuple(new), length, window).relabelled(new)
    return moment.times(1.0 / first.groups)


def _unshared(
    recursion: Recursion,
    tangent: bool,
    a: tuple[WeightLeaf, int, Labels],
    b: tuple[WeightLeaf, int, Labels],
    here: int,
    there: int,
    length: int,
) -> Field | None:
    """Weights of different positions are independent: zero off the diagonal."""
    if there in a[2] or here in b[2]:
        return _apart(recursion, tangent, a, b)
    same = tuple(here if label == there else label for label in b[2])
    found = summed(recursion, tangent, a, (b[0], b[1], same))
    return None if found is None else contract([found, identity(here, there, length, recursion.dtype)], {})


def _apart(
    recursion: Recursion, tangent: bool, a: tuple[WeightLeaf, int, Labels], b: tuple[WeightLeaf, int, Labels]
) -> Field | None:
    """Diagonals along axes that do not correspond, as those of all pairs of positions."""
    new = {label: next(recursion.fresh) for label in b[2] if label in a[2]}
    found = summed(recursion, tangent, a, (b[0], b[1], tuple(new.get(label, label) for label in b[2])))
    for label, other in new.items():
        found = None if found is None else found.diagonal(label, other)
    return found


def _input_labels(leaf: WeightLeaf, labels: Labels) -> dict[int, int]:
    """For each axis of the input's positions that is not contracted, its label."""
    axes = [axis for axis in range(len(leaf.input[0].space)) if axis not in leaf.contracted]
    return dict(zip(axes, labels, strict=True))


def _check_alike(a: WeightLeaf, b: WeightLeaf) -> None:
    def shape(leaf: WeightLeaf) -> Any:
        space = leaf.input[0].space
        kept = [[space[axis] for axis in axes] for axes in (leaf.contracted, leaf.unshared)]
        return [s.size for s in leaf.input], kept, len(leaf.windows), leaf.groups

    if shape(a) != shape(b):
        raise UnsupportedModelError(
            f"the weight {a.weight.name}",
            reason="it is applied to two signals whose features are put together differently",
            advice="Use separate weights",
            source=b.source,
        )
