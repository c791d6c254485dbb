"""Proposals of a fit without settings: a q over a density's coordinates, its draws, and what they weigh. The Gaussian ones.

References:
    Sinh-arcsinh distributions (Jones & Pewsey, 2009) | https://doi.org/10.1093/biomet/asp053
    Pareto smoothed importance sampling (Vehtari et al., 2024) | https://jmlr.org/papers/v25/19-556.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._typing import Tensors
from pyrovi.density import Density
from pyrovi.fixed_draws import Objective
from pyrovi.guides.gaussian import initial, place
from pyrovi.importance import Weights, weigh
from pyrovi.pathfinder import Start, standard_draws
from pyrovi.tempering import Settled, Tempered

__all__ = ["MOST", "Proposal", "aligned", "drawn", "extended", "gaussian", "judged", "skewed", "standard", "values"]

Array = NDArray[np.float64]

Draw = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
"""So many draws, of a stream of random numbers by its number, and their log q."""

SKEWING = 512
"""Fixed draws for the skew's four numbers a latent."""

FIRST, MOST = 5_000, 60_000
"""Draws that weights are judged by: of the first k-hat has a standard error of about 0.1; the last where that leaves it open."""

ENOUGH = 3_000
"""Effective draws with which the mean of any of hundreds of latents is known to 0.06 sd and its sd to 5%."""

TAILS = 8
"""Latents whose variances are looked at."""

STANDING = 0.9
"""The share of effective draws from which, with a k-hat of the variances below ½, nothing is left to move."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A q over the density's coordinates, its draws and what they weigh.

    Attributes:
        rung: `gaussian`, `student` or `tempered`.
        parameters: Of the guide that q is: `pyrovi.guides.gaussian.place`'s, or a `Student`'s.
        z: Draws, `(n, dimension)`;
        ratio: their log p − log q, `(n,)`, NumPy.
        weights: The same, smoothed.
        tail: The largest k-hat of the weights times a latent's squared distance from its mean: a variance can depend on a tail
            that q hardly reaches where log p(data) does not.
        draws: Gives more.
        moved: How draws were moved to the posterior from there,
        settled: whether they stood still there,
        moved_z: the draws, where they are to be used,
        contradicted: and whether another's weights found more mass.
    """

    rung: str
    parameters: Tensors
    z: torch.Tensor
    ratio: Array
    weights: Weights
    tail: float
    draws: Draw
    moved: Tempered | None = None
    settled: Settled | None = None
    moved_z: torch.Tensor | None = None
    contradicted: bool = False

    @property
    def good(self) -> bool:
        """Whether its weights are good beyond doubt, for the variances of the latents too."""
        return self.weights.good is True and self.tail < self.weights.threshold

    @property
    def enough(self) -> bool:
        """Whether they are, and enough draws effective."""
        return self.good and self.weights.ess >= ENOUGH

    @property
    def nearly(self) -> bool:
        """Whether its weights are good, and only too few draws effective: more of them are cheaper than another proposal."""
        return self.good and self.weights.ess / self.weights.draws > 0.2

    @property
    def standing(self) -> bool:
        """Whether nothing is left that could move."""
        return self.weights.ess > STANDING * self.weights.draws and self.tail < 0.5

    @property
    def merit(self) -> tuple[bool, float]:
        """What proposals are ranked by."""
        return self.good, self.weights.ess / self.weights.draws


def gaussian(density: Density, q: Start, seed: int) -> Proposal:
    d = density.dimension
    parameters = initial("multivariate_normal", q.loc, q.scale)
    return judged("gaussian", density, parameters, _placed(parameters, d, seed))


