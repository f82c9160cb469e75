"""Kernels made from kernels: sums, products, multiples, and kernels of mapped inputs."""

import abc
from collections.abc import Callable
from functools import reduce
from math import isfinite
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..types import Array, Inputs, Kind, Progress
from .base import Kernel


class _Combination(Kernel):
    """Entry by entry from other kernels, K from their K and Θ from their Θ."""

    _symbol: ClassVar[str]

    def __init__(self, *kernels: Kernel):
        if len(kernels) < 2 or not all(isinstance(kernel, Kernel) for kernel in kernels):
            raise InputError(f"{type(self).__name__}: give two kernels or more")
        self.kernels = kernels

    @property
    def kinds(self) -> tuple[Kind, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What all of the kernels have."""
        return tuple(kind for kind in self.kernels[0].kinds if all(kind in kernel.kinds for kernel in self.kernels))

    def __repr__(self) -> str:
        return "(" + f" {self._symbol} ".join(map(repr, self.kernels)) + ")"

    @staticmethod
    @abc.abstractmethod
    def _combined(first: Array, second: Array) -> Array: ...

    def evaluate(self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None) -> Array:
        parts = len(self.kernels)

        def part(number: int) -> Array:
            def follow(done: int, total: int) -> None:
                if progress is not None:
                    progress(number * total + done, parts * total)

            return self.kernels[number].evaluate(kind, x1, x2, progress=follow)

        return self._reduced([part(number) for number in range(parts)])

    def diagonal(self, kind: Kind, x: Inputs) -> Array:
        return self._reduced([kernel.diagonal(kind, x) for kernel in self.kernels])

    def tile(self, kind: Kind, x: Inputs) -> int:
        return min(kernel.tile(kind, x) for kernel in self.kernels)

    def _reduced(self, values: list[Array]) -> Array:
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            found = " and ".join(map(str, sorted(shapes)))
            raise InputError(f"{self!r}: the kernels' matrices have shapes {found}; they must be the same")
        return reduce(self._combined, values)


class Sum(_Combination):
    """K = Σ K_i and Θ = Σ Θ_i: the kernels of a sum of independent networks."""

    _symbol = "+"

    @staticmethod
    def _combined(first: Array, second: Array) -> Array:
        return first + second


class Product(_Combination):
    """K = Π K_i and Θ = Π Θ_i, entry by entry: positive semi-definite again (Schur).

    K is that of a product of independent networks; Θ is a kernel to train with, and not the NTK of such a product.
    """

    _symbol = "·"

    @staticmethod
    def _combined(first: Array, second: Array) -> Array:
        return first * second


class _Wrapped(Kernel):
    """A kernel made from one other."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    @property
    def kinds(self) -> tuple[Kind, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the kernel has."""
        return self.kernel.kinds


class Scaled(_Wrapped):
    """c K and c Θ: the kernels of the network √c f. Raises InputError unless c is a finite number ≥ 0."""

    def __init__(self, kernel: Kernel, factor: float):
        number = float(factor)
        if not (isfinite(number) and number >= 0):
            raise InputError(f"a kernel times {factor!r} is no kernel; the factor must be a finite number ≥ 0")
        super().__init__(kernel)
        self.factor = number

    def __repr__(self) -> str:
        return f"{self.factor:g}·{self.kernel!r}"

    def evaluate(self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None) -> Array:
        return self.factor * self.kernel.evaluate(kind, x1, x2, progress=progress)

    def diagonal(self, kind: Kind, x: Inputs) -> Array:
        return self.factor * self.kernel.diagonal(kind, x)

    def tile(self, kind: Kind, x: Inputs) -> int:
        return self.kernel.tile(kind, x)


class Mapped(_Wrapped):
    """k(γ(x), γ(x′)) for a mapping γ of one example, a JAX function or an Equinox module.

    With the limit of a network this is the limit of the network behind the mapping, if nothing of γ trains.

    Raises InputError when γ fails on an example.
    """

    def __init__(self, kernel: Kernel, mapping: Callable[[Any], Any]):
        if not callable(mapping):
            raise InputError(f"mapping is {mapping!r}; give a function of one example")
        super().__init__(kernel)
        self.mapping = mapping
        self._map = jax.jit(jax.vmap(mapping))

    def __repr__(self) -> str:
        return f"{self.kernel!r}.of({getattr(self.mapping, '__name__', None) or repr(self.mapping)})"

    def evaluate(self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None) -> Array:
        second = None if x2 is None else self._mapped(x2, "x2")
        return self.kernel.evaluate(kind, self._mapped(x1, "x1"), second, progress=progress)

    def diagonal(self, kind: Kind, x: Inputs) -> Array:
        return self.kernel.diagonal(kind, self._mapped(x, "x"))

    def tile(self, kind: Kind, x: Inputs) -> int:
        return self.kernel.tile(kind, self._mapped(x, "x"))

    def _mapped(self, x: Inputs, name: str) -> Array:
        try:
            if isinstance(x, jax.Array):
                return self._map(x)
            with jax.enable_x64(True):
                mapped = np.asarray(self._map(jnp.asarray(x)))
        except (TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{name}: the mapping failed on an example of shape {np.shape(x)[1:]}: {reason}"
            ) from error
        dtype = np.asarray(x).dtype
        return mapped.astype(dtype, copy=False) if dtype.kind == "f" else mapped
