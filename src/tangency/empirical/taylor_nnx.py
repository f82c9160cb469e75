"""Taylor polynomials of Flax NNX modules; imported only where Flax is."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from .taylor import expanded


class Reference(nnx.Variable):
    """A parameter as it was when the network was expanded. It does not train."""


class NNXTaylorExpansion(nnx.Module):
    """The Taylor polynomial of `network` in its `nnx.Param`s θ, around those it had when it was given."""

    def __init__(self, network: nnx.Module, order: int):
        self.network = nnx.clone(network)
        self.order = order
        _, parameters, _ = nnx.split(self.network, nnx.Param, ...)
        self.frozen = nnx.List([Reference(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(parameters))])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graph, parameters, rest = nnx.split(self.network, nnx.Param, ...)
        arrays = nnx.to_pure_dict(parameters)
        leaves, structure = jax.tree.flatten(arrays)
        frozen = [own[...].astype(leaf.dtype) for own, leaf in zip(self.frozen, leaves, strict=True)]

        def call(values: Any) -> tuple[Any, Any]:
            nnx.replace_by_pure_dict(parameters, values)
            network: Any = nnx.merge(graph, parameters, rest, copy=True)
            outputs = network(*args, **kwargs)
            return outputs, nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param)))

        outputs, state = expanded(call, jax.tree.unflatten(structure, frozen), arrays, self.order)
        before, after = jax.tree.leaves(nnx.to_pure_dict(rest)), jax.tree.leaves(state)
        # Variables may only be written where the caller's trace allows it, so not unless the call has changed them.
        if any(new is not old for new, old in zip(after, before, strict=True)):
            nnx.replace_by_pure_dict(rest, state)
            nnx.update(self.network, rest)
        return outputs
