r"""Formulas as SVG, drawn by ziamath while the pages are built: no script, no font and no request when they are read.

The colour is that of the text, so they serve a light page and a dark one; a screen reader is given the TeX.
"""

import html
import re
from typing import Any

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ziamath.config.svg2 = False  # glyphs as paths within each formula, which needs no ids of its own
ziamath.config.math.color = "currentColor"

SIZE = 16.0
"""Points at which formulas are drawn; on the page they scale with the text."""

SCALE = 1.06
"""STIX Two beside the sans serif of the page."""


def to_svg(tex: str, *, inline: bool) -> str:
    """One formula, on the text's baseline where it is within a line."""
    tex = " ".join(tex.split())
    try:
        drawn = ziamath.Latex(re.sub(r"\\sim\b", r"\\;\\sim\\;", tex), size=SIZE, inline=inline)
        (width, height), depth, svg = drawn.getsize(), drawn.getyofst(), drawn.svg()
    except Exception as error:
        raise ExtensionError(f"this formula cannot be drawn: {tex!r} ({error})") from error
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    width, height = (float(number) for number in box[1].split()[2:])
    inside = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    style = f"width:{SCALE * width / SIZE:.3f}em;height:{SCALE * height / SIZE:.3f}em"
    if inline:
        style += f";vertical-align:{SCALE * depth / SIZE:.3f}em"
    label = html.escape(tex, quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="{box[1]}" style="{style}">{inside}</svg>'


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{to_svg(node.astext(), inline=True)}</span>')
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(to_svg(node.astext(), inline=False))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("svg", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
