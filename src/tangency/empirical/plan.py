"""How a finite NTK is computed: by which algorithm, and in what blocks, so that it fits the memory and costs least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import MemoryLimitError
from ..memory import available_memory
from ..trace.equations import numbers_made, programs_inside
from .gradients import cheapest, cost, held
from .pairs import Pairing
from .program import Program

_GIB = 2**30
_SHARE = 0.8
"""Of the memory that may be used, what the plan counts on; the rest is for what it does not count."""

PRODUCTS_GAIN = 2.0
"""How many times fewer multiplications NTK-vector products must take to be chosen: they are small and many."""


@dataclass(frozen=True)
class Traced:
    """The network on examples of one shape and precision."""

    program: Program
    parameters: tuple[Any, ...]
    rest: tuple[Any, ...]
    rates: tuple[Any, ...]
    sizes: tuple[int, ...]
    """Lengths of the flat outputs, one for each array of the output."""
    complex_outputs: bool

    @property
    def outputs(self) -> int:
        return sum(self.sizes)

    @property
    def word(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.parameters[0].dtype).itemsize


@dataclass(frozen=True)
class Request:
    """n × m examples, k functionals of the outputs, what becomes of pairs of them, and whether x2 is x1."""

    n: int
    m: int
    k: int
    pairing: Pairing
    same: bool


@dataclass(frozen=True)
class Plan:
    """Examples (of x1 and of x2) and functionals at once, and whether by NTK-vector products."""

    block: int
    chunk: int
    products: bool
    temporary: float
    """Bytes beside the result and the parameters: the compiler's count where there is one, else our own."""


def planned(traced: Traced, method: str, request: Request, memory: int | None, safety: float = 1.0) -> Plan:
    """The plan that fits `memory` bytes (None: no limit) with the least work, counts of bytes being times `safety`.

    Raises:
        MemoryLimitError: one pair of examples and one output at a time need more.
    """
    own = _least_work(traced, request, memory, safety) if method != "products" else None
    if method not in ("auto", "products") or (own is not None and not _products_gain(traced, request)):
        if own is None:
            raise _too_large(traced, request, memory, safety)
        return own
    for block in _halved(request.n):
        temporary = safety * _products_bytes(traced, block)
        if memory is None or temporary + result_bytes(traced, request) <= _SHARE * memory:
            return Plan(block, request.k, True, temporary)
    raise _too_large(traced, request, memory, safety)


OPTIMISM = 1 / 32
"""Of our own count, which is for the worst case, what a program may take at best."""


def fitting(plan_of: Callable[[float], Plan], taken: Callable[[Plan], int | None], memory: float | None) -> Plan:
    """The plan that fits `memory` bytes by `taken`, the compiler's count; of `plan_of` times our own count.

    Where our own count asks for blocks, larger ones are tried first, as it is often too high.

    Raises:
        MemoryLimitError: not even one pair of examples and one output at a time fit.
    """
    try:
        safety = 1.0 if replace(plan_of(1.0), temporary=0.0) == plan_of(0.0) else OPTIMISM
    except MemoryLimitError:
        safety = OPTIMISM
    smallest = False
    while True:
        try:
            plan = plan_of(safety)
        except MemoryLimitError:
            # What was counted of a larger block may still be too high for the smallest.
            if smallest or safety <= OPTIMISM:
                raise
            smallest, plan = True, _smallest(plan_of, safety)
        count = taken(plan)
        if count is None:
            return plan_of(1.0)
        if memory is None or count <= memory:
            return replace(plan, temporary=count)
        safety *= max(1.25, count / plan.temporary)


def _smallest(plan_of: Callable[[float], Plan], safety: float) -> Plan:
    while True:
        safety *= 0.8
        with suppress(MemoryLimitError):
            return plan_of(safety)


def free_memory() -> int | None:
    """Bytes that can be had on the device that JAX computes on; None if unknown."""
    with jax.ensure_compile_time_eval():
        (device,) = jnp.zeros(()).devices()
    statistics = device.memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return available_memory()


