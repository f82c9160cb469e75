"""A power law fitted to measurements at several widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """log(value) = intercept + slope · log(width) by least squares over all seeds; `low` and `high` bound the slope.

    The bounds are a 95 % confidence interval (Student's t), infinite where no degree of freedom is left.
    """

    slope: float
    low: float
    high: float
    intercept: float
    spread: float
    """Standard deviation of the residuals of the logarithm."""
    degrees: int
    centre: float
    scatter: float
    """Mean of log(width), and Σ (log(width) − mean)²."""

    @classmethod
    def fit(cls, widths: Float[np.ndarray, " W"], values: Float[np.ndarray, "W S"]) -> PowerLaw | None:
        """None with fewer than two widths that have a positive finite value."""
        x = np.broadcast_to(np.log(np.asarray(widths, dtype=np.float64))[:, None], values.shape)
        kept = np.isfinite(values) & (values > 0)
        x, y = x[kept], np.log(values[kept])
        if len(np.unique(x)) < 2:
            return None
        centre, scatter = float(x.mean()), float(((x - x.mean()) ** 2).sum())
        slope = float((x - centre) @ y / scatter)
        intercept = float(y.mean() - slope * centre)
        degrees = len(x) - 2
        spread = float(np.sqrt(((y - intercept - slope * x) ** 2).sum() / degrees)) if degrees else np.inf
        half = cls._quantile(degrees) * spread / np.sqrt(scatter)
        return cls(slope, slope - half, slope + half, intercept, spread, degrees, centre, scatter)

    @staticmethod
    def _quantile(degrees: int) -> float:
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) if degrees else np.inf

    def __call__(self, widths: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The fitted values."""
        return np.exp(self.intercept + self.slope * np.log(widths))

    def band(self, widths: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The 95 % confidence band of the fitted line, pointwise."""
        x = np.log(np.asarray(widths, dtype=np.float64))
        count = self.degrees + 2
        with np.errstate(over="ignore"):
            half = (
                self._quantile(self.degrees) * self.spread * np.sqrt(1 / count + (x - self.centre) ** 2 / self.scatter)
            )
            return self(widths) * np.exp(-half), self(widths) * np.exp(half)
