"""What every limit kernel promises: shapes, symmetry, precision, derivatives, and clear errors."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tangency import NTKClassifier, limit
from tangency.errors import AccuracyError, InputError, NonFiniteError
from tangency.kernels import tiles
from tangency.limit.survey import survey
from tangency.trace.tracers import outside_of_traces


def mlp(activation, depth=2):
    return lambda key: eqx.nn.MLP(4, 3, 32, depth, activation=activation, key=key)


class Block(eqx.Module):
    """A residual network with every part of the dense family."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    readout: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Linear(4, 32, key=keys[0])
        self.norm = eqx.nn.LayerNorm(32)
        self.inner = eqx.nn.Linear(32, 32, key=keys[1])
        self.outer = eqx.nn.Linear(32, 32, key=keys[2])
        self.readout = eqx.nn.Linear(36, 2, key=keys[3])

    def __call__(self, x):
        h = self.embed(x)
        h = h + self.outer(jax.nn.gelu(self.inner(self.norm(h)), approximate=False))
        return self.readout(jnp.concatenate([h, x]))


RELU = limit(mlp(jax.nn.relu))
BLOCK = limit(Block)
TANH = limit(mlp(jnp.tanh))
KERNELS = {"relu": RELU, "block": BLOCK, "tanh": TANH}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@kernels
def test_shapes_symmetry_and_the_diagonal(kernel, rng):
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    k, theta = kernel.both(x)
    assert k.shape == theta.shape == (5, 5)
    assert np.array_equal(k, k.T)
    assert np.array_equal(theta, theta.T)
    # The diagonal is that of the recursion on single examples, bit for bit.
    assert np.array_equal([np.diag(k), np.diag(theta)], kernel.diagonal("both", x))
    np.testing.assert_allclose(kernel.diagonal("nngp", x), np.diag(k), rtol=1e-14)
    # Equal inputs that are not said to be equal: an angle of 0 is only known to the root of the rounding error.
    np.testing.assert_allclose(kernel(x, x), theta, rtol=1e-7)
    np.testing.assert_allclose(kernel(x, x)[~np.eye(5, dtype=bool)], theta[~np.eye(5, dtype=bool)], rtol=1e-12)
    np.testing.assert_allclose(kernel(x, y), kernel(y, x).T, rtol=1e-12)
    np.testing.assert_allclose(kernel(np.concatenate([x, y]))[:5, 5:], kernel(x, y), rtol=1e-12)


@kernels
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    x=hnp.arrays(
        np.float64, (4, 4), elements=st.floats(-3, 3).map(lambda v: v if abs(v) > 1e-3 else 0.0), fill=st.nothing()
    )
)
def test_positive_semi_definite_on_any_inputs(kernel, x):
    for matrix in kernel.both(x):
        assert np.linalg.eigvalsh(matrix).min() >= -1e-11 * np.trace(matrix)


@kernels
def test_float32_is_close_to_float64(kernel, rng):
    x = rng.normal(size=(6, 4)).astype(np.float32)
    exact = kernel.both(x.astype(np.float64))
    for single, double in zip(kernel.both(x), exact, strict=True):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=3e-5, atol=1e-6)
    for single, double in zip(kernel.both(jnp.asarray(x)), exact, strict=True):
        assert isinstance(single, jax.Array)
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, double, rtol=3e-5, atol=1e-6)


@kernels
def test_the_same_inside_jit_and_in_both_precisions(kernel, rng):
    x, y = rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
    expected = kernel(x, y)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(kernel)(x, y), expected, rtol=1e-11)
        symmetric = jax.jit(kernel)(x)
        np.testing.assert_allclose(symmetric, kernel(x), rtol=1e-11)
    assert jax.jit(kernel)(x, y).dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(kernel)(x, y), expected, rtol=3e-5)
    np.testing.assert_allclose(jax.vmap(lambda a: kernel(a[None], y)[0])(jnp.asarray(x)), expected, rtol=3e-5)
    # NumPy inputs under somebody's trace are constants, still in their own precision.
    constant = jax.jit(lambda s: s * jnp.asarray(kernel(x, y).sum()))(2.0)
    np.testing.assert_allclose(constant, 2 * expected.sum(), rtol=1e-6)


@kernels
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_gradients_are_finite_at_equal_inputs_and_zero_vectors(kernel, kind):
    x = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 0.5, 0.3], [1.0, -2.0, 0.5, 0.3], [-1.0, 2.0, -0.5, -0.3]])
    with jax.enable_x64(True):
        total = lambda a, b: jnp.sum(kernel.evaluate(kind, a, b))  # noqa: E731
        left, right = jax.grad(total, argnums=(0, 1))(jnp.asarray(x), jnp.asarray(x))
        both = jax.grad(lambda a: jnp.sum(kernel.evaluate(kind, a)))(jnp.asarray(x))
    assert np.all(np.isfinite(left))
    assert np.all(np.isfinite(right))
    assert np.all(np.isfinite(both))


