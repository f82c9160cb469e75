"""What a network becomes: the whole of training with the NTK, and the Bayesian posterior with the NNGP."""

from .flow import KernelFlow as KernelFlow
from .flow import kernel_flow as kernel_flow
from .gaussian_process import GaussianProcess as GaussianProcess
from .gaussian_process import gaussian_process as gaussian_process
from .power_law import PowerLaw as PowerLaw
from .verification import Run as Run
from .verification import Verification as Verification
from .verify import verify as verify
