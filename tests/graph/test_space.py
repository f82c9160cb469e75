"""Windows over positions against sums written out with NumPy."""

import jax
import numpy as np
import pytest

from tangency.graph import Window
from tangency.graph.space import slide

WINDOWS = [
    Window(3),
    Window(3, 2, 1, 1),
    Window(2, 1, 0, 1, 1, 2),
    Window(3, 1, 1, 2, 2, 1),
    Window(1, 2),
    Window(2, 3),
]


def written_out(array, axes, window):
    for axis in axes:
        length = array.shape[axis]
        dilated = np.zeros([(n - 1) * window.base_dilation + 1 if i == axis else n for i, n in enumerate(array.shape)])
        dilated[tuple(slice(None, None, window.base_dilation if i == axis else 1) for i in range(array.ndim))] = array
        array = np.pad(dilated, [(window.low, window.high) if i == axis else (0, 0) for i in range(array.ndim)])
        assert array.shape[axis] == window.padded_length(length)
    shape = [n if i not in axes else None for i, n in enumerate(array.shape)]
    steps = [(array.shape[axis] - (window.size - 1) * window.dilation - 1) // window.stride + 1 for axis in axes]
    for axis, count in zip(axes, steps, strict=True):
        shape[axis] = count
    result = np.zeros(shape)
    for place in np.ndindex(*shape):
        for tap in range(window.size):
            there = [p * window.stride + tap * window.dilation if i in axes else p for i, p in enumerate(place)]
            result[place] += array[tuple(there)]
    return result


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("axes", [(0,), (0, 2), (2, 0), (1, 3)], ids=str)
def test_windowed_sums(rng, axes, window):
    array = rng.normal(size=(6, 5, 7, 4))
    with jax.enable_x64(True):
        found = np.asarray(slide(jax.numpy.asarray(array), axes, window))
    expected = written_out(array, axes, window)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert found.shape[axes[0]] == window.output_length(array.shape[axes[0]])
