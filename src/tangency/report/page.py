"""The report: one HTML file that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .svg import Display, inline_svg


@dataclass(frozen=True)
class FigureCard:
    """One figure with its heading and what to see in it."""

    name: str
    """Letters and hyphens; unique in the page."""
    title: str
    caption: str
    display: Display


@dataclass(frozen=True)
class Report:
    """Everything the page shows, as text and numbers; the page escapes it."""

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    metric_names: Sequence[str]
    metric_rows: Sequence[tuple[str, Sequence[str]]]
    """(model, values); `marked_row` is the infinite network."""
    figures: Sequence[FigureCard]
    graph: str
    recursion: str
    latex: str
    notes: Sequence[str] = ()
    footer: str = ""
    table_title: str = "Test part"
    table_caption: str = ""
    row_title: str = "model"
    marked_row: int = 0
    verdict: Sequence[str] = ()


def render(report: Report) -> str:
    """The page as HTML text. Names that come from the user are escaped; there are no scripts and no links out."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("tangency.report").joinpath("page.html").read_text(encoding="utf-8")
    figures = [(card, Markup(inline_svg(card.display, card.name))) for card in report.figures]
    return environment.from_string(source).render(report=report, figures=figures)
