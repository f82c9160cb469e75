"""Slow, obvious limits of networks over space: every pair of positions of every pair of examples, in NumPy.

A `State` holds the moments of a signal h_i(s) of one unit, over all examples i (those of x, then those of y) and all
positions s (flattened): k[i, j, s, t] = E[h_i(s) h_j(t)], mean[i, s] = E[h_i(s)] and the tangent theta[i, j, s, t].
Nothing is skipped: no rule asks which pairs are needed. Weights are given by `w`, their variance times the number of
units that they contract. In the NTK parameterisation a learning rate is a variance, and 1 where the variance is 0; the
rate `eta` of weights is on the scale of `w`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import numpy as np

Table = list[list[int | None]]
"""For every output position, the input position under each tap of the filter; None where there is only padding."""


def window(
    length: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    padding: str | tuple[int, int] = (0, 0),
    base_dilation: int = 1,
    circular: bool = False,
) -> Table:
    """The table of a one-dimensional filter; `base_dilation` spreads the input, as transposed convolutions do."""
    spread, reach = (length - 1) * base_dilation + 1, (size - 1) * dilation + 1
    if padding == "SAME":
        total = max((-(-spread // stride) - 1) * stride + reach - spread, 0)
        padding = (total // 2, total - total // 2)
    low, high = cast(tuple[int, int], padding)
    table: Table = []
    for start in range(-low, spread + high - reach + 1, stride):
        row: list[int | None] = []
        for place in range(start, start + reach, dilation):
            if circular:
                row.append(place % length)
            else:
                row.append(place // base_dilation if 0 <= place < spread and place % base_dilation == 0 else None)
        table.append(row)
    return table


def grid(*tables: Table, lengths: Sequence[int]) -> Table:
    """The table of a filter over several axes of the given lengths, flattened in row-major order."""

    def flat(places: Sequence[int | None]) -> int | None:
        index = 0
        for place, length in zip(places, lengths, strict=True):
            if place is None:
                return None
            index = index * length + place
        return index

    return [[flat(taps) for taps in product(*rows)] for rows in product(*tables)]


def average(table: Table, positions: int, count_padding: bool = True) -> np.ndarray:
    """The matrix [outputs, positions] of the averages over the windows of a table."""
    matrix = np.zeros((len(table), positions))
    for out, row in enumerate(table):
        inside = [place for place in row if place is not None]
        for place in inside:
            matrix[out, place] += 1.0 / (len(row) if count_padding else len(inside))
    return matrix


def resized(length: int, target: int, method: str) -> np.ndarray:
    """The matrix [target, length] that resizes one axis to a longer one, with half-pixel centres."""
    matrix = np.zeros((target, length))
    for out in range(target):
        centre = (out + 0.5) * length / target
        if method == "nearest":
            matrix[out, int(centre)] = 1.0
            continue
        for place in range(length):
            matrix[out, place] = max(0.0, 1.0 - abs(place + 0.5 - centre))
        matrix[out] /= matrix[out].sum()
    return matrix


class Relu:
    """Arc-cosine kernels of degree 1 and 0, Cho & Saul 2009 eq. 6 and 5."""

    @staticmethod
    def dual(k: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = np.sqrt(a * b)
        angle = np.arctan2(np.sqrt(np.maximum((s - k) * (s + k), 0.0)), k)
        return (s * np.sin(angle) + (np.pi - angle) * k) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)

    @staticmethod
    def mean(a: np.ndarray) -> np.ndarray:
        return np.sqrt(a / (2 * np.pi))

    @classmethod
    def rescaling(cls, k: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """E[uφ'(u) vφ'(v)], the tangent of a trainable factor of u; uφ'(u) = φ(u)."""
        return cls.dual(k, a, b)[0]


