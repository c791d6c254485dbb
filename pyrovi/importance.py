"""Importance sampling with a fitted q: smoothed weights and how far to trust them, the evidence, draws resampled.

    w_i ∝ p(data, z_i) / q(z_i),   z_i ~ q

The shape k-hat of a generalized Pareto distribution, fitted to the largest weights, says how many of their moments exist: below ½
their variance does, below 0.7 smoothed weights still serve with feasibly many draws, from 1 on not even the evidence's estimate
converges.

References:
    Pareto smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024) | https://jmlr.org/papers/v25/19-556.html
    Yes, but did it work? Evaluating variational inference (Yao et al., 2018) | https://proceedings.mlr.press/v80/yao18a.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi import _arviz
from pyrovi.errors import SettingsError
from pyrovi.estimate import Estimate

__all__ = ["Weights", "beyond_doubt", "log_evidence", "resample", "systematic", "threshold", "weigh"]

FEWEST = 25
"""Draws below which no tail can be fitted: it is a fifth of them, and ArviZ asks for five."""

CONSTANT = 1e-2
"""Where the largest log ratio is so little above the median, no weight is worth more than a hundredth above its share, and what
tail is left is that of rounding."""

CERTAIN, FEW = 1, 50_000
"""The standard errors by which k-hat has to be below the threshold, and the draws below which it takes twice as many: k-hat rises
with the number of draws, and with few it is too low as well as noisy."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Smoothed importance weights of draws from q.

    Attributes:
        log_weights: `(n,)`, summing to 1 when exponentiated; -inf of a draw whose ratio was not finite.
        khat: The Pareto shape; -inf where the ratio is all but the same for all draws, inf where no tail can be fitted.
        khat_se: Its standard error, (1 + k)/√m for a tail of m draws.
        ess: 1/Σw², the effective number of draws; 0 where no ratio was finite.
        draws: n.
        log_mean: The log of the mean of the smoothed weights before they are normalised: log p(data), estimated, if the ratios
            had all their constants.
    """

    log_weights: NDArray[np.float64]
    khat: float
    khat_se: float
    ess: float
    draws: int
    log_mean: float

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weights themselves, `(n,)`."""
        return np.exp(self.log_weights)

    @property
    def threshold(self) -> float:
        """What k-hat has to be below with so many draws."""
        return threshold(self.draws)

    @property
    def good(self) -> bool | None:
        """Whether k-hat is below the threshold beyond doubt; None where its standard error leaves that open."""
        return beyond_doubt(self.khat, self.khat_se, self.draws)


def beyond_doubt(khat: float, se: float, draws: int) -> bool | None:
    """Whether a k-hat is below the threshold for so many draws (True), above (False), or neither beyond doubt (None).

    >>> beyond_doubt(0.6, 0.05, 100_000), beyond_doubt(0.6, 0.1, 10_000), beyond_doubt(0.9, 0.05, 100_000)
    (True, None, False)
    """
    if not khat < math.inf:
        return False
    margin = (CERTAIN if draws >= FEW else 2 * CERTAIN) * se
    if khat + margin < threshold(draws):
        return True
    return False if khat - 2 * CERTAIN * se > threshold(draws) else None


def threshold(draws: int) -> float:
    """min(1 − 1/log10 S, 0.7): the k-hat up to which S smoothed draws have a bias and an error that they can be judged by.

    >>> threshold(10_000), round(threshold(1_000), 3)
    (0.7, 0.667)
    """
    return min(1 - 1 / math.log10(max(draws, 2)), 0.7)


def weigh(log_ratio: ArrayLike) -> Weights:
    """Smooth the importance weights of draws from q.

    Args:
        log_ratio: log p(data, z_i) − log q(z_i), `(n,)`, up to a constant. One that is not finite counts as weight 0.

    >>> weigh(np.zeros(1_000)).ess
    1000.0
    """
    ratio = _finite(log_ratio)
    n, finite, largest = len(ratio), ratio > -np.inf, ratio.max()
    if not finite.any():
        return Weights(np.full(n, -math.log(n)), math.inf, math.inf, 0.0, n, -math.inf)
    total = np.logaddexp.reduce(ratio)
    log_weights, log_mean = ratio - total, float(total - math.log(n))
    tail = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    if finite.all() and largest - np.median(ratio) <= CONSTANT and _ess(log_weights) > 0.99 * n:
        return Weights(log_weights, -math.inf, 0.0, _ess(log_weights), n, log_mean)
    body = np.argpartition(ratio, n - tail - 1)[n - tail - 1]
    if n < FEWEST or ratio[body] == -np.inf or np.partition(ratio, n - tail)[n - tail] == largest:
        bounded = n >= FEWEST and finite.all()  # by a largest ratio that the whole tail has
        khat, se = (-math.inf, 0.0) if bounded else (math.inf, math.inf)
        return Weights(log_weights, khat, se, _ess(log_weights), n, log_mean)
    # Far below the largest, so that its weight is 0 in float64; ArviZ takes no -inf.
    log_weights, khat = _arviz.psis(np.where(finite, ratio, largest - 1e4))
    log_mean = float(ratio[body] - log_weights[body] - math.log(n))  # smoothing leaves all but the tail as it is
    log_weights[~finite] = -np.inf
    khat = khat if math.isfinite(khat) else math.inf
    se = (1 + max(khat, 0.0)) / math.sqrt(tail) if khat < math.inf else math.inf
    return Weights(log_weights, khat, se, _ess(log_weights), n, log_mean)


def log_evidence(log_ratio: ArrayLike) -> Estimate:
    """The evidence log p(data), in nats: the log of the mean of the smoothed weights, with its standard error by the delta method.

    The standard error is that of independent draws with finite variance, and so too small where k-hat is above ½.

    Args:
        log_ratio: log p(data, z_i) − log q(z_i), `(n,)`, with all constants. One that is not finite counts as weight 0.

    >>> log_evidence(np.full(128, -3.0))
    Estimate(value=-3.0, se=0.0)
    """
    found = weigh(log_ratio)
    if not found.ess:
        return Estimate(-math.inf, math.inf)
    return Estimate(found.log_mean, math.sqrt(max(0.0, 1 / found.ess - 1 / found.draws)))


def resample(weights: Weights, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices of `n` draws, by systematic resampling: draw i comes ⌊n wᵢ⌋ or ⌈n wᵢ⌉ times, in a shuffled order.

    References:
        Sequential Monte Carlo methods in practice, section 1.3 (Doucet, de Freitas & Gordon, 2001)
    """
    return systematic(weights.weights, n, rng)


def systematic(weights: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """The same for any weights, `(draws,)`."""
    if n < 1:
        raise SettingsError(f"the number of draws must be at least 1; got {n}")
    total = np.cumsum(weights)
    index = np.searchsorted(total / total[-1], (rng.uniform() + np.arange(n)) / n, side="right")
    return rng.permutation(np.minimum(index, len(total) - 1))


def _finite(log_ratio: ArrayLike) -> NDArray[np.float64]:
    """The log ratios, -inf where they are not finite."""
    ratio = np.ravel(np.asarray(log_ratio, dtype=np.float64))
    if not ratio.size:
        raise SettingsError("there are no importance ratios: give at least one draw")
    return np.where(np.isfinite(ratio), ratio, -np.inf)


def _ess(log_weights: NDArray[np.float64]) -> float:
    """1/Σw²."""
    return float(np.round(np.exp(-np.logaddexp.reduce(2 * log_weights)), 6))
