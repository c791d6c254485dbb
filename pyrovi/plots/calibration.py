"""The figure of a simulation-based calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrovi.plots.diagnostics import elements, label, spread_out
from pyrovi.plots.style import FITTED, REFERENCE, bare, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrovi._calibrate import Calibration

__all__ = ["calibration"]


def calibration(found: Calibration, var_names: Sequence[str] | None = None, *, max_panels: int = 12) -> Figure:
    """By scalar, the ECDF of the true value's rank less that of uniform ranks, and the band that uniform ones stay within.

    The band holds at all ranks and, its probability shared among them, for all scalars of the calibration. A curve that swings up
    and then down is of ranks at both ends, sds too small; down and then up, of ranks in the middle, sds too large; above
    throughout, of low ranks, q too high.

    Args:
        found: By `pyrovi.calibrate`.
        var_names: The variables to show, or elements of them, `"theta[2]"`; all when None.
        max_panels: How many scalars to show; past it every variable has its share.
    """
    from matplotlib.figure import Figure

    chosen = spread_out(elements(found.ranks, var_names or list(found.ranks)), max(1, max_panels))
    panels = [(name, int(element)) for name, shown in chosen.items() for element in shown]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9 if columns > 1 else 6.5, 0.9 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    null = found.null
    x, (low, high) = null.expected, null.band
    for axes, (name, element) in zip(grid.flat, panels, strict=False):
        ranks = found.ranks[name]
        shape, flat = ranks.shape[1:], ranks.reshape(len(ranks), -1)[:, element]
        axes.fill_between(x, low - x, high - x, step="mid", color="0.85", linewidth=0, label=f"simultaneous {found.prob:.0%} band")
        axes.axhline(0, color="0.6", linewidth=0.8)
        curve = null.ecdf(flat) - x
        outside = (curve < low - x) | (curve > high - x)
        axes.step(x, curve, where="mid", color=FITTED, label="ECDF of ranks − uniform")
        if outside.any():
            axes.plot(x[outside], curve[outside], ".", color=REFERENCE, markersize=4, label="outside")
        axes.set_title(label(name, np.unravel_index(element, shape)), fontsize="medium", parse_math=False)
        axes.set_xlim(0, 1)
        bare(axes)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.supxlabel("rank of the true value among draws of q, as a share", fontsize="medium")
    figure.legend(*legend(figure.axes), loc="outside upper left", ncols=3, frameon=False)
    return figure
