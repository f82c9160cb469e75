"""From the spec of a model, as written on the command line, to a function `key -> equinox.Module`."""

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..errors import InputError
from .linear import Linear
from .mlp import MLP
from .options import LINEAR_OPTIONS, NETWORK_OPTIONS, Option, Value
from .resmlp import ResMLP
from .suggestion import suggestion

MakeModel = Callable[[PRNGKeyArray], eqx.Module]


@dataclass(frozen=True)
class Entry:
    """A ready-made network: its class and the options that a spec may set."""

    module: Callable[..., eqx.Module]
    options: Mapping[str, Option]


REGISTRY = MappingProxyType(
    {
        "linear": Entry(Linear, LINEAR_OPTIONS),
        "mlp": Entry(MLP, NETWORK_OPTIONS),
        "resmlp": Entry(ResMLP, NETWORK_OPTIONS),
    }
)

_USER_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_user_function(spec: str) -> bool:
    """Whether the spec is `module:function`, so that making the model imports the user's own code."""
    return spec.partition(":")[0] not in REGISTRY and _USER_FUNCTION.fullmatch(spec) is not None


def parse_spec(spec: str) -> tuple[str, dict[str, Value]]:
    """`"mlp:depth=3,activation=gelu"` to `("mlp", {"depth": 3, "activation": "gelu"})`, validated.

    `"module:function"` is returned whole, without options. Raises `InputError` for an unknown model, option or value.
    """
    if is_user_function(spec):
        return spec, {}
    name, colon, rest = spec.partition(":")
    if name not in REGISTRY:
        raise InputError(f"unknown model '{name}'{suggestion(name, [*REGISTRY, 'module:function'])}")
    if colon and not rest:
        raise InputError(f"model '{spec}' ends with ':'; write options as {name}:depth=3, or leave the colon out")
    known, options = REGISTRY[name].options, {}
    for part in rest.split(",") if rest else ():
        option, equals, text = part.partition("=")
        if option not in known:
            raise InputError(f"model {name} has no option '{option}'{suggestion(option, known)}")
        if not equals or not text:
            raise InputError(f"model option '{part}' has no value; write {option}=VALUE")
        if option in options:
            raise InputError(f"model option '{option}' is given twice in '{spec}'")
        options[option] = known[option].parse(option, text)
    return name, options


def make(spec: str, in_size: int, out_size: int) -> MakeModel:
    """The function `key -> equinox.Module` that a spec names; the model takes ONE example of shape `[in_size]`.

    A registry name makes one of Tangency's own networks. `module:function` imports that module (from the current
    directory or `sys.path`) and calls its function with a key, and with the keywords `in_size` and `out_size` if it
    has them. Nothing is imported unless the spec names it. Raises `InputError`.
    """
    parse_spec(spec)
    if not is_user_function(spec):
        return _Registered(spec, in_size, out_size)
    function = _import_function(spec)
    sizes = {"in_size": in_size, "out_size": out_size}
    try:
        accepted = inspect.signature(function).parameters
    except (TypeError, ValueError):
        accepted = {}
    return _UserFunction(spec, functools.partial(function, **{k: v for k, v in sizes.items() if k in accepted}))


def make_of_width(spec: str, in_size: int, out_size: int) -> Callable[[int], MakeModel]:
    """The function `width -> (key -> equinox.Module)` that a spec without a width names.

    The function of `module:function` must have the keyword `width`. Raises `InputError`, here or when called.
    """
    name, options = parse_spec(spec)
    if is_user_function(spec):
        function = _import_function(spec)
        if "width" not in inspect.signature(function).parameters:
            raise InputError(f"model {spec}: the function needs a keyword 'width', to be made at several widths")
        made = make(spec, in_size, out_size)
        return lambda width: _UserFunction(spec, functools.partial(made.function, width=width))
    if "width" not in REGISTRY[name].options:
        raise InputError(f"model {name} has no width; use mlp, resmlp, or module:function with a keyword 'width'")
    if "width" in options:
        raise InputError(f"model '{spec}' sets its width, which is varied here; leave width= out")
    start = f"{spec}," if options else f"{name}:"
    return lambda width: make(f"{start}width={width}", in_size, out_size)


@dataclass(frozen=True)
class _MakeModel:
    """A function `key -> equinox.Module` that is called what the user called it."""

    spec: str

    @property
    def __name__(self) -> str:
        return self.spec


@dataclass(frozen=True)
class _Registered(_MakeModel):
    in_size: int
    out_size: int

    def __call__(self, key: PRNGKeyArray) -> eqx.Module:
        name, options = parse_spec(self.spec)
        return REGISTRY[name].module(self.in_size, self.out_size, key=key, **options)


@dataclass(frozen=True)
class _UserFunction(_MakeModel):
    function: Callable[..., Any]

    def __call__(self, key: PRNGKeyArray) -> Any:
        try:
            model = self.function(key)
        except Exception as error:
            reason = " ".join(str(error).split()) or "no message"
            raise InputError(f"model {self.spec} failed: {type(error).__name__}: {reason}") from error
        if not callable(model):
            raise InputError(
                f"model {self.spec} returned {type(model).__name__}; it must return a callable equinox.Module"
            )
        return model


def _import_function(spec: str) -> Callable[..., Any]:
    module_name, _, function_name = spec.partition(":")
    with _current_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"model {spec}: cannot import '{module_name}' ({type(error).__name__}: {reason}); "
                "run the command in the folder that holds it, or install it"
            ) from error
    function = getattr(module, function_name, None)
    if function is None:
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise InputError(
            f"model {spec}: module '{module_name}' has no function '{function_name}'"
            f"{suggestion(function_name, functions)}"
        )
    if not callable(function):
        raise InputError(f"model {spec}: '{function_name}' is not a function key -> equinox.Module")
    return function


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
