"""Finite-width NTKs on one machine: structured contraction against Jacobian contraction and NTK-vector products.

    python benchmarks/empirical.py [--json FILE] [--only NAME ...] [--methods METHOD ...]

Each row is one network and method in float32, Θ averaged over its 10 outputs; all methods compile with the same program
and agree (`differs`). Repeated up to five times, or until `--patience` seconds have gone.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tangency import empirical


def dense(key: Any, *shape: int) -> Any:
    return jax.random.normal(key, shape) / np.sqrt(np.prod(shape[1:]))


def mlp(key: Any) -> tuple[Any, Any, Any]:
    k = jax.random.split(key, 4)
    shapes = ((1024, 784), (1024, 1024), (1024, 1024), (10, 1024))
    parameters = [(dense(key, *shape), jnp.zeros(shape[0])) for key, shape in zip(k, shapes, strict=True)]

    def call(p: Any, x: Any) -> Any:
        for w, b in p[:-1]:
            x = jax.nn.relu(w @ x + b)
        return p[-1][0] @ x + p[-1][1]

    return call, parameters, (256, 784)


def convolved(w: Any, x: Any, stride: int = 1) -> Any:
    padding = "SAME" if w.shape[-1] > 1 else "VALID"
    return jax.lax.conv_general_dilated(x[None], w, (stride, stride), padding)[0]


def cnn(key: Any) -> tuple[Any, Any, Any]:
    k = jax.random.split(key, 5)
    parameters = [dense(k[i], 64, 64 if i else 3, 3, 3) for i in range(4)], dense(k[4], 10, 64)

    def call(p: Any, x: Any) -> Any:
        for w in p[0]:
            x = jax.nn.relu(convolved(w, x))
        return p[1] @ x.mean((1, 2))

    return call, parameters, (32, 3, 16, 16)


def resnet(key: Any) -> tuple[Any, Any, Any]:
    """The shape of ResNet-18 for small images; BatchNorm in inference form as a scale and a shift for each channel."""
    keys = iter(jax.random.split(key, 40))

    def block(a: int, b: int) -> Any:
        return {
            "first": dense(next(keys), b, a, 3, 3),
            "second": dense(next(keys), b, b, 3, 3),
            "norms": [(jnp.ones((b, 1, 1)), jnp.zeros((b, 1, 1))) for _ in range(2)],
            "skip": dense(next(keys), b, a, 1, 1) if a != b else None,
        }

    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [block(a, b) for a, b in pairwise(widths)]
    parameters = dense(next(keys), 64, 3, 3, 3), blocks, dense(next(keys), 10, 512)

    def call(p: Any, x: Any) -> Any:
        stem, blocks, head = p
        x = jax.nn.relu(convolved(stem, x))
        for own in blocks:
            stride = 1 if own["skip"] is None else 2
            (a, b), (c, d) = own["norms"]
            y = jax.nn.relu(a * convolved(own["first"], x, stride) + b)
            y = c * convolved(own["second"], y) + d
            x = jax.nn.relu(y + (x if own["skip"] is None else convolved(own["skip"], x, stride)))
        return head @ x.mean((1, 2))

    return call, parameters, (8, 3, 32, 32)


def transformer(key: Any) -> tuple[Any, Any, Any]:
    """Six pre-norm blocks of width 256 with eight heads on 64 tokens."""
    keys = iter(jax.random.split(key, 40))
    blocks = [
        {"qkv": dense(next(keys), 768, 256), "out": dense(next(keys), 256, 256), "scales": jnp.ones((2, 256)),
         "up": dense(next(keys), 1024, 256), "down": dense(next(keys), 256, 1024)}
        for _ in range(6)
    ]  # fmt: skip
    parameters = jax.random.normal(next(keys), (64, 256)), blocks, dense(next(keys), 10, 256)

    def norm(scale: Any, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return scale * x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def call(p: Any, x: Any) -> Any:
        positions, blocks, head = p
        x = x + positions
        for own in blocks:
            q, k, v = (norm(own["scales"][0], x) @ own["qkv"].T).reshape(64, 3, 8, 32).transpose(1, 2, 0, 3)
            weights = jax.nn.softmax(q @ k.transpose(0, 2, 1) / np.sqrt(32))
            x = x + (weights @ v).transpose(1, 0, 2).reshape(64, 256) @ own["out"].T
            x = x + jax.nn.gelu(norm(own["scales"][1], x) @ own["up"].T) @ own["down"].T
        return head @ x.mean(0)

    return call, parameters, (8, 64, 256)


NETWORKS = {"MLP 3×1024": mlp, "CNN 4×64": cnn, "ResNet-18": resnet, "transformer 6×256": transformer}


def measure(name: str, method: Any, patience: float) -> tuple[dict[str, Any], np.ndarray]:
    call, parameters, shape = NETWORKS[name](jax.random.key(0))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel = empirical(call, parameters, method=method)
    start = time.perf_counter()
    value = kernel(x)
    first = time.perf_counter() - start
    times = []
    while len(times) < 5 and sum(times) < patience:
        begin = time.perf_counter()
        kernel(x)
        times.append(time.perf_counter() - begin)
    run = statistics.median(times)
    return {"network": name, "N": shape[0], "method": method, "compile s": first - run, "run s": run}, np.asarray(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=["auto", "jacobian", "products"])
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| network | N | method | compile s | run s | ÷ auto | differs |\n|---|--:|---|--:|--:|--:|--:|")
    for name in arguments.only:
        reference: Any = None
        for method in arguments.methods:
            row, value = measure(name, method, arguments.patience)
            reference = (row["run s"], value) if reference is None else reference
            row["ratio"] = row["run s"] / reference[0]
            row["differs"] = float(np.abs(value - reference[1]).max() / np.abs(reference[1]).max())
            rows.append(row)
            print(
                f"| {name} | {row['N']} | {method} | {row['compile s']:.1f} | {row['run s']:.3f} | {row['ratio']:.1f} "
                f"| {row['differs']:.0e} |",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
