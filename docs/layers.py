"""Writes docs/layers.md: which layers of Equinox and Flax NNX have a limit, found by running each of them.

python docs/layers.py
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import activations

import tangency as tg
from tangency.errors import TangencyError
from tangency.graph.known import ELEMENTWISE
from tangency.trace.interpreter import INLINED, RULES
from tangency.trace.model import open_model

IN, OUT, T = 64, 72, 2
LINE, IMAGE, VOLUME, SEQUENCE = (4, 3), (4, 4, 3), (2, 2, 2, 3), (T, 3)
NUMERICAL = tg.QuasiMonteCarlo(64, 2)


class Example(NamedTuple):
    """A layer, made from a key or Rngs and called by `call(layer, h)`, on inputs of one shape (channels last)."""

    shape: tuple[int, ...]
    make: Callable[[Any], Any]
    call: Callable[[Any, Any], Any]
    words: bool = False


def _first(layer: Any, h: Any) -> Any:
    return jnp.moveaxis(layer(jnp.moveaxis(h, -1, 0)), 0, -1)


def _each(layer: Any, h: Any) -> Any:
    return jax.vmap(layer)(h)


def _whole(layer: Any, h: Any) -> Any:
    return layer(h)


def _stateful(layer: Any, h: Any) -> Any:
    inner, state = layer
    return inner(h, state)[0]


def _equinox_cell(layer: Any, h: Any) -> Any:
    state = jnp.zeros(OUT, h.dtype)
    carry = (state, state) if isinstance(layer, eqx.nn.LSTMCell) else state
    for x in h:
        carry = layer(x, carry)
    return (carry[0] if isinstance(carry, tuple) else carry)[None]


def _shared(layer: Any, h: Any) -> Any:
    one, other = layer()
    return jax.vmap(lambda x: other(jax.nn.relu(one(x))))(h)


def _tied(key: Any) -> Any:
    first, second = jax.random.split(key)
    pair = (eqx.nn.Linear(IN, IN, key=first), eqx.nn.Linear(IN, IN, key=second))
    return eqx.nn.Shared(pair, where=lambda p: p[1].weight, get=lambda p: p[0].weight)


def equinox_examples() -> dict[str, Example]:
    e = eqx.nn
    found = {
        "Conv": Example(IMAGE, lambda k: e.Conv(2, IN, OUT, 3, key=k), _first),
        "ConvTranspose": Example(IMAGE, lambda k: e.ConvTranspose(2, IN, OUT, 3, key=k), _first),
        "Pool": Example(IMAGE, lambda k: e.Pool(0.0, jax.lax.add, 2, 2), _first),
        "AdaptivePool": Example(IMAGE, lambda k: e.AdaptivePool(2, 2, jnp.mean), _first),
        "GroupNorm": Example(IMAGE, lambda k: e.GroupNorm(2, IN), _first),
        "Dropout": Example(SEQUENCE, lambda k: e.Dropout(0.5), _whole),
        "Identity": Example(SEQUENCE, lambda k: e.Identity(), _whole),
        "Lambda": Example(SEQUENCE, lambda k: e.Lambda(jax.nn.relu), _whole),
        "PReLU": Example(SEQUENCE, lambda k: e.PReLU(), _whole),
        "RotaryPositionalEmbedding": Example(SEQUENCE, lambda k: e.RotaryPositionalEmbedding(IN), _whole),
        "LayerNorm": Example(SEQUENCE, lambda k: e.LayerNorm(IN), _each),
        "RMSNorm": Example(SEQUENCE, lambda k: e.RMSNorm(IN), _each),
        "Linear": Example(SEQUENCE, lambda k: e.Linear(IN, OUT, key=k), _each),
        "MLP": Example(SEQUENCE, lambda k: e.MLP(IN, OUT, 80, 2, key=k), _each),
        "WeightNorm": Example(SEQUENCE, lambda k: e.WeightNorm(e.Linear(IN, OUT, key=k)), _each),
        "Sequential": Example(
            SEQUENCE, lambda k: e.Sequential([e.Linear(IN, OUT, key=k), e.Lambda(jax.nn.relu)]), _each
        ),
        "Shared": Example(SEQUENCE, _tied, _shared),
        "MultiheadAttention": Example(
            SEQUENCE, lambda k: e.MultiheadAttention(2, IN, key=k), lambda layer, h: layer(h, h, h)
        ),
        "GRUCell": Example(SEQUENCE, lambda k: e.GRUCell(IN, OUT, key=k), _equinox_cell),
        "LSTMCell": Example(SEQUENCE, lambda k: e.LSTMCell(IN, OUT, key=k), _equinox_cell),
        "Embedding": Example((T,), lambda k: e.Embedding(7, IN, key=k), _each, words=True),
        "BatchNorm": Example(
            IMAGE,
            lambda k: e.make_with_state(e.BatchNorm)(IN, "batch", mode="ema"),
            lambda layer, h: jnp.moveaxis(_stateful(layer, jnp.moveaxis(h, -1, 0)), 0, -1),
        ),
        "SpectralNorm": Example(
            SEQUENCE,
            lambda k: e.make_with_state(e.SpectralNorm)(e.Linear(IN, OUT, key=k), "weight", key=k),
            lambda layer, h: jax.vmap(lambda x: _stateful(layer, x))(h),
        ),
    }
    for d, shape in ((1, LINE), (2, IMAGE), (3, VOLUME)):
        for name in ("Conv", "ConvTranspose"):
            made = getattr(e, f"{name}{d}d")
            found[f"{name}{d}d"] = Example(shape, lambda k, c=made: c(IN, OUT, 2, key=k), _first)
        for name in ("AvgPool", "MaxPool"):
            made = getattr(e, f"{name}{d}d")
            found[f"{name}{d}d"] = Example(shape, lambda k, c=made: c(2, 2), _first)
            adaptive = getattr(e, f"Adaptive{name}{d}d")
            found[f"Adaptive{name}{d}d"] = Example(shape, lambda k, c=adaptive: c(1), _first)
    return found


def _heads(h: Any) -> Any:
    return h.reshape(*h.shape[:-1], 2, IN // 2)


def flax_examples() -> dict[str, Example]:
    n = nnx

    def rnn(cell: Any) -> Example:
        return Example(SEQUENCE, lambda r: n.RNN(cell(IN, OUT, rngs=r)), _whole)

    def linear(r: Any) -> Any:
        return n.Linear(IN, OUT, rngs=r)

    made: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
        "Linear": (SEQUENCE, linear),
        "LinearGeneral": (SEQUENCE, lambda r: n.LinearGeneral(IN, OUT, rngs=r)),
        "Einsum": (SEQUENCE, lambda r: n.Einsum("btc,cd->btd", (IN, OUT), rngs=r)),
        "Conv": (IMAGE, lambda r: n.Conv(IN, OUT, (3, 3), rngs=r)),
        "ConvTranspose": (IMAGE, lambda r: n.ConvTranspose(IN, OUT, (3, 3), rngs=r)),
        "LayerNorm": (SEQUENCE, lambda r: n.LayerNorm(IN, rngs=r)),
        "RMSNorm": (SEQUENCE, lambda r: n.RMSNorm(IN, rngs=r)),
        "GroupNorm": (IMAGE, lambda r: n.GroupNorm(IN, 2, rngs=r)),
        "InstanceNorm": (IMAGE, lambda r: n.InstanceNorm(IN, rngs=r)),
        "BatchNorm": (IMAGE, lambda r: n.BatchNorm(IN, rngs=r)),
        "WeightNorm": (SEQUENCE, lambda r: n.WeightNorm(linear(r), rngs=r)),
        "SpectralNorm": (SEQUENCE, lambda r: n.SpectralNorm(linear(r), rngs=r)),
        "Dropout": (SEQUENCE, lambda r: n.Dropout(0.5, rngs=r)),
        "PReLU": (SEQUENCE, lambda r: n.PReLU()),
        "Sequential": (SEQUENCE, lambda r: n.Sequential(linear(r), n.relu)),
        "MultiHeadAttention": (SEQUENCE, lambda r: n.MultiHeadAttention(2, IN, decode=False, rngs=r)),
        "LoRA": (SEQUENCE, lambda r: n.LoRA(IN, 8, OUT, rngs=r)),
        "LoRALinear": (SEQUENCE, lambda r: n.LoRALinear(IN, OUT, lora_rank=8, rngs=r)),
        "Bidirectional": (
            SEQUENCE,
            lambda r: n.Bidirectional(n.RNN(n.SimpleCell(IN, OUT, rngs=r)), n.RNN(n.SimpleCell(IN, OUT, rngs=r))),
        ),
    }
    if hasattr(n, "RoPE"):  # Flax 0.12.12 and later
        made["RoPE"] = (SEQUENCE, lambda r: n.RoPE())
    found = {name: Example(shape, make, _whole) for name, (shape, make) in made.items()}
    cells = {name: rnn(getattr(n, name)) for name in ("SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell")}
    found |= cells | {"RNN": cells["SimpleCell"]}
    found["Embed"] = Example((T,), lambda r: n.Embed(7, IN, rngs=r), _whole, words=True)
    found["List"] = Example(SEQUENCE, lambda r: n.List([linear(r)]), lambda layer, h: layer[0](h))
    found["Dict"] = Example(SEQUENCE, lambda r: n.Dict(dense=linear(r)), lambda layer, h: layer["dense"](h))
    for name in ("avg_pool", "max_pool", "min_pool"):
        pool = getattr(n, name)
        found[name] = Example(IMAGE, lambda r: None, lambda _, h, f=pool: f(h, window_shape=(2, 2), strides=(2, 2)))
    found["dot_product_attention"] = Example(
        SEQUENCE,
        lambda r: None,
        lambda _, h: n.dot_product_attention(_heads(h), _heads(h), _heads(h)).reshape(h.shape),
    )
    for name in public_activations():
        function = getattr(n, name)
        found[name] = Example(SEQUENCE, lambda r: None, lambda _, h, f=function: f(h))
    return found


EQUINOX_EXCLUDED = {
    "StateIndex": "not a layer: a key into a `State`",
    "StatefulLayer": "not a layer: a base class",
}
FLAX_EXCLUDED = {
    "Module": "not a layer: a base class",
    "RNNCellBase": "not a layer: a base class",
    "logsumexp": "not a layer: a reduction over units",
    "one_hot": "not a layer: an encoding of integer inputs",
}
FUNCTIONS = ("avg_pool", "max_pool", "min_pool", "dot_product_attention")


def public_activations() -> list[str]:
    names = [name for name in activations.__all__ if hasattr(nnx, name) and not inspect.isclass(getattr(nnx, name))]
    return [name for name in names if name not in FLAX_EXCLUDED]


def public_layers() -> tuple[set[str], set[str]]:
    """Names of the public modules of `equinox.nn`, and of the modules and layer-like functions of `flax.nnx`."""

    def modules(room: Any, base: type) -> set[str]:
        members = {name: member for name, member in vars(room).items() if not name.startswith("_")}
        return {name for name, member in members.items() if inspect.isclass(member) and issubclass(member, base)}

    functions = {*FUNCTIONS, *(name for name in activations.__all__ if hasattr(nnx, name))}
    return modules(eqx.nn, eqx.Module), modules(nnx, nnx.Module) | functions


def unlisted() -> list[str]:
    """Public layers with neither an example nor a stated exclusion."""
    equinox, flax = public_layers()
    return sorted(
        [f"equinox.nn.{name}" for name in equinox - equinox_examples().keys() - EQUINOX_EXCLUDED.keys()]
        + [f"flax.nnx.{name}" for name in flax - flax_examples().keys() - FLAX_EXCLUDED.keys()]
    )


class Around(eqx.Module):
    """A weight that gives features, the layer, an average over positions and a dense readout."""

    first: jax.Array
    layer: Any
    last: jax.Array
    example: Example = eqx.field(static=True)

    def __init__(self, key: Any, example: Example, width: int):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = jax.random.normal(k1, (3, IN)) / 3**0.5
        self.layer = example.make(k2)
        self.last = jax.random.normal(k3, (width,)) / width**0.5
        self.example = example

    def features(self, x: Any) -> Any:
        return self.example.call(self.layer, x if self.example.words else x @ self.first)

    def __call__(self, x: Any) -> Any:
        h = self.features(x)
        return h.reshape(-1, h.shape[-1]).mean(0) @ self.last


class FlaxAround(nnx.Module):
    """The same in Flax NNX, on a batch."""

    def __init__(self, rngs: nnx.Rngs, example: Example, width: int):
        self.first = None if example.words else nnx.Linear(3, IN, rngs=rngs)
        self.layer = example.make(rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)
        self.call = example.call

    def features(self, x: Any) -> Any:
        return self.call(self.layer, x if self.first is None else self.first(x))

    def __call__(self, x: Any) -> Any:
        h = self.features(x)
        return self.last(h.reshape(len(h), -1, h.shape[-1]).mean(1))


def network(example: Example, flax: bool) -> Callable[[Any], Any]:
    """A function of a key; the layer's own width is found by calling it once."""
    x = jnp.zeros((3, *example.shape), jnp.int32 if example.words else jnp.float32)
    if not flax:
        probe = eqx.nn.inference_mode(Around(jax.random.key(0), example, 1))
        width = jax.eval_shape(probe.features, x[0]).shape[-1]
        return lambda key: Around(key, example, width)
    one = FlaxAround(nnx.Rngs(0), example, 1)
    one.eval()
    width = one.features(x).shape[-1]
    return lambda key: FlaxAround(nnx.Rngs(key), example, width)


