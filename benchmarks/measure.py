"""One row of the limit benchmark, measured in a process of its own: `measure.py CASE N DTYPE [DATA]`, JSON out."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from networks import CASES, KINDS, Case, examples
from timing import answer, cost, peak_bytes, seconds

import tangency
from tangency import models

WIDTH = 64


class PreNorm(eqx.Module):
    """A residual network whose norms have no parameters, as in the peer library."""

    layers: list[eqx.nn.Linear]
    norm: eqx.nn.LayerNorm

    def __init__(self, case: Case, features: int, key: jax.Array):
        keys = iter(jax.random.split(key, 2 * case.depth + 2))
        sizes = [(features, 1.0), *[(WIDTH, case.w_std), (WIDTH, 1.0)] * case.depth, (WIDTH, 1.0)]
        self.layers = [linear(fan_in, w_std, next(keys)) for fan_in, w_std in sizes]
        self.norm = eqx.nn.LayerNorm(WIDTH, use_weight=False, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        embedding, *inside, readout = self.layers
        x = embedding(x)
        for inner, outer in zip(inside[::2], inside[1::2], strict=True):
            x = x + outer(jax.nn.relu(inner(self.norm(x))))
        return readout(self.norm(x))


def linear(fan_in: int, w_std: float, key: jax.Array) -> eqx.nn.Linear:
    layer = eqx.nn.Linear(fan_in, WIDTH, key=key)
    weight_key, bias_key = jax.random.split(key)
    values = w_std / np.sqrt(fan_in) * jax.random.normal(weight_key, (WIDTH, fan_in))
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (values, 0.1 * jax.random.normal(bias_key, (WIDTH,))))


def network(case: Case, features: int, key: jax.Array) -> eqx.Module:
    if case.residual:
        return PreNorm(case, features, key)
    return models.MLP(
        features, 1, depth=case.depth, width=WIDTH, activation=case.activation, w_std=case.w_std, b_std=0.1, key=key
    )


def main() -> None:
    name, n, dtype, *data = sys.argv[1:]
    x = examples(int(n), dtype, data[0] if data else None)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    with jax.enable_x64(dtype == "float64"):
        multiply = jax.jit(lambda z: jnp.matmul(z, z.T, precision="highest"))
        np.asarray(multiply(jnp.asarray(x)))
        product = cost(lambda: np.asarray(multiply(jnp.asarray(x))))
    kernel = tangency.limit(lambda key: network(CASES[name], x.shape[1], key), fused=False)
    derive = seconds(lambda: kernel.graph(x.shape[1:]))
    before, kinds = peak_bytes(), {}
    for kind in KINDS:
        first = seconds(lambda kind=kind: kernel.evaluate(kind, x))
        programs = len(compiled)
        run = cost(lambda kind=kind: kernel.evaluate(kind, x))
        kinds[kind] = run | {
            "compile_s": first - run["run_s"],
            "recompilations": len(compiled) - programs,
            "memory_bytes": peak_bytes() - before,
        }
    sample = kernel.evaluate("both", x)[:, :50, :50]
    answer({"features": x.shape[1], "product": product, "derive_s": derive, "kinds": kinds, "sample": sample.tolist()})


if __name__ == "__main__":
    main()
