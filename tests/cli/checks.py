"""What a good run and a refused one look like, and a table to run them on."""

import numpy as np
import polars as pl
from typer.testing import Result


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, (result.output, result.exception)
    assert "\x1b" not in result.output
    return result


def refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on standard output, one line on standard error that holds all the words."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines[0]


def mixed_table(n: int = 60, seed: int = 0) -> pl.DataFrame:
    """Numbers, categories and text, with gaps in a number column and in a category column, and a text target."""
    rng = np.random.default_rng(seed)
    size, weight = rng.normal(size=n), rng.normal(100, 20, size=n)
    colour = rng.choice(["red", "green", "blue"], size=n)
    target = np.where(size + (colour == "red") > 0.3, "yes", "no")
    gaps = np.arange(n) % 7 == 3
    return pl.DataFrame(
        {
            "size": [None if gap else round(float(v), 4) for v, gap in zip(size, gaps, strict=True)],
            "weight": weight.round(3),
            "colour": [None if i % 11 == 5 else str(c) for i, c in enumerate(colour)],
            "code": [f"0{i % 3}" if i % 4 else "A1" for i in range(n)],
            "bought": target,
        }
    )