def outcome(example: Example, flax: bool) -> str:
    """A tick, "numerical rule", or the first line of the refusal."""
    rng = np.random.default_rng(0)
    shape = (3, *example.shape)
    x = rng.integers(0, 7, shape).astype(np.int32) if example.words else rng.normal(size=shape)
    refusal = ""
    for numerical, verdict in ((False, "✓"), (NUMERICAL, "numerical rule")):
        try:
            matrix = np.asarray(tg.limit(network(example, flax), numerical=numerical)(x))
        except TangencyError as error:
            refusal = refusal or re.sub(r" at [\w/]*\.py:\d+", "", str(error).splitlines()[0])
            continue
        least, *_, largest = np.linalg.eigvalsh(matrix)
        if not (np.all(np.isfinite(matrix)) and least >= -1e-6 * largest):
            return "**wrong: not finite or not positive semi-definite**"
        return verdict
    return f"refused: {refusal}".replace("|", "\\|")


def table(examples: dict[str, Example], excluded: dict[str, str], flax: bool) -> list[str]:
    found = {name: outcome(example, flax) for name, example in examples.items()} | excluded
    return ["", "| layer | limit |", "|---|---|", *(f"| `{name}` | {found[name]} |" for name in sorted(found))]


def primitives(example: Example, flax: bool) -> set[str]:
    """The primitives that a network's forward pass is made of, inner programs included."""
    functions = open_model(network(example, flax), flax)
    x = jnp.zeros(example.shape, jnp.int32 if example.words else jnp.float32)
    made = functions.initialise(jax.random.key(0), x[None] if flax else x)
    program = jax.make_jaxpr(made.call)(made.parameters, made.state, x[None] if flax else x)
    found: set[str] = set()
    stack: list[Any] = [program.jaxpr]
    while stack:
        for equation in stack.pop().eqns:
            found.add(equation.primitive.name)
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    if hasattr(inner, "jaxpr"):
                        stack.append(inner.jaxpr)
                    elif hasattr(inner, "eqns"):
                        stack.append(inner)
    return found


