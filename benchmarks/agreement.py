"""Random networks: fused kernels against XLA, and finite NTKs against explicit Jacobians, in float64.

`activations`: fused kernels of drawn activations in both precisions, in units of what the diagonals allow an entry.

Prints every network on which the two differ, with its layers, and how many agreed; exits with 1 if some differ.
Programs are compiled as users compile them, which the tests do not do.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import tangency as tg
from tangency.errors import UnsupportedModelError

WIDTH = 6
TOLERANCES = {"limit": 1e-11, "finite": 1e-11, "activations": 1e-9}
SINGLE = 1e5
"""How much more an activation's kernel may be off in float32."""

ACTIVATIONS = {"relu": jax.nn.relu, "abs": jnp.abs}
EVERY = ACTIVATIONS | {
    "leaky relu": lambda u: jax.nn.leaky_relu(u, 0.1),
    "step": lambda u: jnp.where(u > 0, 1.0, 0.0),
    "square": jnp.square,
    "cubic": lambda u: u**3 / 6 - u,
    "erf": jax.scipy.special.erf,
    "gelu": lambda u: jax.nn.gelu(u, approximate=False),
    "tanh-gelu": jax.nn.gelu,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "relu6": jax.nn.relu6,
    "hard tanh": jax.nn.hard_tanh,
    "hard swish": jax.nn.hard_swish,
    "bent": lambda u: jnp.maximum(u, -0.7) - jnp.where(u > 1.0, 0.4 + 0.3 * u, 0.0),
}
SMOOTH = {"tanh": jnp.tanh, "gelu": jax.nn.gelu, "sin": jnp.sin}

Layer = tuple[str, Callable[[Any], Any]]
"""A layer's name, and what makes it from a key."""


class Sum(eqx.Module):
    ways: list[eqx.nn.Sequential]

    def __call__(self, x: Any, key: Any = None) -> Any:
        return sum(way(x) for way in self.ways)


class Twice(eqx.Module):
    layer: Any

    def __call__(self, x: Any, key: Any = None) -> Any:
        return self.layer(jnp.tanh(self.layer(x)))


class Skip(eqx.Module):
    layer: Any

    def __call__(self, x: Any, key: Any = None) -> Any:
        return x + jnp.tanh(self.layer(x))


def function(name: str, apply: Callable[[Any], Any]) -> Layer:
    return name, lambda key: eqx.nn.Lambda(apply)


def sequence(layers: list[Layer]) -> Callable[[Any], eqx.nn.Sequential]:
    def make(key: Any) -> eqx.nn.Sequential:
        return eqx.nn.Sequential([layer(k) for (_, layer), k in _with_keys(layers, key)])

    return make


def _with_keys(items: list[Any], key: Any) -> list[tuple[Any, Any]]:
    return list(zip(items, jax.random.split(key, len(items)), strict=True))


def names(layers: list[Layer]) -> str:
    return ", ".join(name for name, _ in layers)


def convolution(draw: random.Random, inputs: int, outputs: int = WIDTH, groups: int = 1) -> Layer:
    options: dict[str, Any] = {
        "kernel_size": draw.choice([1, 2, 3, (1, 3), (3, 2)]),
        "stride": draw.choice([1, 1, 1, 2, (2, 1)]),
        "padding": draw.choice([0, 1, 1, 2, ((1, 0), (0, 2)), ((2, 1), (1, 1))]),
        "dilation": draw.choice([1, 1, 1, 2]),
        "use_bias": draw.random() < 0.3,
        "groups": groups,
    }
    return f"conv({inputs}, {outputs}, {options})", lambda key: eqx.nn.Conv2d(inputs, outputs, key=key, **options)


def linear(draw: random.Random, inputs: int, outputs: int) -> Layer:
    bias = draw.random() < 0.5
    make = partial(eqx.nn.Linear, inputs, outputs, bias)
    return f"linear({inputs}, {outputs}, {bias})", lambda key: make(key=key)


def pool(draw: random.Random) -> Layer:
    size, stride = draw.choice([2, 2, 3, (2, 1), (1, 3)]), draw.choice([1, 2, 2, (2, 1), 3])
    padding = draw.choice([0, 0, 1]) if size in (2, 3) else 0
    return f"pool({size}, {stride}, {padding})", lambda key: eqx.nn.AvgPool2d(size, stride, padding)


