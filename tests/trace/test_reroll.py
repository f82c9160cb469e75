"""Programs with written-out loops against the same programs with their steps put together, as functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex

from tangency.trace.reroll import SHORTEST, rerolled

STEPS, WIDTH = 8, 4


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def program(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


def together(function, *arguments):
    """The program put together after it has been evaluated against the original; None if it stays."""
    original = program(function, *arguments)
    rewritten = rerolled(original, original.jaxpr.eqns)
    if rewritten is not None:
        leaves = jax.tree.leaves(arguments)
        for one, other in zip(jex.jaxpr_as_fun(original)(*leaves), jex.jaxpr_as_fun(rewritten)(*leaves), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)
    return rewritten


def names(rewritten):
    return [equation.primitive.name for equation in rewritten.eqns]


def weights(rng, *shapes):
    return [jnp.asarray(rng.normal(size=shape)) / 2 for shape in shapes]


@pytest.fixture
def square(rng):
    return weights(rng, (WIDTH, WIDTH), (WIDTH, WIDTH), (STEPS, WIDTH))


def last(h, hs):
    return h


def stacked(h, hs):
    return jnp.stack(hs)


def concatenated(h, hs):
    return jnp.concatenate(hs)


def stacked_last(h, hs):
    return jnp.stack(hs, axis=-1)


def reversed_stack(h, hs):
    return jnp.stack(hs[::-1])


def middle(h, hs):
    return hs[3] + hs[5]


def average(h, hs):
    return sum(hs) / len(hs)


def part_of_them(h, hs):
    return jnp.stack(hs[1:-1])


READS = [last, stacked, concatenated, stacked_last, reversed_stack, middle, average, part_of_them]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("order", ["forward", "backward", "iterated", "unstacked", "split"])
def test_recurrence(square, read, order):
    def function(u, w, x):
        match order:
            case "forward":
                entries = [x[t] for t in range(STEPS)]
            case "backward":
                entries = [x[t] for t in reversed(range(STEPS))]
            case "iterated":
                entries = list(x)
            case "unstacked":
                entries = jnp.unstack(x)
            case _:
                entries = [part[0] for part in jnp.split(x, STEPS)]
        h, hs = jnp.zeros(WIDTH), []
        for entry in entries:
            h = jnp.tanh(u @ entry + w @ h)
            hs.append(h)
        return read(h, hs)

    assert names(together(function, *square)).count("steps") == 1


def test_inputs_computed_before_the_loop(square):
    def function(u, w, x):
        inputs = [jax.nn.relu(u @ x[t]) for t in range(STEPS)]
        h = jnp.zeros(WIDTH)
        for entry in inputs:
            h = jnp.tanh(entry + w @ h)
        return h

    assert names(together(function, *square)).count("steps") == 1


def test_sum_in_the_loop(square):
    def function(u, w, x):
        h, total = jnp.zeros(WIDTH), 0.0
        for t in range(STEPS):
            h = jnp.tanh(u @ x[t] + w @ h)
            total = total + h
        return total / STEPS

    assert "reduce_sum" in names(together(function, *square))


def test_sum_that_starts_from_something(square):
    def function(u, w, x):
        h, total = jnp.zeros(WIDTH), x[0]
        for t in range(STEPS):
            h = jnp.tanh(u @ x[t] + w @ h)
            total = total + h
        return total

    assert "reduce_sum" in names(together(function, *square))


@pytest.mark.parametrize("in_sequence", [True, False])
def test_two_layers(rng, in_sequence):
    arguments = weights(rng, *[(WIDTH, WIDTH)] * 4, (STEPS, WIDTH))

    def function(u, w, v, r, x):
        h = g = jnp.zeros(WIDTH)
        if in_sequence:
            hs = []
            for t in range(STEPS):
                h = jnp.tanh(u @ x[t] + w @ h)
                hs.append(h)
            for h in hs:
                g = jnp.tanh(v @ h + r @ g)
            return g
        for t in range(STEPS):
            h = jnp.tanh(u @ x[t] + w @ h)
            g = jnp.tanh(v @ h + r @ g)
        return g

    assert names(together(function, *arguments)).count("steps") == (2 if in_sequence else 1)


def test_batches_and_jitted_steps(rng):
    arguments = weights(rng, (WIDTH, WIDTH), (WIDTH, WIDTH), (3, STEPS, WIDTH))

    def function(u, w, x):
        @jax.jit
        def step(h, entry):
            return jax.nn.relu(entry @ u + h @ w)

        h, hs = jnp.zeros((3, WIDTH)), []
        for t in range(STEPS):
            h = step(h, x[:, t])
            hs.append(h)
        return jnp.stack(hs, axis=1)

    assert names(together(function, *arguments)).count("steps") == 1


def test_steps_that_use_earlier_inputs_too_stay(square):
    def function(u, w, x):
        h = jnp.zeros(WIDTH)
        for t in range(STEPS):
            h = jnp.tanh(u @ (x[t] + x[max(t - 1, 0)]) + w @ h)
        return h

    assert together(function, *square) is None


def test_memory_of_two_steps_stays(square):
    def function(u, w, x):
        h = before = jnp.zeros(WIDTH)
        for t in range(STEPS):
            h, before = jnp.tanh(u @ x[t] + w @ before), h
        return h

    assert together(function, *square) is None


def test_recurrence_from_other_than_zero_stays(square):
    def function(u, w, x):
        h = jnp.ones(WIDTH)
        for t in range(STEPS):
            h = jnp.tanh(u @ x[t] + w @ h)
        return h

    assert together(function, *square) is None


def test_constants_of_each_step_stay(square):
    def function(u, w, x):
        h = jnp.zeros(WIDTH)
        for t in range(STEPS):
            h = jnp.tanh((t + 1.0) * (u @ x[t]) + w @ h)
        return h

    assert together(function, *square) is None


def test_different_weights_in_each_step_stay(rng):
    w, x = weights(rng, (STEPS, WIDTH, WIDTH), (WIDTH,))

    def function(ws, x):
        for w in ws:
            x = jnp.tanh(w @ x)
        return x

    assert together(function, list(w), x) is None


def test_few_steps_stay(square):
    def function(u, w, x):
        h = jnp.zeros(WIDTH)
        for t in range(SHORTEST - 1):
            h = jnp.tanh(u @ x[t] + w @ h)
        return h

    assert together(function, *square) is None


def test_a_custom_derivative_of_one_step_stays(square):
    @jax.custom_jvp
    def straight(x):
        return jnp.tanh(x)

    straight.defjvp(lambda primals, tangents: (straight(*primals), tangents[0]))

    @jax.custom_jvp
    def true(x):
        return jnp.tanh(x)

    true.defjvp(lambda primals, tangents: (true(*primals), tangents[0] * (1 - jnp.tanh(primals[0]) ** 2)))

    def function(u, w, x, odd):
        h = jnp.zeros(WIDTH)
        for t in range(STEPS):
            h = (odd if t == 3 else true)(u @ x[t] + w @ h)
        return h

    for odd, stays in ((straight, True), (true, False)):
        original = program(lambda *a, odd=odd: function(*a, odd), *square)
        assert (rerolled(original, original.jaxpr.eqns) is None) == stays
