"""When has a noisy optimisation converged? A first, plain rule on the ELBO's trace.

The run is looked at when 1/2^j of its steps are done. The window between two looks is split in half; the fit has
converged when the second half's mean ELBO differs from the first's, give or take two standard errors, by less than a
tolerance in nats. So noise too large to tell a rising ELBO from a flat one counts against convergence, not for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_WINDOW", "Plateau", "looks", "plateau", "tolerance"]

MIN_WINDOW = 100
"""Steps below which a window says nothing: its standard error comes from ten blocks a half."""

BLOCKS = 10


def tolerance(dimension: int) -> float:
    """How many nats of ELBO may still be on the way: 0.005 a latent scalar, and at least 0.1.

    An error of a tenth of a posterior sd in a Normal's mean costs 0.1²/2 = 0.005 nats.
    """
    return max(0.1, 0.005 * dimension)


def looks(steps: int) -> list[int]:
    """The steps after which to look, ascending; the last is `steps`, and every window is at least `MIN_WINDOW` long.

    >>> looks(1000)
    [250, 500, 1000]
    """
    out = [steps]
    while (half := math.ceil(out[-1] / 2)) >= 2 * MIN_WINDOW:
        out.append(half)
    return out[::-1]


class Plateau(NamedTuple):
    """The gain of the ELBO (nats) from a window's first half to its second, and whether it is small beyond doubt."""

    gain: float
    se: float
    tolerance: float

    @property
    def reached(self) -> bool:
        """Whether the gain is within the tolerance beyond doubt."""
        return abs(self.gain) + 2 * self.se <= self.tolerance

    def __str__(self) -> str:
        return f"{self.gain:+.3g} ± {self.se:.2g} nats over the last window (tolerance {self.tolerance:.2g})"


def plateau(elbo: NDArray[np.floating], dimension: int) -> Plateau:
    """Judge one window of the ELBO's trace, shape `(steps,)`, of a model with `dimension` latent scalars.

    Standard errors are those of block means, so that autocorrelation counts. Their variance is read off the differences of
    neighbouring blocks (von Neumann, 1941), so that a steady rise does not count as noise.
    """
    if len(elbo) < MIN_WINDOW:
        return Plateau(math.nan, math.inf, tolerance(dimension))
    means = np.array([block.mean() for block in np.array_split(np.asarray(elbo, dtype=float), 2 * BLOCKS)])
    variance = np.square(np.diff(means)).mean() / 2
    gain = means[BLOCKS:].mean() - means[:BLOCKS].mean()
    return Plateau(float(gain), math.sqrt(2 * variance / BLOCKS), tolerance(dimension))
