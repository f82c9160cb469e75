"""A display as an SVG element that can stand inside an HTML page."""

import io
import re
from typing import ClassVar, Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .style import INK, MUTED


class Display(Protocol):
    """Numbers of one figure, computed before, that can draw themselves."""

    size: ClassVar[tuple[float, float]]

    def plot(self, ax: Axes) -> None: ...


def figure_of(display: Display) -> Figure:
    """The display on a figure of its own (inches); pyplot's global state is not touched."""
    figure = Figure(figsize=display.size, layout="constrained")
    figure.patch.set_alpha(0.0)
    ax = figure.add_subplot()
    ax.patch.set_alpha(0.0)
    display.plot(ax)
    return figure


def inline_svg(display: Display, name: str) -> str:
    """`<svg>…</svg>` without references to other files; ids carry `name`, so several fit in one page.

    The result is a function of the display alone: no dates, no random ids.
    """
    figure = figure_of(display)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A style element would act on the whole page; the page has these rules itself.
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    # Text in the page's own font and colours, so that a dark page has light labels.
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    return text.replace(INK, "var(--ink)").replace(MUTED, "var(--muted)")
