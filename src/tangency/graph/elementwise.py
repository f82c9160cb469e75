"""Univariate functions as straight-line programs of elementwise primitives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .known import Constant, Known, Operation


@dataclass(frozen=True)
class Result:
    """The result of an earlier step; index -1 is the variable u itself."""

    index: int


@dataclass(frozen=True)
class Parameter:
    """A Known number that may differ between examples and positions, by its place in `Elementwise.parameters`."""

    index: int


Operand: TypeAlias = Result | Parameter | float | bool


@dataclass(frozen=True)
class Step:
    operation: Operation | Derivative
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Derivative:
    """The derivative, as JAX's automatic differentiation gives it, of another program."""

    function: Elementwise
    name: str = "derivative"

    def __call__(self, u: jax.Array, *parameters: jax.Array, dtype: Any) -> jax.Array:
        u = jnp.asarray(u, dtype)
        return jax.jvp(lambda v: self.function(v, *parameters), (u,), (jnp.ones_like(u),))[1]


@dataclass(frozen=True)
class Elementwise:
    """φ(u; p): a function of one real variable, with Known numbers p as parameters.

    Two programs are equal when they do the same steps on the same literals; the label is for people.
    """

    steps: tuple[Step, ...] = ()
    parameters: tuple[Known, ...] = ()
    label: str | None = field(default=None, compare=False)

    @property
    def is_identity(self) -> bool:
        return not self.steps

    @property
    def program(self) -> Elementwise:
        """The function without the values of its parameters: equal wherever the same steps are done."""
        return replace(self, parameters=())

    @property
    def arity(self) -> int:
        """How many parameters the steps use, which a `program` does too."""
        used = (o.index for step in self.steps for o in step.operands if isinstance(o, Parameter))
        return 1 + max(used, default=-1)

    def __call__(self, u: Any, *parameters: Any) -> jax.Array:
        """φ(u; parameters), elementwise; parameters broadcast against u."""
        u = jnp.asarray(u)
        results: list[jax.Array] = []

        def value(operand: Operand) -> jax.Array:
            match operand:
                case Result(index):
                    return u if index < 0 else results[index]
                case Parameter(index):
                    return jnp.asarray(parameters[index], u.dtype)
                case bool():
                    return jnp.asarray(operand)
                case _:
                    return jnp.asarray(operand, u.dtype)

        for step in self.steps:
            operands = jnp.broadcast_arrays(*[value(operand) for operand in step.operands])
            results.append(step.operation(*operands, dtype=u.dtype))
        return jnp.asarray(results[-1] if results else u, u.dtype)

    def labelled(self, label: str) -> Elementwise:
        return replace(self, label=label)

    @property
    def derivative(self) -> Elementwise:
        operands = (Result(-1), *(Parameter(i) for i in range(len(self.parameters))))
        label = f"({self.label})′" if self.label else None
        return Elementwise((Step(Derivative(Elementwise(self.steps)), operands),), self.parameters, label)


IDENTITY = Elementwise()


def apply(operation: Operation, operands: tuple[Elementwise | Known, ...]) -> Elementwise:
    """u ↦ operation(operand_1(u), …), where Known operands are numbers."""
    steps: list[Step] = []
    parameters: list[Known] = []
    place: dict[Step, int] = {}

    def parameter(known: Known) -> Parameter:
        for index, other in enumerate(parameters):
            if other is known:
                return Parameter(index)
        parameters.append(known)
        return Parameter(len(parameters) - 1)

    def add(step: Step) -> Result:
        if step not in place:
            place[step] = len(steps)
            steps.append(step)
        return Result(place[step])

    def embed(function: Elementwise) -> Result:
        moved: list[Result] = []

        def move(operand: Operand) -> Operand:
            match operand:
                case Result(index):
                    return operand if index < 0 else moved[index]
                case Parameter(index):
                    return parameter(function.parameters[index])
                case _:
                    return operand

        for step in function.steps:
            moved.append(add(Step(step.operation, tuple(move(operand) for operand in step.operands))))
        return moved[-1] if moved else Result(-1)

    def operand_of(value: Elementwise | Known) -> Operand:
        if isinstance(value, Elementwise):
            return embed(value)
        if isinstance(value, Constant) and not value.shape:
            number = value.value.reshape(-1)[0]
            return bool(number) if value.value.dtype == bool else float(number)
        return parameter(value)

    last = Step(operation, tuple(operand_of(value) for value in operands))
    steps.append(last)
    return Elementwise(tuple(steps), tuple(parameters))
