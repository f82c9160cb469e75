"""Means and variances of initialisers against exact values."""

import math
from collections.abc import Callable

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flax import linen, nnx

from tangency.trace.initialisers import InitialiserStatistics, UnresolvedInitialiser, initialiser_statistics

F32, F64 = jnp.float32, jnp.float64
INITS = jax.nn.initializers
TRUNCATED_VARIANCE = 0.87962566103423978**2


def trace(make: Callable, *, raw: bool = False):
    with jax.enable_x64(True):
        key = jax.random.PRNGKey(0) if raw else jax.random.key(0)
        return jax.make_jaxpr(lambda k: jax.tree.leaves(make(k)))(key)


def statistics(make: Callable, *, raw: bool = False) -> list[InitialiserStatistics]:
    leaves = initialiser_statistics(trace(make, raw=raw))
    assert all(isinstance(leaf, InitialiserStatistics) for leaf in leaves), leaves
    return list(leaves)  # pyright: ignore[reportReturnType]


def reason(make: Callable) -> UnresolvedInitialiser:
    (leaf,) = initialiser_statistics(trace(make))
    assert isinstance(leaf, UnresolvedInitialiser), leaf
    return leaf


def check(leaf, *, mean: float = 0.0, variance: float, distribution: str, tolerance: float = 2e-15) -> None:
    assert leaf.distribution == distribution
    assert leaf.variance == pytest.approx(variance, rel=tolerance, abs=0)
    assert leaf.mean == pytest.approx(mean, rel=tolerance, abs=0 if mean == 0 else None)
    assert (leaf.draw is None) == (distribution == "constant")


def truncated_moments(lower: float, upper: float) -> tuple[float, float]:
    with mpmath.workdps(40):
        a, b = mpmath.mpf(lower), mpmath.mpf(upper)
        mass = mpmath.ncdf(b) - mpmath.ncdf(a)
        edge = (a * mpmath.npdf(a) if mpmath.isfinite(a) else 0) - (b * mpmath.npdf(b) if mpmath.isfinite(b) else 0)
        mean = (mpmath.npdf(a) - mpmath.npdf(b)) / mass
        return float(mean), float(1 + edge / mass - mean**2)


@pytest.mark.parametrize("dtype", [F32, F64, jnp.bfloat16, jnp.float16])
def test_plain_draws(dtype):
    (leaf,) = statistics(lambda k: jax.random.normal(k, (3, 4), dtype))
    check(leaf, variance=1.0, distribution="normal", tolerance=0)
    (leaf,) = statistics(lambda k: jax.random.uniform(k, (3, 4), dtype))
    check(leaf, mean=0.5, variance=1 / 12, distribution="uniform")
    (leaf,) = statistics(lambda k: jax.random.uniform(k, (3, 4), dtype, -2.0, 3.0))
    check(leaf, mean=0.5, variance=25 / 12, distribution="uniform")


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("lower", "upper"), [(-2, 2), (-1.0, 2.5), (0.0, math.inf), (-5.0, 5.0), (3.0, math.inf), (-0.1, 0.1)]
)
def test_truncated_normal_moments(dtype, lower, upper):
    mean, variance = truncated_moments(lower, upper)
    (leaf,) = statistics(lambda k: jax.random.truncated_normal(k, lower, upper, (5,), dtype))
    check(leaf, mean=mean, variance=variance, distribution="truncated normal", tolerance=2e-14)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg", "fan_geo_avg"])
