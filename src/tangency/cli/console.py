"""What the commands say: one-line errors, progress and tables. Control codes go to terminals only."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import TangencyError

PIPED_INTERVAL = 5.0
"""Seconds between two lines about a stage that goes on, when standard error is not a terminal."""


class Commands(TyperGroup):
    """A group whose every error is one line on standard error and exit code 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            result = super().main(*args, standalone_mode=False, **extra)
        except TangencyError as error:
            _fail(str(error))
        except typer.Abort:
            typer.echo("aborted", err=True)
            sys.exit(130)
        except MemoryError:
            _fail("out of memory; use fewer rows")
        except Exception as error:
            # Typer carries its own copy of Click from one version on, so its usage errors have no fixed class.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            _fail(message())
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


class Stages:
    """Times the stages of a command and shows the one that runs.

    A terminal gets a live line; anything else gets a plain line every few seconds, so a quick run prints nothing.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Run a stage; yields the callback that takes (units done, units in all)."""
        started = time.perf_counter()
        show = _live(name) if sys.stderr.isatty() else _plain(name)
        try:
            with show as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def _live(name: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _plain(name: str) -> Iterator[Callable[[int, int], None]]:
    started = last = time.perf_counter()

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= PIPED_INTERVAL and done < total:
            last = now
            typer.echo(f"{name}: {100 * done / max(total, 1):.0f} % after {now - started:.0f} s", err=True)

    yield advance


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; the first column is text and the others are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    # Without a terminal there is no width to respect, and a folded table is hard to read by program.
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table).maximum)
    console.print(table)
