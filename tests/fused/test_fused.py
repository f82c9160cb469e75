"""The fused path against the XLA path, which has oracles of its own."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tangency import limit, models
from tangency.errors import InputError, NonFiniteError
from tangency.fused import FusedKernel
from tangency.fused.polynomials import absolute_series, arccosine
from tangency.fused.program import (
    Dual,
    Inner,
    One,
    Piecewise,
    PiecewiseLinear,
    Program,
    Slide,
    Sum,
    Times,
    Total,
    nonnegative,
)
from tangency.graph.space import Window
from tangency.limit import fusion

relu = jax.nn.relu
WIDTH = 8
CONV = (3, 5, 4)
"""Channels, height and width of the images: not square."""


class Branches(eqx.Module):
    ways: list

    def __call__(self, x, key=None):
        return sum(way(x) for way in self.ways)


def conv(inputs, size, **options):
    return lambda key: eqx.nn.Conv2d(inputs, WIDTH, size, key=key, **options)


def sequence(*parts):
    """Activations, and functions of a key that make layers."""

    def make(key):
        keys = jax.random.split(key, len(parts))
        return eqx.nn.Sequential(
            [eqx.nn.Lambda(p) if p in (relu, jnp.abs) else p(k) for p, k in zip(parts, keys, strict=True)]
        )

    return make


def branches(*ways):
    """The sum of several sequences of one signal; the empty one is the signal itself."""
    return lambda key: Branches(
        [sequence(*way)(k) for way, k in zip(ways, jax.random.split(key, len(ways)), strict=True)]
    )


def network(*parts, head, positions=0):
    def readout(key):
        features = WIDTH * positions if head == "flatten" else WIDTH
        return eqx.nn.Linear(features, 1, key=key)

    def flat(key):
        return eqx.nn.Lambda(jnp.ravel if head == "flatten" else lambda h: h.mean((1, 2)))

    return sequence(*parts, flat, readout)


def pool(size, stride, padding=0):
    return lambda key: eqx.nn.AvgPool2d(size, stride, padding)


def pair(make, shape, dtype=np.float64, n=3, m=9):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, *shape)).astype(dtype), rng.normal(size=(m, *shape)).astype(dtype)
    fused, plain = limit(make, fused=True), limit(make, fused=False)
    found, expected = fused.evaluate("both", x, y), plain.evaluate("both", x.astype(np.float64), y.astype(np.float64))
    assert "the whole network is fused" in str(fused)
    assert found.dtype == dtype
    return found, expected, fused, y


def check(make, shape):
    found, expected, fused, y = pair(make, shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    symmetric = fused(y)
    assert np.array_equal(symmetric, symmetric.T)
    assert np.array_equal(np.diagonal(symmetric), fused.diagonal("ntk", y))
    np.testing.assert_allclose(symmetric, limit(make, fused=False)(y), rtol=1e-9)
    # Equal examples are exactly equal, wherever they stand.
    twice = np.concatenate([y[:1], y[:1]])
    assert len(set(fused.evaluate("ntk", y[:1], twice).ravel())) == 1
    assert fused(y[:1], y[:1])[0, 0] == fused.diagonal("ntk", y[:1])[0]


ARCHITECTURES = {
    "valid, strides, even filters, flatten": (
        (conv(3, (2, 3), padding=[(1, 0), (0, 2)]), jnp.abs, conv(WIDTH, 3, stride=(2, 1), padding=1), relu),
        *("flatten", 12),
    ),
    "residual branch, padding wider than the filter, average": (
        (
            conv(3, 2, padding=3, use_bias=False),
            branches((), (relu, conv(WIDTH, 3, padding=1), relu, conv(WIDTH, 3, padding=1))),
            relu,
        ),
        *("average", 0),
    ),
    "two pools, one overlapping, dilation, average": (
        (
            conv(3, 3, padding=2),
            relu,
            pool((3, 2), (2, 1)),
            conv(WIDTH, 3, padding=2, dilation=2),
            relu,
            pool((2, 3), 1),
        ),
        *("average", 0),
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_convolutions(name):
    parts, head, positions = ARCHITECTURES[name]
    check(network(*parts, head=head, positions=positions), CONV)


BRANCHES = {
    "planes of different sizes": [
        conv(3, 3, padding=1),
        relu,
        branches((conv(WIDTH, 2), relu, conv(WIDTH, 3, padding=1)), (conv(WIDTH, 3, padding=1), relu, conv(WIDTH, 2))),
        relu,
    ],
    "around pools, of which one is chained": [
        conv(3, 3, padding=3),
        relu,
        branches(
            (conv(WIDTH, 3, stride=2, padding=1), relu, conv(WIDTH, 3, padding=1)),
            (pool((3, 2), 2), conv(WIDTH, (2, 1), padding=((1, 1), (0, 0)))),
        ),
        branches(
            (pool(3, 1, 1), pool(2, 1), conv(WIDTH, 3, padding=1), relu, pool(2, 1), conv(WIDTH, 1)),
            (conv(WIDTH, 3),),
        ),
        relu,
    ],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name):
    found, expected, *_ = pair(network(*BRANCHES[name], head="average"), CONV)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def swapped(key):
    return eqx.nn.Lambda(lambda h: jnp.swapaxes(h, 1, 2))


NARROW = {
    "pool to one row, then along it": ([pool((5, 1), 1), conv(WIDTH, (1, 2)), relu], 3),
    "convolution to one column, rows and columns exchanged, then along it": (
        [conv(WIDTH, (1, 4)), relu, swapped, conv(WIDTH, 3, padding=1), relu],
        5,
    ),
    "convolution to one position, then 3×3": (
        [conv(WIDTH, (5, 4)), relu, conv(WIDTH, 3, padding=1), relu, conv(WIDTH, 1), relu],
        1,
    ),
}


@pytest.mark.parametrize("name", NARROW)
def test_grids_that_become_one_position_wide(name):
    parts, positions = NARROW[name]
    make = network(conv(3, 3, padding=1), relu, *parts, head="flatten", positions=positions)
    found, expected, *_ = pair(make, CONV)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_axis_of_positions():
    def make(key):
        first, second = jax.random.split(key)
        layers = [eqx.nn.Conv1d(2, WIDTH, 3, stride=2, padding=1, key=first), eqx.nn.Lambda(relu)]
        return eqx.nn.Sequential([*layers, eqx.nn.Lambda(lambda h: h.mean(1)), eqx.nn.Linear(WIDTH, 1, key=second)])

    check(make, (2, 7))


@pytest.mark.parametrize(
    "make",
    [
        lambda key: models.MLP(4, 1, depth=3, width=WIDTH, key=key),
        lambda key: models.ResMLP(4, 1, depth=2, width=WIDTH, key=key),
        lambda key: models.MLP(4, 1, depth=2, width=WIDTH, activation="leaky_relu", key=key),
    ],
    ids=["MLP", "pre-norm residual", "leaky ReLU"],
)
def test_dense_networks(make):
    check(make, (4,))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rows_of_a_matrix_product_are_exactly_equal(dtype):
    x = np.random.default_rng(0).normal(size=(70, 37)).astype(dtype)
    x[[9, 68, 33]], x[12] = x[2], x[41]
    kernel = limit(lambda key: models.MLP(37, 1, depth=3, width=WIDTH, key=key), fused=True)
    diagonal = kernel.diagonal("ntk", x)
    for theta in (kernel(x), kernel(x, x.copy())):
        assert np.array_equal(np.diagonal(theta), diagonal)
        assert {theta[i, j] for i in (2, 9, 33, 68) for j in (2, 9, 33, 68)} == {diagonal[2]}
        assert theta[41, 12] == theta[12, 41] == diagonal[12]


def test_a_weight_without_gradient_in_its_use():
    class Stopped(eqx.Module):
        layers: list

        def __init__(self, key):
            sizes = ((4, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))
            self.layers = [eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, jax.random.split(key, 3), strict=True)]

        def __call__(self, x, key=None):
            hidden = jax.lax.stop_gradient(self.layers[1].weight) @ relu(self.layers[0](x))
            return self.layers[2](relu(hidden))

    check(Stopped, (4,))


def test_dense_layers_after_the_average():
    def make(key):
        keys = jax.random.split(key, 3)
        layers = [conv(3, 3, padding=1)(keys[0]), eqx.nn.Lambda(relu), eqx.nn.Lambda(lambda h: h.mean((1, 2)))]
        return eqx.nn.Sequential(
            [
                *layers,
                eqx.nn.Linear(WIDTH, WIDTH, key=keys[1]),
                eqx.nn.Lambda(relu),
                eqx.nn.Linear(WIDTH, 1, key=keys[2]),
            ]
        )

    check(make, CONV)


def deep(head):
    parts = itertools.chain.from_iterable((conv(WIDTH if i else 3, 3, padding=1), relu) for i in range(21))
    return network(*parts, head=head, positions=16)


def test_single_precision_at_21_layers():
    head = "average"
    found, expected, fused, y = pair(deep(head), (3, 4, 4), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # An awkward set: nothing, constants, one image twice, and hardly another.
    odd = np.stack([y[0] * 0, y[0] * 0 + 1, y[0] * 0 - 2, y[0], y[0], y[0] + 1e-6 * y[1]])
    both = fused.evaluate("both", odd)
    assert np.isfinite(both).all()
    assert np.array_equal(both[:, 3, 3], both[:, 3, 4])
    exact = limit(deep(head), fused=False).evaluate("both", odd.astype(np.float64))
    np.testing.assert_allclose(both, exact, rtol=1e-3)


def test_zero_variances_have_the_activations_own_values():
    """A bias that starts at zero and trains: at zero inputs Θ needs φ′(0), which is JAX's."""

    def make(key):
        keys = jax.random.split(key, 3)
        layers = [eqx.nn.Linear(3, WIDTH, key=keys[0]), eqx.nn.Lambda(lambda u: jnp.maximum(u, 0.3 * u))]
        layers += [eqx.nn.Linear(WIDTH, WIDTH, key=keys[1]), eqx.nn.Lambda(relu), eqx.nn.Linear(WIDTH, 1, key=keys[2])]
        model = eqx.nn.Sequential(layers)
        return eqx.tree_at(lambda m: [m.layers[i].bias for i in (0, 2, 4)], model, replace_fn=jnp.zeros_like)

    x = np.concatenate([np.zeros((2, 3)), np.eye(3)])
    for second in (None, x[1:3]):
        found, expected = (limit(make, fused=f).evaluate("both", x, second) for f in (True, False))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_what_cannot_be_fused_is_left_to_xla_and_says_so():
    make = network(conv(3, 3), relu, lambda key: eqx.nn.MaxPool2d(2), head="average", positions=0)
    kernel = limit(make, numerical=True, fused=True, input_shape=CONV)
    assert "evaluated by XLA: no fused form for a numerical rule" in str(kernel)
    assert "switched off" in str(limit(make, numerical=True, fused=False, input_shape=CONV))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (
            branches((conv(WIDTH, 1),), (lambda key: eqx.nn.AdaptiveAvgPool2d(1), conv(WIDTH, 1))),
            "a signal that is repeated along positions",
        ),
        (branches((conv(WIDTH, (2, 1)),), (conv(WIDTH, (2, 1)), swapped)), "a signal whose axes are rearranged"),
        (
            branches((pool(2, 2), conv(WIDTH, 1)), (conv(WIDTH, 2), pool(2, (2, 1)), conv(WIDTH, 1))),
            "branches of different sizes",
        ),
        (lambda key: eqx.nn.Lambda(lambda h: h[:, 1:]), "chosen positions"),
    ],
)
def test_arrangements_that_are_left_to_xla(part, reason):
    make = network(conv(3, 3, padding=1), relu, part, relu, head="average")
    assert f"evaluated by XLA: no fused form for {reason}" in str(limit(make, fused=True, input_shape=CONV))


