"""What a network becomes: the whole of training with the NTK, and the Bayesian posterior with the NNGP."""

from .coupled_flow import CoupledFlow as CoupledFlow
from .descent import KernelDescent as KernelDescent
from .descent import kernel_descent as kernel_descent
from .flow import KernelFlow as KernelFlow
from .gaussian_process import GaussianProcess as GaussianProcess
from .gaussian_process import gaussian_process as gaussian_process
from .power_law import PowerLaw as PowerLaw
from .public import kernel_flow as kernel_flow
from .rkhs import RKHSFunction as RKHSFunction
from .rkhs import kernel_gradient as kernel_gradient
from .verification import Run as Run
from .verification import Verification as Verification
from .verify import verify as verify
