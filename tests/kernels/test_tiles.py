"""Sizes that programs are compiled for."""

import jax.numpy as jnp
import numpy as np

from tangency.kernels.tiles import cuts, even, filled, padded


def test_four_sizes_in_every_octave():
    for power in range(3, 12):
        sizes = {filled(n) for n in range(2**power + 1, 2 ** (power + 1) + 1)}
        assert sizes == {2**power // 4 * k for k in (5, 6, 7, 8)}


def test_no_size_is_smaller_or_much_larger():
    for n in range(1, 3000):
        assert n <= filled(n) <= max(n, 1.25 * n)
    assert [filled(n) for n in range(1, 9)] == list(range(1, 9))


def test_even_tiles_are_as_few_as_large_ones():
    for length in range(1, 60):
        for most in range(1, 70):
            size = even(length, most)
            assert size <= most or length <= most
            assert len(cuts(length, size)) == len(cuts(length, most))
            assert size == length or size * (len(cuts(length, most)) - 1) < length


def test_short_tiles_are_filled_up_with_their_last_example():
    x = np.arange(14.0).reshape(7, 2)
    for kind in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(padded(kind(x), 3, 6, 3), x[3:6])
        np.testing.assert_array_equal(padded(kind(x), 4, 7, 5), x[[4, 5, 6, 6, 6]])