def evaluator(kernel, n, shape, diagonal=False):
    """Which path evaluates that many examples."""
    x, ones, taken = np.ones((n, *shape), np.float32), np.ones((n, n), np.float32), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedKernel, "matrix", lambda *_: taken.append("fused") or ones)
        patch.setattr(kernel, "_block", lambda *_, **__: taken.append("XLA") or ones)
        patch.setattr(FusedKernel, "diagonal", lambda *_: taken.append("fused") or ones[0])
        patch.setattr(kernel, "_diagonal", lambda *_, **__: taken.append("XLA") or ones[0])
        kernel.diagonal("ntk", x) if diagonal else kernel(x, x)
    (path,) = taken
    return path


def test_positions_are_fused_where_there_is_enough_to_repay_it(monkeypatch):
    make = network(conv(3, 3, padding=1), relu, head="average")
    work = limit(make, input_shape=CONV)._fusion().kernel.work
    monkeypatch.setattr(fusion, "PAYS", 15.5 * work)
    kernel = limit(make, input_shape=CONV)
    assert str(kernel).endswith("fused on the CPU from 16 pairs of examples on")
    assert [evaluator(kernel, n, CONV) for n in (3, 4)] == ["XLA", "fused"]
    assert [evaluator(kernel, n, CONV, diagonal=True) for n in (15, 16)] == ["XLA", "fused"]
    assert evaluator(limit(make, fused=True), 1, CONV) == "fused"
    assert evaluator(limit(make, fused=False), 4, CONV) == "XLA"


