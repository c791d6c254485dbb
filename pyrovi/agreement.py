"""Means, sds and quantiles of draws from q beside those of the posterior: the draws' own, weighted, or an exact one's.

The two come from the same draws, so that what they have in common cancels: where the weights are all alike nothing is left of the
Monte Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrovi.estimate import Estimate
from pyrovi.verdict import MEAN_TOLERANCE, SD_TOLERANCE

__all__ = ["Agreement", "against_exact", "against_weighted", "columns"]

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.5, 0.95)

BANDWIDTH = 0.02
"""In probability, over which the density at a quantile is read off the draws."""

ROUNDING = 1e-7
"""Sds, beside means, that float32 cannot tell from none."""


class Agreement(NamedTuple):
    """The largest differences, each with its standard error and the variable whose it is; None where nothing can be compared."""

    mean_error: Estimate | None
    mean_worst: str
    sd_error: Estimate | None
    sd_worst: str
    quantile_error: Estimate | None
    quantile_worst: str

    @property
    def decided(self) -> bool:
        """Whether every one is within its tolerance, or without it, by two standard errors."""
        errors = ((self.mean_error, MEAN_TOLERANCE), (self.sd_error, SD_TOLERANCE), (self.quantile_error, 0.0))
        return all(e is None or abs(e.value - tolerance) > 2 * e.se for e, tolerance in errors)


def columns(sample: Mapping[str, Any]) -> tuple[list[str], Array]:
    """The labels of all scalars of a sample, as in `beta[1, 2]`, and their draws, `(n, scalars)`; integers are left out."""
    labels, parts = [], []
    for name, values in sample.items():
        array = np.asarray(values)
        if not np.issubdtype(array.dtype, np.floating) or not array[0].size:
            continue
        shape = array.shape[1:]
        labels += [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)] if shape else [name]
        parts.append(array.reshape(len(array), -1).astype(np.float64))
    return labels, np.concatenate(parts, 1) if parts else np.zeros((0, 0))


@np.errstate(all="ignore")
def against_weighted(labels: list[str], x: Array, weights: Array) -> Agreement:
    """Draws, `(n, scalars)`, as they are and weighted, `(n,)`; differences are in weighted sds."""
    n, w = len(x), weights[:, None]
    plain, weighted = x.mean(0), weights @ x
    sd, sd_w = x.std(0), np.sqrt(weights @ np.square(x - weighted))
    mean_se = np.sqrt(np.square(w * (x - weighted) - (x - plain) / n).sum(0)) / sd_w
    spread, spread_w = np.square((x - plain) / sd), np.square((x - weighted) / sd_w)
    sd_se = np.sqrt(np.square(w * (spread_w - 1) - (spread - 1) / n).sum(0)) / 2
    constant = np.maximum(sd, sd_w) <= ROUNDING * np.abs(plain)
    quantile, quantile_se = (
        np.array([_quantile_error(x[:, j], weights, weighted[j], sd_w[j]) for j in range(x.shape[1])]).reshape(-1, 2).T
    )
    return Agreement(
        *_largest(labels, np.abs(plain - weighted) / sd_w, mean_se, constant),
        *_largest(labels, np.abs(sd / sd_w - 1), sd_se, constant),
        *_largest(labels, quantile, quantile_se, constant),
    )


@np.errstate(all="ignore")
def against_exact(sample: Mapping[str, Any], marginals: Mapping[str, Any]) -> Agreement:
    """Draws by variable, `(n, *shape)`, beside frozen SciPy distributions of that shape; differences are in exact sds."""
    common = {name: np.asarray(sample[name], dtype=np.float64) for name in sample if name in marginals}
    labels, x = columns(common)
    if not labels:
        return Agreement(None, "", None, "", None, "")
    mean = np.concatenate([np.broadcast_to(marginals[n].mean(), v.shape[1:]).ravel() for n, v in common.items()])
    sd = np.concatenate([np.broadcast_to(marginals[n].std(), v.shape[1:]).ravel() for n, v in common.items()])
    n, own = len(x), x.std(0)
    fourth = np.power((x - x.mean(0)) / own, 4).mean(0)
    return Agreement(
        *_largest(labels, np.abs(x.mean(0) - mean) / sd, own / sd / math.sqrt(n), np.zeros(len(labels), bool)),
        *_largest(labels, np.abs(own / sd - 1), own / sd * np.sqrt((fourth - 1) / (4 * n)), np.zeros(len(labels), bool)),
        None,
        "",
    )


def _quantile_error(x: Array, weights: Array, mean: float, sd: float) -> tuple[float, float]:
    """The quantile that is furthest outside of what the tolerances of mean and sd leave it, in sds; and the standard error."""
    order = np.argsort(x)
    x, weights = x[order], weights[order]
    total, n = np.cumsum(weights), len(x)

    def quantile(p: float) -> float:
        return float(x[min(int(np.searchsorted(total, p)), n - 1)])

    worst = (-math.inf, 0.0)
    for p in QUANTILES:
        at, own = quantile(p), float(x[min(math.ceil(p * n), n) - 1])
        inverse_density = (quantile(p + BANDWIDTH) - quantile(p - BANDWIDTH)) / (2 * BANDWIDTH)
        below = (x <= at) - p
        se = math.sqrt(float(np.square((weights - 1 / n) * below).sum())) * inverse_density / sd
        excess = abs(own - at) / sd - MEAN_TOLERANCE - SD_TOLERANCE * abs(at - mean) / sd
        if not excess + 2 * se <= worst[0] + 2 * worst[1]:
            worst = (excess, se)
    return worst


def _largest(labels: list[str], error: Array, se: Array, constant: NDArray[np.bool_]) -> tuple[Estimate | None, str]:
    """The one that may be the largest, by two standard errors; what cannot be computed is infinite."""
    error = np.where(constant, 0.0, np.nan_to_num(error, nan=np.inf, posinf=np.inf))
    se = np.where(constant | np.isinf(error), 0.0, np.nan_to_num(se, nan=np.inf, posinf=np.inf))
    if not error.size:
        return None, ""
    i = int(np.argmax(error + 2 * se))
    return Estimate(float(error[i]), float(se[i])), labels[i]
