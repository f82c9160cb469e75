"""Finds the convolutions of a program that XLA computes slowly on a CPU."""

import jax
from jax.extend import core as jex


def slow(program):
    """Those, in loops too, that are not of one group on `[n, positions, c]`."""
    found = []
    for equation in program.jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            rank = equation.invars[0].aval.ndim
            last, p = (0, rank - 1, *range(1, rank - 1)), equation.params
            order = tuple(p["dimension_numbers"])
            groups = p["feature_group_count"], p["batch_group_count"]
            if order != (last, (rank - 1, rank - 2, *range(rank - 2)), last) or groups != (1, 1):
                found.append(equation)
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if isinstance(leaf, jex.ClosedJaxpr | jex.Jaxpr):
                found += slow(leaf if isinstance(leaf, jex.ClosedJaxpr) else jex.ClosedJaxpr(leaf, ()))
    return found