def test_dense_networks_are_fused_from_the_first_pair(monkeypatch):
    """But for very deep ones."""
    make = lambda key: models.MLP(4, 1, depth=1, width=WIDTH, key=key)  # noqa: E731
    kernel = limit(make, input_shape=(4,))
    assert str(kernel).endswith("the whole network is fused on the CPU")
    assert evaluator(kernel, 1, (4,)) == "fused"
    monkeypatch.setattr(fusion, "LONGEST", kernel._fusion().kernel.lines - 1)
    assert evaluator(limit(make), 1, (4,)) == "XLA"


@pytest.mark.parametrize("scale", [1e160, 1e300])
def test_overflow_is_one_clear_error(scale):
    kernel = limit(lambda key: models.MLP(4, 1, depth=2, width=WIDTH, key=key))
    with pytest.raises(NonFiniteError, match="between rows 0 and 0 is not finite"):
        kernel(scale * np.ones((3, 4)))


def test_variances_too_small_to_divide_by_are_left_to_xla():
    def make(key):
        return models.MLP(4, 1, depth=1, width=WIDTH, b_std=0.0, key=key)

    x = np.full((2, 4), 1e-17, np.float32)
    np.testing.assert_array_equal(*(limit(make, fused=f)(x) for f in (True, False)))


