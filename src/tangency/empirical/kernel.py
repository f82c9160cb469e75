"""The NTK of a finite network at its current parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, MemoryLimitError, NonFiniteError
from ..kernels.base import Kernel
from ..kernels.operator import KernelOperator
from ..kernels.tiles import cuts, even, padded
from ..trace.convolutions import arranged
from ..trace.tracers import is_tracer
from ..types import Array, Inputs, Kind, Progress
from .gradients import cheapest, contributions, cost, gradients
from .model import Network, precision_of
from .operator import ProductMatrix
from .pairs import Pairing, completed, transposed
from .plan import Plan, Request, Traced, compiled_bytes, fitting, free_memory, planned, result_bytes
from .products import products
from .program import opened

Method: TypeAlias = Literal["auto", "structured", "jacobian", "products"]
METHODS = ("auto", "structured", "jacobian", "products")


class EmpiricalKernel(Kernel):
    """What `tangency.empirical` returns: Θ(x, x') = Σ_p η_p ∂F_p(x) ⊗ ∂F_p(x') of a network at its parameters.

    `kernel(x1, x2=None)` is `[n, m]`, `[n, m, o]` or `[n, m, o, o]` as `outputs` says; several output axes, or several
    arrays, are flattened to one axis o in the order of `jax.tree.leaves`.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("ntk",)

    def __init__(self, network: Callable[[Any], Network], outputs: Any, method: Method, memory: int | None):
        self._network = network
        self._outputs = outputs
        self._method = method
        self._memory = memory
        self._traced: dict[Any, Traced] = {}
        self._blocks: dict[Any, Any] = {}
        self._plans: dict[Any, Plan] = {}
        self._last: tuple[Traced, Plan, int, int] | None = None

    def evaluate(self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None) -> Array:
        """The NTK, `[n, m]`, `[n, m, o]` or `[n, m, o, o]`; `kind` must be "ntk".

        Raises:
            InputError: shapes or dtypes of the inputs do not fit the network.
            MemoryLimitError: one example and one output already need more than `memory`.
            NonFiniteError: NaN or infinity in the result, with the first pair of examples.
        """
        if kind != "ntk":
            raise InputError(f"kind: a finite network has an NTK only, got {kind!r}; kernel(x1, x2) is the NTK")
        return self._total(x1, x2, progress, None)

    def at(self, network: Network) -> EmpiricalKernel:
        """The same kernel of a network that differs in the values of its arrays alone; compiled code is shared."""
        other = copy(self)
        other._network, other._traced, other._last = (lambda _: network), {}, None
        for key, traced in self._traced.items():
            values = ((network.parameters, traced.parameters), (jax.tree.leaves(network.state), traced.rest))
            parameters, rest = (tuple(map(_like, new, old)) for new, old in values)
            other._traced[key] = replace(traced, parameters=parameters, rest=rest)
        return other

    def layers(self, x1: Inputs, x2: Inputs | None = None) -> dict[str, Array]:
        """The part of Θ that each parameter contributes, by the parameter's name; their sum is `kernel(x1, x2)`."""
        names = self._opened(x1).names
        return {name: self._total(x1, x2, None, leaf) for leaf, name in enumerate(names)}

    def diagonal(self, kind: Kind, x: Inputs) -> Array:
        """Θ(x_i, x_i), `[n]`, `[n, o]` or `[n, o, o]`, without forming the matrix."""
        if kind != "ntk":
            raise InputError(f"kind: a finite network has an NTK only, got {kind!r}")
        examples = _examples(x, "x")
        with precision_of(examples):
            traced = self.traced(examples)
            single = partial(self._diagonal_of(traced), traced.parameters, traced.rest)
            if is_tracer(examples):
                return single(examples)
            at_once = self._diagonal_block(examples)
            if at_once == 0:
                parts = [np.asarray(self._total(examples[i : i + 1], None, None, None))[0] for i in range(len(x))]
            else:
                size = even(len(x), at_once)
                parts = [
                    np.asarray(single(padded(examples, *cut, size)))[: cut[1] - cut[0]] for cut in cuts(len(x), size)
                ]
            result = np.concatenate(parts)
            _check_finite(result[:, None])
            return jnp.asarray(result) if isinstance(x, jax.Array) else result

    def _diagonal_of(self, traced: Traced) -> Callable[[Any, Any, Any], Any]:
        """The diagonal from parameters, state and examples."""

        def diagonal(parameters: Any, rest: Any, x: Any) -> Any:
            other, given = copy(self), replace(traced, parameters=parameters, rest=rest)
            other._traced = {k: given if known is traced else known for k, known in self._traced.items()}
            return jax.vmap(lambda example: other._total(example[None], None, None, None)[0, 0])(x)

        return self.compiled_once(traced, "diagonal", diagonal)

    def compiled_once(self, traced: Traced, name: str, function: Callable[..., Any], **options: Any) -> Any:
        """`function`, which nothing but the kernel and `traced` determine, compiled once for each shape of arguments.

        `options` are those of `jax.jit`.
        """
        key = (id(traced.program), name)
        if key not in self._blocks:
            self._blocks[key] = jax.jit(arranged(function), **options)
        return self._blocks[key]

    def _diagonal_block(self, x: Any) -> int:
        """How many examples fit side by side with all their outputs; 0 if our own count allows not even one."""
        traced = self.traced(x)
        request = Request(1, 1, len(self.functionals(traced)), self._pairing(), True)
        memory = self._memory if self._memory is not None else free_memory()
        try:
            plan = planned(traced, self._method, request, memory)
        except MemoryLimitError:
            return 0
        if plan.products or plan.chunk < request.k:
            return 0
        return len(x) if memory is None else max(1, min(len(x), int(memory / 2 // plan.temporary)))

    def operator(self, x1: Inputs, x2: Inputs | None = None, *, kind: Kind = "ntk") -> KernelOperator:
        """The NTK matrix as a linear operator, for SciPy and lineax; its products never form it.

        `[n, m]` for outputs="mean" and for one functional; `[n·k, m·k]`, the k outputs of an example side by side, for
        "full" and for k functionals. A product takes one backward and one forward pass through the network (for "mean"
        one of each for each output), over as many examples at once as fit the memory. Complex networks give a Hermitian
        operator.

        Raises:
            InputError: as for the kernel; also for outputs="diagonal", which is a matrix for each output.
            MemoryLimitError: in a product, if not even one example at a time fits.
        """
        if kind != "ntk":
            raise InputError(f"kind: a finite network has an NTK only, got {kind!r}")
        first, second = _pair(x1, x2)
        return KernelOperator(ProductMatrix(self, first, second, outputs=self._outputs, memory=self._memory))

    @property
    def plan(self) -> Plan | None:
        """How the last matrix was computed; None before the first."""
        return None if self._last is None else self._last[1]

    def __str__(self) -> str:
        if self._last is None:
            return "finite-width NTK: not traced yet (call it on data)"
        traced, plan, n, m = self._last
        names = self._opened(None).names
        size = f"{n} × {m} examples and {plan.chunk} of them a block, {plan.temporary / 2**20:.3g} MiB of temporaries"
        lines = [f"finite-width NTK of {self._opened(None).name}, {traced.outputs} outputs; {size}"]
        if plan.products:
            return "\n".join([*lines, "  all parameters: NTK-vector products"])
        width = max(map(len, names))
        for leaf, name in enumerate(names):
            shape = "×".join(map(str, traced.parameters[leaf].shape)) or "1"
            lines.append(f"  {name:{width}}  {shape:>12}  {self._way(traced, leaf, n, m, plan.chunk)}")
        return "\n".join(lines)

    def _way(self, traced: Traced, leaf: int, n: int, m: int, k: int) -> str:
        program = cheapest(traced.program, n, m, k, self._pairing(), n == m)
        if leaf not in program.structured:
            return f"Jacobian, {k * traced.parameters[leaf].size:.3g} numbers an example"
        sites = [site for site in program.sites if site.leaf == leaf]
        if not sites:
            return "with the real part"
        found = cost(sites, n, m, k, self._pairing(), n == m)
        uses = f"{len(sites)} use{'s' if len(sites) > 1 else ''}"
        if sites[0].gathered:
            uses += ", pooled"
        if found.positions_first or self._method == "structured":
            return f"products of signals and of cotangents ({uses}), {found.positions:.3g} multiplications"
        return f"gradients from signals and cotangents ({uses}), {found.whole:.3g} multiplications"

    def _pairing(self) -> Pairing:
        if isinstance(self._outputs, str):
            return {"mean": "sum", "diagonal": "each", "full": "all"}[self._outputs]  # pyright: ignore[reportReturnType]
        return "all"

    def _opened(self, x: Any) -> Network:
        return self._network(None if x is None else x[0])

    def traced(self, x: Any) -> Traced:
        """The network's program for examples like x, at the precision of x and of the parameters."""
        network = self._opened(x)
        double = x.dtype == np.float64
        wide = {"float32": "float64", "complex64": "complex128"}

        def cast(array: Any) -> Any:
            kind = str(getattr(array, "dtype", None))
            return array.astype(wide[kind]) if double and kind in wide else array

        key = (x.shape[1:], str(x.dtype), jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
        if key not in self._traced:
            with jax.ensure_compile_time_eval():
                parameters = tuple(a if is_tracer(a) else jnp.asarray(cast(a)) for a in network.parameters)
                state = jax.tree.map(lambda a: a if is_tracer(a) else cast(a), network.state)
            rest, structure = jax.tree.flatten(state)
            shapes: list[Any] = []

            def flat(values: Sequence[Any], rest: Sequence[Any], example: Any) -> list[Any]:
                outputs = jax.tree.leaves(network.call(values, jax.tree.unflatten(structure, rest), example))
                shapes[:] = [(value.shape, jnp.result_type(value)) for value in outputs]
                return [jnp.asarray(value) for value in outputs]

            try:
                with jax.default_matmul_precision("highest"):
                    jaxpr = jax.make_jaxpr(flat)(list(parameters), rest, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
            except Exception as error:
                first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
                raise InputError(
                    f"model {network.name}: could not be called on an example of shape {tuple(x.shape[1:])}: "
                    f"{type(error).__name__}: {first}"
                ) from error
            if not shapes or any(not jnp.issubdtype(dtype, jnp.inexact) for _, dtype in shapes):
                raise InputError(f"model {network.name}: its outputs must be arrays of real or complex numbers")
            allowed = (
                frozenset()
                if self._method == "jacobian"
                else frozenset(k for k, rate in enumerate(network.rates) if not np.shape(rate))
            )
            program = opened(jaxpr, len(parameters), allowed, network.pairs)
            if self._method == "structured":
                program = replace(program, pools={})
            sizes = tuple(prod(shape) for shape, _ in shapes)
            is_complex = any(jnp.issubdtype(dtype, jnp.complexfloating) for _, dtype in shapes)
            self._traced[key] = Traced(program, parameters, tuple(rest), network.rates, sizes, is_complex)
        return self._traced[key]

    def functionals(self, traced: Traced) -> np.ndarray:
        """The linear functionals of the real output vector whose gradients are needed, one in each row."""
        o = traced.outputs
        chosen = self._outputs
        if isinstance(chosen, str):
            return np.eye(2 * o if traced.complex_outputs else o)
        if traced.complex_outputs:
            raise InputError(
                'outputs: functionals of complex outputs are not defined; use "mean", "diagonal" or "full"'
            )
        if isinstance(chosen, int):
            if not -o <= chosen < o:
                raise InputError(f"outputs: there is no output {chosen}; the network has {o}")
            return np.eye(o)[[chosen]]
        rows = np.atleast_2d(np.asarray(chosen, dtype=np.float64))
        if rows.ndim != 2 or rows.shape[1] != o:
            raise InputError(f"outputs: expected functionals of {o} outputs, [{o}] or [k, {o}], got {np.shape(chosen)}")
        return rows

    def _total(self, x1: Any, x2: Any, progress: Progress | None, leaf: int | None) -> Any:
        host = not isinstance(x1, jax.Array) and not isinstance(x2, jax.Array)
        first, second = _pair(x1, x2)
        traced_inputs = is_tracer(first) or (second is not None and is_tracer(second))
        with precision_of(first):
            traced = self.traced(first)
            rows = self.functionals(traced)
            if traced.complex_outputs:
                result = self._complex(traced, rows, first, second, progress, leaf)
            else:
                result = self._assembled(traced, rows, rows, first, second, progress, leaf)
            if isinstance(self._outputs, str):
                result = result / traced.outputs if self._outputs == "mean" else result
            elif np.ndim(self._outputs) < 2:
                result = result[..., 0, 0]
            if traced_inputs:
                return result
            _check_finite(result)
            return result if host else jnp.asarray(result)

    def _complex(self, traced: Traced, rows: Any, x1: Any, x2: Any, progress: Any, leaf: int | None) -> Any:
        """Σ_p ∂F_p ⊗ conj(∂F'_p) from the products of real and imaginary parts."""
        o = traced.outputs
        turned = np.concatenate([-rows[o:], rows[:o]])
        other = x1 if x2 is None else x2
        real = self._assembled(traced, rows, rows, x1, other, progress, leaf)
        imaginary = self._assembled(traced, rows, turned, x1, other, progress, leaf)
        if self._pairing() == "all":
            real = real[..., :o, :o] + real[..., o:, o:]
            imaginary = imaginary[..., :o, :o] + imaginary[..., o:, o:]
        elif self._pairing() == "each":
            real, imaginary = (a[..., :o] + a[..., o:] for a in (real, imaginary))
        result = real + 1j * imaginary
        if x2 is not None:
            return result
        return (result + transposed(result, self._pairing()).conj()) / 2

    def _assembled(
        self, traced: Traced, rows1: Any, rows2: Any, x1: Any, x2: Any, progress: Progress | None, leaf: int | None
    ) -> Any:
        """All blocks of examples and of functionals, within the memory there is; inside a trace all at once."""
        pairing, k = self._pairing(), len(rows1)
        other = x1 if x2 is None else x2
        n, m = len(x1), len(other)
        if is_tracer(x1) or is_tracer(other):
            mirrored = x2 is None and rows1 is rows2
            call = jax.jit(arranged(self._block_of(traced, leaf, mirrored, self._method == "products")))
            result = call(traced.parameters, traced.rest, x1, other, rows1, rows2)
            return completed(result, pairing, jnp) if x2 is None else result
        plan = self._planned(traced, x1, other, rows1, Request(n, m, k, pairing, x2 is None), leaf)
        tall, wide, chunk = even(n, plan.block), m if plan.products else even(m, plan.block), even(k, plan.chunk)
        self._last = traced, plan, tall, even(m, plan.block)
        cuts1, cuts2, outs = cuts(n, tall), cuts(m, wide), cuts(k, chunk)
        shape = {"sum": (), "each": (k,), "all": (k, k)}[pairing]
        result: Any = None
        jobs = [(i, j) for i in cuts1 for j in cuts2 if x2 is not None or j[1] > i[0]]
        for done, (i, j) in enumerate(jobs):
            left, right = padded(x1, *i, tall), None if x2 is None and i == j else padded(other, *j, wide)
            for c in outs:
                for d in outs if pairing == "all" else [c]:
                    mirrored = right is None and c == d and rows1 is rows2
                    own = left if right is None else right
                    chosen = zeros_below(rows1[slice(*c)], chunk), zeros_below(rows2[slice(*d)], chunk)
                    arguments = traced.parameters, traced.rest, left, own, *chosen
                    part = np.asarray(self._compiled(traced, leaf, mirrored, plan.products, arguments)(*arguments))
                    if result is None:
                        result = np.zeros((n, m, *shape), part.dtype)
                    ends = (i, j, *{"sum": (), "each": (c,), "all": (c, d)}[pairing])
                    result[tuple(slice(*end) for end in ends)] += part[tuple(slice(b - a) for a, b in ends)]
            if progress is not None:
                progress(done + 1, len(jobs))
        return completed(result, pairing) if x2 is None else result

    def _planned(self, traced: Traced, x1: Any, x2: Any, rows: Any, request: Request, leaf: int | None) -> Plan:
        """A plan whose compiled program fits, by the compiler's own count, where that can be had."""
        key = (id(traced.program), request, leaf)
        if key in self._plans:
            return self._plans[key]
        memory = self._memory if self._memory is not None else free_memory()
        left = None if memory is None else memory - result_bytes(traced, request)

        def taken(plan: Plan) -> int | None:
            a, b, c = even(request.n, plan.block), even(request.m, plan.block), even(request.k, plan.chunk)
            mirrored = request.same and a == request.n
            columns = x2[: request.m if plan.products else b]
            arguments = traced.parameters, traced.rest, x1[:a], columns, rows[:c], rows[:c]
            return compiled_bytes(self._compiled(traced, leaf, mirrored, plan.products, arguments))

        plan = fitting(lambda safety: planned(traced, self._method, request, memory, safety), taken, left)
        self._plans[key] = plan
        return plan

    def _compiled(
        self, traced: Traced, leaf: int | None, mirrored: bool, by_products: bool, arguments: Any
    ) -> jax.stages.Compiled:
        """The program for blocks of the shapes of these arguments."""
        shapes = tuple((np.shape(a), str(jnp.result_type(a))) for a in arguments[2:])
        key = (id(traced.program), leaf, mirrored, by_products, shapes)
        if key not in self._blocks:
            function = self._block_of(traced, leaf, mirrored, by_products)
            self._blocks[key] = jax.jit(arranged(function)).lower(*arguments).compile()
        return self._blocks[key]

    def _block_of(self, traced: Traced, leaf: int | None, mirrored: bool, by_products: bool) -> Any:
        """The NTK of two blocks of examples; of one with itself if `mirrored`."""
        program = traced.program if leaf is None else traced.program.with_parts_apart(leaf)
        rates, pairing = traced.rates, self._pairing()

        def block(parameters: Any, rest: Any, x1: Any, x2: Any, rows1: Any, rows2: Any) -> Any:
            if by_products:
                own = [rate if leaf in (None, k) else 0.0 * np.asarray(rate) for k, rate in enumerate(rates)]
                return products(program, own, parameters, rest, x1, x1 if mirrored else x2, rows1, rows2, pairing)
            own = cheapest(program, len(x1), len(x1 if mirrored else x2), len(rows1), pairing, mirrored)
            left = gradients(own, parameters, rest, x1, rows1)
            right = left if mirrored else gradients(own, parameters, rest, x2, rows2)
            found = contributions(own, rates, left, right, pairing, self._method == "structured")
            return sum(found.values()) if leaf is None else found[leaf]

        return block


def _like(new: Any, old: Any) -> Any:
    return jnp.asarray(new, old.dtype) if hasattr(old, "dtype") and jnp.issubdtype(old.dtype, jnp.inexact) else new


def _pair(x1: Any, x2: Any) -> tuple[Any, Any]:
    """Both sets of examples, checked."""
    first = _examples(x1, "x1")
    second = None if x2 is None else _examples(x2, "x2")
    if second is not None and first.shape[1:] != second.shape[1:]:
        raise InputError(f"an example of x1 has shape {first.shape[1:]}, one of x2 {second.shape[1:]}")
    return first, second


def _examples(x: Any, name: str) -> Any:
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.ndim < 1 or array.size == 0:
        raise InputError(f"{name}: expected examples along the first axis, got shape {array.shape}")
    if array.dtype.kind not in "fciub" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name}: expected numbers, got dtype {array.dtype}")
    if array.dtype.kind in "fc" and not is_tracer(array) and not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(np.asarray(array)).reshape(len(array), -1).all(axis=1)))
        raise NonFiniteError(f"{name}[{row}] is not finite: it holds NaN or infinity; remove or impute it")
    return array


def zeros_below(rows: np.ndarray, count: int) -> np.ndarray:
    """As many rows as `count`, those that are missing zero."""
    return rows if len(rows) == count else np.pad(rows, [(0, count - len(rows)), (0, 0)])


def _check_finite(result: np.ndarray) -> None:
    if not np.isfinite(result).all():
        i, j = np.argwhere(~np.isfinite(result))[0][:2]
        raise NonFiniteError(
            f"the NTK of x1[{i}] and x2[{j}] is not finite: the network's gradient overflows or is NaN there"
        )
