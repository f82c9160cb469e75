"""The infinite-width limit of a network, derived from its own code."""

from .kernel import LimitKernel as LimitKernel
from .public import limit as limit
