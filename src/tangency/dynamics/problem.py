"""What is trained: examples, targets, a loss of each, a kernel, and the function that training starts from."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ..errors import InputError, NonFiniteError
from ..gram import check_examples
from ..losses import BatchedLoss, Loss, as_loss, check_callable, check_loss_targets
from .operator import KernelOperator

_BY_OUTPUT = ("real", "probabilities", "signs", "counts")


@dataclass(frozen=True)
class Problem:
    """Inside, functions have values `[N, o]`; `scalar` says that the user sees `[N]`."""

    operator: KernelOperator
    x: np.ndarray
    y: np.ndarray
    loss: Loss
    scalar: bool
    start: "Start"

    @property
    def outputs(self) -> int:
        return self.operator.outputs

    def shown(self, values: Float[np.ndarray, "*batch n o"]) -> Float[np.ndarray, "..."]:
        """Values as the user sees them."""
        return values[..., 0] if self.scalar else values

    def costs(self, f: Float[np.ndarray, "N o"]) -> Float[np.ndarray, " N"]:
        """The loss of each example."""
        with jax.enable_x64(True):
            return np.asarray(BatchedLoss(self.loss, self.scalar).value(f, self.y))

    def derivatives(self, f: Float[np.ndarray, "N o"]) -> Float[np.ndarray, "N o"]:
        """d|_f(x_i), the derivative of each example's loss with respect to its prediction."""
        with jax.enable_x64(True):
            return np.asarray(BatchedLoss(self.loss, self.scalar).derivative(f, self.y))

    def hessians(self, f: Float[np.ndarray, "N o"]) -> Float[np.ndarray, "N o o"]:
        """The Hessian of each example's loss with respect to its prediction."""
        with jax.enable_x64(True):
            return np.asarray(BatchedLoss(self.loss, self.scalar).hessian(f, self.y))


def problem(kernel: Any, cost: Any, x: Any, y: Any, f0: Any, outputs: int | None = None) -> Problem:
    """Checks what the user gave and settles the number of outputs.

    Raises InputError, NonFiniteError.
    """
    loss = as_loss(cost)
    examples = check_examples(x, "x")
    targets = check_loss_targets(loss, y, len(examples))
    start = Start(f0, examples)
    count, scalar = _outputs(kernel, loss, targets, start, outputs)
    operator = KernelOperator(kernel, count)
    start.settle(count)
    check_callable(loss, scalar, targets, count)
    return Problem(operator, examples, targets, loss, scalar, start)


class Start:
    """f_0: zero, a function of a batch of examples, or values known at the training examples alone."""

    def __init__(self, given: Any, x: np.ndarray):
        self._given = given
        self._raw = None if given is None else self._values(given, x) if callable(given) else _array(given, "f0", x)
        self._n = len(x)

    @property
    def columns(self) -> int | None:
        """How many outputs f_0 shows; None where it is zero or a vector."""
        return None if self._raw is None or self._raw.ndim == 1 else self._raw.shape[1]

    def settle(self, outputs: int) -> None:
        """Fixes the number of outputs. Raises InputError where f_0 has another."""
        self._outputs = outputs
        self.train = np.zeros((self._n, outputs)) if self._raw is None else self._columns(self._raw)
        """f_0 at the training examples, `[N, o]`."""

    @property
    def known_everywhere(self) -> bool:
        return self._given is None or callable(self._given)

    def at(self, x: np.ndarray, values: Any = None) -> Float[np.ndarray, "n o"]:
        """f_0 at new examples; `values` where it was given by its values. Raises InputError where that is missing."""
        if values is not None:
            if self.known_everywhere:
                raise InputError("f0 is given twice: training knows it as a function; leave it out here")
            return self._columns(_array(values, "f0", x))
        if self._given is None:
            return np.zeros((len(x), self._outputs))
        if not callable(self._given):
            raise InputError(
                "f0 was given by its values at the training examples: give its values at x too, as f0=, or train from "
                "a function"
            )
        return self._columns(self._values(self._given, x))

    def _values(self, function: Any, x: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            try:
                found = np.asarray(function(x))
            except Exception as error:
                first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
                raise InputError(
                    f"f0 could not be called on examples of shape {x.shape}: {type(error).__name__}: {first}; it takes "
                    "a batch: use jax.vmap(model)"
                ) from error
        return _array(found, "f0", x)

    def _columns(self, values: np.ndarray) -> np.ndarray:
        columns = values[:, None] if values.ndim == 1 else values
        if columns.shape[1] != self._outputs:
            raise InputError(f"f0 has {columns.shape[1]} outputs; the function trained has {self._outputs}")
        return columns


def _array(values: Any, name: str, x: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} has dtype {array.dtype}; give numbers, or a function of examples")
    if array.ndim not in (1, 2) or len(array) != len(x):
        raise InputError(
            f"{name} has shape {array.shape}; the {len(x)} examples need [{len(x)}] or [{len(x)}, outputs]"
        )
    array = array.astype(np.float64)
    finite = np.isfinite(array.reshape(len(x), -1)).all(axis=1)
    if not finite.all():
        raise NonFiniteError(f"{name} is not finite in row {int(np.argmin(finite))}")
    return array


def _outputs(kernel: Any, loss: Loss, y: np.ndarray, start: "Start", outputs: int | None) -> tuple[int, bool]:
    """The number of outputs, and whether the user sees none."""
    if outputs is not None and not (isinstance(outputs, int) and outputs >= 1):
        raise InputError(f"outputs is {outputs!r}; give an integer ≥ 1")
    shown = outputs or start.columns or getattr(kernel, "outputs", None)
    if loss.targets == "classes" and y.ndim == 1:
        needed = int(y.max()) + 1
        if shown is not None and shown < needed:
            raise InputError(f"y has the label {needed - 1}, but there are {shown} outputs")
        return shown or needed, False
    if loss.targets in (*_BY_OUTPUT, "classes") and y.ndim == 2:
        if outputs is not None and outputs != y.shape[1]:
            raise InputError(f"outputs is {outputs}, but y has {y.shape[1]} columns")
        return y.shape[1], False
    if loss.targets in _BY_OUTPUT:
        if outputs not in (None, 1):
            raise InputError(f"outputs is {outputs}, but y is a vector: give it one column for each output")
        return 1, outputs is None
    if shown is not None and not (y.ndim == 1 and outputs is None and shown == 1):
        return shown, False
    return (1, True) if y.ndim == 1 else (y.shape[1], False)
