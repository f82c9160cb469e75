"""What `tangency.empirical` takes beside the network: parameters, outputs, memory, precision; and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tangency as tg
from tangency.empirical import kernel as kernel_module
from tangency.empirical.model import opened
from tangency.errors import InputError, MemoryLimitError, NonFiniteError
from tests.empirical.checks import close
from tests.oracles.jacobian import ntk

pytestmark = pytest.mark.usefixtures("double_precision")


def network(p, x):
    return p["v"] @ jnp.tanh(p["w"] @ x + p["b"])


@pytest.fixture
def parameters(rng):
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in (("w", (6, 4)), ("b", (6,)), ("v", (3, 6)))}


@pytest.fixture
def x(rng):
    return rng.normal(size=(7, 4))


def test_plain_function_with_any_pytree_of_outputs(parameters, x):
    def function(p, x):
        y = network(p, x)
        return {"a": jnp.outer(y, y), "b": [y[0], (p["w"] @ x)[:2]]}

    close(tg.empirical(function, parameters, outputs="full")(x[:3], x[3:]), ntk(function, parameters, x[:3], x[3:]))


@pytest.mark.parametrize("method", ["auto", "jacobian", "products"])
def test_functionals(parameters, x, rng, method):
    expected = ntk(network, parameters, x, x)
    rows = rng.normal(size=(2, 3))
    full = np.einsum("ao,nmop,bp->nmab", rows, expected, rows)
    close(tg.empirical(network, parameters, outputs=rows, method=method)(x), full)
    close(tg.empirical(network, parameters, outputs=rows[1], method=method)(x), full[..., 1, 1])
    close(tg.empirical(network, parameters, outputs=-1, method=method)(x), expected[..., 2, 2])


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
@pytest.mark.parametrize("method", ["auto", "structured", "jacobian"])
def test_complex_parameters_and_outputs(rng, x, outputs, method):
    p = {k: jnp.asarray(rng.normal(size=s) + 1j * rng.normal(size=s)) for k, s in (("w", (5, 4)), ("v", (2, 5)))}

    def function(p, x):
        return p["v"] @ jnp.sin(p["w"] @ x)

    expected = ntk(function, p, x, x)
    if outputs != "full":
        expected = np.einsum("nmoo->nmo", expected)
    if outputs == "mean":
        expected = expected.mean(-1)
    found = tg.empirical(function, p, outputs=outputs, method=method)(x)
    close(found, expected)
    np.testing.assert_array_equal(
        found, (np.swapaxes(found, 0, 1) if outputs != "full" else found.transpose(1, 0, 3, 2)).conj()
    )


@pytest.mark.parametrize("method", ["auto", "products"])
def test_trainable_and_learning_rates(parameters, x, rng, method):
    rates = {"w": 2.0, "b": rng.uniform(size=6), "v": rng.uniform(size=(3, 6))}
    expected = ntk(network, parameters, x, x, rates=[rates["b"], rates["v"].ravel(), 2.0])
    close(tg.empirical(network, parameters, learning_rate=rates, outputs="full", method=method)(x), expected)
    only = tg.empirical(network, parameters, trainable={"w": False, "b": False, "v": True}, outputs="full")(x)
    hidden = jnp.tanh(x @ parameters["w"].T + parameters["b"][None])
    close(only, np.einsum("nm,op->nmop", hidden @ hidden.T, np.eye(3)))


def test_contributions_of_parameters_add_up(parameters, x):
    kernel = tg.empirical(network, parameters, outputs="full")
    parts = kernel.layers(x)
    assert list(parts) == ["b", "v", "w"]
    close(sum(parts.values()), kernel(x))


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
def test_blocks_do_not_change_the_result(parameters, x, outputs):
    whole = tg.empirical(network, parameters, outputs=outputs)
    expected = whole(x)
    assert whole.plan is not None
    held = expected.nbytes + sum(array.nbytes for array in jax.tree.leaves(parameters))
    small = tg.empirical(network, parameters, outputs=outputs, memory=int(held + 0.6 * whole.plan.temporary))
    close(small(x), expected, 1e-13)
    close(small(x[:5], x), whole(x[:5], x), 1e-13)
    plan = small.plan
    assert plan.block < 5 or plan.chunk < 3


def test_diagonal_of_the_matrix(parameters, x):
    kernel = tg.empirical(network, parameters)
    close(kernel.diagonal("ntk", x), np.diagonal(kernel(x)), 1e-13)


def test_the_diagonal_is_traced_once_for_all_values(parameters, x, monkeypatch):
    traces = []
    original = kernel_module.gradients
    monkeypatch.setattr(kernel_module, "gradients", lambda *a: traces.append(1) or original(*a))
    kernel = tg.empirical(network, parameters)
    first = kernel.diagonal("ntk", x)
    count = len(traces)
    assert count
    np.testing.assert_array_equal(kernel.diagonal("ntk", x), first)
    others = {name: 2 * array for name, array in parameters.items()}
    moved = kernel.at(opened(network, others)).diagonal("ntk", x)
    assert len(traces) == count
    close(moved, np.diagonal(tg.empirical(network, others)(x)), 1e-13)


def test_float64_examples_are_computed_in_float64(x):
    with jax.enable_x64(False):
        model = eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0))
        kernel = tg.empirical(model, outputs="full")
        found = kernel(x)
        single = kernel(x.astype(np.float32))
    assert found.dtype == np.float64 and single.dtype == np.float32
    wide = jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_array(a) else a, model)
    p, static = eqx.partition(wide, eqx.is_array)
    close(found, ntk(lambda p, x: eqx.combine(p, static)(x), p, x, x))


@pytest.mark.parametrize("double", [False, True])
def test_a_drawn_network_is_the_one_the_caller_would_draw(x, double):
    """Whatever the precision of the examples, and whichever come first: JAX draws other numbers in float64."""

    def make(key):
        return jax.random.normal(key, (2, 4)), jax.random.normal(jax.random.fold_in(key, 1), (4,))

    def call(p, x):
        return jnp.tanh(p[0] @ (x * p[1]))

    with jax.enable_x64(double):
        key = jax.random.key(3)
        own = make(key)
        kernels = [tg.empirical((make, call), key=key, outputs="full") for _ in range(2)]
        wide = kernels[0](x)
        single, after = kernels[1](x.astype(np.float32)), kernels[1](x)
    expected = ntk(call, jax.tree.map(lambda a: a.astype(jnp.float64), own), x, x)
    close(wide, expected)
    close(after, expected)
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_parameters_in_float64_stay_so(x, rng):
    p = {"w": rng.normal(size=(6, 4)), "v": rng.normal(size=(3, 6)) + 1j * rng.normal(size=(3, 6))}

    def call(p, x):
        return p["v"] @ jnp.tanh(p["w"] @ x)

    expected = ntk(call, jax.tree.map(jnp.asarray, p), x, x)
    with jax.enable_x64(False):
        kernel = tg.empirical(call, p, outputs="full")
        found, single = kernel(x), kernel(x.astype(np.float32))
        product = kernel.operator(x) @ np.ones(3 * len(x))
    close(found, expected)
    close(product, expected.transpose(0, 2, 1, 3).sum((2, 3)).ravel())
    assert single.dtype == np.complex64
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_rates_at_initialisation_are_variances(x):
    def make(key):
        return eqx.nn.MLP(4, 2, 8, 1, key=key)

    kernel = tg.empirical(make, key=jax.random.key(0), scale="init", outputs="full")
    model = make(jax.random.key(0))
    p, static = eqx.partition(model, eqx.is_array)
    # Equinox draws weights and biases of a layer uniformly between ±1/√fan-in.
    rates = [1 / 12, 1 / 12, 1 / 24, 1 / 24]
    double = jax.tree.map(lambda a: a.astype(jnp.float64), p)
    close(kernel(x), ntk(lambda p, x: eqx.combine(p, static)(x), double, x, x, rates=rates))


def test_wide_networks_come_near_the_limit(rng):
    x = rng.normal(size=(4, 5))

    def make(width):
        return lambda key: eqx.nn.MLP(5, 1, width, 2, activation=jax.nn.relu, key=key)

    errors = []
    widths = [64, 512]
    for width in widths:
        limit = tg.limit(make(width))(x)
        kernels = [tg.empirical(make(width), key=jax.random.key(s), scale="init")(x) for s in range(8)]
        errors.append(np.sqrt(np.mean([(k / limit - 1) ** 2 for k in kernels])))
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.75 < slope < -0.25


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((lambda key: None,), {}, "model: expected a network"),
        ((network, {"w": 1}), {"trainable": {"w": 3}}, "trainable: expected True or False"),
        ((network, {"w": jnp.ones(2)}), {"trainable": False}, "no parameter of network trains"),
        ((network, {"w": jnp.ones(2)}), {"learning_rate": -1.0}, "learning_rate of w: expected finite"),
        ((network, {"w": jnp.ones(2)}), {"learning_rate": {"w": np.ones(3)}}, "number or an array of shape"),
        ((network, {"w": jnp.ones(2)}), {"scale": "init"}, "needs the initialiser"),
        ((network, {"w": jnp.ones(2)}), {"outputs": "all"}, "outputs: expected"),
        ((network, {"w": jnp.ones(2)}), {"method": "magic"}, "method: expected one of"),
        ((network, {"w": jnp.ones(2)}), {"memory": 0}, "memory is 0"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        tg.empirical(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_bad_examples_get_one_clear_line(parameters, x):
    kernel = tg.empirical(network, parameters)
    with pytest.raises(InputError, match=r"could not be called on an example of shape \(3,\)"):
        kernel(x[:, :3])
    with pytest.raises(InputError, match="an example of x1 has shape"):
        kernel(x, x[:, :3])
    with pytest.raises(InputError, match="there is no output 5"):
        tg.empirical(network, parameters, outputs=5)(x)
    with pytest.raises(InputError, match="a finite network has an NTK only"):
        kernel.nngp(x)
    with pytest.raises(NonFiniteError, match=r"x1\[2\]"):
        kernel(np.where(np.arange(7)[:, None] == 2, np.nan, x))
    with pytest.raises(MemoryLimitError, match="even for one pair"):
        tg.empirical(network, parameters, memory=1000)(x)
