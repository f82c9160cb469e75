"""The NTK of a finite network at its current parameters."""

from .kernel import EmpiricalKernel as EmpiricalKernel
from .public import empirical as empirical
from .taylor import linearize as linearize
from .taylor import taylor as taylor
