"""How the cost of a step grows with data, particles, parameters and restarts; and the picture of the page."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import rows
import table
import timing


class Point(NamedTuple):
    size: int
    pyrovi: float
    """µs a step."""
    numpyro: float
    """µs a step, scanned by hand; NaN where NumPyro is not installed."""


class Curve(NamedTuple):
    name: str
    points: Mapping[int, tuple[int, int]]
    """Of each size, the two lengths of fit whose difference is timed."""

    def programs(self, size: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Which program, its sizes, and settings of the fit."""
        return {
            "data": ("radon_like", {"houses": size}, {}),
            "particles": ("digits", {"particles": size}, {}),
            "parameters": ("radon_like", {"houses": 6_400, "counties": (size - 10) // 4}, {}),
            "restarts": ("schools", {}, {"restarts": size}),
        }[self.name]


CURVES = [
    Curve("data", {1_000: (1_000, 6_000), 4_000: (1_000, 4_000), 16_000: (1_000, 2_000), 64_000: (1_000, 2_000)}),
    Curve("particles", {2: (1_000, 4_000), 8: (500, 1_500), 32: (100, 400), 128: (100, 200)}),
    Curve("parameters", {410: (1_000, 4_000), 1_610: (1_000, 4_000), 6_410: (1_000, 4_000), 25_610: (1_000, 3_000)}),
    Curve("restarts", {1: (10_000, 60_000), 8: (5_000, 25_000), 64: (2_000, 12_000), 512: (1_000, 3_000)}),
]
WHERE = {
    "data": "houses of the radon-like regression",
    "particles": "particles of gamma_poisson",
    "parameters": "parameters of the radon-like regression, 6,400 houses",
    "restarts": "restarts of the eight schools",
}


def measure(rounds: int) -> dict[str, list[Point]]:
    """Medians of at most three rounds: the range spans orders of magnitude."""
    return {curve.name: [point(curve, size, min(rounds, 3)) for size in curve.points] for curve in CURVES}


def point(curve: Curve, size: int, rounds: int) -> Point:
    name, sizes, settings = curve.programs(size)
    lengths, fit = curve.points[size], rows.peer("in_pyrovi").fit
    program = getattr(rows.peer("in_pyro"), name)(**sizes)
    theirs = None
    if importlib.util.find_spec("numpyro"):
        theirs = rows.peer("in_numpyro").Scanned(getattr(rows.peer("in_numpyro"), name)(**sizes), settings.get("restarts"))
    pairs = timing.steps_in_turn(lambda n: fit(program, steps=n, **settings), theirs or (lambda n: None), lengths, rounds)
    ours, scanned = (1e6 * statistics.median(side) for side in zip(*pairs, strict=True))
    found = Point(size, ours, scanned if theirs else math.nan)
    print(f"{curve.name} {size:,}: {found.pyrovi:,.1f} µs a step, NumPyro {found.numpyro:,.1f}", flush=True)
    return found


def growth(points: list[Point]) -> float:
    """The exponent of the last interval: 1 is linear, less is where what a step costs anyway still shows."""
    (a, b) = points[-2:]
    return math.log(b.pyrovi / a.pyrovi) / math.log(b.size / a.size)


HEADER = ("curve", "size", "pyrovi", "NumPyro")


def section(curves: Mapping[str, list[Point]]) -> str:
    lines = [(name, f"{p.size:,}", f"{p.pyrovi:,.1f}", f"{p.numpyro:,.1f}") for name, points in curves.items() for p in points]
    exponents = "; ".join(f"{WHERE[name]}, {growth(points):.2f}" for name, points in curves.items())
    return (
        "## Growth\n\nµs a step, warm; NumPyro's is scanned by hand. The exponent of the last interval, where 1 is linear: "
        f"{exponents}.\n\n{table.lines(HEADER, lines)}"
    )


def read(text: str) -> dict[str, list[Point]]:
    """The curves of a page written earlier."""
    curves: dict[str, list[Point]] = {}
    for name, *figures in table.cells(text):
        if name in WHERE and len(figures) == len(Point._fields):
            size, ours, theirs = (float(figure.replace(",", "")) for figure in figures)
            curves.setdefault(name, []).append(Point(int(size), ours, theirs))
    return curves


def picture(lines: Iterable[table.Row], curves: Mapping[str, list[Point]], path: Path) -> None:
    """Ratios beside their targets on the left, the curves on the right."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = [row for row in lines if row.target]
    figure = plt.figure(figsize=(13, max(4.0, 0.3 * len(shown) + 1)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    axes = left.subplots()
    for i, row in enumerate(shown):
        middle, low, high = (float(word) for word in row.ratio.replace("(", "").replace(")", "").replace("to ", "").split())
        colour = "tab:blue" if row.verdict == "met" else "tab:red"
        axes.plot([low, high], [i, i], color=colour)
        axes.plot(middle, i, "o", color=colour)
        axes.plot(float(row.target.split()[-1]), i, "|", color="black", markersize=12)
    axes.set_yticks(range(len(shown)), [f"{row.name}\nagainst {row.peer}".replace("`", "") for row in shown], fontsize=6)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("pyrovi over the peer; the bar is the target, blue where it is met")
    panels = right.subplots(2, 2).ravel()
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        sizes = [p.size for p in points]
        panel.loglog(sizes, [p.pyrovi for p in points], "o-", label="pyrovi")
        panel.loglog(sizes, [p.numpyro for p in points], "s--", label="NumPyro, scanned")
        panel.loglog(sizes, [points[-1].pyrovi * size / sizes[-1] for size in sizes], ":", color="grey", label="linear")
        panel.set_xlabel(name)
        panel.set_ylabel("µs a step")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)
