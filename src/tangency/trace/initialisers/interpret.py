"""Interpretation of the jaxpr of `key -> parameters`, for the mean and variance of each output."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

from ..._jax import scan_counts
from ..source import source_line
from .concrete import CannotEvaluateError, fold, is_key, known, root_key
from .leaves import InitialiserStatistics, UnresolvedInitialiser, leaf_statistics, shared_draws
from .quadrature import NoFiniteMomentError
from .rules import NoRuleError, joined, known_scalar, random_values
from .values import Known, Unresolved, Value, aval

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = (
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
)
_LONGEST_SCAN = 1024


def initialiser_statistics(
    jaxpr: jex.core.ClosedJaxpr, args: Sequence = ()
) -> tuple[InitialiserStatistics | UnresolvedInitialiser, ...]:
    """Mean and variance of every output of the jaxpr of `key -> flat list of parameter arrays`.

    Args:
        jaxpr: traced with `jax.make_jaxpr` inside `jax.enable_x64(True)`.
        args: concrete values of its inputs. By default each input is a key (typed, or raw `uint32` words) and
            one fixed key stands for it: the statistics do not depend on which, provided that keys differ.

    Keys are evaluated, random numbers are not: the bits drawn from a key become, by the structure of the program and
    not by its names, a uniform variable on [0, 1); later elementwise equations are functions of it, whose moments are
    known in closed form (uniform, normal, truncated normal) or integrated to about 1e-14. A leaf drawn from a constant
    key counts as random. What cannot be derived gives an `UnresolvedInitialiser`, never an exception.

    A leaf that was computed in float32 (or a narrower format) is known only up to the rounding of its constants:
    Flax's variance 1/3 is traced as 0.3333333432674408. Its statistics are those that the author must have meant: the
    simplest variance among rationals p/q and squares of short decimals, of the leaf or of its base variable, that
    lies within four roundings (relative 2^-21 in float32) of the traced one, if there is any; likewise
    for means. Differences of that size are below what the parameters themselves can represent. Formats of 16 bits tell
    fans apart only with the help of the leaf's shape. Leaves computed in
    float64 keep their traced value, and edges moved by one rounding (`nextafter`) count as the edges meant.
    """
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        interpreter = _Interpreter()
        inputs = [_argument(var, args[i] if i < len(args) else None) for i, var in enumerate(jaxpr.jaxpr.invars)]
        outputs = interpreter.run(jaxpr.jaxpr, [_constant(c) for c in jaxpr.consts], inputs)
    sources = {var: source_line(eqn) for eqn in jaxpr.eqns for var in eqn.outvars}
    leaves = [
        leaf_statistics(value, aval(atom).shape, aval(atom).dtype, None if _is_literal(atom) else sources.get(atom))
        for value, atom in zip(outputs, jaxpr.jaxpr.outvars, strict=True)
    ]
    groups = shared_draws([getattr(value, "origins", ()) for value in outputs])
    return tuple(
        replace(leaf, draw=draw)
        if isinstance(leaf, InitialiserStatistics) and leaf.distribution != "constant"
        else leaf
        for leaf, draw in zip(leaves, groups, strict=True)
    )


def _is_literal(atom) -> bool:
    return isinstance(atom, jex.core.Literal)


def _constant(value, dtype=None) -> Value:
    try:
        return known(value, dtype)
    except Exception as error:
        return Unresolved(f"contains a constant that cannot be read ({type(error).__name__})")


def _argument(var, value) -> Value:
    form = aval(var)
    raw = form.dtype == jnp.uint32 and form.shape[-1:] == (2,)
    if value is not None:
        constant = _constant(value)
        return replace(constant, from_key=is_key(form.dtype) or raw) if isinstance(constant, Known) else constant
    shape = form.shape[:-1] if raw else form.shape
    try:
        if raw or is_key(form.dtype):
            key = jax.random.key(0) if raw else root_key(form.dtype)
            keys = jax.random.split(key, shape) if shape else key
            return known(jax.random.key_data(keys) if raw else keys, from_key=True)
    except CannotEvaluateError as error:
        return Unresolved(str(error))
    return Unresolved("depends on an argument whose value is not given")


class _Interpreter:
    def __init__(self):
        self._enclosing: list[str | None] = [None]

    def run(self, jaxpr: jex.core.Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        values: dict = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(atom) -> Value:
            return _constant(atom.val, aval(atom).dtype) if _is_literal(atom) else values[atom]

        for eqn in _needed(jaxpr):
            self._enclosing.append(source_line(eqn) or self._enclosing[-1])
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=True))
            self._enclosing.pop()
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: jex.core.JaxprEqn, inputs: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        try:
            if name in _CALLS:
                return self._call(eqn, inputs)
            if name == "cond":
                branch = self._branch(eqn, inputs)
                if branch is not None:
                    return self.run(branch.jaxpr, [_constant(c) for c in branch.consts], inputs[1:])
            if name == "platform_index":
                return [known(np.int32(0))]
            unresolved = next((value for value in inputs if isinstance(value, Unresolved)), None)
            if unresolved is not None and name != "scan":
                return [unresolved] * len(eqn.outvars)
            known_inputs = [value for value in inputs if isinstance(value, Known)]
            if len(known_inputs) == len(inputs) and not _draws_inside(eqn):
                return list(fold(eqn, known_inputs))
            if name == "scan":
                return self._scan(eqn, inputs)
            return random_values(eqn, inputs)
        except (NoRuleError, CannotEvaluateError) as error:
            reason = str(error)
        except NoFiniteMomentError:
            reason = "has no finite variance, or one that could not be integrated"
        except Exception as error:
            reason = f"applies {name}, which could not be interpreted ({type(error).__name__})"
        return [Unresolved(reason, self._enclosing[-1])] * len(eqn.outvars)

    def _call(self, eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
        body = next(eqn.params[key] for key in _BODIES if key in eqn.params)
        if isinstance(body, jex.core.ClosedJaxpr):
            return self.run(body.jaxpr, [_constant(c) for c in body.consts], inputs)
        return self.run(body, [], inputs)

    def _branch(self, eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> jex.core.ClosedJaxpr | None:
        """The branch taken. Those of a choice between platforms compute the same; the default one is read."""
        branches, platforms = eqn.params["branches"], eqn.params.get("branches_platforms")
        if platforms is not None:
            return branches[platforms.index(None)] if None in platforms else branches[-1]
        index = known_scalar(inputs[0])
        if index is None:
            if isinstance(inputs[0], Unresolved):
                return None
            raise NoRuleError("chooses between branches at random")
        return branches[min(max(int(index), 0), len(branches) - 1)]

    def _scan(self, eqn: jex.core.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
        """Unrolled: every iteration draws numbers of its own."""
        length, (consts, carries) = eqn.params["length"], scan_counts(eqn.params)
        if length > _LONGEST_SCAN:
            raise NoRuleError(f"draws inside a scan of {length} steps")
        if not all(isinstance(value, Known) for value in inputs[consts + carries :]):
            raise NoRuleError("scans over a random draw")
        body, carry = eqn.params["jaxpr"], list(inputs[consts : consts + carries])
        rows: list[list[Value]] = []
        for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
            xs = [replace(x, array=x.array[i]) for x in inputs[consts + carries :] if isinstance(x, Known)]
            outputs = self.run(body.jaxpr, [_constant(c) for c in body.consts], [*inputs[:consts], *carry, *xs])
            carry, row = outputs[:carries], outputs[carries:]
            rows.append(row)
        if eqn.params["reverse"]:
            rows.reverse()
        outvars = zip(zip(*rows, strict=True), eqn.outvars[carries:], strict=True)
        return [*carry, *(self._stacked(parts, aval(var).shape) for parts, var in outvars)]

    def _stacked(self, parts: Sequence[Value], shape: tuple[int, ...]) -> Value:
        unresolved = next((part for part in parts if isinstance(part, Unresolved)), None)
        if unresolved is not None:
            return unresolved
        known_parts = [part for part in parts if isinstance(part, Known)]
        if len(known_parts) == len(parts):
            epsilon, from_key = max(p.epsilon for p in known_parts), any(p.from_key for p in known_parts)
            return Known(np.stack([p.array for p in known_parts]), epsilon, from_key)
        try:
            return joined(parts, shape)
        except NoRuleError as error:
            return Unresolved(str(error), self._enclosing[-1])


def _draws_inside(eqn: jex.core.JaxprEqn) -> bool:
    """Whether the equation, or one nested in it, draws random numbers; then its results are no constants."""
    if eqn.primitive.name in ("random_bits", "random_gamma"):
        return True
    return any(_draws_inside(inner) for body in jex.core.jaxprs_in_params(eqn.params) for inner in body.eqns)


def _needed(jaxpr: jex.core.Jaxpr) -> list[jex.core.JaxprEqn]:
    """The equations that the outputs depend on; a forward pass done to find shapes is not among them."""
    wanted = {atom for atom in jaxpr.outvars if not _is_literal(atom)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if any(var in wanted for var in eqn.outvars):
            kept.append(eqn)
            wanted.update(atom for atom in eqn.invars if not _is_literal(atom))
    return kept[::-1]
