"""`tangency.kernel_flow`."""

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..gram import check_examples, check_targets, require_factorisation
from ..losses import as_loss
from ..solve import ridge_value
from ..types import Inputs, Progress
from .coupled_flow import CoupledFlow
from .flow import KernelFlow, Matrices, Training
from .problem import problem

if TYPE_CHECKING:
    from .loss_flow import LossFlow


@overload
def kernel_flow(
    kernel: Any,
    x: Inputs,
    y: Float[np.ndarray, "N *o"],
    *,
    cost: None = None,
    ridge: float = 0.0,
    f0: Any = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> KernelFlow: ...


@overload
def kernel_flow(
    kernel: Any,
    x: Inputs,
    y: Any,
    *,
    cost: Any,
    ridge: float = 0.0,
    f0: Any = None,
    outputs: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> "LossFlow": ...


def kernel_flow(
    kernel: Any,
    x: Inputs,
    y: Any,
    *,
    cost: Any = None,
    ridge: float = 0.0,
    f0: Any = None,
    outputs: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> "KernelFlow | LossFlow":
    """Train on examples x, `[N, ...]`, and targets y, `[N]` or `[N, o]`, for all times at once.

    The cost is averaged over the N examples, C(f) = (1/N) Σ_i loss(f(x_i), y_i) + λ/(2N) ‖f − f_0‖²_Θ with the ridge λ,
    and t is the time of its gradient flow ∂_t f = −∇_Θ C; one step of gradient descent with learning rate η advances t
    by η.

    Args:
        kernel: a `Kernel`, or a function k(x1, x2) -> `[n, m]` (then both K and Θ). Outputs are independent unless it
            is matrix-valued, `[n, m, o, o]`, or a `CoupledKernel`.
        cost: None or "squared" for ½ ‖f(x_i) − y_i‖², in closed form: a `KernelFlow` with mean and covariance of the
            ensemble. Any other as for `kernel_gradient`, solved as an ordinary differential equation by an implicit
            method (diffrax): a `LossFlow`.
        ridge: λ ≥ 0.
        f0: where training starts: a function of a batch of examples (`jax.vmap(model)`), its values at x, or None for
            zero.
        outputs: the number of outputs, where neither y nor f0 shows it.
        memory: bytes that may be used (default: the physical memory available).
        progress: follows the kernel matrix.

    Raises:
        InputError: a bad argument, or a loss with kinks, whose flow no solver follows. NonFiniteError: it names the
            row. MemoryLimitError: the solution does not fit.
    """
    ridge = ridge_value(ridge)
    examples = check_examples(x, "x")
    loss = as_loss("squared" if cost is None else cost)
    targets = check_targets(y, len(examples)) if loss.quadratic else y
    if not loss.smooth:
        raise InputError(
            f"the {loss.name} loss has kinks, along which no solver follows its flow: round them off with "
            f"tangency.losses.{loss.name.split('(')[0]}(smoothing=…), or use kernel_descent"
        )
    task = problem(kernel, loss, examples, targets, f0, outputs)
    require_factorisation(len(task.x), 1, memory)
    block = task.operator.gram(task.x, memory=memory, progress=progress)
    if not loss.quadratic:
        # diffrax takes a second to import.
        from .loss_flow import LossFlow

        return LossFlow(task, block, ridge, memory)
    matrices = Matrices(task.operator.kernel, task.x, block, memory)
    if task.operator.coupling is not None:
        return CoupledFlow(task, matrices, ridge)
    return KernelFlow(Training(task, matrices), ridge)
