"""What `measure.py` does, with neural-tangents, in that library's own environment: `peer.py CASE N DTYPE [DATA]`."""

import sys

import jax
import numpy as np
from jax import numpy
from networks import CASES, KINDS, examples
from neural_tangents import stax
from timing import answer, cost, peak_bytes, seconds

ASKED = {"nngp": "nngp", "ntk": "ntk", "both": ("nngp", "ntk")}


def main() -> None:
    name, n, dtype, *data = sys.argv[1:]
    jax.config.update("jax_enable_x64", dtype == "float64")
    x = examples(int(n), dtype, data[0] if data else None)
    kernel = jax.jit(eval(CASES[name].peer, {**vars(stax), "numpy": numpy})[2], static_argnames="get")

    def evaluate(kind: str) -> np.ndarray:
        return np.stack([np.asarray(matrix) for matrix in jax.tree.leaves(kernel(x, None, get=ASKED[kind]))])

    before, kinds = peak_bytes(), {}
    for kind in KINDS:
        first = seconds(lambda kind=kind: evaluate(kind))
        run = cost(lambda kind=kind: evaluate(kind))
        kinds[kind] = run | {"compile_s": first - run["run_s"], "memory_bytes": peak_bytes() - before}
    answer({"kinds": kinds, "sample": evaluate("both")[:, :50, :50].tolist()})


if __name__ == "__main__":
    main()
