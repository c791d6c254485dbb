"""The forest plot: every scalar's interval under its name, of one fit or of several, with the reference beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi._exact import ExactPosterior
from pyrovi.errors import SettingsError
from pyrovi.plots.diagnostics import called, draws_of, elements, label, spread_of, spread_out
from pyrovi.plots.style import MARKERS, REFERENCE, SEVERAL, bare, legend
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["forest", "reference_quantiles"]

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Ends of the thin line, of the thick one, and the dot."""

APART = 20
"""How many times as wide a variable's span may be as that of another on the same axis."""

Array = NDArray[np.float64]


def forest(
    fits: Fit | Mapping[str, Fit | Mapping[str, Any]],
    exact: ExactPosterior | Any | None = None,
    var_names: Sequence[str] | None = None,
    *,
    max_rows: int = 30,
    draws: int = 1_000,
) -> Figure:
    """Medians as points, the central 50% as thick lines and the central 90% as thin ones, a row a scalar.

    Variables whose spans differ more than twentyfold have axes of their own, so that none is squeezed to a point.

    Args:
        fits: A fit; or several by name, drawn one under the other in each row. In place of one, draws by variable will do, each of
            shape `(draws, *shape)`.
        exact: The reference, drawn below them: the exact posterior, or a container with a posterior group, as of `pyrovi.nuts`.
        var_names: The variables to show, or elements of them, `"theta[2]"`; all of the first fit's when None or empty.
        max_rows: How many scalars to show; past it every variable has its share, and the figure says how many are shown.
        draws: Draws from each fit; with 1,000 the Monte Carlo error of a 5% quantile is about 7% of an sd.

    Raises:
        PyroviError: A fit is a point estimate, or has no latent variable.
        SettingsError: There is no fit, or a name is not a variable of the first.
    """
    from matplotlib.figure import Figure

    several = dict(fits) if isinstance(fits, Mapping) else {called(fits): fits}
    if not several:
        raise SettingsError("forest needs at least one fit")
    samples = {name: spread_of(fit, draws) for name, fit in several.items()}
    values = next(iter(samples.values()))
    wanted = elements(values, var_names or list(values))
    chosen = spread_out(wanted, max(1, max_rows))
    shapes = {name: values[name].shape[1:] for name in chosen}
    rows = {name: [_quantiles(sample, name, shapes[name], flat) for sample in samples.values()] for name, flat in chosen.items()}
    against = {name: reference_quantiles(exact, name, shapes[name], flat) for name, flat in chosen.items()}
    groups = _alike({name: np.stack([q for q in [*own, against[name]] if q is not None]) for name, own in rows.items()})
    heights = [sum(len(chosen[name]) for name in group) for group in groups]
    lanes = len(several) + (exact is not None)
    size = max(0.22, 0.13 * lanes + 0.05)
    figure = Figure(figsize=(9, 0.9 + size * sum(heights) + 0.45 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": [h + 0.3 for h in heights]})[:, 0]
    for axes, group, count in zip(panels, groups, heights, strict=True):
        names = [label(name, np.unravel_index(i, shapes[name])) for name in group for i in chosen[name]]
        for lane, fitted in enumerate(several):
            found = [None if q[lane] is None else q[lane] for q in (rows[name] for name in group)]
            _intervals(axes, found, [len(chosen[n]) for n in group], lane, lanes, SEVERAL[lane % 6], MARKERS[lane % 5], fitted)
        if exact is not None:
            name = "exact posterior" if isinstance(exact, ExactPosterior) else "reference"
            found, sizes = [against[n] for n in group], [len(chosen[n]) for n in group]
            _intervals(axes, found, sizes, lanes - 1, lanes, REFERENCE, "d", name)
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_yticks(range(count), names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.5", alpha=0.25, linewidth=0.6)
        axes.ticklabel_format(axis="x", useOffset=False, scilimits=(-4, 6))
        bare(axes, "left")
    figure.legend(*legend(list(panels)), loc="outside upper left", ncols=4, frameon=False)
    cut = [f"{len(chosen[n])} of {len(whole):,} of {n}" for n, whole in wanted.items() if len(chosen[n]) < len(whole)]
    if cut:
        figure.supxlabel(f"shown: {'; '.join(cut)}", fontsize="medium", parse_math=False)
    return figure


def reference_quantiles(
    reference: ExactPosterior | Any | None, name: str, shape: tuple[int, ...], flat: NDArray[np.intp]
) -> Array | None:
    """The quantiles of some elements of a variable, `(probabilities, elements)`; None where the reference does not have it so."""
    if reference is None:
        return None
    if isinstance(reference, ExactPosterior):
        marginal = reference.marginals.get(name)
        if marginal is None:
            return None
        return np.stack([np.broadcast_to(marginal.ppf(p), shape).ravel()[flat] for p in PROBABILITIES])
    return _quantiles(draws_of(reference), name, shape, flat)


def _quantiles(sample: Mapping[str, Array], name: str, shape: tuple[int, ...], flat: NDArray[np.intp]) -> Array | None:
    if name not in sample or sample[name].shape[1:] != shape:
        return None
    kept = sample[name].reshape(len(sample[name]), -1)[:, flat]
    finite = np.where(np.isfinite(kept), kept, np.nan)  # a diverged q may overflow
    finite[:, np.isnan(finite).all(0)] = 0.0
    return np.asarray(np.nanquantile(finite, PROBABILITIES, axis=0))


def _alike(quantiles: Mapping[str, Array]) -> list[list[str]]:
    """Variables that can share an axis, in their order."""
    groups: list[list[str]] = []
    low = high = narrow = 0.0
    for name, found in quantiles.items():
        ends, width = (float(found.min()), float(found.max())), float(np.median(found[:, -1] - found[:, 0]))
        span = max(high, ends[1]) - min(low, ends[0])
        if groups and span <= APART * min(narrow, width):
            groups[-1].append(name)
            low, high, narrow = min(low, ends[0]), max(high, ends[1]), min(narrow, width)
        else:
            groups.append([name])
            (low, high), narrow = ends, width
    return groups


def _intervals(
    axes: Axes, found: Sequence[Array | None], sizes: Sequence[int], lane: int, lanes: int, colour: str, marker: str, name: str
) -> None:
    """One fit's intervals of every row of a panel, in its lane."""
    done = 0
    for q, size in zip(found, sizes, strict=True):
        if q is not None:
            y = done + np.arange(size) + (lane - (lanes - 1) / 2) * 0.8 / lanes
            axes.hlines(y, q[0], q[4], color=colour, linewidth=1)
            axes.hlines(y, q[1], q[3], color=colour, linewidth=2.6)
            axes.plot(q[2], y, marker, color=colour, markersize=4.5, linestyle="none", label=_plain(name))
        done += size


def _plain(name: str) -> str:
    """A legend's label: matplotlib hides those that begin with an underscore, and takes what is between dollars for mathematics."""
    return re.sub(r"\$", r"\\$", f" {name}" if name.startswith("_") else name)
