"""Limits of a recurrent network, read out from the mean of its states: time to trace, compile and run.

    python benchmarks/recurrent.py [--steps 8 16 64] [--json FILE]

Each row is one spelling of the same ReLU network: a loop in Python, which the trace sees written out step by step, or
`lax.scan`. float64, one pair of examples.
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

WIDTH, INPUTS = 64, 3


class Network(eqx.Module):
    cell: eqx.nn.Linear
    entry: eqx.nn.Linear
    head: eqx.nn.Linear
    spelling: str = eqx.field(static=True)

    def __init__(self, key: Any, spelling: str) -> None:
        first, second, third = jax.random.split(key, 3)
        self.entry = eqx.nn.Linear(INPUTS, WIDTH, key=first)
        self.cell = eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=second)
        self.head = eqx.nn.Linear(WIDTH, 1, key=third)
        self.spelling = spelling

    def __call__(self, x: Any) -> Any:
        def step(state: Any, entry: Any) -> tuple[Any, Any]:
            state = jax.nn.relu(self.entry(entry) + self.cell(state))
            return state, state

        state = jnp.zeros(WIDTH, x.dtype)
        if self.spelling == "lax.scan":
            return self.head(jax.lax.scan(step, state, x)[1].mean(0))
        states = []
        for entry in x:
            state, _ = step(state, entry)
            states.append(state)
        return self.head(jnp.mean(jnp.stack(states), 0))


def measure(spelling: str, steps: int) -> tuple[dict[str, Any], np.ndarray]:
    x = np.random.default_rng(0).normal(size=(2, steps, INPUTS))
    start = time.perf_counter()
    kernel = limit(lambda key: Network(key, spelling))
    kernel.graph((steps, INPUTS))
    traced = time.perf_counter()
    value = kernel(x)
    first = time.perf_counter()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        kernel(x)
        times.append(time.perf_counter() - begin)
    run = statistics.median(times)
    row = {
        "spelling": spelling,
        "steps": steps,
        "trace s": traced - start,
        "compile s": first - traced - run,
        "ms per entry": 1e3 * run / 4,
    }
    return row, np.asarray(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 16, 64])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    measure("lax.scan", 4)
    rows: list[dict[str, Any]] = []
    print("| spelling | steps | trace s | compile s | ms per entry | differs |\n|---|--:|--:|--:|--:|--:|")
    for steps in arguments.steps:
        reference = None
        for spelling in ("lax.scan", "Python loop"):
            row, value = measure(spelling, steps)
            reference = value if reference is None else reference
            row["differs"] = float(np.max(np.abs(value / reference - 1)))
            rows.append(row)
            print(
                f"| {spelling} | {steps} | {row['trace s']:.2f} | {row['compile s']:.2f} | {row['ms per entry']:.2f} "
                f"| {row['differs']:.0e} |",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
