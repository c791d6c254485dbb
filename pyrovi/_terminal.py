"""What the command prints: tables that fit the terminal, verdicts, JSON."""

from __future__ import annotations

import json
import math
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyrovi._target import OWN
from pyrovi.errors import PyroviError
from pyrovi.estimate import Estimate
from pyrovi.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "console",
    "in_few",
    "line_of",
    "middle",
    "print_comparison",
    "plain",
    "print_json",
    "print_plain",
    "print_status",
    "print_summary",
    "print_verdict",
    "sentence",
]

WIDTH, ROWS = 80, 12
"""Of what is printed where there is no terminal to ask, and of a table."""

NAME = 16
"""Columns that a variable's name is left before figures are left out."""

COMPARED = ["mean", "mean_ref", "error", "sd", "sd_ref", "sd_ratio"]
DISPENSABLE = ["sd_ref", "mean_ref", "mcse_mean", "mcse_sd"]
"""Figures that a narrow terminal goes without, in this order; the error and the ratio say the same of the references."""

LEVEL_STYLES = {"trust": "bold green", "reweight": "bold cyan", "enrich": "bold yellow", "sample": "bold red"}
STATUS_STYLES = {"converged": "bold green", "step_limit": "bold yellow", "interrupted": "bold yellow", "diverged": "bold red"}


def console() -> Console:
    """Of the width of the terminal, or 80. No escape codes where stdout is none, no colours where NO_COLOR is set."""
    # Labels such as beta[age] are not markup.
    return Console(width=_width(), markup=False, highlight=False, emoji=False)


def in_few(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - ROWS} more" if len(names) > ROWS else ""
    return ", ".join(names[:ROWS]) + more


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH


def print_status(status: str, rest: str) -> None:
    console().print(Text.assemble((str(status), STATUS_STYLES.get(status, "")), f" {rest}"))


def print_verdict(verdict: Verdict) -> None:
    console().print(Text.assemble((str(verdict.level), LEVEL_STYLES[verdict.level]), str(verdict).removeprefix(str(verdict.level))))


def print_plain(rows: Sequence[Sequence[str]], columns: Sequence[str], *, broken: str, spare: Sequence[str] = ()) -> None:
    """A table of words.

    Args:
        rows: A word a column.
        columns: What they are called.
        broken: The column that is broken into lines.
        spare: Those that a narrow terminal goes without, in this order.
    """
    widths = {name: max(map(cell_len, (name, *(row[i] for row in rows)))) for i, name in enumerate(columns)}
    kept = list(columns)
    for name in spare:
        if _width() - sum(2 + widths[k] for k in kept if k != broken) < NAME:
            kept.remove(name)
    table = _table()
    for name in kept:
        table.add_column(name, no_wrap=name != broken)
    for row in rows:
        table.add_row(*(word for name, word in zip(columns, row, strict=True) if name in kept))
    console().print(table)


def print_comparison(table: pd.DataFrame) -> None:
    """The rows with the largest errors, and of all the largest."""
    error, ratio = table["error"].abs(), table["sd_ratio"]
    worst = error.sort_values(ascending=False, na_position="first", kind="stable").index[:ROWS]
    many = len(table) > ROWS
    _print_figures(table.loc[worst] if many else table, COMPARED)
    lines = [f"the {ROWS} rows of {len(table):,} with the largest |error|; of all:"] if many else []
    largest, low, high = (_number(x, 0.1) for x in (error.max(skipna=False), ratio.min(skipna=False), ratio.max(skipna=False)))
    lines.append(f"|error|       at most {largest} sd_ref\nsd_ratio      {low} to {high}")
    if "kl" in table.attrs:
        lines.append(f"KL(q||p)      {table.attrs['kl']} nats\nlog evidence  {table.attrs['log_evidence']:,.3f} nats")
    if "elbo" in table.attrs:
        lines.append(f"ELBO          {table.attrs['elbo']} nats")
    console().print("\n".join(lines))


def print_summary(table: pd.DataFrame) -> None:
    """The first rows, and the ELBO."""
    if len(table):  # a model may have no latents
        _print_figures(table[:ROWS], list(table.columns))
    if len(table) > ROWS:
        console().print(f"the first {ROWS} rows of {len(table):,}")
    console().print(f"ELBO  {table.attrs['elbo']} nats")


def _print_figures(frame: pd.DataFrame, columns: list[str]) -> None:
    cells: dict[str, list[str]] = {}
    for column in columns:
        sds = frame.get("sd_ref", frame.get("sd"))
        if column in ("error", "sd_ratio"):
            units = [0.1] * len(frame)
        elif column == "mcse_mean":
            units = list(frame[column])
        else:
            units = list(sds) if sds is not None else [0.0] * len(frame)
        cells[column] = [_number(value, unit) for value, unit in zip(frame[column], units, strict=True)]
    names = [str(label) for label in frame.index]
    wanted = max(cell_len(name) for name in ("variable", *names))

    def room() -> int:
        return _width() - sum(2 + max(map(len, (column, *texts))) for column, texts in cells.items())

    dropped = []
    for column in DISPENSABLE:
        if room() < min(wanted, NAME) and column in cells:
            del cells[column]
            dropped.append(column)
    table = _table()
    table.add_column("variable", no_wrap=True)
    for column in cells:
        table.add_column(column, justify="right", no_wrap=True)
    width = max(room(), len("variable"))
    for i, name in enumerate(names):
        table.add_row(middle(name, width), *(texts[i] for texts in cells.values()))
    console().print(table)
    if dropped:
        console().print(f"not shown in {_width()} columns: {', '.join(dropped)}")


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def middle(text: str, width: int) -> str:
    """A text cut to a width in its middle, for the ends of names tell them apart.

    >>> middle("coefficient[neighbourhood]", 16)
    'coeffici…urhood]'
    >>> middle("tau", 16)
    'tau'
    """
    if cell_len(text) <= width:
        return text
    head, tail = text[: width // 2], text[len(text) - (width - 1) // 2 :]
    while head and cell_len(f"{head}…{tail}") > width:  # characters may be two columns wide
        head, tail = head[:-1], tail[1:]
    return f"{head}…{tail}"


def _number(value: float, unit: float) -> str:
    """A number to three digits of its unit, which for a mean is the sd."""
    if not 1e-6 < unit < math.inf or not abs(value) < 1e7:
        return f"{value:.4g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(unit)))}f}"


def sentence(error: BaseException) -> str | None:
    """What to tell the user of an error; None where the error is pyrovi's own."""
    text = line_of(error)
    if isinstance(error, PyroviError):
        place = _place(error.__cause__)
        return f"{text} [{place}]" if place else text
    if place := _place(error):
        return f"{place}: {type(error).__name__}: {text}"
    return text if isinstance(error, OSError) else None


def line_of(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _place(error: BaseException | None) -> str | None:
    """The line of the user's file that an error comes from; None where it does not come from there."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    own = [f"{frame.f_code.co_filename}:{line}" for frame, line in frames if frame.f_globals.get("__name__") == OWN]
    return own[-1] if own else None


def print_json(document: Any) -> None:
    """One document: no NaN, no infinity."""
    typer.echo(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """What JSON can hold: null for what is not finite, `{"value": …, "se": …}` for an estimate, rows by name for a table."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Estimate):
        return {"value": plain(value.value), "se": plain(value.se)}
    if isinstance(value, Verdict):
        return plain(value.to_dict())
    if hasattr(value, "to_dict"):  # a DataFrame
        return plain(value.to_dict("index"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
