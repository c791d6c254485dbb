"""The table: a line from pairs of figures, and a page's lines read back."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rows import Job
from timing import Pairs


class Row(NamedTuple):
    """A line of the table, in words."""

    name: str
    peer: str
    pyrovi: str
    theirs: str
    ratio: str
    target: str
    verdict: str


HEADER = Row("job", "peer", "pyrovi", "the peer", "ratio (range)", "target", "verdict")


def row(job: Job, pairs: Pairs) -> Row:
    """A job's line from its pairs; the verdict is by the median of their ratios."""
    ratios = [ours / theirs for ours, theirs in pairs]
    middle = statistics.median(ratios)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    target = verdict = ""
    if job.target is not None:
        target = f"{'≥' if job.at_least else '≤'} {job.target:g}"
        met = middle >= job.target if job.at_least else middle <= job.target
        verdict = "met" if met else "**not met**"
    ratio = f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return Row(job.name, job.peer, f"{shown(ours)} {job.unit}", f"{shown(theirs)} {job.unit}", ratio, target, verdict)


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def lines(header: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def cells(text: str) -> list[list[str]]:
    """The cells of every line of the tables in Markdown text, headers among them."""
    return [[cell.strip() for cell in found.strip("|").split("|")] for found in re.findall(r"^\|.*\|$", text, re.MULTILINE)]


def rows_of(text: str) -> dict[tuple[str, str], Row]:
    """The rows on a page written earlier, by job and peer."""
    found = [Row(*parts) for parts in cells(text) if len(parts) == len(HEADER)]
    return {(r.name, r.peer): r for r in found if r != HEADER and r.name != "---"}


def merged(new: Iterable[Row], old: Mapping[tuple[str, str], Row], jobs: Iterable[Job]) -> list[Row]:
    """What was measured now, and of the rest what was measured earlier, in the order of the jobs."""
    known = {**old, **{(r.name, r.peer): r for r in new}}
    return [known[job.name, job.peer] for job in jobs if (job.name, job.peer) in known]
