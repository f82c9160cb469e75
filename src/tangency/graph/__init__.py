"""The limit graph: a contract between tracing and everything that evaluates, prints or compiles a limit."""

from .elementwise import IDENTITY as IDENTITY
from .elementwise import Elementwise as Elementwise
from .graph import Graph as Graph
from .known import Apply as Apply
from .known import Constant as Constant
from .known import Input as Input
from .known import Known as Known
from .known import Operation as Operation
from .known import WidthSum as WidthSum
from .signal import DenseLeaf as DenseLeaf
from .signal import Factor as Factor
from .signal import Leaf as Leaf
from .signal import ParameterLeaf as ParameterLeaf
from .signal import ParameterStatistics as ParameterStatistics
from .signal import Segment as Segment
from .signal import Signal as Signal
from .signal import SumLeaf as SumLeaf
from .signal import Term as Term
