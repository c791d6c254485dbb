"""The posterior predictive check: the data beside data that the fitted model makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz
from pyrovi.draws import observed
from pyrovi.errors import PyroviError, SettingsError, nearest
from pyrovi.plots.style import FITTED, SEEN, bare, legend
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["outcomes", "predictive"]

BARS, BINS = 30, 25
"""Distinct whole numbers that have a bar each; bins of anything else, at most."""

SCALARS = 20_000_000
"""Numbers that predictions hold at most: 160 MB."""

DRAWS = 1_000

SHOWN = 400
"""Data drawn one by one, evenly spread; of more the intervals could not be told apart."""

LEVELS = ((0.05, 0.95), (0.25, 0.75))

Array = NDArray[np.float64]


def predictive(fit: Fit, site: str | None = None, *, draws: int | None = None, seed: int | None = None) -> Figure:
    """The data beside data sets that the model makes at draws of the posterior.

    On the left the number of data in every bin, or with every value of a count: of the data in black, of the simulated data sets
    as bands that hold the central 50% and 90% of them. On the right, where outcomes are more than a few values, every datum
    against the median of its own predictions, with the interval that holds 90% of them; about one datum in ten should lie outside.
    The data were seen by the fit, so a model that has a latent for every datum will look better here than it predicts; `loo` asks
    the harder question.

    Args:
        fit: The fit. One loaded without its model shows its stored predictions.
        site: The observed site; the first when None.
        draws: Simulated data sets; 1,000 when None, fewer of large data.
        seed: The fit's own when None.

    Raises:
        SettingsError: The site is not observed, or nothing is.
        PyroviError: The model's outcomes were summed out, or the fit was stored without predictions.
    """
    from matplotlib.figure import Figure

    name, y, replicated = outcomes(fit, site, draws, seed)
    kept = np.isfinite(y) & np.isfinite(replicated).all(0)
    y, replicated = y[kept], replicated[:, kept]
    if not y.size:
        raise PyroviError(f"site {name!r} has no finite value to check against")
    whole = bool((y == np.round(y)).all() and (replicated == np.round(replicated)).all())
    each = len(np.unique(y)) > 4
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = list(figure.subplots(1, 2 if each else 1, squeeze=False)[0])
    _counts(panels[0], y, replicated, whole)
    panels[0].set_xlabel(name, parse_math=False)
    if each:
        _each(panels[1], y, replicated)
    figure.legend(*legend(panels), loc="outside upper left", ncols=5, frameon=False)
    if not kept.all():
        figure.supxlabel(
            f"left out: {np.size(kept) - int(kept.sum()):,} of {np.size(kept):,} data, missing or simulated as infinite"
        )
    return figure


def outcomes(fit: Fit, site: str | None = None, draws: int | None = None, seed: int | None = None) -> tuple[str, Array, Array]:
    """An observed site's name, its values, `(n,)`, and as many of each simulated data set, `(draws, n)`."""
    if fit.problem is None:
        groups = _arviz.groups(fit.stored)
        if not {"posterior_predictive", "observed_data"} <= set(groups):
            raise PyroviError("the fit was stored without predictions; load it with its model: pyrovi.load(…, model=…)")
        seen = {str(k): np.asarray(v) for k, v in _arviz.group(fit.stored, "observed_data").data_vars.items()}
        made: dict[str, Any] = {
            str(k): np.asarray(v)[0] for k, v in _arviz.group(fit.stored, "posterior_predictive").data_vars.items()
        }
        name = _one({k: v for k, v in seen.items() if k in made}, site)
        return name, _flat(seen[name])[0], made[name].reshape(len(made[name]), -1).astype(float)
    shapes = {k: s.shape.numel() for k, s in fit.problem.structure.observed.items()}
    name = _one(shapes, site)
    n = draws or min(fit._affordable(DRAWS), max(20, SCALARS // max(1, sum(shapes.values()))))
    values = fit.predictive(n, seed=seed)[name].double().cpu().numpy()
    with fit.loaded(1, seed) as problem:
        y = observed(problem)[name].double().cpu().numpy()
    return name, y.ravel(), values.reshape(n, -1)


def _flat(values: Any) -> Array:
    return np.asarray(values, dtype=float).reshape(1, -1)


def _one(known: Any, site: str | None) -> str:
    if not known:
        raise SettingsError("the model has no observed site, and so no data to check against")
    if site is not None and site not in known:
        raise SettingsError(f"site {site!r} is not observed; {nearest(site, known)}")
    return site or next(iter(known))


def _counts(axes: Axes, y: Array, replicated: Array, whole: bool) -> None:
    """Data by bin."""
    low, high = (float(x) for x in np.quantile(replicated, [0.005, 0.995]))
    low, high = min(low, float(y.min())), max(high, float(y.max()))
    bins = int(np.clip(2 * len(y) ** (1 / 3), 5, BINS))  # Rice's rule
    if whole and high - low < BARS:
        edges = np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    inside = np.clip(replicated, edges[0], edges[-1])  # what lies beyond counts in the last bin
    counts = np.stack([np.histogram(one, edges)[0] for one in inside])
    for (p, q), alpha in zip(LEVELS, (0.25, 0.3), strict=True):
        ends = np.quantile(counts, [p, q], axis=0)
        axes.stairs(ends[1], edges, baseline=ends[0], fill=True, color=FITTED, alpha=alpha, label=f"{q - p:.0%} of simulated data")
    axes.stairs(np.histogram(y, edges)[0], edges, color=SEEN, linewidth=1.4, label="data")
    axes.set_ylabel("number of data")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="x", useOffset=False, scilimits=(-4, 6))
    bare(axes)


def _each(axes: Axes, y: Array, replicated: Array) -> None:
    """Every datum against its own predictions."""
    low, middle, high = np.quantile(replicated, [0.05, 0.5, 0.95], axis=0)
    within = float(((low <= y) & (y <= high)).mean())
    shown = np.unique(np.linspace(0, len(y) - 1, min(len(y), SHOWN)).astype(int))
    axes.vlines(middle[shown], low[shown], high[shown], color=FITTED, alpha=0.35, linewidth=1, label="90% of a datum's predictions")
    size = 4 if len(shown) <= 300 else 2
    axes.plot(middle[shown], y[shown], "o", color=SEEN, markersize=size, alpha=0.7, markeredgewidth=0)
    axes.set_xlabel("median of its predictions")
    axes.set_ylabel("datum")
    axes.set_title(f"{within:.0%} of {len(y):,} data lie in their 90%", fontsize="medium")
    bare(axes)
