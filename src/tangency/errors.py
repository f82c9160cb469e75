"""Every exception that Tangency raises on purpose.

Each message is one line that says what was wrong, where, and what to do about it.
"""


class TangencyError(Exception):
    """Base class of all errors that name something the user can change."""


class InputError(TangencyError, ValueError):
    """An argument, a file or a column is not what it must be."""


class NonFiniteError(InputError):
    """NaN or infinity in the data, or in a result."""


class MemoryLimitError(TangencyError, MemoryError):
    """The request needs more memory than there is; the message says how much."""


class SingularMatrixError(TangencyError, ArithmeticError):
    """A linear system has no reliable solution; `smallest_ridge` is the smallest ridge that gives one."""

    def __init__(self, message: str, smallest_ridge: float | None = None):
        super().__init__(message)
        self.smallest_ridge = smallest_ridge


class MissingExtraError(TangencyError, ImportError):
    """An optional package is needed; the message says what to install."""


class UnsupportedModelError(TangencyError):
    """The model contains something that has no infinite-width rule.

    `operation` is the primitive or parameter, `source` the user's own line ("model.py:12"), `reason` why there is
    no rule and `advice` the way out.
    """

    def __init__(self, operation: str, *, reason: str, advice: str, source: str | None = None):
        where = f" at {source}" if source else ""
        super().__init__(f"{operation}{where} has no infinite-width rule: {reason}. {advice}")
        self.operation = operation
        self.source = source
        self.reason = reason
        self.advice = advice


class AccuracyError(TangencyError, ArithmeticError):
    """A numerical rule cannot reach its stated accuracy on this input, so no number is returned."""


class DivergenceError(TangencyError, ArithmeticError):
    """Training diverged; `step` is the first step at which that showed."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class ConvergenceError(TangencyError, ArithmeticError):
    """A solver did not get where it was asked to; `report` is what it says about itself."""

    def __init__(self, message: str, report: object = None):
        super().__init__(message)
        self.report = report


class LearningRateWarning(UserWarning):
    """The learning rate is above a bound that is sufficient for stability and may not be necessary."""
