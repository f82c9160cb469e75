"""Whether somebody traces, and values all the same."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp


def is_tracer(x: Any) -> bool:
    """Whether x is traced, asked without copying it from its device."""
    if not isinstance(x, jax.Array):
        return False
    try:
        x.devices()
    except jax.errors.ConcretizationTypeError:
        return True
    return False


def outside_of_traces() -> AbstractContextManager[None]:
    """What is computed inside has values at once, even while a caller is being traced.

    Nothing changes where nobody is: under `jax.ensure_compile_time_eval` JAX would also compute every constant of the
    programs that are traced inside, each by a small program of its own.
    """
    return jax.ensure_compile_time_eval() if is_tracer(jnp.zeros(())) else nullcontext()
