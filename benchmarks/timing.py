"""What every measured process does the same way: clock, memory, and the answer in JSON on standard output."""

import json
import os
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


def cost(action: Callable[[], Any]) -> dict[str, float]:
    """Medians of five calls: seconds on the clock, and seconds of processor time in all threads."""
    clock, processor = [], []
    for _ in range(REPEATS):
        start = time.process_time()
        clock.append(seconds(action))
        processor.append(time.process_time() - start)
    return {"run_s": statistics.median(clock), "cpu_s": statistics.median(processor)}


def spent(action: Callable[[], Any], repeats: int = 1) -> float:
    """The least processor time of some calls, all threads added, over the number of processors: see the README."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        found.append(time.process_time() - start)
    return min(found) / (os.cpu_count() or 1)


def peak_bytes() -> int:
    """The most memory that the process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(result: dict[str, Any]) -> None:
    print(json.dumps(result))
