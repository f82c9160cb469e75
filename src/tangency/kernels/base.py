"""The kernel interface: everything downstream of a kernel relies on this and on nothing else."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Float

from ..types import Array, Gram, Inputs, Kind, Progress
from .operator import KernelOperator
from .tile_matrix import TileMatrix
from .tiles import TILE


class Kernel(abc.ABC):
    """A pair of positive semi-definite kernels on examples: K (NNGP) and Θ (NTK).

    Calling a kernel gives Θ. Inputs have a leading example axis. `x2=None` means `x1`: half of the entries are
    computed and the result is exactly symmetric. Equal inputs are a fact the caller states by `None`; they are
    never guessed. NumPy arrays give a NumPy array of the same dtype (float64 is computed in float64 whatever JAX's
    global precision flag says); JAX arrays and tracers give a JAX array under the caller's own settings.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("nngp", "ntk", "both")

    @abc.abstractmethod
    def evaluate(
        self, kind: Kind, x1: Inputs, x2: Inputs | None = None, *, progress: Progress | None = None
    ) -> Float[Array, "*kinds n m"]:
        """The Gram matrix of one kind, `[n, m]`; `"both"` stacks (K, Θ) as `[2, n, m]`."""

    @abc.abstractmethod
    def diagonal(self, kind: Kind, x: Inputs) -> Float[Array, "*kinds n"]:
        """k(x_i, x_i) without forming the matrix, `[n]`; `"both"` stacks (K, Θ) as `[2, n]`."""

    def __deepcopy__(self, memo: object) -> "Kernel":
        """A kernel is immutable: a copy, as scikit-learn's clone makes, is itself and keeps what it has compiled."""
        return self

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Gram:
        """The NTK Θ(x1, x2), `[n, m]`."""
        return self.evaluate("ntk", x1, x2)

    def nngp(self, x1: Inputs, x2: Inputs | None = None) -> Gram:
        """The NNGP kernel K(x1, x2), `[n, m]`."""
        return self.evaluate("nngp", x1, x2)

    def both(self, x1: Inputs, x2: Inputs | None = None) -> tuple[Gram, Gram]:
        """(NNGP, NTK) from one pass, each `[n, m]`."""
        stacked = self.evaluate("both", x1, x2)
        return stacked[0], stacked[1]

    def __add__(self, other: "Kernel") -> "Kernel":
        """K + K′ and Θ + Θ′, as of the sum of two independent networks."""
        from .combination import Sum  # Combinations are kernels themselves.

        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: "Kernel | float") -> "Kernel":
        """The entrywise product with a kernel, or a multiple by a number ≥ 0."""
        from .combination import Product, Scaled

        if isinstance(other, Kernel):
            return Product(self, other)
        return Scaled(self, other) if isinstance(other, int | float) else NotImplemented

    def __rmul__(self, factor: float) -> "Kernel":
        """A multiple by a number ≥ 0."""
        return self * factor

    def of(self, mapping: Callable[[Any], Any]) -> "Kernel":
        """The kernel k(γ(x), γ(x′)) of inputs that `mapping` γ, a JAX function of one example, maps first."""
        from .combination import Mapped

        return Mapped(self, mapping)

    def operator(self, x1: Inputs, x2: Inputs | None = None, *, kind: Kind = "ntk") -> KernelOperator:
        """The matrix `[n, m]` of one kind as a linear operator, for SciPy and lineax: it is computed anew for each
        product, tile by tile, and never held.

        Raises:
            InputError: the kernel has no such kind, or the shapes of the inputs do not fit.
        """
        return KernelOperator(TileMatrix(self, kind, x1, x2))

    def tile(self, kind: Kind, x: Inputs) -> int:
        """How many examples like x to take at once on each side inside `jit`, where nothing else bounds the memory."""
        return TILE
