"""From q to the posterior by degrees: draws of q, reweighted and moved along  q^(1−β) p^β,  β from 0 to 1.

In the coordinates e in which q is standard Normal, the path is  Normal(e) exp(β r(e)),  with r = log p − log q, the log importance
ratio. Hamiltonian dynamics keep the Normal part exactly, by a rotation, and are kicked by β ∇r alone: where q is near the posterior
almost every proposal is accepted, in any dimension. The draws live in groups that never meet, so that how far the groups
lie apart says how well the draws have mixed.

References:
    Sequential Monte Carlo samplers (Del Moral, Doucet & Jasra, 2006) | https://doi.org/10.1111/j.1467-9868.2006.00553.x
    Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short chains (Margossian et al., 2024) | https://doi.org/10.1214/24-BA1453
    Split Hamiltonian Monte Carlo (Shahbaba, Lan, Johnson & Neal, 2014) | https://arxiv.org/abs/1106.5941
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["GROUPS", "Settled", "Tempered", "settle", "temper"]

GROUPS = 8

STEP = 0.5
"""The share of effective draws that a step of β may leave, and under which they are resampled."""

ACCEPTED = 0.8
"""The acceptance that the step size is steered to."""

BLOCKS, MOVES, LONGEST, KEPT = 7, 12, 48, 12
"""At β = 1: blocks of moves at most, moves in the first and in the longest, and how often in each draws are kept. Where moves go
far the draws after each are all but independent; of few that are kept the largest shift among hundreds of columns is noise."""

MOST_LEAPS = 8

CHANCE, RARELY = 3.0, 0.025
"""Standard errors of a shift that chance makes now and then, at the price of another block; of many columns, how often it may."""

SMALL, LARGE = 0.05, 0.15
"""Shifts, in sds or of a log sd: what is let pass, and what is not even where it may be chance."""

Ratio = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Tempered(NamedTuple):
    """Draws of the posterior, unweighted."""

    e: torch.Tensor
    """In q's coordinates, `(n, dimension)`, group after group."""
    log_evidence: float
    log_evidence_se: float
    accepted: float
    """The share of the last proposals."""
    temperatures: int


