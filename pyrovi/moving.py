"""Draws moved: to the posterior by degrees, and on there, to see whether they stand still."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from pyrovi.density import Density
from pyrovi.guides.gaussian import place
from pyrovi.guides.student import matched
from pyrovi.importance import resample
from pyrovi.proposals import Proposal, aligned, standard, values
from pyrovi.students import FEW_LATENTS
from pyrovi.tempering import GROUPS, MOVES, Moments, settle, temper

__all__ = ["brought", "settled", "tempered"]

SPREAD = 1.5

LEAST_MOVED, MOST_MOVED, MOVED_NUMBERS = 256, 2_048, 3e9
"""Draws that are moved, and numbers that moving them computes."""

SLACK = 0.2
"""Nats by which with many latents the two may be apart: their errors are themselves read off a few groups and weights."""

LEAST_EFFECTIVE, CONTRADICTS = 50, 2.5
"""Effective draws with which weights are a witness, and standard errors that their evidence is above the moved draws' by."""

MOST_NUMBERS = 2e10
"""Numbers that draws are moved on for, in all."""


def settled(density: Density, p: Proposal, seed: int) -> Proposal:
    """Whether its weighted draws, resampled, stand still when they are moved; where they do not, those that they become."""
    if p.standing:
        return p
    weights = aligned(p.weights.weights)
    n = _affordable(density)
    index = torch.from_numpy(resample(p.weights, n, np.random.default_rng([seed, 55])))
    return _moved_on(density, p, p.z[index], Moments.weighted(values(density, p.z), weights), p.z, weights, seed)


def brought(density: Density, p: Proposal, seed: int) -> Proposal:
    """The Gaussian's draws, spread out, moved to the posterior by degrees.

    Spread out, for draws are brought in from where the posterior is not more easily than sent out to where it is and q was not; by
    so much that q's entropy grows by about two nats, whatever the dimension.
    """
    d, parameters = density.dimension, p.parameters
    wider = 1 + SPREAD / math.sqrt(d)

    @torch.enable_grad()
    def ratio(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        e = e.detach().requires_grad_()
        z, log_det = place(parameters, wider * e)
        value, slope = density.gradient(z.detach())
        (pulled,) = torch.autograd.grad((z * slope).sum() + log_det.expand(len(e)).sum(), e)
        e = e.detach()
        return value + (log_det.detach() + 0.5 * e.square().sum(1)) + d * (
            math.log(wider) + 0.5 * math.log(2 * math.pi)
        ), pulled + e

    e = standard(_affordable(density), d, [seed, 77])
    moved = temper(ratio, e, seed=seed)
    z = place(parameters, wider * moved.e)[0]
    return replace(p, rung="tempered", moved=moved, moved_z=z)


def tempered(density: Density, p: Proposal, others: list[Proposal], seed: int) -> Proposal:
    """Draws that were brought to the posterior, moved on until they stand still, and held against others' weights."""
    z = p.moved_z
    assert z is not None
    alike = torch.full_like(z[:, 0], 1 / len(z))
    out = _moved_on(density, p, z, Moments.grouped(values(density, z)), z, alike, seed)
    return replace(out, contradicted=_contradicted(out, others) or _heavy(others, p.z.shape[1]))


def _moved_on(
    density: Density, p: Proposal, z: torch.Tensor, before: Moments, around: torch.Tensor, weights: torch.Tensor, seed: int
) -> Proposal:
    """Draws z moved on at the posterior, in the coordinates of the mean and covariance of weighted draws `around`."""
    whole = matched(around, weights, 30.0)
    loc, scale = whole.locs[0], whole.scales[0]

    def ratio(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = density.gradient(loc + e @ scale.mT)
        return value + 0.5 * e.square().sum(1), slope @ scale + e

    e = torch.linalg.solve_triangular(scale, (z - loc).mT, upper=False).mT
    moves = int(max(3 * MOVES, MOST_NUMBERS / (density.work * len(e) * 12)))
    settled = settle(ratio, e, before, lambda e: values(density, loc + e @ scale.mT), moves, 1 + (p.moved is not None), seed=seed)
    stays = settled.still and settled.blocks == 1
    return replace(p, settled=settled, moved_z=None if stays and p.moved is None else loc + settled.e @ scale.mT)


def _contradicted(p: Proposal, others: list[Proposal]) -> bool:
    """Whether weights have found more mass than tempering: of an estimate that is seldom too large, a sign that it lost some."""
    own = p.moved
    assert own is not None

    def above(other: Proposal) -> float:
        w, slack = other.weights, 0.0 if p.z.shape[1] <= FEW_LATENTS else SLACK
        apart = w.log_mean - own.log_evidence - slack
        return apart / math.hypot(own.log_evidence_se, 1 / math.sqrt(w.ess)) if w.ess >= LEAST_EFFECTIVE else -math.inf

    return max(map(above, others)) > CONTRADICTS


def _heavy(others: list[Proposal], dimension: int) -> bool:
    """Whether weights that are good find some variance that depends on a tail: moves seldom get there either.

    With many latents k-hat is large for their number alone, and only a variance that may not exist is a reason.
    """
    tails = [p.tail for p in others if p.weights.good]
    return bool(tails) and min(tails) >= (others[0].weights.threshold if dimension <= FEW_LATENTS else 1.0)


def _affordable(density: Density) -> int:
    """Draws to move: as many as compute so many numbers, in multiples of the groups."""
    leaps = MOVES * 4 * 3
    return GROUPS * int(min(MOST_MOVED, max(LEAST_MOVED, MOVED_NUMBERS / (density.work * leaps))) // GROUPS)
