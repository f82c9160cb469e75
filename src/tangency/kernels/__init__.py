"""The kernel interface and the kernels that are given rather than derived."""

from .base import Kernel as Kernel
from .function import FunctionKernel as FunctionKernel
from .operator import KernelOperator as KernelOperator
from .operator import TraceEstimate as TraceEstimate
