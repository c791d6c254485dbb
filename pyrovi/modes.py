"""Modes that q does not visit: dispersed paths climb log p, and where they end the posterior's mass is measured in two ways.

    of region R about a path's Gaussian g:   E_g[1_R p/g] / Z   and   Σ wᵢ 1_R(zᵢ), zᵢ ~ q weighted

Where the first is large and the second small, q does not reach what is there: its importance weights, which know only where q is,
are blind to it, and so is k-hat. Both are estimates of the same number, so that a Gaussian which fits badly, or where many
dimensions leave its region little mass, is no false alarm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi.density import Density
from pyrovi.pathfinder import Start, gaussians, standard_draws

__all__ = ["Restarts", "look", "spread"]

Array = NDArray[np.float64]

REGION = 0.95
"""The probability under its own Gaussian of the region about a path's end."""

REGION_DRAWS = 1_000

POINTS = 4
"""Along a path, where a Gaussian is looked for: most lie at its end."""

MOST_FULL = 100
"""Latents up to which a path's Gaussian has a full covariance, which costs that many products with the Hessian a point."""

REACHES = (3.0, 10.0, 30.0)
"""How far from q restarts begin, in its sds."""

DISAGREE = math.sqrt(1 + 0.5**2)
"""R-hat of Gaussians whose means vary by half their sd."""

ALIKE = 0.5
"""How far apart, in sds, two modes' values may be to be the same up to labels."""


class Restarts(NamedTuple):
    """What dispersed restarts found.

    Attributes:
        found: How many ended in a Gaussian.
        rhat: √(1 + B/W), B the variance of their means and W the mean of their variances, each counted by exp(ELBO); the largest,
        rhat_worst: and whose.
        missed: The share of the posterior, at least, in modes that q does not visit and that would move a mean or an sd,
        where: the variables by which they differ from q,
        switched: and whether they differ by the order of a site's elements alone.
        paths: Their Gaussians.
    """

    found: int
    rhat: float | None
    rhat_worst: str
    missed: float
    where: str
    switched: bool
    paths: tuple[Start, ...] = ()


def look(density: Density, u: Array, weights: Array, log_evidence: float, prior: Array, *, restarts: int, seed: int) -> Restarts:
    """Restart from dispersed points, and hold what is found against weighted draws from q.

    Of five starts two are about q, 3, 10 or 30 sds away, two uniform in (−2, 2) as Stan's chains, one is from the prior; the first
    two kinds in pairs on opposite sides, so that of two modes one of a pair is on either side.

    Args:
        density: Of the model.
        u: Draws from q in its coordinates, `(n, dimension)`.
        weights: Theirs, `(n,)`.
        log_evidence: By them, in nats.
        prior: Prior draws in the same coordinates, for starts, `(m, dimension)`.
        restarts: How many.
        seed: Of the starts.
    """
    mean = weights @ u
    sd = np.sqrt(np.maximum(weights @ np.square(u - mean), 1e-300))
    full = density.dimension <= MOST_FULL
    starts = np.stack(_starts(mean, sd, prior, restarts, np.random.default_rng(seed)))
    paths = gaussians(density, torch.from_numpy(starts).to(density.device), full=full, points=POINTS)
    if not paths:
        return Restarts(0, None, "", 0.0, "", False)
    paths.sort(key=lambda path: -path.elbo)
    labels = _labels(density)
    visited, missed = [Start(torch.from_numpy(mean), torch.from_numpy(sd), 0.0)], []
    known: list[Start] = []
    mass = 0.0
    for path in paths:
        if any(bool(_squares(torch.from_numpy(_np(path.loc))[None], other)[0] <= _radius(density.dimension)) for other in known):
            continue
        known.append(path)
        theirs, theirs_se = _mass(density, path, log_evidence)
        inside = _squares(torch.from_numpy(u), path).numpy() <= _radius(density.dimension)
        ours = float(weights @ inside)
        ours_se = math.sqrt(float(np.square(weights * (inside - ours)).sum())) + 1 / len(u)
        distance = min(float(np.max(np.abs(_np(path.loc) - mean) / sd)), 1e100)
        share = theirs / (1 + theirs) if theirs < math.inf else 1.0
        matters = share * distance > 0.1 or share * distance**2 > 0.2
        if matters and ours + 2 * ours_se < (theirs - 2 * theirs_se) / 3:
            missed.append(path)
            mass += theirs
        else:
            visited.append(path)
    rhat, worst = _rhat(paths)
    share = mass / (1 + mass) if mass < math.inf else 1.0
    return Restarts(
        len(paths),
        rhat,
        labels[worst],
        share,
        _where(missed, mean, sd, labels),
        bool(missed) and all(_switched(density, path, visited, u) for path in missed),
        tuple(missed),
    )