def body(draw: random.Random, count: int, branches: bool, activations: list[Layer] | None = None) -> list[Layer]:
    """Layers of a limit network: convolutions, activations, pools, exchanged axes, sums of two branches."""
    activations = activations or [function(*each) for each in ACTIVATIONS.items()]
    layers: list[Layer] = []
    for _ in range(count):
        kind = draw.random()
        if kind < 0.25:
            layers.append(draw.choice(activations))
        elif kind < 0.4:
            layers.append(pool(draw))
        elif kind < 0.45:
            layers.append(function("swap", lambda h: jnp.swapaxes(h, 1, 2)))
        elif kind < 0.65 and branches:
            first = [*body(draw, draw.randint(1, 3), False), convolution(draw, WIDTH)]
            second = body(draw, draw.randint(0, 3), False)
            if draw.random() < 0.7:
                second.append(convolution(draw, WIDTH))
            ways = [sequence(first), sequence(second)]
            text = f"[{names(first)} | {names(second)}]"
            layers.append((text, lambda key, ways=ways: Sum([way(k) for way, k in _with_keys(ways, key)])))
        else:
            layers.append(convolution(draw, WIDTH))
    return layers


def limit_case(draw: random.Random) -> tuple[str, float] | None:
    """What one random network is, and by how much its fused kernel differs from XLA's; None if it has none."""
    shape = (2, draw.randint(5, 10), draw.randint(5, 10))
    layers = [convolution(draw, 2), *body(draw, draw.randint(2, 5), True)]
    positions = _positions(layers, shape)
    if not positions:
        return None
    flat = draw.random() < 0.5
    layers.append(function("flatten", jnp.ravel) if flat else function("average", lambda h: h.mean((1, 2))))
    layers.append(("linear", lambda key: eqx.nn.Linear(WIDTH * (positions if flat else 1), 1, key=key)))
    try:
        fused = tg.limit(sequence(layers), fused=True, input_shape=shape)
    except UnsupportedModelError:
        return None
    if "the whole network is fused" not in str(fused):
        return None
    rng = np.random.default_rng(draw.randrange(2**32))
    x, y = rng.normal(size=(2, *shape)), rng.normal(size=(3, *shape))
    expected = tg.limit(sequence(layers), fused=False).evaluate("both", x, y)
    difference = np.max(np.abs(fused.evaluate("both", x, y) / expected - 1.0))
    unequal = np.max(np.abs(np.diagonal(fused(y)) / fused.diagonal("ntk", y) - 1.0))
    return f"{shape}: {names(layers)}", float(max(difference, unequal))


def activations_case(draw: random.Random) -> tuple[str, float] | None:
    """What one random network of one or two activations is, and by how much its fused kernel differs from XLA's."""
    chosen = [function(*each) for each in draw.sample(list(EVERY.items()), draw.choice([1, 1, 2]))]
    if draw.random() < 0.5:
        shape: tuple[int, ...] = (5,)
        layers = [linear(draw, 5, WIDTH), draw.choice(chosen)]
        for _ in range(draw.randint(0, 2)):
            layers += [linear(draw, WIDTH, WIDTH), draw.choice(chosen)]
        layers.append(linear(draw, WIDTH, 1))
    else:
        shape = (2, draw.randint(4, 7), draw.randint(4, 7))
        layers = [convolution(draw, 2), draw.choice(chosen), *body(draw, draw.randint(1, 3), False, chosen)]
        if not _positions(layers, shape):
            return None
        layers += [function("average", lambda h: h.mean((1, 2))), linear(draw, WIDTH, 1)]
    make, scale = sequence(layers), draw.choice([0.3, 1.0, 1.0, 2.5])
    rng = np.random.default_rng(draw.randrange(2**32))
    x, y = scale * rng.normal(size=(3, *shape)), scale * rng.normal(size=(4, *shape))
    y[1] = x[0]
    if draw.random() < 0.3:
        x[1] = 0.0
    try:
        fused, plain = (tg.limit(make, fused=path, input_shape=shape) for path in (True, False))
    except UnsupportedModelError:
        return None
    worst = 0.0
    expected, sizes = plain.evaluate("both", x, y), [plain.diagonal("both", side) for side in (x, y)]
    # An activation that is as good as dead leaves nothing that could be right to many digits.
    largest = np.sqrt(np.abs(sizes[0][:, :, None] * sizes[1][:, None])) + 1e-8
    for dtype, allowed in ((np.float64, 1.0), (np.float32, SINGLE)):
        found = fused.evaluate("both", x.astype(dtype), y.astype(dtype))
        if "the whole network is fused" not in str(fused) or "left to XLA" in str(fused):
            return None
        worst = max(worst, float(np.max(np.abs(found - expected) / largest)) / allowed)
    return f"{scale} * {shape}: {names(layers)}", worst


