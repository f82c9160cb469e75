"""Expectations of several Gaussians by randomised quasi-Monte-Carlo: for what has no closed rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import InputError

_MOST = 2**20


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """Scrambled Sobol points for expectations of several Gaussians (Owen 1997, doi:10.1214/aos/1031594731).

    Each of the `replicates` evaluates the whole kernel on scrambled points of its own. The kernel is their mean, and
    its standard error follows from their spread; the same seed gives the same kernel.

    Attributes:
        points: points in each replicate, a power of two. The error falls about as 1/points.
        replicates: independent scramblings, at least 2.
        seed: of the scrambling.

    Raises:
        InputError: some number is outside of its range.
    """

    points: int = 1024
    replicates: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("points", "replicates", "seed"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool):
                raise InputError(f"QuasiMonteCarlo: {name}: expected an integer, got {getattr(self, name)!r}")
        if not 2 <= self.points <= _MOST or self.points & (self.points - 1):
            raise InputError(f"QuasiMonteCarlo: points: expected a power of two up to {_MOST}, got {self.points}")
        if self.replicates < 2:
            raise InputError(
                f"QuasiMonteCarlo: replicates: expected at least 2, for a standard error, got {self.replicates}"
            )
        if self.seed < 0:
            raise InputError(f"QuasiMonteCarlo: seed: expected a number of at least 0, got {self.seed}")

    def normals(self, dimensions: int) -> np.ndarray:
        """Standard normal points `[replicates, points, dimensions]`."""
        return _normals(self, dimensions)


@lru_cache(maxsize=256)
def _normals(rule: QuasiMonteCarlo, dimensions: int) -> np.ndarray:
    # Half a second to import, for the few who need it.
    from scipy.special import ndtri
    from scipy.stats import qmc

    exponent = rule.points.bit_length() - 1
    found = []
    for replicate in range(rule.replicates):
        generator = np.random.default_rng([rule.seed, replicate])
        points = qmc.Sobol(dimensions, scramble=True, bits=52, rng=generator).random_base2(exponent)
        found.append(ndtri(np.clip(points, 2.0**-53, 1 - 2.0**-53)))
    return np.stack(found)