def skewed(density: Density, q: Start, seed: int) -> Proposal:
    """The Gaussian, with skew and tails of its own in every whitened coordinate."""
    from scipy.optimize import minimize

    d = density.dimension
    objective = Objective(density, initial("normal", q.loc, q.scale, skew=True), standard_draws(SKEWING, d, seed + 101))

    def negative(v: Array) -> tuple[float, Array]:
        value, gradient = objective(aligned(v))
        return min(value, 1e300), gradient.numpy()

    with np.errstate(all="ignore"):
        still = 2e-4 * d / max(1.0, abs(q.elbo))
        found = minimize(
            negative, objective.start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 40, "maxcor": 20, "ftol": still}
        )
    parameters = objective.parameters(aligned(found.x if found.fun < 1e299 else objective.start.numpy()))
    parameters |= {"lower": torch.zeros(d * (d - 1) // 2, dtype=q.loc.dtype)}
    return judged("skewed", density, parameters, _placed(parameters, d, seed))


def _placed(parameters: Tensors, d: int, seed: int) -> Draw:
    def draws(n: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
        e = standard(n, d, [seed, stream])
        z, log_det = place(parameters, e)
        return z, -0.5 * e.square().sum(1) - d / 2 * math.log(2 * math.pi) - log_det

    return draws


def judged(rung: str, density: Density, parameters: Tensors, draws: Draw) -> Proposal:
    z, log_q = draws(FIRST, 0)
    ratio = (density(z) - log_q).numpy()
    weights = weigh(ratio)
    return Proposal(rung, parameters, z, ratio, weights, _tail(density, z, weights), draws)


def _tail(density: Density, z: torch.Tensor, weights: Weights) -> float:
    """The k-hat of the latents' variances, of those with the heaviest tails, and half a standard error more."""
    if weights.good is False:
        return math.inf
    if weights.khat == -math.inf:
        return -math.inf  # all weights are the same, and a variance is what q says
    w = weights.weights
    x = torch.cat([x.reshape(len(z), -1) for x in density.sites(z).values()], 1).numpy()
    with np.errstate(all="ignore"):
        mean = w @ x
        squares = np.square(x - mean)
        kurtosis = np.nan_to_num(w @ np.square(squares) / np.square(w @ squares), nan=0.0)
        heaviest = np.argsort(-kurtosis)[:TAILS]
        found = [weigh(weights.log_weights + np.log(squares[:, j])) for j in heaviest if kurtosis[j] > 0]
        return max((w.khat + w.khat_se / 2 if math.isfinite(w.khat) else w.khat for w in found), default=-math.inf)


def extended(density: Density, p: Proposal) -> Proposal:
    """More draws, while it is open whether the weights are good, or good ones are too few."""
    for stream, most in enumerate((4 * FIRST, MOST)):
        if p.weights.good is False or p.enough or p.weights.ess / p.weights.draws < ENOUGH / MOST:
            break
        wanted = 1.2 * ENOUGH * p.weights.draws / p.weights.ess if p.weights.good else most
        p = drawn(density, p, min(most, max(2 * len(p.z), math.ceil(wanted))), 1 + stream)
    return p


def drawn(density: Density, p: Proposal, upto: int, stream: int) -> Proposal:
    """The same with more draws, so many in all."""
    if upto <= len(p.z):
        return p
    z, log_q = p.draws(upto - len(p.z), stream)
    ratio = np.concatenate([p.ratio, (density(z) - log_q).numpy()])
    together, weights = torch.cat([p.z, z]), weigh(ratio)
    return replace(p, z=together, ratio=ratio, weights=weights, tail=_tail(density, together, weights))


def values(density: Density, z: torch.Tensor) -> torch.Tensor:
    """What is to stand still: coordinates and the latents' own values."""
    return torch.cat([z, *(x.reshape(len(z), -1) for x in density.sites(z).values())], 1)


def standard(n: int, d: int, seed: list[int]) -> torch.Tensor:
    """Standard Normal draws."""
    return aligned(np.random.default_rng(seed).standard_normal((n, d)))


def aligned(x: Array) -> torch.Tensor:
    """A tensor in memory of its own: sums are in another order, and differ by rounding, where an array begins elsewhere."""
    return torch.from_numpy(x).clone()
