"""Ready-made networks as plain Equinox modules, and the registry that makes them from a spec."""

from .activations import ACTIVATIONS as ACTIVATIONS
from .linear import Linear as Linear
from .mlp import MLP as MLP
from .registry import REGISTRY as REGISTRY
from .registry import is_user_function as is_user_function
from .registry import make as make
from .registry import make_of_width as make_of_width
from .registry import parse_spec as parse_spec
from .resmlp import ResMLP as ResMLP
