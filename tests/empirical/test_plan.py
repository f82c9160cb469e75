"""The blocks and the algorithm that are chosen, and that they change nothing but time and memory."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tangency as tg
from tangency.empirical import by_gradients
from tangency.empirical.einsum import einsum
from tangency.empirical.kernel import EmpiricalKernel
from tangency.empirical.plan import Plan
from tangency.errors import MemoryLimitError
from tests.empirical.checks import close
from tests.oracles.jacobian import ntk

GIB = 2**30
KERNELS = sys.modules[EmpiricalKernel.__module__]


pytestmark = pytest.mark.usefixtures("double_precision")


def convolutional(p, x):
    x = jnp.tanh(jax.lax.conv_general_dilated(x[None], p["w"], (1, 1), "SAME")[0] + p["b"][:, None, None])
    return p["v"] @ x.mean((1, 2))


def apart(p, x):
    """The same network, written so that channels mix before positions come together."""
    x = jnp.tanh(jax.lax.conv_general_dilated(x[None], p["w"], (1, 1), "SAME")[0] + p["b"][:, None, None])
    return (p["v"] @ x.reshape(7, -1)).mean(1)


def tokens(p, x):
    """The same weights for each of eight positions."""
    return (p["v"] @ jnp.tanh(p["d"] @ x.reshape(5, 8))).mean(1)


@pytest.fixture
def parameters(rng):
    shapes = {"w": (7, 2, 3, 3), "b": (7,), "v": (6, 7), "d": (7, 5)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


@pytest.fixture
def x(rng):
    return rng.normal(size=(9, 2, 5, 4))


@pytest.mark.parametrize(
    "letters", ["noj,moj->nm", "nbis,nobjs->nobji", "nbsi,mbti->bnsmt", "nop,mop->nmo", "ab,ab->", "nbj,mbj->nbm"]
)
@pytest.mark.parametrize("ones", [(), ("b",), ("s", "i")])
def test_products_of_two_arrays(letters, ones, rng):
    """Against NumPy's own, with and without axes of length 1."""
    lengths = {letter: 1 if letter in ones else 2 + k for k, letter in enumerate("abijmnopst")}
    inputs = letters.split("->")[0].split(",")
    arrays = [rng.normal(size=[lengths[letter] for letter in own]) for own in inputs]
    close(np.asarray(einsum(letters, *map(jnp.asarray, arrays))), np.einsum(letters, *arrays), 1e-13)


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
def test_little_memory_changes_nothing(outputs, parameters, x):
    whole = tg.empirical(convolutional, parameters, outputs=outputs)
    expected = whole(x)
    tight = tg.empirical(convolutional, parameters, outputs=outputs, memory=150_000)
    close(tight(x), expected, 1e-12)
    close(tight(x, x[:4]), expected[:, :4], 1e-12)
    assert "9 × 9 examples and 6 of" in str(whole) and "9 × 9 examples and 6 of" not in str(tight)


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full"])
@pytest.mark.parametrize("limit", ["CACHED", "LONGEST"])
@pytest.mark.parametrize("platform", ["cpu", "elsewhere"])
@pytest.mark.parametrize("network", [apart, tokens])
def test_gradients_formed_a_few_entries_at_a_time(network, platform, limit, outputs, parameters, x, monkeypatch):
    """On a CPU those of all outputs at once only where all pairs of outputs are asked for."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda arrays, cpu, default: (cpu if platform == "cpu" else default)(arrays)
    )
    at_once = 1 if platform == "cpu" and outputs != "full" else 6
    every = np.asarray(ntk(network, parameters, x, x))
    diagonal = np.diagonal(every, axis1=2, axis2=3)
    expected = {"full": every, "diagonal": diagonal, "mean": diagonal.mean(-1)}[outputs]
    # One of two channels and its patches, and two of five entries.
    own = {apart: (at_once * 9 * 7, 9 * 20), tokens: (2 * at_once * 7, 0)}[network]
    monkeypatch.setattr(by_gradients, limit, own[0] if limit == "LONGEST" else 9 * sum(own))
    formed, whole = [], by_gradients.whole_gradients

    def noting(parts, shape, order):
        formed.append((*shape, len(parts[0].cotangent)))
        return whole(parts, shape, order)

    monkeypatch.setattr(by_gradients, "whole_gradients", noting)
    kernel = tg.empirical(network, parameters, outputs=outputs)
    close(kernel(x), expected)
    close(kernel(x, x[:4]), expected[:, :4])
    rows = {apart: {9}, tokens: {2, 1}}[network]
    formed = [(i, at) for i, j, at in formed if j == 7]
    assert rows <= {i for i, _ in formed} and {at for _, at in formed} == {at_once}
    assert "gradients from signals" in str(kernel)


@pytest.mark.parametrize("outputs", ["mean", "diagonal", "full", np.arange(42.0).reshape(7, 6) % 5])
def test_blocks_of_one_matrix_share_their_programs(outputs, parameters, x, monkeypatch):
    whole = tg.empirical(convolutional, parameters, outputs=outputs)
    expected = whole(x[:7]), whole(x[:7], x[4:]), whole(x), whole.diagonal("ntk", x)
    cut = tg.empirical(convolutional, parameters, outputs=outputs)
    monkeypatch.setattr(KERNELS, "fitting", lambda *_: Plan(4, 3, False, 0.0))
    monkeypatch.setattr(cut, "_diagonal_block", lambda _: 4)
    found = cut(x[:7]), cut(x[:7], x[4:]), cut(jnp.asarray(x)), cut.diagonal("ntk", x)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, 1e-12)
    shapes = {key[-1][:2] for key in cut._blocks if isinstance(key[-1], tuple)}
    assert {(left[0], right[0]) for (left, _), (right, _) in shapes} == {(4, 4), (4, 3), (3, 3)}


def test_the_compiler_is_asked_what_a_block_takes(parameters, x, monkeypatch):
    """Where the count is too low, blocks shrink until the compiler's own count fits."""
    from tangency.empirical import plan

    whole = tg.empirical(convolutional, parameters)
    expected = whole(x)
    assert whole.plan.block == 9 and whole.plan.chunk == 6
    monkeypatch.setattr(plan, "held", lambda *_: 1.0)
    monkeypatch.setattr(plan, "numbers_made", lambda _: 1.0)
    kernel = tg.empirical(convolutional, parameters, memory=int(0.8 * whole.plan.temporary))
    close(kernel(x), expected, 1e-12)
    assert (kernel.plan.block, kernel.plan.chunk) != (9, 6)


