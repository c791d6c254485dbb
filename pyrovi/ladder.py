"""From a model's log density to draws that can be used: one rung after another, until weights say that it is enough.

    coordinates       latents with a prior that depends on others are seen from it (`pyrovi.centering`)
    gaussian          the best Gaussian, full covariance, by natural gradients, from Pathfinder's start; then skewed
    student           Student-t's matched to the weighted draws, over every mode that restarts find, until they match no better
    tempered          draws of the skewed Gaussian moved to the posterior by degrees (`pyrovi.tempering`)

What counts is decided by importance weights on fresh draws, never by the ELBO: the rungs only propose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pyrovi.centering import Centering
from pyrovi.coordinates import find_coordinates
from pyrovi.density import Density
from pyrovi.modes import Restarts, look
from pyrovi.moving import brought, settled, tempered
from pyrovi.proposals import Proposal, extended, gaussian, skewed
from pyrovi.students import FEW_LATENTS, mixture, students, widened

__all__ = ["Found", "search"]

CALL = 100
"""Numbers that could be computed in the time that it takes to call an operation."""

PATHS, MOST_PATHS, PATH_NUMBERS = 8, 96, 5e7
"""Restarts that look for other modes: the more the cheaper, as long as a step of all of them computes so many numbers at most."""

ROUNDS = 3
"""Of restarts and of Student-t's that take in what they find."""

LOOKED_AT = 20_000
"""Weighted draws that restarts are held against."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the search ended with."""

    density: Density
    """In the coordinates that it chose."""
    centering: dict[str, Centering]
    best: Proposal
    tried: list[Proposal]
    restarts: Restarts


def search(
    make: Callable[..., Density],
    sites: list[str],
    start: torch.Tensor,
    prior: Callable[[Density], torch.Tensor],
    *,
    seed: int,
    tell: Callable[[str], None] = lambda rung: None,
) -> Found:
    """Climb the ladder.

    Args:
        make: Records the log density: `make(centering=…)`, `make(likelihood=True)`.
        sites: Those whose priors depend on other latents.
        start: Where the first path starts, unconstrained, `(dimension,)`.
        prior: Prior draws in a density's coordinates, to start from.
        seed: Of everything random.
        tell: Told the rung that is being tried.
    """
    tell("coordinates")
    density, centering, q = find_coordinates(make, sites, start, prior, seed)
    tell("gaussian")
    tried = [gaussian(density, q, seed)]
    if not tried[-1].enough and not tried[-1].nearly:
        tell("skewed")
        tried.append(skewed(density, q, seed))
    tell("restarts")
    missed = _modes(density, tried[-1], prior, seed)
    whole = [] if missed.paths else tried[:]  # those that visit all modes found
    for round_ in range(ROUNDS):
        if whole and (whole[-1].enough or whole[-1].nearly) and not missed.paths:
            break
        tell("student")
        more = students(density, max(tried, key=lambda p: p.merit) if round_ else tried[-1], missed, [seed, round_])
        tried, whole = tried + more, whole + more
        if not missed.paths:
            break
        missed = _modes(density, max(more, key=lambda p: p.merit), prior, seed)
    best = max(whole, key=lambda p: p.merit)
    if not (best.enough or best.nearly) and density.dimension <= FEW_LATENTS:
        tell("mixture")
        most = max(whole, key=lambda p: p.weights.ess / p.weights.draws)
        tried.append(mixture(density, most.z, most.weights.weights, seed))
        best = max(best, tried[-1], key=lambda p: p.merit)
    if not best.enough:
        tell("more draws")
        best = extended(density, best)
    # Student-t's were matched to their own draws, and may stand still for that.
    if (best.enough or best.nearly) and density.dimension <= FEW_LATENTS and (best.rung == "student" or not best.standing):
        tell("widened")
        wide = widened(density, best, seed)
        if wide.parameters is not best.parameters:
            tried.append(wide)
        best = extended(density, wide)
    if best.enough:
        tell("settled")
        best = settled(density, best, seed)
    if not best.enough or best.settled is not None and not best.settled.still:
        tell("tempered")
        few, moved = density.dimension <= FEW_LATENTS, brought(density, tried[0], seed)
        again = _rematched(density, moved, seed) if few else None
        if again is not None:
            again = settled(density, again, seed)
        if again is None or again.settled is not None and not again.settled.still:
            # They are to stand still themselves, which takes far longer.
            moved = tempered(density, moved, tried, seed)
            again = _rematched(density, moved, seed + 1) if few else None
        tried += [moved] if again is None else [moved, again]
        best = tried[-1]
    if best.moved_z is not None:
        missed = _modes(density, best, prior, seed)
    return Found(density, centering, best, tried, missed)


def _rematched(density: Density, moved: Proposal, seed: int) -> Proposal | None:
    """A proposal matched to moved draws, which can be weighted, where its weights are good: they are the better witnesses."""
    assert moved.moved_z is not None
    n = len(moved.moved_z)
    again = mixture(density, moved.moved_z, np.full(n, 1 / n), seed + 1)
    again = extended(density, widened(density, again, seed + 1) if again.enough or again.nearly else again)
    return again if again.enough else None


def _modes(density: Density, p: Proposal, prior: Callable[[Density], torch.Tensor], seed: int) -> Restarts:
    if p.moved_z is not None:
        z, weights = p.moved_z.numpy(), np.full(len(p.moved_z), 1 / len(p.moved_z))
        evidence = p.moved.log_evidence if p.moved is not None else p.weights.log_mean
    else:
        z, weights = p.z.numpy()[:LOOKED_AT], np.where(np.isfinite(p.ratio), p.weights.weights, 0.0)[:LOOKED_AT]
        evidence = p.weights.log_mean
    return look(density, z, weights / weights.sum(), evidence, prior(density).numpy(), restarts=_restarts(density), seed=seed)


def _restarts(density: Density) -> int:
    return int(min(MOST_PATHS, max(PATHS, PATH_NUMBERS / ((density.work + CALL * density.operations) * density.dimension**2))))
