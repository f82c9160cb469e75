"""Linear systems (A + λI) α = b with a symmetric positive semi-definite A; knows matrices and no kernels."""

from .arguments import ridge_value as ridge_value
from .cholesky import Cholesky as Cholesky
from .eigen import Eigen as Eigen
from .ridge import Score as Score
from .ridge import choose_ridge as choose_ridge
from .ridge import leave_one_out_residuals as leave_one_out_residuals
from .solution import Solution as Solution
from .system import RidgeSystem as RidgeSystem
