"""Limits of recurrent networks, scans, sums over time and graph networks against full moments, in float64."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tangency import limit
from tangency.errors import UnsupportedModelError
from tests.oracles.monte_carlo import Entries, dense, initialiser
from tests.oracles.spatial import Erf, Relu, State, check, outer, recurrent

IN = 3
WIDTH = 16
NODES = 5
FLAX = dict(w=1.0, b=0.0, eta=1.0, eta_b=1.0)


def network(apply, **entries):
    """A pair (init, apply) of plain JAX; `embed`, weights on the input, and the readout `last` are added."""
    return initialiser({"embed": dense(WIDTH, IN), "last": dense(2, WIDTH)} | entries), apply


def sequences(rng, steps, channels=IN):
    x, y = rng.normal(size=(3, steps, channels)), rng.normal(size=(2, steps, channels))
    return x, y, State.inputs(x, y)


def last_step(state):
    return state.linear(np.eye(state.positions)[-1:])


def readout(state, read):
    if read == "all":
        return state
    return state.pooled() if read == "mean" else last_step(state)


@pytest.mark.parametrize(("steps", "activation"), [(4, Relu), (8, Erf)])
@pytest.mark.parametrize("read", ["mean", "last", "all"])
def test_recurrent_network_unrolled(rng, activation, read, steps):
    x, y, s = sequences(rng, steps)
    phi = jax.lax.erf if activation is Erf else jax.nn.relu

    def apply(p, x):
        h, states = jnp.zeros(WIDTH, x.dtype), []
        for t in range(steps):
            h = phi(p["embed"] @ x[t] + p["u"] @ h + p["b"])
            states.append(h)
        if read == "all":
            return jnp.stack([p["last"] @ h for h in states])
        return p["last"] @ (sum(states) / steps if read == "mean" else h)

    s = recurrent(s.dense(1.0, 0.2), activation, 1.0)
    kernel = limit(network(apply, u=dense(WIDTH, WIDTH), b=Entries((WIDTH,), 0.2)))
    check(kernel, x, y, readout(s, read).dense(1.0), space=(steps,) if read == "all" else ())


@pytest.mark.parametrize("read", ["mean", "last", "all"])
def test_recurrent_network_in_a_scan(rng, read):
    x, y, s = sequences(rng, 6)

    def apply(p, x):
        def step(h, token):
            h = jax.lax.erf(p["embed"] @ token + p["u"] @ h + p["b"])
            return h, h

        h, states = jax.lax.scan(step, jnp.zeros(WIDTH, x.dtype), x)
        if read == "all":
            return states @ p["last"].T
        return p["last"] @ (states.mean(axis=0) if read == "mean" else h)

    s = recurrent(s.dense(1.0, 0.2), Erf, 1.0)
    kernel = limit(network(apply, u=dense(WIDTH, WIDTH), b=Entries((WIDTH,), 0.2)))
    check(kernel, x, y, readout(s, read).dense(1.0), space=(6,) if read == "all" else ())


def test_learned_initial_state(rng):
    """A vector of parameters that a weight acts on is a signal."""
    x, y, s = sequences(rng, 1)

    def apply(p, x):
        return p["last"] @ jax.lax.erf(p["embed"] @ x[0] + p["u"] @ p["start"])

    kernel = limit(network(apply, u=dense(WIDTH, WIDTH), start=Entries((WIDTH,), 0.6)))
    check(kernel, x, y, s.dense(1.0).bias(0.6, 1.2).act(Erf).dense(1.0))


def test_residual_recurrence(rng):
    """h_t = h_{t-1} + relu(z_t + U h_{t-1}) / 2, whose steps are correlated."""
    x, y, s = sequences(rng, 6)

    def apply(p, x):
        def step(h, token):
            return h + jax.nn.relu(p["embed"] @ token + 0.5 * (p["u"] @ h)), None

        return p["last"] @ jax.lax.scan(step, jnp.zeros(WIDTH, x.dtype), x)[0]

    s = recurrent(s.dense(1.0), Relu, 0.25, residual=True)
    check(limit(network(apply, u=dense(WIDTH, WIDTH))), x, y, last_step(s).dense(1.0))


def test_two_recurrent_layers(rng):
    """The second one reads the states of the first backwards in time."""
    x, y, s = sequences(rng, 6)

    def layer(w, u, inputs):
        def step(h, token):
            h = jax.lax.erf(w @ token + u @ h)
            return h, h

        return jax.lax.scan(step, jnp.zeros(WIDTH, inputs.dtype), inputs)[1]

    def apply(p, x):
        h = layer(p["embed"], p["u"], x)
        return p["last"] @ layer(p["w"], p["v"], h[::-1])[-1]

    first = recurrent(s.dense(1.0), Erf, 1.0).linear(np.eye(6)[::-1])
    second = recurrent(first.dense(1.0), Erf, 1.0)
    kernel = limit(network(apply, **{name: dense(WIDTH, WIDTH) for name in "uwv"}))
    check(kernel, x, y, last_step(second).dense(1.0))


class FlaxRecurrent(nnx.Module):
    def __init__(self, rngs, read):
        cell = nnx.SimpleCell(
            IN, WIDTH, activation_fn=jax.lax.erf, recurrent_kernel_init=nnx.initializers.lecun_normal(), rngs=rngs
        )
        self.layer = nnx.RNN(cell)
        self.last = nnx.Linear(WIDTH, 2, rngs=rngs)
        self.read = read

    def __call__(self, x):
        h = cast(jax.Array, self.layer(x))
        return self.last(h.mean(axis=1) if self.read == "mean" else h[:, -1])


@pytest.mark.parametrize("read", ["mean", "last"])
def test_flax_rnn(rng, read):
    """The cell casts to single precision, so the inputs are chosen to survive that."""
    x, y, _ = sequences(rng, 6)
    x, y = (part.astype(np.float32).astype(np.float64) for part in (x, y))
    s = recurrent(State.inputs(x, y).dense(1.0, 0.0, eta_b=1.0), Erf, 1.0)
    check(limit(lambda key: FlaxRecurrent(nnx.Rngs(key), read)), x, y, readout(s, read).dense(**FLAX), rtol=3e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_scan_over_stacked_layers(rng, residual):
    """Layers of one array are different weights."""
    x, y, s = sequences(rng, NODES)
    depth = 4

    def apply(p, x):
        def layer(h, w):
            new = jax.nn.relu(h) @ w.T
            return (h + new if residual else new), None

        h, _ = jax.lax.scan(layer, x @ p["embed"].T, p["stack"])
        return p["last"] @ jax.nn.relu(h).mean(axis=0)

    s = s.dense(1.0)
    for _ in range(depth):
        new = s.act(Relu).dense(1.0)
        s = s + new if residual else new
    kernel = limit(network(apply, stack=Entries((depth, WIDTH, WIDTH), 1 / WIDTH)))
    check(kernel, x, y, s.act(Relu).pooled().dense(1.0))


@pytest.mark.parametrize("spelling", ["where", "product"])
def test_mean_over_variable_lengths(rng, spelling):
    """The first feature of a place says whether it counts."""
    x, y, _ = sequences(rng, NODES)
    for part, lengths in ((x, (5, 3, 1)), (y, (2, 4))):
        part[:, :, 0] = np.arange(NODES) < np.array(lengths)[:, None]

    def apply(p, x):
        counts = x[:, 0]
        h = jax.nn.relu(x @ p["embed"].T)
        h = jnp.where(counts[:, None] > 0, h, 0.0) if spelling == "where" else h * counts[:, None]
        return p["last"] @ (h.sum(axis=0) / counts.sum())

    counts = np.concatenate([x, y])[:, :, 0]
    matrix = (counts / counts.sum(axis=1, keepdims=True))[:, None, :]
    check(limit(network(apply)), x, y, State.inputs(x, y).dense(1.0).act(Relu).linear(matrix).dense(1.0))


@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sum(rng, reverse):
    x, y, s = sequences(rng, NODES)

    def apply(p, x):
        h = jax.nn.relu(x @ p["embed"].T)
        h = jax.lax.cumsum(h, axis=0, reverse=reverse) / jnp.arange(1, NODES + 1, dtype=x.dtype)[:, None]
        return p["last"] @ jax.nn.relu(h @ p["m"].T).mean(axis=0)

    ones = np.ones((NODES, NODES))
    matrix = (np.triu(ones) if reverse else np.tril(ones)) / np.arange(1, NODES + 1)[:, None]
    s = s.dense(1.0).act(Relu).linear(matrix).dense(1.0).act(Relu).pooled().dense(1.0)
    check(limit(network(apply, m=dense(WIDTH, WIDTH))), x, y, s)


@pytest.mark.parametrize("pooled", ["mean", "window", "matrix", "cumulative"])
def test_mean_over_the_units_of_pooled_activations(rng, pooled):
    """A linear map of activations keeps their mean, which is then subtracted."""
    x, y, s = sequences(rng, NODES)
    matrix = {
        "mean": np.full((1, NODES), 1 / NODES),
        "window": np.eye(NODES - 1, NODES) + np.eye(NODES - 1, NODES, k=1),
        "matrix": rng.normal(size=(NODES, NODES)),
        "cumulative": np.tri(NODES),
    }[pooled]

    def pool(h):
        match pooled:
            case "mean":
                return h.mean(axis=0, keepdims=True)
            case "window":
                return h[:-1] + h[1:]
            case "matrix":
                return jnp.asarray(matrix, h.dtype) @ h
        return jnp.cumsum(h, axis=0)

    def apply(p, x):
        h = pool(jax.nn.relu(x @ p["embed"].T))
        return p["last"] @ (h - h.mean(axis=1, keepdims=True)).mean(axis=0)

    s = s.dense(1.0).act(Relu).linear(matrix)
    s = State(s.k - outer(s.mean, s.mean), np.zeros_like(s.mean), s.theta, s.first)
    check(limit(network(apply)), x, y, s.pooled().dense(1.0))


def test_mean_over_the_units_of_a_recurrent_state_is_refused(rng):
    def apply(p, x):
        def step(h, token):
            return jax.nn.relu(p["embed"] @ token + p["u"] @ (h - h.mean())), None

        return p["last"] @ jax.lax.scan(step, jnp.zeros(WIDTH, x.dtype), x)[0]

    with pytest.raises(UnsupportedModelError, match="averages the state of a recurrence over its units"):
        limit(network(apply, u=dense(WIDTH, WIDTH)))(rng.normal(size=(2, 4, IN)))


def test_map_over_time(rng):
    """`lax.map`: the steps know nothing of each other, but share their weights."""
    x, y, s = sequences(rng, 12)

    def apply(p, x):
        return p["last"] @ jax.lax.map(lambda token: jax.nn.relu(p["m"] @ jax.lax.erf(p["embed"] @ token)), x).mean(0)

    s = s.dense(1.0).act(Erf).dense(1.0).act(Relu).pooled().dense(1.0)
    check(limit(network(apply, m=dense(WIDTH, WIDTH))), x, y, s)


def test_differences_between_neighbours(rng):
    """Slices, padding and subtraction along time; the ends stay."""
    x, y, s = sequences(rng, 6)

    def apply(p, x):
        h = jax.nn.relu(x @ p["embed"].T)
        h = h - 0.5 * jnp.pad(h[:-1], ((1, 0), (0, 0)))
        return p["last"] @ jax.nn.relu(h @ p["m"].T).mean(axis=0)

    s = s.dense(1.0).act(Relu).linear(np.eye(6) - 0.5 * np.eye(6, k=-1)).dense(1.0).act(Relu).pooled().dense(1.0)
    check(limit(network(apply, m=dense(WIDTH, WIDTH))), x, y, s)


def graphs(rng, examples):
    """Node features and a symmetric adjacency matrix with loops, side by side in one array."""
    edges = rng.integers(0, 2, size=(examples, NODES, NODES))
    adjacency = np.clip(edges + edges.transpose(0, 2, 1) + np.eye(NODES, dtype=int), 0, 1)
    return np.concatenate([rng.normal(size=(examples, NODES, IN)), adjacency], axis=2)


@pytest.mark.parametrize("normalised", [False, True])
def test_graph_network_with_an_adjacency_matrix_as_input(rng, normalised):
    x, y = graphs(rng, 3), graphs(rng, 2)

    def apply(p, x):
        nodes, adjacency = x[:, :IN], x[:, IN:]
        if normalised:
            degree = jax.lax.rsqrt(adjacency.sum(axis=1))
            adjacency = degree[:, None] * adjacency * degree[None, :]
        h = jax.nn.relu(adjacency @ (nodes @ p["embed"].T))
        h = jax.nn.relu(adjacency @ (h @ p["m"].T))
        return p["last"] @ h.mean(axis=0)

    adjacency = np.concatenate([x, y])[:, :, IN:]
    if normalised:
        degree = 1 / np.sqrt(adjacency.sum(axis=2))
        adjacency = degree[:, :, None] * adjacency * degree[:, None, :]
    s = State.inputs(x[:, :, :IN], y[:, :, :IN]).dense(1.0).linear(adjacency).act(Relu)
    s = s.dense(1.0).linear(adjacency).act(Relu).pooled().dense(1.0)
    check(limit(network(apply, m=dense(WIDTH, WIDTH))), x, y, s)


def test_graph_network_with_a_segment_sum_over_edges(rng):
    """Messages along a constant list of edges, and a weight of its own for each node itself."""
    x, y, s = sequences(rng, NODES)
    senders, receivers = np.array([0, 1, 2, 3, 4, 0, 2]), np.array([1, 2, 0, 4, 3, 3, 2])

    def apply(p, x):
        h = jax.nn.relu(x @ p["embed"].T)
        for own, other in (("a", "b"), ("c", "d")):
            messages = jax.ops.segment_sum((h @ p[other].T)[senders], receivers, num_segments=NODES)
            h = jax.nn.relu(h @ p[own].T + messages)
        return p["last"] @ h.sum(axis=0)

    matrix = np.zeros((NODES, NODES))
    np.add.at(matrix, (receivers, senders), 1.0)
    s = s.dense(1.0).act(Relu)
    for _ in range(2):
        s = (s.dense(1.0) + s.dense(1.0).linear(matrix)).act(Relu)
    kernel = limit(network(apply, **{name: dense(WIDTH, WIDTH) for name in "abcd"}))
    check(kernel, x, y, s.linear(np.ones((1, NODES))).dense(1.0))


@pytest.mark.parametrize("outputs", [1, 2])
def test_bias_after_every_position_is_one_parameter(rng, outputs):
    x, y, s = sequences(rng, 3)

    def apply(p, x):
        return jax.vmap(lambda entry: p["read"] @ jax.nn.relu(p["embed"] @ entry) + p["b"])(x)

    readout = {"read": dense(outputs, WIDTH), "b": Entries((outputs,), 0.3)}
    kernel = limit(network(apply, **readout))
    check(kernel, x, y, s.dense(1.0).act(Relu).dense(1.0, 0.3), space=(3,))
