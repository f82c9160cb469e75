"""Limits of whole networks against closed forms written out by hand, in float64."""

import math
from functools import partial

import equinox as eqx
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from tangency import limit

RELATIVE = 1e-12


def relu_dual(k, a, b):
    """Arc-cosine kernels of degree 1 and 0, Cho & Saul 2009 eq. 6 and 5."""
    s = np.sqrt(a[:, None] * b[None, :])
    angle = np.arccos(np.clip(k / s, -1, 1))
    return s * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def erf_dual(k, a, b):
    """Williams 1997 eq. 10 for erf(u), and its derivative's."""
    u, v = 1 + 2 * a[:, None], 1 + 2 * b[None, :]
    return 2 / np.pi * np.arcsin(2 * k / np.sqrt(u * v)), 4 / np.pi / np.sqrt(u * v - 4 * k**2)


class State:
    """K with its diagonals, and Θ, between the rows of x and y."""

    def __init__(self, k, a, b, theta):
        self.k, self.a, self.b, self.theta = k, a, b, theta

    @classmethod
    def inputs(cls, x, y):
        return cls(x @ y.T, (x**2).sum(1), (y**2).sum(1), np.zeros((len(x), len(y))))

    def dense(self, w, b=0.0, eta=None, eta_b=None):
        eta, eta_b = w if eta is None else eta, b if eta_b is None else eta_b
        return State(w * self.k + b, w * self.a + b, w * self.b + b, eta * self.k + w * self.theta + eta_b)

    def act(self, dual):
        k, k_dot = dual(self.k, self.a, self.b)
        a = np.array([dual(np.array([[v]]), np.array([v]), np.array([v]))[0].item() for v in self.a])
        b = np.array([dual(np.array([[v]]), np.array([v]), np.array([v]))[0].item() for v in self.b])
        return State(k, a, b, k_dot * self.theta)

    def normalised_relu(self, eps, eta_scale, eta_shift):
        """relu(norm(u)): the scale's tangent is u itself, so that E[u φ'(u) v φ'(v)] = E[φ(u) φ(v)] belongs to it."""
        inner = self.normalised(eps, 0.0, 0.0)
        s = inner.act(relu_dual)
        k_dot = relu_dual(inner.k, inner.a, inner.b)[1]
        return State(s.k, s.a, s.b, s.theta + eta_scale * s.k + eta_shift * k_dot)

    def __add__(self, other):
        return State(self.k + other.k, self.a + other.a, self.b + other.b, self.theta + other.theta)

    def normalised(self, eps, eta_scale, eta_shift):
        """LayerNorm or RMSNorm of a zero-mean Gaussian signal, with trainable scale and shift."""
        ka, kb = 1 / np.sqrt(self.a + eps), 1 / np.sqrt(self.b + eps)
        outer = ka[:, None] * kb[None, :]
        k = outer * self.k
        return State(k, ka**2 * self.a, kb**2 * self.b, outer * self.theta + eta_scale * k + eta_shift)


@pytest.fixture
def data(rng):
    return rng.normal(size=(7, 5)), rng.normal(size=(4, 5))