@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_variance_scaling(dtype, mode, distribution):
    init = INITS.variance_scaling(2.0, mode, distribution)
    (leaf,) = statistics(lambda k: init(k, (48, 75), dtype))
    fan = {"fan_in": 48, "fan_out": 75, "fan_avg": (48 + 75) / 2, "fan_geo_avg": 60.0}[mode]
    check(leaf, variance=2 / fan, distribution=distribution.replace("_", " "))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("lecun_normal", 1 / 784),
        ("lecun_uniform", 1 / 784),
        ("glorot_normal", 2 / (784 + 512)),
        ("glorot_uniform", 2 / (784 + 512)),
        ("xavier_normal", 2 / (784 + 512)),
        ("kaiming_uniform", 2 / 784),
        ("he_normal", 2 / 784),
    ],
)
def test_named_initialisers(dtype, name, variance):
    (leaf,) = statistics(lambda k: getattr(INITS, name)()(k, (784, 512), dtype))
    check(leaf, variance=variance, distribution="uniform" if "uniform" in name else "truncated normal", tolerance=1e-15)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_scaled_initialisers(dtype):
    (leaf,) = statistics(lambda k: INITS.normal(0.02)(k, (7, 5), dtype))
    check(leaf, variance=0.02**2, distribution="normal")
    (leaf,) = statistics(lambda k: INITS.uniform(0.07)(k, (7, 5), dtype))
    check(leaf, mean=0.035, variance=0.07**2 / 12, distribution="uniform")
    (leaf,) = statistics(lambda k: INITS.truncated_normal(0.02)(k, (7, 5), dtype))
    check(leaf, variance=0.02**2 * TRUNCATED_VARIANCE, distribution="truncated normal")
    mean, variance = truncated_moments(-1, 2.5)
    (leaf,) = statistics(lambda k: INITS.truncated_normal(0.3, lower=-1, upper=2.5)(k, (7, 5), dtype))
    check(leaf, mean=0.3 * mean, variance=0.09 * variance, distribution="truncated normal", tolerance=5e-15)
    for init, value in [(INITS.zeros, 0.0), (INITS.ones, 1.0), (INITS.constant(0.1), 0.1)]:
        (leaf,) = statistics(lambda k, init=init: init(k, (7, 5), dtype))
        check(leaf, mean=value, variance=0.0, distribution="constant", tolerance=0)


def test_half_precision_takes_the_fan_from_the_shape():
    for dtype in (jnp.bfloat16, jnp.float16):
        (leaf,) = statistics(lambda k, dtype=dtype: INITS.lecun_normal()(k, (784, 512), dtype))
        check(leaf, variance=1 / 784, distribution="truncated normal")
        (leaf,) = statistics(lambda k, dtype=dtype: INITS.glorot_uniform()(k, (784, 512), dtype))
        check(leaf, variance=1 / 648, distribution="uniform")


def test_float32_value_moves_by_its_rounding_at_most():
    stds = np.exp(np.random.default_rng(0).uniform(-6, 1, 60)).astype(np.float32)
    leaves = statistics(lambda k: [jax.random.normal(k, (9,), F32) * std for std in stds])
    found, traced = np.array([leaf.variance for leaf in leaves]), stds.astype(np.float64) ** 2
    assert np.all(np.abs(found / traced - 1) <= 2.0**-21)
    assert np.mean(found == traced) > 0.4


def test_float64_is_never_rounded_to_a_simple_number():
    std = math.sqrt(1 / 784) * (1 + 1e-9)
    (leaf,) = statistics(lambda k: std * jax.random.normal(k, (9,), F64))
    assert leaf.variance == std**2 != 1 / 784


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6), (3, 3, 2, 7)])
def test_orthogonal(dtype, shape):
    (leaf,) = statistics(lambda k: INITS.orthogonal(scale=1.5)(k, shape, dtype))
    variance = 2.25 / max(math.prod(shape[:-1]), shape[-1])
    check(leaf, variance=variance, distribution="orthogonal")


def test_orthogonal_elsewhere():
    (leaf,) = statistics(lambda k: jax.random.orthogonal(k, 6, dtype=F64))
    check(leaf, variance=1 / 6, distribution="orthogonal")
    make = hk.transform(lambda x: hk.Linear(4, with_bias=False, w_init=hk.initializers.Orthogonal())(x))
    with jax.numpy_rank_promotion("allow"):
        (leaf,) = statistics(lambda k: make.init(k, jnp.ones((1, 9), F32)))
    check(leaf, variance=1 / 9, distribution="orthogonal")
    (leaf,) = statistics(lambda k: jax.vmap(lambda key: INITS.orthogonal()(key, (3, 5), F32))(jax.random.split(k, 4)))
    check(leaf, variance=1 / 5, distribution="orthogonal")
    # Without the signs the entries of Q are not centred: LAPACK fixes the signs of its columns.
    assert "QR" in reason(lambda k: jnp.linalg.qr(jax.random.normal(k, (4, 4)))[0] * 1.0).reason
    assert "diagonal" in reason(lambda k: _signed_by_the_first_row(jax.random.normal(k, (4, 4)))).reason
    assert "centred normal" in reason(lambda k: jnp.linalg.qr(jax.random.uniform(k, (4, 4)))[0]).reason


def _signed_by_the_first_row(matrix):
    q, r = jnp.linalg.qr(matrix)
    return q * jnp.sign(r[jnp.zeros(4, int), jnp.arange(4)])[None]


def variances(make: Callable) -> list[tuple[float, float, str]]:
    return [(leaf.mean, leaf.variance, leaf.distribution) for leaf in statistics(make)]  # pyright: ignore[reportReturnType]


