"""Array types, named once. Axes: n, m examples; o outputs; t times."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

Array: TypeAlias = jax.Array | np.ndarray

Inputs: TypeAlias = Float[Array, "n *shape"]
"""Examples along the first axis; the rest is the shape of one example."""

Gram: TypeAlias = Float[Array, "n m"]
"""A kernel matrix, per output coordinate."""

Kind: TypeAlias = Literal["nngp", "ntk", "both"]
"""Which kernel: the NNGP second moment K, the NTK Θ, or the two stacked as [2, n, m]."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (units done, units in all) as a long computation goes on."""
