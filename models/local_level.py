"""A level that drifts, seen through noise: the local level model (D0, exercise 5).

    level_1 ~ Normal(m0, s0)
    level_t ~ Normal(level_{t−1}, level_sd · √(time_t − time_{t−1})), t = 2..T
    y_t ~ Normal(level_t, noise_sd)

From a TensorFlow Probability tutorial on variational inference, which asks for a forecast with uncertainty. The data are the annual
flows of the Nile, 1871 to 1970. An sd of None is learned: maximum likelihood through the ELBO.

Exact: the Kalman filter gives the evidence and the forecast, the smoother level | y, a Gaussian Markov chain. By maximum likelihood
from a diffuse start the Nile's variances are 15098.5 (noise) and 1469.2 (level), with log likelihood −632.546.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray
from torch.distributions import constraints

from pyrovi import data
from pyrovi._exact import ExactPosterior
from pyrovi.distributions import MarkovNormal, natural_scale
from pyrovi.errors import DataError, SettingsError

__all__ = ["Forecast", "Likelihood", "exact", "forecast", "load", "maximum_likelihood", "model"]

Array = NDArray[np.float64]

DIFFUSE = 20.0
"""The start's sd, in sds of y, where `s0` is not given."""

COVARIANCE_LIMIT = 3_000
"""The longest series whose T x T covariance `exact` writes out."""


def model(
    time: torch.Tensor,
    y: torch.Tensor | None = None,
    observed: torch.Tensor | None = None,
    level_sd: float | None = None,
    noise_sd: float | None = None,
    m0: float | None = None,
    s0: float | None = None,
    horizon: int = 0,
) -> None:
    """Observe `y`, shape `(T,)`, at `time`, shape `(T,)`, rising.

    `observed`, shape `(T,)`, says which values of y are there; the others may be any numbers. `level_sd` is for a step of one unit
    of time. Where `m0` and `s0` are None the start is diffuse on y's scale: its mean, and 20 times its sd. A positive `horizon`
    adds the levels and outcomes of so many units of time after the last, for `fit.predictive(data={"horizon": 10})`.
    """
    there = None if observed is None else observed.bool()
    on, steps = _scale(time, y, there, m0, s0), time.diff()
    # They start wide, for small first gradients: large ones would stay in Adam's memory for a thousand steps.
    if level_sd is None:
        level_sd = pyro.param("level_sd", lambda: on.unit.clone(), constraint=constraints.positive)
    if noise_sd is None:
        noise_sd = pyro.param("noise_sd", lambda: on.unit.clone(), constraint=constraints.positive)

    sds = torch.cat([on.s0.reshape(1), level_sd * steps.sqrt()])
    level = pyro.sample("level", MarkovNormal(on.m0.expand(len(time)), sds, center=on.center, unit=on.unit))
    with pyro.plate("t", len(time)):
        outcome = dist.Normal(_along_plate(level), noise_sd)
        pyro.sample("y", outcome if there is None else outcome.mask(there), obs=y)

    if horizon:
        last = level[..., -1:].expand(*level.shape[:-1], horizon)
        future = pyro.sample("future_level", MarkovNormal(last, level_sd * last.new_ones(horizon)))
        with pyro.plate("ahead", horizon):
            pyro.sample("future_y", dist.Normal(_along_plate(future), noise_sd))


class _Scale(NamedTuple):
    """Where the walk starts, and where the data are and in which unit: see `natural_scale`."""

    m0: torch.Tensor
    s0: torch.Tensor
    center: torch.Tensor
    unit: torch.Tensor


def _scale(time: torch.Tensor, y: torch.Tensor | None, there: torch.Tensor | None, m0: float | None, s0: float | None) -> _Scale:
    if not (time.diff() > 0).all():
        raise DataError("time does not rise throughout; sort the data by time, and give each time once")
    if there is not None and not there.any():
        raise DataError("no value of y is observed; give at least one")
    if y is None:  # the levels are given, as in a forecast, and their scale is idle
        seen = center = unit = torch.ones((), device=time.device)
    else:
        seen = y if there is None else y[there]
        center, unit = natural_scale(y, there)
    start = seen.mean() if m0 is None else seen.new_tensor(m0)
    start_sd = DIFFUSE * seen.std(correction=0).clamp(min=unit) if s0 is None else seen.new_tensor(s0)
    return _Scale(start, start_sd, center, unit)


def _along_plate(path: torch.Tensor) -> torch.Tensor:
    """A path, which is one event, laid along the plate of its outcomes: several at once come as `(particles, 1, T)`."""
    return path.squeeze(-2) if path.dim() > 1 else path


