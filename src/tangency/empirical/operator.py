"""The NTK matrix of a finite network by its products J diag(η) Jᴴ v, neither the matrix nor a Jacobian formed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, MemoryLimitError
from ..kernels.operator import Matrix, Rows
from ..kernels.tile_matrix import concrete, same_rows, stacked
from ..trace.convolutions import arranged
from ..trace.equations import numbers_made
from .gradients import output_vector
from .model import precision_of
from .plan import Traced, free_memory
from .program import Program

if TYPE_CHECKING:
    from .kernel import EmpiricalKernel

_GIB = 2**30
_AT_ONCE = 16
"""Passes taken together at most: they share the network's values, but more of them only take more memory."""


@dataclass(frozen=True)
class Passes:
    """Θ v as a sum over `count` passes t of C_t J(x1) diag(η) J(x2)ᵀ S_t v, J the Jacobians of the real output vector.

    S_t spreads v over the outputs and C_t collects what comes out. All pairs of outputs, or of `functionals` `[k, o]`,
    take one pass. Their mean takes one for each output, Θ v = (1/o) Σ_p J_p diag(η) J_pᵀ v. Complex outputs take twice
    as many: Jᴴ v = Jᵀ_real-pair (v) + i Jᵀ_real-pair (−i v), the two of them real.
    """

    program: Program
    rates: Sequence[Any]
    functionals: np.ndarray
    outputs: int
    mean: bool
    is_complex: bool

    @property
    def count(self) -> int:
        return (self.outputs if self.mean else 1) * (2 if self.is_complex else 1)

    @property
    def width(self) -> int:
        """k, the rows of the matrix for each example."""
        return 1 if self.mean else self.outputs if self.is_complex else len(self.functionals)

    def spread(self, v: jax.Array, t: jax.Array) -> jax.Array:
        """Cotangents of the real output vector, `[b, o]`, from v `[b, k]`."""
        half, which = self._split(t)
        if self.mean:
            v = v * jax.nn.one_hot(which, self.outputs, dtype=v.dtype)[None]
        elif not self.is_complex:
            v = jnp.matmul(v, jnp.asarray(self.functionals, v.dtype), precision="highest")
        if not self.is_complex:
            return v
        v = v * _turn(-half, v.dtype)
        return jnp.concatenate([v.real, v.imag], axis=1)

    def collect(self, found: jax.Array, t: jax.Array) -> jax.Array:
        """What the pass adds to the product, `[b, k]`, from J(x1) times its direction, `[b, o]`."""
        half, which = self._split(t)
        if self.is_complex:
            found = jax.lax.complex(found[:, : self.outputs], found[:, self.outputs :])
            found = found * _turn(half, found.dtype)
        if self.mean:
            return jnp.take(found, which, axis=1)[:, None] / self.outputs
        if self.is_complex:
            return found
        return jnp.matmul(found, jnp.asarray(self.functionals, found.dtype).T, precision="highest")

    def _split(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether it is the pass of the imaginary part, and the output it is about."""
        return (t % 2, t // 2) if self.is_complex else (t * 0, t)

    def product(
        self, parameters: Sequence[Any], rest: Any, x1: Any, x2: Any, v: Any, *, examples: int, together: int
    ) -> jax.Array:
        """Θ v, `[n, k, q]`, for v `[m, k, q]`: some `examples` of either set and some passes at a time."""
        n, (m, k, q) = len(x1), v.shape
        dtype = jnp.real(v).dtype
        total = self.count * q
        padded = jnp.arange(ceil(total / together) * together)
        index = jnp.minimum(padded, total - 1).reshape(-1, together)
        weights = (padded < total).astype(dtype).reshape(-1, together)
        left, right = stacked(x1, min(n, examples)), stacked(x2, min(m, examples))
        missing = right.shape[0] * right.shape[1] - m
        vectors = jnp.pad(v, ((0, missing), (0, 0), (0, 0))).reshape(*right.shape[:2], k, q)

        def outputs(values: Sequence[Any], x: Any) -> jax.Array:
            return jax.vmap(lambda example: output_vector(self.program.plain([*values, *rest, example])))(x)

        def chunk(total: jax.Array, passes: Any) -> tuple[jax.Array, None]:
            own, weight = passes
            columns, kinds = own // self.count, own % self.count

            def backward(direction: Any, batch: Any) -> tuple[Any, None]:
                x, u = batch
                found, pull = jax.vjp(lambda values: outputs(values, x), list(parameters))

                def cotangent(column: jax.Array, t: jax.Array, weight: jax.Array) -> jax.Array:
                    return (self.spread(jnp.take(u, column, axis=2), t) * weight).astype(found.dtype)

                (more,) = jax.vmap(pull)(jax.vmap(cotangent)(columns, kinds, weight))
                return jax.tree.map(jnp.add, direction, more), None

            zero = [jnp.zeros((together, *array.shape), array.dtype) for array in parameters]
            direction, _ = jax.lax.scan(backward, zero, (right, vectors))
            direction = [d * _rate(rate, d) for rate, d in zip(self.rates, direction, strict=True)]

            def forward(_: None, x: Any) -> tuple[None, jax.Array]:
                def ahead(direction: Any, t: jax.Array) -> jax.Array:
                    found = jax.jvp(lambda values: outputs(values, x), (list(parameters),), (direction,))[1]
                    return self.collect(found.astype(dtype), t)

                return None, jax.vmap(ahead)(direction, kinds)

            found = jax.lax.scan(forward, None, left)[1]
            found = jnp.moveaxis(found, 1, 0).reshape(together, -1, k)[:, :n]
            return total.at[columns].add(found), None

        start = jnp.zeros((q, n, k), v.dtype)
        return jnp.moveaxis(jax.lax.scan(chunk, start, (index, weights))[0], 0, 2)

    def sizes(
        self, parameters: Sequence[Any], intermediates: float, n: int, m: int, q: int, limit: Any
    ) -> dict[str, int]:
        """How many examples and passes to take at once: as many as fit. An example makes `intermediates` numbers."""
        word = np.dtype(parameters[0].dtype).itemsize
        entries = sum(array.size for array in parameters)
        examples, together = max(n, m), min(_AT_ONCE, self.count * q)
        if limit is None:
            return {"examples": examples, "together": together}
        budget = 0.8 * limit - word * (entries + 2 * (n + m) * self.width * q * (2 if self.is_complex else 1))

        def needed(examples: int, together: int) -> float:
            return word * (3 * together * entries + examples * intermediates * (2 + 2 * together))

        while needed(examples, together) > budget:
            if examples > 16 or (together == 1 and examples > 1):
                examples = max(1, examples // 2)
            elif together > 1:
                together = together // 2
            else:
                most = (0.2 * limit + needed(1, 1) + 0.8 * limit - budget) / _GIB
                raise MemoryLimitError(
                    f"a product of the NTK of {n} × {m} examples with {q} vectors needs {most:.3g} GiB even for one "
                    f"example at a time, but {limit / _GIB:.3g} GiB may be used; multiply fewer vectors at once, or "
                    "use float32"
                )
        return {"examples": examples, "together": together}


class ProductMatrix:
    """Θ(x1, x2) of a finite network as `[n·k, m·k]`, for `KernelOperator`."""

    def __init__(
        self,
        kernel: EmpiricalKernel,
        x1: Any,
        x2: Any,
        *,
        outputs: Any,
        memory: int | None,
    ):
        if isinstance(outputs, str) and outputs == "diagonal":
            raise InputError(
                'outputs="diagonal" is one matrix for each output; give outputs=<an index> for the operator of one of '
                'them, or "mean" or "full"'
            )
        self._kernel, self._x1, self._x2 = kernel, x1, x2
        self._options = {"outputs": outputs, "memory": memory}
        self.examples = len(x1), len(x1 if x2 is None else x2)
        self.symmetric = x2 is None
        with precision_of(x1):
            traced, passes = self._passes(x1)
        kinds = [aval.dtype for aval in traced.program.jaxpr.out_avals]
        self.dtype = np.dtype(np.result_type(np.float32, traced.parameters[0].dtype, *kinds))
        self.outputs = passes.width

    def _passes(self, x: Any) -> tuple[Traced, Passes]:
        outputs = self._options["outputs"]
        with jax.ensure_compile_time_eval():
            traced = self._kernel.traced(x)
            rows = self._kernel.functionals(traced)
        mean = isinstance(outputs, str) and outputs == "mean"
        return traced, Passes(traced.program, traced.rates, rows, traced.outputs, mean, traced.complex_outputs)

    def _sizes(self, traced: Traced, passes: Passes, q: int) -> dict[str, int]:
        memory = self._options["memory"]
        limit = free_memory() if memory is None else memory
        count = numbers_made(traced.program.jaxpr.jaxpr)
        return passes.sizes(traced.parameters, count, *self.examples, q, limit)

    def product(self, v: np.ndarray) -> np.ndarray:
        first = concrete(self._x1)
        second = first if self.symmetric else concrete(self._x2)
        apart = np.iscomplexobj(v) and self.dtype.kind != "c"
        columns = np.concatenate([np.real(v), np.imag(v)], axis=1) if apart else v
        with precision_of(first):
            traced, passes = self._passes(first)
            given = columns.astype(self.dtype, copy=False).reshape(len(second), self.outputs, -1)
            sizes = self._sizes(traced, passes, given.shape[2])
            times = self._kernel.compiled_once(traced, "product", passes.product, static_argnames=tuple(sizes))
            found = np.asarray(times(traced.parameters, traced.rest, first, second, given, **sizes))
        found = found.reshape(-1, columns.shape[1])
        return found[:, : v.shape[1]] + 1j * found[:, v.shape[1] :] if apart else found

    def traced_product(self, v: jax.Array) -> jax.Array:
        first = jnp.asarray(self._x1)
        second = first if self.symmetric else jnp.asarray(self._x2)
        traced, passes = self._passes(first)
        arguments = traced.parameters, traced.rest, first, second, v.reshape(len(second), -1, 1)
        return arranged(passes.product)(*arguments, **self._sizes(traced, passes, 1)).reshape(-1)

    def block(self, rows: Rows, columns: Rows) -> np.ndarray:
        first = concrete(self._x1)
        second = first if self.symmetric else concrete(self._x2)
        same = self.symmetric and same_rows(rows, columns)
        found = np.asarray(self._kernel(first[rows], None if same else second[columns]))
        if found.ndim == 4:
            found = found.transpose(0, 2, 1, 3).reshape(len(found) * self.outputs, -1)
        return found.astype(self.dtype, copy=False)

    def diagonal(self) -> np.ndarray:
        found = np.asarray(self._kernel.diagonal("ntk", concrete(self._x1)))
        return (np.einsum("nkk->nk", found).ravel() if found.ndim == 3 else found).astype(self.dtype, copy=False)

    @cached_property
    def _swapped(self) -> ProductMatrix:
        swapped = ProductMatrix(self._kernel, self._x2, self._x1, **self._options)
        swapped.__dict__["_swapped"] = self
        return swapped

    def adjoint(self) -> Matrix:
        return self if self.symmetric else self._swapped


def _rate(rate: Any, direction: jax.Array) -> jax.Array:
    array = jnp.asarray(rate, direction.dtype)
    return array.reshape(1, *array.shape) if array.shape else array


def _turn(times: Any, dtype: Any) -> jax.Array:
    """i to a power of −1, 0 or 1."""
    return jnp.where(times == 0, 1, 1j * times).astype(dtype)
