"""Names in messages: some of many, and the end of an error message about an unknown one."""

import difflib
from collections.abc import Iterable, Sequence


def listed(names: Sequence[str], most: int) -> str:
    """ "a, b, c and 6 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def suggestion(name: str, existing: Iterable[str]) -> str:
    """ "; did you mean 'b'? known are a, b, c"."""
    known = sorted(existing)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ":"
    return f"{guess} known are {listed(known, 24)}"