def check(kernel, data, expected):
    x, y = data
    k, theta = kernel.both(x, y)
    assert k.dtype == theta.dtype == np.float64 and k.shape == (7, 4)
    np.testing.assert_allclose(k, expected.k, rtol=RELATIVE, atol=1e-14)
    np.testing.assert_allclose(theta, expected.theta, rtol=RELATIVE, atol=1e-14)
    np.testing.assert_allclose(kernel.nngp(x, y), k, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(kernel(x, y), theta, rtol=1e-14, atol=1e-15)


class NnxMlp(nnx.Module):
    def __init__(self, rngs, activation=jax.nn.relu, norm=None):
        self.inner = nnx.Linear(5, 64, rngs=rngs)
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.outer = nnx.Linear(64, 2, rngs=rngs)
        self.norm = norm(64, rngs=rngs) if norm else (lambda h: h)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        h = self.activation(self.inner(x))
        return self.outer(self.dropout(self.activation(self.norm(self.hidden(h)))))


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.relu(linen.Dense(64)(x))
        h = linen.relu(linen.Dense(64)(h))
        return linen.Dense(2)(h)


FLAX_RELU = dict(w=1.0, b=0.0, eta=1.0, eta_b=1.0)


def flax_relu(data):
    s = State.inputs(*data).dense(0.2, 0.0, 0.2, 1.0).act(relu_dual)
    return s.dense(**FLAX_RELU).act(relu_dual).dense(**FLAX_RELU)


def test_equinox_mlp_with_uniform_initialisers_and_biases(data):
    kernel = limit(lambda key: eqx.nn.MLP(5, 3, 64, 2, activation=jax.nn.relu, key=key))
    expected = State.inputs(*data).dense(1 / 15, 1 / 15)
    for _ in range(2):
        expected = expected.act(relu_dual).dense(1 / 3, 1 / 192)
    check(kernel, data, expected)


def test_scalar_output(data):
    kernel = limit(lambda key: eqx.nn.MLP(5, "scalar", 64, 1, activation=jax.lax.erf, key=key))
    check(kernel, data, State.inputs(*data).dense(1 / 15, 1 / 15).act(erf_dual).dense(1 / 3, 1 / 192))


def test_one_input_feature():
    x = np.linspace(-2, 2, 7)[:, None]
    kernel = limit(lambda key: eqx.nn.MLP(1, 1, 64, 1, activation=jax.nn.relu, key=key))
    check(
        kernel, (x, x[:4] + 0.1), State.inputs(x, x[:4] + 0.1).dense(1 / 3, 1 / 3).act(relu_dual).dense(1 / 3, 1 / 192)
    )


def test_flax_nnx_linen_and_a_plain_pair_agree(data):
    expected = flax_relu(data)
    check(limit(lambda key: NnxMlp(nnx.Rngs(key))), data, expected)
    module = LinenMlp()
    check(limit((module.init, module.apply)), data, expected)

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = [(5, 64), (64, 64), (64, 2)]
        return [(jax.random.normal(k, s) / jnp.sqrt(s[0]), jnp.zeros(s[1])) for k, s in zip(keys, shapes, strict=True)]

    def apply(parameters, x):
        *hidden, (w, b) = parameters
        for v, c in hidden:
            x = jnp.maximum(jnp.dot(x, v) + c, 0.0)
        return x @ w + b

    check(limit((init, apply)), data, expected)
    check(limit((init, apply), batched=False), data, expected)

    def apply_batch(parameters, x):
        *hidden, (w, b) = parameters
        for v, c in hidden:
            x = jax.nn.relu(x @ v + c[None, :])
        return x @ w + b[None, :]

    check(limit((init, apply_batch), batched=True), data, expected)


def test_haiku_pair(data):
    network = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([64, 64, 2])(x)))
    # Haiku truncates a normal at two standard deviations and does not correct its variance.
    w = 1 - 4 * np.exp(-2) / np.sqrt(2 * np.pi) / math.erf(np.sqrt(2))
    expected = State.inputs(*data).dense(w / 5, 0.0, w / 5, 1.0)
    for _ in range(2):
        expected = expected.act(relu_dual).dense(w, 0.0, w, 1.0)
    check(limit((network.init, network.apply)), data, expected)


@pytest.mark.parametrize(("norm", "eta_shift"), [(nnx.LayerNorm, 1.0), (nnx.RMSNorm, 0.0)])
def test_flax_norms_with_trainable_scale_and_shift(data, norm, eta_shift):
    s = State.inputs(*data).dense(0.2, 0.0, 0.2, 1.0).act(relu_dual).dense(**FLAX_RELU)
    expected = s.normalised_relu(1e-6, 1.0, eta_shift).dense(**FLAX_RELU)
    check(limit(lambda key: NnxMlp(nnx.Rngs(key), norm=norm)), data, expected)


class Residual(eqx.Module):
    """x ↦ readout(h_L), h_{l+1} = h_l + V_l erf(norm(W_l h_l)) / 2."""

    embed: eqx.nn.Linear
    blocks: list
    readout: eqx.nn.Linear

    def __init__(self, key, depth=3, norm=eqx.nn.LayerNorm):
        keys = iter(jax.random.split(key, 2 * depth + 2))
        self.embed = eqx.nn.Linear(5, 64, use_bias=False, key=next(keys))
        self.blocks = [
            (
                norm(64),
                eqx.nn.Linear(64, 64, use_bias=False, key=next(keys)),
                eqx.nn.Linear(64, 64, use_bias=False, key=next(keys)),
            )
            for _ in range(depth)
        ]
        self.readout = eqx.nn.Linear(64, 3, use_bias=False, key=next(keys))

    def __call__(self, x):
        h = self.embed(x)
        for norm, inner, outer in self.blocks:
            h = h + 0.5 * outer(jax.lax.erf(inner(norm(h))))
        return self.readout(h)


