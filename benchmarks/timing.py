"""What every measured process does the same way: clock, memory, and the answer in JSON on standard output."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

REPEATS = 5


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def first_and_median(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the first call, and the median of five further calls."""
    return seconds(action), statistics.median(seconds(action) for _ in range(REPEATS))


def peak_bytes() -> int:
    """The most memory that the process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(result: dict[str, Any]) -> None:
    print(json.dumps(result))
