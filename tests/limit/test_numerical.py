"""Functions of several Gaussians by quasi-Monte-Carlo, against closed forms and finite networks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tangency as tg
from tangency.errors import InputError, UnsupportedModelError
from tests.oracles.monte_carlo import Entries, Network, dense, finite_kernels, initialiser

WIDTH = 64
FEATURES = 5
RULE = tg.QuasiMonteCarlo(points=2048, replicates=16)


def two_branches(combine: Any) -> Any:
    """x ↦ readout · combine(A x, B x)."""

    def init(key: Any) -> Any:
        a, b, o = jax.random.split(key, 3)
        shape = (WIDTH, FEATURES)
        return (
            jax.random.normal(a, shape) / FEATURES**0.5,
            jax.random.normal(b, shape) / FEATURES**0.5,
            jax.random.normal(o, (1, WIDTH)) / WIDTH**0.5,
        )

    return init, lambda p, x: p[2] @ combine(p[0] @ x, p[1] @ x)


def examples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, *shape))


def check(estimate: Any, expected: np.ndarray, *, relative_error: float) -> None:
    """Within four standard errors of what is exact, which are small."""
    assert np.all(estimate.standard_error > 0)
    assert np.max(estimate.standard_error) < relative_error * np.max(np.abs(expected))
    assert np.max(np.abs(estimate.value - expected) / estimate.standard_error) < 4


def check_drawn(network: Network, x: np.ndarray, draws: int) -> None:
    """Within three joint standard errors of finite networks, both of at most one per cent."""
    kernel = tg.limit((network.init, network.apply), numerical=RULE)
    for kind, drawn in zip(("nngp", "ntk"), finite_kernels(network, x, draws), strict=True):
        found = kernel.estimate(x, kind=kind)
        scale = np.max(drawn.mean)
        assert np.max(drawn.standard_error) < 0.01 * scale and np.max(found.standard_error) < 0.01 * scale
        both = np.hypot(drawn.standard_error, found.standard_error)
        assert np.max(np.abs(found.value - drawn.mean) / both) < 3


CLOSED = {
    "maximum": (jnp.maximum, lambda u, v: 0.5 * (u + v) + 0.5 * jnp.abs(u - v)),
    "minimum": (jnp.minimum, lambda u, v: 0.5 * (u + v) - 0.5 * jnp.abs(u - v)),
    "soft": (lambda u, v: jnp.exp(u) / jnp.exp(v), lambda u, v: jnp.exp(u - v)),
    "where": (
        lambda u, v: jnp.where(jax.lax.erf(u) > v, u, u) + jnp.where(u + v > 0, u + v, jnp.maximum(u - u * 1.0, 0.0)),
        lambda u, v: u + jax.nn.relu(u + v),
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_agrees_with_a_closed_form(name: str) -> None:
    sampled, closed = (two_branches(combine) for combine in CLOSED[name])
    x = 0.3 * examples(FEATURES)
    expected = np.asarray(tg.limit(closed).evaluate("both", x))
    check(tg.limit(sampled, numerical=RULE).estimate(x, kind="both"), expected, relative_error=0.01)


def test_the_error_falls_as_stated() -> None:
    """Twelve seeds: standardised deviations have the size of a t-distribution's."""
    sampled, closed = two_branches(jnp.maximum), two_branches(CLOSED["maximum"][1])
    x = examples(FEATURES)
    expected = tg.limit(closed)(x)
    scores = []
    for seed in range(12):
        found = tg.limit(sampled, numerical=tg.QuasiMonteCarlo(64, 8, seed)).estimate(x)
        scores.append((found.value - expected) / found.standard_error)
    spread = np.mean(np.square(scores))
    # The variance of t with 7 degrees of freedom is 1.4.
    assert 0.7 < spread < 2.6


def test_what_has_a_closed_form_stays_exact() -> None:
    model = two_branches(lambda u, v: jnp.tanh(u) * v)
    x = examples(FEATURES)
    found = tg.limit(model, numerical=True).estimate(x)
    np.testing.assert_array_equal(found.value, tg.limit(model)(x))
    assert not found.standard_error.any()


def test_the_same_seed_gives_the_same_kernel() -> None:
    x = examples(FEATURES)
    first, second = (tg.limit(two_branches(jnp.maximum), numerical=True) for _ in range(2))
    np.testing.assert_array_equal(first(x), second(x))
    other = tg.limit(two_branches(jnp.maximum), numerical=tg.QuasiMonteCarlo(seed=1))
    assert np.any(first(x) != other(x))
    np.testing.assert_array_equal(first.estimate(x).value, first(x))
    np.testing.assert_array_equal(first.diagonal("ntk", x), np.diag(first(x)))


