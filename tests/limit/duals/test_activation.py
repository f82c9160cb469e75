"""What the analysis of a function finds, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special, stats

from tangency.errors import AccuracyError, InputError, NonFiniteError, UnsupportedModelError
from tangency.limit.duals import Activation, dual, mean, required_order


@pytest.mark.parametrize(
    ("description", "spellings"),
    [
        (
            "0.5·u + 0.5·|u|",
            [
                lambda u: jnp.maximum(u, 0),
                lambda u: jnp.where(u > 0, u, 0),
                lambda u: (u + jnp.abs(u)) / 2,
                lambda u: u * (u > 0),
                lambda u: 0.5 * u + 0.5 * jnp.sqrt(u * u),
                lambda u: -jnp.minimum(-u, 0.0),
                jax.nn.relu,
            ],
        ),
        ("0.505·u + 0.495·|u|", [jax.nn.leaky_relu, lambda u: jnp.maximum(u, 0.01 * u)]),
        ("0.5 + 0.5·sign u", [lambda u: jnp.heaviside(u, 0.0), lambda u: jnp.where(u >= 0, 1.0, 0.0)]),
        ("u^3", [lambda u: u * u * u, lambda u: u**3, lambda u: jnp.power(u, 3)]),
        (
            "0.5·u + 0.5·u·erf(0.707107·u)",
            [
                lambda u: jax.nn.gelu(u, approximate=False),
                lambda u: u * stats.norm.cdf(u),
                lambda u: 0.5 * u * jax.lax.erfc(-u / jnp.sqrt(2.0)),
                lambda u: u * special.ndtr(u),
            ],
        ),
        ("0.25 + u − 0.25·cos(4·u)", [lambda u: u + jnp.sin(2.0 * u) ** 2 / 2.0]),
        ("exp(0.693147·u)", [lambda u: 2.0**u, jnp.exp2]),
        ("exp(−0.5·u²)", [lambda u: jnp.exp(-u * u / 2.0), lambda u: jnp.exp(-0.5 * jnp.square(u))]),
        ("u + (−1 − u)_+ − (u − 1)_+", [jax.nn.hard_tanh, lambda u: jnp.clip(u, -1, 1)]),
        ("u_+ − (u − 6)_+", [jax.nn.relu6, lambda u: jnp.minimum(jnp.maximum(u, 0.0), 6.0)]),
        ("0", [lambda u: 0.0 * u, lambda u: jnp.zeros_like(u)]),
        ("u", [lambda u: u, lambda u: jax.nn.relu(u) - jax.nn.relu(-u)]),
    ],
)
def test_every_spelling_is_one_closed_form(description, spellings):
    for spelling in spellings:
        assert Activation(spelling).describe() == description


@pytest.mark.parametrize(
    ("function", "description"),
    [
        (jnp.tanh, "numerical: Hermite series"),
        (jax.nn.softplus, "numerical: Hermite series"),
        (jax.nn.elu, "numerical: Hermite series, kinks at 0"),
        (lambda u: jnp.tanh(jnp.clip(u, -3, 3)), "numerical: Hermite series, kinks at −3, 3"),
        (lambda u: jnp.maximum(jnp.tanh(u), 0.5), "numerical: Hermite series, kinks at 0.549306"),
    ],
)
def test_what_has_no_closed_form_names_its_kinks(function, description):
    f = Activation(function)
    assert f.span is None
    assert f.describe() == description


def test_latex(activation):
    assert activation("relu").latex() == r"0.5 \, u + 0.5 \, |u|"
    assert activation("gelu").latex() == r"0.5 \, u + 0.5 \, u \, \operatorname{erf}(0.707107 u)"
    assert activation("tanh").latex() == r"\operatorname{tanh}(u)"


def test_derivatives_are_those_of_automatic_differentiation(activation):
    assert activation("relu").derivative.describe() == "0.5 + 0.5·sign u"
    assert activation("step").derivative.describe() == "0"
    assert activation("relu").derivative is activation("relu").derivative
    straight_through = Activation(lambda u: u + jax.lax.stop_gradient(jnp.sign(u) - u))
    assert straight_through.describe() == "sign u"
    assert straight_through.derivative.describe() == "1"
    custom = jax.custom_vjp(jnp.sign)
    custom.defvjp(lambda u: (jnp.sign(u), None), lambda _, cotangent: (cotangent,))
    assert Activation(custom).describe() == "sign u"
    assert Activation(custom).derivative.describe() == "1"


def test_activations_compare_by_identity():
    f, g = Activation(jnp.tanh), Activation(jnp.tanh)
    assert f == f and f != g and len({f, g, f}) == 2


def test_analysis_is_in_float64_under_a_jit_of_any_precision(activation):
    @jax.jit
    def value(a):
        f = Activation(lambda u: jax.nn.gelu(u, approximate=False))
        assert f.span is not None
        return mean(f, a)

    assert value(np.float32(1.0)).dtype == np.float32
    assert float(value(np.float32(1.0))) == pytest.approx(0.5 / np.sqrt(np.pi), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "parameters", "reason"),
    [
        (jnp.round, 0, "it rounds"),
        (jnp.floor, 0, "it rounds"),
        (lambda u: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), u), 0, "it loops or branches"),
        (lambda u, p: jnp.maximum(u, p), 1, "depends on a parameter"),
        (lambda u: jnp.stack([u, u]), 0, "one number to one number"),
    ],
)
def test_refusals(function, parameters, reason):
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        Activation(function, parameters=parameters, label="my activation")
    assert "my activation" in str(caught.value)


def test_a_kink_at_zero_may_have_parameters_in_its_slopes():
    f = Activation(lambda u, p: jnp.where(u > 0, u, p * u), parameters=1)
    leaky = Activation(lambda u: jnp.where(u > 0, u, 0.3 * u))
    with jax.enable_x64(True):
        value = float(dual(f, f, 1.0, 2.0, 0.8, (0.3,), (0.3,), order=512))
        assert value == pytest.approx(float(dual(leaky, leaky, 1.0, 2.0, 0.8)), rel=1e-9)


def test_functions_that_are_not_finite():
    with pytest.raises(NonFiniteError, match=r"logarithm is not finite at u = −?-?\d"):
        Activation(jnp.log, label="logarithm")
    tanh, pole = Activation(jnp.tanh), Activation(lambda u: 1.0 / u, label="pole")
    with pytest.raises(AccuracyError, match="pole at variance 1"):
        required_order(pole, tanh, np.array([1.0]))


def test_orders_grow_with_the_variance_until_they_are_refused(activation):
    tanh, relu, cubic = (activation(name) for name in ("tanh", "relu", "cubic"))
    orders = [required_order(tanh, tanh, np.array([0.1, variance])) for variance in (1.0, 10.0, 50.0)]
    assert orders == sorted(orders) and orders[0] < orders[-1]
    assert required_order(relu, relu, np.array([1e4])) == 0
    assert required_order(cubic, tanh, np.array([5.0])) == 0
    with pytest.raises(AccuracyError, match=r"tanh at variance 1e\+05: .* relative error of \d"):
        required_order(tanh, tanh, np.array([1.0, 1e5]))


def test_wrong_arguments(activation):
    tanh = activation("tanh")
    with pytest.raises(InputError, match="takes 0 parameters, got 1"):
        mean(tanh, 1.0, (2.0,))
    with pytest.raises(
        InputError, match=r"dual: .* must be scalars, got shapes \(2,\), \(\), \(\); lift it with jax.vmap"
    ):
        dual(tanh, tanh, np.ones(2), 1.0, 0.5)
    with pytest.raises(InputError, match="order must be at least 1"):
        dual(tanh, tanh, 1.0, 1.0, 0.5, order=0)
    with pytest.raises(InputError, match="finite and not negative"):
        required_order(tanh, tanh, np.array([1.0, -1.0]))
