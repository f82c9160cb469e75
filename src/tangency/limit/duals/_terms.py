"""The terms that closed-form activations are sums of, and how they are written."""

import dataclasses

import numpy as np
from scipy.special import erf

SIGN = 0.0
"""`step` of a sign function: an error function whose noise variance is zero."""


@dataclasses.dataclass(frozen=True)
class Term:
    """coefficient · x^power · S(u) · exp(−gaussian·u² + rate·u) · (cos or sin)(frequency·u).

    x is u, or max(u − threshold, 0) where there is a threshold (then x^0 is the indicator of u > threshold), or
    max(threshold − u, 0) if `mirrored`.
    S is 1 where `step` is None, else the error function erf(u / √(2·step)) = E[sign(u + noise)] with Gaussian
    noise of variance `step`; `step = 0` is sign(u), so that ReLU and GELU are one family.
    """

    coefficient: float
    power: int = 0
    step: float | None = None
    gaussian: float = 0.0
    rate: float = 0.0
    frequency: float = 0.0
    sine: bool = False
    threshold: float | None = None
    mirrored: bool = False

    @property
    def is_polynomial(self) -> bool:
        """A plain power of u."""
        return self.threshold is None and self.step is None and not (self.gaussian or self.oscillates_or_grows)

    @property
    def oscillates_or_grows(self) -> bool:
        """Has an exponential or trigonometric factor, whose moments with a step are not elementary."""
        return self.rate != 0.0 or self.frequency != 0.0

    @property
    def is_piecewise_polynomial(self) -> bool:
        """A power, a truncated power, or a power times sign(u)."""
        return self.threshold is not None or self.is_polynomial or (self.step == SIGN and not self.gaussian)

    def scaled(self, coefficient: float) -> "Term":
        """The same function with another coefficient."""
        return dataclasses.replace(self, coefficient=coefficient)

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Values at u, in float64."""
        if self.threshold is not None:
            x = self.threshold - u if self.mirrored else u - self.threshold
            return self.coefficient * np.where(x > 0, x, 0.0) ** self.power * (x > 0)
        value = self.coefficient * u**self.power
        if self.step is not None:
            value = value * (np.sign(u) if self.step == SIGN else erf(u / np.sqrt(2.0 * self.step)))
        if self.gaussian or self.rate:
            value = value * np.exp(-self.gaussian * u**2 + self.rate * u)
        if self.frequency:
            value = value * (np.sin(self.frequency * u) if self.sine else np.cos(self.frequency * u))
        return value

    def _base(self) -> str:
        if not self.threshold:
            return "u" if not self.mirrored else "(−u)"
        place = _number(self.threshold)
        if self.mirrored:
            return f"({place} − u)"
        return f"(u − {place})" if self.threshold > 0 else f"(u + {place[1:]})"

    def _power(self, superscript: str) -> str:
        """The power of x; `superscript` formats the exponent. Empty for u^0."""
        raised = "" if self.power == 1 else superscript.format(self.power)
        if self.threshold is not None:
            return f"{self._base()}_+{raised}"
        return f"u{raised}" if self.power else ""

    def describe(self) -> str:
        """The function part, without the coefficient, in plain text; empty for the constant 1."""
        if self.step == SIGN and self.power in (1, 2):
            parts = ["|u|"] if self.power == 1 else ["u", "|u|"]
        else:
            power = self._power("^{}")
            parts = [power] if power else []
            if self.step is not None:
                parts.append("sign u" if self.step == SIGN else f"erf({_times(_slope(self.step))})")
        if self.gaussian or self.rate:
            parts.append(f"exp({_exponent(self.gaussian, self.rate, '²')})")
        if self.frequency:
            parts.append(f"{'sin' if self.sine else 'cos'}({_times(self.frequency)})")
        return "·".join(parts)

    def latex(self) -> str:
        """The function part, without the coefficient, in LaTeX; empty for the constant 1."""
        if self.step == SIGN and self.power in (1, 2):
            parts = [r"|u|"] if self.power == 1 else ["u", r"|u|"]
        else:
            power = self._power("^{{{}}}").replace("−", "-")
            parts = [power] if power else []
            if self.step is not None:
                name = (
                    r"\operatorname{sign}(u)"
                    if self.step == SIGN
                    else rf"\operatorname{{erf}}({_times(_slope(self.step), ' ')})"
                )
                parts.append(name)
        if self.gaussian or self.rate:
            parts.append("e^{" + _exponent(self.gaussian, self.rate, "^{2}", " ").replace("−", "-") + "}")
        if self.frequency:
            parts.append(rf"\{'sin' if self.sine else 'cos'}({_times(self.frequency, ' ')})".replace("−", "-"))
        return r" \, ".join(parts)


@dataclasses.dataclass(frozen=True)
class Span:
    """A finite sum of terms; no terms is the zero function."""

    terms: tuple[Term, ...]

    @property
    def degree(self) -> int | None:
        """The degree if this is a polynomial (0 for the zero function), else None."""
        if all(term.is_polynomial for term in self.terms):
            return max((term.power for term in self.terms), default=0)
        return None

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Values at u, in float64."""
        return sum((term(u) for term in self.terms), np.zeros_like(u))

    def describe(self) -> str:
        """Plain text, such as "0.5·u + 0.5·|u|"."""
        return _join([(term.coefficient, term.describe()) for term in self.terms], "·", "−")

    def latex(self) -> str:
        r"""LaTeX, such as "0.5 \, u + 0.5 \, |u|"."""
        return _join([(term.coefficient, term.latex()) for term in self.terms], r" \, ", "-")


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _times(slope: float, dot: str = "·") -> str:
    return "u" if slope == 1.0 else f"{_number(slope)}{dot}u"


def _slope(step: float) -> float:
    return 1.0 / np.sqrt(2.0 * step)


def _exponent(gaussian: float, rate: float, square: str, dot: str = "·") -> str:
    linear = _times(rate, dot) if rate else ""
    if not gaussian:
        return linear.replace("−1·u", "−u")
    quadratic = f"−{'' if gaussian == 1.0 else _number(gaussian) + dot}u{square}"
    return quadratic if not linear else f"{quadratic} + {linear}"


def _join(parts: list[tuple[float, str]], dot: str, minus: str) -> str:
    if not parts:
        return "0"
    text = ""
    for coefficient, function in parts:
        size = _number(abs(coefficient))
        body = size if not function else (function if size == "1" else f"{size}{dot}{function}")
        sign = minus if coefficient < 0 else "+"
        text += f" {sign} {body}" if text else (f"{minus}{body}" if coefficient < 0 else body)
    return text
