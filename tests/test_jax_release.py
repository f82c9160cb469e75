"""What `tangency._jax` says of the installed JAX (0.10.1 to 0.12.0 tried) is so."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tangency import _jax


@pytest.mark.parametrize(("dtype", "last"), [(np.float32, 32_768), (np.float64, 16_384)])
def test_the_installed_release_sums_all_terms(dtype, last):
    """The reproduction of jax issue 39103."""
    with jax.enable_x64(True):
        rows = np.zeros((last + 1, 3), dtype)
        rows[:, 0] = np.arange(last + 1)
        found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=dtype) @ row) ** 2)))(rows)
        assert found[-1] == last**2


@pytest.mark.parametrize("release", _jax.FAULTY)
def test_a_faulty_release_is_warned_of(release, monkeypatch):
    monkeypatch.setattr(_jax, "version", lambda name: release)
    with pytest.warns(UserWarning, match=f"jaxlib {release}"):
        _jax.warn_of_faulty_release()
    monkeypatch.setenv("XLA_FLAGS", f"--{_jax.OPTION}=")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _jax.warn_of_faulty_release()


def test_what_a_scan_carries_is_told_apart():
    """Nested state, constants and inputs; also in the scans of a derivative."""

    def loop(state, weight, inputs):
        def step(state, each):
            h = jnp.tanh(weight @ state["h"] + each["x"] + weight.sum())
            return {"h": h, "count": (state["count"][0] + each["y"], state["count"][1])}, h

        return jax.lax.scan(step, state, inputs)

    state = {"h": jnp.ones(2), "count": (jnp.ones(()), jnp.ones(3))}
    arguments = state, jnp.ones((2, 2)), {"x": jnp.ones((4, 2)), "y": jnp.ones(4)}
    plain = jax.make_jaxpr(loop)(*arguments)
    derived = jax.make_jaxpr(jax.grad(lambda *a: loop(*a)[1].sum()))(*arguments)
    scans = [e for jaxpr in (plain, derived) for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert len(scans) == 3
    for equation in scans:
        constants, carried = _jax.scan_counts(equation.params)
        body, outer = equation.params["jaxpr"], equation.invars
        inner = body.jaxpr.invars
        assert [a.aval.shape for a in outer[: constants + carried]] == [
            v.aval.shape for v in inner[: constants + carried]
        ]
        assert all(a.aval.shape[1:] == v.aval.shape for a, v in zip(outer, inner, strict=True) if a.aval != v.aval)
        carried_shapes = [v.aval.shape for v in inner[constants : constants + carried]]
        assert carried_shapes == [v.aval.shape for v in body.jaxpr.outvars[:carried]]
        stacked = [v.aval.shape for v in equation.outvars[carried:]]
        assert all(shape[0] == equation.params["length"] for shape in stacked)
