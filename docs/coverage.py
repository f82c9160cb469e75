"""Writes docs/coverage.md: which layers of Equinox and Flax NNX have a limit, found by running each of them.

python docs/coverage.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tangency
from tangency.errors import TangencyError

C, T, N = 12, 5, 6
IMAGE, SEQUENCE, VECTOR = (3, N, N), (T, 3), (3,)


def equinox_layers() -> dict[str, tuple[tuple[int, ...], Callable[[Any], Any], str]]:
    """Name: (shape of an example, key -> layer, how it is called on positions × features)."""
    e = eqx.nn
    channels_first = {
        "Conv2d": lambda k: e.Conv2d(C, C, 3, key=k),
        "ConvTranspose2d": lambda k: e.ConvTranspose2d(C, C, 3, 2, key=k),
        "Conv2d, groups": lambda k: e.Conv2d(C, C, 3, groups=2, key=k),
        "Conv2d, depthwise": lambda k: e.Conv2d(C, C, 3, groups=C, key=k),
        "AvgPool2d": lambda k: e.AvgPool2d(2, 2),
        "MaxPool2d": lambda k: e.MaxPool2d(2, 2),
        "AdaptiveAvgPool2d": lambda k: e.AdaptiveAvgPool2d(2),
        "AdaptiveMaxPool2d": lambda k: e.AdaptiveMaxPool2d(2),
        "GroupNorm": lambda k: e.GroupNorm(2, C),
        "Dropout (inference)": lambda k: e.Dropout(0.5),
        "Identity": lambda k: e.Identity(),
    }
    at_each = {
        "LayerNorm": lambda k: e.LayerNorm(C),
        "RMSNorm": lambda k: e.RMSNorm(C),
        "Linear": lambda k: e.Linear(C, C, key=k),
        "MLP": lambda k: e.MLP(C, C, C, 2, key=k),
        "WeightNorm": lambda k: e.WeightNorm(e.Linear(C, C, key=k)),
    }
    whole = {"PReLU": lambda k: e.PReLU(), "RotaryPositionalEmbedding": lambda k: e.RotaryPositionalEmbedding(C)}
    cells = {"GRUCell": lambda k: e.GRUCell(C, C, key=k), "LSTMCell": lambda k: e.LSTMCell(C, C, key=k)}
    return {
        "Conv1d": (SEQUENCE, lambda k: e.Conv1d(C, C, 3, key=k), "channels first"),
        **{name: (IMAGE, make, "channels first") for name, make in channels_first.items()},
        **{name: (SEQUENCE, make, "at each position") for name, make in at_each.items()},
        **{name: (SEQUENCE, make, "whole") for name, make in whole.items()},
        "MultiheadAttention": (SEQUENCE, lambda k: e.MultiheadAttention(2, C, key=k), "attention"),
        **{name: (SEQUENCE, make, "cell") for name, make in cells.items()},
        "Embedding": ((T,), lambda k: e.Embedding(7, C, key=k), "words"),
    }


class Around(eqx.Module):
    """A weight that gives features, the layer, an average over positions and a dense readout."""

    first: jax.Array
    layer: Any
    last: jax.Array
    how: str = eqx.field(static=True)

    def __init__(self, key: Any, make: Any, how: str):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = jax.random.normal(k1, (3, C))
        self.layer = make(k2)
        self.last = jax.random.normal(k3, (C,))
        self.how = how

    def __call__(self, x: Any) -> Any:
        h = x if self.how == "words" else (jnp.moveaxis(x, 0, -1) if x.ndim == 3 else x) @ self.first
        return self._applied(h).reshape(-1, C).mean(0) @ self.last

    def _applied(self, h: Any) -> Any:
        match self.how:
            case "channels first":
                return jnp.moveaxis(self.layer(jnp.moveaxis(h, -1, 0)), 0, -1)
            case "at each position" | "words":
                return jax.vmap(self.layer)(h)
            case "attention":
                return self.layer(h, h, h)
            case "cell":
                state = jnp.zeros(C, h.dtype)
                for x in h[:2]:
                    state = self.layer(x, (state, state) if isinstance(self.layer, eqx.nn.LSTMCell) else state)
                    state = state[0] if isinstance(state, tuple) else state
                return state
        return self.layer(h)


def flax_layers() -> dict[str, tuple[tuple[int, ...], Callable[[nnx.Rngs], Any], bool]]:
    return {
        "Linear": (SEQUENCE, lambda r: nnx.Linear(C, C, rngs=r), False),
        "LinearGeneral": (SEQUENCE, lambda r: nnx.LinearGeneral(C, C, rngs=r), False),
        "Einsum": (SEQUENCE, lambda r: nnx.Einsum("btc,cd->btd", (C, C), rngs=r), False),
        "Conv": ((N, N, 3), lambda r: nnx.Conv(C, C, (3, 3), rngs=r), False),
        "Conv, CIRCULAR": ((N, N, 3), lambda r: nnx.Conv(C, C, (3, 3), padding="CIRCULAR", rngs=r), False),
        "ConvTranspose": ((N, N, 3), lambda r: nnx.ConvTranspose(C, C, (3, 3), (2, 2), rngs=r), False),
        "LayerNorm": (SEQUENCE, lambda r: nnx.LayerNorm(C, rngs=r), False),
        "RMSNorm": (SEQUENCE, lambda r: nnx.RMSNorm(C, rngs=r), False),
        "GroupNorm": ((N, N, 3), lambda r: nnx.GroupNorm(C, 2, rngs=r), False),
        "InstanceNorm": ((N, N, 3), lambda r: nnx.InstanceNorm(C, rngs=r), False),
        "BatchNorm (inference)": ((N, N, 3), lambda r: nnx.BatchNorm(C, rngs=r), False),
        "Dropout (inference)": (SEQUENCE, lambda r: nnx.Dropout(0.5, rngs=r), False),
        "Embed": ((T,), lambda r: nnx.Embed(7, C, rngs=r), True),
        "MultiHeadAttention": (SEQUENCE, lambda r: nnx.MultiHeadAttention(2, C, decode=False, rngs=r), False),
        "RNN(SimpleCell)": (SEQUENCE, lambda r: nnx.RNN(nnx.SimpleCell(C, C, rngs=r)), False),
        "RNN(GRUCell)": (SEQUENCE, lambda r: nnx.RNN(nnx.GRUCell(C, C, rngs=r)), False),
        "RNN(LSTMCell)": (SEQUENCE, lambda r: nnx.RNN(nnx.LSTMCell(C, C, rngs=r)), False),
        "LoRA": (SEQUENCE, lambda r: nnx.LoRA(C, 2, C, rngs=r), False),
    }


class FlaxAround(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, make: Any, integers: bool):
        self.first = None if integers else nnx.Linear(3, C, rngs=rngs)
        self.layer = make(rngs)
        self.last = nnx.Linear(C, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = self.layer(x if self.first is None else self.first(x))
        return self.last(h.reshape(len(h), -1, C).mean(1))


def outcome(model: Any, shape: tuple[int, ...], integers: bool) -> str:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (2, *shape)).astype(np.int32) if integers else rng.normal(size=(2, *shape))
    try:
        matrix = np.asarray(tangency.limit(model)(x))
    except TangencyError as error:
        return f"refused: {str(error).splitlines()[0]}".replace("|", "\\|")
    return "✓" if np.all(np.isfinite(matrix)) else "not finite"


def main() -> None:
    lines = [
        "# Which layers have a limit",
        "",
        "Written by `python docs/coverage.py`, which runs every layer between a weight and an average over positions",
        "with a dense readout.",
    ]
    for title, rows in (
        (
            f"Equinox {eqx.__version__}",
            {
                name: outcome(lambda key, m=make, h=how: Around(key, m, h), shape, how == "words")
                for name, (shape, make, how) in equinox_layers().items()
            },
        ),
        (
            "Flax NNX",
            {
                name: outcome(lambda key, m=make, i=integers: FlaxAround(nnx.Rngs(key), m, i), shape, integers)
                for name, (shape, make, integers) in flax_layers().items()
            },
        ),
    ):
        lines += ["", f"## {title}", "", "| layer | limit |", "|---|---|"]
        lines += [f"| `{name}` | {result} |" for name, result in rows.items()]
    from tangency.graph.known import ELEMENTWISE
    from tangency.trace import contraction, lookup, loops
    from tangency.trace.interpreter import RULES

    del contraction, lookup, loops
    lines += ["", "## JAX primitives with a rule on random values", "", "Elementwise: " + _listed(ELEMENTWISE) + "."]
    lines += ["", "Others: " + _listed(set(RULES) - ELEMENTWISE - {"default"}) + "."]
    lines += [
        "",
        _ON_KNOWN,
    ]
    (Path(__file__).parent / "coverage.md").write_text("\n".join(lines) + "\n")


_ON_KNOWN = "On values that depend on the input alone every primitive without effects or inner programs is evaluated."


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    main()