@kernels
def test_the_gradient_of_the_nngp_is_that_of_finite_differences(kernel, rng):
    x, y, direction = rng.normal(size=(1, 4)), rng.normal(size=(1, 4)), rng.normal(size=(1, 4))
    with jax.enable_x64(True):
        slope = jax.jvp(lambda a: kernel.nngp(a, jnp.asarray(y)), (jnp.asarray(x),), (jnp.asarray(direction),))[1]
    step = 1e-5
    difference = (kernel.nngp(x + step * direction, y) - kernel.nngp(x - step * direction, y)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-7)


def test_relu_kernel_at_equal_inputs_has_the_exact_gradient(rng):
    """K(x, x') of one hidden layer at x' = x: ∂K/∂x = x (σ_w²)² / 4 for weights only, as K(x, x) = |x|² (σ_w²)²/2."""

    def init(key):
        k1, k2 = jax.random.split(key)
        return jax.random.normal(k1, (32, 4)) / 2, jax.random.normal(k2, (1, 32)) / np.sqrt(32)

    kernel = limit((init, lambda p, x: p[1] @ jax.nn.relu(p[0] @ x)))
    x = rng.normal(size=(1, 4))
    with jax.enable_x64(True):
        gradient = jax.grad(lambda a: kernel.nngp(a, jnp.asarray(x))[0, 0])(jnp.asarray(x))
    np.testing.assert_allclose(gradient, x / 8, rtol=1e-12)


def test_tiles_give_what_one_block_gives(rng, monkeypatch):
    x, y = rng.normal(size=(23, 4)), rng.normal(size=(11, 4))
    whole, cross = RELU.both(x), RELU.both(x, y)
    calls = []
    assemble = tiles.assemble
    module = sys.modules[type(RELU).__module__]
    monkeypatch.setattr(module, "assemble", lambda *args, **kwargs: assemble(*args, **{**kwargs, "tile": 5}))
    result = RELU.evaluate("both", x, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 15) for i in range(15)]  # 5 · 6 / 2 tiles: half of the matrix
    np.testing.assert_allclose(result, whole, rtol=1e-13)
    assert np.array_equal(result[1], result[1].T)
    np.testing.assert_allclose(RELU.evaluate("both", x, y), cross, rtol=1e-13)


def test_neighbouring_numbers_of_examples_share_what_xla_compiled(rng, monkeypatch):
    module, made = sys.modules[type(RELU).__module__], []
    recursion = module.Recursion
    monkeypatch.setattr(module, "Recursion", lambda *args, **kwargs: made.append(args) or recursion(*args, **kwargs))
    kernel, whole = limit(mlp(jax.nn.relu)), limit(mlp(jax.nn.relu))
    x, y = rng.normal(size=(15, 4)), rng.normal(size=(12, 4))

    def results(kernel, n, m):
        return kernel(x[:n]), kernel(x[:n], y[:m]), kernel.diagonal("ntk", x[:n])

    results(kernel, 13, 11)
    traced = len(made)
    shared = results(kernel, 14, 12)
    assert traced and len(made) == traced
    monkeypatch.setattr(module, "_FILLING", 0)
    for found, exact in zip(shared, results(whole, 14, 12), strict=True):
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, rtol=1e-14)


def test_much_is_not_computed_in_vain(rng, monkeypatch):
    module, shapes = sys.modules[type(RELU).__module__], []
    monkeypatch.setattr(module, "_FILLING", survey(RELU.graph((4,)), tangent=True).numbers * (14 * 14 - 13 * 13) - 1)
    kernel = limit(mlp(jax.nn.relu))
    block = kernel._block
    kernel._block = lambda a, b, *args, **kwargs: shapes.append((len(a), len(b))) or block(a, b, *args, **kwargs)
    x = rng.normal(size=(13, 4))
    kernel(x)
    kernel(x[:10])
    assert shapes == [(13, 13), (10, 10)]
    kernel(x[:9])
    assert shapes[-1] == (10, 10)


def test_integer_inputs_and_lists_are_numbers():
    rows = [[1, 0, 2, 3], [0, 1, 1, 1]]
    np.testing.assert_allclose(RELU(rows), RELU(np.array(rows, np.float64)), rtol=1e-15)


