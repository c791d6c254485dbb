"""What pyrovi raises: one sentence that names the thing at fault and the cure.

Every error is a `PyroviError`; those about an argument are also `ValueError`s, so code that catches the
built-in exception keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["DataError", "GuideError", "ModelError", "PyroviError", "RunFolderError", "SettingsError", "first_line", "nearest"]


class PyroviError(Exception):
    """The base of every error that pyrovi raises on purpose.

    Example:
        >>> import pyrovi
        >>> try:
        ...     pyrovi.recipe("nromal_mean")
        ... except pyrovi.PyroviError as error:
        ...     print(str(error)[:57])
        unknown recipe 'nromal_mean'; did you mean 'normal_mean'?
    """


class DataError(PyroviError, ValueError):
    """The data do not fit the model: names, shapes, missing values or values outside a site's support."""


class ModelError(PyroviError, ValueError):
    """The model cannot be run on these data."""


class GuideError(PyroviError, ValueError):
    """The guide cannot be run, or does not match the model's latent sites."""


class DiscreteLatent(GuideError):
    """A latent is discrete, in plates of `nesting` dimensions, of a model with these data; a fit without settings sums it out."""

    nesting: int
    data: dict[str, Any]

    def __init__(self, message: str, nesting: int, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.nesting, self.data = nesting, data


class SettingsError(PyroviError, ValueError):
    """A setting is out of range, unknown, or contradicts another."""


class RunFolderError(PyroviError, OSError):
    """A run folder cannot be written or read."""


def first_line(exception: BaseException) -> str:
    """The first line of what an exception says, with the next where it only introduces that."""
    lines = [line.strip() for line in str(exception).splitlines() if line.strip()] or ["no message"]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence part that lists the known names, the nearest match first where there is one.

    >>> nearest("nromal", ["normal", "delta"])
    "did you mean 'normal'? Known: delta, normal"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = f"nown: {', '.join(known)}"
    if not known:
        return "there are none"
    return f"did you mean {close[0]!r}? K{listing}" if close else f"k{listing}"
