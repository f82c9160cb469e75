"""`tangency.verify` against loops written out by hand, step by step, and against the other calls that say the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import tangency as tg
from tangency.dynamics import PowerLaw
from tangency.dynamics.matrix_training import MatrixTraining
from tangency.dynamics.verification import (
    EMPIRICAL_DESCENT,
    EMPIRICAL_FLOW,
    LIMIT_DESCENT,
    LIMIT_FLOW,
    LINEARISED,
    PREDICTIONS,
)
from tangency.errors import InputError, MemoryLimitError, NonFiniteError
from tests.oracles.jacobian import ntk

WIDTHS, STEPS, RATE = (8, 32), 30, 0.3
RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(2, 3)), RNG.normal(size=(6, 2))


def network(width):
    """Two outputs, one hidden layer, no biases; rates 1/3 and 1/width are the variances."""

    def init(key):
        first, second = jax.random.split(key)
        hidden = jax.random.normal(first, (width, 3)) / jnp.sqrt(3.0)
        return hidden, jax.random.normal(second, (2, width)) / jnp.sqrt(float(width))

    return init, apply


def apply(parameters, x):
    return parameters[1] @ jnp.tanh(parameters[0] @ x)


def trained_by_hand(width, seed, rate, steps):
    """Parameters and outputs [N + M, o] after every step, and the rates."""
    rates = (1 / 3, 1 / width)
    parameters = network(width)[0](jax.random.key(seed))
    with jax.enable_x64(True):
        parameters = [p.astype(jnp.float64) for p in parameters]
        everything, y = jnp.asarray(np.concatenate([X, X_TEST])), jnp.asarray(Y)

        def outputs(p):
            return jax.vmap(lambda x: apply(p, x))(everything)

        def loss(p):
            return jnp.sum((outputs(p)[:6] - y) ** 2) / 12

        gradient, path = jax.jit(jax.grad(loss)), [(parameters, np.asarray(outputs(parameters)))]
        for _ in range(steps):
            parameters = [p - rate * r * g for p, r, g in zip(parameters, rates, gradient(parameters), strict=True)]
            path.append((parameters, np.asarray(outputs(parameters))))
        return path, rates


@pytest.fixture(scope="module")
def result():
    return tg.verify(network, X, Y, x_test=X_TEST, widths=WIDTHS, seeds=(3, 5), learning_rate=RATE, steps=STEPS)


def test_the_network_is_trained_as_by_hand(result):
    path, rates = trained_by_hand(32, 5, RATE, STEPS)
    run = result.run(32, 5)
    by_hand = np.stack([path[step][1] for step in result.steps])
    np.testing.assert_allclose(run.network, by_hand, rtol=0, atol=1e-12)
    with jax.enable_x64(True):
        before, after = (
            np.trace(ntk(apply, tuple(path[step][0]), jnp.asarray(X), jnp.asarray(X), rates), axis1=2, axis2=3) / 2
            for step in (0, STEPS)
        )
    limit = tg.limit(network(32))(X)
    assert run.limit_error == pytest.approx(np.linalg.norm(before - limit) / np.linalg.norm(limit), rel=1e-6)
    assert run.drift[-1] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-6)
    assert run.drift[0] == 0


def test_the_linearised_network_is_descent_with_its_own_kernel(result):
    for runs in result.runs:
        for run in runs:
            np.testing.assert_allclose(run.predicted[LINEARISED], run.predicted[EMPIRICAL_DESCENT], rtol=0, atol=1e-12)


def test_its_own_kernel_is_the_one_of_explicit_jacobians(result):
    """f ← f − (η/N) Θ (f − y), written out."""
    path, rates = trained_by_hand(8, 3, RATE, 0)
    everything = np.concatenate([X, X_TEST])
    with jax.enable_x64(True):
        theta = ntk(apply, tuple(path[0][0]), jnp.asarray(everything), jnp.asarray(X), rates)
    f = path[0][1]
    expected = [f]
    for _ in range(STEPS):
        f = f - RATE / 6 * np.einsum("nmop,mp->no", theta, f[:6] - Y)
        expected.append(f)
    found = result.run(8, 3).predicted[EMPIRICAL_DESCENT]
    np.testing.assert_allclose(found, np.stack(expected)[result.steps], rtol=0, atol=1e-6)


def test_the_limit_predicts_what_the_other_calls_do(result):
    """`kernel_descent` step by step and `kernel_flow` in closed form, from the network's own start."""
    run, kernel = result.run(32, 3), tg.limit(network(32))
    start = run.network[0]
    descent = tg.kernel_descent(kernel, X, Y, learning_rate=RATE, steps=STEPS, f0=start[:6])
    np.testing.assert_allclose(run.predicted[LIMIT_DESCENT][:, :6], descent.train(result.steps), rtol=0, atol=1e-11)
    found = descent(X_TEST, step=result.steps, f0=start[6:])
    np.testing.assert_allclose(run.predicted[LIMIT_DESCENT][:, 6:], found, rtol=0, atol=1e-11)
    flow = tg.kernel_flow(kernel, X, Y - start[:6])
    times = RATE * result.steps
    np.testing.assert_allclose(run.predicted[LIMIT_FLOW][:, :6], start[:6] + flow.train(times), rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.predicted[LIMIT_FLOW][:, 6:], start[6:] + flow(X_TEST, t=times), rtol=0, atol=1e-11)