@pytest.mark.parametrize("norm", [eqx.nn.LayerNorm, eqx.nn.RMSNorm])
def test_equinox_pre_norm_residual_network(data, norm):
    s = State.inputs(*data).dense(1 / 15)
    for _ in range(3):
        branch = s.normalised(1e-5, 1.0, 1.0).dense(1 / 3).act(erf_dual).dense(1 / 3)
        s = s + State(branch.k / 4, branch.a / 4, branch.b / 4, branch.theta / 4)
    check(limit(lambda key: Residual(key, norm=norm)), data, s.dense(1 / 3))


def gaussian(key, *shape):
    return jax.random.normal(key, shape) / np.sqrt(shape[-1])


def pair(apply, **shapes):
    """A network from weights w ~ N(0, 1/fan-in) of the given shapes."""

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {name: gaussian(k, *shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    return init, apply


def test_concatenation_of_features_keeps_traced_proportions(data):
    """v·[relu(Wx); x; erf(Ux)] with 64, 5 and 32 features."""

    def apply(p, x):
        h = jnp.concatenate([jax.nn.relu(p["w"] @ x), x, jax.lax.erf(p["u"] @ x)])
        return p["v"] @ h

    first = State.inputs(*data).dense(1 / 5)
    a, b, inputs = first.act(relu_dual), first.act(erf_dual), State.inputs(*data)
    k = (64 * a.k + inputs.k + 32 * b.k) / 101
    theta = k + (64 * a.theta + 32 * b.theta) / 101
    kernel = limit(pair(apply, w=(64, 5), u=(32, 5), v=(2, 101)))
    check(kernel, data, State(k, None, None, theta))


def test_activation_of_a_concatenation(data):
    def apply(p, x):
        return p["v"] @ jax.nn.relu(jnp.concatenate([p["w"] @ x, x]))

    x, y = data
    a = State.inputs(x, y).dense(1 / 5).act(relu_dual)
    k = (64 * a.k + np.maximum(x, 0) @ np.maximum(y, 0).T) / 69
    check(limit(pair(apply, w=(64, 5), v=(1, 69))), data, State(k, None, None, k + 64 * a.theta / 69))


def test_skip_from_an_activation_is_not_taken_for_independent(data):
    """v·(u + relu(u)), u = Wx: the branches are correlated, E[u relu(u')] = E[u u']/2."""

    def apply(p, x):
        u = p["w"] @ x
        return p["v"] @ (u + jax.nn.relu(u))

    u = State.inputs(*data).dense(1 / 5)
    k1, k0 = relu_dual(u.k, u.a, u.b)
    # 1 + step(u) has second moment 1 + 1/2 + 1/2 + κ₀.
    k = u.k + u.k + k1
    theta = k + (2 + k0) * u.theta
    check(limit(pair(apply, w=(64, 5), v=(1, 64))), data, State(k, None, None, theta))


def test_activations_across_two_layers_with_a_long_skip(data):
    """v·(relu(u₁) + relu(W₂ relu(u₁))): two different Gaussians, each in its own activation."""

    def apply(p, x):
        h = jax.nn.relu(p["w"] @ x)
        return p["v"] @ (h + jax.nn.relu(p["m"] @ h))

    first = State.inputs(*data).dense(1 / 5).act(relu_dual)
    second = first.dense(1.0).act(relu_dual)
    mean = lambda s: np.sqrt(s / (2 * np.pi))  # noqa: E731
    u, m = State.inputs(*data).dense(1 / 5), first.dense(1.0)
    cross = np.outer(mean(u.a), mean(m.b)) + np.outer(mean(m.a), mean(u.b))
    k = first.k + second.k + cross
    theta = k + first.theta + second.theta
    check(limit(pair(apply, w=(64, 5), m=(64, 64), v=(1, 64))), data, State(k, None, None, theta))


def test_a_layer_applied_twice(data):
    """v·relu(M relu(M relu(Wx))): the tangent sums over both uses of M, and the cross terms are not zero."""

    def apply(p, x):
        h = jax.nn.relu(p["w"] @ x)
        for _ in range(2):
            h = jax.nn.relu(p["m"] @ h)
        return p["v"] @ h

    kernel = limit(pair(apply, w=(64, 5), m=(64, 64), v=(1, 64)))
    s = State.inputs(*data).dense(1 / 5).act(relu_dual)
    expected = s.dense(1.0).act(relu_dual).dense(1.0).act(relu_dual).dense(1.0)
    check(kernel, data, expected)


def test_scalar_multiples_and_ntk_parameterisation(data):
    """N(0, 1) weights with explicit 1/√fan-in factors, on the weight or on the signal."""

    def init(key):
        k1, k2 = jax.random.split(key)
        return jax.random.normal(k1, (64, 5)), jax.random.normal(k2, (2, 64))

    def apply(p, x):
        h = jax.nn.relu((p[0] / np.sqrt(5)) @ x)
        return -2.0 * (p[1] @ h) / np.sqrt(64)

    expected = State.inputs(*data).dense(1 / 5).act(relu_dual).dense(4.0)
    check(limit((init, apply)), data, expected)


def test_skip_from_the_input_counts_the_input_features_exactly(data):
    """v·(x + relu(Wx)) on the input's own 5 features: ⟨x,x'⟩/5 + cross terms + κ₁."""

    def apply(p, x):
        return p["v"] @ (x + jax.nn.relu(p["w"] @ x))

    x, y = data
    u = State.inputs(x, y).dense(1 / 5)
    a = u.act(relu_dual)
    mean_u, mean_v = np.sqrt(u.a / (2 * np.pi)), np.sqrt(u.b / (2 * np.pi))
    k = x @ y.T / 5 + np.outer(x.mean(1), mean_v) + np.outer(mean_u, y.mean(1)) + a.k
    check(limit(pair(apply, w=(5, 5), v=(1, 5))), data, State(k, None, None, k + a.theta))


def test_a_trained_scale_of_a_branch_before_an_activation(data):
    """relu(v + γ∘m), v = m + n: the tangent of γ is m relu'(v), two Gaussians beside a function of two others."""

    def apply(p, x):
        m = p["w"] @ x
        return p["v"] @ jax.nn.relu(m + 2.0 * (p["u"] @ x) + p["s"] * m)

    def init(key):
        return pair(apply, w=(64, 5), u=(64, 5), v=(1, 64))[0](key) | {"s": jnp.zeros(64)}

    x, y = data
    m = State.inputs(x, y).dense(1 / 5)
    v = State.inputs(x, y).dense(1.0)
    s = v.act(relu_dual)
    k_dot = relu_dual(v.k, v.a, v.b)[1]
    # m = v/5 + ε, where ε has covariance 4/5 of m's and is independent of v at all inputs.
    scale = s.k / 25 + 0.8 * m.k * k_dot
    check(limit((init, apply)), data, State(s.k, None, None, s.k + s.theta + scale))


def test_rms_norm_of_an_activation(data):
    """v·(h/rms(h)), h = relu(Wx): non-Gaussian, normalised by its own second moment a/2."""

    def apply(p, x):
        h = jax.nn.relu(p["w"] @ x)
        return p["v"] @ (h * jax.lax.rsqrt(jnp.mean(h**2) + 1e-3))

    s = State.inputs(*data).dense(1 / 5)
    a = s.act(relu_dual)
    inverse = np.outer(1 / np.sqrt(s.a / 2 + 1e-3), 1 / np.sqrt(s.b / 2 + 1e-3))
    expected = State(inverse * a.k, None, None, inverse * (a.k + a.theta))
    check(limit(pair(apply, w=(64, 5), v=(1, 64))), data, expected)


def test_layer_norm_of_an_activation_subtracts_its_mean(data):
    def apply(p, x):
        h = jax.nn.relu(p["w"] @ x)
        return p["v"] @ ((h - jnp.mean(h)) / jnp.sqrt(jnp.var(h) + 1e-3))

    s = State.inputs(*data).dense(1 / 5)
    a = s.act(relu_dual)
    mean_a, mean_b = np.sqrt(s.a / (2 * np.pi)), np.sqrt(s.b / (2 * np.pi))
    inverse = np.outer(1 / np.sqrt(s.a / 2 - mean_a**2 + 1e-3), 1 / np.sqrt(s.b / 2 - mean_b**2 + 1e-3))
    k = inverse * (a.k - np.outer(mean_a, mean_b))
    check(limit(pair(apply, w=(64, 5), v=(1, 64))), data, State(k, None, None, k + inverse * a.theta))


def test_frozen_parameters_and_learning_rates(data):
    model = pair(lambda p, x: p["v"] @ jax.nn.relu(p["w"] @ x), w=(64, 5), v=(1, 64))
    s = State.inputs(*data).dense(1 / 5, eta=0.0).act(relu_dual)
    check(limit(model, trainable={"w": False, "v": True}), data, s.dense(1.0))
    s = State.inputs(*data).dense(1 / 5, eta=3.0).act(relu_dual)
    check(limit(model, learning_rate={"w": 3.0, "v": "variance"}), data, s.dense(1.0))


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.lax.erf, partial(jax.nn.gelu, approximate=False)])
def test_hundred_layers_stay_finite_and_positive(rng, activation):
    x = rng.normal(size=(6, 5))
    shapes = {"in": (64, 5)} | {f"m{i}": (64, 64) for i in range(100)} | {"out": (1, 64)}

    def apply(p, x):
        h = jnp.sqrt(2.0) * p["in"] @ x
        for i in range(100):
            h = jnp.sqrt(2.0) * (p[f"m{i}"] @ activation(h))
        return p["out"] @ h

    k, theta = limit(pair(apply, **shapes)).both(x)
    for matrix in (k, theta):
        assert np.all(np.isfinite(matrix))
        assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.trace(matrix)
    if activation is jax.nn.relu:
        np.testing.assert_allclose(np.diag(k), 2 / 5 * (x**2).sum(1), rtol=1e-12)


