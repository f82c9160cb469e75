"""`tangency.limit`."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import InputError
from ..graph.sampling import QuasiMonteCarlo
from ..trace.derive import Settings
from ..trace.model import Model, open_model
from .kernel import LimitKernel


def limit(
    model: Model,
    *,
    batched: bool | None = None,
    input_shape: Sequence[int] | None = None,
    trainable: Any = True,
    learning_rate: Any = None,
    init_stats: Mapping[str, tuple[float, float]] | None = None,
    strict: bool = False,
    numerical: bool | QuasiMonteCarlo = False,
    training: bool = False,
    fused: bool | None = None,
    threads: int | None = None,
    precision: Literal["float32", "float64"] | None = None,
) -> LimitKernel:
    """The infinite-width limit of a random network, derived by tracing the network itself.

    Args:
        model: a function `key -> equinox.Module` (called on one example), a function `key -> flax.nnx.Module` (called
            on a batch), or a pair `(init, apply)` of functions, `init(key)` or `init(key, x)` and `apply(parameters,
            x)`, as plain JAX, Flax Linen and Haiku (`without_apply_rng`) give. The network is taken in inference
            mode, unless `training` says otherwise.
        batched: whether the model is called on a batch; default: True for Flax NNX, False otherwise.
        input_shape: shape of one example. Needed only to derive (and print) the limit before there is data.
        trainable: booleans, a pytree prefix of the parameters: which of them train.
        learning_rate: numbers, or the word "variance", a pytree prefix of the parameters: the learning rate of each
            entry. "variance", the default, is the entry's variance at initialisation (the NTK parameterisation), and 1
            for a bias or a scale of zero variance.
        init_stats: `{name: (mean, variance)}` for parameters whose initialiser cannot be read.
        strict: refuse a model whose limit needs a remark (see `print(kernel)`), such as uniform weights at the input.
        numerical: integrate functions of several Gaussians, which have no closed rule (max-pooling, GRU, LSTM, an
            activation after a sum of branches), by quasi-Monte-Carlo: True, or a `QuasiMonteCarlo` that says how.
            `kernel.estimate(x1, x2)` then gives the standard error too. Where a closed rule exists it is used.
        training: leave dropout on, each at its own rate (an Equinox network is called with `key=` if it takes one).
            Masks are drawn anew for each example: they raise K(x, x) and Θ(x, x), the diagonal of `kernel(x)`, and no
            other entry (Schoenholz et al. 2017, arXiv:1611.01232, section 5). BatchNorm is refused.
        fused: whether concrete arrays on the CPU are evaluated by a program compiled for this network, once for any
            number of examples, and much faster than by XLA. It takes some seconds to compile, and is then kept in
            `$TANGENCY_CACHE_DIR`, by default in the user's cache folder. None: always without positions; with
            positions, or very many layers, where there is enough to evaluate to repay that; True: always; False:
            never. `print(kernel)` says whether the network has such a form. Tracers and derivatives always use XLA.
            In float32, 21 convolutions with ReLU err by at most 5e-7 relative to float64 (CIFAR-10 and Gaussian
            images).
        threads: how many threads the fused path may use; None: as many as the process has processors.
        precision: the type in which real inputs are evaluated, whatever their own; None: their own. Everything that
            fits a kernel to data hands over float64 and solves in float64, so that "float32" here makes the fused
            kernel of images about three times faster; its error is stated above. Tracers keep their type.

    Returns:
        A kernel: `kernel(x1, x2=None)` is the NTK Θ and `kernel.nngp(x1, x2=None)` the NNGP kernel K per output
        coordinate, both `[n, m]`; `kernel.both(x1, x2)` gives (K, Θ) from one pass; `print(kernel)` and
        `kernel.explain()` show what was derived.

    All widths, that is all axes that weights contract other than the input's own, go to infinity; the traced width
    only scales variances. In a grouped convolution the channels of each group go to infinity; with one channel in each
    group (depthwise) their number does, and the result is no Gaussian until the next weight mixes the channels.
    Attention scores must be divided by d, with which they become deterministic. Where the output keeps positions, the
    kernels are `[n, m, s…, s'…]`.
    Initialiser means and variances are read from the initialiser's own computation.

    Raises:
        InputError: the model is given in no known form.
        UnsupportedModelError: (when traced) an operation or parameter has no infinite-width rule; it names the
            operation, the line of the model and the way out.

    References:
        Jacot, Gabriel, Hongler 2018 (arXiv:1806.07572); Lee et al. 2018 (arXiv:1711.00165); Novak et al. 2019
        (arXiv:1810.05148); Yang 2019 (arXiv:1902.04760) and 2020 (arXiv:2006.14548).
    """
    if batched is not None and not isinstance(batched, bool):
        raise InputError(f"batched: expected True, False or None, got {batched!r}")
    if not isinstance(numerical, bool | QuasiMonteCarlo):
        raise InputError(f"numerical: expected True, False or a QuasiMonteCarlo, got {numerical!r}")
    sampling = (QuasiMonteCarlo() if numerical else None) if isinstance(numerical, bool) else numerical
    if not isinstance(training, bool):
        raise InputError(f"training: expected True or False, got {training!r}")
    if fused is not None and not isinstance(fused, bool):
        raise InputError(f"fused: expected True, False or None, got {fused!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads: expected a whole number from 1 on, or None, got {threads!r}")
    if precision not in (None, "float32", "float64"):
        raise InputError(f'precision: expected "float32", "float64" or None, got {precision!r}')
    functions = open_model(model, batched, training)
    shape = None if input_shape is None else _shape(input_shape)
    settings = Settings(trainable, learning_rate, init_stats, strict, sampling)
    return LimitKernel(functions, settings, shape, fused=fused, threads=threads, precision=precision)


def _shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(length) for length in input_shape)
    except TypeError:
        raise InputError(f"input_shape: expected a tuple of integers such as (784,), got {input_shape!r}") from None