def load(learned: bool = True) -> dict[str, Any]:
    """The Nile, from the nearly diffuse start of Durbin and Koopman, level_1 ~ Normal(0, √10⁷).

    Args:
        learned: Whether the two sds are to be learned; the published ones are given where not.
    """
    years, volume = data.nile()
    published = {"level_sd": None, "noise_sd": None} if learned else {"level_sd": math.sqrt(1469.2), "noise_sd": math.sqrt(15098.5)}
    return {"time": years.astype(float), "y": volume, **published, "m0": 0.0, "s0": math.sqrt(1e7)}


class Likelihood(NamedTuple):
    """The sds with the largest likelihood, and its log in nats."""

    level_sd: float
    noise_sd: float
    log_likelihood: float


class Forecast(NamedTuple):
    """`time`: `(horizon,)`. `level`, `y`: frozen SciPy Normals of that shape, with `.mean()`, `.std()` and `.ppf(p)`."""

    time: Array
    level: Any
    y: Any


def exact(
    time: ArrayLike,
    y: ArrayLike,
    observed: ArrayLike | None = None,
    level_sd: float | None = None,
    noise_sd: float | None = None,
    m0: float | None = None,
    s0: float | None = None,
) -> ExactPosterior:
    """The smoothed levels by the recursions of Kalman and of Rauch, Tung and Striebel; the predictive repeats each outcome.

    An sd of None is that of `maximum_likelihood`. NaN in `y` is missing too. With `s0=math.inf` the start is diffuse and the
    evidence is that of all outcomes but the first, given the first. As a proper start grows wide, its evidence tends to that plus
    the log of Normal(m0, √(s0² + noise_sd²)) at the first outcome.

    References:
        Time Series Analysis by State Space Methods, chapter 2 (Durbin & Koopman, 2nd edition, 2012)
    """
    from scipy import stats  # here, because it takes as long to import as Pyro

    series = _series(time, y, observed, m0, s0)
    level_sd, noise_sd, _ = _sds(series, level_sd, noise_sd)
    filtered = _filter(series, level_sd, noise_sd)
    pull, spread = _backwards(filtered, level_sd)
    length = len(pull) + 1
    mean, var = filtered.mean.copy(), filtered.var.copy()
    for t in range(length - 2, -1, -1):
        known = filtered.mean[t] if pull[t] < 1 else 0.0
        mean[t] = known * (1 - pull[t]) + pull[t] * mean[t + 1]
        var[t] = spread[t] + pull[t] ** 2 * var[t + 1]

    covariance = {}
    if length <= COVARIANCE_LIMIT:
        matrix = np.diag(var)
        for t in range(length - 2, -1, -1):
            matrix[t, t + 1 :] = matrix[t + 1 :, t] = pull[t] * matrix[t + 1, t + 1 :]
        covariance["level"] = matrix

    def joint(size: int, rng: np.random.Generator) -> dict[str, Array]:
        draws = rng.normal(size=(size, length))
        draws[:, -1] = mean[-1] + math.sqrt(var[-1]) * draws[:, -1]
        for t in range(length - 2, -1, -1):
            draws[:, t] = mean[t] + pull[t] * (draws[:, t + 1] - mean[t + 1]) + math.sqrt(spread[t]) * draws[:, t]
        return {"level": draws}

    return ExactPosterior(
        marginals={"level": stats.norm(mean, np.sqrt(var))},
        log_evidence=filtered.log_likelihood,
        predictive={"y": stats.norm(mean, np.sqrt(var + noise_sd**2))},
        covariance=covariance,
        joint=joint,
    )


def forecast(
    time: ArrayLike,
    y: ArrayLike,
    observed: ArrayLike | None = None,
    level_sd: float | None = None,
    noise_sd: float | None = None,
    m0: float | None = None,
    s0: float | None = None,
    horizon: int = 10,
) -> Forecast:
    """The exact forecast of the next `horizon` units of time; the other arguments are those of `exact`.

    >>> round(float(forecast(**load(learned=False), horizon=3).y.mean()[2]), 1)
    798.4
    """
    from scipy import stats

    series = _series(time, y, observed, m0, s0)
    level_sd, noise_sd, _ = _sds(series, level_sd, noise_sd)
    filtered = _filter(series, level_sd, noise_sd)
    ahead = np.arange(1.0, horizon + 1)
    mean, var = np.full(horizon, filtered.mean[-1]), filtered.var[-1] + level_sd**2 * ahead
    times = float(np.asarray(time, dtype=float)[-1]) + ahead
    return Forecast(times, stats.norm(mean, np.sqrt(var)), stats.norm(mean, np.sqrt(var + noise_sd**2)))


