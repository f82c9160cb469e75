"""Slow, obvious references for training with a kernel: networks in parameter space, matrix exponentials, refits."""

import numpy as np
import scipy.linalg

from tangency.kernels.base import Kernel


class FeatureKernel(Kernel):
    """A model that is linear in its parameters, so that every statement about its training can be checked by hand.

    f(x) = Σ_p φ_p(x) θ_p with θ ~ N(0, diag(scale²)) has K = Σ_p scale_p² φ_p φ_p', and gradient flow on θ has
    Θ = Σ_p φ_p φ_p'.
    """

    def __init__(self, features: int, inputs: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(inputs, features))
        self.phases = rng.uniform(0, 2 * np.pi, size=features)
        self.scale = rng.uniform(0.3, 1.5, size=features)

    def features(self, x):
        return np.cos(x @ self.weights + self.phases) / np.sqrt(len(self.phases) / 2)

    def evaluate(self, kind, x1, x2=None, *, progress=None):
        first, second = self.features(x1), self.features(x1 if x2 is None else x2)
        theta = first @ second.T
        prior = (first * self.scale) @ (second * self.scale).T
        if x2 is None:
            theta, prior = (theta + theta.T) / 2, (prior + prior.T) / 2
        if progress is not None:
            progress(1, 1)
        return {"ntk": theta, "nngp": prior, "both": np.stack([prior, theta])}[kind]

    def diagonal(self, kind, x):
        squares = self.features(x) ** 2
        theta, prior = squares.sum(axis=1), squares @ self.scale**2
        return {"ntk": theta, "nngp": prior, "both": np.stack([prior, theta])}[kind]


def coefficients(theta, y, ridge, t):
    """α_t of ∂_t α = (y − (Θ + λI) α) / N from α_0 = 0, by the exponential of the augmented generator."""
    n = len(theta)
    system = (theta + ridge * np.eye(n)) / n
    columns = []
    for target in y.reshape(n, -1).T:
        generator = np.zeros((n + 1, n + 1))
        generator[:n, :n], generator[:n, n] = -system, target / n
        columns.append(scipy.linalg.expm(generator * t)[:n, n])
    return np.stack(columns, axis=1).reshape(y.shape)


def trained_parameters(features, y, ridge, t, start):
    """θ_t of gradient flow on 1/(2N) ‖Φθ − y‖² + λ/(2N) ‖θ − θ_0‖², by the exponential of the augmented generator."""
    n, p = features.shape
    generator = np.zeros((p + 1, p + 1))
    generator[:p, :p] = -(features.T @ features + ridge * np.eye(p)) / n
    generator[:p, p] = (features.T @ y + ridge * start) / n
    return (scipy.linalg.expm(generator * t) @ np.append(start, 1.0))[:p]


def flow_map(kernel, x, x_new, ridge, t):
    """The matrix M with f_t(x_new) = M (f_0(x_new), f_0(x)) when y = 0, column by column of f_0."""
    n = len(x)
    theta, cross = kernel.evaluate("ntk", x), kernel.evaluate("ntk", x_new, x)
    if np.isinf(t):
        response = [np.linalg.solve(theta + ridge * np.eye(n), -column) for column in np.eye(n)]
    else:
        response = [coefficients(theta, -column, ridge, t) for column in np.eye(n)]
    return np.hstack([np.eye(len(x_new)), cross @ np.stack(response, axis=1)])


def ensemble_covariance(kernel, x, x_new, ridge, t):
    """The covariance of f_t(x_new) over f_0 ~ GP(0, K), pushed through `flow_map`."""
    prior = kernel.evaluate("nngp", np.concatenate([x_new, x]))
    transport = flow_map(kernel, x, x_new, ridge, t)
    return transport @ prior @ transport.T


def leave_one_out(matrix, y, ridge, centred=False):
    """Predictions of n kernel ridge regressions, each refitted without one example; `centred` refits the mean too."""
    predictions = np.empty_like(y)
    for i in range(len(y)):
        rest = np.delete(np.arange(len(y)), i)
        mean = y[rest].mean(axis=0) if centred else np.zeros(y.shape[1:])
        system = matrix[np.ix_(rest, rest)] + ridge * np.eye(len(rest))
        predictions[i] = mean + matrix[i, rest] @ np.linalg.solve(system, y[rest] - mean)
    return predictions


def with_spectrum(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors, and those eigenvectors."""
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    matrix = (vectors * eigenvalues) @ vectors.T
    return (matrix + matrix.T) / 2, vectors
