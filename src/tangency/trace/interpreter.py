"""Abstract interpretation of a model's jaxpr: every live equation is given a meaning by a rule, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend import core as jex

from ..errors import InputError, UnsupportedModelError
from ..graph.known import Known
from ..graph.signal import (
    EmbeddingLeaf,
    Factor,
    JointLeaf,
    Leaf,
    LinearLeaf,
    ParameterLeaf,
    ParameterStatistics,
    Segment,
    Signal,
    SumLeaf,
    Term,
    ViewLeaf,
    WeightLeaf,
)
from . import known as kn
from .algebra import Algebra
from .custom_derivatives import check_custom_derivative
from .equations import closed
from .joint import joint
from .known import may_be_pending
from .randomness import keys, mask
from .reroll import rerolled
from .source import source_line
from .values import Opaque, ParameterView, Value

Rule = Callable[["Interpreter", "Equation"], Sequence[Value]]
RULES: dict[str, Rule] = {}

L = TypeVar("L", bound=Leaf)


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


INLINED = {
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
    """Walks a jaxpr and gives every live variable a value.

    `numerical` allows functions of several Gaussians, whose expectations have no closed rule.
    """

    numerical: bool = False
    algebra: Algebra = field(default_factory=Algebra)
    roles: dict[ParameterStatistics, Any] = field(default_factory=dict)
    averaged: list[tuple[frozenset[Leaf], Equation]] = field(default_factory=list)
    keys: dict[Any, Opaque] = field(default_factory=dict)
    masks: dict[Any, ParameterView] = field(default_factory=dict)
    _leaves: dict[Any, Any] = field(default_factory=dict)
    _pieces: dict[Any, ParameterStatistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.numerical:
            self.algebra.joint = partial(joint, self)

    def run(self, jaxpr: jex.ClosedJaxpr, arguments: Sequence[Value], source: str | None = None) -> list[Value]:
        """The values of the jaxpr's outputs."""
        equations = _live(jaxpr.jaxpr)
        together = rerolled(jaxpr, equations)
        if together is not None:
            found = self.attempt(lambda: self._walk(together, _live(together.jaxpr), arguments, source))
            if found is not None:
                return found
        return self._walk(jaxpr, equations, arguments, source)

    def attempt(self, run: Callable[[], list[Value]]) -> list[Value] | None:
        """Steps seen all at once; None, and no trace left, where they must be followed one by one."""
        before = dict(self.roles), len(self.averaged)
        try:
            return run()
        except UnsupportedModelError:
            self.roles = before[0]
            del self.averaged[before[1] :]
            return None

    def _walk(
        self,
        jaxpr: jex.ClosedJaxpr,
        equations: Sequence[jex.JaxprEqn],
        arguments: Sequence[Value],
        source: str | None,
    ) -> list[Value]:
        environment: dict[jex.Var, Value] = dict(zip(jaxpr.jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            environment[variable] = constant_value(constant)

        def read(atom: Any) -> Value:
            return constant_value(atom.val) if isinstance(atom, jex.Literal) else environment[atom]

        for equation in equations:
            where = source_line(equation) or source
            operands = tuple(read(atom) for atom in equation.invars)
            results = self._interpret(Equation(equation, operands, where))
            for variable, value in zip(equation.outvars, results, strict=True):
                environment[variable] = value
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    def interned(self, leaf: L) -> L:
        """The one leaf of its kind and parts, wherever the model forms it."""
        parts = tuple(_identity(getattr(leaf, part.name)) for part in fields(leaf) if part.name != "source")
        return self._leaves.setdefault((type(leaf), parts), leaf)

    def piece(self, whole: ParameterStatistics, axis: int, start: int, stop: int, length: int) -> ParameterStatistics:
        """Entries start … stop − 1 along one axis of a parameter: a parameter of its own. Axis −1: its units."""
        if (start, stop) == (0, length):
            return whole
        key = (whole, axis, start, stop)
        if key not in self._pieces:
            where = "units " if axis < 0 else ":, " * axis
            ends = f"{start}" if stop == start + 1 else f"{start}:{stop}"
            name = f"{whole.name}[{where}{ends}]"
            shape = tuple(stop - start if i == axis else n for i, n in enumerate(whole.shape))
            self._pieces[key] = replace(whole, name=name, shape=shape, whole=whole, interval=(axis, start, stop))
        return self._pieces[key]

    def piece_of(self, segment: Segment, start: int, stop: int, equation: Equation) -> Segment:
        """A stretch of the width, whose units have parameters of their own."""
        terms = []
        for term in segment.terms:
            coefficient = term.coefficient
            if term.varies:
                coefficient = kn.cut(coefficient, len(coefficient.shape) - 1, start, stop)
            factors = tuple(
                Factor(f.function, self._piece_of_leaf(f.leaf, start, stop, segment.size, equation), f.axes)
                for f in term.factors
            )
            terms.append(Term(coefficient, factors))
        return Segment(stop - start, tuple(terms), segment.space)

    def _piece_of_leaf(self, leaf: Leaf, start: int, stop: int, size: int, equation: Equation) -> Leaf:
        def inner(segment: Segment) -> Segment:
            return self.piece_of(replace(segment, size=size), start, stop, equation)

        match leaf:
            case ParameterLeaf():
                piece = self.piece(leaf.parameter, -1, start, stop, size)
                return self.interned(replace(leaf, parameter=piece))
            case EmbeddingLeaf() | WeightLeaf(gaussian=True):
                return self.interned(replace(leaf, weight=self.piece(leaf.weight, -1, start, stop, size)))
            case SumLeaf() | LinearLeaf():
                return self.interned(replace(leaf, segment=inner(leaf.segment)))
            case JointLeaf():
                return self.interned(replace(leaf, operands=tuple(map(inner, leaf.operands))))
            case ViewLeaf():
                return self.interned(replace(leaf, leaf=self._piece_of_leaf(leaf.leaf, start, stop, size, equation)))
        raise equation.refuse("it splits the units of a depthwise convolution", "Split before the convolution")

    def refusal(self, reason: str, advice: str, source: str | None) -> UnsupportedModelError:
        return UnsupportedModelError("the model", reason=reason, advice=advice, source=source)

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

    def claim(self, parameter: ParameterStatistics, role: Any, source: str | None) -> None:
        """Note how a parameter is used: ("weight", axes contracted), ("rows",) or ("entries", …)."""
        known = self.roles.setdefault(parameter, role)
        if known == role:
            return
        kinds = {known[0], role[0]}
        if kinds == {"weight"}:
            reason = (
                "it is used together with its transpose, and their products do not become Gaussian however wide the "
                "layer"
            )
        elif len(kinds) == 2:
            what = {"weight": "as a weight", "rows": "as an embedding", "entries": "entry by entry"}
            first, second = (what[kind] for kind in sorted(kinds, key=["weight", "rows", "entries"].index))
            reason = f"it is used both {first} and {second}, so that the two are correlated"
        else:
            reason = "its entries are used along different axes in two places"
        raise UnsupportedModelError(
            f"the parameter {parameter.name}",
            reason=reason,
            advice="Use a separate parameter in one of the two places",
            source=source,
        )

    def check_pieces(self, leaves: Sequence[Leaf]) -> None:
        """Pieces of one parameter must be disjoint or the same.

        Raises:
            UnsupportedModelError: two different pieces share entries.
        """
        boxes: dict[ParameterStatistics, list[tuple[ParameterStatistics, dict[int, tuple[int, int]]]]] = {}
        sources = {root: leaf.source for leaf in reversed(leaves) for root in leaf.roots}
        for root in sources:
            whole, box = _box(root)
            for other, there in boxes.setdefault(whole, []):
                if not any(box[a][0] >= there[a][1] or there[a][0] >= box[a][1] for a in box.keys() & there.keys()):
                    raise UnsupportedModelError(
                        f"the parameter {whole.name}",
                        reason=f"its pieces {other.name} and {root.name} share entries, so that the two are correlated",
                        advice="Cut it into disjoint pieces, or use a separate parameter for each",
                        source=sources[root] or sources[other],
                    )
            boxes[whole].append((root, box))

    def _interpret(self, equation: Equation) -> Sequence[Value]:
        if equation.name in INLINED:
            drawn = mask(self, equation)
            return self._inline(equation) if drawn is None else [drawn]
        for operand in equation.operands:
            if isinstance(operand, Opaque):
                made = keys(self, equation)
                if made is not None:
                    return made
                raise equation.refuse(
                    f"it uses {operand.what} in the forward pass",
                    "Of random draws only dropout has a rule (jax.random.bernoulli); trace the model in inference mode",
                )
        self._check_pending(equation)
        results = RULES.get(equation.name, RULES["default"])(self, equation)
        for result in results:
            if isinstance(result, Signal) and 0 in result.shape:
                raise equation.refuse(
                    f"its result, of shape {result.shape}, is empty",
                    "Use larger inputs, or fewer layers that shrink them",
                )
        return results

    def _check_pending(self, equation: Equation) -> None:
        """A sum over a width is an average only with its 1/width; without it, it is one more Gaussian."""
        known = [operand for operand in equation.operands if isinstance(operand, Known)]
        loose = [k.pending for k in known if k.pending and not k.pending.settled]
        all_known = len(known) == len(equation.operands)
        if loose and not (all_known and may_be_pending(equation.name, known)):
            raise equation.refuse(
                f"it uses a sum over {loose[0].width} units that was not divided by {loose[0].width}; such a sum "
                "stays random however wide the layer",
                "Divide by the number of units (attention scores by 1/d, not 1/√d), use jnp.mean, or write a "
                "contraction as a matrix product",
            )

    def _inline(self, equation: Equation) -> Sequence[Value]:
        inner = equation.parameters[INLINED[equation.name]]
        program = closed(inner)
        known = all(isinstance(operand, Known) for operand in equation.operands)
        if equation.name.startswith("custom") and not known:
            constants = {i: o.value for i, o in enumerate(equation.operands) if isinstance(o, kn.Constant)}
            check_custom_derivative(equation.jaxpr_equation, program, constants, equation.source)
        results = self.run(program, equation.operands, equation.source)
        return [_labelled(value, equation.parameters.get("name")) for value in results]


def width_leaves(segment: Segment) -> frozenset[Leaf]:
    """The leaves that run along a segment's own width, through sums and views down to weights and parameters."""
    found: set[Leaf] = set()
    stack = list(dict.fromkeys(leaf for term in segment.terms for leaf in term.leaves))
    while stack:
        leaf = stack.pop()
        if leaf not in found:
            found.add(leaf)
            stack.extend(leaf.bases)
            if isinstance(leaf, SumLeaf | LinearLeaf | JointLeaf):
                stack.extend(inner for segment in leaf.inputs for term in segment.terms for inner in term.leaves)
    return frozenset(found)


def _identity(part: Any) -> Any:
    """Segments by what they are; everything else by its own equality."""
    if isinstance(part, Segment):
        return part.size, part.space, part.terms
    if isinstance(part, tuple):
        return tuple(_identity(entry) for entry in part)
    return part


def _box(parameter: ParameterStatistics) -> tuple[ParameterStatistics, dict[int, tuple[int, int]]]:
    """The parameter that this is a piece of, and the interval of each axis that was cut."""
    box: dict[int, tuple[int, int]] = {}
    while parameter.whole is not None and parameter.interval is not None:
        axis, start, stop = parameter.interval
        inner = box.get(axis, (0, stop - start))
        box[axis] = (start + inner[0], start + inner[1])
        parameter = parameter.whole
    return parameter, box


def constant_value(value: Any) -> Value:
    """A constant of the program; a key or another extended type is opaque."""
    if jax.numpy.issubdtype(getattr(value, "dtype", np.float64), jax.dtypes.extended):
        return Opaque("a random key")
    try:
        value = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        raise InputError(
            f"model: it uses an array of shape {np.shape(value)} that is not part of the network that the function "
            "returned (a layer in a closure?); make it a field of the network"
        ) from None
    return kn.constant(value)


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
            factor if factor.function.is_identity else replace(factor, function=factor.function.labelled(name))
            for factor in term.factors
        )
        return Term(term.coefficient, factors)

    def rename_segment(segment: Segment) -> Segment:
        if len(segment.terms) != 1 or len(segment.terms[0].factors) != 1:
            return segment
        return replace(segment, terms=tuple(rename(term) for term in segment.terms))

    return replace(value, segments=tuple(rename_segment(segment) for segment in value.segments))
