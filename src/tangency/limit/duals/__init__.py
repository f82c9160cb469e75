"""Dual activations: Gaussian expectations of elementwise functions and of their products."""

from ._closed import is_closed as is_closed
from ._error_function import error_span as error_span
from ._numerical import coefficients as coefficients
from ._piecewise_linear import Pieces as Pieces
from ._piecewise_linear import pieces as pieces
from ._piecewise_linear import piecewise_linear as piecewise_linear
from .activation import Activation as Activation
from .evaluate import dual as dual
from .evaluate import mean as mean
from .evaluate import product_mean as product_mean
from .order import required_order as required_order
