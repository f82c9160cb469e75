"""One affine layer: its NTK is the linear kernel, so it is ridge regression."""

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .dense import Dense


class Linear(eqx.Module):
    """x ↦ W x + b, the network without a hidden layer."""

    readout: Dense

    def __init__(self, in_size: int, out_size: int, *, w_std: float = 1.0, b_std: float = 0.1, key: PRNGKeyArray):
        self.readout = Dense(in_size, out_size, w_std=w_std, b_std=b_std, key=key)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        return self.readout(x)