class LinenNormalised(linen.Module):
    """BatchNorm in inference form: running statistics are state, not parameters."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)(x)
        return linen.Dense(2)(linen.relu(linen.Dense(64)(x)))


def test_state_in_single_precision_is_a_constant(data):
    module = LinenNormalised()
    x, y = (part / np.sqrt(1 + 1e-5) for part in data)
    expected = State.inputs(x, y).dense(0.2, 0.0, 0.2, 1.0).act(relu_dual).dense(**FLAX_RELU)
    check(limit((module.init, module.apply)), data, expected)


def test_a_known_mask_selects_linearly(data):
    """where(mask, relu(u), 0) keeps half of the units; where(x > 0, u, 0) depends on the example."""
    mask = np.arange(64) % 2 == 0
    s = State.inputs(*data).dense(0.2).act(relu_dual)
    kernel = limit(pair(lambda p, x: p["v"] @ jnp.where(mask, jax.nn.relu(p["w"] @ x), 0.0), w=(64, 5), v=(1, 64)))
    check(kernel, data, State(s.k / 2, None, None, (s.k + s.theta) / 2))
    x, y = data
    shared = (x > 0).astype(float) @ (y > 0).T / 5
    kernel = limit(pair(lambda p, x: p["v"] @ jnp.where(x > 0, p["w"] @ x, 0.0), w=(5, 5), v=(1, 5)))
    check(kernel, data, State(shared * (x @ y.T) / 5, None, None, 2 * shared * (x @ y.T) / 5))


def test_a_product_written_twice_is_one_gaussian(data):
    """|Wx| as (Wx)·sign(Wx), with the matrix product spelled out in both places."""
    kernel = limit(pair(lambda p, x: p["v"] @ ((p["w"] @ x) * jnp.sign(p["w"] @ x)), w=(64, 5), v=(1, 64)))
    s = State.inputs(*data).dense(0.2)
    k1, k0 = relu_dual(s.k, s.a, s.b)
    # |u| = 2 relu(u) − u and its derivative is 2 step(u) − 1.
    k, slope = 4 * k1 - s.k, 4 * k0 - 1
    check(kernel, data, State(k, None, None, k + slope * s.theta))


def test_a_weight_without_gradient_in_one_of_its_uses(data):
    """v·relu(M̄ relu(M relu(Wx))), where M̄ is M behind `stop_gradient`: the same values, one tangent."""

    def apply(p, x):
        h = jax.nn.relu(p["m"] @ jax.nn.relu(p["w"] @ x))
        return p["v"] @ jax.nn.relu(jax.lax.stop_gradient(p["m"]) @ h)

    kernel = limit(pair(apply, w=(64, 5), m=(64, 64), v=(1, 64)))
    s = State.inputs(*data).dense(1 / 5).act(relu_dual).dense(1.0).act(relu_dual)
    check(kernel, data, State(s.k, s.a, s.b, s.theta).act(relu_dual).dense(1.0))
    assert "no gradient" in str(kernel)


def test_entries_without_gradient(data):
    """A random scale behind `stop_gradient` multiplies both kernels by its second moment."""

    def apply(p, x):
        return p["v"] @ (jax.lax.stop_gradient(p["c"]) * jax.nn.relu(p["w"] @ x))

    s = State.inputs(*data).dense(1 / 5).act(relu_dual)
    check(limit(pair(apply, w=(64, 5), c=(64,), v=(1, 64))), data, State(s.k / 64, None, None, (s.k + s.theta) / 64))


def test_a_choice_by_another_branch(data):
    """where(u > 0, s, 0): the choice has no gradient, and does not depend on what it chooses."""

    def apply(p, x):
        return p["v"] @ jnp.where(p["w"] @ x > 0, jax.nn.relu(p["u"] @ x), 0.0)

    s = State.inputs(*data).dense(1 / 5)
    open_gates, h = relu_dual(s.k, s.a, s.b)[1], s.act(relu_dual)
    kernel = limit(pair(apply, w=(64, 5), u=(64, 5), v=(1, 64)))
    check(kernel, data, State(open_gates * h.k, None, None, open_gates * (h.k + h.theta)))


def test_products_of_gaussians_that_share_a_weight(rng):
    """v·((Wa)(Wb)), a and b the halves of x: four correlated Gaussians, by Isserlis' theorem."""
    x, y = rng.normal(size=(7, 6)), rng.normal(size=(4, 6))
    kernel = limit(pair(lambda p, x: p["v"] @ ((p["w"] @ x[:3]) * (p["w"] @ x[3:])), w=(64, 3), v=(1, 64)))
    halves = (x[:, :3], x[:, 3:]), (y[:, :3], y[:, 3:])
    between = [[left @ right.T / 3 for right in halves[1]] for left in halves[0]]
    own = [np.sum(a * b, axis=1) / 3 for a, b in halves]
    crossed = between[0][0] * between[1][1] + between[0][1] * between[1][0]
    k = np.outer(*own) + crossed
    check(kernel, (x, y), State(k, None, None, k + 2 * crossed))


