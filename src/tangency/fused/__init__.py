"""Limit graphs as generated, compiled programs that fill a tile of the Gram matrix on the CPU."""

from .lower import lower as lower
from .program import NotFusedError as NotFusedError
from .program import PiecewiseLinear as PiecewiseLinear
from .run import FusedKernel as FusedKernel
from .run import Inputs as Inputs
from .run import OutOfRangeError as OutOfRangeError
