"""One row of `kernels.py` with neural-tangents, in that library's own environment: `peer_kernels.py ROW`, JSON out."""

import sys

import jax
import numpy as np
from jax import numpy
from kernel_rows import ROWS
from neural_tangents import stax
from timing import answer, spent


def main() -> None:
    row = ROWS[sys.argv[1]]
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(row.fused, *row.shape)).astype(np.float32)[: row.peer] for _ in range(2))
    if row.head != "dense":
        x, y = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, y))
    kernel = jax.jit(eval(row.in_peer, {**vars(stax), "numpy": numpy})[2], static_argnames="get")

    def evaluate() -> np.ndarray:
        return np.asarray(kernel(x, None if row.head == "dense" else y, get=("nngp", "ntk")).ntk)

    value = evaluate()
    answer({"ms": 1e3 * spent(evaluate) / row.peer**2, "sample": value[:8, :8].tolist()})


if __name__ == "__main__":
    main()
