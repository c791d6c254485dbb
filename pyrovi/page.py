"""What pages are made of: the environment of their templates, tables, sections that may say why they are missing."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyrovi.errors import PyroviError, first_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ROWS", "attempt", "number", "render", "table"]

ROWS = 2_000
"""Rows of a table, about 200 bytes each: more would be slow to open and are read from the Fit anyway."""


def render(template: str, **content: Any) -> str:
    """A page from its template. Whatever is put into it stays text."""
    return str(_environment().get_template(template).render(**content))


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pyrovi")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"repr": repr, "quote": shlex.quote}
    environment.filters["counted"] = lambda n, noun: f"{n:,} {noun}{'' if n == 1 else 's'}"
    environment.tests["startswith"] = str.startswith
    script = loader.get_source(environment, "sort.js")[0]
    environment.globals["script"] = script
    # The one script that the page may run; nothing else, and nothing from anywhere.
    environment.globals["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment


def attempt(make: Callable[[], Any], untested: str = "") -> Any:
    """What a section needs, or why it cannot be had: then a mapping with `why`, a sentence.

    Args:
        make: Makes it.
        untested: A reason not to try.
    """
    if untested:
        return {"why": untested}
    try:
        return make()
    except PyroviError as error:
        why = str(error)
    except Exception as error:  # a page of ten sections is not lost for one: the model is the user's and may raise anything
        why = f"{type(error).__name__}: {first_line(error)}"
    return {"why": f"{why[:1].upper()}{why[1:]}{'' if why.endswith('.') else '.'}"}


def table(frame: pd.DataFrame, formats: Mapping[str, str], default: str = ",") -> dict[str, Any]:
    """A frame's columns, and its rows as a label and cells of text.

    Args:
        frame: At most `ROWS` of its rows are taken.
        formats: By column, a format, or `,` for four significant digits.
        default: Of other columns.
    """
    shown = frame.head(ROWS)
    cells = [[number(value, formats.get(str(name), default)) for value in shown[name]] for name in shown]
    return {
        "columns": [str(c) for c in shown],
        "words": [any(isinstance(value, str) and value[:1].isalpha() for value in shown[name]) for name in shown],
        "rows": list(zip(shown.index, zip(*cells, strict=True), strict=True)),
        "of": len(frame),
    }


def number(value: Any, form: str = ",") -> str:
    """A cell: a number in a format, and anything else as it says itself."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)) and not hasattr(value, "dtype"):
        return str(value)
    if str(getattr(value, "dtype", "")) == "bool":
        return "yes" if value else "no"
    value = float(value)
    if form != "," or not math.isfinite(value) or value == 0:
        return f"{value:{form}}"
    size = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, 3 - size)}f}" if -4 <= size < 7 else f"{value:.3e}"
