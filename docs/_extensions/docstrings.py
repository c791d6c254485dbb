"""What the docstrings say in plain text, made into reStructuredText: sources, and pages of this documentation, become links."""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

SOURCE = re.compile(r"^(\s*)(\S.*?) \| (https?://\S+)$")
PAGE = re.compile(r"`docs/([\w/]+)\.md`")
CODE = re.compile(r"(?<!`)(`[^`\n]+`)(?!`)")


COLON = "\ue000"
"""Stands for the first colon of a property's docstring while napoleon looks at it, which would take that for the end of a type."""


def link(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """`title (authors, year) | URL` as a list of links, `docs/PAGE.md` as a link to the page; bars and suffixes as meant."""
    found: list[str] = []
    for line in lines:
        source = SOURCE.match(line)
        listed = bool(found) and found[-1].lstrip().startswith("* `")
        if source:
            indent, title, url = source.groups()
            if found and found[-1].strip() and not listed:
                found.append("")
            found.append(f"{indent}* `{title} <{url}>`__")
            continue
        if listed and line.strip():
            found.append("")
        parts = CODE.split(PAGE.sub(r":doc:`/\1`", line))
        for i, part in enumerate(parts):
            if i % 2 == 0:
                parts[i] = part if "``" in part or line.lstrip().startswith(">>>") else part.replace("|", r"\|")
            elif not parts[i - 1].endswith(":doc:"):
                own = f"`{part}`" if part.startswith(("`.", "`_", "`*", "`|")) or part.endswith("_`") else part
                parts[i] = own + ("\\ " if parts[i + 1][:1].isalnum() else "")
        found.append("".join(parts))
    if what in ("property", "attribute", "data") and found:
        found[0] = found[0].replace(":", COLON)
    lines[:] = found


def put_back(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    for kind in PyObject.doc_field_types:
        if kind.name == "variable":
            kind.label = "Attributes"  # Sphinx calls them variables
    app.connect("autodoc-process-docstring", link, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", put_back, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