def temper(ratio: Ratio, e: torch.Tensor, *, seed: int) -> Tempered:
    """Take draws of q to the posterior.

    Args:
        ratio: At rows of e, log p − log q and its gradient.
        e: Standard Normal draws, `(n, dimension)`, n a multiple of `GROUPS`.
        seed: Of everything random.
    """
    rng = _stream(seed)
    n = len(e)
    r, slope = _finite(*ratio(e))
    log_w = torch.zeros(n, dtype=e.dtype)
    evidence = torch.zeros(GROUPS, dtype=e.dtype)
    beta, size, count, rate = 0.0, 0.5, 0, 1.0
    while beta < 1:
        step = _next(r, log_w, beta)
        beta, log_w, count = beta + step, log_w + step * r, count + 1
        grouped = log_w.reshape(GROUPS, -1)
        share = torch.softmax(log_w, 0)
        if beta < 1 and 1 / float(share.square().sum()) > STEP * n:
            pass
        else:
            evidence = evidence + torch.logsumexp(grouped, 1) - math.log(n // GROUPS)
            picked = torch.cat([_resampled(row, rng) + g * (n // GROUPS) for g, row in enumerate(grouped)])
            e, r, slope, log_w = e[picked], r[picked], slope[picked], torch.zeros_like(log_w)
        e, r, slope, rate = _move(ratio, e, r, slope, beta, size, rng)
        size = _steered(size, rate)
    spread = torch.logsumexp(evidence, 0) - math.log(GROUPS)
    relative = (evidence - spread).exp()
    return Tempered(e, float(spread), float(relative.std() / math.sqrt(GROUPS)), rate, count)


class Settled(NamedTuple):
    """Draws moved on at the posterior itself."""

    e: torch.Tensor
    """`(n, dimension)`, of the last block."""
    blocks: int
    """How many it took until nothing moved any more; 1 where the draws stood still from the start."""
    still: bool
    """Whether they do,"""
    shift: float
    """the largest change of a mean in the last block, in sds, or of an sd, relative,"""
    rhat: float
    """and nested R-hat: √(1 + B/W), B and W the variances between and within groups, of values and squares, the largest."""


class Moments(NamedTuple):
    """Means and sds of columns, and their standard errors in sds and relative."""

    mean: torch.Tensor
    sd: torch.Tensor
    mean_se: torch.Tensor
    sd_se: torch.Tensor

    @classmethod
    def weighted(cls, x: torch.Tensor, weights: torch.Tensor) -> Moments:
        """Of independent draws, `(n, columns)`, and weights that sum to 1."""
        mean = weights @ x
        sd = (weights @ (x - mean).square()).sqrt()
        y = ((x - mean) / sd).nan_to_num(0.0)
        share = weights.square()
        return cls(mean, sd, (share @ y.square()).sqrt(), (share @ (y.square() - 1).square()).sqrt() / 2)

    @classmethod
    def grouped(cls, x: torch.Tensor) -> Moments:
        """Of draws in `GROUPS` groups, along the first axis."""
        mean, sd = x.mean(0), x.std(0)
        y = ((x - mean) / sd).nan_to_num(0.0).reshape(GROUPS, -1, x.shape[1])
        mean_se, sd_se = (_known(y.mean(1)), _known(y.square().mean(1)) / 2)
        return cls(mean, sd, mean_se, sd_se)

    def shift(self, other: Moments, chance: float) -> tuple[float, bool]:
        """The largest difference, and whether one is neither small nor chance."""
        worst, moved = 0.0, False
        apart = (
            ((self.mean - other.mean) / other.sd, self.mean_se, other.mean_se),
            (self.sd / other.sd - 1, self.sd_se, other.sd_se),
        )
        for change, one, two in apart:
            change = change.abs().nan_to_num(0.0)
            worst = max(worst, float(change.max()))
            moved = moved or bool((change > (chance * (one.square() + two.square()).sqrt()).clamp(SMALL, LARGE)).any())
        return worst, moved


def settle(
    ratio: Ratio,
    e: torch.Tensor,
    before: Moments,
    values: Callable[[torch.Tensor], torch.Tensor],
    most: int,
    wanted: int,
    *,
    seed: int,
) -> Settled:
    """Move draws on by dynamics that leave the posterior as it is: of draws that are the posterior's nothing changes.

    What importance weights cannot see, a region that no draw from q has reached, the draws wander into, and means and sds shift.

    Args:
        ratio: As for `temper`, of coordinates in which the posterior is about standard Normal.
        e: The draws, `(n, dimension)`, n a multiple of `GROUPS`.
        before: The moments that these draws should have.
        values: Of rows of e, the columns that moments are taken of.
        most: Moves in all.
        wanted: Blocks that they have to stand still for; 2 once they have moved.
        seed: Of everything random.
    """
    from scipy.stats import norm

    rng = _stream(seed)
    r, slope = _finite(*ratio(e))
    size, block, stood, moves = 0.7, 0, 0, MOVES
    chance = max(CHANCE, float(norm.isf(RARELY / (2 * len(before.mean)))))
    while block < BLOCKS and stood < wanted and most >= moves:
        kept, block, most = [], block + 1, most - moves
        for move in range(1, moves + 1):
            e, r, slope, rate = _move(ratio, e, r, slope, 1.0, size, rng)
            size = _steered(size, rate)
            if move % (moves // KEPT) == 0:
                kept.append(e.reshape(GROUPS, -1, e.shape[1]))
        together = torch.cat(kept, 1).reshape(-1, e.shape[1])
        columns = values(together)
        after = Moments.grouped(columns)
        shift, moved = after.shift(before, chance)
        if moved:  # what drifts slowly is seen over longer blocks, and from where it last stood
            before, wanted, stood, moves = after, 2, 0, min(2 * moves, LONGEST)
        else:
            stood += 1
    return Settled(together, block, stood == wanted, shift, _nested_rhat(columns))


def _known(groups: torch.Tensor) -> torch.Tensor:
    """Standard errors of the columns' means over groups, none below the median column's.

    Of eight groups a standard error is so uncertain that of hundreds of columns some would have one several times too small.
    """
    se = groups.std(0) / math.sqrt(len(groups))
    return se.clamp_min(float(se.median()))


def _nested_rhat(x: torch.Tensor) -> float:
    both = torch.cat([x, (x - x.mean(0)).square()], 1).reshape(GROUPS, -1, 2 * x.shape[1])
    return float((1 + both.mean(1).var(0) / both.var(1).mean(0)).sqrt().nan_to_num(1.0).max())


def _steered(size: float, rate: float) -> float:
    """The step size for the next move."""
    return float(np.clip(size * math.exp(rate - ACCEPTED), 0.02, 1.5))


def _stream(seed: int) -> torch.Generator:
    """Random numbers of this module's own: the draws themselves may have been made from the same seed."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 4]).generate_state(1)[0]))


def _next(r: torch.Tensor, log_w: torch.Tensor, beta: float) -> float:
    """The largest step of β that leaves enough effective draws, of those that there are."""

    def kept(step: float) -> float:
        now = torch.softmax(log_w, 0)
        change = (step * r - (step * r).max()).exp()
        return float((now @ change) ** 2 / (now @ change.square()))

    low, high = 0.0, 1 - beta
    if kept(high) >= STEP:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) >= STEP else (low, middle)
    return max(low, 1e-3)


def _resampled(log_w: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Systematic resampling: indices."""
    n = len(log_w)
    points = (torch.arange(n, dtype=log_w.dtype) + torch.rand((), generator=rng, dtype=log_w.dtype)) / n
    return torch.searchsorted(torch.softmax(log_w, 0).cumsum(0), points).clamp_max(n - 1)


def _move(
    ratio: Ratio, e: torch.Tensor, r: torch.Tensor, slope: torch.Tensor, beta: float, size: float, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """One Hamiltonian proposal for every draw, and the mean acceptance."""
    start = torch.randn(e.shape, generator=rng, dtype=e.dtype)
    size = size * (0.8 + 0.4 * float(torch.rand((), generator=rng)))
    cos, sin = math.cos(size), math.sin(size)
    x, v, value, g = e, start, r, slope
    for _ in range(max(1, min(MOST_LEAPS, round(math.pi / 2 / size)))):
        v = v + size / 2 * beta * g
        x, v = cos * x + sin * v, cos * v - sin * x
        value, g = _finite(*ratio(x))
        v = v + size / 2 * beta * g
    energy = beta * (value - r) - (x.square() + v.square() - e.square() - start.square()).sum(1) / 2
    taken = torch.rand(len(e), generator=rng, dtype=e.dtype).log() < energy
    rate = float(energy.clamp_max(0).exp().nan_to_num(0.0).mean())
    row = taken[:, None]
    return torch.where(row, x, e), torch.where(taken, value, r), torch.where(row, g, slope), rate


def _finite(r: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where there is no density, none is to be gone to: a finite value so low that it is never taken."""
    bad = ~(torch.isfinite(r) & torch.isfinite(slope).all(1))
    return torch.where(bad, -1e30, r), torch.where(bad[:, None], 0.0, slope)
