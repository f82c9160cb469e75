"""Rewritten convolutions against JAX's own, and that none is left which a CPU computes slowly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tangency import empirical
from tangency.dynamics.training import Training
from tangency.empirical.model import opened
from tangency.kernels import RandomFunctions
from tangency.trace.convolutions import arranged
from tests.slow_convolutions import slow

SAME = {"window_strides": (1, 1), "padding": "SAME"}
GEOMETRIES = {
    "plain": ((2, 3, 6, 5), (4, 3, 3, 3), SAME),
    "strided": ((2, 3, 7, 6), (4, 3, 3, 2), {"window_strides": (2, 3), "padding": [(1, 1), (0, 1)]}),
    "cropped": ((2, 3, 7, 6), (4, 3, 3, 2), {"window_strides": (1, 1), "padding": [(-1, 2), (0, -1)]}),
    "dilated": ((2, 3, 7, 8), (4, 3, 3, 2), SAME | {"rhs_dilation": (2, 3)}),
    "transposed": (
        (2, 3, 4, 5),
        (4, 3, 3, 2),
        {"window_strides": (1, 1), "padding": [(2, 1), (1, 0)], "lhs_dilation": (2, 3)},
    ),
    "one axis": ((2, 3, 6), (4, 3, 3), {"window_strides": (1,), "padding": "SAME"}),
    "three axes": ((2, 3, 4, 3, 5), (4, 3, 3, 1, 2), {"window_strides": (1, 2, 1), "padding": "VALID"}),
    "groups": ((2, 6, 6, 5), (4, 3, 3, 3), SAME | {"feature_group_count": 2}),
    "several filters": ((2, 3, 6, 5), (6, 1, 3, 3), SAME | {"feature_group_count": 3}),
    "groups of examples": ((6, 2, 6, 5), (9, 2, 3, 3), SAME | {"batch_group_count": 3}),
    "depthwise": ((2, 3, 6, 5), (3, 1, 3, 3), SAME | {"feature_group_count": 3}),
    "depthwise strided": (
        (2, 3, 7, 6),
        (3, 1, 3, 2),
        {"window_strides": (2, 3), "padding": [(2, 0), (-1, 1)], "feature_group_count": 3},
    ),
    "depthwise dilated": (
        (2, 3, 7, 6),
        (3, 1, 3, 2),
        {
            "window_strides": (1, 1),
            "padding": [(1, 2), (3, 0)],
            "feature_group_count": 3,
            "rhs_dilation": (2, 3),
            "lhs_dilation": (3, 1),
        },
    ),
    "depthwise, many taps": ((2, 3, 12, 12), (3, 1, 11, 11), SAME | {"feature_group_count": 3}),
    "odd order": (
        (6, 3, 5, 2),
        (4, 3, 2, 3),
        SAME | {"dimension_numbers": ("HCWN", "OHWI", "WNCH")},
    ),
}


def check(function, *arguments, tolerance=1e-13):
    """Equal values, in loops alike, and nothing slow left; something slow was there."""
    assert slow(jax.make_jaxpr(function)(*arguments))
    assert not slow(jax.make_jaxpr(arranged(function))(*arguments))
    expected = jax.tree.leaves(jax.jit(function)(*arguments))
    found = jax.tree.leaves(jax.jit(arranged(function))(*arguments))
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(a).max(initial=0))))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def drawn(rng, *shapes):
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name, rng):
    signal, kernel, options = GEOMETRIES[name]
    x, w = drawn(rng, signal, kernel)

    def function(x, w):
        return lax.conv_general_dilated(x, w, **options)

    check(function, x, w)
    check(jax.grad(lambda x, w: (function(x, w) ** 2).sum(), (0, 1)), x, w)
    check(lambda x, w: lax.map(lambda a: function(a, w), jnp.stack([x, 2 * x])), x, w)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128"])
def test_other_numbers(dtype, rng):
    x, w, v = (a.astype(dtype) for a in drawn(rng, (2, 3, 6, 5), (4, 3, 3, 3), (3, 1, 3, 3)))

    def function(x, w, v):
        y = lax.conv_general_dilated(x, v, (1, 1), "SAME", feature_group_count=3)
        return lax.conv_general_dilated(y, w, (2, 2), "SAME")

    check(function, x, w, v, tolerance={"float32": 1e-6, "bfloat16": 2e-2, "complex128": 1e-13}[dtype])


def test_sums_in_another_precision(rng):
    x, w = (a.astype("bfloat16") for a in drawn(rng, (2, 3, 6, 5), (3, 1, 3, 3)))
    check(
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", feature_group_count=3, preferred_element_type=np.float32
        ),
        x,
        w,
        tolerance=1e-6,
    )


def layer(x, w):
    return jnp.tanh(lax.conv_general_dilated(x, w, (1, 1), "SAME"))


def test_loops(rng):
    x, w = drawn(rng, (2, 3, 6, 5), (3, 3, 3, 3))
    many = jnp.stack([w, -w, 2 * w])

    def scanned(x, many):
        return lax.scan(lambda h, w: (layer(h, w), h.sum()), x, many, reverse=True)

    def repeated(x, w):
        return lax.while_loop(lambda c: layer(c[1], w).sum() < c[0], lambda c: (c[0] - 5, layer(c[1], w)), (9.0, x))

    def counted(x, w):
        return lax.fori_loop(0, 4, lambda i, h: layer(h, w) + i, x)

    def chosen(x, w):
        return lax.cond(x.sum() > 1e3, layer, lambda x, w: layer(layer(x, w), w), x, w)

    check(scanned, x, many)
    check(lambda x, many: jax.grad(lambda many: scanned(x, many)[0].sum())(many), x, many)
    check(repeated, x, w)
    check(counted, x, w)
    check(chosen, x, w)
    check(lambda x, w: jax.jit(counted)(x, jax.jit(lambda w: 2 * w)(w)), x, w)


def test_networks_at_once(rng):
    x, w, v = drawn(rng, (4, 3, 6, 5), (7, 3, 3, 3, 3), (7, 3, 3, 3, 3))

    def outputs(w, v):
        return layer(layer(x, w), v).sum()

    check(jax.vmap(outputs), w, v)
    check(jax.vmap(jax.grad(outputs, (0, 1))), w, v)
    check(lambda w, v: lax.fori_loop(0, 2, lambda i, w: w + jax.vmap(jax.grad(outputs))(w, v), w), w, v)


def test_rematerialised_parts(rng):
    x, w = drawn(rng, (2, 3, 6, 5), (3, 3, 3, 3))
    remade = jax.checkpoint(lambda x, w: layer(layer(x, w), w))
    check(remade, x, w)
    check(jax.grad(lambda w: remade(x, w).sum()), w)
    program = jax.make_jaxpr(arranged(jax.grad(lambda w: remade(x, w).sum())))(w)
    assert {"checkpoint", "remat2"} & {equation.primitive.name for equation in program.jaxpr.eqns}


def test_what_is_differentiated_otherwise_stays(rng):
    x, w = drawn(rng, (2, 3, 6, 5), (3, 3, 3, 3))

    @jax.custom_jvp
    def own(x, w):
        return layer(x, w)

    own.defjvp(lambda p, t: (own(*p), 3.0 * t[0]))

    def function(x, w):
        return layer(own(x, w), w)

    expected = jax.grad(lambda x: function(x, w).sum())(x)
    np.testing.assert_allclose(jax.grad(lambda x: arranged(function)(x, w).sum())(x), expected, rtol=1e-13, atol=1e-14)


def test_structures_and_functions_without_convolutions(rng):
    x, w = drawn(rng, (2, 3, 6, 5), (3, 3, 3, 3))
    found = arranged(lambda tree: {"a": layer(tree["x"], tree["w"]), "b": (tree["x"], 3)})({"x": x, "w": w})
    assert set(found) == {"a", "b"} and found["b"][1] == 3
    np.testing.assert_array_equal(found["b"][0], x)
    np.testing.assert_allclose(found["a"], layer(x, w), rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(arranged(lambda x: jnp.sin(x) @ x.mT)(x), jnp.sin(x) @ x.mT)


@pytest.mark.parametrize("name", ["plain", "groups", "groups of examples", "depthwise"])
def test_kernels_longer_than_their_signals(name, rng):
    (_, c, *_), (o, i, *_), options = GEOMETRIES[name]
    x, w = drawn(rng, (6, c, 2, 2), (o, i, 3, 3))

    def function(x, w):
        return lax.conv_general_dilated(x, w, **(options | {"padding": "VALID"}))

    assert (
        jax.jit(arranged(function))(x, w).shape
        == function(x, w).shape
        == (6 // options.get("batch_group_count", 1), o, 0, 0)
    )
    for gradient in jax.jit(arranged(jax.grad(lambda x, w: function(x, w).sum(), (0, 1))))(x, w):
        assert not gradient.any()


def test_other_devices_have_the_function_itself(rng, monkeypatch):
    x, w = drawn(rng, (2, 3, 6, 5), (3, 3, 3, 3))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(jax.make_jaxpr(arranged(layer))(x, w)) == str(jax.make_jaxpr(layer)(x, w))


def network(parameters, x):
    first, second, readout = parameters
    return readout @ layer(layer(x[None], first), second)[0].mean((1, 2))


def test_computations_that_loop_have_no_slow_ones(rng):
    parameters = drawn(rng, (4, 3, 3, 3), (4, 4, 3, 3), (2, 4))
    x, y = drawn(rng, (5, 3, 6, 5), (5, 2))
    for outputs in ("mean", "full"):
        operator = empirical(network, parameters, outputs=outputs, memory=2**18).operator(x)
        product = operator.as_lineax().mv
        v = jnp.ones(operator.shape[1])
        assert not slow(jax.make_jaxpr(product)(v))
        np.testing.assert_allclose(product(v), operator.to_dense() @ v, rtol=1e-10)
    for method in ("auto", "structured", "jacobian", "products"):
        assert not slow(jax.make_jaxpr(empirical(network, parameters, method=method))(x))

    def draw(key):
        w = jax.random.normal(key, (4, 3, 3, 3))
        return lambda example: layer(layer(example[None], w), parameters[1]).mean()

    assert not slow(jax.make_jaxpr(RandomFunctions(draw, 3, key=jax.random.key(0)))(x))
    made = opened(network, parameters)
    training = Training(made, x, y, 0.1)
    values = list(made.parameters)
    start = values, training._optimiser.init(values), jnp.asarray(-1), made.state
    assert not slow(jax.make_jaxpr(training._advance)(*start, 1e9, 0, 3))
