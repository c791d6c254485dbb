"""In which coordinates a fit without settings looks for the posterior, and the best Gaussian there."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pyrovi.centering import Centering
from pyrovi.density import Density
from pyrovi.errors import ModelError
from pyrovi.natural_gradient import best_gaussian
from pyrovi.pathfinder import PATHS, Start, dispersed, gaussians, standard_draws

__all__ = ["find_coordinates"]

MOST_FULL = 100
"""Latents up to which a path's Gaussians have full covariances; past that natural gradients find them from independent ones."""

INFORMING = 64
"""Draws over which the likelihood's curvature is averaged, for the coordinates."""

NOWHERE = (
    "no Gaussian about any path from different starts has a finite ELBO: the model's density is zero or NaN wherever they went; "
    "check its priors and supports"
)


def find_coordinates(
    make: Callable[..., Density], sites: list[str], start: torch.Tensor, prior: Callable[[Density], torch.Tensor], seed: int
) -> tuple[Density, dict[str, Centering], Start]:
    """The coordinates and the best Gaussian in them."""
    plain = make()
    parts = [part for part in plain.parts if part.name in sites]
    q = _first(plain, start, prior(plain), seed)
    if not parts:
        if q is None:
            raise ModelError(NOWHERE)
        return plain, {}, q
    # Seen from the prior, or as they are: either may be a funnel that no path leaves.
    density, centering = plain, {}
    prior_alone = {part.name: Centering(torch.zeros(part.shape), torch.zeros(part.shape)) for part in parts}
    other, origin = make(centering=prior_alone), start.clone()
    for part in parts:
        origin[part.start : part.stop] = 0.0
    rival = _first(other, origin, prior(other), seed)
    if rival is not None and (q is None or rival.elbo > q.elbo):
        density, centering, q = other, prior_alone, rival
    if q is None:
        raise ModelError(NOWHERE)
    likelihood = make(likelihood=True)
    for _ in range(2):
        informed = _informed(likelihood, density, q, [part.name for part in parts])
        other = make(centering=informed)
        try:
            better = best_gaussian(other, _carried(density, other, q), seed=seed)
        except (RuntimeError, ModelError):
            break
        gain = better.elbo - q.elbo
        if not gain > 0:
            break
        density, centering, q = other, informed, better
        if gain < 0.02 * density.dimension:
            break
    return density, centering, q


def _first(density: Density, start: torch.Tensor, prior: torch.Tensor, seed: int) -> Start | None:
    """The best Gaussian that paths from dispersed starts lead to."""
    starts = torch.cat([dispersed(start, seed, PATHS // 2), prior[: PATHS // 2].to(start)])
    found = gaussians(density, starts, full=density.dimension <= MOST_FULL)
    return best_gaussian(density, max(found, key=lambda s: s.elbo), seed=seed) if found else None


def _informed(likelihood: Density, density: Density, q: Start, sites: list[str]) -> dict[str, Centering]:
    """What the likelihood says of every element of the sites: a Normal's, by its mean slope and curvature under q."""
    e = standard_draws(INFORMING, density.dimension, 0)
    u = density.unconstrained(q.loc + e @ q.scale.mT)
    centre = u.mean(0)
    out = {}
    for part in likelihood.parts:
        if part.name not in sites:
            continue
        here = slice(part.start, part.stop)
        bent = _bends(likelihood, u, part.start, part.stop)
        slope = likelihood.gradient(u)[1][:, here].nan_to_num(0.0).mean(0)
        precision = (-bent).clamp_min(0.0)
        estimate = centre[here] + torch.where(precision > 0, slope / precision.clamp_min(1e-300), 0.0)
        estimate = torch.where(precision > 0, estimate, 0.0)
        out[part.name] = Centering(precision.reshape(part.shape), estimate.reshape(part.shape))
    return out


def _bends(likelihood: Density, u: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The diagonal of the likelihood's Hessian, averaged over rows."""
    d = u.shape[1]
    rows = u[: max(2, min(len(u), 4_096 // (stop - start)))]
    basis = torch.eye(d, dtype=u.dtype)[start:stop]
    products = likelihood.curvature(rows.repeat_interleave(stop - start, 0), basis.repeat(len(rows), 1))
    products = products.reshape(len(rows), stop - start, d)[:, :, start:stop]
    return products.diagonal(dim1=1, dim2=2).nan_to_num(0.0).mean(0)


def _carried(density: Density, other: Density, q: Start) -> Start:
    """The mean and covariance of q in other coordinates, by draws."""
    d = density.dimension
    e = standard_draws(max(512, 8 * d), d, 1)
    z = other.coordinates(density.unconstrained(q.loc + e @ q.scale.mT))
    z = z[torch.isfinite(z).all(1)]
    low, high = z.quantile(0.16, 0), z.quantile(0.84, 0)  # of which no tail spoils the scale
    sds = ((high - low) / 2).clamp_min(1e-12)
    clipped = ((z - z.median(0).values) / sds).clamp(-4, 4)
    correlation = 0.9 * torch.corrcoef(clipped.mT).reshape(d, d).nan_to_num(0.0).fill_diagonal_(1.0) + 0.1 * torch.eye(
        d, dtype=z.dtype
    )
    return Start(z.median(0).values, sds[:, None] * torch.linalg.cholesky(correlation), -math.inf)
