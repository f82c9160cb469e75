"""Finite NTKs against explicit Jacobians, in float64."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tangency as tg
from tests.empirical.checks import close
from tests.finite_networks import NETWORKS, examples, made
from tests.oracles.jacobian import ntk

pytestmark = pytest.mark.usefixtures("double_precision")


def built(name):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        model, options, function, parameters = made(name, jax.random.key(0))
        x, y = examples(name, rng, 3), examples(name, rng, 2)
        whole = np.concatenate([x, y])
        return model, options, x, y, ntk(function, parameters, whole, whole)


@pytest.fixture(scope="module", params=[name for name in NETWORKS if name.startswith("Equinox")])
def equinox(request):
    return built(request.param)


@pytest.fixture(scope="module", params=[name for name in NETWORKS if name.startswith("Flax")])
def flax(request):
    return built(request.param)


@pytest.mark.parametrize("method", ["structured", "jacobian", "products"])
def test_every_method_on_all_pairs_of_outputs(equinox, method):
    model, options, x, y, expected = equinox
    close(tg.empirical(model, outputs="full", method=method, **options)(x, y), expected[:3, 3:])


def test_the_chosen_method_on_all_pairs_of_outputs(flax):
    model, options, x, _, expected = flax
    found = tg.empirical(model, outputs="full", **options)(x)
    close(found, expected[:3, :3])
    np.testing.assert_array_equal(found, found.transpose(1, 0, 3, 2))


def test_other_pairings(flax):
    model, options, x, y, expected = flax
    diagonal = np.einsum("nmoo->nmo", expected)
    close(tg.empirical(model, outputs="diagonal", **options)(x, y), diagonal[:3, 3:])
    close(tg.empirical(model, **options)(x), diagonal.mean(-1)[:3, :3])


def test_mean_over_outputs(equinox):
    model, options, x, y, expected = equinox
    close(tg.empirical(model, **options)(x, y), np.einsum("nmoo->nm", expected[:3, 3:]) / expected.shape[-1])


@pytest.mark.parametrize("method", ["structured", "jacobian", "auto"])
def test_what_other_platforms_compute(equinox, method, monkeypatch):
    """All outputs at once, where a CPU takes them in turn."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda arrays, cpu, default: default(arrays))
    model, options, x, _, expected = equinox
    diagonal = np.einsum("nmoo->nmo", expected)[:3, :3]
    close(tg.empirical(model, method=method, **options)(x), diagonal.mean(-1))
    close(tg.empirical(model, method=method, outputs="diagonal", **options)(x), diagonal)


def test_products_of_the_operator(equinox):
    model, options, x, y, expected = equinox
    v = np.array([1.0, -0.5])
    mean = np.einsum("nmoo->nm", expected[:3, 3:]) / expected.shape[-1]
    close(tg.empirical(model, **options).operator(x, y) @ v, mean @ v)


def test_a_layer_of_five_units_used_twice_behind_four_outputs():
    """Sizes at which XLA for the CPU gives wrong gradients if both uses are put side by side at once (see `_jax`)."""

    def function(p, x):
        h = jnp.tanh(p["w"] @ x + p["b"])
        h = p["w"] @ h + p["b"]
        return p["v"] @ jnp.tanh(h + jnp.tanh(p["u"] @ h))

    rng = np.random.default_rng(0)
    shapes = {"w": (5, 5), "u": (5, 5), "b": (5,), "v": (4, 5)}
    parameters = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = rng.normal(size=(5, 5))
    expected = ntk(function, parameters, x, x)[:3, 3:]
    close(tg.empirical(function, parameters, outputs="full")(x[:3], x[3:]), expected)
    close(tg.empirical(function, parameters)(x[:3], x[3:]), np.einsum("nmoo->nm", expected) / 4)


def test_optimised_programs():
    """This session compiles without LLVM's optimisations, users do not."""
    names = ("test_a_layer_of_five_units_used_twice_behind_four_outputs", "test_mean_over_outputs")
    command = [sys.executable, "-m", "pytest", "-q", *(f"{__file__}::{name}" for name in names)]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_a_convolution_without_positions():
    """What comes of it is what the padding and the biases of the next one make."""

    def function(p, x):
        h = jax.lax.conv_general_dilated(x[None, None], p["w"], (1,), "VALID", rhs_dilation=(2,))
        h = jax.lax.conv_general_dilated(jnp.tanh(h), p["u"], (1,), [(2, 2)]) + p["b"]
        return p["v"] @ jnp.tanh(h[0]).ravel()

    rng = np.random.default_rng(0)
    shapes = {"w": (2, 1, 5), "u": (3, 2, 2), "b": (1, 3, 1), "v": (2, 9)}
    parameters = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = rng.normal(size=(3, 4))
    close(tg.empirical(function, parameters, outputs="full")(x), ntk(function, parameters, x, x))


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_symmetric_matrices_of_pairs_of_positions(n, outputs):
    """Of which only some are computed: weights that meet several positions, turned as well."""

    def function(p, x):
        h = jnp.tanh(x @ p["w"].T)
        return (jnp.tanh(h @ p["w"]) @ p["u"]).sum(0)

    rng = np.random.default_rng(0)
    parameters = {"w": rng.normal(size=(4, 3)), "u": rng.normal(size=(3, 2))}
    x = rng.normal(size=(n, 6, 3))
    every = np.asarray(ntk(function, parameters, x, x))
    diagonal = np.einsum("nmoo->nmo", every)
    expected = {"full": every, "diagonal": diagonal, "mean": diagonal.mean(-1)}[outputs]
    found = tg.empirical(function, parameters, outputs=outputs, method="structured")(x)
    close(found, expected)
    np.testing.assert_array_equal(found, np.swapaxes(found, 0, 1) if outputs != "full" else found.transpose(1, 0, 3, 2))


def test_many_examples_in_single_precision():
    """Sizes at which XLA for the CPU does not compile if products of all outputs are added up at once."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(256, 16)) / 4, rng.normal(size=(10, 256)) / 16
    x = rng.normal(size=(256, 16))
    kernel = tg.empirical(lambda p, x: p[1] @ jax.nn.relu(p[0] @ x), (jnp.float32(w), jnp.float32(v)))
    h, on = np.maximum(x @ w.T, 0), x @ w.T > 0
    expected = h @ h.T + x @ x.T * (on * (v**2).mean(0) @ on.T)
    found = kernel(x.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())
