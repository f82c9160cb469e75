"""Loops that Python wrote out: equal consecutive steps of a program become one step again.

`rerolled(program)` is a program of the same function in which T equal steps that hand a state on are one equation
`steps`, and T equal computations without a state are one computation with a leading axis. What the steps receive in
turn (slices of one array, the results of earlier steps) becomes one array with that axis, and what is collected from
them (`stack`, `concatenate`, sums in order) is taken from one. Only then can the limit see all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ..errors import UnsupportedModelError
from .custom_derivatives import check_custom_derivative
from .equations import closed, function_of, taken
from .source import source_line

SHORTEST = 6
"""Fewer steps stay as they are."""

Slot: TypeAlias = tuple[int, int]
"""An equation of a step, and one of its results."""

steps_p = jex.Primitive("steps")
steps_p.multiple_results = True


def _scanned(*operands: Any, jaxpr: jex.ClosedJaxpr, num_consts: int, num_carry: int, length: int) -> list[Any]:
    constants, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]

    def step(state: Sequence[Any], entries: Sequence[Any]) -> tuple[Any, Any]:
        results = jex.jaxpr_as_fun(jaxpr)(*constants, *state, *entries)
        return results[:num_carry], results[num_carry:]

    final, stacked = jax.lax.scan(step, list(carry), list(operands[num_consts + num_carry :]), length=length)
    return [*final, *stacked]


def _shapes(*_: Any, jaxpr: jex.ClosedJaxpr, num_consts: int, num_carry: int, length: int) -> list[Any]:
    del num_consts
    outputs = jaxpr.out_avals
    return [*outputs[:num_carry], *(aval.update(shape=(length, *aval.shape)) for aval in outputs[num_carry:])]


steps_p.def_impl(_scanned)
steps_p.def_abstract_eval(_shapes)


def rerolled(program: jex.ClosedJaxpr, equations: Sequence[jex.JaxprEqn]) -> jex.ClosedJaxpr | None:
    """The program with its written-out recurrences as `steps`; None if it has none.

    Args:
        program: any closed jaxpr.
        equations: those of its equations that are needed, in order.
    """
    if len(equations) < SHORTEST or not _may_repeat(equations):
        return None
    blocks = _Search(equations, program.jaxpr.outvars).blocks()
    if not any(block.carried for block in blocks):
        return None
    return jax.make_jaxpr(_Rewritten(program, equations, blocks))(*program.in_avals)


def _may_repeat(equations: Sequence[jex.JaxprEqn]) -> bool:
    """Whether some matrix product, or function with one in it, takes one variable often enough."""
    uses: dict[Any, int] = {}
    for equation in equations:
        if equation.primitive.name in ("dot_general", "conv_general_dilated", "jit", "custom_jvp_call"):
            for atom in taken(equation):
                uses[atom] = uses.get(atom, 0) + 1
    return max(uses.values(), default=0) >= SHORTEST


@dataclass
class _Block:
    """`count` equal steps of `period` equations each, from equation `start` on."""

    start: int
    period: int
    count: int
    shared: list[jex.Var] = field(default_factory=list)
    """What every step takes from outside."""
    varying: list[tuple[jex.Var, ...]] = field(default_factory=list)
    """What each step takes in turn."""
    carried: dict[Slot, Any] = field(default_factory=dict)
    """What a step takes from the one before, and what the first takes in its place."""
    sums: dict[Slot, tuple[Slot | int, Any]] = field(default_factory=dict)
    """Sums over all steps: the terms (an equation's results, or one of `varying`) and the start."""
    sliced: dict[Slot, int] = field(default_factory=dict)
    """Slices of one array that move from step to step: which of `varying` they are."""
    collected: list[Slot] = field(default_factory=list)
    """What is used after the steps."""

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


class _Search:
    """Finds the blocks of a program, first to last."""

    def __init__(self, equations: Sequence[jex.JaxprEqn], outputs: Sequence[Any]) -> None:
        self.equations = equations
        self.made = {v: (g, o) for g, e in enumerate(equations) for o, v in enumerate(e.outvars)}
        self.users: dict[jex.Var, list[int]] = {}
        for g, equation in enumerate(equations):
            for atom in taken(equation):
                self.users.setdefault(atom, []).append(g)
        for atom in outputs:
            if isinstance(atom, jex.Var):
                self.users.setdefault(atom, []).append(len(equations))
        texts: dict[int, str] = {}
        known: dict[Any, int] = {}
        self.signatures = np.array([known.setdefault(_signature(e, texts), len(known)) for e in equations])
        self.lanes: dict[jex.Var, tuple[Any, int]] = {}
        for g, equation in enumerate(equations):
            if _takes_apart(equation):
                self.lanes.update((v, (g, o)) for o, v in enumerate(equation.outvars))

    def blocks(self) -> list[_Block]:
        found: list[_Block] = []
        total, start = len(self.equations), 0
        repeats = {p: _run_lengths(self.signatures, p) for p in range(1, total // SHORTEST + 1)}
        while start < total:
            candidates = ((p, (r[start] + p) // p) for p, r in repeats.items() if start < len(r))
            tried = (self._block(start, p, int(count)) for p, count in candidates if count >= SHORTEST)
            block = next((b for b in tried if b is not None), None)
            if block is None:
                start += 1
                continue
            for i, o in block.collected:
                lanes = ((self._at(block, k, i).outvars[o], k) for k in range(block.count))
                self.lanes.update((variable, ((len(found), i, o), k)) for variable, k in lanes)
            found.append(block)
            start = block.stop
        return found

    def _at(self, block: _Block, step: int, i: int) -> jex.JaxprEqn:
        return self.equations[block.start + step * block.period + i]

    def _block(self, start: int, period: int, count: int) -> _Block | None:
        """The steps, if each takes from outside, from itself and from the one before what the others take."""
        block = _Block(start, period, count)
        for i in range(period):
            column = [self._at(block, k, i) for k in range(count)]
            if len({id(e.params) for e in column}) > 1 and column[0].primitive.name == "slice":
                sources = {v for e in column for v in taken(e)}
                if len({_cut(e) for e in column}) > 1:
                    outer = all(self.made.get(v, (-1, 0))[0] < start for v in sources)
                    if len(sources) > 1 or not outer or _slices(column) is None:
                        return None
                    block.sliced[i, 0] = len(block.varying)
                    block.varying.append(tuple(e.outvars[0] for e in column))
                    continue
            for operands in zip(*(e.invars for e in column), strict=True):
                if not self._place(block, operands):
                    return None
        self._find_sums(block)
        if any(not self._starts_from_zero(start) for start in block.carried.values()):
            return None
        if not block.varying and not block.carried:
            return None
        return block if self._collect(block) and _true_derivatives(self.equations[start : block.stop]) else None

    def _place(self, block: _Block, operands: Sequence[Any]) -> bool:
        """Sort one operand of one equation, given for every step; whether it fits."""
        if all(isinstance(a, jex.Literal) for a in operands):
            return all(_same_literal(operands[0], a) for a in operands)
        origins = [self._origin(block, atom) for atom in operands]
        later = {None if origin is None else (k - origin[0], *origin[1:]) for k, origin in enumerate(origins) if k}
        if len(later) == 1 and (only := later.pop()) is not None:
            lag, i, o = only
            if lag == 0:
                return origins[0] == (0, i, o)
            if lag != 1 or origins[0] is not None:
                return False
            before = block.carried.setdefault((i, o), operands[0])
            return before is operands[0] or (
                isinstance(before, jex.Literal)
                and isinstance(operands[0], jex.Literal)
                and _same_literal(before, operands[0])
            )
        if any(origin is not None for origin in origins) or any(isinstance(a, jex.Literal) for a in operands):
            return False
        variables = tuple(operands)
        if len(set(variables)) == 1:
            if variables[0] not in block.shared:
                block.shared.append(variables[0])
            return True
        if variables in block.varying:
            return True
        if _consecutive([self.lanes.get(v) for v in variables]) is None:
            return False
        block.varying.append(variables)
        return True

    def _origin(self, block: _Block, atom: Any) -> tuple[int, int, int] | None:
        """The step, its equation and the result that this is; None from outside."""
        if isinstance(atom, jex.Literal) or atom not in self.made:
            return None
        g, o = self.made[atom]
        if not block.start <= g < block.stop:
            return None
        return (g - block.start) // block.period, (g - block.start) % block.period, o

    def _find_sums(self, block: _Block) -> None:
        """Take running sums that only their own next addition uses out of the state."""
        for (i, o), start in list(block.carried.items()):
            column = [self._at(block, k, i) for k in range(block.count)]
            if column[0].primitive.name != "add":
                continue
            inside = [g for e in column for g in self.users.get(e.outvars[o], ()) if g < block.stop]
            after = [g for e in column[:-1] for g in self.users.get(e.outvars[o], ()) if g >= block.stop]
            if after or inside != [block.start + k * block.period + i for k in range(1, block.count)]:
                continue
            sides = [s for s in (0, 1) if column[1].invars[s] is column[0].outvars[o]]
            if len(sides) != 1 or column[0].invars[sides[0]] is not start:
                continue
            terms: tuple[Any, ...] = tuple(e.invars[1 - sides[0]] for e in column)
            shape = column[0].outvars[o].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            if any(isinstance(t, jex.Literal) or t.aval.shape != shape for t in terms):
                continue
            origin = self._origin(block, terms[0])
            if origin is not None:
                block.sums[i, o] = origin[1:], start
            elif terms in block.varying:
                block.sums[i, o] = block.varying.index(terms), start
            else:
                continue
            del block.carried[i, o]

    def _starts_from_zero(self, atom: Any) -> bool:
        """Whether it is visibly a constant zero: a recurrence that starts otherwise is not seen as one."""
        if isinstance(atom, jex.Literal):
            return False
        made = self.made.get(atom)
        if made is None:
            return True
        equation = self.equations[made[0]]
        if equation.primitive.name not in ("broadcast_in_dim", "convert_element_type", "reshape", "copy"):
            return False
        source = equation.invars[0]
        if isinstance(source, jex.Literal):
            return bool(np.all(np.asarray(source.val) == 0))
        return self._starts_from_zero(source)

    def _collect(self, block: _Block) -> bool:
        """Note what is used after the steps; whether that can be had."""
        for i in range(block.period):
            for o in range(len(self._at(block, 0, i).outvars)):
                used = [
                    k
                    for k in range(block.count)
                    if any(g >= block.stop for g in self.users.get(self._at(block, k, i).outvars[o], ()))
                ]
                if not used or (i, o) in block.sums:
                    continue
                if (i, o) in block.sliced:
                    return False
                if (i, o) in block.carried and used == [block.count - 1]:
                    continue
                block.collected.append((i, o))
        return True


class _Rewritten:
    """The program with each block as one computation."""

    def __init__(self, program: jex.ClosedJaxpr, equations: Sequence[jex.JaxprEqn], blocks: Sequence[_Block]) -> None:
        self.program, self.equations, self.blocks = program, equations, blocks
        self.values: dict[jex.Var, Any] = {}
        self.stacks: dict[Any, Any] = {}
        self.lanes: dict[jex.Var, tuple[Any, int]] = {}

    def __call__(self, *arguments: Any) -> list[Any]:
        jaxpr = self.program.jaxpr
        self.values.update(zip(jaxpr.constvars, self.program.consts, strict=True))
        self.values.update(zip(jaxpr.invars, arguments, strict=True))
        position = 0
        for number, block in enumerate(self.blocks):
            self._plain(position, block.start)
            self._together(number, block)
            position = block.stop
        self._plain(position, len(self.equations))
        return [self._read(atom) for atom in jaxpr.outvars]

    def _read(self, atom: Any) -> Any:
        if isinstance(atom, jex.Literal):
            return atom.val
        if atom not in self.values:
            stack, k = self.lanes[atom]
            self.values[atom] = jax.lax.index_in_dim(self.stacks[stack], k, 0, keepdims=False)
        return self.values[atom]

    def _plain(self, start: int, stop: int) -> None:
        for g in range(start, stop):
            equation = self.equations[g]
            results = self._gathered(equation)
            if results is None:
                variables = _variables([equation])
                results = function_of([equation], variables, equation.outvars)(*map(self._read, variables))
            self.values.update(zip(equation.outvars, results, strict=True))
            if _takes_apart(equation):
                self.stacks[g] = _apart(equation, self._read(equation.invars[0]))
                self.lanes.update((v, (g, o)) for o, v in enumerate(equation.outvars))

    def _gathered(self, equation: jex.JaxprEqn) -> list[Any] | None:
        """The result of collecting what steps made in turn."""
        name = equation.primitive.name
        if name not in ("stack", "concatenate") or len(equation.invars) < SHORTEST:
            return None
        run = _consecutive([self.lanes.get(a) if isinstance(a, jex.Var) else None for a in equation.invars])
        if run is None:
            return None
        stacked = self._run_of(*run)
        if name == "stack":
            return [jnp.moveaxis(stacked, 0, equation.params["axis"])]
        moved = jnp.moveaxis(stacked, 0, equation.params["dimension"])
        return [moved.reshape(equation.outvars[0].aval.shape)]  # pyright: ignore[reportAttributeAccessIssue]

    def _run_of(self, stack: Any, first: int, last: int) -> Any:
        """Entries first … last of what steps made, in that order."""
        low, high = min(first, last), max(first, last)
        whole = self.stacks[stack]
        part = whole if high - low + 1 == whole.shape[0] else jax.lax.slice_in_dim(whole, low, high + 1)
        return part if first <= last else jax.lax.rev(part, (0,))

    def _together(self, number: int, block: _Block) -> None:
        inputs = [self._inputs(block, index) for index in range(len(block.varying))]
        template = list(self.equations[block.start + block.period : block.start + 2 * block.period])
        carried = list(block.carried)
        summed = [terms for terms, _ in block.sums.values() if not isinstance(terms, int)]
        wanted = list(dict.fromkeys([*block.collected, *summed]))
        results: list[Any] = []
        if carried or wanted:
            dropped = {i for i, _ in (*block.sums, *block.sliced)}
            equations = [e for i, e in enumerate(template) if i not in dropped]
            state = [self.equations[block.start + i].outvars[o] for i, o in carried]
            variables = [*block.shared, *state, *(v[1] for v in block.varying)]
            made = [template[i].outvars[o] for i, o in (*carried, *wanted)]
            results = self._run(block, function_of(equations, variables, made), len(carried), inputs)
        for (i, o), final in zip(carried, results, strict=False):
            self.values[self.equations[block.stop - block.period + i].outvars[o]] = final
        stacked = dict(zip(wanted, results[len(carried) :], strict=True))
        for i, o in block.collected:
            self.stacks[number, i, o] = stacked[i, o]
            for k in range(block.count):
                self.lanes[self.equations[block.start + k * block.period + i].outvars[o]] = (number, i, o), k
        for (i, o), (terms, start) in block.sums.items():
            entries = inputs[terms] if isinstance(terms, int) else stacked[terms]
            total = jnp.sum(entries, axis=0)
            if not (isinstance(start, jex.Literal) and np.all(np.asarray(start.val) == 0)):
                total = self._read(start) + total
            self.values[self.equations[block.stop - block.period + i].outvars[o]] = total

    def _run(self, block: _Block, step: Any, carried: int, inputs: Sequence[Any]) -> list[Any]:
        """All steps: the final state, then what is collected."""
        shared = [self._read(v) for v in block.shared]
        if not carried:
            axes = (*(None for _ in shared), *(0 for _ in inputs))
            return jax.vmap(step, in_axes=axes, axis_size=block.count)(*shared, *inputs)
        start = [self._read(atom) for atom in block.carried.values()]
        entries = [x[0] for x in inputs]
        avals = [jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in (*shared, *start, *entries)]
        body = jax.make_jaxpr(step)(*avals)
        return steps_p.bind(
            *shared, *start, *inputs, jaxpr=body, num_consts=len(shared), num_carry=carried, length=block.count
        )

    def _inputs(self, block: _Block, index: int) -> Any:
        """What the steps take in turn, as one array with a leading axis."""
        for (i, _), own in block.sliced.items():
            if own == index:
                column = [self.equations[block.start + k * block.period + i] for k in range(block.count)]
                found = _slices(column)
                assert found is not None
                return _windows(self._read(column[0].invars[0]), block.count, *found)
        run = _consecutive([self.lanes.get(v) for v in block.varying[index]])
        assert run is not None
        return self._run_of(*run)


def _run_lengths(signatures: np.ndarray, period: int) -> np.ndarray:
    """For each equation, how many from it on are like those one period later."""
    equal = signatures[:-period] == signatures[period:]
    places = np.arange(len(equal))
    ends = np.where(equal, len(equal), places)
    return np.minimum.accumulate(ends[::-1])[::-1] - places


def _signature(equation: jex.JaxprEqn, texts: dict[int, str]) -> tuple[Any, ...]:
    """What two equations of equal steps have in common, apart from where their operands come from."""
    name = equation.primitive.name
    moving = ("start_indices", "limit_indices") if name == "slice" else ()
    parameters = tuple((key, _described(value, texts)) for key, value in equation.params.items() if key not in moving)
    return name, parameters, tuple(str(variable.aval) for variable in equation.outvars)


def _described(value: Any, texts: dict[int, str]) -> str:
    """Text that is equal for equal parameters; for programs, which are new objects in each call, their own text."""
    if isinstance(value, jex.Jaxpr | jex.ClosedJaxpr):
        if id(value) not in texts:
            constants = [id(c) for c in value.consts] if isinstance(value, jex.ClosedJaxpr) else []
            texts[id(value)] = f"{value} {constants}"
        return texts[id(value)]
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype} {value.shape} {np.asarray(value).tobytes().hex()}"
    return "" if callable(value) and not isinstance(value, type) else repr(value)


def _true_derivatives(equations: Sequence[jex.JaxprEqn]) -> bool:
    """Whether every custom derivative is the true one: those of different steps need not be the same function."""
    for equation in equations:
        inner = equation.params.get("call_jaxpr") if equation.primitive.name.startswith("custom") else None
        if inner is not None:
            try:
                check_custom_derivative(equation, closed(inner), {}, source_line(equation))
            except UnsupportedModelError:
                return False
    return True


def _same_literal(left: Any, right: Any) -> bool:
    return isinstance(right, jex.Literal) and bool(np.array_equal(left.val, right.val, equal_nan=True))


def _cut(equation: jex.JaxprEqn) -> tuple[Any, ...]:
    return equation.params["start_indices"], equation.params["limit_indices"]


def _slices(column: Sequence[jex.JaxprEqn]) -> tuple[int, int, int] | None:
    """The axis, first start and distance of slices that move evenly along one axis, their lengths apart."""
    if any(stride != 1 for stride in column[0].params["strides"] or ()):
        return None
    starts = np.array([e.params["start_indices"] for e in column])
    lengths = np.array([e.params["limit_indices"] for e in column]) - starts
    moves = np.diff(starts, axis=0)
    axes = np.flatnonzero(np.any(moves != 0, axis=0))
    whole = np.array(column[0].invars[0].aval.shape)  # pyright: ignore[reportAttributeAccessIssue]
    if len(axes) != 1 or np.any(moves != moves[0]) or np.any(lengths != lengths[0]):
        return None
    axis = int(axes[0])
    others = np.arange(len(whole)) != axis
    if np.any(starts[:, others] != 0) or np.any(lengths[0][others] != whole[others]):
        return None
    return (axis, int(starts[0, axis]), int(moves[0, axis])) if abs(moves[0, axis]) == lengths[0, axis] else None


def _windows(array: Any, count: int, axis: int, start: int, distance: int) -> Any:
    """Slices that lie side by side along an axis, with a leading axis that counts them."""
    length = abs(distance)
    low = start if distance > 0 else start + distance * (count - 1)
    part = jax.lax.slice_in_dim(array, low, low + length * count, axis=axis)
    shape = part.shape
    apart = jnp.moveaxis(part.reshape(*shape[:axis], count, length, *shape[axis + 1 :]), axis, 0)
    return apart if distance > 0 else jax.lax.rev(apart, (0,))


def _takes_apart(equation: jex.JaxprEqn) -> bool:
    """Whether its results are the equal parts of one array, in order."""
    name = equation.primitive.name
    return name == "unstack" or (name == "split" and len(set(equation.params["sizes"])) == 1)


def _apart(equation: jex.JaxprEqn, array: Any) -> Any:
    """The equal parts of one array with a leading axis that counts them."""
    axis = equation.params["axis"]
    if equation.primitive.name == "unstack":
        return jnp.moveaxis(array, axis, 0)
    return _windows(array, len(equation.outvars), axis, 0, int(equation.params["sizes"][0]))


def _consecutive(lanes: Sequence[tuple[Any, int] | None]) -> tuple[Any, int, int] | None:
    """The stack, first and last entry, where all come from one in order, or in the opposite order."""
    if any(lane is None for lane in lanes) or len({lane[0] for lane in lanes if lane}) != 1:
        return None
    numbers = [lane[1] for lane in lanes if lane]
    moves = set(np.diff(numbers).tolist())
    return (lanes[0][0], numbers[0], numbers[-1]) if lanes[0] and moves in ({1}, {-1}) else None


def _variables(equations: Sequence[jex.JaxprEqn]) -> list[jex.Var]:
    """What the equations take from outside."""
    made = {v for e in equations for v in e.outvars}
    return list(dict.fromkeys(v for e in equations for v in taken(e) if v not in made))
