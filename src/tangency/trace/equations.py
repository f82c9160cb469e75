"""Equations of a program as functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from jax.extend import core as jex

PROGRAM = (jex.ClosedJaxpr, jex.Jaxpr)


def taken(equation: jex.JaxprEqn) -> list[jex.Var]:
    """The variables an equation takes, literals left out."""
    return [atom for atom in equation.invars if isinstance(atom, jex.Var)]


def function_of(
    equations: Sequence[jex.JaxprEqn], inputs: Sequence[jex.Var], outputs: Sequence[jex.Var]
) -> Callable[..., list[Any]]:
    """Some equations of a program as a function of `inputs`, distinct variables that include all they need."""
    effects = frozenset().union(*(equation.effects for equation in equations))
    jaxpr = jex.Jaxpr((), list(inputs), list(outputs), list(equations), effects, _no_names())
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))


def applied(equation: jex.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """What one equation makes of the values of its operands, literals among them."""
    pairs = zip(equation.invars, values, strict=True)
    given = {atom: value for atom, value in pairs if isinstance(atom, jex.Var)}
    return function_of([equation], list(given), equation.outvars)(*given.values())


def closed(program: Any) -> jex.ClosedJaxpr:
    """A program of either kind as one with its constants; from JAX 0.12 on the two are one class."""
    return program if isinstance(program, jex.ClosedJaxpr) else jex.ClosedJaxpr(program, ())


def constants_of(program: jex.ClosedJaxpr) -> list[Any]:
    """The constants of a program and of all programs inside it; its text shows none of them."""
    found = list(program.consts)
    for equation in program.jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values())):
            if isinstance(value, PROGRAM):
                found += constants_of(closed(value))
    return found


def programs_inside(equation: jex.JaxprEqn) -> tuple[int, list[Any]]:
    """How often an equation runs the programs inside it, and those programs."""
    programs = [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    return times, [getattr(v, "jaxpr", v) for v in programs]


def numbers_made(program: Any) -> float:
    """How many numbers all equations of a program make, loops included."""
    total = 0.0
    for equation in program.eqns:
        times, programs = programs_inside(equation)
        total += times * sum(numbers_made(inner) for inner in programs)
        total += sum(prod(getattr(variable.aval, "shape", ())) for variable in equation.outvars)
    return total


@functools.cache
def _no_names() -> Any:
    return jax.make_jaxpr(lambda: ())().jaxpr.debug_info._replace(arg_names=None, result_paths=None)
