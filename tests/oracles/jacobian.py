"""The NTK from explicit Jacobians, one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np


def jacobian(function, parameters, x):
    """∂F/∂p of `function(parameters, x)` at each example, a list over the arrays of parameters of `[n, o, size]`.

    A complex parameter gives two arrays, the derivatives in its real and in its imaginary part.
    """

    def split(array):
        return [array.real, array.imag] if jnp.iscomplexobj(array) else [array]

    arrays, structure = jax.tree.flatten(parameters)
    pieces = [split(array) for array in arrays]

    def outputs(pieces, example):
        whole = [jax.lax.complex(*parts) if len(parts) == 2 else parts[0] for parts in pieces]
        found = jax.tree.leaves(function(jax.tree.unflatten(structure, whole), example))
        return jnp.concatenate([jnp.ravel(array) for array in found])

    @jax.jit
    def derivatives(pieces, example):
        real = jax.jacrev(lambda p: jnp.real(outputs(p, example)))(pieces)
        is_complex = jnp.iscomplexobj(jax.eval_shape(outputs, pieces, example))
        imaginary = jax.jacrev(lambda p: jnp.imag(outputs(p, example)))(pieces) if is_complex else None
        leaves = jax.tree.leaves(real)
        return (
            leaves
            if imaginary is None
            else [a + 1j * b for a, b in zip(leaves, jax.tree.leaves(imaginary), strict=True)]
        )

    rows = [[np.asarray(a).reshape(len(a), -1) for a in derivatives(pieces, example)] for example in x]
    return [np.stack(arrays) for arrays in zip(*rows, strict=True)]


def ntk(function, parameters, x1, x2, rates=None):
    """Θ `[n, m, o, o]` = Σ_p η_p ∂F_p(x) conj(∂F_p(x')); `rates` has a number or flat array for each real array."""
    total = 0.0
    left = jacobian(function, parameters, x1)
    right = left if x2 is x1 else jacobian(function, parameters, x2)
    for k, (a, b) in enumerate(zip(left, right, strict=True)):
        rate = 1.0 if rates is None else rates[k]
        total = total + np.einsum("nop,mqp->nmoq", a * rate, b.conj())
    return total if np.abs(np.imag(total)).max() > 0 else np.real(total)
