"""Specs of models: what they make, and the one line that refuses them."""

import sys
from itertools import count

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import models
from tangency.errors import InputError

KEY = jax.random.key(0)
_serial = count()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mlp", ("mlp", {})),
        ("mlp:depth=3,activation=gelu", ("mlp", {"depth": 3, "activation": "gelu"})),
        ("resmlp:w_std=1.5,b_std=0", ("resmlp", {"w_std": 1.5, "b_std": 0.0})),
        ("package.module:function", ("package.module:function", {})),
    ],
)
def test_parse_spec(spec, expected):
    assert models.parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mpl:depth=3", ["unknown model 'mpl'", "did you mean 'mlp'?", "resmlp"]),
        ("mlp:dept=3", ["no option 'dept'", "did you mean 'depth'?", "width"]),
        ("linear:depth=3", ["model linear has no option 'depth'", "b_std"]),
        ("mlp:depth", ["'depth' has no value"]),
        ("mlp:depth=", ["has no value"]),
        ("mlp:", ["ends with ':'"]),
        ("mlp:depth=0", ["depth=0", "integer from 1 to 1000"]),
        ("mlp:depth=2.5", ["depth=2.5"]),
        ("mlp:w_std=0", ["number > 0"]),
        ("mlp:b_std=nan", ["b_std=nan", "≥ 0"]),
        ("mlp:activation=rleu", ["unknown activation 'rleu'", "did you mean 'relu'?", "tanh"]),
        ("mlp:depth=2,depth=3", ["given twice"]),
        ("", ["unknown model ''"]),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, words):
    with pytest.raises(InputError) as caught:
        models.parse_spec(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", sorted(models.REGISTRY))
def test_every_registered_model_maps_one_example_to_its_outputs(name):
    model = models.make(name, 7, 3)(KEY)
    assert isinstance(model, eqx.Module)
    assert model(jnp.ones(7)).shape == (3,)


@pytest.mark.parametrize("name", sorted(models.ACTIVATIONS))
def test_every_activation_is_elementwise_and_finite(name):
    x = jnp.linspace(-4, 4, 9)
    y = models.ACTIVATIONS[name].function(x)
    assert y.shape == x.shape
    assert bool(jnp.all(jnp.isfinite(y)))


def test_mlp_is_the_formula():
    model = models.make("mlp:depth=2,width=5,activation=tanh", 3, 2)(KEY)
    x = np.arange(3.0)
    expected = x
    for layer in model.hidden:
        expected = np.tanh(np.asarray(layer.weight) @ expected + np.asarray(layer.bias))
    expected = np.asarray(model.readout.weight) @ expected + np.asarray(model.readout.bias)
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, rtol=1e-5)


def test_resmlp_is_the_formula():
    model = models.make("resmlp:depth=1,width=6,activation=relu", 3, 2)(KEY)

    def norm(u):
        return (u - u.mean()) / np.sqrt(u.var() + 1e-5)

    def dense(layer, u):
        return np.asarray(layer.weight) @ u + np.asarray(layer.bias)

    u = dense(model.embedding, np.arange(3.0))
    block = model.blocks[0]
    u = u + dense(block.outer, np.maximum(dense(block.inner, norm(u)), 0))
    np.testing.assert_allclose(model(jnp.arange(3.0)), dense(model.readout, norm(u)), rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "hidden", "readout"),
    [
        ("mlp:depth=2,width=400", 2.0, 1.0),
        ("mlp:depth=2,width=400,activation=tanh", 1.0, 1.0),
        ("mlp:depth=2,width=400,w_std=3", 9.0, 1.0),
    ],
)
def test_weight_variances(spec, hidden, readout):
    model = models.make(spec, 300, 300)(KEY)
    # 120,000 draws: the relative standard error of a variance is 0.4 %.
    assert np.var(model.hidden[0].weight) * 300 == pytest.approx(hidden, rel=0.03)
    assert np.var(model.hidden[1].weight) * 400 == pytest.approx(hidden, rel=0.03)
    assert np.var(model.readout.weight) * 400 == pytest.approx(readout, rel=0.03)
    assert np.var(model.readout.bias) == pytest.approx(0.01, rel=0.3)


def test_zero_bias_std_means_no_bias():
    model = models.make("mlp:b_std=0", 4, 2)(KEY)
    assert model.readout.bias is None
    assert all(layer.bias is None for layer in model.hidden)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        name = f"user_module_{next(_serial)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_user_function_gets_the_sizes_that_it_asks_for(user_module, tmp_path):
    name = user_module(
        "import equinox as eqx\n"
        "def sized(key, *, in_size, out_size): return eqx.nn.Linear(in_size, out_size, key=key)\n"
        "def fixed(key): return eqx.nn.Linear(4, 1, key=key)\n"
    )
    assert name not in sys.modules
    assert models.make(f"{name}:sized", 6, 2)(KEY).weight.shape == (2, 6)
    assert models.make(f"{name}:fixed", 6, 2)(KEY).weight.shape == (1, 4)
    assert str(tmp_path) not in sys.path


def test_parsing_a_user_spec_imports_nothing(user_module):
    name = user_module("raise RuntimeError('imported')\n")
    models.parse_spec(f"{name}:function")
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        ("raise RuntimeError('two\\nlines')", "f", ["cannot import", "RuntimeError: two lines"]),
        ("def network(key): pass", "netwrok", ["no function 'netwrok'", "did you mean 'network'?"]),
        ("value = 3", "value", ["not a function"]),
        ("def f(key): return 3", "f", ["returned int", "equinox.Module"]),
        ("def f(key): return 1 / 0", "f", ["failed: ZeroDivisionError"]),
    ],
)
def test_bad_user_functions_are_refused_in_one_line(user_module, text, function, words):
    name = user_module(text)
    with pytest.raises(InputError) as caught:
        models.make(f"{name}:{function}", 3, 1)(KEY)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_user_module_is_an_input_error(user_module):
    with pytest.raises(InputError, match="cannot import 'no_such_module_here'"):
        models.make("no_such_module_here:f", 3, 1)
