"""Student-t's matched to weighted draws: one, one more for every mode found, several along what is bent.

References:
    Adaptive importance sampling in general mixture classes (Cappé et al., 2008) | https://doi.org/10.1007/s11222-008-9059-x
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from pyrovi.density import Density
from pyrovi.guides.student import Student, matched
from pyrovi.importance import systematic
from pyrovi.modes import Restarts
from pyrovi.proposals import MOST, Array, Proposal, aligned, drawn, judged, standard, values
from pyrovi.tempering import CHANCE, LARGE, SMALL, Moments

__all__ = ["FEW_LATENTS", "mixture", "students", "widened"]

FEW_LATENTS, PARTS, CLUSTERED, MIXED_ROUNDS, MIXED_DF = 12, 8, 4_000, 8, 8.0
"""Latents up to which a bent posterior can be covered by so many Student-t's, from so many draws in so many rounds."""

WIDENINGS, COMPARED_STREAM, COMPARED_NUMBERS = 5, 9, 1e8
"""Of q's, and the numbers computed for the draws by which two are compared: 5,000 of a bent posterior know an sd to 5% only."""


LEAST_SHARE = 0.2
"""Of effective draws, with which a wider q whose weights have too heavy a tail says where that tail is."""


def students(density: Density, p: Proposal, missed: Restarts, seed: list[int]) -> list[Proposal]:
    """Rounds of matching Student-t's to the weighted draws, as long as more of them become effective."""
    d = density.dimension
    dfs = (5.0, 30.0) if d <= 10 else (30.0,)
    out: list[Proposal] = []
    for df in dfs:
        q = matched(p.z, aligned(p.weights.weights), df)
        if missed.paths:
            elbo = np.array([p.weights.log_mean, *(path.elbo for path in missed.paths)])
            q = Student(
                aligned(np.maximum(elbo - elbo.max(), -5.0)),
                torch.cat([q.locs, torch.stack([path.loc for path in missed.paths])]),
                torch.cat([q.scales, torch.stack([_lower(path.scale) for path in missed.paths])]),
                q.df,
            )
        best = None
        for round_ in range(4):
            now = student(density, q, [*seed, int(df), round_])
            if best is not None and now.weights.ess / now.weights.draws < 1.05 * best.weights.ess / best.weights.draws:
                break
            best = now
            q = matched(now.z, aligned(now.weights.weights), df, q)
        assert best is not None
        out.append(best)
        if best.enough:
            break
    return out


def mixture(density: Density, z: torch.Tensor, weights: Array, seed: int) -> Proposal:
    """Several Student-t's along what is bent or has several parts, matched round after round, first to weighted draws."""
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng([seed, 33])
    whole = matched(z, aligned(weights), MIXED_DF)
    z = z[torch.from_numpy(systematic(weights, CLUSTERED, rng))]
    z = z + 0.2 * standard(len(z), density.dimension, [seed, 34]) @ whole.scales[0].mT  # of few effective draws many are the same
    e = torch.linalg.solve_triangular(whole.scales[0], (z - whole.locs[0]).mT, upper=False).mT
    _, label = kmeans2(e.numpy(), PARTS, minit="++", seed=rng)
    parts = [k for k in range(PARTS) if (label == k).sum() > 2 * density.dimension]
    alike = [torch.full((int((label == k).sum()),), 1 / int((label == k).sum()), dtype=z.dtype) for k in parts]
    each = [matched(z[torch.from_numpy(label == k)], w, MIXED_DF) for k, w in zip(parts, alike, strict=True)]
    q = Student(
        aligned(np.log([(label == k).sum() for k in parts])),
        torch.cat([one.locs for one in each]),
        torch.cat([one.scales for one in each]),
        whole.df,
    )
    best = None
    for round_ in range(MIXED_ROUNDS):
        now = student(density, q, [seed, 35, round_])
        if best is None or now.merit > best.merit:
            best = now
        if now.enough or now.nearly:
            break
        q = matched(now.z, aligned(now.weights.weights), MIXED_DF, q)
    assert best is not None
    return best


def widened(density: Density, p: Proposal, seed: int) -> Proposal:
    """Weighted draws of a wider q: where they have other moments, q ended too soon, and a wider one takes its place."""
    shift, draws = 0.0, int(min(MOST, COMPARED_NUMBERS / density.work))
    p = drawn(density, p, draws, COMPARED_STREAM)
    q = Student(**p.parameters) if p.rung == "student" else matched(p.z, aligned(p.weights.weights), MIXED_DF)
    for round_ in range(WIDENINGS):
        wide = student(density, q._replace(scales=1.5 * q.scales, df=torch.full_like(q.df, 4.0)), [seed, 36, round_])
        wide = drawn(density, wide, draws, COMPARED_STREAM)
        if wide.weights.good is False and wide.weights.ess < LEAST_SHARE * wide.weights.draws:
            return p
        mine, theirs = (Moments.weighted(values(density, x.z), aligned(x.weights.weights)) for x in (p, wide))
        shift, _ = theirs.shift(mine, CHANCE)
        if shift <= SMALL and (p.good or wide.good):
            return p if p.good else wide
        # Chance or not, the wider one is the safer; which of them is right the next, wider still, will say.
        q = matched(wide.z, aligned(wide.weights.weights), MIXED_DF, Student(**wide.parameters))
        p = max(drawn(density, student(density, q, [seed, 37, round_]), draws, COMPARED_STREAM), wide, key=lambda p: p.merit)
    return p if shift <= LARGE else replace(p, tail=math.inf)


def student(density: Density, q: Student, seed: list[int]) -> Proposal:
    def draws(n: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
        z = q.draw(n, int(np.random.SeedSequence([*seed, stream]).generate_state(1)[0]))
        return z, torch.logsumexp(q.log_density(z), 1)

    return judged("student", density, q._asdict(), draws)


def _lower(scale: torch.Tensor) -> torch.Tensor:
    return torch.diag(scale) if scale.dim() == 1 else scale