def treatment(name: str) -> str:
    """What the tracer does with a primitive on random values."""
    if name in INLINED:
        return "inlined"
    if name in RULES and name not in ELEMENTWISE:
        return f"a rule of its own (`{RULES[name].__module__.removeprefix('tangency.')}`)"
    if name in ("add", "sub", "mul", "div", "neg", "select_n", "convert_element_type", "copy"):
        return "sums, products, choices of signals (`trace.rules`)"
    if name in ELEMENTWISE:
        return "composed into the activation"
    return "evaluated where it depends on the input alone; refused on random values"


def primitive_table(examples: Sequence[tuple[dict[str, Example], bool]]) -> list[str]:
    met: set[str] = set()
    for some, flax in examples:
        for example in some.values():
            met |= primitives(example, flax)
    others = sorted(name for name in RULES if name not in met and name != "default")
    return [
        "",
        "## JAX primitives in these networks",
        "",
        "| primitive | treatment |",
        "|---|---|",
        *(f"| `{name}` | {treatment(name)} |" for name in sorted(met)),
        "",
        f"Rules that none of them needs: {', '.join(f'`{name}`' for name in others)}.",
    ]


def main() -> None:
    missing = unlisted()
    if missing:
        sys.exit(f"docs/layers.py: no example and no stated exclusion for {', '.join(missing)}; add one")
    lines = [
        "# Which layers have a limit",
        "",
        "Written by `python docs/layers.py`, which runs every public layer between a weight and an average over",
        "positions with a dense readout. ✓: a finite, positive semi-definite kernel on three inputs; numerical rule:",
        "the same with `numerical=`.",
        "",
        f"## Equinox {eqx.__version__}",
        *table(equinox_examples(), EQUINOX_EXCLUDED, False),
        "",
        "## Flax NNX",
        *table(flax_examples(), FLAX_EXCLUDED, True),
        *primitive_table([(equinox_examples(), False), (flax_examples(), True)]),
    ]
    (Path(__file__).parent / "layers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