def test_a_model_without_hidden_layers_is_its_own_limit():
    """Linear in its parameters: all trajectories of descent are one, the kernel is the limit and stands still."""

    def linear(width):
        return lambda key: jax.random.normal(key, (3, 2)) / jnp.sqrt(3.0), lambda p, x: x @ p

    result = tg.verify(linear, X, Y, x_test=X_TEST, widths=[4], seeds=1, steps=20)
    for name in (LINEARISED, EMPIRICAL_DESCENT, LIMIT_DESCENT):
        assert result.gap(name).max() < 1e-7  # the drawn 1/√3 is a float32 number
        assert result.gap(name, part="test").max() < 1e-7
    assert result.limit_error.max() < 1e-6 and result.drift.max() < 1e-12
    assert result.within_band.all()
    assert "is lazy" in result.verdict()[0]
    assert result.limit_error_fit is None
    assert result.learning_rate == pytest.approx(result.stable_rate / 4)


def test_distances_are_shares_of_the_initial_error(result):
    run = result.run(8, 5)
    start = np.sqrt(np.mean((run.network[0, :6] - Y) ** 2))
    difference = run.network[:, 6:] - run.predicted[LIMIT_FLOW][:, 6:]
    np.testing.assert_allclose(
        result.gap(LIMIT_FLOW, part="test")[0, 1], np.sqrt(np.mean(difference**2, axis=(1, 2))) / start, rtol=1e-12
    )
    np.testing.assert_allclose(result.error(None, width=8, seed=5)[0], start, rtol=1e-12)
    assert result.discretisation("empirical").shape == (2, 2, len(result.steps))
    assert (result.discretisation()[:, :, 0] == 0).all()


def test_divergence_names_the_step():
    path, _ = trained_by_hand(8, 0, 60.0, 40)
    losses = np.array([np.sum((f[:6] - Y) ** 2) / 12 for _, f in path])
    with np.errstate(invalid="ignore"):
        first = int(np.argmax(~(losses <= 1e4 * losses[0])))
    assert first > 0
    result = tg.verify(network, X, Y, widths=[8], seeds=1, learning_rate=60.0, steps=40)
    run = result.run(8, 0)
    assert run.diverged_at == first
    assert np.isnan(run.network[result.steps >= first]).all()
    assert np.isfinite(run.network[result.steps < first]).all()
    text = " ".join(result.verdict())
    assert f"diverged at step {first}" in text and "2N/λ_max" in text
    json.dumps(result.to_dict(), allow_nan=False)


