"""Limit graphs as generated, compiled programs that fill a tile of the Gram matrix on the CPU."""

from .kinks import COLUMNS as COLUMNS
from .kinks import TAILS as TAILS
from .kinks import decay as decay
from .lookup import DECADES as DECADES
from .lower import lower as lower
from .owen import table_of as table_of
from .pointwise import OPERATIONS as OPERATIONS
from .program import ErrorFunction as ErrorFunction
from .program import ErrorFunctions as ErrorFunctions
from .program import Formula as Formula
from .program import NotFusedError as NotFusedError
from .program import Operand as Operand
from .program import Piecewise as Piecewise
from .program import PiecewiseLinear as PiecewiseLinear
from .program import PiecewiseQuadratic as PiecewiseQuadratic
from .program import Rule as Rule
from .program import Series as Series
from .program import Threshold as Threshold
from .program import Truncated as Truncated
from .run import FusedKernel as FusedKernel
from .sides import Inputs as Inputs
from .tables import Evaluated as Evaluated
from .tables import OutOfRangeError as OutOfRangeError
from .tables import Table as Table
