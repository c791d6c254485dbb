"""The ELBO of a fit: by step, with the phases of its rule; by rung, of a fit without settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._exact import ExactPosterior
from pyrovi.errors import PyroviError
from pyrovi.plots.style import FITTED, REFERENCE, bare, legend
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["POINTS", "elbo"]

POINTS = 800
"""Steps drawn of a trace: as many as a panel can show."""

NEAR = 6.0
"""How many times as far below the top as the nearest rung another may lie, 2 nats at least, and still be in sight."""


def elbo(fit: Fit, exact: ExactPosterior | Any | None = None) -> Figure:
    """The ELBO by step: the whole run on a logarithmic axis, and its second half on the scale of its own noise.

    The points are single steps, 800 of them at most. The line is the mean over the fiftieth of the run that ends there, and
    early on over a tenth of the steps so far, so that it follows the climb. Dotted lines are where `stop="auto"` halved the
    learning rate, and the shade is over the iterates whose mean is reported. Of a fit without settings, which takes no steps, it is
    the ELBO on every rung that was tried.

    Args:
        fit: The fit.
        exact: Its log evidence, which no ELBO exceeds, is drawn as a line where it is near enough to see; a reference without one
            is passed over.

    Raises:
        PyroviError: The fit diverged before its first step was done.
    """
    steps = fit.elbo.shape[-1]
    if not steps:
        raise PyroviError("the fit has no ELBO to plot: it diverged at its first step")
    truth = float(exact.log_evidence) if isinstance(exact, ExactPosterior) else None
    return _rungs(fit, truth) if fit.settings.get("method") == "auto" else _trace(fit, truth)


def _trace(fit: Fit, truth: float | None) -> Figure:
    from matplotlib.figure import Figure

    steps = fit.elbo.shape[-1]
    window = steps // 50
    early = np.unique(np.geomspace(1, steps, POINTS).astype(int)) - 1
    late = np.unique(np.linspace(steps // 2, steps - 1, POINTS).astype(int))
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, shown, title in zip(figure.subplots(1, 2), (early, late), ("whole run", "second half, zoomed"), strict=True):
        for trace in fit.elbo:
            mean = [trace[i - min(window, i // 10) : i + 1].mean() for i in shown]
            axes.plot(shown + 1, trace[shown], ".", color=FITTED, alpha=0.4, markersize=4, markeredgewidth=0, label="single step")
            axes.plot(shown + 1, mean, color=FITTED, label="running mean")
        if truth is not None:
            axes.axhline(truth, color=REFERENCE, linestyle="--", label=f"log evidence {truth:,.2f}")
        if shown is early:
            axes.set_xscale("log")
        else:
            low, high = np.nanquantile(fit.elbo[:, late], [0.01, 0.99])  # a single particle throws far outliers
            margin = 0.1 * (high - low) or 0.5
            if truth is not None and high < truth < high + 20 * margin:
                high = truth
            axes.set_ylim(low - margin, high + margin)
        _phases(axes, fit, int(shown[0]) + 1)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("evaluation" if fit.settings.get("method") == "deterministic" else "step")
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 7))
        bare(axes)
    figure.axes[0].set_ylabel("ELBO (nats)")
    entries = legend(figure.axes)
    figure.legend(*entries, loc="outside upper left", ncols=len(entries[1]), markerscale=2, columnspacing=1.4, frameon=False)
    return figure


def _phases(axes: Axes, fit: Fit, first: int) -> None:
    """Where the rate was lowered, and the iterates that were averaged, as far as they are in the panel."""
    phases, steps = fit.settings.get("phases") or [], fit.elbo.shape[-1]
    ends = [phase["last"] for phase in phases[:-1] if first < phase["last"] < steps]
    for end in ends:
        axes.axvline(end, color="0.5", linestyle=":", linewidth=1.2, label="learning rate halved")
    averaged = int(fit.settings.get("averaged_steps") or 0)
    if 1 < averaged <= steps and phases:
        axes.axvspan(max(first, steps - averaged), steps, color="0.5", alpha=0.15, linewidth=0, label="averaged")


def _rungs(fit: Fit, truth: float | None) -> Figure:
    from matplotlib.figure import Figure

    names, values = list(fit.settings["tried"]), fit.elbo[0]
    evidence = fit.verdict.evidence.log_evidence if fit.verdict is not None else None
    level = truth if truth is not None else evidence.value if evidence is not None and math.isfinite(evidence.value) else None
    finite = values[np.isfinite(values)]
    top = max([*finite, *([] if level is None else [level])], default=0.0)
    floor = top - max(2.0, NEAR * min(top - finite, default=0.0))
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    seen, at = np.isfinite(values) & (values >= floor), np.arange(len(values))
    axes.plot(at[seen], values[seen], "o", color=FITTED, markersize=7, label="ELBO of the rung's q")
    lowest = min([float(values[seen].min()) if seen.any() else top - 1, top - 1])
    for i in at[~seen]:
        axes.plot(i, lowest, "v", color=FITTED, markersize=7, label="far below")
        axes.annotate(f"{values[i]:,.4g}", (i, lowest), (0, 8), textcoords="offset points", ha="center", fontsize="small")
    if level is not None:
        how = "log evidence" if truth is not None else "log evidence, by importance sampling,"
        axes.axhline(level, color=REFERENCE, linestyle="--", label=f"{how} {level:,.2f}")
    axes.set_xticks(at, [f"{i + 1}. {name}" for i, name in enumerate(names)])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.margins(y=0.15)
    axes.set_ylabel("ELBO (nats)")
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 7))
    bare(axes)
    figure.legend(*legend([axes]), loc="outside upper left", ncols=3, frameon=False)
    return figure
