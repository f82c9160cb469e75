import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tangency as tg
from tangency.dynamics.learning_rate import learning_rate_bound
from tangency.errors import DivergenceError, InputError, LearningRateWarning, MemoryLimitError
from tests.oracles.descent import LinearModel, iteration_radius, trained_by_optax

N, INPUTS, OUTPUTS, STEPS = 12, 4, 3, 1000


def examples(n=N, seed=0):
    return np.random.default_rng(seed).normal(size=(n, INPUTS))


def squared(prediction, target):
    return jnp.sum((prediction - target) ** 2) / 2


def logistic(prediction, target):
    return jnp.sum(jnp.logaddexp(0.0, prediction) - target * prediction)


def softmax(prediction, label):
    return -jax.nn.log_softmax(prediction)[label]


RNG = np.random.default_rng(1)
TASKS = {
    "squared": (squared, RNG.normal(size=(N, OUTPUTS))),
    "logistic": (logistic, RNG.integers(0, 2, (N, OUTPUTS))),
    "softmax": (softmax, RNG.integers(0, OUTPUTS, N)),
}


PLAIN, MOMENTUM, NESTEROV = (None, False, None, 0.0), (0.9, False, 5, 0.0), (0.8, True, 5, 0.02)


@pytest.mark.parametrize(
    ("cost", "momentum", "nesterov", "batch_size", "decay"),
    [
        ("squared", *PLAIN),
        ("squared", *MOMENTUM),
        ("squared", *NESTEROV),
        ("squared", 0.9, True, None, 0.0),
        ("logistic", *MOMENTUM),
        ("logistic", *NESTEROV),
        ("softmax", *PLAIN),
        ("softmax", *MOMENTUM),
        ("softmax", *NESTEROV),
    ],
)
def test_a_linear_model_and_its_kernel_train_alike(cost, momentum, nesterov, batch_size, decay):
    loss, y = TASKS[cost]
    model, x = LinearModel(INPUTS, 20, OUTPUTS), examples()
    x_new = examples(5, seed=2)
    descent = tg.kernel_descent(
        model.kernel,
        x,
        y,
        cost=cost,
        learning_rate=0.4,
        steps=STEPS,
        momentum=momentum,
        nesterov=nesterov,
        batch_size=batch_size,
        key=None if batch_size is None else 3,
        weight_decay=decay,
        decay_to="zero",
        f0=model,
        record_every=7,
    )
    with jax.enable_x64(True):
        optimiser = optax.sgd(0.4, momentum, nesterov)
        if decay:
            optimiser = optax.chain(optax.add_decayed_weights(decay), optimiser)
        path = trained_by_optax(model, loss, x, y, optimiser, STEPS, order=descent.batches)
    for step in descent.steps:
        np.testing.assert_allclose(descent.train(step), model(x, path[step]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(descent(x_new), model(x_new, path[-1]), rtol=0, atol=1e-12)
    assert descent.steps[-1] == STEPS


def test_decay_to_the_start_is_decay_around_the_first_parameters():
    model, x, y = LinearModel(INPUTS, 20, OUTPUTS), examples(), TASKS["squared"][1]
    with jax.enable_x64(True):
        path = trained_by_optax(
            model, squared, x, y, optax.sgd(0.5, 0.5), 300, decay=0.05, origin=jnp.asarray(model.start)
        )
    descent = tg.kernel_descent(
        model.kernel, x, y, learning_rate=0.5, steps=300, momentum=0.5, weight_decay=0.05, f0=model
    )
    np.testing.assert_allclose(descent.train(), model(x, path[-1]), rtol=0, atol=1e-12)
    long = tg.kernel_descent(model.kernel, x, y, learning_rate=5.0, steps=3000, weight_decay=0.05, f0=model)
    flow = tg.kernel_flow(model.kernel, x, y, ridge=0.05 * N, f0=model)
    np.testing.assert_allclose(long.train(), flow.train(), atol=1e-10)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_matrix_valued_kernels(batch_size):
    model, x, y = LinearModel(INPUTS, 20, OUTPUTS, shared=True), examples(), TASKS["softmax"][1]
    x_new = examples(5, seed=2)
    descent = tg.kernel_descent(
        model.kernel, x, y, cost="softmax", learning_rate=0.3, steps=300, momentum=0.9, f0=model,
        batch_size=batch_size, key=batch_size,
    )  # fmt: skip
    with jax.enable_x64(True):
        path = trained_by_optax(model, softmax, x, y, optax.sgd(0.3, 0.9), 300, order=descent.batches)
    np.testing.assert_allclose(descent.train([0, 150, 300]), [model(x, path[k]) for k in (0, 150, 300)], atol=1e-12)
    np.testing.assert_allclose(descent(x_new, 300), model(x_new, path[-1]), atol=1e-12)


def test_the_empirical_kernel_of_a_linear_model():
    model, x, y = LinearModel(INPUTS, 20, OUTPUTS, shared=True), examples(), TASKS["squared"][1]

    def network(theta, example):
        return (jnp.cos(example @ model.weights) / np.sqrt(20) * theta) @ model.mixing

    kernel = tg.empirical(network, model.start, outputs="full")
    descent = tg.kernel_descent(kernel, x, y, learning_rate=0.2, steps=STEPS, f0=model, record_every=STEPS)
    with jax.enable_x64(True):
        path = trained_by_optax(model, squared, x, y, optax.sgd(0.2), STEPS)
    np.testing.assert_allclose(descent.train(), model(x, path[-1]), rtol=0, atol=1e-12)


def test_coupled_outputs_are_a_matrix_valued_kernel():
    x, y = examples(), TASKS["softmax"][1]
    root = np.random.default_rng(4).normal(size=(OUTPUTS, 2))
    kernel = LinearModel(INPUTS, 20, None).kernel
    coupling = root @ root.T
    arguments = dict(cost="softmax", learning_rate=0.3, steps=50, batch_size=4, key=0)
    coupled = tg.kernel_descent(tg.CoupledKernel(kernel, coupling), x, y, **arguments)
    full = tg.kernel_descent(lambda a, b: kernel(a, b)[:, :, None, None] * coupling, x, y, **arguments)
    np.testing.assert_allclose(coupled(x[:3], [10, 50]), full(x[:3], [10, 50]), atol=1e-13)
    assert coupled.learning_rate_bound == pytest.approx(full.learning_rate_bound, rel=1e-12)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.3, True)])
