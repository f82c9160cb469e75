"""Abstract interpretation of a model's jaxpr: every live equation is given a meaning by a rule, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from ..errors import UnsupportedModelError
from ..graph.known import Constant, Known, is_number
from ..graph.signal import (
    DenseLeaf,
    Factor,
    Leaf,
    ParameterLeaf,
    ParameterStatistics,
    Segment,
    Signal,
    SumLeaf,
    Term,
    of_leaf,
)
from .algebra import Algebra
from .custom_derivatives import check_custom_derivative
from .known import may_be_pending
from .source import source_line
from .values import Opaque, ParameterView, Value

Rule = Callable[["Interpreter", "Equation"], Sequence[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register one rule for a family of primitives."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@dataclass(frozen=True)
class Equation:
    """One equation of the program with the values of its operands."""

    jaxpr_equation: jex.JaxprEqn
    operands: tuple[Value, ...]
    source: str | None

    @property
    def name(self) -> str:
        return self.jaxpr_equation.primitive.name

    @property
    def parameters(self) -> dict[str, Any]:
        return self.jaxpr_equation.params

    @property
    def shape(self) -> tuple[int, ...]:
        return self.jaxpr_equation.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]

    def refuse(self, reason: str, advice: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"'{self.name}'", reason=reason, advice=advice, source=self.source)


_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


@dataclass
class Interpreter:
    """Walks a jaxpr and gives every live variable a value."""

    algebra: Algebra = field(default_factory=Algebra)
    roles: dict[ParameterStatistics, int | None] = field(default_factory=dict)
    leaves: dict[tuple[ParameterStatistics, float], ParameterLeaf] = field(default_factory=dict)
    products: dict[Any, DenseLeaf] = field(default_factory=dict)
    averaged: list[tuple[frozenset[Leaf], Equation]] = field(default_factory=list)

    def run(self, jaxpr: jex.ClosedJaxpr, arguments: Sequence[Value], source: str | None = None) -> list[Value]:
        """The values of the jaxpr's outputs."""
        environment: dict[jex.Var, Value] = dict(zip(jaxpr.jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            environment[variable] = constant_value(constant)

        def read(atom: Any) -> Value:
            return constant_value(atom.val) if isinstance(atom, jex.Literal) else environment[atom]

        for equation in _live(jaxpr.jaxpr):
            where = source_line(equation) or source
            operands = tuple(read(atom) for atom in equation.invars)
            results = self._interpret(Equation(equation, operands, where))
            for variable, value in zip(equation.outvars, results, strict=True):
                environment[variable] = value
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    def parameter_segment(self, view: ParameterView, source: str | None) -> Segment:
        """A vector of parameters as a signal: its mean, and a zero-mean leaf that is one wherever it is used."""
        self.claim(view.parameter, None, source)
        leaf = self.leaves.setdefault(
            (view.parameter, view.scale), ParameterLeaf(view.parameter, view.scale, source=source)
        )
        size = int(np.prod(view.shape, dtype=int))
        mean = Constant.of(view.mean.reshape(-1))
        constant = mean if mean.scalar is None else Constant.of(mean.scalar)
        terms = () if is_number(constant, 0.0) else (Term(constant),)
        return Segment(size, (of_leaf(leaf), *terms))

    def dense_leaf(self, view: ParameterView, segments: tuple[Segment, ...], source: str | None) -> DenseLeaf:
        """W s, one leaf wherever the model forms it."""
        key = (view.parameter, view.scale, tuple((segment.size, segment.terms) for segment in segments))
        return self.products.setdefault(key, DenseLeaf(view.parameter, segments, view.scale, source=source))

    def check_averages(self, output: Signal) -> None:
        """The law of large numbers needs a width that grows: the network's outputs do not.

        Raises:
            UnsupportedModelError: some average runs over the outputs themselves.
        """
        finite = frozenset().union(*(width_leaves(segment) for segment in output.segments))
        for leaves, equation in self.averaged:
            if leaves & finite:
                raise equation.refuse(
                    "it sums or averages over the network's own outputs, whose number stays finite",
                    "Put a dense layer after it, or leave the outputs as they are",
                )

    def claim(self, parameter: ParameterStatistics, role: int | None, source: str | None) -> None:
        """Note how a parameter is used: contracted along one of its axes, or (None) entry by entry."""
        if self.roles.setdefault(parameter, role) != role:
            both = role is None or self.roles[parameter] is None
            raise UnsupportedModelError(
                f"the parameter {parameter.name}",
                reason="it is used both as a weight and entry by entry, so that the two are correlated"
                if both
                else "it is used together with its transpose, and their products do not become Gaussian however wide "
                "the layer",
                advice="Use a separate parameter in one of the two places",
                source=source,
            )

    def _interpret(self, equation: Equation) -> Sequence[Value]:
        if equation.name in _INLINED:
            return self._inline(equation)
        for operand in equation.operands:
            if isinstance(operand, Opaque):
                raise equation.refuse(
                    f"it uses {operand.what} in the forward pass",
                    "Trace the model in inference mode, without random keys or state",
                )
        self._check_pending(equation)
        return RULES.get(equation.name, RULES["default"])(self, equation)

    def _check_pending(self, equation: Equation) -> None:
        """A sum over a width is an average only with its 1/width; without it, it is one more Gaussian."""
        known = [operand for operand in equation.operands if isinstance(operand, Known)]
        loose = [k.pending for k in known if k.pending and not k.pending.settled]
        all_known = len(known) == len(equation.operands)
        if loose and not (all_known and may_be_pending(equation.name, known)):
            raise equation.refuse(
                f"it uses a sum over {loose[0].width} units that was not divided by {loose[0].width}; such a sum "
                "stays random however wide the layer",
                "Use jnp.mean, which divides after the sum, or write a contraction as a matrix product",
            )

    def _inline(self, equation: Equation) -> Sequence[Value]:
        inner = equation.parameters[_INLINED[equation.name]]
        closed = inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())
        known = all(isinstance(operand, Known) for operand in equation.operands)
        if equation.name.startswith("custom") and not known:
            check_custom_derivative(equation.jaxpr_equation, closed, equation.source)
        results = self.run(closed, equation.operands, equation.source)
        return [_labelled(value, equation.parameters.get("name")) for value in results]


def width_leaves(segment: Segment) -> frozenset[Leaf]:
    """The leaves that run along a segment's own width, through sums down to weights and parameters."""
    found: set[Leaf] = set()
    stack = [segment]
    while stack:
        for leaf in (leaf for term in stack.pop().terms for leaf in term.leaves):
            if leaf not in found:
                found.add(leaf)
                stack.extend([leaf.segment] if isinstance(leaf, SumLeaf) else [])
    return frozenset(found)


def constant_value(value: Any) -> Value:
    """A constant of the program; a key or another extended type is opaque."""
    if jax.numpy.issubdtype(getattr(value, "dtype", np.asarray(value).dtype), jax.dtypes.extended):
        return Opaque("a random key")
    return Constant.of(value)


def _live(jaxpr: jex.Jaxpr) -> list[jex.JaxprEqn]:
    """The equations that some output depends on, in order."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            live.append(equation)
            needed.update(atom for atom in equation.invars if not isinstance(atom, jex.Literal))
    return live[::-1]


def live_inputs(jaxpr: jex.Jaxpr) -> list[bool]:
    """For each input variable, whether some output depends on it."""
    used = {atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal)}
    for equation in _live(jaxpr):
        used.update(atom for atom in equation.invars if not isinstance(atom, jex.Literal))
    return [variable in used for variable in jaxpr.invars]


def _labelled(value: Value, name: Any) -> Value:
    """Name the activation that a call computed after the call."""
    if not isinstance(value, Signal) or not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        return value

    def rename(term: Term) -> Term:
        factors = tuple(
            factor if factor.function.is_identity else Factor(factor.function.labelled(name), factor.leaf)
            for factor in term.factors
        )
        return Term(term.coefficient, factors)

    def rename_segment(segment: Segment) -> Segment:
        if len(segment.terms) != 1 or len(segment.terms[0].factors) != 1:
            return segment
        return Segment(segment.size, tuple(rename(term) for term in segment.terms))

    return replace(value, segments=tuple(rename_segment(segment) for segment in value.segments))