def spread(density: Density, u: Array, prior: Array, *, restarts: int, seed: int) -> Restarts:
    """The same for latents that are independent from datum to datum, where a mode of one tells nothing of the others'.

    Every path looks for all of them at once, and R-hat compares each latent's Gaussians with one another and with q's, all alike.
    No share of the posterior is measured; `where` names latents whose Gaussians disagree, by more than half an sd between them.

    Args:
        density: Of the model.
        u: Draws from q in its coordinates, `(n, dimension)`.
        prior: Prior draws in the same coordinates, for starts, `(m, dimension)`.
        restarts: How many.
        seed: Of the starts.
    """
    mean, sd = u.mean(0), np.maximum(u.std(0), 1e-300)
    starts = np.stack(_starts(mean, sd, prior, restarts, np.random.default_rng(seed)))
    paths = gaussians(density, torch.from_numpy(starts).to(density.device), full=False)
    if not paths:
        return Restarts(0, None, "", 0.0, "", False)
    loc, scale = (
        np.stack([own, *map(_np, found)]) for own, found in ((mean, [p.loc for p in paths]), (sd, [p.scale for p in paths]))
    )
    rhat = np.sqrt(1 + loc.var(0) / np.square(scale).mean(0))
    labels, order = _labels(density), np.argsort(-rhat)
    odd = ", ".join(labels[i] for i in order[:3] if rhat[i] > DISAGREE)
    return Restarts(len(paths), float(rhat[order[0]]), labels[order[0]], 0.0, odd, False)


def _starts(mean: Array, sd: Array, prior: Array, restarts: int, rng: np.random.Generator) -> list[Array]:
    """Dispersed starting points, the most telling first."""
    d, starts = len(mean), []
    for round_ in range(restarts):  # more than enough
        uniform, away = rng.uniform(-2, 2, d), rng.standard_normal(d) * sd
        reach = REACHES[(round_ + 1) % len(REACHES)]
        starts += [uniform, -uniform, mean + reach * away, mean - reach * away]
        starts += [prior[round_ % len(prior)]] if len(prior) else []
    return starts[:restarts]


def _np(x: torch.Tensor) -> Array:
    return x.detach().double().cpu().numpy()


def _radius(dimension: int) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(REGION, dimension))


def _squares(u: torch.Tensor, path: Start) -> torch.Tensor:
    """Squared Mahalanobis distances of rows from a path's Gaussian."""
    away, scale = u - torch.from_numpy(_np(path.loc)), torch.from_numpy(_np(path.scale))
    z = away / scale if scale.dim() == 1 else torch.linalg.solve_triangular(scale, away.mT, upper=False).mT
    return z.square().sum(-1)


def _mass(density: Density, path: Start, log_evidence: float) -> tuple[float, float]:
    """The posterior's mass in the region about a path's Gaussian, by importance sampling from that, with its standard error."""
    d = density.dimension
    e = standard_draws(REGION_DRAWS, d, 1)
    scale = torch.from_numpy(_np(path.scale))
    u = torch.from_numpy(_np(path.loc)) + (e * scale if scale.dim() == 1 else e @ scale.mT)
    diagonal = scale if scale.dim() == 1 else scale.diagonal()
    log_q = -0.5 * e.square().sum(1) - diagonal.log().sum() - d / 2 * math.log(2 * math.pi)
    ratio = _np(density(u.to(density.device))) - log_q.numpy() - log_evidence
    ratio[e.square().sum(1).numpy() > _radius(d)] = -np.inf
    with np.errstate(over="ignore"):
        values = np.exp(ratio)
        return float(values.mean()), float(values.std() / math.sqrt(len(values))) if np.isfinite(values).all() else 0.0


def _rhat(paths: list[Start]) -> tuple[float, int]:
    """R-hat over restarts, each Gaussian counted by exp(ELBO); the largest, and which latent's."""
    elbo = np.array([path.elbo for path in paths])
    weight = np.exp(elbo - elbo.max())
    weight /= weight.sum()
    loc = np.stack([_np(path.loc) for path in paths])
    variances = np.stack([np.square(s) if s.ndim == 1 else np.square(s).sum(1) for s in (_np(path.scale) for path in paths)])
    between, within = weight @ np.square(loc - weight @ loc), weight @ variances
    rhat = np.sqrt(1 + between / within)
    return float(rhat.max()), int(rhat.argmax())


def _labels(density: Density) -> list[str]:
    labels = []
    for part in density.parts:
        shape = tuple(part.shape)
        labels += [f"{part.name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)] if shape else [part.name]
    return labels


def _where(missed: list[Start], mean: Array, sd: Array, labels: list[str]) -> str:
    """The variables by which missed modes differ most from q."""
    if not missed:
        return ""
    away = np.max([np.abs(_np(path.loc) - mean) / sd for path in missed], axis=0)
    order = np.argsort(-away)[:3]
    return ", ".join(labels[i] for i in order if away[i] > away[order[0]] / 3)


def _switched(density: Density, path: Start, visited: list[Start], u: Array) -> bool:
    """Whether a mode is one that q visits with the elements of its sites in another order."""
    spread = {name: _np(x).std(0) for name, x in density.sites(torch.from_numpy(u[:200]).to(density.device)).items()}
    here = {name: _np(x)[0] for name, x in density.sites(path.loc[None]).items()}
    for other in visited:
        there = {name: _np(x)[0] for name, x in density.sites(other.loc[None].to(density.device)).items()}
        moved = False
        for name, a in here.items():
            b, unit = there[name], ALIKE * float(np.median(spread[name])) + 1e-12
            if np.abs(a - b).max(initial=0) <= unit:
                continue
            if a.size < 2 or np.abs(np.sort(a.ravel()) - np.sort(b.ravel())).max() > unit:
                break
            moved = True
        else:
            if moved:
                return True
    return False