def _least_work(traced: Traced, request: Request, memory: int | None, safety: float) -> Plan | None:
    """None if nothing fits. Smaller blocks of examples, or of functionals in pairs, take gradients more than once."""
    best: tuple[float, Plan] | None = None
    for block in _halved(max(request.n, request.m)):
        for chunk in _halved(request.k):
            temporary = safety * _bytes(traced, request, block, chunk)
            if memory is None or temporary + result_bytes(traced, request) <= _SHARE * memory:
                times = ceil(request.n / block) * ceil(request.m / block)
                chunks = ceil(request.k / chunk)
                times *= chunks**2 if request.pairing == "all" else chunks
                work = times * block * (1 + chunk)
                if best is None or work < best[0]:
                    best = work, Plan(block, chunk, False, temporary)
                break
    return None if best is None else best[1]


def _halved(number: int) -> Iterator[int]:
    while number > 1:
        yield number
        number = ceil(number / 2)
    yield 1


def result_bytes(traced: Traced, request: Request) -> float:
    """The result and the parameters, whatever the plan."""
    shape = {"sum": 1, "each": request.k, "all": request.k**2}[request.pairing]
    return traced.word * (request.n * request.m * shape + sum(array.size for array in traced.parameters))


def _bytes(traced: Traced, request: Request, block: int, chunk: int) -> float:
    a, b = min(request.n, block), min(request.m, block)
    symmetric = request.same and block >= request.n
    sides = a if symmetric else a + b
    program = cheapest(traced.program, a, b, chunk, request.pairing, symmetric)
    numbers = held(program, traced.parameters, a, b, chunk, request.pairing, symmetric)
    numbers += sides * numbers_made(traced.program.jaxpr.jaxpr) * (1 + chunk / 2)
    return traced.word * numbers


def _products_bytes(traced: Traced, block: int) -> float:
    numbers = 4 * sum(array.size for array in traced.parameters)
    return traced.word * (numbers + 3 * (block + 1) * numbers_made(traced.program.jaxpr.jaxpr))


def _products_gain(traced: Traced, request: Request) -> bool:
    """Whether a backward and a forward pass for each column take far fewer multiplications than contraction."""
    forward = multiplications(traced.program.jaxpr.jaxpr)
    sides = request.n if request.same else request.n + request.m
    contraction = sides * forward * (1 + request.k)
    program = cheapest(traced.program, request.n, request.m, request.k, request.pairing, request.same)
    for leaf, array in enumerate(traced.parameters):
        own = [site for site in program.sites if site.leaf == leaf]
        if own:
            found = cost(own, request.n, request.m, request.k, request.pairing, request.same)
            contraction += min(found.positions, found.whole)
        elif leaf not in program.structured:
            pairs = request.k**2 if request.pairing == "all" else request.k
            contraction += request.n * request.m * pairs * array.size
    passes = request.m * request.k * 3 * forward * (1 + request.n)
    return PRODUCTS_GAIN * passes < contraction


def _too_large(traced: Traced, request: Request, memory: int | None, safety: float) -> MemoryLimitError:
    assert memory is not None
    least = safety * min(_bytes(traced, request, 1, 1), _products_bytes(traced, 1))
    least = (least + result_bytes(traced, request)) / _SHARE
    return MemoryLimitError(
        f"the NTK of {request.n} × {request.m} examples and {request.k} outputs needs {least / _GIB:.3g} GiB even for "
        f"one pair and one output at a time, but {memory / _GIB:.3g} GiB may be used; use fewer examples at once, "
        'outputs="mean" or float32'
    )


def multiplications(jaxpr: Any) -> float:
    """Of one forward pass of one example: those of matrix products and convolutions, and one for each other number."""
    total = 0.0
    for equation in jaxpr.eqns:
        times, programs = programs_inside(equation)
        total += times * sum(multiplications(program) for program in programs)
        size = sum(prod(getattr(variable.aval, "shape", ())) for variable in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size *= prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            size *= kernel.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        total += size
    return total


def compiled_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What the compiler itself counts for temporary arrays; None if it does not say."""
    found = compiled.memory_analysis()
    return None if found is None else found.temp_size_in_bytes
