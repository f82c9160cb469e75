"""Along which axes a Known array is constant, read from how it was made.

An average over the width, say, is broadcast back over it, or a softmax is the same for all heads; as coefficients of a
signal such arrays must not count as varying along its width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import TypeVar

import numpy as np

from ..graph.known import ELEMENTWISE, Apply, Constant, Known, WidthSum
from ..graph.layout import prefix_products
from . import known as kn

T = TypeVar("T")

_constant: weakref.WeakKeyDictionary[Known, frozenset[int]] = weakref.WeakKeyDictionary()
_parts: weakref.WeakKeyDictionary[Known, frozenset[int]] = weakref.WeakKeyDictionary()


def _found(known: Known, results: weakref.WeakKeyDictionary[Known, T], rule: Callable[[Known], T]) -> T:
    """The result of a rule that needs those of a value's arguments, however long the chain of them."""
    stack = [known]
    while known not in results:
        node = stack[-1]
        missing = [a for a in getattr(node, "arguments", ()) if a not in results] if node not in results else []
        if missing:
            stack.extend(missing)
        else:
            results.setdefault(node, rule(node))
            stack.pop()
    return results[known]


def constant_axes(known: Known) -> frozenset[int]:
    """The axes along which all entries are equal; those of length one are among them."""
    return _found(known, _constant, _constant_axes)


def without(known: Known, axes: Sequence[int]) -> Known:
    """The array with axes along which it is constant cut to length one."""
    for axis in axes:
        known = _cut_to_one(known, axis)
    return known


def _cut_to_one(known: Known, axis: int) -> Known:
    """One entry along a constant axis; pushed through elementwise steps so that less is computed."""
    if known.shape[axis] == 1:
        return known
    if isinstance(known, Apply) and known.operation.name == "broadcast_in_dim":
        source, dimensions = known.arguments[0], known.operation.parameters["broadcast_dimensions"]
        if axis not in dimensions or source.shape[dimensions.index(axis)] == 1:
            shape = tuple(1 if i == axis else n for i, n in enumerate(known.shape))
            operation = kn.operation_of("broadcast_in_dim", shape=shape, broadcast_dimensions=dimensions, sharding=None)
            return kn.apply(operation, (source,), shape)
    if isinstance(known, Apply) and known.operation.name in ELEMENTWISE and known.pending is None:
        arguments = [_cut_to_one(a, axis) if a.shape else a for a in known.arguments]
        return kn.apply(known.operation, arguments, tuple(1 if i == axis else n for i, n in enumerate(known.shape)))
    return kn.cut(known, axis, 0, 1)


def parts_kept(known: Known) -> frozenset[int]:
    """How many parts of a width were kept by each average over the units inside of them that a Known array uses."""
    return _found(known, _parts, _parts_kept)


def _parts_kept(known: Known) -> frozenset[int]:
    found = frozenset[int]().union(*(_parts[argument] for argument in getattr(known, "arguments", ())))
    if isinstance(known, WidthSum) and known.share < 1.0:
        found |= {round(1.0 / known.share)}
    if known.pending is not None and known.pending.parts > 1:
        found |= {known.pending.parts}
    return found


def _constant_axes(known: Known) -> frozenset[int]:
    ones = frozenset(axis for axis, length in enumerate(known.shape) if length == 1)
    if isinstance(known, Constant):
        value = known.value
        firsts = [value.take([0], axis=axis) if value.size else value for axis in range(value.ndim)]
        same = [a for a, first in enumerate(firsts) if np.all((value == first) | ((value != value) & (first != first)))]
        return ones | frozenset(same)
    if not isinstance(known, Apply):
        return ones
    name = known.operation.name
    if name in ELEMENTWISE:
        return ones | _common(known)
    rule = _RULES.get(name)
    return ones | (rule(known) if rule else frozenset())


def _common(known: Apply) -> frozenset[int]:
    axes = frozenset(range(len(known.shape)))
    for argument in known.arguments:
        if argument.shape:
            axes &= constant_axes(argument)
    return axes


def _broadcast(known: Apply) -> frozenset[int]:
    dimensions = known.operation.parameters["broadcast_dimensions"]
    inner = constant_axes(known.arguments[0])
    return frozenset(
        axis for axis in range(len(known.shape)) if axis not in dimensions or dimensions.index(axis) in inner
    )


def _transpose(known: Apply) -> frozenset[int]:
    inner = constant_axes(known.arguments[0])
    return frozenset(i for i, axis in enumerate(known.operation.parameters["permutation"]) if axis in inner)


def _reshape(known: Apply) -> frozenset[int]:
    """Axes that line up, alone or in groups that are constant as a whole."""
    source = known.arguments[0]
    inner = constant_axes(source)
    if not source.shape or not known.shape:
        return frozenset(range(len(known.shape)))
    before, after = prefix_products(source.shape), prefix_products(known.shape)
    constant = []
    for axis, length in enumerate(known.shape):
        start, stop = after[axis] // max(length, 1), after[axis]
        covering = [a for a, n in enumerate(source.shape) if before[a] > start and before[a] // max(n, 1) < stop]
        if all(a in inner for a in covering) and prod(source.shape):
            constant.append(axis)
    return frozenset(constant)


def _reduction(known: Apply) -> frozenset[int]:
    axes = known.operation.parameters["axes"]
    kept = [axis for axis in range(len(known.arguments[0].shape)) if axis not in axes]
    inner = constant_axes(known.arguments[0])
    return frozenset(i for i, axis in enumerate(kept) if axis in inner)


def _along_one_axis(known: Apply) -> frozenset[int]:
    axis = known.operation.parameters.get("axis", known.operation.parameters.get("dimension"))
    return _common(known) - {axis}


def _slice(known: Apply) -> frozenset[int]:
    return constant_axes(known.arguments[0])


def _contraction(known: Apply) -> frozenset[int]:
    (contracting, batch) = known.operation.parameters["dimension_numbers"]
    left, right = known.arguments
    inner_left, inner_right = constant_axes(left), constant_axes(right)
    constant = [a in inner_left and b in inner_right for a, b in zip(*batch, strict=True)]
    for operand, inner, side in ((left, inner_left, 0), (right, inner_right, 1)):
        free = [a for a in range(len(operand.shape)) if a not in (*contracting[side], *batch[side])]
        constant += [a in inner for a in free]
    return frozenset(axis for axis, is_constant in enumerate(constant) if is_constant)


def _squeeze(known: Apply) -> frozenset[int]:
    gone = known.operation.parameters["dimensions"]
    kept = [axis for axis in range(len(known.arguments[0].shape)) if axis not in gone]
    inner = constant_axes(known.arguments[0])
    return frozenset(i for i, axis in enumerate(kept) if axis in inner)


_RULES: dict[str, Callable[[Apply], frozenset[int]]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _reshape,
    "slice": _slice,
    "rev": _slice,
    "stop_gradient": _slice,
    "dot_general": _contraction,
    "concatenate": _along_one_axis,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along_one_axis),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduction),
    **dict.fromkeys(("reduce_and", "reduce_or"), _reduction),
}
