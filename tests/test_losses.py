import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import losses
from tangency.errors import InputError, NonFiniteError
from tangency.losses import BatchedLoss, as_loss, check_callable, check_loss_targets

F = np.random.default_rng(0).normal(size=(6, 3)) * 2
SIGMA = 1 / (1 + np.exp(-F))
SOFTMAX = np.exp(F) / np.exp(F).sum(axis=1, keepdims=True)
REAL = np.random.default_rng(1).normal(size=(6, 3))
BITS = (REAL > 0).astype(float)
LABELS = np.array([0, 1, 2, 2, 0, 1])
R = F - REAL
CASES = [
    ("squared", REAL, (R**2 / 2).sum(axis=1), R),
    ("softmax", LABELS, -np.log(SOFTMAX[np.arange(6), LABELS]), SOFTMAX - np.eye(3)[LABELS]),
    ("softmax", SOFTMAX[::-1], -(SOFTMAX[::-1] * np.log(SOFTMAX)).sum(axis=1), SOFTMAX - SOFTMAX[::-1]),
    ("logistic", BITS, -(BITS * np.log(SIGMA) + (1 - BITS) * np.log(1 - SIGMA)).sum(axis=1), SIGMA - BITS),
    ("huber", REAL, np.where(abs(R) <= 1, R**2 / 2, abs(R) - 0.5).sum(axis=1), np.clip(R, -1, 1)),
    (
        "hinge",
        2 * BITS - 1,
        np.maximum(0, 1 - (2 * BITS - 1) * F).sum(axis=1),
        np.where((2 * BITS - 1) * F < 1, 1 - 2 * BITS, 0),
    ),
    ("quantile", REAL, abs(R).sum(axis=1) / 2, np.sign(R) / 2),
    (losses.quantile(0.9), REAL, np.maximum(-0.9 * R, 0.1 * R).sum(axis=1), np.where(R < 0, -0.9, 0.1)),
    (
        losses.huber(0.5),
        REAL,
        np.where(abs(R) <= 0.5, R**2 / 2, (abs(R) - 0.25) / 2).sum(axis=1),
        np.clip(R, -0.5, 0.5),
    ),
    ("poisson", 3 * BITS, (np.exp(F) - 3 * BITS * F).sum(axis=1), np.exp(F) - 3 * BITS),
]


@pytest.mark.parametrize(("cost", "y", "values", "derivatives"), CASES)
def test_values_and_derivatives_by_hand(cost, y, values, derivatives):
    loss = as_loss(cost)
    y = check_loss_targets(loss, y, 6)
    batched = BatchedLoss(loss, scalar=False)
    with jax.enable_x64(True):
        np.testing.assert_allclose(batched.value(F, y), values, rtol=1e-12)
        np.testing.assert_allclose(batched.derivative(F, y), derivatives, rtol=1e-12, atol=1e-14)
        largest = np.linalg.eigvalsh(batched.hessian(F, y)).max()
    if loss.curvature is not None:
        assert largest <= loss.curvature * (1 + 1e-12)


def test_the_derivative_of_softmax_keeps_its_digits_near_certainty():
    with jax.enable_x64(True):
        d = BatchedLoss(as_loss("softmax"), scalar=False).derivative(np.array([[40.0, 0.0]]), np.array([0]))
    np.testing.assert_allclose(d[0], np.exp(-40.0) * np.array([-1, 1]), rtol=1e-12)


@pytest.mark.parametrize(
    ("kinked", "smooth", "target"),
    [
        (losses.hinge(), losses.hinge(0.4), 1.0),
        (losses.hinge(), losses.hinge(0.4), -1.0),
        (losses.quantile(0.8), losses.quantile(0.8, 0.4), 0.3),
    ],
)
def test_smoothing_is_the_moreau_envelope(kinked, smooth, target):
    grid = np.linspace(-6, 6, 120_001)
    with jax.enable_x64(True):
        on_grid = np.asarray(jax.vmap(lambda p: kinked(p, target))(grid))
        for f in (-3.0, 0.31, 0.45, 0.9, 1.0, 1.2, 3.0):
            envelope = (on_grid + (grid - f) ** 2 / (2 * 0.4)).min()
            assert float(smooth(f, target)) == pytest.approx(envelope, abs=1e-8)
    assert smooth.smooth and smooth.curvature == pytest.approx(2.5) and not kinked.smooth


@pytest.mark.parametrize(
    ("cost", "y", "message"),
    [
        ("softmax", np.array([0, -1, 1]), "labels are integers from 0 up: row 1 of y has -1"),
        ("softmax", np.array([0.0, 1.0, 2.0]), "softmax takes integer labels"),
        ("softmax", np.full((3, 2), 0.6), "each row must be a distribution.*row 0"),
        ("logistic", np.array([0.0, 1.0, -1.0]), "the logistic loss takes 0, 1 or a probability: row 2"),
        ("hinge", np.array([0.0, 1.0, -1.0]), "the hinge loss takes −1 and 1: row 0"),
        ("poisson", np.array([0.0, -1.0, 1.0]), "counts ≥ 0: row 1"),
        ("squared", np.ones((3, 2, 2)), r"y has shape \(3, 2, 2\)"),
        ("squared", np.ones(4), r"y has shape \(4,\); the 3 examples"),
        ("squared", np.array(["a", "b", "c"]), "y has dtype"),
    ],
)
def test_targets_that_a_loss_does_not_take(cost, y, message):
    with pytest.raises(InputError, match=message):
        check_loss_targets(as_loss(cost), y, 3)


def test_bad_losses():
    for build in (lambda: losses.huber(0.0), lambda: losses.quantile(1.0), lambda: losses.hinge(-1.0)):
        with pytest.raises(InputError):
            build()
    for cost in ("mse", 3):
        with pytest.raises(InputError, match="cost is"):
            as_loss(cost)
    with pytest.raises(NonFiniteError, match="y is not finite: row 1"):
        check_loss_targets(as_loss("squared"), [1.0, np.nan], 2)
    y = np.ones((2, 3))
    with pytest.raises(InputError, match=r"returned shape \(3,\).*one number is needed: sum it"):
        check_callable(as_loss(lambda f, y: (f - y) ** 2), False, y, 3)
    with pytest.raises(InputError, match="could not be called on a prediction of 2 outputs"):
        check_callable(as_loss(lambda f, y: jnp.sum(f - y)), False, y, 2)