def test_equinox_layers_by_default():
    def leaves(layer: Callable) -> list[tuple[float, float, str]]:
        return variances(lambda k: eqx.filter(layer(k), eqx.is_array))

    def uniform(fan: int, count: int):
        return [(0.0, pytest.approx(1 / (3 * fan), rel=1e-15), "uniform")] * count

    one, zero = (1.0, 0.0, "constant"), (0.0, 0.0, "constant")
    assert leaves(lambda k: eqx.nn.Linear(3, 8, key=k)) == uniform(3, 2)
    assert leaves(lambda k: eqx.nn.LayerNorm(8)) == [one, zero]
    assert leaves(lambda k: eqx.nn.RMSNorm(8)) == [one, zero]
    assert leaves(lambda k: eqx.nn.MLP(3, 2, 16, 2, key=k)) == uniform(3, 2) + uniform(16, 4)
    assert leaves(lambda k: eqx.nn.Embedding(11, 4, key=k)) == [(0.0, 1.0, "normal")]
    assert leaves(lambda k: eqx.nn.Conv2d(3, 8, 5, key=k)) == uniform(75, 2)
    assert leaves(lambda k: eqx.nn.GRUCell(3, 6, key=k)) == uniform(6, 4)
    assert leaves(lambda k: eqx.nn.MultiheadAttention(2, 12, key=k)) == uniform(12, 4)


def test_flax_layers_by_default():
    def leaves(layer: Callable) -> list[tuple[float, float, str]]:
        return variances(lambda k: nnx.state(layer(nnx.Rngs(k)), nnx.Param))

    one, zero = (1.0, 0.0, "constant"), (0.0, 0.0, "constant")

    def lecun(fan: int, distribution: str = "truncated normal"):
        return (0.0, pytest.approx(1 / fan, rel=1e-15), distribution)

    assert leaves(lambda rngs: nnx.Linear(784, 512, rngs=rngs)) == [zero, lecun(784)]
    assert leaves(lambda rngs: nnx.LayerNorm(8, rngs=rngs)) == [zero, one]
    assert leaves(lambda rngs: nnx.RMSNorm(8, rngs=rngs)) == [one]
    assert leaves(lambda rngs: nnx.Embed(11, 12, rngs=rngs)) == [lecun(12, "normal")]
    assert leaves(lambda rngs: nnx.Conv(3, 8, (5, 5), rngs=rngs)) == [zero, lecun(75)]
    assert variances(lambda k: linen.Dense(5).init(k, jnp.ones((1, 3)))) == [zero, lecun(3)]
    haiku = hk.transform(lambda x: hk.Linear(5)(x))
    expected = pytest.approx(TRUNCATED_VARIANCE / 3, rel=2e-15)
    assert variances(lambda k: haiku.init(k, jnp.ones((1, 3), F32))) == [zero, (0.0, expected, "truncated normal")]


def test_stacked_layers_by_vmap_and_scan():
    def vmapped(key):
        make = eqx.filter_vmap(lambda k: eqx.nn.Linear(3, 4, key=k))
        return eqx.filter(make(jax.random.split(key, 5)), eqx.is_array)

    def scanned(key):
        return jax.lax.scan(lambda c, k: (c, jax.random.normal(k, (3, 4), F32) / 2), 0, jax.random.split(key, 5))[1]

    assert [leaf.variance for leaf in statistics(vmapped)] == pytest.approx([1 / 9] * 2, rel=1e-15)
    (leaf,) = statistics(scanned)
    check(leaf, variance=0.25, distribution="normal")
    repeated = reason(lambda key: jax.lax.scan(lambda c, _: (c, jax.random.normal(key, (3,))), 0, jnp.arange(5))[1])
    assert "repeats one draw" in repeated.reason


def draw(k, name: str, *args):
    return getattr(jax.random, name)(k, *args, dtype=F64)


