"""Depthwise convolutions written out, tap by tap: sums of products of what each channel has and a number of its own.

A nonlinear function of one is a function of several Gaussians, the filter's numbers among them, and the numerical rule
samples those.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.extend import core as jex

from ..graph.layout import Width
from ..graph.signal import Signal
from .convolutions import channels_last, in_own_order, over_taps
from .interpreter import Equation
from .values import ParameterView


def is_depthwise(equation: Equation) -> bool:
    """Whether each of a convolution's channels, which run along the width, meets filters of its own."""
    signal, filters = equation.operands
    assert isinstance(filters, ParameterView)
    numbers, groups = equation.parameters["dimension_numbers"], equation.parameters["feature_group_count"]
    channels = numbers.lhs_spec[1]
    return (
        isinstance(signal, Signal)
        and groups > 1
        and signal.shape[channels] == groups
        and all(isinstance(atom, Width) for atom in signal.layout.axes[channels])
    )


def by_taps(equation: Equation) -> jex.ClosedJaxpr:
    """The same convolution as a program of paddings, slices, products and sums."""
    parameters = equation.parameters
    shapes = [
        jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        for variable in equation.jaxpr_equation.invars
    ]

    def written_out(signal: Any, filters: Any) -> Any:
        signal, filters = channels_last(signal, filters, parameters)
        each = filters.shape[-1] // signal.shape[-1]
        if each > 1:
            signal = lax.broadcast_in_dim(signal, (*signal.shape, each), range(signal.ndim))
            signal = lax.reshape(signal, (*signal.shape[:-2], filters.shape[-1]))
        return in_own_order(over_taps(signal, filters, parameters), parameters)

    return jax.make_jaxpr(written_out)(*shapes)
