"""Figures as SVG inside a page: coloured by the page, named for those who do not see them, without an address in them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyrovi.plots.style import FITTED, REFERENCE, SEVERAL

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["ROLES", "Drawing", "drawing"]

ROLES = {
    "#000000": "--ink",
    "#ffffff": "--paper",
    "#808080": "--quiet",
    "#999999": "--quiet",
    "#d9d9d9": "--line",
    FITTED: "--fitted",
    REFERENCE: "--reference",
    **{colour: f"--fit-{i}" for i, colour in enumerate(SEVERAL) if i},
}
"""The colours that figures use, and the names under which a page has them, once for light and once for dark."""

WIDE = 9.0
"""Inches of a figure that fills the page's width."""


@dataclass(frozen=True)
class Drawing:
    """A figure inside a page.

    Attributes:
        svg: The element.
        note: What the figure says below its axes: which elements it shows, say.
    """

    svg: Markup
    note: str


def drawing(name: str, title: str, description: str, make: Callable[[], Figure]) -> Drawing:
    """Make a figure, and an SVG element of it.

    Args:
        name: Unique in the page: ids begin with it, and the ids inside depend on it alone, so that a page is the same every time.
        title: What the figure is, for screen readers.
        description: What it shows, in a sentence or some.
        make: Makes it.
    """
    import matplotlib
    import matplotlib.style
    from markupsafe import Markup, escape

    ours = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.facecolor": "none", "savefig.dpi": 150}
    buffer = io.StringIO()
    with matplotlib.style.context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has a font for it
        figure = make()
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # "axes_1" stands in every figure; nothing refers to it
    for colour, role in ROLES.items():
        svg = svg.replace(f": {colour}", f": var({role})")
    opening, rest = svg.split(">", 1)
    named = f' style="--share: {min(1, figure.get_figwidth() / WIDE):.3g}" role="img" aria-labelledby="{name}-title {name}-desc">'
    told = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return Drawing(Markup(opening + named + told + rest), figure.get_supxlabel())