class Erf:
    """Williams 1997 eq. 10 for erf(u), and its derivative's."""

    @staticmethod
    def dual(k: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v = 1 + 2 * a, 1 + 2 * b
        return 2 / np.pi * np.arcsin(2 * k / np.sqrt(u * v)), 4 / np.pi / np.sqrt(u * v - 4 * k**2)

    @staticmethod
    def mean(a: np.ndarray) -> np.ndarray:
        return np.zeros_like(a)

    @staticmethod
    def rescaling(k: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """E[uφ'(u) vφ'(v)]: the second moments of the Gaussian of covariance C damped to C (1 + 2C)⁻¹."""
        return 4 / np.pi * k / ((1 + 2 * a) * (1 + 2 * b) - 4 * k**2) ** 1.5


@dataclass(frozen=True)
class State:
    k: np.ndarray
    mean: np.ndarray
    theta: np.ndarray
    first: int
    """How many of the examples belong to x."""

    @classmethod
    def known(cls, values: np.ndarray, first: int) -> "State":
        """Fixed numbers [example, position, channel], averaged over the channels."""
        k = np.einsum("isc,jtc->ijst", values, values) / values.shape[2]
        return cls(k, values.mean(axis=2), np.zeros_like(k), first)

    @classmethod
    def inputs(cls, x: np.ndarray, y: np.ndarray) -> "State":
        return cls.known(np.concatenate([x, y]).astype(float), len(x))

    @classmethod
    def rows(cls, x: np.ndarray, y: np.ndarray, variance: float, eta: float | None = None) -> "State":
        """Rows of an embedding table, picked by integers [example, position]."""
        picked = np.concatenate([x, y])
        same = (picked[:, None, :, None] == picked[None, :, None, :]).astype(float)
        return cls(variance * same, np.zeros(picked.shape), (variance if eta is None else eta) * same, len(x))

    @property
    def examples(self) -> int:
        return self.k.shape[0]

    @property
    def positions(self) -> int:
        return self.k.shape[2]

    @property
    def variance(self) -> np.ndarray:
        """E[h_i(s)²], [example, position]."""
        return np.array([np.diag(self.k[i, i]) for i in range(self.examples)])

    @property
    def between(self) -> tuple[np.ndarray, np.ndarray]:
        """(K, Θ) between x and y, `[n, m]` for one position and `[n, m, s, s']` for several."""
        n = self.first
        k, theta = self.k[:n, n:], self.theta[:n, n:]
        return (k[:, :, 0, 0], theta[:, :, 0, 0]) if self.positions == 1 else (k, theta)

    def gathered(self, array: np.ndarray, table: Table, tap: int) -> np.ndarray:
        """array[i, j, table[s][tap], table[t][tap]], zero at the padding."""
        padded = np.pad(array, [(0, 0), (0, 0), (0, 1), (0, 1)])
        places = np.array([-1 if row[tap] is None else row[tap] for row in table])
        return padded[:, :, places][:, :, :, places]

    def conv(self, table: Table, w: float, b: float = 0.0, eta: float | None = None, eta_b: float | None = None):
        """One weight for each tap, the same at all positions; a bias of variance b."""
        k = np.sum([self.gathered(self.k, table, tap) for tap in range(len(table[0]))], axis=0)
        theta = np.sum([self.gathered(self.theta, table, tap) for tap in range(len(table[0]))], axis=0)
        eta = w if eta is None else eta
        mean = np.zeros((self.examples, len(table)))
        return State(w * k, mean, eta * k + w * theta, self.first).bias(b, eta_b)

    def dense(self, w: float, b: float = 0.0, eta: float | None = None, eta_b: float | None = None) -> "State":
        """One weight for all positions."""
        return self.conv([[s] for s in range(self.positions)], w, b, eta, eta_b)

    def local(self, table: Table, w: float) -> "State":
        """Other weights at each position, so that positions become independent."""
        s, eye = self.conv(table, w), np.eye(len(table))
        return replace(s, k=s.k * eye, theta=s.theta * eye)

    def flat_dense(self, w: float, b: float = 0.0, eta: float | None = None, eta_b: float | None = None) -> "State":
        """A dense layer on all units of all positions: a filter as large as the space."""
        return self.conv([list(range(self.positions))], w, b, eta, eta_b)

    def bias(self, b: float, eta: float | None = None) -> "State":
        """A bias for each unit, the same at all positions."""
        return replace(self, k=self.k + b, theta=self.theta + (b if eta is None else eta))

    def positional(self, b: float, eta: float | None = None) -> "State":
        """A bias for each unit and position."""
        eye = np.eye(self.positions)
        return replace(self, k=self.k + b * eye, theta=self.theta + (b if eta is None else eta) * eye)

    def linear(self, matrix: np.ndarray) -> "State":
        """h(s) ↦ Σ_t matrix[s, t] h(t), or with matrix[i, s, t] for example i."""
        m = np.broadcast_to(matrix, (self.examples, *matrix.shape[-2:]))

        def both(array: np.ndarray) -> np.ndarray:
            return np.einsum("isp,jtq,ijpq->ijst", m, m, array)

        return State(both(self.k), np.einsum("isp,ip->is", m, self.mean), both(self.theta), self.first)

    def pooled(self) -> "State":
        return self.linear(np.full((1, self.positions), 1 / self.positions))

    def act(self, function: Any) -> "State":
        """φ of a Gaussian signal, for the `function` Relu or Erf."""
        assert np.all(self.mean == 0.0), "only centred Gaussian signals have these duals"
        a = self.variance
        k, slope = function.dual(self.k, a[:, None, :, None], a[None, :, None, :])
        return State(k, function.mean(a), slope * self.theta, self.first)

    def __mul__(self, number: float) -> "State":
        return State(number**2 * self.k, number * self.mean, number**2 * self.theta, self.first)

    def __add__(self, other: "State") -> "State":
        """The sum of independent signals."""
        k = self.k + other.k + outer(self.mean, other.mean) + outer(other.mean, self.mean)
        return State(k, self.mean + other.mean, self.theta + other.theta, self.first)

    def plus(self, number: float) -> "State":
        constant = np.full_like(self.mean, number)
        k = self.k + outer(self.mean, constant) + outer(constant, self.mean) + number**2
        return State(k, self.mean + number, self.theta, self.first)

    def times(self, other: "State") -> "State":
        """The product of independent signals."""
        theta = self.theta * other.k + self.k * other.theta
        return State(self.k * other.k, self.mean * other.mean, theta, self.first)

    def normalised(
        self, mean: np.ndarray, variance: np.ndarray, eps: float, eta_scale: float, eta_shift: float, then: Any
    ) -> "State":
        """(h − mean)/√(variance + eps) with a trainable scale at 1 and shift at 0, the same at all positions.

        The tangent of a scale is the signal itself. It is independent of what a linear layer does to the signal, but
        not of the slope of an activation: one that follows directly is given as `then`.
        """
        inverse = 1 / np.sqrt(np.broadcast_to(variance + eps, self.mean.shape))
        cross = outer(self.mean, mean) + outer(mean, self.mean) - outer(mean, mean)
        k = outer(inverse, inverse) * (self.k - cross)
        theta = outer(inverse, inverse) * self.theta + eta_shift
        plain = State(k, inverse * (self.mean - mean), theta, self.first)
        if then is None:
            return replace(plain, theta=theta + eta_scale * k)
        after, a = plain.act(then), plain.variance
        rescaling = then.rescaling(k, a[:, None, :, None], a[None, :, None, :])
        return replace(after, theta=after.theta + eta_scale * rescaling)

    def layer_norm(self, eps: float, eta_scale: float = 1.0, eta_shift: float = 1.0, then: Any = None) -> "State":
        """Over the units of each position."""
        return self.normalised(self.mean, self.variance - self.mean**2, eps, eta_scale, eta_shift, then)

    def rms_norm(self, eps: float, eta_scale: float = 1.0, eta_shift: float = 0.0, then: Any = None) -> "State":
        return self.normalised(np.zeros_like(self.mean), self.variance, eps, eta_scale, eta_shift, then)

    def group_norm(self, eps: float, eta_scale: float = 1.0, eta_shift: float = 1.0, then: Any = None) -> "State":
        """Over the units of a group and all positions; a group is as good as all units."""
        mean = np.broadcast_to(self.mean.mean(axis=1, keepdims=True), self.mean.shape)
        variance = self.variance.mean(axis=1, keepdims=True) - mean[:, :1] ** 2
        return self.normalised(mean, variance, eps, eta_scale, eta_shift, then)

    def attention(self, scale: float = 1.0, mask: np.ndarray | None = None) -> np.ndarray:
        """softmax over s of scale · E[h(t) h(s)], [example, t, s]; `mask`, so or [t, s], says what is seen."""
        weights = np.zeros((self.examples, self.positions, self.positions))
        seen = np.broadcast_to(True if mask is None else mask, weights.shape)
        for i in range(self.examples):
            for t in range(self.positions):
                row = np.exp(scale * (self.k[i, i, t] - self.k[i, i, t].max())) * seen[i, t]
                weights[i, t] = row / row.sum()
        return weights


def outer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left[i, s] right[j, t], as [i, j, s, t]."""
    return left[:, None, :, None] * right[None, :, None, :]


def along_positions(left: State, right: State) -> State:
    """The positions of one signal, then those of an independent one."""
    a, b = left.positions, right.positions
    first = np.vstack([np.eye(a), np.zeros((b, a))])
    second = np.vstack([np.zeros((a, b)), np.eye(b)])
    return left.linear(first) + right.linear(second)


def along_channels(*parts: tuple[int, State]) -> State:
    """Signals of the given numbers of channels side by side, in traced proportions."""
    total = sum(channels for channels, _ in parts)

    def weighted(read: Callable[[State], np.ndarray]) -> np.ndarray:
        return np.sum([channels / total * read(state) for channels, state in parts], axis=0)

    return State(weighted(lambda s: s.k), weighted(lambda s: s.mean), weighted(lambda s: s.theta), parts[0][1].first)


def recurrent(inputs: State, activation: Any, u: float, rounds: int | None = None, residual: bool = False) -> State:
    """h_t = φ(z_t + U h_{t−1}) from h_{−1} = 0, where z are the `inputs`, over all pairs of times.

    Each round gets one more time right, because h_t depends on earlier times only; `residual` adds h_{t−1} to h_t.
    """
    steps = inputs.positions
    earlier: Table = [[t - 1 if t else None] for t in range(steps)]
    until_now = np.tril(np.ones((steps, steps)))
    branch = (inputs * 0.0).act(activation)
    for _ in range(rounds or steps):
        h = branch.linear(until_now) if residual else branch
        branch = (inputs + h.conv(earlier, u)).act(activation)
    return branch.linear(until_now) if residual else branch


def check(kernel: Any, x: np.ndarray, y: np.ndarray, expected: State, space: tuple[int, ...] = (), rtol: float = 1e-10):
    """`kernel` agrees with the State; `space` is the shape of the positions that the output keeps."""
    k, theta = kernel.both(x, y)
    for found, wanted in zip((k, theta), expected.between, strict=True):
        found = np.asarray(found)
        assert found.dtype == np.float64
        assert found.shape == (len(x), len(y), *space, *space)
        np.testing.assert_allclose(found, wanted.reshape(found.shape), rtol=rtol, atol=1e-14 * np.abs(wanted).max())