def _positions(layers: list[Layer], shape: tuple[int, ...]) -> int:
    """How many positions are left; 0 if the layers do not fit together."""
    try:
        after = jax.eval_shape(sequence(layers)(jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    except (TypeError, ValueError):
        return 0
    return int(np.prod(after[1:]))


def finite_case(draw: random.Random) -> tuple[str, float] | None:
    """What one random network is, and by how much its NTK differs from that of explicit Jacobians."""
    channels = draw.choice([2, 4])
    shape = (channels, draw.randint(3, 6), draw.randint(3, 6))
    layers: list[Layer] = []
    for _ in range(draw.randint(0, 2)):
        groups = draw.choice([1, 1, 2])
        outputs = groups * draw.choice([1, 2, 3])
        if channels % groups == 0:
            layers += [convolution(draw, channels, outputs, groups), function(*draw.choice(list(SMOOTH.items())))]
            channels = outputs
            if draw.random() < 0.3:
                layers.append(("group norm", lambda key, n=channels: eqx.nn.GroupNorm(1, n)))
    positions = _positions(layers, shape) if layers else shape[1] * shape[2]
    if not positions:
        return None
    units, outputs = draw.randint(2, 6), draw.randint(1, 4)
    layers.append(function("flatten", jnp.ravel))
    layers.append(("linear", lambda key, n=channels * positions: eqx.nn.Linear(n, units, key=key)))
    for _ in range(draw.randint(1, 3)):
        name, wrap = draw.choice([("twice", Twice), ("skip", Skip)])
        layers.append((f"{name}({units})", lambda key, wrap=wrap: wrap(eqx.nn.Linear(units, units, key=key))))
    layers += [function("tanh", jnp.tanh), (f"linear({outputs})", lambda key: eqx.nn.Linear(units, outputs, key=key))]
    rng = np.random.default_rng(draw.randrange(2**32))
    x, y = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    with jax.enable_x64(True):
        model = sequence(layers)(jax.random.key(draw.randrange(2**32)))
        expected = np.einsum("nop,mqp->nmoq", _jacobian(model, x), _jacobian(model, y))
        found = np.asarray(tg.empirical(model, outputs="full")(x, y))
        mean = np.asarray(tg.empirical(model)(x, y))
    size = np.max(np.abs(expected))
    difference = np.max(np.abs(found - expected)) / size
    averaged = np.max(np.abs(mean - np.einsum("nmoo->nm", expected) / outputs)) / size
    return f"{shape}: {names(layers)}", float(max(difference, averaged))


def _jacobian(model: Any, x: np.ndarray) -> np.ndarray:
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    derivatives = jax.vmap(jax.jacrev(lambda p, x: eqx.combine(p, rest)(x)), (None, 0))(parameters, jnp.asarray(x))
    return np.concatenate([np.asarray(a).reshape(*a.shape[:2], -1) for a in jax.tree.leaves(derivatives)], axis=2)


CASES = {"limit": limit_case, "finite": finite_case, "activations": activations_case}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    allowed = TOLERANCES[options.kind]
    draw, end, counts = random.Random(options.seed), time.monotonic() + options.seconds, Counter[str]()
    while time.monotonic() < end:
        case = CASES[options.kind](draw)
        if case is None:
            counts["left out"] += 1
            continue
        text, difference = case
        right = difference <= allowed
        counts["agree" if right else "differ"] += 1
        if not right:
            print(f"differs by {difference:.1e}: {text}", flush=True)
    print(f"{counts['agree']} networks agree to {allowed}, {counts['differ']} differ, {counts['left out']} left out")
    return 1 if counts["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