def test_nothing_is_cut_or_refused_where_our_own_count_is_too_high(parameters, x, monkeypatch):
    from tangency.empirical import plan

    whole = tg.empirical(convolutional, parameters)
    expected = whole(x)
    enough = int(1.3 * (whole.plan.temporary + 9 * 9 * 8 + 8 * sum(array.size for array in parameters.values())))
    own = plan._bytes
    for factor in (1.0, 4.0):
        monkeypatch.setattr(plan, "_bytes", lambda *given, factor=factor: factor * own(*given))
        kernel = tg.empirical(convolutional, parameters, memory=enough)
        close(kernel(x), expected, 1e-12)
        assert (kernel.plan.block, kernel.plan.chunk, kernel.plan.products) == (9, 6, False)
    monkeypatch.setattr(plan, "_bytes", lambda *given: 20 * own(*given))
    monkeypatch.setattr(plan, "_products_bytes", lambda *_: 20 * enough)
    close(
        np.asarray(tg.empirical(convolutional, parameters, memory=enough).diagonal("ntk", x)), np.diag(expected), 1e-12
    )


def test_the_smallest_block_is_tried_before_a_refusal():
    """Half of what a block takes does not shrink with it."""
    from tangency.empirical.plan import Plan, fitting

    def plan_of(safety):
        for block in (8, 4, 2, 1):
            if safety * 100 * block <= 60:
                return Plan(block, 1, False, safety * 100 * block)
        raise MemoryLimitError("too large")

    asked = []

    def taken(plan):
        asked.append(plan.block)
        return {8: 640, 4: 350, 2: 100, 1: 60}[plan.block]

    assert fitting(plan_of, taken, 60.0) == Plan(1, 1, False, 60) and asked == [8, 1]
    with pytest.raises(MemoryLimitError):
        fitting(plan_of, taken, 59.0)


