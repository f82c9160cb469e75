"""The numerical rule for functions of several Gaussians: standard error, compilation, and time per pair.

    python benchmarks/numerical.py [--points 1024] [--replicates 8] [--json FILE]

`error` is the largest standard error of Θ in units of its largest entry, on five examples.
"""

import argparse
import json
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tangency import QuasiMonteCarlo, limit

WIDTH, EXAMPLES = 64, 5


class Pooled(eqx.Module):
    """3×3 convolution, ReLU, 2×2 max-pooling, flatten."""

    convolution: Any
    readout: Any

    def __init__(self, key: Any, size: int):
        a, b = jax.random.split(key)
        self.convolution = eqx.nn.Conv2d(3, WIDTH, 3, padding=1, use_bias=False, key=a)
        self.readout = eqx.nn.Linear(WIDTH * (size // 2) ** 2, 1, use_bias=False, key=b)

    def __call__(self, x: Any) -> Any:
        h = jax.nn.relu(self.convolution(x))
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2), (1, 2, 2), "VALID")
        return self.readout(h.ravel())


class Recurrent(eqx.Module):
    cell: Any
    readout: Any

    def __init__(self, key: Any, cell: Any):
        a, b = jax.random.split(key)
        self.cell, self.readout = cell(3, WIDTH, key=a), eqx.nn.Linear(WIDTH, 1, use_bias=False, key=b)

    def __call__(self, x: Any) -> Any:
        zero = jnp.zeros(WIDTH)
        pair = isinstance(self.cell, eqx.nn.LSTMCell)
        state, _ = jax.lax.scan(lambda h, u: (self.cell(u, h), None), (zero, zero) if pair else zero, x)
        return self.readout(state[0] if pair else state)


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "max-pool 8×8": (lambda key: Pooled(key, 8), (3, 8, 8)),
    "max-pool 16×16": (lambda key: Pooled(key, 16), (3, 16, 16)),
    "GRU 2 steps": (lambda key: Recurrent(key, eqx.nn.GRUCell), (2, 3)),
    "GRU 4 steps": (lambda key: Recurrent(key, eqx.nn.GRUCell), (4, 3)),
    "LSTM 4 steps": (lambda key: Recurrent(key, eqx.nn.LSTMCell), (4, 3)),
}


def measure(name: str, rule: QuasiMonteCarlo) -> dict[str, Any]:
    make, shape = CASES[name]
    x = np.random.default_rng(0).standard_normal((EXAMPLES, *shape))
    kernel = limit(make, numerical=rule)
    start = time.perf_counter()
    kernel.graph(shape)
    traced = time.perf_counter()
    kernel.estimate(x)
    first = time.perf_counter()
    found = kernel.estimate(x)
    run = time.perf_counter() - first
    return {
        "network": name,
        "trace s": traced - start,
        "compile s": first - traced - run,
        "ms per pair": 1e3 * run / EXAMPLES**2,
        "error": float(np.max(found.standard_error) / np.max(found.value)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--replicates", type=int, default=8)
    parser.add_argument("--json")
    options = parser.parse_args()
    rule, rows = QuasiMonteCarlo(options.points, options.replicates), []
    for name in CASES:
        rows.append(measure(name, rule))
        if len(rows) == 1:
            print("".join(f"{key:>15}" for key in rows[0]))
        print("".join(f"{v:>15.2g}" if isinstance(v, float) else f"{v:>15}" for v in rows[-1].values()), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
