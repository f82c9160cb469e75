"""`tangency.empirical`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..errors import InputError
from .kernel import METHODS, EmpiricalKernel, Method
from .model import Network, opened


def empirical(
    model: Any,
    parameters: Any = None,
    *,
    outputs: Any = "mean",
    method: Method = "auto",
    memory: int | None = None,
    key: Any = None,
    state: Any = None,
    batched: bool | None = None,
    trainable: Any = True,
    learning_rate: Any = None,
    scale: str | None = None,
) -> EmpiricalKernel:
    """The NTK Θ(x, x') = Σ_p η_p ∂F_p(x) ⊗ ∂F_p(x') of a finite network at its current parameters.

    Args:
        model: an `equinox.Module` (called on one example), a `flax.nnx.Module` (called on a batch), a function
            `(parameters, x)` of one example with its `parameters`, or, with `key`, what `tangency.limit` takes. The
            network is taken in inference mode, and must treat the examples of a batch apart.
        parameters: any pytree of real or complex arrays, if the model is a plain function.
        outputs: "mean" gives the average of Θ_oo over outputs, `[n, m]`, which converges to the limit kernel;
            "diagonal" Θ_oo, `[n, m, o]`; "full" `[n, m, o, o]`; an integer one output, `[n, m]`; a vector `[o]` the
            NTK of that linear functional of the outputs, `[n, m]`; a matrix `[k, o]` that of k functionals,
            `[n, m, k, k]`. Outputs of any shape and pytree are flattened in the order of `jax.tree.leaves`.
        method: "structured" contracts signals with signals and cotangents with cotangents at every use of a parameter
            and forms no Jacobian of it; "jacobian" forms them all; "products" takes a backward and a forward pass for
            each column. "auto" chooses between the first two for each parameter by counted operations, and the third
            for all where it takes less than half of those; where the positions at which a parameter is used come
            together again before entries mix, as in a global average pool, it forms one gradient for all outputs
            ("pooled"). `print(kernel)` says what was chosen. The result is the same up to rounding.
        memory: bytes that may be used (default: what the device has free). Examples, outputs and entries of
            parameters are taken in blocks that fit, by our own count and by the compiler's. Inside `jit` everything is
            taken at once.
        key: initialises a model that is given as a function of a key, in the precision of the session (float32, unless
            JAX's `jax_enable_x64` is on), whatever that of the inputs.
        state: for an Equinox network that is called as `network(x, state)`, such as one with BatchNorm.
        batched: whether the model is called on a batch; default: True for Flax NNX, False otherwise.
        trainable: booleans, a pytree prefix of the parameters: which of them count.
        learning_rate: η, numbers or arrays of the parameters' shapes, a pytree prefix of the parameters; 1 if not
            given. An array for each parameter also expresses a diagonal preconditioner, such as Adam's.
        scale: "init" takes for η the variance of each parameter at initialisation (1 where it is zero), with which
            Θ converges to `tangency.limit(model)`; needs `key`.

    Complex parameters count as their real and imaginary parts; for complex outputs Θ = Σ_p η_p ∂F_p ⊗ conj(∂F'_p).
    float64 NumPy inputs are computed in float64, whatever the precision of the parameters.

    Raises:
        InputError: an argument is not what it must be.

    References:
        Jacot, Gabriel, Hongler 2018 (arXiv:1806.07572); Novak, Sohl-Dickstein, Schoenholz 2022 (arXiv:2206.08720) for
        the three families of algorithms.
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(outputs, str) and outputs not in ("mean", "diagonal", "full"):
        raise InputError(f'outputs: expected "mean", "diagonal", "full", an integer or an array, got {outputs!r}')
    if isinstance(outputs, bool) or (not isinstance(outputs, str | int) and np.ndim(outputs) not in (1, 2)):
        raise InputError('outputs: expected "mean", "diagonal", "full", an integer, a vector or a matrix')
    if memory is not None and memory <= 0:
        raise InputError(f"memory is {memory}; give a number of bytes > 0")
    settings = dict(
        state=state, key=key, batched=batched, trainable=trainable, learning_rate=learning_rate, scale=scale
    )
    found: list[Network] = []
    double: bool = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]

    def network(example: Any) -> Network:
        if not found:
            # JAX draws other numbers in float64: these are the ones that the caller would draw.
            with jax.enable_x64(double):
                if example is not None:
                    example = example.astype(jax.dtypes.canonicalize_dtype(example.dtype))
                found.append(opened(model, parameters, example=example, **settings))
        return found[0]

    if key is None:
        network(None)
    return EmpiricalKernel(network, outputs, method, memory)
