"""The NTK of a finite network at its current parameters."""

from .kernel import EmpiricalKernel as EmpiricalKernel
from .public import empirical as empirical
