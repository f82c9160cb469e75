"""Tangency: a neural network, its Neural Tangent Kernel, and everything training will do."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._jax import warn_of_faulty_release
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import errors as errors
    from . import losses as losses
    from . import models as models
    from .dynamics import gaussian_process as gaussian_process
    from .dynamics import kernel_descent as kernel_descent
    from .dynamics import kernel_flow as kernel_flow
    from .dynamics import kernel_gradient as kernel_gradient
    from .dynamics import verify as verify
    from .empirical import empirical as empirical
    from .empirical import linearize as linearize
    from .empirical import taylor as taylor
    from .estimators import NTKClassifier as NTKClassifier
    from .estimators import NTKRegressor as NTKRegressor
    from .gram import gram as gram
    from .graph.sampling import QuasiMonteCarlo as QuasiMonteCarlo
    from .kernels import CoupledKernel as CoupledKernel
    from .kernels import FourierFeatures as FourierFeatures
    from .kernels import FunctionKernel as FunctionKernel
    from .kernels import Kernel as Kernel
    from .kernels import RandomFunctions as RandomFunctions
    from .limit import limit as limit

warn_of_faulty_release()

_HOMES = {
    "CoupledKernel": "kernels",
    "FourierFeatures": "kernels",
    "FunctionKernel": "kernels",
    "Kernel": "kernels",
    "NTKClassifier": "estimators",
    "NTKRegressor": "estimators",
    "QuasiMonteCarlo": "graph.sampling",
    "RandomFunctions": "kernels",
    "empirical": "empirical",
    "gaussian_process": "dynamics",
    "gram": "gram",
    "kernel_descent": "dynamics",
    "kernel_flow": "dynamics",
    "kernel_gradient": "dynamics",
    "limit": "limit",
    "linearize": "empirical",
    "taylor": "empirical",
    "verify": "dynamics",
}
_ROOMS = ("errors", "losses", "models")

__all__ = ["__version__", *_HOMES, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that importing the package, or asking a command for help, is quick."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `tangency.limit` the function: importing the room of that name would bind the room in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