def maximum_likelihood(
    time: ArrayLike,
    y: ArrayLike,
    observed: ArrayLike | None = None,
    level_sd: float | None = None,
    noise_sd: float | None = None,
    m0: float | None = None,
    s0: float | None = None,
) -> Likelihood:
    """The sds that are None at their maximum likelihood, the others as given; the arguments are those of `exact`.

    >>> found = maximum_likelihood(**{**load(), "s0": math.inf})
    >>> round(found.noise_sd**2, 1), round(found.level_sd**2, 1), round(found.log_likelihood, 3)
    (15098.5, 1469.2, -632.546)
    """
    return _sds(_series(time, y, observed, m0, s0), level_sd, noise_sd)


class _Series(NamedTuple):
    y: Array
    """NaN where missing."""
    steps: Array
    """From each time to the next, `(T − 1,)`."""
    m0: float
    s0: float


class _Filtered(NamedTuple):
    """Of level_t given y_1..y_t."""

    mean: Array
    var: Array
    steps: Array
    log_likelihood: float


def _series(time: ArrayLike, y: ArrayLike, observed: ArrayLike | None, m0: float | None, s0: float | None) -> _Series:
    times, values = np.asarray(time, dtype=float), np.asarray(y, dtype=float).copy()
    if observed is not None:
        values[~np.asarray(observed, dtype=bool)] = np.nan
    seen = values[~np.isnan(values)]
    if not seen.size:
        raise DataError("no value of y is observed; give at least one")
    if not np.all(np.diff(times) > 0):
        raise DataError("time does not rise throughout; sort the data by time, and give each time once")
    return _Series(
        values,
        np.diff(times),
        float(seen.mean()) if m0 is None else float(m0),
        DIFFUSE * max(float(seen.std()), _unit(seen)) if s0 is None else float(s0),
    )


def _unit(seen: Array) -> float:
    """As `natural_scale` has it."""
    return float(np.sqrt(np.mean(np.diff(seen) ** 2) / 2) if seen.size > 1 else 0.0) or 1.0


def _filter(series: _Series, level_sd: float, noise_sd: float) -> _Filtered:
    """The Kalman filter; an infinite variance, before the first outcome from a diffuse start, stays so until there is one."""
    y, noise = series.y.tolist(), noise_sd**2
    drift = [0.0, *(level_sd**2 * series.steps).tolist()]
    m, p, log_likelihood = series.m0, series.s0**2, 0.0
    mean, var = [], []
    for value, q in zip(y, drift, strict=True):
        p += q
        if not math.isnan(value):
            if math.isinf(p):
                m, p = value, noise
            else:
                total = p + noise
                log_likelihood -= 0.5 * (math.log(2 * math.pi * total) + (value - m) ** 2 / total)
                m, p = m + p / total * (value - m), p * noise / total
        mean.append(m)
        var.append(p)
    return _Filtered(np.array(mean), np.array(var), series.steps, log_likelihood)


def _backwards(filtered: _Filtered, level_sd: float) -> tuple[Array, Array]:
    """How level_t hangs on level_{t+1} given y_1..y_t: the slope, and the variance that is left, `(T − 1,)` each."""
    var, drift = filtered.var[:-1], level_sd**2 * filtered.steps
    known = np.isfinite(var)
    finite = np.where(known, var, 1.0)
    return np.where(known, finite / (finite + drift), 1.0), np.where(known, finite * drift / (finite + drift), drift)


def _sds(series: _Series, level_sd: float | None, noise_sd: float | None) -> Likelihood:
    """The sds given, or those of the largest likelihood."""
    from scipy import optimize

    given = {"level_sd": level_sd, "noise_sd": noise_sd}
    for name, value in given.items():
        if value is not None and not value > 0:
            raise SettingsError(f"{name} must be positive, or None to be learned; got {value}")
    free = [name for name, value in given.items() if value is None]
    fixed = {name: float(value) for name, value in given.items() if value is not None}
    unit = _unit(series.y[~np.isnan(series.y)])

    def filled(log_sds: Array) -> dict[str, float]:
        return {**fixed, **dict(zip(free, (unit * np.exp(log_sds)).tolist(), strict=True))}

    def loss(log_sds: Array) -> float:
        return -_filter(series, **filled(log_sds)).log_likelihood

    best = np.zeros(0)
    if free:  # from several starts: the likelihood may have a second maximum where one sd is all but 0
        starts = [np.array([low, high])[: len(free)] for low, high in ((-2.0, 0.0), (0.0, -2.0), (-0.5, -0.5))]
        found = [
            optimize.minimize(
                loss, start, method="L-BFGS-B", bounds=[(-9.0, 5.0)] * len(free), options={"ftol": 1e-14, "gtol": 1e-7}
            )
            for start in starts
        ]
        best = min(found, key=lambda result: result.fun).x
    return Likelihood(**filled(best), log_likelihood=-loss(best))
