"""Complex networks, as wave functions are: the structured contraction against explicit Jacobians, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tangency as tg
from tests.empirical.checks import close
from tests.oracles.jacobian import ntk

pytestmark = pytest.mark.usefixtures("double_precision")


def boltzmann_machine(p, x):
    return jnp.sum(jnp.log(jnp.cosh(p["w"] @ x + p["b"]))) + p["a"] @ x


def two_outputs(p, x):
    h = jnp.tanh(p["w"] @ x + p["b"])
    return {"value": p["v"] @ h, "size": jnp.abs(p["v"] @ jnp.sin(p["w"] @ x))}


def convolutional(p, x):
    h = jnp.sin(jax.lax.conv_general_dilated(x.astype(complex)[None], p["k"], (1, 1), "SAME")[0])
    h = h + jnp.sin(jax.lax.conv_general_dilated(h[None], p["l"], (1, 1), "SAME")[0])
    return p["v"] @ h.mean((1, 2))


def recurrent(p, x):
    def step(h, entry):
        return jnp.sin(p["w"] @ h + p["u"] * entry + p["b"]), None

    return p["v"] @ jax.lax.scan(step, jnp.zeros(4, complex), x)[0]


def both_ways(p, x):
    return p["w"].T @ jnp.conj(jnp.sin(p["w"] @ x))


def conjugated(p, x):
    return jnp.conj(p["w"]) @ jnp.sin(p["w"].T @ (p["b"] * x[:1]))


def tokens(p, x):
    return (p["v"] @ jnp.sin(p["w"] @ x.reshape(2, 4))).mean(1)


NETWORKS = {
    boltzmann_machine: ({"w": (5, 4), "b": (5,), "a": (4,)}, (4,), {"w", "b", "a"}),
    two_outputs: ({"w": (5, 4), "b": (5,), "v": (2, 5)}, (4,), {"w", "b", "v"}),
    convolutional: ({"k": (3, 2, 3, 3), "l": (3, 3, 3, 3), "v": (2, 3)}, (2, 4, 4), {"k", "l", "v"}),
    recurrent: ({"w": (4, 4), "u": (4,), "b": (4,), "v": (2, 4)}, (5,), {"w", "b", "v"}),
    both_ways: ({"w": (4, 4)}, (4,), {"w"}),
    conjugated: ({"w": (4, 3), "b": (4,)}, (4,), set()),
    tokens: ({"w": (6, 2), "v": (3, 6)}, (8,), {"w", "v"}),
}
"""The shapes of parameters and of an example, and the parameters that meet signals by known rules."""


def drawn(network, rng):
    shapes, example, _ = NETWORKS[network]
    parameters = {k: jnp.asarray(0.3 * (rng.normal(size=s) + 1j * rng.normal(size=s))) for k, s in shapes.items()}
    return parameters, rng.normal(size=(4, *example))


@pytest.fixture(params=NETWORKS, ids=lambda network: network.__name__)
def case(request, rng):
    return request.param, *drawn(request.param, rng), NETWORKS[request.param][2]


def phases(p, x):
    h = p["w"] @ x
    return p["v"] @ jnp.exp(1j * h) + p["v"] @ jnp.tanh(h)


def rotated(p, x):
    h = jax.lax.conv_general_dilated((1 + 2j) * x[None], p["k"] + 0j, (1, 1), "SAME")[0]
    return p["v"] @ jnp.sin(h + p["b"][:, None, None]).mean((1, 2))


def recurrent_phases(p, x):
    def step(h, entry):
        return jnp.sin(1j * (p["w"] @ h) + p["u"] * entry + p["b"]), None

    return p["v"] @ jax.lax.scan(step, jnp.zeros(4, complex), x)[0]


def rows(p, x):
    return p["v"] @ jnp.sin(1j * p["t"].astype(complex)[x.astype(int) % 3]).sum(0) + p["v"] @ x[:4]


REAL = {
    phases: ({"w": (5, 4), "v": (2, 5)}, (4,)),
    rotated: ({"k": (3, 2, 3, 3), "b": (3,), "v": (2, 3)}, (2, 4, 4)),
    recurrent_phases: ({"w": (4, 4), "u": (4,), "b": (4,), "v": (2, 4)}, (5,)),
    rows: ({"t": (3, 4), "v": (2, 4)}, (5,)),
}


@pytest.mark.parametrize("method", ["auto", "structured"])
@pytest.mark.parametrize("outputs", ["mean", "full"])
@pytest.mark.parametrize("network", REAL)
def test_real_parameters_that_meet_complex_signals(network, outputs, method, rng):
    shapes, example = REAL[network]
    parameters = {k: jnp.asarray(0.3 * rng.normal(size=s)) for k, s in shapes.items()}
    x = 2.0 * rng.normal(size=(4, *example))
    dense = ntk(network, parameters, x, x)
    kernel = tg.empirical(network, parameters, outputs=outputs, method=method)
    close(kernel(x), np.einsum("nmoo->nm", dense) / dense.shape[-1] if outputs == "mean" else dense)
    assert str(kernel).count("signals and") + str(kernel).count("Jacobian") == len(shapes)
    assert [line for line in str(kernel).splitlines() if "  v  " in line and "signals and" in line]


@pytest.mark.parametrize("method", ["auto", "structured"])
def test_against_explicit_jacobians(case, method):
    network, parameters, x, _ = case
    kernel = tg.empirical(network, parameters, outputs="full", method=method)
    close(kernel(x), ntk(network, parameters, x, x))
    close(kernel(x, x[1:]), ntk(network, parameters, x, x[1:]))


@pytest.mark.parametrize("method", ["auto", "structured"])
@pytest.mark.parametrize("outputs", ["mean", "diagonal"])
@pytest.mark.parametrize("network", [two_outputs, tokens])
def test_sums_over_outputs(network, outputs, method, rng):
    parameters, x = drawn(network, rng)
    each = np.einsum("nmoo->nmo", ntk(network, parameters, x, x))
    found = tg.empirical(network, parameters, outputs=outputs, method=method)(x)
    close(found, each.mean(-1) if outputs == "mean" else each)


def test_contributions_of_both_parts_of_a_parameter(case):
    network, parameters, x, _ = case
    found = tg.empirical(network, parameters, outputs="full").layers(x)
    apart = tg.empirical(network, parameters, outputs="full", method="jacobian").layers(x)
    assert list(found) == list(apart)
    for name, contribution in found.items():
        close(contribution, apart[name])


def test_what_is_contracted_is_said(case):
    network, parameters, x, structured = case
    kernel = tg.empirical(network, parameters)
    kernel(x)
    lines = [line.split() for line in str(kernel).splitlines()[1:]]
    assert {line[0] for line in lines if line[1] == "(real)" and line[3] != "Jacobian,"} == structured
    assert {line[0] for line in lines if line[3:] == ["with", "the", "real", "part"]} == structured


def test_learning_rates_of_single_entries(rng):
    """These leave no structure, as those of real parameters."""
    parameters, x = drawn(two_outputs, rng)
    rates = {"w": rng.uniform(size=(5, 4)), "b": 2.0, "v": 3.0}
    found = tg.empirical(two_outputs, parameters, learning_rate=rates, outputs="full")(x)
    flat = [rate for name in ("b", "v", "w") for rate in 2 * [np.ravel(rates[name])]]
    close(found, ntk(two_outputs, parameters, x, x, flat))
