"""Slow, obvious references for descent in function space: the parameters of a linear model, trained by optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


class LinearModel:
    """f(x)_o = Σ_p φ_po(x) θ_p with one parameter vector for all outputs, or one column for each if `shared` is False.

    Its NTK is Σ_p φ_po(x) φ_pq(x'), `[n, m, o, o]`, or φ(x)·φ(x') for each output, `[n, m]`.
    """

    def __init__(self, inputs, parameters, outputs, *, shared=False, seed=0):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(inputs, parameters))
        self.mixing = rng.normal(size=(parameters, outputs)) if shared else None
        shape = (parameters,) if shared or outputs is None else (parameters, outputs)
        self.start = rng.normal(size=shape)

    def features(self, x):
        basis = np.cos(x @ self.weights) / np.sqrt(self.weights.shape[1])
        return basis if self.mixing is None else basis[:, :, None] * self.mixing

    def kernel(self, x1, x2):
        first, second = self.features(x1), self.features(x2)
        return first @ second.T if self.mixing is None else np.einsum("npo,mpq->nmoq", first, second)

    def __call__(self, x, theta=None):
        theta = self.start if theta is None else theta
        return np.tensordot(self.features(x), theta, axes=([1], [0]))


def trained_by_optax(model, loss, x, y, optimiser, steps, *, order=None, decay=0.0, origin=0.0):
    """θ after every step of `optimiser` on the mean loss of each batch, with the gradient of decay/2 ‖θ − origin‖²."""
    features, y = jnp.asarray(model.features(x)), jnp.asarray(y)

    def cost(theta, rows):
        predictions = jnp.tensordot(features[rows], theta, axes=([1], [0]))
        return jnp.mean(jax.vmap(loss)(predictions, y[rows]))

    @jax.jit
    def step(theta, state, rows):
        gradient = jax.grad(cost)(theta, rows) + decay * (theta - origin)
        update, state = optimiser.update(gradient, state, theta)
        return optax.apply_updates(theta, update), state

    theta = jnp.asarray(model.start)
    state, path = optimiser.init(theta), [model.start]
    everything = np.arange(len(x))
    for number in range(steps):
        theta, state = step(theta, state, everything if order is None else order[number])
        path.append(np.asarray(theta))
    return path


def iteration_radius(steepness, rate, momentum, nesterov):
    """The spectral radius of one step of `optax.sgd` on ½ steepness θ², as a matrix on (θ, velocity)."""
    columns = []
    for theta, velocity in ((1.0, 0.0), (0.0, 1.0)):
        gradient = steepness * theta
        after = gradient + momentum * velocity
        step = gradient + momentum * after if nesterov else after
        columns.append([theta - rate * step, after])
    return np.abs(np.linalg.eigvals(np.array(columns).T)).max()