def test_one_flat_array_holds_all_weights(data):
    """Slices of one vector, reshaped where they are used, one of them twice."""

    def apply(p, x):
        w, m, v = p[: 64 * 5].reshape(64, 5), p[64 * 5 : -64].reshape(64, 64), p[-64:].reshape(1, 64)
        h = jax.nn.relu(w @ x)
        return v @ jax.nn.relu(h @ m.T + m @ jax.nn.relu(h))

    def separate(p, x):
        h = jax.nn.relu(p["w"] @ x)
        return p["v"] @ jax.nn.relu(p["m"] @ h + p["m"] @ jax.nn.relu(h))

    def init(key):
        return jax.random.normal(key, (64 * 5 + 64 * 64 + 64,)) / 8

    def split(key):
        keys = jax.random.split(key, 3)
        shapes = {"w": (64, 5), "m": (64, 64), "v": (1, 64)}
        return {name: jax.random.normal(k, s) / 8 for k, (name, s) in zip(keys, shapes.items(), strict=True)}

    flat, apart = limit((init, apply)), limit((split, separate))
    for found, expected in zip(flat.both(*data), apart.both(*data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_branch_that_each_example_chooses(data):
    """lax.cond: examples with x₀ > 0 go through one more layer; across the branches only the means meet."""

    def apply(p, x):
        def deeper(h):
            return jax.nn.relu(p["m"] @ h)

        return p["v"] @ jax.lax.cond(x[0] > 0, deeper, lambda h: h, jax.nn.relu(p["w"] @ x))

    x, y = data
    first = State.inputs(x, y).dense(1 / 5)
    shallow = first.act(relu_dual)
    second = shallow.dense(1.0)
    deep = second.act(relu_dual)
    across = np.sqrt(np.outer(first.a, second.b)) / (2 * np.pi), np.sqrt(np.outer(second.a, first.b)) / (2 * np.pi)
    here, there = (x[:, 0] > 0)[:, None], (y[:, 0] > 0)[None, :]
    k = np.where(here & there, deep.k, np.where(here, across[1], np.where(there, across[0], shallow.k)))
    inner = np.where(here & there, deep.theta, np.where(here | there, 0.0, shallow.theta))
    check(limit(pair(apply, w=(64, 5), m=(64, 64), v=(1, 64))), data, State(k, None, None, k + inner))
