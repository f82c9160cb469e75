"""Strict session: warnings are errors, and arrays of different rank never broadcast silently."""

import os
import sys

# Most of the time goes to compiling small programs once. Where LLVM's optimisations have changed results, tests start a
# process of their own without this.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest

from tangency.limit.fusion import Fusion

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


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory, worker_id):
    """Fused programs are compiled anew, once for all tests of a session, and none of the user's cache is touched."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGENCY_CACHE_DIR", str((base if worker_id == "master" else base.parent) / "fused"))
        yield


@pytest.fixture
def by_xla(monkeypatch):
    """Limit kernels are evaluated by XLA, the reference of fused programs, unless a test asks for `fused=True`."""
    monkeypatch.setattr(Fusion, "least_pairs", sys.maxsize)
