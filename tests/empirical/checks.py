"""What tests of finite NTKs assert."""

import numpy as np


def close(found, expected, tolerance=1e-10):
    """The same to rounding, in units of each entry or of the largest."""
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
