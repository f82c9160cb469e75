"""The kernel interface and the kernels that are given rather than derived."""

from .base import Kernel as Kernel
from .coupled import CoupledKernel as CoupledKernel
from .function import FunctionKernel as FunctionKernel
from .function import as_kernel as as_kernel
from .operator import KernelOperator as KernelOperator
from .operator import TraceEstimate as TraceEstimate