def test_the_bound_is_where_the_iteration_stops_contracting(momentum, nesterov):
    largest, n, curvature, decay = 7.0, 5, 0.5, 0.1
    bound = learning_rate_bound(largest, n, curvature, momentum=momentum, nesterov=nesterov, decay=decay)
    steepness = curvature * largest / n + decay
    assert iteration_radius(steepness, 0.999 * bound, momentum, nesterov) < 1
    assert iteration_radius(steepness, 1.001 * bound, momentum, nesterov) > 1
    assert learning_rate_bound(0.0, n, curvature) == np.inf


def test_learning_rates_above_the_bound():
    model, x, y = LinearModel(INPUTS, 20, None), examples(), TASKS["squared"][1][:, 0]
    bound = 2 * N / np.linalg.eigvalsh(model.kernel(x, x))[-1]
    below = tg.kernel_descent(model.kernel, x, y, learning_rate=0.999 * bound, steps=50)
    assert below.learning_rate_bound == pytest.approx(bound, rel=1e-12)
    assert below.cost() < below.cost(0)
    with pytest.raises(InputError, match=f"diverges above {bound:.6g}"):
        tg.kernel_descent(model.kernel, x, y, learning_rate=1.001 * bound, steps=50)
    labels = (y > 0).astype(float)
    with pytest.warns(LearningRateWarning, match=f"above the stability bound {4 * bound:.6g} .*sufficient"):
        tg.kernel_descent(model.kernel, x, labels, cost="logistic", learning_rate=4.1 * bound, steps=5)
    with pytest.warns(LearningRateWarning, match="batches"):
        tg.kernel_descent(model.kernel, x, y, learning_rate=1.01 * bound, steps=5, batch_size=6, key=0)
    poisson = tg.kernel_descent(model.kernel, x, labels, cost="poisson", learning_rate=0.1, steps=5, f0=np.full(N, 2.0))
    assert poisson.learning_rate_bound == pytest.approx(bound / np.exp(2.0), rel=1e-12)


def test_divergence_names_the_step():
    kernel, x, y = LinearModel(INPUTS, 20, None).kernel, examples(), TASKS["squared"][1][:, 0]

    def quartic(prediction, target):
        return (prediction - target) ** 4

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LearningRateWarning)
        with pytest.raises(DivergenceError, match=r"descent diverged at step (\d+) of 50 ") as caught:
            tg.kernel_descent(kernel, x, y, cost=quartic, learning_rate=30.0, steps=50)
        descent = tg.kernel_descent(kernel, x, y, cost=quartic, learning_rate=30.0, steps=50, throw=False)
    assert descent.diverged_at == caught.value.step
    assert descent.steps[-1] == caught.value.step - 1
    assert np.isfinite(descent.train(descent.steps)).all()
    assert np.abs(descent.train()).max() < 1e12


@pytest.mark.parametrize("cost", ["squared", "softmax"])
def test_descent_tends_to_flow_at_first_order(cost):
    kernel, x, y = LinearModel(INPUTS, 20, None).kernel, examples(), TASKS[cost][1]
    limit = tg.kernel_flow(kernel, x, y, cost=cost).train(8.0)
    rates = np.array([0.2, 0.1, 0.05])
    errors = []
    for rate in rates:
        descent = tg.kernel_descent(kernel, x, y, cost=cost, learning_rate=rate, steps=round(8.0 / rate))
        assert descent.times[-1] == pytest.approx(8.0)
        errors.append(np.abs(descent.train() - limit).max())
    slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.03)


