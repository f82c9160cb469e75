"""Known values: quantities that depend on one example's input and on constants, never on a parameter.

They form a graph of their own, evaluated once per example. By the law of large numbers, averages of a random signal
over its width belong here too (`WidthSum`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from .signal import Segment


# fmt: off
ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp",
    "convert_element_type", "copy", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt",
    "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign",
    "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
))
# fmt: on
"""Primitives that act entry by entry on arrays of one shape."""


@dataclass(frozen=True)
class PendingWidth:
    """A factor width**power that a sum over the width has left and that no 1/width has met yet.

    Until then the sum also fluctuates, by the central limit theorem. `settled` says that this no longer matters (as in
    a norm, whose mean outgrows its fluctuations); `zero_mean` that the fluctuations are all there is. `positions`
    counts those that were summed over as well, and `parts` how many parts of the width have a sum of their own.
    """

    width: int
    power: Fraction
    settled: bool = False
    zero_mean: bool = False
    positions: int = 1
    parts: int = 1

    @property
    def vanishing(self) -> bool:
        """Whether it is an average of zero mean, of order 1/√width, which the limit takes for zero."""
        return self.zero_mean and self.power < 0


@dataclass(frozen=True)
class Operation:
    """A JAX primitive with its own parameters, applied in the precision of its arguments.

    Equality is structural, so that one activation used in a hundred layers is analysed once.
    """

    name: str
    signature: Hashable
    primitive: Any = field(compare=False, repr=False)
    parameters: dict[str, Any] = field(compare=False, repr=False)
    output: int = 0
    source: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, primitive: Any, parameters: dict[str, Any], *, output: int = 0, source: str | None = None) -> Operation:
        signature = tuple(sorted((name, repr(value)) for name, value in parameters.items()))
        return cls(primitive.name, signature, primitive, parameters, output, source)

    def __call__(self, *arguments: jax.Array, dtype: Any) -> Any:
        """Apply to arrays; floating-point types among the parameters become `dtype`, integer types are canonical."""
        parameters = {name: _retype(value, dtype) for name, value in self.parameters.items()}
        if self.name in ELEMENTWISE:
            arguments = tuple(jnp.broadcast_arrays(*arguments))
        result = self.primitive.bind(*arguments, **parameters)
        return result[self.output] if self.primitive.multiple_results else result


def _retype(value: Any, dtype: Any) -> Any:
    if not isinstance(value, np.dtype) and not (isinstance(value, type) and issubclass(value, np.generic)):
        return value
    if jnp.issubdtype(value, jnp.floating):
        return np.dtype(dtype)
    return jax.dtypes.canonicalize_dtype(value)


@dataclass(frozen=True, eq=False)
class Known:
    """Base class. `shape` is that of one example's array; `pending` is set while a sum over a width is unnormalised."""

    shape: tuple[int, ...]
    pending: PendingWidth | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Input(Known):
    """The network's input, one example."""


@dataclass(frozen=True, eq=False)
class Constant(Known):
    """A number or an array that is the same for all examples."""

    value: np.ndarray = field(kw_only=True)

    @classmethod
    def of(cls, value: Any) -> Constant:
        array = np.asarray(value)
        return cls(array.shape, value=array)

    @property
    def scalar(self) -> float | None:
        """The number, if it is one; also when every entry of an array is the same."""
        if self.value.size == 0 or self.value.dtype == bool:
            return None
        first = self.value.reshape(-1)[0]
        return float(first) if self.value.size == 1 or bool(np.all(self.value == first)) else None


@dataclass(frozen=True, eq=False)
class Apply(Known):
    """A primitive applied to Known values."""

    operation: Operation = field(kw_only=True)
    arguments: tuple[Known, ...] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class WidthSum(Known):
    """share · Σ_c E[s_c] over the width of a signal, one number for each position.

    By the law of large numbers it is what the sum itself converges to; `share` is below one for a sum over a part of
    the width.
    """

    segments: tuple[Segment, ...] = field(kw_only=True)
    share: float = field(default=1.0, kw_only=True)


ONE = Constant.of(1.0)
ZERO = Constant.of(0.0)


def is_number(known: Known, number: float) -> bool:
    """Whether a Known value is the constant `number` everywhere."""
    return isinstance(known, Constant) and known.scalar == number
