"""Random functions: the same training as of their coefficients, and the law of large numbers with its rate."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF, Matern

import tangency as tg
from tangency.errors import InputError, NonFiniteError


@pytest.fixture
def x(rng):
    return rng.normal(size=(8, 3))


def network(key):
    weights = jax.random.normal(key, (2, 3))
    return lambda v: jnp.tanh(weights @ v)


NETWORKS = tg.RandomFunctions(network, 30, key=jax.random.key(4))
FULL = tg.RandomFunctions(network, 30, key=jax.random.key(4), outputs="full")
FOURIER = tg.RandomFunctions.fourier(30, key=jax.random.key(4))


def arc_cosine(x, z):
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1)
    angle = np.arccos(np.clip(x @ z.T / norms, -1, 1))
    return norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi


RANDOM = {
    "rbf": (
        lambda count, key: tg.RandomFunctions.fourier(count, length_scale=[0.7, 1.3, 2.0], key=key),
        RBF([0.7, 1.3, 2.0]),
    ),
    "matern 1/2": (lambda count, key: tg.RandomFunctions.fourier(count, nu=0.5, key=key), Matern(1.0, nu=0.5)),
    "matern 3/2": (
        lambda count, key: tg.RandomFunctions.fourier(count, length_scale=1.3, nu=1.5, key=key),
        Matern(1.3, nu=1.5),
    ),
    "matern 5/2": (lambda count, key: tg.RandomFunctions.fourier(count, nu=2.5, key=key), Matern(1.0, nu=2.5)),
    "matern 0.8": (lambda count, key: tg.RandomFunctions.fourier(count, nu=0.8, key=key), Matern(1.0, nu=0.8)),
    "relu": (lambda count, key: tg.RandomFunctions.relu(count, key=key), arc_cosine),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_kernel_of_random_functions_converges_at_the_rate_of_the_law_of_large_numbers(x, name):
    """E‖K̃_P − K‖² = V/P exactly. The logarithm of a mean of 24 squared errors has a standard deviation of at most
    √(2/24), so that of a slope over five counts, four times apart, is at most √(2/24)/2/√(10 ln²4) = 0.033; four of
    these are allowed. A wrong spectral law leaves an error that does not fall, and fails by far."""
    make, kernel = RANDOM[name]
    expected, counts = kernel(x, x), 16 * 4 ** np.arange(5)
    features = make(24 * int(counts.sum()), jax.random.key(0)).features(x)
    errors = []
    for own in np.split(features, 24 * np.cumsum(counts)[:-1], axis=1):
        samples = own.reshape(len(x), 24, -1).swapaxes(0, 1)
        estimates = samples @ samples.swapaxes(1, 2) / samples.shape[2]
        errors.append(np.sqrt(np.mean(np.sum((estimates - expected) ** 2, axis=(1, 2)))))
    whole, count = features @ features.T / features.shape[1], features.shape[1]
    standard_error = np.sqrt((features**2 @ (features**2).T / count - whole**2) / count)
    assert (np.abs(whole - expected) < 6 * standard_error).all()
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 4 * math.sqrt(2 / 24) / 2 / math.sqrt(10 * math.log(4) ** 2)


@pytest.mark.parametrize("kernel", [FOURIER, FULL])
def test_descent_on_the_coefficients_is_kernel_descent(x, kernel):
    """f_θ = P^{−1/2} Σ θ_p f⁽ᵖ⁾ trained in θ, and f ← f − (η/N) K̃_P (f − y), step by step."""
    rng = np.random.default_rng(1)
    features = kernel.features(x).reshape(8, 30, -1)
    outputs = features.shape[2]
    matrix = kernel(x, x[:5]).reshape(8, 5, outputs, outputs)
    y, theta, rate = rng.normal(size=(5, outputs)), rng.normal(size=30), 0.4
    f = np.einsum("npo,p->no", features, theta) / math.sqrt(30)
    for _ in range(300):
        residual = f[:5] - y
        gradient = np.einsum("npo,no->p", features[:5], residual) / math.sqrt(30) / 5
        theta = theta - rate * gradient
        f = f - rate / 5 * np.einsum("nmoq,mq->no", matrix, residual)
        np.testing.assert_allclose(np.einsum("npo,p->no", features, theta) / math.sqrt(30), f, rtol=0, atol=1e-12)


def test_what_relu_features_converge_to_is_a_network_with_one_hidden_layer(x):
    """arc-cosine = the NNGP of a traced network with weights N(0, 2) and readout N(0, 1/width)."""

    def init(key):
        first, second = jax.random.split(key)
        return math.sqrt(2) * jax.random.normal(first, (512, 3)), jax.random.normal(second, (1, 512)) / math.sqrt(512)

    limit = tg.limit((init, lambda p, v: p[1] @ jax.nn.relu(p[0] @ v)))
    np.testing.assert_allclose(limit.nngp(x), arc_cosine(x, x), atol=1e-7)


def test_kernel_and_features_are_one(x):
    features = NETWORKS.features(x)
    assert features.shape == (8, 30, 2)
    expected = np.einsum("npo,mpq->nmoq", features, features) / 30
    np.testing.assert_allclose(FULL(x), expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(NETWORKS(x), np.trace(expected, axis1=2, axis2=3) / 2, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(NETWORKS(x, x[:5]), NETWORKS(x)[:, :5], rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(FULL.diagonal("ntk", x), expected[np.arange(8), np.arange(8)], rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(NETWORKS.diagonal("both", x), np.stack([np.diag(NETWORKS(x))] * 2), rtol=1e-13)
    assert NETWORKS.nngp(x).dtype == np.float64
    np.testing.assert_array_equal(NETWORKS(x), NETWORKS(x).T)
    np.testing.assert_array_equal(FULL(x), FULL(x).transpose(1, 0, 3, 2))


def test_the_functions_are_those_of_their_keys(x):
    with jax.enable_x64(True):
        for p in range(3):
            own = network(jax.random.fold_in(jax.random.key(4), p))
            np.testing.assert_allclose(NETWORKS.features(x)[:, p], jax.vmap(own)(jnp.asarray(x)), rtol=1e-13)


def test_blocks_do_not_change_it(x, monkeypatch):
    whole, features, seen = FOURIER(x), FOURIER.features(x), []
    monkeypatch.setattr("tangency.kernels.random_functions._NUMBERS_AT_ONCE", 80)
    blocks = FOURIER.evaluate("ntk", x, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(blocks, whole, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(FOURIER.features(x), features, rtol=1e-13)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_larger_count_holds_the_smaller(x):
    few = tg.RandomFunctions(network, 5, key=jax.random.key(4)).features(x)
    np.testing.assert_allclose(few, NETWORKS.features(x)[:, :5], rtol=1e-13)


def test_precision_follows_the_inputs_and_the_functions_do_not(x):
    single = FOURIER(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, FOURIER(x), atol=1e-5)
    on_device = FOURIER(jnp.asarray(x))
    assert isinstance(on_device, jax.Array) and on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, FOURIER(x), atol=1e-5)
    gradient = jax.grad(lambda v: NETWORKS(v, v[:2]).sum() + NETWORKS.diagonal("ntk", v).sum())(jnp.asarray(x))
    assert gradient.shape == (8, 3) and np.isfinite(gradient).all()


def test_refusals(x):
    key = jax.random.key(0)
    for count in (0, 2.5, True):
        with pytest.raises(InputError, match="count is"):
            tg.RandomFunctions.relu(count, key=key)
    for scale in (0.0, [1.0, -1.0], np.nan):
        with pytest.raises(InputError, match="length_scale"):
            tg.RandomFunctions.fourier(3, length_scale=scale, key=key)
    with pytest.raises(InputError, match="nu is"):
        tg.RandomFunctions.fourier(3, nu=0, key=key)
    with pytest.raises(InputError, match="give a function key -> function"):
        tg.RandomFunctions("relu", 3, key=key)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fail on an example of shape"):
        tg.RandomFunctions(lambda key: eqx.nn.Linear(5, 1, key=key), 3, key=key)(x)
    with pytest.raises(InputError, match="a number or a vector"):
        tg.RandomFunctions(lambda key: lambda v: jnp.ones((2, 2)), 3, key=key)(x)
    x[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"x1\[4\]"):
        tg.RandomFunctions.relu(3, key=key)(x)
