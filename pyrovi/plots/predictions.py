"""Figures of predictions along an axis: regression lines with bands, forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import SettingsError
from pyrovi.plots.style import FITTED, REFERENCE, SEEN, bare, legend, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bands", "forecast", "quantile_bands"]

Array = NDArray[Any]
Pair = tuple[ArrayLike, ArrayLike]

SHADE = 0.3
"""How opaque a band is."""


def bands(
    x: ArrayLike,
    mean: ArrayLike,
    epistemic_sd: ArrayLike = 0.0,
    aleatoric_sd: ArrayLike = 0.0,
    *,
    observed: Pair | None = None,
    truth: ArrayLike | None = None,
    level: float = 0.9,
    labels: tuple[str, str] = ("x", "y"),
) -> Figure:
    """A regression line with two bands: of the line itself (epistemic), and of outcomes about it (with the noise, aleatoric).

        inner: mean ± z · epistemic_sd
        outer: mean ± z · √(epistemic_sd² + aleatoric_sd²), with z = 1.64 for 90%

    More data narrow the inner band and leave the noise. Draws of the mean, `m`, and of the noise sd, `s`, both `(draws, n)`, have
    the mean `m.mean(0)` and the sds `m.std(0)` and `np.sqrt((s**2).mean(0))`. A band whose sd is 0 throughout is left out, as the
    inner one of a maximum likelihood fit. Where draws are far from Normal, `quantile_bands` is the honest figure.

    Args:
        x: Shape `(n,)`, in any order.
        mean: Shape `(n,)`.
        epistemic_sd: Of the mean, under q: shape `(n,)`, or a number.
        aleatoric_sd: Of an outcome about its mean: shape `(n,)`, or a number.
        observed: The data's x and y, shape `(m,)` each.
        truth: The true mean at `x`, shape `(n,)`, where it is known.
        level: Of both bands; 90% can be checked by eye, one point in ten being outside.
        labels: Of the axes, with units.

    Raises:
        SettingsError: An array has another shape or is not finite, an sd is negative, or the level is not between 0 and 1.

    Example:
        >>> import numpy as np
        >>> from pyrovi import plots
        >>> x = np.linspace(0.0, 1.0, 20)
        >>> figure = plots.bands(x, 2 * x, epistemic_sd=0.1 + x, aleatoric_sd=0.3)
        >>> len(figure.axes)
        1
    """
    x = numbers("x", x, ("n",))
    mean = numbers("mean", mean, (len(x),))
    epistemic, aleatoric = _sd("epistemic_sd", epistemic_sd, len(x)), _sd("aleatoric_sd", aleatoric_sd, len(x))
    z = NormalDist().inv_cdf(0.5 + _probability("level", level) / 2)
    share = _percent(level)
    kinds = {f"{share}, epistemic": epistemic}
    if aleatoric.any():
        kinds = {f"{share}, with aleatoric": np.hypot(epistemic, aleatoric), **kinds}
    order = np.argsort(x)
    figure, axes = _panel(labels)
    _nested(axes, x[order], {name: ((mean - z * sd)[order], (mean + z * sd)[order]) for name, sd in kinds.items() if sd.any()})
    axes.plot(x[order], mean[order], color=FITTED, label="mean")
    _beside(axes, x[order], observed, None if truth is None else numbers("truth", truth, (len(x),))[order])
    return _with_legend(figure)


def quantile_bands(
    x: ArrayLike,
    quantiles: ArrayLike,
    levels: Sequence[float] = (0.05, 0.5, 0.95),
    *,
    observed: Pair | None = None,
    truth: ArrayLike | None = None,
    labels: tuple[str, str] = ("x", "y"),
) -> Figure:
    """Predictive quantiles by x: the middle one as a line, the others in pairs as bands about it.

    Args:
        x: Shape `(n,)`, in any order.
        quantiles: Shape `(k, n)`, k odd, one row a level: `np.quantile(draws, levels, axis=0)`.
        levels: The k probabilities, rising.
        observed: The data's x and y, shape `(m,)` each.
        truth: The true middle quantile at `x`, shape `(n,)`, where it is known.
        labels: Of the axes, with units.

    Raises:
        SettingsError: An array has another shape or is not finite, or levels or quantiles do not rise.

    Example:
        >>> import numpy as np
        >>> from pyrovi import plots
        >>> x, draws = np.arange(10.0), np.random.default_rng(0).normal(size=(200, 10))
        >>> figure = plots.quantile_bands(x, np.quantile(draws, (0.05, 0.5, 0.95), axis=0), labels=("day", "change"))
        >>> figure.axes[0].get_xlabel()
        'day'
    """
    x = numbers("x", x, ("n",))
    levels = [_probability("a level", level) for level in levels]
    if len(levels) % 2 == 0 or any(high <= low for low, high in zip(levels, levels[1:], strict=False)):
        raise SettingsError(f"levels must be an odd number of rising probabilities, as 0.05, 0.5, 0.95; got {levels}")
    rows = numbers("quantiles", quantiles, (len(levels), len(x)))
    if (np.diff(rows, axis=0) < 0).any():
        raise SettingsError("quantiles must not fall from one row to the next; give them in the order of levels")
    order = np.argsort(x)
    figure, axes = _panel(labels)
    _fan(axes, x[order], rows[:, order], levels)
    _beside(axes, x[order], observed, None if truth is None else numbers("truth", truth, (len(x),))[order])
    return _with_legend(figure)


def forecast(
    times: ArrayLike,
    observed: ArrayLike,
    past: Any,
    future_times: ArrayLike,
    future: Any,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    exact: tuple[Any, Any] | None = None,
    actual: ArrayLike | None = None,
    labels: tuple[str, str] = ("time", "y"),
) -> Figure:
    """A fan chart: medians and central bands of the smoothed past, and past a dotted line of the forecast.

    `past`, `future` and the two of `exact` are each draws, shape `(draws, times)`; or a tuple of mean and sd, shape `(times,)`
    each, of Normals; or a frozen SciPy distribution of that shape. The past is usually the level, without noise, and the future an
    outcome, so that what comes later can be held against its bands; the fan then widens at once, by the noise.

    Args:
        times: Shape `(T,)`, rising: numbers or dates.
        observed: Shape `(T,)`; NaN where missing.
        past: The smoothed series at `times`, or None for the forecast alone.
        future_times: Shape `(h,)`, rising, after the last of `times`.
        future: The forecast.
        levels: Probabilities of the central bands.
        exact: Exact past and future, either of which may be None: their medians and the limits of their widest bands are drawn
            over q's.
        actual: What the future turned out to be, shape `(h,)`, NaN where unknown.
        labels: Of the axes, with units.

    Raises:
        SettingsError: An array has another shape, an sd is negative, times do not rise, or a level is not between 0 and 1.

    Example:
        >>> import numpy as np
        >>> from pyrovi import plots
        >>> level = np.zeros(10)
        >>> figure = plots.forecast(np.arange(10), level, (level, 0.5), np.arange(10, 13), (np.zeros(3), np.ones(3)))
    """
    times, future_times = numbers("times", times, ("T",)), numbers("future_times", future_times, ("h",))
    if times.dtype.kind != future_times.dtype.kind:
        raise SettingsError("times and future_times must both be numbers or both be dates")
    every = np.concatenate([times, future_times])
    if not (every[1:] > every[:-1]).all():
        raise SettingsError("times must rise, and future_times must rise from after the last of them")
    seen = numbers("observed", observed, (len(times),), missing=True)
    tails = sorted((1 - _probability("a level", level)) / 2 for level in levels)
    if not tails:
        raise SettingsError("levels must name at least one central band, as in levels=(0.9,)")
    cuts = [*tails, 0.5, *(1 - tail for tail in reversed(tails))]
    parts = [("past", times, past, exact and exact[0]), ("future", future_times, future, exact and exact[1])]
    figure, axes = _panel(labels)
    for name, at, fitted, reference in parts:
        if fitted is not None:
            _fan(axes, at, _quantiles(name, fitted, cuts, len(at)), cuts)
        if reference is not None:
            limits = _quantiles(f"exact {name}", reference, [cuts[0], 0.5, cuts[-1]], len(at))
            axes.plot(at, limits.T, color=REFERENCE, linestyle="--", linewidth=1, label="exact")
    axes.axvline(times[-1], color=SEEN, linestyle=":", linewidth=1)
    _beside(axes, times, (times, seen))
    if actual is not None:
        later = numbers("actual", actual, (len(future_times),), missing=True)
        axes.plot(future_times, later, "o", color=SEEN, markerfacecolor="white", markersize=4, label="observed later")
    return _with_legend(figure)


def _quantiles(name: str, spread: Any, probabilities: Sequence[float], n: int) -> Array:
    """`(len(probabilities), n)`, of draws, of a mean and sd, or of a frozen SciPy distribution."""
    if hasattr(spread, "ppf"):
        return np.stack([numbers(f"quantiles of {name}", spread.ppf(p), (n,)) for p in probabilities])
    if isinstance(spread, tuple):
        if len(spread) != 2:
            raise SettingsError(f"{name} as a tuple must be a mean and an sd; it has {len(spread)} parts")
        mean, sd = numbers(f"mean of {name}", spread[0], (n,)), _sd(f"sd of {name}", spread[1], n)
        return np.stack([mean + NormalDist().inv_cdf(p) * sd for p in probabilities])
    return np.quantile(numbers(name, spread, ("draws", n)), probabilities, axis=0)


def _nested(axes: Axes, x: Array, limits: Mapping[str, tuple[Array, Array]]) -> None:
    """Bands over one another, by their names, the outermost first."""
    for i, (name, (low, high)) in enumerate(limits.items()):
        axes.fill_between(x, low, high, color=FITTED, alpha=SHADE, linewidth=0)
        # In the legend as dark as where it lies on those further out.
        axes.fill([], [], color=FITTED, alpha=1 - (1 - SHADE) ** (i + 1), linewidth=0, label=name)


def _fan(axes: Axes, x: Array, rows: Array, levels: Sequence[float]) -> None:
    """Bands between the first row and the last, the second and the last but one, and so on; and the middle row as a line."""
    middle = len(levels) // 2
    pairs = [(i, -1 - i) for i in range(middle)]
    _nested(axes, x, {f"{_percent(levels[i])} to {_percent(levels[j])}": (rows[i], rows[j]) for i, j in pairs})
    axes.plot(x, rows[middle], color=FITTED, label="median" if levels[middle] == 0.5 else _percent(levels[middle]))


def _beside(axes: Axes, x: Array, observed: Pair | None, truth: Array | None = None) -> None:
    if truth is not None:
        axes.plot(x, truth, color=REFERENCE, linestyle="--", label="truth")
    if observed is not None:
        if len(observed) != 2:
            raise SettingsError(f"observed must be a pair of arrays, x and y; it has {len(observed)} parts")
        at = numbers("observed x", observed[0], ("m",))
        y = numbers("observed y", observed[1], (len(at),), missing=True)
        size = 4 if len(at) <= 300 else 2
        axes.plot(at, y, "o", color=SEEN, alpha=0.6, markersize=size, markeredgewidth=0, label="observed", zorder=1.5)


def _sd(name: str, value: ArrayLike, n: int) -> Array:
    sd = numbers(name, value, (n,), broadcast=True)
    if sd.min() < 0:
        raise SettingsError(f"{name} must not be negative; its least value is {sd.min():.3g}")
    return sd


def _probability(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise SettingsError(f"{name} must be between 0 and 1; got {value}")
    return value


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _panel(labels: tuple[str, str]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(labels[0], parse_math=False)
    axes.set_ylabel(labels[1], parse_math=False)
    axes.margins(x=0.01)
    bare(axes)
    return figure, axes


def _with_legend(figure: Figure) -> Figure:
    handles, names = legend(figure.axes)
    room = sum(len(name) + 6 for name in names) <= 86  # letters in a row, six of them for a handle
    columns = len(names) if room else -(-len(names) // 2)
    figure.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.2, handlelength=1.6, frameon=False)
    return figure