def test_what_cannot_fit_is_refused_with_the_numbers(parameters, x):
    with pytest.raises(MemoryLimitError, match=r"9 × 9 examples and 6 outputs needs .* GiB even for one pair"):
        tg.empirical(convolutional, parameters, memory=2_000)(x)


def test_products_are_chosen_where_they_take_far_fewer_multiplications(rng):
    """A wide weight met at many positions, all pairs of many outputs: forming the gradients is dearer than passes."""
    w = {"w": jnp.asarray(rng.normal(size=(400, 3))), "v": jnp.asarray(rng.normal(size=(40,)))}

    def function(p, x):
        return (jnp.tanh(x @ p["w"].T).reshape(-1, 40, 10) * p["v"][None, :, None]).sum((0, 2))

    few, many = rng.normal(size=(1, 1, 3)), rng.normal(size=(2, 30, 3))
    kernel = tg.empirical(function, w, outputs="full")
    expected = ntk(function, w, many, many)
    close(kernel(many), expected)
    close(tg.empirical(function, w, outputs="full", method="products")(many), expected)
    kernel(few)
    assert "uses" in str(kernel) or "use)" in str(kernel)


def test_inside_jit_grad_and_vmap(parameters, x):
    kernel = tg.empirical(convolutional, parameters)
    expected = kernel(x)
    close(jax.jit(kernel)(jnp.asarray(x)), expected, 1e-12)
    close(jax.jit(lambda a, b: kernel(a, b))(x[:2], x), expected[:2], 1e-12)
    close(jax.vmap(lambda a: kernel(a[None], x[:3])[0])(jnp.asarray(x)), expected[:, :3], 1e-12)
    close(np.asarray(kernel.diagonal("ntk", x)), np.diag(expected), 1e-12)
    close(jax.jit(lambda a: kernel.diagonal("ntk", a))(x), np.diag(expected), 1e-12)

    def entry(a):
        return kernel(a[None], x[1:2])[0, 0]

    step = 1e-5 * np.ones_like(x[0])
    slope = (entry(x[0] + step) - entry(x[0] - step)) / 2
    np.testing.assert_allclose((jax.grad(entry)(jnp.asarray(x[0])) * step).sum(), slope, rtol=1e-7)


def test_parameters_may_be_traced(parameters, x):
    expected = tg.empirical(convolutional, parameters)(x)
    close(jax.jit(lambda p: tg.empirical(convolutional, p)(jnp.asarray(x)))(parameters), expected, 1e-12)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("outputs", ["mean", "full", "diagonal"])
@pytest.mark.parametrize("method", ["auto", "structured", "jacobian"])
def test_biases_used_several_times_in_single_precision(method, outputs, count, rng):
    """A differential operator of a network, as of physics-informed ones: jaxlib crashed on what its biases left."""
    shapes = {"w": (32, 2), "b": (32,), "v": (count, 32)}
    parameters = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(200, 2)).astype(np.float32)

    def laplacian(p, x):
        def slope(v):
            return lambda z: jax.jvp(lambda y: p["v"] @ jnp.tanh(p["w"] @ y + p["b"]), (z,), (v,))[1]

        return sum(jax.jvp(slope(v), (x,), (v,))[1] for v in jnp.eye(2, dtype=x.dtype))

    found = tg.empirical(laplacian, parameters, method=method, outputs=outputs)(x)
    dense = ntk(laplacian, jax.tree.map(lambda a: a.astype(jnp.float64), parameters), *2 * [x.astype(np.float64)])
    expected = {"mean": np.einsum("nmoo->nm", dense) / count, "diagonal": np.einsum("nmoo->nmo", dense), "full": dense}
    close(found, expected[outputs], 3e-6)
