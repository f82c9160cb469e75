"""Threads of fused programs and the memory that there is."""

import jax
import numpy as np
import pytest

from tangency import limit
from tangency.errors import MemoryLimitError
from tangency.fused import run
from tests.fused.networks import convolutional


@pytest.fixture
def started(monkeypatch):
    """How many threads each pool was started with, on a machine of eight processors."""
    found = []

    class Pool(run.ThreadPoolExecutor):
        def __init__(self, threads):
            found.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(run, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(run.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    return found


def pooled_kernel():
    return limit(convolutional(jax.nn.relu, jax.nn.relu, "average", pooled=True), fused=True)


def examples():
    return np.random.default_rng(0).normal(size=(5, 2, 8, 4))


def test_as_many_threads_as_there_is_memory_for(started, monkeypatch):
    kernel, x = pooled_kernel(), examples()
    expected = kernel(x)
    monkeypatch.setattr(run.Variant, "plane_bytes", 1000)
    for available, threads in ((None, 8), (16_000, 8), (6_999, 3), (1_000, 1)):
        started.clear()
        monkeypatch.setattr(run, "available_memory", lambda found=available: found)
        np.testing.assert_array_equal(kernel(x), expected)
        assert set(started) == {threads}
    monkeypatch.setattr(run, "available_memory", lambda: 999)
    with pytest.raises(MemoryLimitError, match="what one thread keeps of .* needs .* GiB but .* GiB may be used"):
        kernel(x)


def test_what_a_thread_takes_is_what_is_counted(monkeypatch):
    """What is kept behind a pool grows with the fourth power of an image's side."""
    counted = []
    allocate = run.Variant.scratch_arrays

    def recorded(variant):
        arrays = allocate(variant)
        counted.append((variant.plane_bytes, arrays[0].nbytes))
        return arrays

    monkeypatch.setattr(run.Variant, "scratch_arrays", recorded)
    pooled_kernel()(examples())
    assert counted and all(planes == taken > 10_000 for planes, taken in counted)
