import functools

import pytest

from tangency.limit.duals import Activation
from tests.limit.duals.functions import CLOSED, NUMERICAL


@pytest.fixture(scope="session")
def activation():
    """Activations by name, each analysed once."""
    return functools.cache(lambda name: Activation((CLOSED | NUMERICAL)[name].jax, label=name))
