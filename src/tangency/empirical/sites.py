"""Where a parameter meets a signal, y = op(p, a), and what its gradient is made of.

The gradient of an output in p at a site is D = Σ_s a[b, s, i] g[b, s, j]: b runs over entries of p that stay apart
(groups of a convolution, layers of a scan), s over the positions at which p is used, i over what a provides and j over
what the cotangent g of y provides. A lookup y = p[a] is the same with one-hot a. Where p is complex, so is D, and the
gradients of a real output in the parts of p are Re D and −Im D. Where a real p meets complex signals, its gradient is
Re D, a sum over twice as many positions: of the real parts, and of the imaginary ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from .views import Factor, Factors, View, canonical, reshaped

Label = tuple[str, Factor | None]
"""The role of an axis, "b", "s", "i" or "j", and its place in the parameter."""


@dataclass(frozen=True)
class Window:
    """What a filter meets of a padded image [e, groups · c, *space]: images, channels, places; loops come first."""

    image: tuple[int, ...]
    groups: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """How many places the filter is put at along each axis of the image."""
        sides = zip(self.image[-len(self.shape) :], self.shape, self.strides, self.dilation, strict=True)
        return tuple((n - (w - 1) * r - 1) // s + 1 for n, w, s, r in sides)

    @property
    def in_loop(self) -> bool:
        return len(self.image) > len(self.shape) + 2

    def patches(self, image: Any) -> Any:
        """[..., *shape, *positions] of [..., *space]: what each tap of the filter meets."""
        lead, rank = image.shape[: -len(self.shape)], len(self.shape)
        taps = []
        for place in np.ndindex(*self.shape):
            start = [t * r for t, r in zip(place, self.dilation, strict=True)]
            stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, self.positions, self.strides, strict=True)]
            ends = (*(0 for _ in lead), *start), (*lead, *stop)
            taps.append(lax.slice(image, *ends, (*(1 for _ in lead), *self.strides)))
        return jnp.stack(taps, -rank - 1).reshape(*lead, *self.shape, *self.positions)


@dataclass(frozen=True)
class Site:
    """One use of a parameter. `signal` and `cotangent` label the axes of arrays of these shapes, loops included."""

    leaf: int
    probe: tuple[int, ...]
    dtype: Any
    signal_shape: tuple[int, ...]
    signal: tuple[Label, ...]
    cotangent_shape: tuple[int, ...]
    cotangent: tuple[Label, ...]
    table: Factors = ()
    """For a lookup, the factors that one-hot signals run along; the signal then holds row numbers."""
    channels_last: bool = False
    """Whether to arrange the cotangent so however it lies: XLA for the CPU computes convolutions so."""
    gathered: int = 0
    """Multiplications for each example that the signal takes itself, where it is a sum over positions (see `pools`)."""
    window: Window | None = None
    """For a convolution; the signal is then an image, of which the shape above is that of its patches."""
    imaginary: int | None = None
    """The leaf of the imaginary part, if the parameter is complex; `leaf` is then the real part."""
    keeps_image: bool = False
    """Whether an arranged signal is still the image, [b, c, e, *space], whose patches are only formed where needed."""

    @property
    def is_lookup(self) -> bool:
        return bool(self.table)

    @property
    def words(self) -> int:
        """Real numbers in one number of the output."""
        return 2 if jnp.issubdtype(self.dtype, jnp.complexfloating) else 1

    @property
    def takes_real_part(self) -> bool:
        """Whether a real parameter meets complex signals here."""
        return self.imaginary is None and self.words == 2

    @property
    def batch(self) -> Factors:
        return canonical([f for role, f in self.cotangent if role == "b" and f])

    @property
    def inner(self) -> Factors:
        return canonical([*self.table, *(f for role, f in self.signal if role == "i" and f)])

    @property
    def outer(self) -> Factors:
        return canonical([f for role, f in self.cotangent if role == "j" and f])

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The lengths of b, s, i, j."""
        steps = prod(n for n, (role, _) in zip(self.cotangent_shape, self.cotangent, strict=True) if role == "s")
        steps *= 2 if self.takes_real_part and not self.is_lookup else 1
        b, i, j = (prod(size for size, _ in factors) for factors in (self.batch, self.inner, self.outer))
        return b, steps, i, j

    @property
    def is_small(self) -> bool:
        """Whether a position provides a single number, so that the gradient is no larger than the cotangent."""
        return not self.is_lookup and self.window is None and self.sizes[2] == 1

    @property
    def spans(self) -> list[list[int]]:
        """The axes of the cotangent that each axis of the output is made of, those of length one left out."""
        rest = iter([axis for axis, size in enumerate(self.cotangent_shape) if size != 1])
        found: list[list[int]] = []
        for length in self.probe:
            span: list[int] = []
            while length > prod(self.cotangent_shape[axis] for axis in span):
                span.append(next(rest))
            found.append(span)
        return found

    @property
    def signal_order(self) -> str:
        """The roles of the axes of an arranged signal: "bs" for a lookup, "bis" for patches, else as it lies."""
        if self.is_lookup:
            return "bs"
        return "bis" if self.window else _order(self.signal, "i")

    @property
    def cotangent_order(self) -> str:
        """The roles of the axes of an arranged cotangent: "bsj" or "bjs" as it lies."""
        return "bsj" if self.channels_last else _order(self.cotangent, "j")

    @property
    def signal_size(self) -> int:
        """How many numbers of an arranged signal are held."""
        return prod(self.window.image if self.window and self.keeps_image else self.signal_shape)

    def arranged_signal(self, signal: Any) -> Any:
        """One axis for each role of `signal_order`; a lookup's holds row numbers. An image where it is kept."""
        if self.window and self.keeps_image:
            images, channels, *space = self.window.image
            grouped = signal.reshape(images, self.window.groups, channels // self.window.groups, *space)
            return jnp.moveaxis(grouped, 0, 2)
        if self.window:
            signal = self.window.patches(signal)
        return _arranged(signal.reshape(self.signal_shape), self.signal, self.signal_order)

    def arranged_cotangent(self, cotangent: Any) -> Any:
        """One axis for each role of `cotangent_order`."""
        return _arranged(cotangent.reshape(self.cotangent_shape), self.cotangent, self.cotangent_order)


def _order(labels: Sequence[Label], last: str) -> str:
    """Positions last where they are the fastest axis: matrix products then need no copy."""
    roles = [role for role, _ in labels if role in ("s", last)]
    return f"b{last}s" if roles and roles[-1] == "s" and last in roles else f"bs{last}"


def _arranged(array: Any, labels: Sequence[Label], roles: str) -> Any:
    groups = []
    for role in roles:
        axes = [axis for axis, (own, _) in enumerate(labels) if own == role]
        if role != "s":
            axes.sort(key=lambda axis: -labels[axis][1][1])  # pyright: ignore[reportOptionalSubscript]
        groups.append(axes)
    shape = [prod(array.shape[axis] for axis in axes) for axes in groups]
    return jnp.transpose(array, [axis for axes in groups for axis in axes]).reshape(shape)


def site_of(equation: jex.JaxprEqn, operands: Sequence[Any]) -> tuple[Site, Any] | None:
    """The site of an equation with a view among its operands, and its signal; None if there is no rule for it."""
    rule = _RULES.get(equation.primitive.name)
    views = [k for k, operand in enumerate(operands) if isinstance(operand, View)]
    return rule(equation, operands, views[0]) if rule is not None and len(views) == 1 else None


def _built(
    view: View, output: Any, signal: Any, signal_axes: Sequence[Any], output_axes: Sequence[Any], table: Factors = ()
) -> tuple[Site, Any]:
    """A site from what each axis of the signal and of the output is: ("s", length) or (role, factors)."""

    def expanded(axes: Sequence[Any]) -> tuple[list[int], list[Label]]:
        shape: list[int] = []
        labels: list[Label] = []
        for role, content in axes:
            if role == "s":
                shape.append(content)
                labels.append(("s", None))
            else:
                shape.extend(size for size, _ in content)
                labels.extend((role, factor) for factor in content)
        return shape, labels

    signal_shape, signal_labels = expanded(signal_axes)
    output_shape, output_labels = expanded(output_axes)
    shapes = (tuple(signal_shape), tuple(signal_labels), tuple(output_shape), tuple(output_labels))
    return Site(view.leaf, tuple(output.shape), output.dtype, *shapes, table, imaginary=view.imaginary), signal


def in_loop(site: Site, length: int, factor: Factor | None) -> Site:
    """A site of the body of a loop, over all its steps."""
    label: Label = ("s", None) if factor is None else ("b", factor)
    return replace(
        site,
        probe=(length, *site.probe),
        signal_shape=(length, *site.signal_shape),
        signal=(label, *site.signal),
        cotangent_shape=(length, *site.cotangent_shape),
        cotangent=(label, *site.cotangent),
        window=site.window and replace(site.window, image=(length, *site.window.image)),
    )


def _dot_general(equation: jex.JaxprEqn, operands: Sequence[Any], place: int) -> tuple[Site, Any]:
    """y = contraction of a parameter with a signal."""
    contracted, batched = equation.params["dimension_numbers"]
    view, signal = operands[place], operands[1 - place]
    own, other = contracted[place], contracted[1 - place]
    own_batch, other_batch = batched[place], batched[1 - place]
    signal_axes: list[Any] = [("s", length) for length in signal.shape]
    for mine, theirs in zip(own, other, strict=True):
        signal_axes[theirs] = ("i", view.axes[mine])
    for mine, theirs in zip(own_batch, other_batch, strict=True):
        signal_axes[theirs] = ("b", view.axes[mine])
    free = [("j", view.axes[a]) for a in range(len(view.axes)) if a not in own and a not in own_batch]
    rest = [("s", n) for a, n in enumerate(signal.shape) if a not in other and a not in other_batch]
    parts = [free, rest] if place == 0 else [rest, free]
    output_axes = [("b", view.axes[a]) for a in own_batch] + parts[0] + parts[1]
    return _built(view, equation.outvars[0].aval, signal, signal_axes, output_axes)


def _conv(equation: jex.JaxprEqn, operands: Sequence[Any], place: int) -> tuple[Site, Any] | None:
    """y = convolution of a signal with a filter: the signal's patches times the filter."""
    p = equation.params
    output: Any = equation.outvars[0].aval
    if place != 1 or p["batch_group_count"] != 1 or 0 in output.shape or len(output.shape) == 2:
        return None
    image, view = operands
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    spec, kernel, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    filters, features = view.axes[kernel[0]], view.axes[kernel[1]]
    window = [view.value.shape[axis] for axis in kernel[2:]]
    gaps = zip(p["padding"], p["lhs_dilation"], strict=True)
    config = [(0, 0, 0), (0, 0, 0), *((low, high, d - 1) for (low, high), d in gaps)]
    padded = lax.pad(jnp.transpose(image, spec), jnp.zeros((), image.dtype), config)
    met = Window(padded.shape, groups, tuple(window), tuple(p["window_strides"]), tuple(p["rhs_dilation"]))
    examples, positions = len(padded), met.positions
    split = _first_factor(filters, groups)
    if split is None:
        return None
    grouped, rest = split
    signal_axes = [("s", examples), ("b", grouped), ("i", features)]
    signal_axes += [("i", view.axes[axis]) for axis in kernel[2:]] + [("s", length) for length in positions]
    output_axes: list[Any] = [None] * len(out)
    output_axes[out[0]] = [("s", examples)]
    output_axes[out[1]] = [("b", grouped), ("j", rest)]
    for axis, length in zip(out[2:], positions, strict=True):
        output_axes[axis] = [("s", length)]
    # The order of s must be that of the signal: examples, then positions.
    site, _ = _built(view, output, padded, signal_axes, [a for axes in output_axes for a in axes])
    if [out[0], *out[2:]] != sorted([out[0], *out[2:]]):
        return None
    return replace(site, channels_last=True, window=met), padded


def _first_factor(factors: Factors, count: int) -> tuple[Factors, Factors] | None:
    """Factors cut into a first part of `count` entries and the rest."""
    if count == 1:
        return (), factors
    if not factors or factors[0][0] % count:
        return None
    size, stride = factors[0]
    rest = size // count
    inner = ((rest, stride),) if rest > 1 else ()
    return ((count, stride * rest),), (*inner, *factors[1:])


def _gather(equation: jex.JaxprEqn, operands: Sequence[Any], place: int) -> tuple[Site, Any] | None:
    """y = rows of a table."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if place != 0 or len(operands[0].axes) != 2 or numbers.operand_batching_dims:
        return None
    view, indices = operands
    rows, columns = view.value.shape
    if (
        numbers.start_index_map != (0,)
        or numbers.collapsed_slice_dims != (0,)
        or tuple(sizes) != (1, columns)
        or not view.axes[0]
    ):
        return None
    numbers_of_rows = indices[..., 0]
    rank = numbers_of_rows.ndim
    if tuple(numbers.offset_dims) != (rank,):
        return None
    if equation.params["mode"] in (lax.GatherScatterMode.CLIP, None):
        numbers_of_rows = jnp.clip(numbers_of_rows, 0, rows - 1)
    else:
        inside = (numbers_of_rows >= 0) & (numbers_of_rows < rows)
        numbers_of_rows = jnp.where(inside, numbers_of_rows, -1)
    places = [("s", length) for length in numbers_of_rows.shape]
    output_axes = [*places, ("j", view.axes[1])]
    return _built(view, equation.outvars[0].aval, numbers_of_rows, places, output_axes, view.axes[0])


def _add(equation: jex.JaxprEqn, operands: Sequence[Any], place: int) -> tuple[Site, Any] | None:
    """y = a parameter plus a signal of its shape, which is met once for each entry, by 1."""
    view: View = operands[place]
    output: Any = equation.outvars[0].aval
    if view.value.shape != output.shape or view.value.dtype != output.dtype:
        return None
    return _built(view, output, jnp.ones((), output.dtype), [], [("j", axis) for axis in view.axes])


_RULES = {"add": _add, "conv_general_dilated": _conv, "dot_general": _dot_general, "gather": _gather}


def joined(views: Sequence[View], value: Any, pairs: frozenset[tuple[int, int]]) -> View | None:
    """The view of a complex parameter, from those of its parts; None if they are not parts of one."""
    real, imaginary = views
    if (real.leaf, imaginary.leaf) not in pairs or (real.axes, real.loops) != (imaginary.axes, imaginary.loops):
        return None
    return replace(real, value=value, imaginary=imaginary.leaf)


def is_site(equation: jex.JaxprEqn) -> bool:
    """Whether there is a rule for an equation itself, rather than for what is inside it."""
    return equation.primitive.name in _RULES


def rearranged(equation: jex.JaxprEqn, view: View, value: Any) -> View | None:
    """The view after an equation that only moves entries; None for any other."""
    p, name = equation.params, equation.primitive.name
    if name == "transpose":
        return view.seen(tuple(view.axes[axis] for axis in p["permutation"]), value)
    if name in ("reshape", "squeeze", "expand_dims"):
        axes = reshaped(view.axes, value.shape) if p.get("dimensions") is None or name != "reshape" else None
        return None if axes is None else view.seen(axes, value)
    if name == "broadcast_in_dim" and value.size == view.value.size:
        axes: Any = [()] * value.ndim
        for own, target in enumerate(p["broadcast_dimensions"]):
            axes[target] = view.axes[own]
        return view.seen(tuple(axes), value)
    kind = jnp.inexact if view.imaginary is None else jnp.complexfloating
    if name in ("copy", "copy_p") or (name == "convert_element_type" and jnp.issubdtype(value.dtype, kind)):
        return view.seen(view.axes, value)
    return None
