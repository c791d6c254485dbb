"""Draws from q, two scalars at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.plots.diagnostics import TAIL, elements, label, spread_of, spread_out
from pyrovi.plots.style import FITTED, RASTER, bare, histogram
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pair"]


def pair(fit: Fit, var_names: Sequence[str] | None = None, *, max_scalars: int = 6, draws: int = 1_000) -> Figure:
    """Draws of every pair of scalars as points, with each one's histogram on the diagonal.

    Args:
        fit: The fit.
        var_names: The variables to show, or elements of them, `"theta[2]"`; all when None or empty.
        max_scalars: How many scalars to show; past it every variable has its share, spread evenly over its elements.
        draws: Draws.

    Raises:
        PyroviError: The fit is a point estimate, or has no latent variable.
        SettingsError: A name is not a variable of the fit, or an element not one of its variable's.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = spread_of(fit, draws)
    chosen = spread_out(elements(values, var_names or list(values)), max(1, max_scalars))
    names = [label(name, np.unravel_index(i, values[name].shape[1:])) for name, flat in chosen.items() for i in flat]
    x = np.concatenate([values[name].reshape(len(values[name]), -1)[:, flat] for name, flat in chosen.items()], axis=1)
    x = np.where(np.isfinite(x), x, 0.0)  # a diverged q may overflow
    low, high = np.quantile(x, [TAIL, 1 - TAIL], axis=0)
    pad = np.where(high > low, 0.04 * (high - low), 0.5)
    low, high = low - pad, high + pad
    count = len(names)
    figure = Figure(figsize=(max(3.2, 1.5 * count + 0.6), max(2.8, 1.5 * count + 0.3)), layout="constrained")
    grid: Any = figure.subplots(count, count, squeeze=False)
    for i, j in np.ndindex(count, count):
        axes = grid[i, j]
        if j > i:
            axes.remove()
            continue
        axes.set_xlim(low[j], high[j])
        axes.xaxis.set_major_locator(MaxNLocator(3))
        if i == j:
            top = histogram(axes, x[:, i], low[i], high[i])
            axes.set(ylim=(0, 1.08 * top or 1), yticks=[])
            bare(axes, "left")
        else:
            size, raster = (4, False) if len(x) * count <= RASTER else (2, True)
            axes.plot(x[:, j], x[:, i], ".", color=FITTED, markersize=size, alpha=0.4, markeredgewidth=0, rasterized=raster)
            axes.set_ylim(low[i], high[i])
            axes.yaxis.set_major_locator(MaxNLocator(3))
            bare(axes)
        if i < count - 1:
            axes.set_xticklabels([])
        else:
            axes.set_xlabel(names[j], parse_math=False)
        if j > 0:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel(names[i], parse_math=False)
    return figure