@pytest.mark.parametrize(
    ("make", "mean", "variance"),
    [
        (lambda k: draw(k, "laplace", (3,)), 0, 2),
        (lambda k: draw(k, "exponential", (3,)), 1, 1),
        (lambda k: draw(k, "logistic", (3,)), 0, math.pi**2 / 3),
        (lambda k: draw(k, "gumbel", (3,)), np.euler_gamma, math.pi**2 / 6),
        (lambda k: jax.random.rademacher(k, (3,)), 0, 1),
        (lambda k: jax.random.bernoulli(k, 0.3, (3,)).astype(F64), 0.3, 0.21),
        (lambda k: jnp.exp(draw(k, "normal", (3,))), math.exp(0.5), math.e**2 - math.e),
        (lambda k: draw(k, "normal", (3,)) ** 2, 1, 2),
        (lambda k: jnp.abs(draw(k, "normal", (3,))), math.sqrt(2 / math.pi), 1 - 2 / math.pi),
        (lambda k: jax.nn.relu(draw(k, "normal", (3,))), 1 / math.sqrt(2 * math.pi), 0.5 - 0.5 / math.pi),
        (lambda k: draw(k, "uniform", (3,)) ** 3, 1 / 4, 1 / 7 - 1 / 16),
        (lambda k: jnp.sqrt(draw(k, "uniform", (3,))), 2 / 3, 1 / 18),
        (lambda k: jnp.maximum(draw(k, "uniform", (3,)), 0.25), 17 / 32, 22 / 64 - (17 / 32) ** 2),
        (lambda k: jnp.where(draw(k, "uniform", (3,)) < 0.2, 3.0, -1.0), -0.2, 16 * 0.16),
    ],
)
def test_functions_of_one_draw(make, mean, variance):
    (leaf,) = statistics(make)
    check(leaf, mean=mean, variance=variance, distribution="other", tolerance=1e-14)


def test_clipped_normal_against_a_high_precision_integral():
    def moment(order: int):
        lower, upper = mpmath.mpf(-1), mpmath.mpf("1.5")
        inside = mpmath.quad(lambda z: z**order * mpmath.npdf(z), [lower, 0, upper])
        return inside + lower**order * mpmath.ncdf(lower) + upper**order * mpmath.ncdf(-upper)

    with mpmath.workdps(30):
        mean, variance = float(moment(1)), float(moment(2) - moment(1) ** 2)
    (leaf,) = statistics(lambda k: jnp.clip(draw(k, "normal", (3,)), -1.0, 1.5))
    check(leaf, mean=mean, variance=variance, distribution="other", tolerance=1e-14)


def test_linear_combinations():
    def pair(k):
        return [jax.random.normal(key, (4, 3), F64) for key in jax.random.split(k)]

    (leaf,) = statistics(lambda k: 3.0 - 2.0 * jax.random.normal(k, (4,), F64).reshape(2, 2).T / 5)
    check(leaf, mean=3.0, variance=0.16, distribution="normal")
    (leaf,) = statistics(lambda k: pair(k)[0] - 2 * pair(k)[1])
    check(leaf, variance=5.0, distribution="normal")
    (leaf,) = statistics(lambda k: pair(k)[0] - pair(k)[0] / 2)
    check(leaf, variance=0.25, distribution="normal")
    (leaf,) = statistics(lambda k: jnp.concatenate(pair(k)))
    check(leaf, variance=1.0, distribution="normal")
    (leaf,) = statistics(lambda k: jnp.eye(4, 3) + 0.1 * pair(k)[0])
    assert np.array_equal(leaf.mean, np.eye(4, 3))
    assert leaf.variance == pytest.approx(0.01, rel=1e-15)


def test_draws_tell_reused_keys():
    def reused(k):
        a, b = jax.random.split(k)
        return [jax.random.normal(a, (3, 4)), jax.random.uniform(a, (5,)), jax.random.normal(b, (3, 4))]

    first, second, third = statistics(reused)
    assert first.draw == second.draw != third.draw
    folded, other = statistics(lambda k: [jax.random.normal(jax.random.fold_in(k, i), (3,)) for i in (0, 1)])
    assert folded.draw != other.draw
    raw = statistics(lambda k: [jax.random.normal(jax.random.split(k)[i], (3,)) for i in (0, 1, 1)], raw=True)
    assert raw[0].draw != raw[1].draw == raw[2].draw
    halves = statistics(lambda k: jnp.split(jax.random.normal(k, (6, 2)), 2))
    assert halves[0].draw != halves[1].draw
    overlapping = statistics(lambda k: [jax.random.normal(k, (6, 2))[i : i + 3] for i in (0, 2)])
    assert overlapping[0].draw == overlapping[1].draw


def test_loaded_weights_are_their_own_mean():
    weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    array, scalar = statistics(lambda k: [jnp.asarray(weights), jnp.full((3,), 0.1, F32)])
    assert np.array_equal(array.mean, weights) and array.variance == 0 and array.draw is None
    assert scalar.mean == 0.1