def test_inside_jit_and_gradients() -> None:
    kernel = tg.limit(two_branches(lambda u, v: jnp.tanh(jnp.tanh(u) + v)), numerical=tg.QuasiMonteCarlo(64, 2))
    x = examples(FEATURES)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(kernel)(jnp.asarray(x)), kernel(x), rtol=1e-12)
        slope = jax.grad(lambda a: kernel(a[None], jnp.asarray(x[1:2]))[0, 0])(jnp.asarray(x[0]))
        step = 1e-6 * np.eye(FEATURES)
        by_hand = [(kernel(x[:1] + s, x[1:2]) - kernel(x[:1] - s, x[1:2]))[0, 0] / 2e-6 for s in step]
        np.testing.assert_allclose(slope, by_hand, rtol=1e-6, atol=1e-8)


def max_pooled(n: int) -> Network:
    """Convolution, ReLU, max-pooling with padding, dense layer, average."""

    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(jax.lax.conv_general_dilated(x.T[None], p["w"], (1,), [(1, 1)])[0])
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 3), (1, 2), [(0, 0), (1, 1)])
        return jnp.mean(jax.nn.relu(p["m"] @ h), axis=1)

    return Network(hidden, {"w": dense(n, FEATURES, 3), "m": dense(n, n)}, n)


def residual(n: int) -> Network:
    """relu(relu(u) + v) with correlated u and v."""

    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(p["w"] @ x)
        return jax.nn.relu(jax.nn.relu(p["a"] @ h + p["c"]) + p["b"] @ h)

    return Network(hidden, {"w": dense(n, FEATURES), "a": dense(n, n), "b": dense(n, n), "c": Entries((n,), 0.3)}, n)


def gated(n: int) -> Network:
    """Two steps of a GRU, and a readout of both."""

    def hidden(p: Any, x: Any) -> Any:
        h, total = jnp.zeros(n), 0.0
        for t in range(2):
            r, z = (jax.nn.sigmoid(p["w" + g] @ x[t] + p["u" + g] @ h + p["b" + g]) for g in "rz")
            new = jnp.tanh(p["wn"] @ x[t] + r * (p["un"] @ h + p["bn"]))
            h = (1 - z) * new + z * h
            total = total + h
        return total

    parameters = {k + g: dense(n, m) for k, m in (("w", FEATURES), ("u", n)) for g in "rzn"}
    return Network(hidden, parameters | {"b" + g: Entries((n,), 0.1) for g in "rzn"}, n)


def pooled_then_nonlinear(n: int) -> Network:
    """An average of activations straight into a nonlinearity."""

    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(jax.lax.conv_general_dilated(x.T[None], p["w"], (1,), [(1, 1)])[0])
        return jnp.tanh(jnp.mean(h, axis=1))

    return Network(hidden, {"w": dense(n, FEATURES, 3)}, n)


def depthwise_then_nonlinear(n: int) -> Network:
    """As in MobileNet: each channel has a filter of its own, whose numbers stay random."""

    def hidden(p: Any, x: Any) -> Any:
        h = jax.nn.relu(p["w"] @ x.T)[None]
        h = jax.lax.conv_general_dilated(h, p["d"], (2,), [(1, 1)], feature_group_count=n)[0]
        return jnp.mean(jnp.tanh(h + p["b"][:, None]), axis=1)

    return Network(hidden, {"w": dense(n, FEATURES), "d": dense(n, 1, 3), "b": Entries((n,), 0.0)}, n)


def softmax_over_places(n: int) -> Network:
    """Each feature weighs places by a softmax of its own."""

    def hidden(p: Any, x: Any) -> Any:
        u = x @ p["w"].T
        return jnp.sum(jax.nn.softmax(u @ p["a"].T / 1.0, axis=0) * (u @ p["v"].T), axis=0)

    return Network(hidden, {"w": dense(n, FEATURES), "a": dense(n, n), "v": dense(n, n)}, n)


