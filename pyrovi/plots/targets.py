"""Figures of q against the density that it was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import SettingsError, first_line
from pyrovi.plots.diagnostics import TAIL, elements, label, spread_of
from pyrovi.plots.style import FITTED, RASTER, REFERENCE, bare, histogram, legend, numbers
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density"]

Array = NDArray[Any]
Target = Callable[[torch.Tensor], Any]

POINTS = {1: 3_000, 2: 150}
"""By dimension, the points along each side at which a target is evaluated."""

REGIONS = (0.5, 0.9)
"""Shares of the target within its contours."""

WIDENED = 4
"""How often the search for the target's ends goes further."""

CUT = 0.002
"""What a figure may leave out of the target at either end of an axis."""


def density(
    q: Fit | ArrayLike,
    target: Target,
    *,
    var_names: Sequence[str] | None = None,
    limits: ArrayLike | None = None,
    draws: int = 5_000,
) -> Figure:
    """Draws from q against the density that it is to look like, in one dimension or two.

    In one, a histogram of the draws under the target's curve. In two, the draws as points, and around them the target's contours:
    the smallest regions that hold 50% and 90% of it. The target need not be normalised; what the figure shows of it is taken for
    the whole.

    Args:
        q: A fit; or draws, shape `(draws,)` or `(draws, 2)`.
        target: From points, a `(m,)` tensor in one dimension and `(m, 2)` in two, to the log density there, up to a constant:
            shape `(m,)`, in nats, −inf where it is 0.
        var_names: Of a fit, its variables or elements of them, as in `"x[1]"`: one or two scalars, in the order in which the
            target takes them. All when None or empty.
        limits: Where to look for the target: shape `(2,)`, or in two dimensions `(2, 2)`, a row a coordinate. When None, over the
            range of the draws and twice as far on either side, and further where the target goes on, less what is empty; a mode
            beyond a wide gap may be overlooked.
        draws: Draws from a fit.

    Raises:
        PyroviError: The fit is a point estimate, or has no latent variable.
        SettingsError: There are more than two coordinates, draws or limits have another shape or are not finite, or the target
            cannot be evaluated within the limits or is 0 throughout.

    Example:
        >>> import numpy as np
        >>> import pyrovi
        >>> recipe = pyrovi.recipe("gaussian_mixture")
        >>> target = recipe.exact(**recipe.load()).marginals["x"]
        >>> figure = pyrovi.plots.density(recipe.fit(steps=50), lambda x: np.log(target.pdf(x)))
    """
    from matplotlib.figure import Figure

    flat, names = _draws(q, var_names, draws)
    box, (sides, weights) = _seen(flat, target, limits)
    figure = Figure(figsize=(6, 3.4 if len(names) == 1 else 5.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(box[0])
    axes.set_xlabel(names[0], parse_math=False)
    if len(names) == 1:
        curve = weights / (weights.sum() * (sides[0][1] - sides[0][0]))
        top = max(curve.max(), histogram(axes, flat[:, 0], *box[0]))
        axes.plot(sides[0], curve, color=REFERENCE, label="target")
        axes.set(ylim=(0, 1.08 * top), yticks=[])
        bare(axes, "left")
    else:
        size = float(np.clip(2e4 / len(flat), 3, 12))
        x, y = flat.T
        axes.scatter(x, y, s=size, c=FITTED, alpha=0.4, linewidths=0, rasterized=len(flat) > RASTER, label="draws from q")
        axes.contour(*sides, weights.T, levels=_levels(weights), colors=REFERENCE, linewidths=1.2)
        axes.plot([], [], color=REFERENCE, linewidth=1.2, label="target: its densest 50% and 90%")
        axes.set_ylim(box[1])
        axes.set_ylabel(names[1], parse_math=False)
        bare(axes)
    figure.legend(*legend([axes]), loc="outside upper left", ncols=2, markerscale=2, frameon=False)
    return figure


def _draws(q: Fit | ArrayLike, var_names: Sequence[str] | None, n: int) -> tuple[Array, list[str]]:
    """`(draws, d)`, and a name for each coordinate."""
    if isinstance(q, Fit):
        values = spread_of(q, n)
        wanted = elements(values, var_names or list(values))
        names = [label(name, np.unravel_index(i, values[name].shape[1:])) for name, flat in wanted.items() for i in flat]
        columns = [values[name].reshape(len(values[name]), -1)[:, flat] for name, flat in wanted.items()]
        draws = numbers("draws", np.concatenate(columns, axis=1), ("draws", "d"))
    else:
        draws = numbers("draws", q, ("draws", "d") if np.ndim(q) == 2 else ("draws",))
        draws = draws.reshape(len(draws), -1)
        names = [f"x[{i}]" for i in range(draws.shape[1])] if draws.shape[1] > 1 else ["x"]
    if len(names) > 2:
        raise SettingsError(
            f"a density is shown of one or two coordinates, and there are {len(names)}; choose, with a target of those"
        )
    return draws, names


def _seen(flat: Array, target: Target, limits: ArrayLike | None) -> tuple[Array, tuple[list[Array], Array]]:
    """The ends of each axis, `(d, 2)`, and the target evaluated between them."""
    d = flat.shape[1]
    if limits is not None:
        box = numbers("limits", limits, (2,) if d == 1 else (2, 2)).reshape(d, 2)
        if (box[:, 0] >= box[:, 1]).any():
            raise SettingsError(f"limits must rise; got {box.tolist()}")
        return box, _evaluated(target, box)
    core = np.quantile(flat, [TAIL, 1 - TAIL], axis=0).T
    core = core + 0.5 * (core[:, :1] == core[:, 1:]) * [-1, 1]
    box = core + 2 * np.diff(core) * [-1, 1]
    for _ in range(WIDENED):
        ends = _ends(*_evaluated(target, box))
        reached = np.abs(ends - box) < 0.02 * np.diff(box)
        if not reached.any():
            break
        box = box + reached * np.diff(box) * [-1, 1]
    box = np.stack([np.minimum(core, ends)[:, 0], np.maximum(core, ends)[:, 1]], axis=1)
    box = box + 0.03 * np.diff(box) * [-1, 1]
    return box, _evaluated(target, box)


def _ends(sides: Sequence[Array], weights: Array) -> Array:
    """Between which values of each coordinate all but the tails of the target lie: `(d, 2)`."""
    marginals = [weights] if len(sides) == 1 else [weights.sum(1), weights.sum(0)]
    held = [np.cumsum(marginal) / marginal.sum() for marginal in marginals]
    return np.array([side[np.searchsorted(share, [CUT, 1 - CUT])] for side, share in zip(sides, held, strict=True)])


def _evaluated(target: Target, box: Array) -> tuple[list[Array], Array]:
    """The points along each side of the box, and the target on their grid over its largest value there."""
    sides = [np.linspace(low, high, POINTS[len(box)]) for low, high in box]
    grid = torch.as_tensor(np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, len(box)), dtype=torch.get_default_dtype())
    within = " and ".join(f"{low:.3g} to {high:.3g}" for low, high in box)
    try:
        with torch.no_grad():
            log_p = target(grid if len(box) == 2 else grid[:, 0])
    except Exception as error:
        raise SettingsError(f"target cannot be evaluated on {within}, which limits can change: {first_line(error)}") from error
    log_p = numbers("what target gives", log_p, (len(grid),), missing=True)
    if np.isnan(log_p).any() or log_p.max() in (-np.inf, np.inf):
        raise SettingsError(f"target gives NaN or infinity, or is 0 throughout, on {within}; give limits where it has a density")
    return sides, np.exp(log_p - log_p.max()).reshape([len(side) for side in sides])


def _levels(weights: Array) -> Array:
    """Of the contours around the least cells that hold the `REGIONS` of the whole, rising."""
    falling = np.sort(weights, axis=None)[::-1]
    held = np.cumsum(falling) / falling.sum()
    # A hair below the last cell's own height, so that a flat target has a contour too.
    return np.unique(falling[np.searchsorted(held, REGIONS)] * (1 - 1e-6))
