"""What has no rule is refused: the operation, the user's own line, the reason and the way out."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import limit
from tangency.errors import AccuracyError, InputError, UnsupportedModelError


def network(apply, *, batched=False, init=None, **shapes):
    shapes = shapes or {"w": (16, 4), "v": (2, 16)}

    def default(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) / np.sqrt(shape[-1])
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    return limit((init or default, apply), batched=batched)


@jax.custom_jvp
def straight_through(u):
    return jnp.sign(u)


@straight_through.defjvp
def _(primals, tangents):
    return straight_through(primals[0]), tangents[0]


@jax.custom_vjp
def clipped_gradient(u):
    return u


clipped_gradient.defvjp(lambda u: (u, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


def weight_and_transpose(p, x):
    return p["v"] @ (p["w"] @ (p["w"].T @ (p["w"] @ x)))


def softmax(p, x):
    return p["v"] @ jax.nn.softmax(p["w"] @ x)


def two_gaussians(p, x):
    return p["v"] @ jnp.tanh(jax.nn.relu(p["w"] @ x) + p["u"] @ x)


def scalar_scale(p, x):
    return p["v"] @ (p["s"] * (p["w"] @ x))


def loop(p, x):
    return p["v"] @ jax.lax.while_loop(lambda h: jnp.sum(h) > 1e9, jnp.tanh, p["w"] @ x)


def straight(p, x):
    return p["v"] @ straight_through(p["w"] @ x)


def clipped(p, x):
    return p["v"] @ clipped_gradient(p["w"] @ x)


def low_rank(p, x):
    return p["v"] @ ((p["w"] @ p["u"].T) @ x)


def shift_along_the_width(p, x):
    return p["v"] @ jax.nn.relu(p["w"] @ x + jnp.arange(16.0))


def fixed_mixing(p, x):
    return p["v"] @ (np.eye(16)[::-1] @ (p["w"] @ x))


def sorted_units(p, x):
    return p["v"] @ jnp.sort(p["w"] @ x)


def overlapping_pieces(p, x):
    h = p["w"] @ x
    return p["v"] @ jax.nn.relu(h[:8] + h[4:12])


def heads(p, x):
    return jnp.concatenate([p["v"] @ jnp.tanh(p["w"] @ x), p["v"] @ (p["w"] @ x)])


def max_pooling(p, x):
    h = jax.lax.conv(x[None, None, :, None], p["w"][:, None, :, None], (1, 1), "SAME")
    return p["v"] @ jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 4, 1), (1, 1, 4, 1), "VALID")[0, :, 0, 0]


def rounded(p, x):
    return p["v"] @ jnp.round(p["w"] @ x)


def sum_that_is_no_average(p, x):
    return jnp.sum(p["s"] * jax.nn.relu(p["w"] @ x))[None] + p["b"]


def root_of_width_scaling(p, x):
    gate = jnp.dot(p["w"] @ x, p["u"] @ x) / np.sqrt(16)
    return p["v"] @ (gate * (p["w"] @ x))


def root_of_width_times_an_average(p, x):
    gate = np.sqrt(16) * jnp.mean((p["w"] @ x) * (p["u"] @ x))
    return p["v"] @ (gate * (p["w"] @ x))


def threshold_along_the_width(p, x):
    return p["v"] @ jnp.maximum(p["w"] @ x, np.linspace(-1, 1, 16))


def weight_as_bias(p, x):
    return p["s"] @ jax.nn.relu(p["w"] @ x + p["s"])


def centred_outputs(p, x):
    y = p["v"] @ jax.nn.relu(p["w"] @ x)
    return y - jnp.mean(y)


def averages_of_a_few_units_as_features(p, x):
    return p["v"] @ jax.nn.relu(p["w"] @ x).reshape(4, 4).mean(axis=1)


def averages_of_a_few_units_beside_features(p, x):
    return p["v"] @ (p["u"] @ x + (p["w"] @ x).reshape(4, 4).mean(axis=1))


def token_mixing(p, x):
    h = jax.nn.relu(x.reshape(4, 1) @ p["s"])
    return p["v"] @ (jax.nn.relu(h.T @ p["w"].T) @ p["u"]).mean(axis=1)


def normalised_weight(p, x):
    w = p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True)
    return p["v"] @ jax.nn.relu(w @ x)


def standardised_weight(p, x):
    w = p["u"] - p["u"].mean(axis=1, keepdims=True)
    return p["v"] @ jax.nn.relu(w @ jax.nn.relu(p["w"] @ x))


def masked_weight(p, x):
    return p["v"] @ jax.nn.relu(jnp.tril(p["u"]) @ jax.nn.relu(p["w"] @ x))


def sum_of_weights(p, x):
    return p["v"] @ jax.nn.relu((p["u"] + p["s"]) @ jax.nn.relu(p["w"] @ x))


def flat_weight_and_transpose(p, x):
    h = p["u"].reshape(16, 16) @ jax.nn.relu(p["w"] @ x)
    return p["v"] @ jax.nn.relu(p["u"].reshape(16, 16).T @ jax.nn.relu(h))


def keys_with_values_first(p, x):
    h = jax.nn.relu(x.reshape(2, 2) @ p["w"])
    return p["v"] @ ((h @ p["u"]) @ ((h @ p["u"]).T @ (h @ p["s"]) / 16)).mean(axis=0)


def without_entries(p, x):
    h = jax.lax.conv(x[None, None], p["w"], (1,), "VALID")
    return p["v"] @ jax.nn.relu(jax.lax.conv(h, p["u"], (1,), "VALID").reshape(16, -1).mean(1))


def squared_average(p, x):
    average = jax.nn.relu(x.reshape(2, 2) @ p["w"].T).mean(axis=0)
    return p["v"] @ (average * average)


def average_beside_activations(p, x):
    h = jax.nn.relu(x.reshape(2, 2) @ p["w"].T)
    return p["v"] @ (h.mean(axis=0, keepdims=True) * h).mean(axis=0)


SQUARE = {"w": (16, 4), "u": (16, 16), "v": (2, 16)}
CASES = [
    (normalised_weight, r"computes from w \(normalised", {}),
    (standardised_weight, r"computes from u \(normalised", SQUARE),
    (masked_weight, r"computes from u \(normalised", SQUARE),
    (sum_of_weights, r"computes from s, u \(normalised", SQUARE | {"s": (16, 16)}),
    (flat_weight_and_transpose, "its transpose", SQUARE | {"u": (256,)}),
    (
        keys_with_values_first,
        "Contract one of the two first",
        {"w": (2, 16), "u": (16, 16), "s": (16, 16), "v": (2, 16)},
    ),
    (averages_of_a_few_units_as_features, "a few units each", {"w": (16, 4), "v": (2, 4)}),
    (token_mixing, "MLP-mixer", {"s": (1, 8), "w": (16, 4), "u": (16, 4), "v": (2, 8)}),
    (averages_of_a_few_units_beside_features, "a few units each", {"w": (16, 4), "u": (4, 4), "v": (2, 4)}),
    (centred_outputs, "the network's own outputs", {}),
    (sum_that_is_no_average, "not divided by 16", {"w": (16, 4), "s": (16,), "b": (1,)}),
    (root_of_width_scaling, "not divided by 16", {"w": (16, 4), "u": (16, 4), "v": (2, 16)}),
    (root_of_width_times_an_average, "not divided by 16", {"w": (16, 4), "u": (16, 4), "v": (2, 16)}),
    (threshold_along_the_width, "from unit to unit", {}),
    (weight_as_bias, "both as a weight and entry by entry", {"w": (16, 4), "s": (16,)}),
    (weight_and_transpose, "its transpose", {"w": (4, 4), "v": (2, 4)}),
    (softmax, "return the logits", {}),
    (two_gaussians, "2 different Gaussians", {"w": (16, 4), "u": (16, 4), "v": (2, 16)}),
    (scalar_scale, "shared by all units", {"w": (16, 4), "v": (2, 16), "s": (1,)}),
    (loop, "write the steps out", {}),
    (straight, "straight-through estimator", {}),
    (clipped, "straight-through estimator", {}),
    (low_rank, "multiplies two parameters", {"w": (16, 3), "u": (4, 3), "v": (2, 16)}),
    (shift_along_the_width, "from unit to unit", {}),
    (fixed_mixing, "fixed matrix", {}),
    (sorted_units, "remove the sort", {}),
    (overlapping_pieces, "share entries", {"w": (16, 4), "v": (2, 8)}),
    (heads, "different laws", {}),
    (max_pooling, "no rule for it", {}),
    (rounded, "no rule for it", {}),
    (squared_average, "only its second moments have a rule", {"w": (16, 2), "v": (2, 16)}),
    (average_beside_activations, "only its second moments have a rule", {"w": (16, 2), "v": (2, 16)}),
    (without_entries, r"of shape \(1, 16, 0\), is empty", {"w": (16, 1, 3), "u": (16, 16, 3), "v": (2, 16)}),
]


@pytest.mark.parametrize(("apply", "message", "shapes"), CASES, ids=[case[0].__name__ for case in CASES])
def test_refusals_name_the_operation_the_line_and_the_way_out(apply, message, shapes):
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        network(apply, **shapes)(np.ones((2, 4)))
    error = caught.value
    assert "\n" not in str(error)
    assert error.advice
    if error.operation != "the output":
        lines, start = inspect.getsourcelines(apply)
        assert error.source is not None
        name, _, line = error.source.rpartition(":")
        assert name.endswith("test_refusals.py")
        assert start < int(line) < start + len(lines)


def test_a_declared_derivative_is_checked_for_its_own_constants():
    """One that is true for some constants may be wrong for others, though the program reads the same."""

    def tripled(slopes):
        slopes = jnp.asarray(slopes)
        function = jax.custom_jvp(lambda u: 3.0 * u)
        function.defjvp(lambda primals, tangents: (function(primals[0]), tangents[0] * slopes.sum()))
        return lambda p, x: p["v"] @ function(p["w"] @ x)

    x = np.ones((2, 4))
    expected = network(lambda p, x: p["v"] @ (3.0 * (p["w"] @ x)))(x)
    for _ in range(2):
        np.testing.assert_allclose(network(tripled([1.0, 2.0]))(x), expected, rtol=1e-12)
    with pytest.raises(UnsupportedModelError, match="straight-through estimator"):
        network(tripled([1.0, 4.0]))(x)


def test_a_declared_derivative_of_a_function_with_arrays_in_its_closure():
    """Each array is a constant of the check, whether the derivative or only the function itself uses it."""

    def scaled(by, declared):
        by, declared = (jnp.asarray(values) for values in (by, declared))
        function = jax.custom_jvp(lambda u: u * by.sum())
        function.defjvp(lambda primals, tangents: (function(primals[0]), tangents[0] * declared.sum()))
        return lambda p, x: p["v"] @ function(p["w"] @ x)

    def declared_as_three(by):
        by = jnp.asarray(by)
        function = jax.custom_jvp(jax.jit(lambda u: u * by.sum()))
        function.defjvp(lambda primals, tangents: (function(primals[0]), 3.0 * tangents[0]))
        return lambda p, x: p["v"] @ function(p["w"] @ x)

    x, true = np.ones((2, 4)), [1.0, 2.0]
    expected = network(lambda p, x: p["v"] @ (3.0 * (p["w"] @ x)))(x)
    for right in (scaled(true, true), declared_as_three(true)):
        np.testing.assert_allclose(network(right)(x), expected, rtol=1e-12)
    for wrong in (scaled(true, [1.0, 4.0]), scaled([1.0, 4.0], true), declared_as_three([1.0, 4.0])):
        with pytest.raises(UnsupportedModelError, match="straight-through estimator"):
            network(wrong)(x)


def test_lines_inside_a_library_are_reported_as_the_users_call():
    class Net(eqx.Module):
        conv: eqx.nn.Conv1d

        def __init__(self, key):
            self.conv = eqx.nn.Conv1d(1, 8, 3, key=key)

        def __call__(self, x):
            return jnp.max(self.conv(x[None]), axis=1)

    with pytest.raises(UnsupportedModelError, match=r"test_refusals\.py:\d+") as caught:
        limit(Net)(np.ones((2, 4)))
    line = inspect.getsourcelines(Net.__call__)[1] + 1
    assert caught.value.source is not None
    assert caught.value.source.endswith(f":{line}")


def test_a_random_key_in_the_forward_pass_is_refused():
    def init(key):
        k1, k2 = jax.random.split(key)
        return {"w": jax.random.normal(k1, (16, 4)), "key": k2}

    def apply(p, x):
        return p["w"] @ x + jax.random.normal(p["key"], (16,))

    with pytest.raises(UnsupportedModelError, match="uses a random key in the forward pass"):
        network(apply, init=init)(np.ones((2, 4)))


def test_a_reused_key_is_refused_because_two_weights_are_then_equal():
    def init(key):
        return [jax.random.normal(key, (4, 4)), jax.random.normal(key, (4, 4))]

    with pytest.raises(UnsupportedModelError, match="a random key was used twice"):
        limit((init, lambda p, x: p[1] @ jnp.tanh(p[0] @ x)))(np.ones((2, 4)))


def test_an_initialiser_that_cannot_be_read_asks_for_its_statistics():
    def init(key):
        k1, k2, k3 = jax.random.split(key, 3)
        mask = jax.random.bernoulli(k3, 0.5, (16, 4))
        return {"w": jax.random.normal(k1, (16, 4)) * mask, "v": jax.random.normal(k2, (2, 16)) / 4}

    def apply(p, x):
        return p["v"] @ (p["w"] @ x)

    with pytest.raises(UnsupportedModelError, match=r"init_stats=\{'w': \(mean, variance\)\}"):
        limit((init, apply))(np.ones((2, 4)))
    x = np.arange(8.0).reshape(2, 4)
    kernel = limit((init, apply), init_stats={"w": (0.0, 0.5)})
    np.testing.assert_allclose(kernel.nngp(x), 0.5 * x @ x.T, rtol=1e-14)
    with pytest.raises(InputError, match="init_stats: no parameter is called 'u'; there are v, w"):
        limit((init, apply), init_stats={"u": (0.0, 0.5)})(x)


@pytest.mark.parametrize(
    ("mean", "variance", "message"),
    [(0.3, 1.0, "has mean 0.3, not 0"), (0.0, 0.0, "starts at exactly zero")],
)
def test_weights_that_have_no_limit(mean, variance, message):
    def init(key):
        return mean + np.sqrt(variance) * jax.random.normal(key, (2, 4))

    with pytest.raises(UnsupportedModelError, match=message):
        limit((init, lambda p, x: p @ x))(np.ones((2, 4)))


def test_a_zero_weight_with_a_learning_rate_has_a_limit(rng):
    x = rng.normal(size=(3, 4))
    kernel = limit((lambda key: jnp.zeros((2, 4)), lambda p, x: p @ x), learning_rate=0.25)
    k, theta = kernel.both(x)
    assert np.array_equal(k, np.zeros((3, 3)))
    np.testing.assert_allclose(theta, 0.25 * x @ x.T, rtol=1e-14)


def test_a_custom_derivative_is_judged_by_itself_and_not_by_its_forward_pass():
    """An identity with its true gradient, then one with a clipped gradient: the same forward program."""

    @jax.custom_vjp
    def honest(u):
        return u

    honest.defvjp(lambda u: (u, None), lambda _, g: (g,))

    @jax.custom_vjp
    def large_gradients_clipped(u):
        return u

    large_gradients_clipped.defvjp(lambda u: (u, None), lambda _, g: (jnp.clip(g, -5.0, 5.0),))
    x = np.arange(8.0).reshape(2, 4)
    kernel = network(lambda p, x: p["v"] @ honest(p["w"] @ x))
    np.testing.assert_allclose(kernel.nngp(x), x @ x.T / 4, rtol=1e-14)
    with pytest.raises(UnsupportedModelError, match="differs from the derivative of its own computation"):
        network(lambda p, x: p["v"] @ large_gradients_clipped(p["w"] @ x))(x)


def test_examples_that_meet_in_a_batch_are_refused():
    with pytest.raises(UnsupportedModelError, match="depends on the others in the batch"):
        network(lambda p, x: jax.nn.relu((x - x.mean(0, keepdims=True)) @ p["w"].T) @ p["v"].T, batched=True)(
            np.ones((2, 4))
        )


def test_axes_counted_without_that_of_the_examples_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"one example in a batch gives an output of shape \(3, 2\), two"):
        network(lambda p, x: jax.nn.relu(x.mean(0) @ p["w"].T) @ p["v"].T, batched=True)(np.ones((2, 3, 4)))


def test_a_far_kink_is_seen():
    """clip(u, −100, 100) is u on any usual grid; at variance 4·10⁴ it is not."""
    x = 100.0 * np.eye(4)[:2] * 2
    kernel = network(lambda p, x: p["v"] @ jnp.clip(p["w"] @ x, -100.0, 100.0))
    try:
        k = kernel.nngp(2 * x)
    except AccuracyError:
        return
    assert np.all(np.diag(k) < 100.0**2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_stats": {"w": 1.0}}, r"'w' needs \(mean, variance\)"),
        ({"init_stats": {"w": (0.0, -1.0)}}, "variance at least 0"),
        ({"learning_rate": "foo"}, "learning_rate: expected numbers"),
        ({"learning_rate": -1.0}, "learning_rate: expected numbers of at least 0"),
        ({"learning_rate": {"w": np.ones((16, 4)), "v": 1.0}}, "learning_rate: expected numbers"),
        ({"trainable": "yes"}, "trainable: expected True or False"),
        ({"input_shape": 4}, "input_shape: expected a tuple of integers"),
        ({"input_shape": ("a",)}, "input_shape: expected a tuple of integers"),
    ],
)
def test_bad_settings(settings, message):
    def init(key):
        k1, k2 = jax.random.split(key)
        return {"w": jax.random.normal(k1, (16, 4)), "v": jax.random.normal(k2, (2, 16)) / 4}

    with pytest.raises(InputError, match=message):
        limit((init, lambda p, x: p["v"] @ (p["w"] @ x)), **settings)(np.ones((2, 4)))


def test_models_that_are_no_models():
    network = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    with pytest.raises(InputError, match="pass a function of a key"):
        limit(network)
    with pytest.raises(InputError, match="a pair must be"):
        limit((lambda key: 0, None))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="expected a function key"):
        limit(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="the function returned float"):
        limit(lambda key: 1.0)(np.ones((1, 4)))
    with pytest.raises(InputError, match="does not depend on any trainable"):
        limit((lambda key: {"w": jnp.zeros(2)}, lambda p, x: x))(np.ones((1, 4)))
    with pytest.raises(InputError, match="expected one array of real numbers"):
        limit((lambda key: jnp.zeros((2, 4)), lambda p, x: (p @ x, x)))(np.ones((1, 4)))
    with pytest.raises(InputError, match="batched: expected True, False or None"):
        limit(lambda key: network, batched=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="trainable: not a prefix"):
        limit(lambda key: eqx.nn.MLP(4, 2, 8, 1, key=key), trainable={"w": True})(np.ones((1, 4)))


def test_strict_refuses_what_print_would_remark_on():
    make = lambda key: eqx.nn.MLP(4, 2, 8, 1, key=key)  # noqa: E731
    kernel = limit(make, input_shape=(4,))
    assert "uniform and applied to the input itself" in str(kernel)
    with pytest.raises(UnsupportedModelError, match="uniform and applied to the input itself"):
        limit(make, input_shape=(4,), strict=True)
