"""The data's names against the arguments of the model: what it takes of a table, and all that is wrong at once."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from pyrovi._typing import Data, Model, Table
from pyrovi.errors import DataError, ModelError

__all__ = ["check_arguments", "columns_taken", "signature"]

GUESSED, CLOSE = 0.5, 0.8
"""How like a missing name another is to be shown as a guess, and to be held for it (difflib's ratio)."""


def signature(program: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(program.forward if isinstance(program, torch.nn.Module) else program)


def columns_taken(model: Model, data: Data | None, given: Collection[str] = ()) -> tuple[Mapping[str, Any] | None, list[str]]:
    """Of a table the columns that the model names, and what the others are called; other data as they are.

    A table usually has more columns than the model has arguments. A dictionary is written for the model, so of that nothing is left
    out: `check_arguments` refuses what the model does not take.

    Args:
        model: What is to be run on them.
        data: A DataFrame, of pandas' or another library's: it has `columns`, and gives one by its name.
        given: Names of arguments that have their values from elsewhere.

    Raises:
        DataError: The model needs an argument that is no column; or a column that would be left out is called almost like one that
            has no value.
    """
    if data is None or isinstance(data, Mapping) or not isinstance(data, Table):
        return data, []
    takes, anything = _takes(model)
    columns = {str(name): name for name in data.columns}
    left = [] if anything else [name for name in columns if name not in takes]
    missing = [name for name, p in takes.items() if p.default is p.empty and name not in columns and name not in given]
    listed = f"the table has: {', '.join(columns)}"
    if missing:
        close = [c for name in missing for c in difflib.get_close_matches(name, left, n=1, cutoff=GUESSED)]
        names, first = ", ".join(map(repr, missing)), missing[0]
        if close:
            cure = f"did you mean the column{'s' if len(close) > 1 else ''} {', '.join(map(repr, close))}? T{listed[1:]}"
        else:
            cure = f"{listed}; what is no column goes beside them, as data={{**table, {first!r}: …}}, or --arg {first}=…"
        raise DataError(f"the model needs data named {names}; {cure}")
    for name in takes:
        if name not in columns and name not in given:
            for column in difflib.get_close_matches(name.casefold(), [c.casefold() for c in left], n=1, cutoff=CLOSE):
                like = next(c for c in left if c.casefold() == column)
                raise DataError(
                    f"the model's argument {name!r} has no column of its name; did you mean the column {like!r}? Rename it, or "
                    f"give data={{…}} with a value for {name!r}"
                )
    return {name: data[column] for name, column in columns.items() if name not in left}, left


def check_arguments(model: Model, data: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> None:
    """Raise where the data's names are not those that the model takes; `over` has older data that those replace by name."""
    given, data = data, {**(over or {}), **data}
    takes, anything = _takes(model)
    unknown = [] if anything else [name for name in data if name not in takes]
    missing = [name for name, p in takes.items() if p.default is p.empty and name not in data]
    if unknown or missing:
        raise DataError(_mismatch(unknown, missing, takes, given))


def _takes(model: Model) -> tuple[dict[str, inspect.Parameter], bool]:
    """The model's arguments, and whether it takes others too."""
    if not callable(model):
        raise ModelError(f"model must be a function or a module of Pyro; got {type(model).__name__}")
    parameters = signature(model).parameters
    kinds = {p.kind for p in parameters.values()}
    takes = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if inspect.Parameter.POSITIONAL_ONLY in kinds:
        raise ModelError("the model has positional-only arguments; data are passed by name, so drop the '/' from its signature")
    if not takes and inspect.Parameter.VAR_POSITIONAL in kinds:
        raise ModelError("the model takes *args; data are passed by name, so give its arguments names")
    return takes, inspect.Parameter.VAR_KEYWORD in kinds


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _mismatch(unknown: list[str], missing: list[str], takes: Collection[str], given: Collection[str]) -> str:
    """All names that are wrong, with what they may have been meant to be: an argument that has no value yet."""
    guesses: dict[str, str] = {}
    for _, name, free in sorted(((_likeness(str(u), f), u, f) for u in unknown for f in takes if f not in given), reverse=True):
        if name not in guesses and free not in guesses.values() and _likeness(str(name), free) >= GUESSED:
            guesses[name] = free
    missing = [name for name in missing if name not in guesses.values()]
    text = f"the model takes no data named {', '.join(map(repr, unknown))}" if unknown else ""
    if guesses:
        meant = [repr(guess) + (f" by {name!r}" if len(unknown) > 1 else "") for name, guess in guesses.items()]
        text += f"; did you mean {', '.join(meant)}?"
    if missing:
        needs = f"needs data named {', '.join(map(repr, missing))}"
        text += f" It also {needs}" if guesses else f", and {needs}" if unknown else f"the model {needs}"
    if not unknown:
        return f"{text}; given: {', '.join(sorted(map(str, given)))}" if given else f"{text}; no data were given"
    return f"{text}{' I' if text.endswith('?') else '; i'}t takes: {', '.join(sorted(takes)) or 'none'}"
