"""The kernel interface and the kernels that are given rather than derived."""

from .base import Kernel as Kernel
from .function import FunctionKernel as FunctionKernel