def test_nothing_is_materialised():
    (leaf,) = statistics(lambda k: INITS.lecun_normal()(k, (2**20, 2**20), F32))
    check(leaf, variance=2.0**-20, distribution="truncated normal")
    (leaf,) = statistics(lambda k: 2.0 * jnp.zeros((2**20, 2**20)) + 1.0)
    check(leaf, mean=1.0, variance=0.0, distribution="constant")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda k: jax.random.normal(k, (3,)) * jax.random.bernoulli(jax.random.split(k)[0], 0.5, (3,)), "masked draw"),
        (lambda k: jnp.where(jax.random.split(k, 3)[0] == k, 0.0, jnp.arange(3.0)), "key itself"),
        (lambda k: jnp.cumsum(jax.random.normal(k, (3,))), "cumsum"),
        (lambda k: jnp.broadcast_to(jax.random.normal(k, (3,)), (2, 3)), "repeats one draw"),
        (lambda k: jnp.tile(jax.random.normal(k, (3,)), 2), "repeats one draw"),
        (lambda k: jax.random.normal(k, (3, 3)) + jax.random.normal(k, (3, 3)).T, "reused key"),
        (lambda k: jnp.arange(3.0) * jax.random.normal(k, (3,)), "different laws"),
        (lambda k: jnp.concatenate([jnp.zeros(2), jax.random.normal(k, (3,))]), "different variances"),
        (lambda k: jax.random.normal(k, (3,)).at[0].set(1.0), "scatter"),
        (lambda k: jax.random.cauchy(k, (3,)), "no finite variance"),
        (lambda k: jnp.exp(jax.random.normal(k, (3,)) ** 2 / 4), "no finite variance"),
        (lambda k: jax.random.gamma(k, 2.0, (3,)), "random_gamma"),
        (lambda k: jax.random.randint(k, (3,), 0, 7), "random bits"),
        (lambda k: jax.random.normal(k, (3,), jnp.complex64), "complex"),
        (lambda k: jax.random.key_data(k) * 1.0, "key itself"),
        (lambda k: jax.random.split(k), "PRNG key"),
        (lambda k: jnp.full(3, jnp.nan), "NaN"),
        (
            lambda k: jax.lax.fori_loop(0, k_steps(k), lambda i, x: x + jax.random.normal(k, (3,)), jnp.zeros(3)),
            "while",
        ),
    ],
)
def test_what_cannot_be_resolved_says_why(make, words):
    leaf = reason(make)
    assert words in leaf.reason and "\n" not in leaf.reason
    assert leaf.source is not None and leaf.source.rpartition(":")[0].endswith("test_initialisers.py")


def k_steps(k):
    return (jax.random.key_data(k)[0] % 3).astype(int)


def test_one_unresolved_leaf_leaves_the_others_alone():
    def make(k):
        return [jax.random.normal(k, (3,)), jnp.sort(jax.random.normal(k, (3,)))]

    good, bad = initialiser_statistics(trace(make))
    assert isinstance(good, InitialiserStatistics) and isinstance(bad, UnresolvedInitialiser)
    line = make.__code__.co_firstlineno + 1
    assert "sort" in bad.reason and bad.source is not None and bad.source.endswith(f"test_initialisers.py:{line}")


def test_arguments_beside_the_key():
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(lambda k, s: s * jax.random.normal(k, (3,)))(jax.random.key(0), 2.0)
    (leaf,) = initialiser_statistics(jaxpr, (jax.random.key(3), 2.0))
    check(leaf, variance=4.0, distribution="normal")
    (leaf,) = initialiser_statistics(jaxpr)
    assert isinstance(leaf, UnresolvedInitialiser) and "argument" in leaf.reason


@pytest.mark.parametrize(
    "make",
    [
        lambda k: INITS.truncated_normal(0.5, lower=-1.0, upper=2.5)(k, (200_000,)),
        lambda k: jax.random.laplace(k, (200_000,)),
        lambda k: jnp.tanh(2 * jax.random.normal(k, (200_000,)) - 1),
        lambda k: INITS.orthogonal()(k, (500, 400)),
    ],
)
def test_agreement_with_samples(make):
    (leaf,) = statistics(make)
    sample = np.asarray(make(jax.random.key(7)), dtype=np.float64)
    # Five standard errors; the fourth moments of these laws are below 30 variances squared.
    assert abs(sample.mean() - leaf.mean) < 5 * math.sqrt(leaf.variance / sample.size)
    assert abs(sample.var() - leaf.variance) < 5 * leaf.variance * math.sqrt(30 / sample.size)
