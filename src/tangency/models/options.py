"""What may stand after the colon of a model's spec: names, types and ranges."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .activations import activation

Value = int | float | str


@dataclass(frozen=True)
class Option:
    """One option: how its text becomes a value, and which values are allowed."""

    kind: Literal["integer", "number", "activation"]
    minimum: float = 0
    maximum: float = math.inf
    positive: bool = False

    def parse(self, name: str, text: str) -> Value:
        """The value of `name=text`; `InputError` when it is not one."""
        if self.kind == "activation":
            activation(text)
            return text
        try:
            value = int(text) if self.kind == "integer" else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not self.minimum <= value <= self.maximum or (self.positive and value == 0):
            raise InputError(f"model option {name}={text}: {name} must be {self.describe()}")
        return value

    def describe(self) -> str:
        """ "an integer from 1 to 64", "a number > 0", …"""
        article = "an integer" if self.kind == "integer" else "a number"
        if math.isfinite(self.maximum):
            return f"{article} from {self.minimum:g} to {self.maximum:g}"
        return f"{article} > 0" if self.positive else f"{article} ≥ {self.minimum:g}"


# Width says nothing in the infinite limit; the lower end keeps hidden axes apart from small input axes.
NETWORK_OPTIONS = {
    "depth": Option("integer", 1, 1000),
    "width": Option("integer", 2, 65536),
    "activation": Option("activation"),
    "w_std": Option("number", positive=True),
    "b_std": Option("number"),
}
LINEAR_OPTIONS = {name: NETWORK_OPTIONS[name] for name in ("w_std", "b_std")}
