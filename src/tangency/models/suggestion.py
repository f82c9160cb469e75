"""The end of an error message about an unknown name."""

import difflib
from collections.abc import Iterable

MOST = 24
"""Names that are listed; of more, only their number is given."""


def suggestion(name: str, existing: Iterable[str]) -> str:
    """ "; did you mean 'b'? known are a, b, c"."""
    known = sorted(existing)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ":"
    more = f" and {len(known) - MOST} more" if len(known) > MOST else ""
    return f"{guess} known are {', '.join(known[:MOST])}{more}"
