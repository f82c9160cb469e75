"""Depthwise convolutions written out, tap by tap: sums of products of what each channel has and a number of its own.

A nonlinear function of one is a function of several Gaussians, the filter's numbers among them, and the numerical rule
samples those.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex

from ..graph.layout import Width
from ..graph.signal import Signal
from .interpreter import Equation
from .values import ParameterView


def is_depthwise(equation: Equation) -> bool:
    """Whether a convolution's channels, which run along the width, meet one filter each."""
    signal, filters = equation.operands
    assert isinstance(filters, ParameterView)
    numbers, groups = equation.parameters["dimension_numbers"], equation.parameters["feature_group_count"]
    channels = numbers.lhs_spec[1]
    return (
        isinstance(signal, Signal)
        and groups > 1
        and signal.shape[channels] == groups == filters.shape[numbers.rhs_spec[0]]
        and all(isinstance(atom, Width) for atom in signal.layout.axes[channels])
    )


def by_taps(equation: Equation) -> jex.ClosedJaxpr:
    """The same convolution as a program of paddings, slices, products and sums."""
    p = equation.parameters
    numbers, strides, dilation = p["dimension_numbers"], p["window_strides"], p["rhs_dilation"]
    signal, filters = (
        jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        for variable in equation.jaxpr_equation.invars
    )
    lengths = [equation.shape[axis] for axis in numbers.out_spec[2:]]

    def written_out(h: Any, w: Any) -> Any:
        h, w = lax.transpose(h, numbers.lhs_spec), lax.transpose(w, numbers.rhs_spec)
        edges = [(0, 0, 0)] * 2
        edges += [(low, high, base - 1) for (low, high), base in zip(p["padding"], p["lhs_dilation"], strict=True)]
        h = lax.pad(h, jax.numpy.zeros((), h.dtype), edges)
        total: Any = None
        for tap in product(*map(range, w.shape[2:])):
            starts = [place * step for place, step in zip(tap, dilation, strict=True)]
            ends = [a + (n - 1) * step + 1 for a, n, step in zip(starts, lengths, strides, strict=True)]
            part = lax.slice(h, (0, 0, *starts), (*h.shape[:2], *ends), (1, 1, *strides))
            number = lax.slice(w, (0, 0, *tap), (len(w), 1, *(place + 1 for place in tap)))
            number = number.reshape(1, len(w), *(1 for _ in tap))
            total = number * part if total is None else total + number * part
        back = sorted(range(len(numbers.out_spec)), key=lambda axis: numbers.out_spec[axis])
        return lax.transpose(total, back)

    return jax.make_jaxpr(written_out)(signal, filters)
