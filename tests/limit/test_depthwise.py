"""Depthwise convolutions as the numerical rule sees them, tap by tap, against the rule for the whole of one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tangency as tg
from tests.oracles.monte_carlo import dense, initialiser

WIDTH = 12
FEATURES = 3


@pytest.mark.parametrize(
    ("space", "taps", "options"),
    [
        ((6,), (3,), dict(padding="SAME")),
        ((7,), (3,), dict(padding="VALID", window_strides=(2,))),
        ((7,), (2,), dict(padding=[(2, 0)], rhs_dilation=(2,))),
        ((4,), (3,), dict(padding=[(2, 1)], lhs_dilation=(2,))),
        ((6,), (2,), dict(padding=[(-1, 0)])),
        ((4, 3), (3, 2), dict(padding="SAME", window_strides=(1, 2))),
        ((4, 3), (2, 2), dict(padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))),
    ],
    ids=["same", "strided", "dilated", "transposed", "cropped", "two axes", "channels last"],
)
def test_taps_add_up_to_the_convolution(space: tuple[int, ...], taps: tuple[int, ...], options: Any) -> None:
    last = "dimension_numbers" in options
    filters = (*taps, 1, WIDTH) if last else (WIDTH, 1, *taps)
    axes = tuple(range(1, 1 + len(space))) if last else tuple(range(2, 2 + len(space)))

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w"].T)[None]
        h = h if last else jnp.moveaxis(h, -1, 1)
        strides = options.get("window_strides", (1,) * len(space))
        rest = {name: value for name, value in options.items() if name != "window_strides"}
        h = lax.conv_general_dilated(h, p["d"], strides, feature_group_count=WIDTH, **rest)
        return p["readout"] @ h.mean(axes)[0]

    depthwise = dense(1, 1, *taps)._replace(shape=filters)
    init = initialiser({"w": dense(WIDTH, FEATURES), "d": depthwise, "readout": dense(1, WIDTH)})
    x = np.random.default_rng(0).normal(size=(2, *space, FEATURES))
    exact = tg.limit((init, apply)).evaluate("both", x)
    by_taps = tg.limit((init, apply), numerical=True)
    np.testing.assert_allclose(by_taps.evaluate("both", x), exact, rtol=1e-12)
    assert not by_taps.estimate(x).standard_error.any()