def test_tracers_and_derivatives_use_xla():
    make = lambda key: models.MLP(4, 1, depth=1, width=WIDTH, key=key)  # noqa: E731
    x = jnp.ones((2, 4))
    value = jax.jit(lambda x: limit(make, fused=True)(x, x).sum())
    np.testing.assert_allclose(value(x), limit(make, fused=False)(x, x).sum(), rtol=1e-5)
    assert jnp.all(jnp.isfinite(jax.grad(value)(x)))


@pytest.mark.parametrize("options", [dict(fused="yes"), dict(threads=0), dict(threads=1.5)])
def test_options_are_checked(options):
    with pytest.raises(InputError, match="fused|threads"):
        limit(lambda key: models.MLP(4, 1, key=key), **options)


def test_a_folder_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("TANGENCY_CACHE_DIR", str(file))
    make = lambda key: models.MLP(5, 1, depth=1, width=WIDTH, w_std=1.25, key=key)  # noqa: E731
    x = np.eye(5)
    np.testing.assert_allclose(*(limit(make, fused=f, threads=1)(x) for f in (True, False)), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float64", 1e-15)])
def test_polynomials_of_the_arc_cosine(dtype, tolerance):
    with mpmath.workdps(40):
        for y in (*np.linspace(1e-9, 1.0, 101), 1e-300):
            exact, t = mpmath.acos(1 - mpmath.mpf(y)), mpmath.sqrt(mpmath.mpf(y))
            coefficients = arccosine(dtype), absolute_series(dtype)
            p, r = (mpmath.fsum(mpmath.mpf(a) * mpmath.mpf(y) ** k for k, a in enumerate(c)) for c in coefficients)
            assert abs(t * p - exact / mpmath.pi) < tolerance
            rest = mpmath.sqrt(mpmath.mpf(y) * (2 - mpmath.mpf(y))) - (1 - mpmath.mpf(y)) * exact
            assert abs(t**3 * r - rest / mpmath.pi) < tolerance


def test_what_cannot_be_negative():
    relu, leaky = PiecewiseLinear(0, 0.5, 0.5, 0, 0.0), PiecewiseLinear(0, 0.6, 0.4, 0, 0.0)
    step, sign = PiecewiseLinear(0.5, 0, 0, 0.5, 0.0), PiecewiseLinear(0, 0, 0, 1.0, 0.0)
    duals = [Dual(0, Piecewise(f, f)) for f in (relu, leaky, step, sign)]
    sums = [Sum(((2.0, (), (), 1), (1.0, (), (), 3))), Sum(((-1.0, (), (), 1),)), Sum(((1.0, (0,), (), 1),))]
    more = [Times(1, 3), Times(1, 4), Slide(1, (Window(3),)), Total(0, True), One()]
    statements = (Inner(0, 1), *duals, *sums, *more)
    program = Program(statements, ((4,),) * len(statements), None, None, (1, 1), 1)
    assert nonnegative(program) == {1, 3, 5, 8, 10, 12}
