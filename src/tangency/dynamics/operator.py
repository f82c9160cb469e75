"""How a kernel acts on functions with several outputs: k ⊗ I, k ⊗ B, or a full matrix for each pair of examples."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..gram import gram_blocks, gram_rows
from ..kernels import CoupledKernel, FunctionKernel, Kernel, as_kernel
from ..types import Kind, Progress


class KernelOperator:
    """(K α)(x) = Σ_i K(x, x_i) α_i for coefficients `[N, o]`, whichever of its three forms the kernel has.

    Raises InputError where the kernel has another number of outputs.
    """

    def __init__(self, kernel: Any, outputs: int):
        self.given = as_kernel(kernel)
        self.outputs = outputs
        self.coupling = self.given.coupling if isinstance(self.given, CoupledKernel) else None
        self.kernel: Kernel = self.given.kernel if isinstance(self.given, CoupledKernel) else self.given
        if self.coupling is not None:
            self._check_outputs(len(self.coupling))

    def gram(
        self, x: np.ndarray, *, kind: Kind = "ntk", memory: int | None = None, progress: Progress | None = None
    ) -> Float[np.ndarray, "N N *oo"]:
        """The matrix of the scalar factor, `[N, N]`, or the full one, `[N, N, o, o]`."""
        return self._checked(gram_blocks(self.kernel, x, kind=kind, memory=memory, progress=progress))

    def rows(
        self, x1: np.ndarray, x2: np.ndarray, kind: Kind = "ntk"
    ) -> Iterator[tuple[slice, Float[np.ndarray, "..."]]]:
        """As `gram`, for new examples x1, in blocks."""
        for rows, block in gram_rows(self.kernel, x1, x2, kind, outputs=self.outputs):
            yield rows, self._checked(block, lead=1 if kind == "both" else 0)

    def act(
        self, block: Float[np.ndarray, "n m *oo"], coefficients: Float[np.ndarray, "*batch m o"]
    ) -> Float[np.ndarray, "*batch n o"]:
        """Σ_j K_nj α_j, with the coupling."""
        if block.ndim == 4:
            flat = flattened(block) @ coefficients.reshape(*coefficients.shape[:-2], -1, 1)
            return flat.reshape(*coefficients.shape[:-2], len(block), self.outputs)
        values = (coefficients[..., 0] @ block.T)[..., None] if self.outputs == 1 else block @ coefficients
        return values if self.coupling is None else values @ self.coupling

    def evaluate(
        self, x: np.ndarray, centres: np.ndarray, coefficients: Float[np.ndarray, "*batch m o"]
    ) -> Float[np.ndarray, "*batch n o"]:
        """Σ_j K(x, centre_j) α_j."""
        values = np.empty((*coefficients.shape[:-2], len(x), self.outputs))
        for rows, block in self.rows(x, centres):
            values[..., rows, :] = self.act(block, coefficients)
        return values

    def _checked(self, block: np.ndarray, lead: int = 0) -> np.ndarray:
        if block.ndim - lead == 4:
            if self.coupling is not None:
                raise InputError("the kernel inside a CoupledKernel is matrix-valued; give it a scalar one")
            self._check_outputs(block.shape[-1])
        return block

    def _check_outputs(self, found: int) -> None:
        if found != self.outputs:
            raise InputError(
                f"the kernel has {found} outputs but the function has {self.outputs}: give targets with {found} "
                "columns, or outputs="
            )


def flattened(block: Float[np.ndarray, "*kinds n m o o"]) -> Float[np.ndarray, "*kinds no mo"]:
    """A matrix-valued kernel as one matrix: rows (example, output), columns alike."""
    *lead, n, m, o, _ = block.shape
    return np.moveaxis(block, -2, -3).reshape(*lead, n * o, m * o)


def same_kernel(first: Kernel, second: Kernel) -> bool:
    """Whether two kernels are one: the same object, wrap the same function, or couple the same kernel alike."""
    if isinstance(first, FunctionKernel) and isinstance(second, FunctionKernel):
        return first is second or first.k is second.k
    if isinstance(first, CoupledKernel) and isinstance(second, CoupledKernel):
        return same_kernel(first.kernel, second.kernel) and np.array_equal(first.coupling, second.coupling)
    return first is second
