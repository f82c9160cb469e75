"""The user's model -> flat jaxpr -> limit graph."""

from .derive import derive as derive
from .model import Model as Model
from .model import open_model as open_model
