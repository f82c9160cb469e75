"""Finite-width NTKs on one machine: structured contraction against Jacobian contraction and NTK-vector products.

    python benchmarks/empirical.py [--torch PYTHON] [--json FILE] [--only NAME ...] [--methods METHOD ...] [--large]
        [--memory MIB] [--operator]

Each row is one network and method in float32, Θ averaged over its outputs; all methods compile with the same program
and agree (`differs`). `÷ auto` is a ratio of processor times, which a busy machine disturbs least, on a GPU
of times by the clock. Repeated up to five times, or until `--patience` seconds have gone. `--torch` names the
interpreter of an environment with PyTorch, whose `torch.func` then computes the same in a process of its own. `--large`
measures one network of 25 million parameters with 1,000 outputs instead, 64 examples in 8 GiB. `--memory` is what the
kernel may use, parameters included. `--operator` measures products of Θ over all outputs with vectors instead, in units
of one backward and one forward pass, written with `jax.vjp` and `jax.jvp` and compiled for all examples.
"""

import argparse
import json
import resource
import statistics
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import cost

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


def wave_function(key: Any) -> tuple[Any, Any, Any]:
    """The logarithm of a restricted Boltzmann machine of 40 spins with complex parameters."""
    real, imaginary = 0.05 * jax.random.normal(key, (2, 160, 40))
    parameters = jax.lax.complex(real, imaginary), jnp.zeros(160, jnp.complex64)

    def call(p: Any, x: Any) -> Any:
        return jnp.log(jnp.cosh(p[0] @ jnp.sign(x) + p[1])).sum()

    return call, parameters, (1000, 40)


def residual(key: Any) -> tuple[Any, Any, Any]:
    """The Laplacian of an MLP, as physics-informed networks have it."""
    shapes = ((256, 2), (256, 256), (256, 256), (1, 256))
    parameters = [dense(k, *shape) for k, shape in zip(jax.random.split(key, 4), shapes, strict=True)]

    def network(p: Any, x: Any) -> Any:
        for w in p[:-1]:
            x = jnp.tanh(w @ x)
        return (p[-1] @ x)[0]

    return lambda p, x: jnp.trace(jax.hessian(network, argnums=1)(p, x)), parameters, (256, 2)


def large(key: Any) -> tuple[Any, Any, Any]:
    """25.0 million parameters, 1,000 outputs."""
    shapes = ((3072, 3072), (2600, 3072), (2000, 2600), (1300, 2000), (1000, 1300))
    parameters = [dense(k, *shape) for k, shape in zip(jax.random.split(key, 5), shapes, strict=True)]

    def call(p: Any, x: Any) -> Any:
        for w in p[:-1]:
            x = jax.nn.gelu(w @ x)
        return p[-1] @ x

    return call, parameters, (64, 3072)


NETWORKS = {
    "MLP 3×1024": mlp,
    "CNN 4×64": cnn,
    "ResNet-18": resnet,
    "transformer 6×256": transformer,
    "wave function": wave_function,
    "Laplacian": residual,
}
OF_ONE_OUTPUT = "wave function", "Laplacian"
"""Of these there are no products with all outputs, and no rows of `torch.func`."""


def measure(name: str, method: Any, patience: float, memory: int | None) -> tuple[dict[str, Any], np.ndarray]:
    call, parameters, shape = NETWORKS[name](jax.random.key(0))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel = empirical(call, parameters, method=method, memory=memory)
    start = time.perf_counter()
    value = kernel(x)
    first = time.perf_counter() - start
    clock: list[float] = []
    processor: list[float] = []
    while len(clock) < 5 and sum(clock) < patience:
        begin, cpu = time.perf_counter(), time.process_time()
        kernel(x)
        clock.append(time.perf_counter() - begin)
        processor.append(time.process_time() - cpu)
    run, plan = statistics.median(clock), kernel.plan
    assert plan is not None
    row = {"network": name, "N": shape[0], "method": method, "compile s": first - run, "run s": run}
    return row | {"cpu s": statistics.median(processor), "peak": plan.temporary}, np.asarray(value)


