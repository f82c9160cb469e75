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


def test_several_filters_for_each_channel() -> None:
    """The units behind the filters are more, and their laws the same."""

    def kernel(each: int, *, nonlinear: bool, numerical: bool) -> Any:
        def apply(p: Any, x: Any) -> Any:
            h = jnp.moveaxis(jax.nn.relu(x @ p["w"].T)[None], -1, 1)
            h = lax.conv_general_dilated(h, p["d"], (1,), "SAME", feature_group_count=WIDTH)
            return p["readout"] @ (jax.nn.relu(h) if nonlinear else h).mean(2)[0]

        filters = dense(1, 1, 3)._replace(shape=(each * WIDTH, 1, 3))
        init = initialiser({"w": dense(WIDTH, FEATURES), "d": filters, "readout": dense(1, each * WIDTH)})
        return tg.limit((init, apply), numerical=numerical)

    x = np.random.default_rng(0).normal(size=(2, 5, FEATURES))
    exact = kernel(2, nonlinear=False, numerical=False).evaluate("both", x)
    by_taps = kernel(2, nonlinear=False, numerical=True)
    np.testing.assert_allclose(by_taps.evaluate("both", x), exact, rtol=1e-12)
    assert not by_taps.estimate(x).standard_error.any()
    one, several = (kernel(each, nonlinear=True, numerical=True).evaluate("both", x) for each in (1, 3))
    np.testing.assert_allclose(several, one, rtol=1e-12)