def test_large_variances_of_a_numerical_activation_are_refused_not_wrong(rng):
    x = 1e4 * rng.normal(size=(3, 4))
    with pytest.raises(AccuracyError, match=r"Activation tanh\(u\) at variance"):
        TANH(x)
    assert np.all(np.isfinite(RELU(x)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0, np.nan, 0, 0]],), NonFiniteError, "x1: row 0 holds NaN"),
        ((np.ones((2, 4)), [[1.0, 0, 0, 0], [np.inf, 0, 0, 0]]), NonFiniteError, "x2: row 1 holds NaN or infinity"),
        ((np.ones((2, 4)), np.ones((2, 3))), InputError, r"x2: examples of shape \(3,\) do not fit those of x1"),
        ((np.ones((2, 5)),), InputError, r"could not be called on an example of shape \(5,\)"),
        ((np.ones((0, 4)),), InputError, "expected examples along the first axis"),
        ((3.0,), InputError, "expected examples along the first axis"),
        (([["a", "b"]],), InputError, "expected real numbers"),
    ],
)
def test_bad_inputs_get_one_clear_line(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        RELU(*arguments)
    assert "\n" not in str(caught.value)


class Shifted(eqx.Module):
    """A nonlinearity with a number of each example in it."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.inner, self.outer = eqx.nn.Linear(4, 8, key=first), eqx.nn.Linear(8, 1, key=second)

    def __call__(self, x):
        return self.outer(jnp.tanh(self.inner(x) + jnp.sum(x * x)))


def test_functions_with_numbers_of_the_input_are_printed():
    text = str(limit(Shifted, input_shape=(4,)))
    assert "φ1(u) = tanh((u + p0)); numerical: Hermite series" in text


class Mismatched(eqx.Module):
    """Convolutions of two strides, whose outputs have different shapes."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, key, dtype):
        self.first, self.second = (eqx.nn.Conv2d(2, 4, 3, stride, dtype=dtype, key=key) for stride in (1, 2))

    def __call__(self, x):
        return self.first(x) + self.second(x)


@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_the_models_own_error_is_the_one_reported(dtype):
    """Not that of another attempt in another precision, which convolutions refuse before anything is added."""
    with pytest.raises(InputError, match=r"\(2, 8, 8\): TypeError: add got incompatible shapes"):
        limit(lambda key: Mismatched(key, dtype), input_shape=(2, 8, 8))


def test_overflow_is_named(rng):
    with pytest.raises(NonFiniteError, match="between rows 0 and 0 is not finite"):
        limit(mlp(lambda u: u**3, depth=6))(1e60 * rng.normal(size=(2, 4)))


def test_unknown_kind_and_format():
    with pytest.raises(InputError, match="kind: expected one of nngp, ntk, both"):
        RELU.evaluate("ntkk", np.ones((1, 4)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="format: expected 'text' or 'latex'"):
        RELU.explain("html")


@pytest.mark.parametrize("fused", [True, False])
def test_precision_is_that_asked_for(fused, rng):
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    own = limit(mlp(jax.nn.relu), fused=fused)
    single = limit(mlp(jax.nn.relu), fused=fused, precision="float32")
    for found, expected in (
        (single(x, y), own(x.astype(np.float32), y.astype(np.float32))),
        (single.evaluate("both", x), own.evaluate("both", x.astype(np.float32))),
        (single.diagonal("nngp", x), own.diagonal("nngp", x.astype(np.float32))),
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    assert "inputs are taken to float32" in str(single)
    assert "inputs are taken" not in str(own)
    double = limit(mlp(jax.nn.relu), fused=fused, precision="float64")
    narrow = x.astype(np.float32)
    np.testing.assert_array_equal(double(narrow), own(narrow.astype(np.float64)))


def test_estimators_in_single_precision(rng):
    x, labels = rng.normal(size=(30, 4)), np.arange(30) % 2
    fits = [NTKClassifier(limit(mlp(jax.nn.relu), precision=p), ridge=1e-2).fit(x, labels) for p in ("float32", None)]
    found, exact = (fit.decision_function(x[:5] + 0.1) for fit in fits)
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    assert not np.array_equal(found, exact)


def test_precision_is_refused_where_it_cannot_be_kept(rng):
    with pytest.raises(InputError, match='precision: expected "float32", "float64" or None, got \'half\''):
        limit(mlp(jax.nn.relu), precision="half")
    with pytest.raises(NonFiniteError, match="x1: row 1 goes beyond the range of float32; scale it"):
        limit(mlp(jax.nn.relu), precision="float32")(np.array([[1.0] * 4, [1e300] * 4]))


def test_a_graph_is_surveyed_once():
    graph = limit(mlp(jax.nn.relu), input_shape=(4,)).graph()
    assert survey(graph, tangent=True) is survey(graph, tangent=True, diagonal=False)


def test_values_at_once_only_where_a_caller_is_traced():
    """Elsewhere constants are left to the programs that need them, not compiled one by one."""

    def folded(x):
        with outside_of_traces():
            return isinstance(jnp.ones(()) * 2.0, jax.core.Tracer), x

    found = []
    jax.jit(lambda x: found.append(folded(x)[0]) or x)(1.0)
    assert found == [False]
    with outside_of_traces():
        jax.jit(lambda x: found.append(isinstance(jnp.ones(()) * 2.0, jax.core.Tracer)) or x)(1.0)
    assert found == [False, True]
