"""Sizes that programs are compiled for."""

from tangency.kernels.tiles import filled


def test_four_sizes_in_every_octave():
    for power in range(3, 12):
        sizes = {filled(n) for n in range(2**power + 1, 2 ** (power + 1) + 1)}
        assert sizes == {2**power // 4 * k for k in (5, 6, 7, 8)}


def test_no_size_is_smaller_or_much_larger():
    for n in range(1, 3000):
        assert n <= filled(n) <= max(n, 1.25 * n)
    assert [filled(n) for n in range(1, 9)] == list(range(1, 9))
