"""Are ranks uniform? Simultaneous bands for their ECDF, the test of their symmetry, and what their departure looks like.

ArviZ's two lines have bands of different kinds, for values that are continuous and without a p-value; ranks among L draws are not,
and the band here is theirs, exact but for the simulation of its width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NullECDF", "asymmetry", "shape_of"]

SIMULATED = 20_000
"""Uniform samples that the band's width and the p-values are from: they are good to 1/20,000."""


@dataclass(frozen=True)
class NullECDF:
    """The ECDF of ranks that are uniform on 0..`draws`, of `count` of them.

    Attributes:
        count: Ranks.
        draws: The largest rank.
        prob: The probability that such an ECDF stays within the band everywhere.
        tails: The tail table, `(count + 1, draws)`: the smaller of P(≤ c) and P(≥ c) for c ranks at most j.
        departures: By simulated sample the smallest tail that it met, ascending.
    """

    count: int
    draws: int
    prob: float
    tails: NDArray[np.float64]
    departures: NDArray[np.float64]

    @classmethod
    def of(cls, count: int, draws: int, prob: float) -> NullECDF:
        """References:
        Graphical test for discrete uniformity and its applications in goodness of fit evaluation and multiple sample comparison
        (Säilynoja, Bürkner & Vehtari, 2022) | https://arxiv.org/abs/2103.10522
        """
        from scipy.stats import binom

        expected = np.arange(1, draws + 1) / (draws + 1)
        c = np.arange(count + 1)[:, None]
        tails = np.minimum(binom.cdf(c, count, expected), binom.sf(c - 1, count, expected))
        rng = np.random.default_rng(0)
        sampled = rng.multinomial(count, np.full(draws + 1, 1 / (draws + 1)), size=SIMULATED).cumsum(1)[:, :-1]
        return cls(count, draws, prob, tails, np.sort(tails[sampled, np.arange(draws)].min(1)))

    @property
    def expected(self) -> NDArray[np.float64]:
        """P(rank ≤ j) for j = 0..draws − 1."""
        return np.arange(1, self.draws + 1) / (self.draws + 1)

    def ecdf(self, ranks: NDArray[np.intp]) -> NDArray[np.float64]:
        """The share of ranks at most j, for j = 0..draws − 1."""
        return self._counts(ranks) / self.count

    def _counts(self, ranks: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.bincount(ranks, minlength=self.draws + 1).cumsum()[:-1]

    def p_value(self, ranks: NDArray[np.intp]) -> float:
        """How often uniform ranks depart as far: the share of samples whose smallest tail is no larger."""
        smallest = self.tails[self._counts(ranks), np.arange(self.draws)].min()
        # Equal tails differ by rounding.
        below = np.searchsorted(self.departures, smallest * (1 + 1e-9), side="right")
        return float((1 + below) / (1 + SIMULATED))

    @property
    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest ECDF at each rank that stay within."""
        # The smallest tail at which a sample counts as inside, as `p_value` puts it.
        first = math.floor((1 - self.prob) * (1 + SIMULATED)) - 1
        inside = self.tails * (1 + 1e-9) >= self.departures[max(0, first)]
        low = inside.argmax(0)
        high = self.count - inside[::-1].argmax(0)
        return low / self.count, high / self.count


def asymmetry(ranks: NDArray[np.intp], draws: int) -> float:
    """The p-value of VSBC's test: are ranks as often high as low, at every distance from the middle?

    VSBC compares p = P(draw < truth) with 1 − p by a Kolmogorov–Smirnov test of two samples. The two are one sample and its mirror
    image, and such a test rejects too often; the same largest difference is judged here as what it is, of a random walk's length.

    References:
        Yes, but did it work?: evaluating variational inference (Yao, Vehtari, Simpson & Gelman, 2018) | https://arxiv.org/abs/1802.02538
        A test for symmetry using the sample distribution function (Butler, 1969), Annals of Mathematical Statistics 40
    """
    counts = np.bincount(ranks, minlength=draws + 1)
    sides = (counts - counts[::-1])[: (draws + 1) // 2]
    off_centre = len(ranks) - (counts[draws // 2] if draws % 2 == 0 else 0)
    if not off_centre:
        return 1.0
    x = np.abs(sides.cumsum()).max() / math.sqrt(off_centre)
    if x < 0.2:
        return 1.0
    k = np.arange(50)
    inside = 4 / math.pi * ((-1.0) ** k / (2 * k + 1) * np.exp(-((math.pi * (2 * k + 1)) ** 2) / (8 * x**2))).sum()
    return float(np.clip(1 - inside, 0.0, 1.0))


def shape_of(ranks: NDArray[np.intp], draws: int) -> str:
    """What ranks that are not uniform look like, in words.

    By how far p, the mean rank as a share, and |2p − 1| are from the halves that uniform ranks have, in standard errors; what lies
    beyond three is named, the larger first.
    """
    p = (ranks + 0.5) / (draws + 1)
    root = math.sqrt(12 * len(ranks))
    place, spread = (p.mean() - 0.5) * root, (np.abs(2 * p - 1).mean() - 0.5) * root
    named = []
    if abs(spread) > 3:
        named.append(
            (
                abs(spread),
                "overconfident: ∪-shaped ranks, sds too small" if spread > 0 else "underconfident: ∩-shaped ranks, sds too large",
            )
        )
    if abs(place) > 3:
        named.append((abs(place), f"shifted: q too {'low' if place > 0 else 'high'}"))
    return "; ".join(text for _, text in sorted(named, reverse=True)) or "misshapen: neither narrow nor wide nor shifted"
