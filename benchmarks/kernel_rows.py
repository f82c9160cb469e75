"""The networks of the fused benchmark as data, and the same in the language of the peer. Imports neither library."""

from __future__ import annotations

import math
from dataclasses import dataclass

from networks import PEER_ACTIVATIONS, Case

WIDTH = 16
SHAPE = (3, 32, 32)
DENSE_N, DENSE_D = 6000, 784
_HE = math.sqrt(2.0)


@dataclass(frozen=True)
class Row:
    """`depth` layers of one activation: dense with σ_b = 0.1, or 3×3 convolutions without biases.

    Attributes:
        head: "average" or "flatten" for convolutions, "dense".
        pooled: layers that a 2×2 average pool follows.
        fused, reference, peer: how many examples each path takes; all pairs of them are computed. With a reference of
            0, XLA would need minutes for one pair and is left out; with a peer of 0, it has no such activation.
    """

    depth: int
    head: str
    fused: int
    reference: int
    peer: int
    pooled: tuple[int, ...] = ()
    activation: str = "relu"
    w_std: float = _HE

    @property
    def shape(self) -> tuple[int, ...]:
        return (DENSE_D,) if self.head == "dense" else SHAPE

    @property
    def in_peer(self) -> str:
        """The same network in the language of neural_tangents.stax; images have their channels last there."""
        if self.head == "dense":
            return Case("", self.activation, self.depth, self.w_std).peer
        phi = PEER_ACTIVATIONS[self.activation]
        layers = ""
        for index in range(self.depth):
            layers += f"Conv({WIDTH}, (3, 3), padding='SAME', W_std={self.w_std}, b_std=None), {phi}, "
            if index in self.pooled:
                layers += "AvgPool((2, 2), (2, 2)), "
        head = "GlobalAvgPool()" if self.head == "average" else "Flatten()"
        return f"serial({layers}{head}, Dense(1, W_std={math.sqrt(1 / 3)}, b_std=None))"


ROWS = {
    "conv 21, average": Row(21, "average", 16, 1, 4),
    "conv 5, average": Row(5, "average", 16, 1, 4),
    "conv 21, flatten": Row(21, "flatten", 128, 16, 16),
    "conv 5, flatten": Row(5, "flatten", 256, 16, 16),
    "conv 5, average, GELU": Row(5, "average", 16, 1, 4, activation="gelu", w_std=1.5),
    "conv 5, average, tanh": Row(5, "average", 16, 0, 2, activation="tanh", w_std=1.2),
    "conv 5, average, ELU": Row(5, "average", 16, 0, 0, activation="elu"),
    "conv 5, average, ReLU6": Row(5, "average", 16, 0, 0, activation="relu6"),
    "conv 5, average, hard swish": Row(5, "average", 16, 0, 0, activation="hard_swish"),
    "Myrtle-5": Row(4, "average", 16, 1, 4, pooled=(1, 2, 3)),
    "dense ReLU": Row(3, "dense", DENSE_N, 1000, 1000),
    "dense GELU": Row(3, "dense", DENSE_N, 1000, 1000, activation="gelu"),
    "dense tanh": Row(3, "dense", DENSE_N, 1000, 500, activation="tanh", w_std=1.0),
    "dense ELU": Row(3, "dense", DENSE_N, 1000, 0, activation="elu"),
    "dense ReLU6": Row(3, "dense", DENSE_N, 1000, 0, activation="relu6"),
    "dense hard swish": Row(3, "dense", DENSE_N, 1000, 0, activation="hard_swish"),
}
