"""Figures of importance weights: how far q is from the posterior, and by how much a datum that is left out would move it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz
from pyrovi.errors import PyroviError
from pyrovi.evidence import local_weights
from pyrovi.importance import Weights, threshold, weigh
from pyrovi.plots.style import FITTED, RASTER, REFERENCE, bare, legend
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi._loo import Loo

__all__ = ["khat", "log_ratios", "loo"]

DRAWS, UNVECTORIZED = 10_000, 1_000
"""From q: of a model whose draws run together, and of one whose draws run one by one."""

LOCAL_DRAWS, MOST_DATA, LOCAL_SCALARS = 2_000, 200, 20_000_000
"""Where every datum has its own weights: draws of each, data, and numbers that model and guide compute for them."""

SHOWN = 1e-3
"""Weights below which a draw is left out of the tail, in shares of the mean weight."""

DOTS = 600
"""Points of a tail, evenly spread on its logarithmic axis."""

Array = NDArray[np.float64]


def khat(fit: Fit, *, draws: int | None = None, seed: int | None = None) -> Figure:
    """The importance weights p/q of draws from q, and the tail whose shape is k-hat.

    On the left the log weights, log p(data, z) − log q(z): their mean is the ELBO, and the log of the mean weight estimates the log
    evidence; between the two lies KL(q‖p). On the right the share of draws whose weight is at least so large, on logarithmic axes,
    and the generalized Pareto that is fitted to the largest: a tail as straight and slow as its slope, −1/k-hat. Where all latents
    belong to a datum, each with weights of its own, the figure is k-hat by datum.

    Args:
        fit: The fit. Of one that keeps draws in q's place the weights are q's all the same. One loaded without its model shows
            those of its stored draws.
        draws: From q; 10,000 when None, 1,000 of a model that runs one draw at a time, fewer of a large one.
        seed: The fit's own when None.

    Raises:
        PyroviError: The fit is a point estimate, was stored without q's densities, or no draw has a finite weight.

    References:
        Pareto smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024) | https://jmlr.org/papers/v25/19-556.html
    """
    if fit.point_estimate:
        raise PyroviError("the fit is a point estimate, or has no latent variable: it has no importance weights")
    if (local := _local(fit, seed)) is not None:
        found = np.array([weigh(column).khat for column in local.T])
        return _by_datum(found, threshold(len(local)), f"{len(local):,} draws a datum")
    ratio = log_ratios(fit, draws, seed)
    weights = weigh(ratio)
    if not weights.ess:
        raise PyroviError("no draw from q has a finite importance weight")
    return _tail(ratio, weights)


def log_ratios(fit: Fit, draws: int | None = None, seed: int | None = None) -> Array:
    """The log weights log p(data, z) − log q(z) of draws from q, `(draws,)`, in nats."""
    if fit.problem is None:
        stats = _arviz.group(fit.stored, "sample_stats")
        if "log_q" not in stats:
            raise PyroviError(
                "the stored draws are not q's and have no importance weights; load the fit with its model: pyrovi.load(…, model=…)"
            )
        return np.ravel(np.asarray(stats["lp"] - stats["log_q"], dtype=float))
    n = draws or fit._affordable(DRAWS if fit.problem.vectorize else UNVECTORIZED)
    return np.asarray(fit.draws(n, seed=seed).elbo.numpy(), dtype=float)


def _local(fit: Fit, seed: int | None) -> Array | None:
    """Log weights by draw and datum where each datum has its own."""
    if fit.problem is None or not fit.problem.structure.local:
        return None
    with fit.loaded(1, seed) as problem:
        n = LOCAL_DRAWS if problem.vectorize else LOCAL_DRAWS // 10
        size = max(plate.size for plate in problem.structure.plates.values())
        scalars = max(1, sum(site.shape.numel() for site in problem.structure.sites.values()) // size)
        found = local_weights(problem, n, max(16, min(MOST_DATA, LOCAL_SCALARS // (n * scalars))))
    return None if found is None else found.log_weights.cpu().numpy()


def _tail(ratio: Array, weights: Weights) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = ratio[np.isfinite(ratio)]
    low, first, third, high = np.quantile(finite, [0.005, 0.25, 0.75, 1.0])
    low = max(low, first - 8 * (third - first))  # a guide wider than the posterior has draws at −1e9
    pad = 0.05 * (high - low) or 0.5
    left.hist(finite, bins=40, range=(low - pad, high + pad), color=FITTED, alpha=0.5, density=True, label="draws from q")
    mean = float(finite.mean()) if len(finite) == len(ratio) else -math.inf
    if low - pad < mean:
        left.axvline(mean, color=FITTED, label=f"ELBO {mean:,.2f}")
    left.axvline(weights.log_mean, color=REFERENCE, linestyle="--", label=f"log of the mean weight {weights.log_mean:,.2f}")
    left.set(yticks=[], xlabel="log weight (nats)")
    left.xaxis.set_major_locator(MaxNLocator(5))
    left.ticklabel_format(axis="x", useOffset=False, scilimits=(-4, 7))
    bare(left, "left")
    # A weight in units of their mean; a draw without a finite ratio has none.
    raw, smooth = (np.sort(values)[::-1] for values in (ratio - weights.log_mean, weights.log_weights + math.log(weights.draws)))
    kept = int((raw > math.log(SHOWN)).sum())
    share = np.arange(1, kept + 1) / len(ratio)
    dots = np.unique(np.geomspace(1, max(kept, 1), DOTS).astype(int)) - 1
    tail = min(kept, math.ceil(min(len(ratio) / 5, 3 * math.sqrt(len(ratio)))))
    right.plot(np.exp(raw[dots]), share[dots], ".", color=FITTED, markersize=4, label="draws from q")
    if math.isfinite(weights.khat):
        drawn = np.flatnonzero(smooth[:tail] < smooth[0])  # the largest weights are cut off at the largest raw one
        right.plot(np.exp(smooth[drawn]), share[drawn], color=REFERENCE, label="generalized Pareto")
    right.set(xscale="log", yscale="log", xlabel="weight, in mean weights", ylabel="share of draws above")
    bare(right)
    left.set_title(f"{weights.ess:,.0f} effective of {weights.draws:,} draws", fontsize="medium")
    right.set_title(_said(weights), fontsize="medium")
    figure.legend(*legend([left, right]), loc="outside upper left", ncols=4, columnspacing=1.4, frameon=False)
    return figure


def _said(w: Weights) -> str:
    if w.khat == -math.inf:
        return "the weights are all but equal"
    return f"k-hat {w.khat:.2f} ± {w.khat_se:.2f}, threshold {w.threshold:.2f}"


def _by_datum(khat: Array, good: float, what: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    _khats(axes, khat, good)
    above = int((khat > good).sum())
    axes.set_title(f"k-hat of {len(khat):,} data, {what}: {above:,} above the threshold of {good:.2f}", fontsize="medium")
    figure.legend(*legend([axes]), loc="outside upper left", ncols=3, frameon=False)
    return figure


def _khats(axes: Axes, khat: Array, good: float) -> None:
    at, drawn = np.arange(len(khat)), np.isfinite(khat)
    size, raster = (4, False) if len(khat) <= RASTER else (2, True)
    for chosen, colour, name in ((khat <= good, FITTED, "below the threshold"), (khat > good, REFERENCE, "above the threshold")):
        if (chosen & drawn).any():
            marker = "o" if colour == FITTED else "^"
            kept = chosen & drawn
            axes.plot(at[kept], khat[kept], marker, color=colour, markersize=size, alpha=0.8, rasterized=raster, label=name)
    axes.axhline(good, color="0.5", linestyle="--", linewidth=1)
    axes.set(xlabel="datum", ylabel="k-hat")
    bare(axes)


def loo(found: Loo) -> Figure:
    """By datum, the k-hat of its weights and its share of the expected log predictive density.

    A datum above the threshold moves q more than its weights can undo: its share is not to be relied on. A datum far below the
    others in the lower panel is one that the model did not expect.

    Args:
        found: By `pyrovi.loo`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    flat, share = found.pareto_k.ravel(), found.pointwise.ravel()
    _khats(top, flat, found.good_k)
    top.set_xlabel("")
    for chosen, colour, marker in ((flat <= found.good_k, FITTED, "o"), (flat > found.good_k, REFERENCE, "^")):
        size = 4 if len(flat) <= RASTER else 2
        at = np.arange(len(flat))[chosen]
        bottom.plot(at, share[chosen], marker, color=colour, markersize=size, alpha=0.8, rasterized=len(flat) > RASTER)
    bottom.set(xlabel="datum", ylabel="elpd (nats)")
    bare(bottom)
    figure.legend(*legend([top]), loc="outside upper left", ncols=3, frameon=False)
    return figure