def test_an_order_of_batches_can_be_given():
    kernel, x, y = LinearModel(INPUTS, 20, None).kernel, examples(), TASKS["squared"][1]
    drawn = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10, batch_size=5, key=jax.random.key(7))
    assert drawn.batches.shape == (10, 5)
    assert len(np.unique(drawn.batches[:2])) == 10
    given = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10, batches=drawn.batches)
    np.testing.assert_array_equal(given.train(drawn.steps), drawn.train(drawn.steps))
    whole = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10, batches=np.tile(np.arange(N), (10, 1)))
    full = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10)
    np.testing.assert_allclose(whole.train(), full.train(), atol=1e-14)
    twice = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=1, batches=[[2, 2]])
    once = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=1, batches=[[2]])
    np.testing.assert_allclose(twice.train(), once.train(), atol=1e-15)


def test_records_and_functions():
    kernel, x, y = LinearModel(INPUTS, 20, None).kernel, examples(), TASKS["squared"][1]
    x_new, values = examples(5, seed=2), np.ones((5, OUTPUTS))
    descent = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10, record_every=4, f0=np.ones((N, OUTPUTS)))
    np.testing.assert_array_equal(descent.steps, [0, 4, 8, 10])
    every = tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10, f0=np.ones((N, OUTPUTS)))
    np.testing.assert_allclose(descent.train(descent.steps), every.train([0, 4, 8, 10]), atol=1e-15)
    assert descent.coefficients([4, 10]).shape == (2, N, OUTPUTS) and descent.cost([4, 10]).shape == (2,)
    np.testing.assert_allclose(descent.cost(), ((descent.train() - y) ** 2).sum() / 2 / N)
    np.testing.assert_allclose(descent(x_new, 4, f0=values) - values, descent.function(4)(x_new), atol=1e-14)
    np.testing.assert_array_equal(descent.train(0), np.ones((N, OUTPUTS)))
    with pytest.raises(InputError, match="step 3 was not recorded"):
        descent.train(3)
    with pytest.raises(InputError, match="step is 0.5"):
        descent.train(0.5)
    with pytest.raises(InputError, match="f0 was given by its values"):
        descent(x_new)
    with pytest.raises(InputError, match="f0 is given twice"):
        tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=1)(x_new, f0=values)
    with pytest.raises(MemoryLimitError, match="a record of 11 steps.*raise record_every"):
        tg.kernel_descent(kernel, x, y, learning_rate=0.3, steps=10, memory=2000)


@pytest.mark.parametrize("n", [1, N])
def test_single_examples_zero_targets_and_no_steps(n):
    kernel, x = LinearModel(INPUTS, 20, None).kernel, examples(n)
    descent = tg.kernel_descent(kernel, x, np.zeros(n), learning_rate=0.5, steps=5)
    np.testing.assert_array_equal(descent.train(descent.steps), 0.0)
    assert tg.kernel_descent(kernel, x, np.ones(n), learning_rate=0.5, steps=0).train().tolist() == [0.0] * n
    theta = kernel(x, x)
    trained = tg.kernel_descent(kernel, x, np.ones(n), learning_rate=0.5, steps=3).train()
    decay = np.linalg.matrix_power(np.eye(n) - 0.5 / n * theta, 3)
    np.testing.assert_allclose(trained, 1 - decay @ np.ones(n), atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"nesterov": True}, "nesterov=True needs a momentum"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"decay_to": "origin"}, "decay_to is 'origin'"),
        ({"record_every": 0}, "record_every is 0"),
        ({"batch_size": 4}, "batch_size is given without a key"),
        ({"batch_size": N + 1, "key": 0}, "batch_size is 13"),
        ({"key": 0}, "full batches draw nothing"),
        ({"batches": np.zeros((2, 3), int)}, r"batches has shape \(2, 3\)"),
        ({"batches": np.full((4, 1), N)}, "batches holds 12 to 12"),
        ({"batches": np.zeros((4, 1), int), "batch_size": 2}, "batches is given, and batch_size or key too"),
        ({"cost": "mse"}, "cost is 'mse'"),
        ({"f0": np.ones((N, 2))}, "f0 has 2 outputs; the function trained has 1"),
        ({"f0": lambda x: x[0] @ np.ones(9)}, "f0 could not be called .* use jax.vmap"),
        ({"outputs": 2}, "outputs is 2, but y is a vector"),
    ],
)
def test_bad_arguments(arguments, message):
    kernel, x, y = LinearModel(INPUTS, 20, None).kernel, examples(), TASKS["squared"][1][:, 0]
    with pytest.raises(InputError, match=message):
        tg.kernel_descent(kernel, x, y, **{"learning_rate": 0.1, "steps": 4, **arguments})
