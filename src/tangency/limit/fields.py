"""Arrays over labelled axes: second moments and tangents between positions.

A label stands for one axis of positions, of one example or shared by both (a moment on the diagonal). Axes are in the
order of their labels; an axis along which nothing varies is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..graph.space import Window, slide

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Field:
    """An array whose axis i carries `labels[i]`; labels ascend."""

    array: Any
    labels: tuple[int, ...] = ()

    @classmethod
    def of(cls, array: Any, labels: Sequence[int]) -> Field:
        """Axes in any order; those of length one are left out."""
        array = jnp.asarray(array)
        long = [axis for axis, length in enumerate(array.shape) if length != 1]
        array = array.reshape([array.shape[axis] for axis in long])
        return cls(array, tuple(labels[axis] for axis in long)).relabelled({})

    def relabelled(self, names: Mapping[int, int]) -> Field:
        labels = [names.get(label, label) for label in self.labels]
        order = sorted(range(len(labels)), key=labels.__getitem__)
        array = self.array if order == list(range(len(order))) else jnp.transpose(self.array, order)
        return Field(array, tuple(labels[axis] for axis in order))

    def spread(self, label: int, length: int) -> Field:
        """With the axis there, repeated if it was left out."""
        if label in self.labels:
            return self
        position = sum(other < label for other in self.labels)
        shape = (*jnp.shape(self.array)[:position], length, *jnp.shape(self.array)[position:])
        array = jnp.broadcast_to(jnp.expand_dims(self.array, position), shape)
        return Field(array, (*self.labels[:position], label, *self.labels[position:]))

    def full(self, labels: Sequence[int], lengths: Sequence[int]) -> jax.Array:
        """The array with exactly these axes."""
        result = self
        for label, length in zip(labels, lengths, strict=True):
            result = result.spread(label, length)
        order = [result.labels.index(label) for label in labels]
        return jnp.transpose(result.array, order)

    def times(self, number: float) -> Field:
        return self if number == 1.0 else Field(self.array * number, self.labels)

    def diagonal(self, keep: int, gone: int) -> Field:
        """Where two labels are at the same place."""
        if gone not in self.labels or keep not in self.labels:
            return self.relabelled({gone: keep})
        first, second = self.labels.index(keep), self.labels.index(gone)
        array = jnp.diagonal(self.array, axis1=first, axis2=second)
        labels = [label for label in self.labels if label not in (keep, gone)]
        return Field(array, (*labels, keep)).relabelled({})

    def summed(self, label: int, length: int) -> Field:
        if label not in self.labels:
            return self.times(float(length))
        labels = tuple(other for other in self.labels if other != label)
        return Field(jnp.sum(self.array, axis=self.labels.index(label)), labels)

    def slid(self, labels: Sequence[int], length: int, window: Window) -> Field:
        """Sums over a window that slides along all these labels at once."""
        result = self
        for label in labels:
            result = result.spread(label, length)
        return Field(slide(result.array, tuple(map(result.labels.index, labels)), window), result.labels)

    def taken(self, label: int, index: jax.Array, new: Sequence[int]) -> Field:
        """Entries along one label by an array of indices with labels of its own."""
        if label not in self.labels:
            return self
        axis = self.labels.index(label)
        array = _take(self.array, index, axis)
        return Field(array, (*self.labels[:axis], *new, *self.labels[axis + 1 :])).relabelled({})

    def merged(self, labels: Sequence[int], lengths: Sequence[int], new: int) -> Field:
        """Several labels as one, in row-major order."""
        if not any(label in self.labels for label in labels):
            return self
        result = self
        for label, length in zip(labels, lengths, strict=True):
            result = result.spread(label, length)
        rest = [label for label in result.labels if label not in labels]
        order = [result.labels.index(label) for label in (*rest, *labels)]
        array = jnp.transpose(result.array, order)
        return Field(array.reshape((*array.shape[: len(rest)], -1)), (*rest, new)).relabelled({})


def _take(array: jax.Array, index: Any, axis: int) -> jax.Array:
    """`jnp.take`; a stretch of constant indices as a slice, which is quicker."""
    return jnp.take(array, index, axis=axis, mode="clip")


def add(fields: Sequence[Field | None]) -> Field | None:
    """The sum of those that are there."""
    total: Field | None = None
    for field in fields:
        if field is not None:
            total = field if total is None else _joined(jnp.add, total, field)
    return total


def multiply(first: Field, second: Field) -> Field:
    return _joined(jnp.multiply, first, second)


def _joined(operation: Any, first: Field, second: Field) -> Field:
    labels = tuple(sorted({*first.labels, *second.labels}))
    return Field(operation(broadcastable(first, labels), broadcastable(second, labels)), labels)


def broadcastable(field: Field, labels: Sequence[int]) -> jax.Array:
    """The array with an axis for each label, of length one where it does not vary."""
    shape = iter(jnp.shape(field.array))
    return jnp.reshape(field.array, [next(shape) if label in field.labels else 1 for label in labels])


def contract(fields: Sequence[Field], gone: Mapping[int, int]) -> Field:
    """The product of fields, summed over labels with their lengths."""
    count = 1.0
    for label, length in gone.items():
        if not any(label in field.labels for field in fields):
            count *= length
    present = sorted({label for field in fields for label in field.labels})
    kept = tuple(label for label in present if label not in gone)
    if len(kept) == len(present):
        product = fields[0]
        for field in fields[1:]:
            product = multiply(product, field)
        return product.times(count)
    names = {label: place for place, label in enumerate(present)}
    operands: list[Any] = []
    for field in fields:
        operands += [jnp.asarray(field.array), [names[label] for label in field.labels]]
    array = jnp.einsum(*operands, [names[label] for label in kept], precision=_HIGHEST)
    return Field(array, kept).times(count)


def identity(first: int, second: int, length: int, dtype: Any) -> Field:
    """1 where two labels are at the same place."""
    return Field.of(jnp.eye(length, dtype=dtype), (first, second))


def lifted(function: Any, operands: Sequence[Field]) -> Field:
    """A function of scalars at every place of its operands; what does not vary is computed once."""
    labels = sorted({label for operand in operands for label in operand.labels})
    for label in reversed(labels):
        function = jax.vmap(function, in_axes=[0 if label in operand.labels else None for operand in operands])
    return Field(function(*(operand.array for operand in operands)), tuple(labels))
