"""Convolutions of every geometry, with all patches formed at once and those of one channel at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tangency as tg
from tangency.empirical import by_gradients, gradients
from tests.oracles.jacobian import ntk

pytestmark = pytest.mark.usefixtures("double_precision")


FIRST, LAST = ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC")
GEOMETRIES = {
    "plain": ((1, 4, 5, 4), (3, 4, 3, 3), FIRST, {}),
    "channels last": ((1, 5, 4, 4), (3, 3, 4, 3), LAST, {}),
    "strides": ((1, 4, 7, 6), (3, 4, 2, 3), FIRST, {"window_strides": (2, 3)}),
    "spread": ((1, 4, 7, 6), (3, 4, 3, 2), FIRST, {"rhs_dilation": (2, 1), "padding": [(1, 2), (0, 3)]}),
    "gaps in the image": ((1, 4, 3, 4), (3, 4, 3, 3), FIRST, {"lhs_dilation": (2, 1)}),
    "cropped": ((1, 4, 6, 6), (3, 4, 2, 2), FIRST, {"padding": [(-1, 0), (1, -2)]}),
    "groups": ((1, 5, 4, 6), (3, 3, 2, 6), LAST, {"feature_group_count": 3}),
    "each channel": ((1, 4, 4, 5), (4, 1, 3, 3), FIRST, {"feature_group_count": 4}),
    "three images": ((3, 4, 4, 5), (3, 4, 2, 2), FIRST, {}),
    "one entry": ((1, 6, 5, 1), (1, 1, 1, 3), LAST, {}),
    "as large as the image": ((1, 4, 3, 3), (5, 4, 3, 3), FIRST, {}),
    "a line": ((1, 9, 4), (3, 4, 3), ("NWC", "WIO", "NWC"), {"window_strides": (2,)}),
    "a volume": ((1, 4, 3, 4, 3), (3, 4, 2, 2, 2), ("NCDHW", "OIDHW", "NDHWC"), {}),
}


@pytest.mark.parametrize("way", ["pairs of positions", "all patches", "patches of one channel"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_against_explicit_jacobians(geometry, way, rng, monkeypatch):
    image, kernel, numbers, options = GEOMETRIES[geometry]
    options = {"window_strides": (1,) * (len(image) - 2), "padding": [(0, 0)] * (len(image) - 2), **options}

    def signal(w, x):
        return jnp.tanh(lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options))

    def network(p, x):
        return p["v"] @ signal(p["w"], x).ravel()

    x = rng.normal(size=(6, *image))
    w = rng.normal(size=kernel)
    parameters = {"w": jnp.asarray(w), "v": jnp.asarray(rng.normal(size=(4, signal(w, x[0]).size)))}
    monkeypatch.setattr(gradients.Cost, "positions_first", way == "pairs of positions")
    if way == "patches of one channel":
        monkeypatch.setattr(by_gradients, "CACHED", 1)
    every = np.asarray(ntk(network, parameters, x, x))
    expected = np.trace(every, axis1=2, axis2=3) / 4
    found = tg.empirical(network, parameters)
    for own, right in ((found(x), expected), (found(x[:2], x), expected[:2])):
        np.testing.assert_allclose(own, right, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
