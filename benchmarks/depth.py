"""What single precision costs deep networks: float32 against float64, and the smallest eigenvalue, by depth.

    python benchmarks/depth.py [--depths 3 30 100] [--examples 24] [--json FILE]

`error` is the largest deviation of the float32 kernel from the float64 one in units of its largest entry; `least` is
the smallest eigenvalue of the Gram matrix in the same units, which rounding may bring below zero.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tangency import limit

ACTIVATIONS: dict[str, Any] = {"relu": jax.nn.relu, "erf": jax.lax.erf, "gelu": jax.nn.gelu}
FEATURES, WIDTH = 10, 64
GAINS = {"relu": 2.0, "erf": 1.5, "gelu": 2.0}


def network(depth: int, activation: str) -> Any:
    """Weights of variance gain/fan-in and biases of variance 0.01."""
    sizes = [FEATURES, *[WIDTH] * depth]

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 2 * depth + 1)
        weights = [
            (GAINS[activation] / n) ** 0.5 * jax.random.normal(k, (m, n))
            for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
        ]
        biases = [0.1 * jax.random.normal(k, (WIDTH,)) for k in keys[depth:-1]]
        return weights, biases, jax.random.normal(keys[-1], (1, WIDTH)) / WIDTH**0.5

    def apply(parameters: Any, x: Any) -> Any:
        for weight, bias in zip(*parameters[:2], strict=True):
            x = ACTIVATIONS[activation](weight @ x + bias)
        return parameters[2] @ x

    return init, apply


def measure(depth: int, activation: str, examples: int) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((examples, FEATURES))
    kernel = limit(network(depth, activation), fused=False)
    row: dict[str, Any] = {"activation": activation, "layers": depth}
    single = kernel.evaluate("both", jnp.asarray(x, jnp.float32))
    for name, double, rounded in zip(
        ("K", "Θ"), kernel.evaluate("both", x), np.asarray(single, np.float64), strict=True
    ):
        size = np.max(np.abs(double))
        row[f"{name} error"] = float(np.max(np.abs(rounded - double)) / size)
        row[f"{name} least f64"] = float(np.linalg.eigvalsh(double)[0] / size)
        row[f"{name} least f32"] = float(np.linalg.eigvalsh(rounded)[0] / size)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 30, 100])
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    for activation in ACTIVATIONS:
        for depth in options.depths:
            rows.append(measure(depth, activation, options.examples))
            if len(rows) == 1:
                print("".join(f"{name:>13}" for name in rows[0]))
            print("".join(f"{v:>13.1e}" if isinstance(v, float) else f"{v:>13}" for v in rows[-1].values()), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
