"""Functions in the span of {1, u, S, u·S} for one error function S."""

from typing import NamedTuple

from ._terms import Span


class ErrorSpan(NamedTuple):
    """one + linear·u + (step + ramp·u) · erf(u / √(2 noise)); noise None where both of the latter are zero."""

    one: float
    linear: float
    ramp: float
    step: float
    noise: float | None


def error_span(span: Span) -> ErrorSpan | None:
    """The coefficients of a function of the family, whose noise is positive; None for any other."""
    found = {"one": 0.0, "linear": 0.0, "ramp": 0.0, "step": 0.0}
    noise: float | None = None
    for term in span.terms:
        plain = term.threshold is None and not (term.gaussian or term.oscillates_or_grows)
        if not plain or term.power > 1:
            return None
        if term.step is None:
            found["linear" if term.power else "one"] += term.coefficient
        elif term.step <= 0.0 or noise not in (None, term.step):
            return None
        else:
            noise = term.step
            found["ramp" if term.power else "step"] += term.coefficient
    return ErrorSpan(**found, noise=noise)
