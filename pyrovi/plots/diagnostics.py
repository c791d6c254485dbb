"""Histograms of q beside the exact posterior, and which scalars of many a figure shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi._exact import ExactPosterior
from pyrovi.errors import PyroviError, SettingsError, nearest
from pyrovi.export import posterior_arrays
from pyrovi.plots.style import BINS, REFERENCE, bare, histogram, legend, shortened
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TAIL", "called", "draws_of", "elements", "label", "posterior", "spread_of", "spread_out"]

GRID = 300
"""Points of a density curve: as many as a panel can show."""

TAIL = 0.004
"""What a panel leaves out at either end; heavy tails would squeeze the rest."""


def posterior(
    fit: Fit | Mapping[str, Any],
    exact: ExactPosterior | Any | None = None,
    var_names: Sequence[str] | None = None,
    *,
    max_panels: int = 12,
    draws: int = 1_000,
) -> Figure:
    """Histograms of draws from q, and over them the exact densities.

    Args:
        fit: The fit; or draws by variable, each of shape `(draws, *shape)`.
        exact: The reference. Of an exact posterior the marginals are drawn as curves, for the variables that it has; of a container
            with a posterior group, as of `pyrovi.nuts`, the draws as outlined histograms.
        var_names: The variables to show, or elements of them as tables name them, `"theta[20]"`; all when None or empty.
        max_panels: How many scalars to show; past it every variable has its share, spread evenly over its elements, and
            the figure says how many of each are shown.
        draws: Draws from q; 1,000 make a histogram smooth enough to judge by eye.

    Raises:
        PyroviError: The fit is a point estimate, or has no latent variable.
        SettingsError: A name is not a variable of the fit, or an element not one of its variable's.

    Example:
        >>> import pyrovi
        >>> recipe = pyrovi.recipe("normal_mean")
        >>> figure = pyrovi.plots.posterior(recipe.fit(steps=300), recipe.exact(**recipe.load()))
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = spread_of(fit, draws)
    drawn = {} if exact is None or isinstance(exact, ExactPosterior) else draws_of(exact)
    wanted = elements(values, var_names or list(values))
    chosen = spread_out(wanted, max(1, max_panels))
    panels = sum(map(len, chosen.values()))
    columns = min(4, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(9, 0.7 + 1.7 * rows), layout="constrained")
    grid = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for name, shown in chosen.items():
        shape, flat = values[name].shape[1:], values[name].reshape(len(values[name]), -1)[:, shown]
        marginal = exact.marginals.get(name) if isinstance(exact, ExactPosterior) else None
        other = drawn.get(name) if drawn.get(name, flat).shape[1:] == shape else None
        beside = None if other is None else other.reshape(len(other), -1)[:, shown]
        x, density = _curves(flat if beside is None else np.concatenate([flat, beside]), marginal, shape, shown)
        for i, element in enumerate(shown):
            axes = next(grid)
            top = histogram(axes, flat[:, i], x[0, i], x[-1, i], called(fit))
            if beside is not None:
                height, edges = np.histogram(beside[:, i], BINS, (x[0, i], x[-1, i]))
                height = height / (len(beside) * np.diff(edges))
                axes.stairs(height, edges, color=REFERENCE, linewidth=1.3, label="reference draws")
                top = max(top, float(height.max()))
            if density is not None:
                axes.plot(x[:, i], density[:, i], color=REFERENCE, label="exact posterior")
                peak = np.argmax(density[:, i])
                # A density may be infinite at its edge; a peak between the edges is worth most of the height.
                top = max(top, min(density[peak, i], (1.5 if peak in (0, GRID - 1) else 5) * top))
            axes.set(xlim=(x[0, i], x[-1, i]), ylim=(0, 1.08 * top or 1), yticks=[])
            axes.set_title(label(name, np.unravel_index(element, shape)), fontsize="medium", parse_math=False)
            axes.xaxis.set_major_locator(MaxNLocator(max(3, 8 // columns)))
            axes.ticklabel_format(axis="x", useOffset=False, scilimits=(-4, 6))
            bare(axes, "left")
    for axes in grid:
        axes.remove()
    figure.legend(*legend(figure.axes), loc="outside upper left", ncols=2, frameon=False)
    cut = [f"{len(chosen[n])} of {len(whole):,} of {n}" for n, whole in wanted.items() if len(chosen[n]) < len(whole)]
    if cut:
        figure.supxlabel(f"shown: {'; '.join(cut)}", fontsize="medium", parse_math=False)
    return figure


def spread_of(fit: Fit | Mapping[str, Any], draws: int) -> dict[str, NDArray[np.float64]]:
    """Draws by variable, of a fit that is more than a point, or those at hand."""
    if not isinstance(fit, Fit):
        return {str(name): np.asarray(value, dtype=float) for name, value in fit.items()}
    if fit.point_estimate:
        raise PyroviError("the fit is a point estimate, or has no latent variable: it has no spread to plot")
    return fit.posterior_arrays(draws)


def called(fit: Fit | Mapping[str, Any]) -> str:
    """What the draws are that a fit gives."""
    if not isinstance(fit, Fit):
        return "draws"
    if fit.sample is None:
        return "draws from q"
    return "draws from q, weighted" if fit.sample.weights is not None else "draws moved to the posterior"


def draws_of(reference: Any) -> dict[str, NDArray[np.float64]]:
    """The draws of a fit, or of a container that ArviZ reads, by variable."""
    return reference.posterior_arrays() if isinstance(reference, Fit) else posterior_arrays(reference)


def elements(values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """By variable, the flat indices of the elements that `names` ask for: all of `theta`, or `theta[2]` and `theta[5]`."""
    wanted: dict[str, NDArray[np.intp]] = {}
    for name in names:
        variable, index = name, None
        if name not in values and (parts := re.fullmatch(r"(.+)\[(\d+(?:, ?\d+)*)\]", name)):
            variable, index = parts[1], [int(i) for i in parts[2].split(",")]
        if variable not in values:
            raise SettingsError(f"unknown variable {variable!r}; {nearest(variable, values)}")
        shape = values[variable].shape[1:]
        if index is None:
            wanted[variable] = np.arange(values[variable][0].size)
            continue
        if len(index) != len(shape) or any(i >= length for i, length in zip(index, shape, strict=True)):
            raise SettingsError(f"there is no {name}: {variable!r} has the shape {shape}, and its indices start at 0")
        flat = np.ravel_multi_index(index, shape)
        wanted[variable] = np.append(wanted.get(variable, np.arange(0)), flat)
    return wanted


def spread_out(wanted: Mapping[str, NDArray[np.intp]], limit: int) -> dict[str, NDArray[np.intp]]:
    """Elements to show of each variable: equal shares until one is used up, evenly spaced."""
    share = dict.fromkeys(wanted, 0)
    while sum(share.values()) < min(limit, sum(map(len, wanted.values()))):
        for name in wanted:
            share[name] += share[name] < len(wanted[name]) and sum(share.values()) < limit
    return {
        name: wanted[name][np.linspace(0, len(wanted[name]) - 1, count).round().astype(np.intp)] for name, count in share.items()
    }


def _curves(
    flat: NDArray[np.float64], marginal: Any, shape: tuple[int, ...], elements: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """For each panel a grid over all but the tails of q and of the exact posterior, and the density on it: `(GRID, panels)`."""
    tails = (TAIL, 1 - TAIL)
    low, high = np.quantile(np.where(np.isfinite(flat), flat, 0.0), tails, axis=0)  # a diverged q may overflow
    if marginal is not None:
        exact_low, exact_high = (np.broadcast_to(marginal.ppf(p), shape).ravel()[elements] for p in tails)
        low, high = np.minimum(low, exact_low), np.maximum(high, exact_high)
    empty = 0.5 * np.maximum(1.0, np.abs(low)) * (high <= low)  # a constant
    x = np.linspace(low - empty, high + empty, GRID)
    if marginal is None:
        return x, None
    # SciPy evaluates all elements of a frozen distribution together; those without a panel stay at their medians.
    whole = np.tile(np.broadcast_to(marginal.ppf(0.5), shape).ravel(), (GRID, 1))
    whole[:, elements] = x
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return x, np.asarray(marginal.pdf(whole.reshape(GRID, *shape))).reshape(GRID, -1)[:, elements]


def label(name: str, index: Sequence[Any]) -> str:
    return shortened(f"{name}[{', '.join(map(str, index))}]" if len(index) else name)
