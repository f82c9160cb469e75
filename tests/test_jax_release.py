"""Sums on the CPU are whole with the installed jaxlib, and a release known to shorten them is warned of."""

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
