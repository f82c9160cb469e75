"""`tangency.linearize` and `tangency.taylor` against explicit derivatives, and how they train."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import tangency as tg
from tangency.errors import InputError
from tests.empirical.checks import close
from tests.finite_networks import EquinoxNorm, double, examples, made

pytestmark = pytest.mark.usefixtures("double_precision")


def function(p, x):
    return {"y": p["v"] @ jnp.tanh(p["w"] @ x + p["b"]), "z": jnp.exp(p["b"][:2] * p["w"][0, 0])}


@pytest.fixture
def parameters(rng):
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in (("w", (2, 2)), ("b", (2,)), ("v", (2, 2)))}


@pytest.fixture
def moved(parameters, rng):
    return jax.tree.map(lambda a: a + 0.3 * jnp.asarray(rng.normal(size=a.shape)), parameters)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_terms_are_those_of_explicit_derivatives(parameters, moved, rng, order):
    x = jnp.asarray(rng.normal(size=2))
    start, unravel = ravel_pytree(parameters)
    step = ravel_pytree(moved)[0] - start

    def flat(p):
        return ravel_pytree(function(unravel(p), x))[0]

    expected, derivative, factor = np.zeros(4), flat, 1.0
    for k in range(order + 1):
        tensor = derivative(start)
        for _ in range(k):
            tensor = tensor @ step
        expected, factor = expected + tensor / factor, factor * (k + 1)
        derivative = jax.jacfwd(derivative)
    found = tg.taylor(function, order, parameters)(moved, x)
    assert found.keys() == {"y", "z"}
    close(ravel_pytree(found)[0], expected)
    close(ravel_pytree(jax.jit(tg.taylor(function, order, parameters))(moved, x))[0], expected)


@pytest.mark.parametrize("name", ["Equinox RNN", "Equinox embedding"])
def test_equinox_modules(name, rng):
    model, _, plain, parameters = made(name, jax.random.key(0))
    x = jnp.asarray(examples(name, rng, 1))[0]
    linear = tg.linearize(model)
    step = jax.tree.map(lambda a: 0.1 * jnp.asarray(rng.normal(size=a.shape)), parameters)
    shifted = eqx.tree_at(lambda m: m.network, linear, eqx.apply_updates(linear.network, step))
    value, slope = jax.jit(lambda p, d: jax.jvp(lambda p: plain(p, x), (p,), (d,)))(parameters, step)
    call = eqx.filter_jit(lambda m: m(x))
    close(call(linear), value)
    close(call(shifted), value + slope)
    close(call(shifted.reference), value)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: m(x)[0]))(shifted)
    assert jax.tree.structure(gradient.network) == jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
    expected = jax.jit(jax.grad(lambda p: plain(p, x)[0]))(parameters)
    for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        close(found, wanted)


def descent(kernel, start, x, y, steps, rate):
    """f on (training, test) points after each step of full-batch descent on 1/(2N) Σ |f − y|², `full` kernel."""
    f, rows = start, kernel[:, : len(x)]
    for _ in range(steps):
        f = f - rate / len(x) * np.einsum("nmop,mp->no", rows, f[: len(x)] - y)
    return f


def loss_of(apply, x, y):
    return lambda model: 0.5 * jnp.mean(jnp.sum((apply(model, x) - y) ** 2, -1))


@pytest.mark.parametrize("selected", [eqx.is_array, eqx.is_inexact_array])
def test_training_is_descent_with_the_empirical_kernel(rng, selected):
    model = double(eqx.nn.MLP(4, 3, 8, 2, jax.nn.softplus, key=jax.random.key(0)))
    x, x_test, y = rng.normal(size=(6, 4)), rng.normal(size=(2, 4)), rng.normal(size=(6, 3))
    both = jnp.asarray(np.concatenate([x, x_test]))
    linear = tg.linearize(model)
    optimiser = optax.sgd(0.1)
    state = optimiser.init(eqx.filter(linear, selected))

    @eqx.filter_jit
    def step(linear, state):
        gradient = eqx.filter_grad(loss_of(lambda m, x: jax.vmap(m)(x), jnp.asarray(x), jnp.asarray(y)))(linear)
        updates, state = optimiser.update(gradient, state, eqx.filter(linear, selected))
        return eqx.apply_updates(linear, updates), state

    for _ in range(20):
        linear, state = step(linear, state)
    kernel = tg.empirical(model, outputs="full")(np.asarray(both))
    expected = descent(kernel, np.asarray(jax.vmap(model)(both)), x, y, 20, 0.1)
    assert np.abs(expected - np.asarray(jax.vmap(model)(both))).max() > 0.1
    close(jax.vmap(linear)(both), expected)


def test_weight_decay_moves_no_reference(rng):
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    linear = tg.linearize(model)
    optimiser = optax.adamw(0.1, weight_decay=0.5)
    state = optimiser.init(eqx.filter(linear, eqx.is_inexact_array))
    x = jnp.asarray(rng.normal(size=4))
    gradient = eqx.filter_grad(lambda m: m(x).sum())(linear)
    updates, state = optimiser.update(gradient, state, eqx.filter(linear, eqx.is_inexact_array))
    trained = eqx.apply_updates(linear, updates)
    assert eqx.tree_equal(trained.reference, model)
    assert not eqx.tree_equal(trained.network, model)


class Normalised(eqx.Module):
    first: eqx.nn.Linear
    norm: EquinoxNorm

    def __init__(self, key):
        self.first, self.norm = eqx.nn.Linear(3, 4, key=key), EquinoxNorm(4, key)

    def __call__(self, x, state):
        x, state = self.norm(self.first(x)[:, None, None], state)
        return jnp.tanh(x).ravel(), state


def test_batch_statistics_are_those_at_the_reference(rng):
    model, state = double(eqx.nn.make_with_state(Normalised)(jax.random.key(0)))
    x = jnp.asarray(rng.normal(size=(5, 3)))
    step = jax.tree.map(lambda a: 0.1 * a, eqx.filter(model, eqx.is_inexact_array))
    shifted = eqx.tree_at(lambda m: m.network, tg.linearize(model), eqx.apply_updates(model, step))

    @eqx.filter_jit
    def batch(model):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    expected, after = batch(model)
    found, own = batch(shifted)
    assert eqx.tree_equal(own, after, rtol=1e-12) and not eqx.tree_equal(own, state)
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    slope = jax.jvp(lambda p: batch(eqx.combine(p, static))[0], (parameters,), (step,))[1]
    close(found, expected + slope)
    assert eqx.tree_equal(batch(eqx.nn.inference_mode(shifted))[1], state)


def test_flax_modules_train_as_the_kernel_says(rng):
    model, _, _, _ = made("Flax MLP", jax.random.key(0))
    x, x_test, y = rng.normal(size=(6, 4)), rng.normal(size=(2, 4)), jnp.asarray(rng.normal(size=(6, 3)))
    both = jnp.asarray(np.concatenate([x, x_test]))
    start = np.asarray(model(both))
    linear = tg.linearize(model)
    optimiser = nnx.Optimizer(linear, optax.sgd(0.1, momentum=0.0), wrt=nnx.Param)
    loss = loss_of(lambda m, x: m(x), jnp.asarray(x), y)

    @nnx.jit
    def step(linear, optimiser):
        optimiser.update(linear, nnx.grad(loss)(linear))

    for _ in range(20):
        step(linear, optimiser)
    kernel = tg.empirical(model, outputs="full")(np.asarray(both))
    close(linear(both), descent(kernel, start, x, y, 20, 0.1))
    close(model(both), start)
    close(jax.jit(lambda x: linear(x))(both), np.asarray(linear(both)))


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(jnp.tanh(self.norm(self.first(x))))


def test_flax_running_statistics_and_random_counts_move_on(rng):
    graph, state = nnx.split(Noisy(nnx.Rngs(0)))
    model = nnx.merge(graph, double(state))
    x = jnp.asarray(rng.normal(size=(5, 3)))
    quadratic = tg.taylor(model, 2)
    call = nnx.jit(lambda m, x: m(x))
    for _ in range(2):
        close(call(quadratic, x), call(model, x))
    rest = nnx.Not(nnx.Param)
    expected = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, rest)))
    own = jax.tree.leaves(nnx.to_pure_dict(nnx.state(quadratic.network, rest)))
    for found, wanted in zip(own, expected, strict=True):
        assert found.dtype == wanted.dtype
        if jnp.issubdtype(found.dtype, jnp.inexact):
            close(found, wanted)
        elif jnp.issubdtype(found.dtype, jnp.integer):
            assert found == wanted == 2
    quadratic.eval(), model.eval()
    close(call(quadratic, x), call(model, x))


def test_complex_and_half_precision_parameters(rng):
    class Wave(eqx.Module):
        w: jax.Array
        b: jax.Array

        def __call__(self, x):
            return jnp.exp(self.w @ x) * self.b.astype(jnp.float64)

    model = Wave(jnp.asarray(rng.normal(size=(2, 3)) + 1j * rng.normal(size=(2, 3))), jnp.ones(2, jnp.bfloat16))
    linear = tg.linearize(model)
    assert eqx.tree_equal(linear.reference, model)
    step = 0.1 * jnp.asarray(rng.normal(size=(2, 3)) + 1j * rng.normal(size=(2, 3)))
    x = jnp.asarray(rng.normal(size=3))
    close(eqx.tree_at(lambda m: m.network.w, linear, model.w + step)(x), jnp.exp(model.w @ x) * (1 + step @ x))


def test_ensembles_are_linearised_by_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = eqx.filter_vmap(lambda key: tg.linearize(eqx.nn.Linear(2, 1, key=key)))(keys)
    x = jnp.ones(2)
    found = eqx.filter_vmap(lambda m: m(x))(ensemble)
    close(found, jnp.stack([eqx.nn.Linear(2, 1, key=key)(x) for key in keys]))


@jax.custom_vjp
def straight_through(x):
    return jnp.sign(x)


straight_through.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (g,))


def test_refusals(parameters, moved):
    for order in (-1, 7, 1.0, True):
        with pytest.raises(InputError, match="order: expected a whole number from 0 to 6"):
            tg.taylor(function, order, parameters)
    with pytest.raises(InputError, match="model: expected an equinox.Module"):
        tg.linearize(function)
    with pytest.raises(InputError, match="model: with parameters, expected a function"):
        tg.linearize(3, parameters)
    with pytest.raises(InputError, match="has no __call__"):
        tg.linearize(eqx.nn.StateIndex(jnp.ones(2)))
    with pytest.raises(InputError, match="not the same pytree"):
        tg.linearize(function, parameters)({"w": moved["w"]}, jnp.ones(2))
    with pytest.raises(InputError, match="custom_vjp"):
        tg.linearize(lambda p, x: straight_through(p * x), jnp.ones(2))(jnp.ones(2), jnp.ones(2))
