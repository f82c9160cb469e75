"""How much memory a request needs, and how much there is."""

import os
from math import isqrt
from pathlib import Path

from .errors import InputError, MemoryLimitError

_FLOAT64 = 8
_GIB = 2**30


def factorisation_bytes(n: int, kinds: int = 1) -> int:
    """Bytes to hold `kinds` float64 matrices [n, n] and to factorise one of them.

    The factorisation adds the eigenvectors and the 2n² words of workspace of LAPACK's syevd; a Cholesky factorisation
    alone needs less.
    """
    return _FLOAT64 * n * n * (kinds + 3)


def available_memory() -> int | None:
    """Bytes of physical memory that can be had now, under a container's limit if there is one; None if unknown."""
    bounds = [bound for bound in (_machine_memory(), _container_memory()) if bound is not None]
    return min(bounds, default=None)


def require(needed: int, memory: int | None, what: str, fits: str) -> None:
    """Raises MemoryLimitError if `needed` bytes are more than `memory` (default: what is available).

    `what` is the subject of the message, `fits` says what would fit.
    """
    if memory is not None and memory <= 0:
        raise InputError(f"memory is {memory}; give a number of bytes > 0")
    limit = available_memory() if memory is None else memory
    if limit is not None and needed > limit:
        raise MemoryLimitError(f"{what} needs {needed / _GIB:.3g} GiB but {limit / _GIB:.3g} GiB may be used; {fits}")


def require_factorisation(n: int, kinds: int, memory: int | None) -> None:
    """Raises MemoryLimitError unless `factorisation_bytes(n, kinds)` fit, naming the rows that would."""
    limit = available_memory() if memory is None else memory
    rows = isqrt(max(limit, 0) // factorisation_bytes(1, kinds)) if limit is not None else n
    require(
        factorisation_bytes(n, kinds),
        memory,
        f"an exact solution with {n} rows",
        f"about {rows} rows would fit",
    )


def _machine_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        try:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            continue
    return None


def _container_memory() -> int | None:
    """What a version 2 control group leaves, page cache that can be dropped counted as free."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
