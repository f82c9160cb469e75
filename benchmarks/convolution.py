"""Convolutional limits by XLA on one machine: time to trace and compile, and time per entry.

    python benchmarks/convolution.py [--size 32] [--json FILE]

Each row is a network of 3×3 convolutions with ReLU on size×size×3 images in float32; `flatten` keeps second moments on
the diagonal of positions, `average` keeps all pairs of positions.
"""

import argparse
import json
import statistics
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tangency import limit


def network(key: Any, depth: int, head: str, size: int) -> eqx.nn.Sequential:
    keys = iter(jax.random.split(key, depth + 1))
    layers: list[Any] = []
    for layer in range(depth):
        layers.append(eqx.nn.Conv2d(16 if layer else 3, 16, 3, padding=1, use_bias=False, key=next(keys)))
        layers.append(eqx.nn.Lambda(jax.nn.relu))
    layers.append(eqx.nn.Lambda((lambda h: h.mean((1, 2))) if head == "average" else jnp.ravel))
    features = 16 if head == "average" else 16 * size * size
    return eqx.nn.Sequential([*layers, eqx.nn.Linear(features, 1, use_bias=False, key=next(keys))])


def measure(depth: int, head: str, size: int, examples: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(examples, 3, size, size)).astype(np.float32) for _ in range(2))
    start = time.perf_counter()
    kernel = limit(lambda key: network(key, depth, head, size), fused=False)
    kernel.graph((3, size, size))
    traced = time.perf_counter()
    kernel(x, y)
    first = time.perf_counter()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        kernel(x, y)
        times.append(time.perf_counter() - begin)
    run = statistics.median(times)
    return {
        "layers": depth,
        "head": head,
        "trace s": traced - start,
        "compile s": first - traced - run,
        "ms per entry": 1e3 * run / examples**2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    for depth, head, examples in ((5, "flatten", 32), (21, "flatten", 32), (5, "average", 2), (21, "average", 2)):
        rows.append(measure(depth, head, options.size, examples))
        if len(rows) == 1:
            print("".join(f"{name:>14}" for name in rows[0]))
        print("".join(f"{value:>14.3g}" if isinstance(value, float) else f"{value:>14}" for value in rows[-1].values()))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