def by_torch(python: str, name: str, patience: float) -> dict[str, Any]:
    script = Path(__file__).with_name("empirical_torch.py")
    found = subprocess.run([python, str(script), name, str(patience)], capture_output=True, text=True, check=True)
    row = {"network": name, "N": NETWORKS[name](jax.random.key(0))[2][0], "method": "torch.func", "compile s": 0.0}
    return row | json.loads(found.stdout)


def run_large() -> None:
    call, parameters, shape = large(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel = empirical(call, parameters, memory=8 * 2**30)
    start = time.perf_counter()
    value = kernel(x)
    count = sum(array.size for array in jax.tree.leaves(parameters))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{count:,} parameters, N = 64, 1,000 outputs: {time.perf_counter() - start:.1f} s, the process at most "
          f"{peak:.2f} GiB; smallest eigenvalue {np.linalg.eigvalsh(value).min():.3g}")  # fmt: skip
    print(kernel)


def run_operator(names: list[str]) -> None:
    print("| network | N | vectors | s | ÷ passes, a vector |")
    print("|---|--:|--:|--:|--:|")
    for name in names:
        call, parameters, shape = NETWORKS[name](jax.random.key(0))
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

        @jax.jit
        def passes(parameters: Any, x: Any, v: Any, call: Any = call) -> Any:
            def outputs(p: Any) -> Any:
                return jax.vmap(lambda example: call(p, example))(x)

            (direction,) = jax.vjp(outputs, parameters)[1](v)
            return jax.jvp(outputs, (parameters,), (direction,))[1]

        operator = empirical(call, parameters, outputs="full").operator(x)
        v = np.ones((shape[0], 10), np.float32)
        alone = seconds(lambda passes=passes, p=parameters, x=x, v=v: jax.block_until_ready(passes(p, x, v)))
        for q in (1, 16):
            vectors = np.repeat(v.reshape(-1, 1), q, axis=1)
            own = seconds(lambda operator=operator, vectors=vectors: operator.matmat(vectors))
            print(f"| {name} | {shape[0]} | {q} | {own:.3f} | {own / q / alone:.2f} |", flush=True)


def seconds(action: Any) -> float:
    """The median by the clock, after a first call."""
    action()
    return cost(action)["run_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    methods = ["auto", "jacobian", "products"]
    parser.add_argument("--methods", nargs="*", choices=methods, default=methods)
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--torch")
    parser.add_argument("--memory", type=float)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--operator", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.operator:
        run_operator([name for name in arguments.only if name not in OF_ONE_OUTPUT])
        return
    if arguments.large:
        run_large()
        return
    memory = None if arguments.memory is None else int(arguments.memory * 2**20)
    rows: list[dict[str, Any]] = []
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    print("| network | N | method | compile s | run s | cpu s | ÷ auto | MiB | differs |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|")
    for name in arguments.only:
        reference: Any = None
        for method in arguments.methods + (["torch.func"] if arguments.torch and name not in OF_ONE_OUTPUT else []):
            if method == "torch.func":
                row, value = by_torch(arguments.torch, name, arguments.patience), None
            else:
                row, value = measure(name, method, arguments.patience, memory)
            spent = row["cpu s" if jax.default_backend() == "cpu" else "run s"]
            reference = (spent, value) if reference is None else reference
            row["ratio"] = spent / reference[0]
            if value is not None:
                row["differs"] = float(np.abs(value - reference[1]).max() / np.abs(reference[1]).max())
            rows.append(row)
            differs = f"{row['differs']:.0e}" if "differs" in row else ""
            print(
                f"| {name} | {row['N']} | {row['method']} | {row['compile s']:.1f} | {row['run s']:.3f} "
                f"| {row['cpu s']:.3f} | {row['ratio']:.1f} | {row['peak'] / 2**20:.0f} | {differs} |",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
