"""The kernel interface and the kernels that are given rather than derived."""

from .base import Kernel as Kernel
from .combination import Mapped as Mapped
from .combination import Product as Product
from .combination import Scaled as Scaled
from .combination import Sum as Sum
from .coupled import CoupledKernel as CoupledKernel
from .fourier import FourierFeatures as FourierFeatures
from .function import FunctionKernel as FunctionKernel
from .function import as_kernel as as_kernel
from .operator import KernelOperator as KernelOperator
from .operator import TraceEstimate as TraceEstimate
from .random_functions import RandomFunctions as RandomFunctions
