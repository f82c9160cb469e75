"""Strict session: warnings are errors, and arrays of different rank never broadcast silently."""

import os

# Most of the time goes to compiling small programs once. Where LLVM's optimisations have changed results, tests start a
# process of their own without this.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def global_precision_is_untouched():
    """No test and no code under test may flip JAX's global precision flag."""
    yield
    assert not jax.config.jax_enable_x64
