"""Depthwise convolutions written out, tap by tap: sums of products of what each channel has and a number of its own.

A nonlinear function of one is a function of several Gaussians, the filter's numbers among them, and the numerical rule
samples those.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend import core as jex

from ..graph.layout import Width
from ..graph.signal import Signal
from .convolutions import channels_last, in_own_order, over_taps
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
    parameters = equation.parameters
    shapes = [
        jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        for variable in equation.jaxpr_equation.invars
    ]

    def written_out(signal: Any, filters: Any) -> Any:
        return in_own_order(over_taps(*channels_last(signal, filters, parameters), parameters), parameters)

    return jax.make_jaxpr(written_out)(*shapes)