def test_single_precision_and_flax():
    def make(width):
        def build(key):
            rngs = nnx.Rngs(key)
            return nnx.Sequential(nnx.Linear(3, width, rngs=rngs), jnp.tanh, nnx.Linear(width, 1, rngs=rngs))

        return build

    seen = []
    result = tg.verify(
        make, X.astype(np.float32), Y[:, 0], widths=[8], seeds=1, steps=5, progress=lambda *units: seen.append(units)
    )
    np.testing.assert_allclose(result.gap(LINEARISED), result.gap(EMPIRICAL_DESCENT), atol=1e-5)
    assert 0 < result.gap(LINEARISED).max() < 1
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_results_are_data(result, tmp_path):
    result.save(tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz", allow_pickle=False) as arrays:
        summary = json.loads(str(arrays["summary"]))
        assert arrays["network"].shape == (2, 2, len(result.steps), 8, 2)
        np.testing.assert_array_equal(arrays[EMPIRICAL_FLOW][1, 0], result.run(32, 3).predicted[EMPIRICAL_FLOW])
    assert summary["widths"] == [8, 32] and set(summary["largest_gap"]) == set(PREDICTIONS)
    assert summary["verdict"] == list(result.verdict())
    assert summary["fits"]["limit_error"]["slope"] == pytest.approx(result.limit_error_fit.slope)


def test_power_law_agrees_with_scipy():
    widths = np.array([16, 64, 256])
    noise = np.random.default_rng(1).normal(size=(3, 4))
    values = 3 * widths[:, None] ** -0.5 * np.exp(0.1 * noise)
    x = np.repeat(np.log(widths), 4)
    expected = stats.linregress(x, np.log(values).ravel())
    fit = PowerLaw.fit(widths, values)
    half = stats.t.ppf(0.975, 10) * expected.stderr
    assert (fit.slope, fit.low, fit.high) == pytest.approx(
        (expected.slope, expected.slope - half, expected.slope + half), rel=1e-12
    )
    low, high = fit.band(np.array([1.0]))
    half = stats.t.ppf(0.975, 10) * expected.intercept_stderr
    np.testing.assert_allclose(np.log([low[0], high[0]]), expected.intercept + half * np.array([-1, 1]), rtol=1e-10)
    exact = PowerLaw.fit(widths, 2.0 * widths[:, None] ** -1.0)
    np.testing.assert_allclose(exact(widths), 2 / widths, rtol=1e-12)
    assert PowerLaw.fit(widths[:2], values[:2, :1]).high == np.inf
    assert PowerLaw.fit(widths[:1], values[:1]) is None
    assert PowerLaw.fit(widths, np.zeros((3, 2))) is None


@pytest.mark.parametrize("rank", [6, 3])
def test_matrix_training_where_eigenvalues_vanish(rank):
    rng = np.random.default_rng(rank)
    features = rng.normal(size=(8, rank))
    matrix, y, start = features @ features.T, rng.normal(size=(6, 2)), rng.normal(size=(8, 2))
    training = MatrixTraining(matrix[:6, :6], matrix[6:, :6])
    rate, steps = 0.5 * training.bound, np.array([0.0, 1.0, 7.0])
    f, expected = start, [start]
    for step in range(1, 8):
        f = f - rate / 6 * matrix[:, :6] @ (f[:6] - y)
        if step in steps:
            expected.append(f)
    np.testing.assert_allclose(training.descent(start, y, rate, steps), expected, rtol=0, atol=1e-11)
    small = training.descent(start, y, rate / 4096, steps * 4096)
    np.testing.assert_allclose(training.flow(start, y, rate, steps), small, rtol=0, atol=1e-2)
    late = training.flow(start, y, rate, np.array([1e12]))
    assert np.isfinite(late).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": []}, "widths is"),
        ({"widths": (8, 8)}, "widths is"),
        ({"widths": 64}, "widths is"),
        ({"seeds": 0}, "seeds is"),
        ({"seeds": (-1,)}, "seeds is"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is"),
        ({"band": np.inf}, "band is"),
        ({"x_test": np.ones((2, 4))}, "an example of x_test has shape"),
        ({"y": Y[:5]}, "y has shape"),
        ({"make_model": 3}, "make_model"),
        ({"make_model": lambda width: width}, r"make_model\(8\) returned int"),
        ({"y": Y[:, 0]}, "y has 1 outputs for each example, the network has 2"),
    ],
)
def test_refusals(change, words):
    arguments = {"make_model": network, "x": X, "y": Y, "widths": [8], "seeds": 1, "steps": 2} | change
    with pytest.raises(InputError, match=words):
        tg.verify(**arguments)


def test_data_that_is_not_finite_and_too_little_memory():
    with pytest.raises(NonFiniteError, match="x is not finite: row 2"):
        tg.verify(network, np.where(np.arange(6)[:, None] == 2, np.nan, X), Y, widths=[8], seeds=1)
    with pytest.raises(MemoryLimitError, match="take fewer examples"):
        tg.verify(network, X, Y, widths=[8], seeds=1, memory=5000)


def test_unknown_names(result):
    with pytest.raises(InputError, match="prediction: expected one of"):
        result.gap("guess")
    with pytest.raises(InputError, match="no run of width 9"):
        result.run(9, 3)
    with pytest.raises(InputError, match="kernel: expected"):
        result.discretisation("nngp")