@pytest.mark.parametrize(
    ("network", "shape", "draws"),
    [
        (max_pooled(512), (6, FEATURES), 250),
        (residual(512), (FEATURES,), 250),
        (gated(512), (2, FEATURES), 100),
        (pooled_then_nonlinear(2048), (4, FEATURES), 50),
        (depthwise_then_nonlinear(2048), (4, FEATURES), 60),
        (softmax_over_places(512), (3, FEATURES), 100),
    ],
    ids=["max-pool", "residual", "gated", "pooled", "depthwise", "softmax"],
)
def test_finite_networks(network: Network, shape: tuple[int, ...], draws: int) -> None:
    check_drawn(network, examples(*shape), draws)


def test_a_pooled_signal_times_itself_is_its_square() -> None:
    def kernel(square: Callable[[Any], Any]) -> tg.Kernel:
        def apply(p: Any, x: Any) -> Any:
            return p["readout"] @ square(jnp.mean(jax.nn.relu(x @ p["w"].T), axis=0))

        init = initialiser({"w": dense(WIDTH, FEATURES), "readout": dense(1, WIDTH)})
        return tg.limit((init, apply), numerical=tg.QuasiMonteCarlo(64, 2))

    x = examples(3, FEATURES)
    expected = kernel(lambda h: h**2).evaluate("both", x)
    np.testing.assert_allclose(kernel(lambda h: h * h).evaluate("both", x), expected, rtol=1e-12)


def test_outputs_at_positions_are_symmetric() -> None:
    network = max_pooled(32)

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(jax.lax.conv_general_dilated(x.T[None], p["w"], (1,), [(1, 1)])[0])
        return (p["readout"] @ jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID")).T

    kernel = tg.limit((network.init, apply), numerical=tg.QuasiMonteCarlo(64, 2))
    x = examples(6, FEATURES)
    found = np.asarray(kernel(x))
    assert found.shape == (3, 3, 3, 3)
    np.testing.assert_array_equal(found, np.transpose(found, (1, 0, 3, 2)))
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(kernel)(jnp.asarray(x)), found, rtol=1e-12)
    parts = kernel.contributions(x)
    np.testing.assert_allclose(sum(parts.values()), found, rtol=1e-12)


class Recurrent(eqx.Module):
    cell: Any
    readout: Any

    def __call__(self, x: Any) -> Any:
        state = jnp.zeros(WIDTH)
        start: Any = (state, state) if isinstance(self.cell, eqx.nn.LSTMCell) else state
        last, _ = jax.lax.scan(lambda h, entry: (self.cell(entry, h), None), start, x)
        return self.readout(last[0] if isinstance(self.cell, eqx.nn.LSTMCell) else last)


@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_cells_of_equinox(cell: Any) -> None:
    def make(key: Any) -> Recurrent:
        a, b = jax.random.split(key)
        return Recurrent(cell(3, WIDTH, key=a), eqx.nn.Linear(WIDTH, 1, use_bias=False, key=b))

    kernel = tg.limit(make, numerical=tg.QuasiMonteCarlo(256, 4))
    found = kernel.estimate(examples(2, 3), kind="both")
    assert np.all(np.linalg.eigvalsh(found.value) > 0)
    assert np.max(found.standard_error) < 0.02 * np.max(found.value)
    assert "quasi-Monte-Carlo" in str(kernel) and "∂ᵢ" in kernel.explain()


def test_refused_unless_asked_for() -> None:
    with pytest.raises(UnsupportedModelError, match="numerical=True"):
        tg.limit(two_branches(jnp.maximum))(examples(FEATURES))
    with pytest.raises(UnsupportedModelError, match="numerical=True"):
        tg.limit((max_pooled(32).init, max_pooled(32).apply))(examples(6, FEATURES))


def test_a_maximum_over_features_has_no_limit() -> None:
    model = two_branches(lambda u, v: u * jnp.max(v))
    with pytest.raises(UnsupportedModelError, match="largest of many features"):
        tg.limit(model, numerical=True)(examples(FEATURES))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"points": 1000}, "points: expected a power of two"),
        ({"points": 2.0}, "points: expected an integer"),
        ({"replicates": 1}, "replicates: expected at least 2"),
        ({"seed": -1}, "seed: expected a number of at least 0"),
    ],
)
def test_wrong_rules(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tg.QuasiMonteCarlo(**given)


def test_wrong_choice() -> None:
    with pytest.raises(InputError, match="numerical: expected True, False or a QuasiMonteCarlo"):
        tg.limit(two_branches(jnp.maximum), numerical=1024)  # pyright: ignore[reportArgumentType]
