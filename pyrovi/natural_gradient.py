"""The best Gaussian with a full covariance, by regression of gradients on draws.

At the Gaussian q that maximises the ELBO the mean of ∇log p under q is zero, and the mean of −∇²log p is q's precision. By Stein's
identity that mean Hessian is the slope of the regression of ∇log p on u, which takes gradients alone, and no more noise than the
part of them that is not linear. So each step regresses, and moves to the Gaussian that the line says: a natural-gradient step.
A dozen replace an optimisation over d²/2 numbers.

References:
    The variational Gaussian approximation revisited (Opper & Archambeau, 2009) | https://doi.org/10.1162/neco.2008.08-07-592
    Conjugate-computation variational inference (Khan & Lin, 2017) | https://proceedings.mlr.press/v54/khan17a.html
"""

from __future__ import annotations

import math

import torch

from pyrovi.density import Density
from pyrovi.pathfinder import Start, standard_draws

__all__ = ["best_gaussian"]

MOST_STEPS = 25

DRAWS_A_LATENT = 16
"""Draws a step, times the latents: a regression of each gradient on all latents has as many unknowns as those."""

LEAST_DRAWS = 128

MANY_DRAWS = 256
"""From this many on half as many a latent do."""

WIDEST, LONGEST = 4.0, 2.0
"""How much a variance may change in a step, and how many sds a mean may move, before the draws no longer tell of where it goes."""

STILL = 0.03
"""Sds by which the mean moves, and of half which the log variances, when q is called still: 0.0005 nats a latent."""


Line = tuple[torch.Tensor, torch.Tensor]


def best_gaussian(density: Density, start: Start, *, seed: int) -> Start:
    """The Gaussian of about the largest ELBO, its scale lower triangular.

    Args:
        density: Of the model.
        start: A Gaussian with a finite ELBO; its scale may be sds or lower triangular.
        seed: Of the draws.
    """
    d = density.dimension
    draws = max(LEAST_DRAWS, 2 ** math.ceil(math.log2(min(DRAWS_A_LATENT * d, MANY_DRAWS + DRAWS_A_LATENT / 2 * d))))
    here = start._replace(scale=torch.diag(start.scale) if start.scale.dim() == 1 else start.scale, elbo=-math.inf)
    best, ahead, rate = here, here, 1.0
    slope: Line = (torch.zeros_like(here.loc), torch.eye(d, dtype=here.loc.dtype))
    for step in range(MOST_STEPS):
        e = standard_draws(draws, d, seed + step).to(start.loc)
        value, gradient = density.gradient(ahead.loc + e @ ahead.scale.mT)
        elbo = float(value.mean() + ahead.scale.diagonal().log().sum()) + d / 2 * (1 + math.log(2 * math.pi))
        if not math.isfinite(elbo) or elbo < best.elbo - max(1.0, 0.02 * d):
            rate /= 3  # too far: the line that led here did not hold
            if rate < 0.01:
                break
            ahead = _moved(best, slope, rate)
            continue
        ahead = ahead._replace(elbo=elbo)
        gain, slope = elbo - best.elbo, _regression(e, gradient @ ahead.scale)
        if elbo > best.elbo:
            best = ahead
        size = _size(slope)
        if size < STILL or (step > 3 and abs(gain) < 1e-4 * d):
            break
        rate = min(1.0, 2 * rate)
        ahead = _moved(ahead, slope, rate)
    return best


def _regression(e: torch.Tensor, gradient: torch.Tensor) -> Line:
    """Of log p's gradient on standard Normal draws: its value at 0, and its slope, symmetric, as eigenvalues and -vectors."""
    kept = torch.isfinite(gradient).all(1)
    design = torch.cat([torch.ones_like(e[:, :1]), e], 1)[kept]
    # The draws are all but orthogonal, so that the normal equations lose nothing; a QR's rounding depends on where its memory lies.
    line = torch.linalg.solve(design.mT @ design, design.mT @ gradient[kept])
    return line[0], -(line[1:] + line[1:].mT) / 2


def _size(line: Line) -> float:
    return float(max(line[0].abs().max(), 0.5 * (line[1].diagonal() - 1).abs().max()))


def _moved(q: Start, line: Line, rate: float) -> Start:
    level, slope = line
    precision, directions = torch.linalg.eigh(slope)
    precision = (1 + rate * (precision - 1)).clamp(1 / WIDEST, WIDEST)
    step = rate * (directions.mT @ level) / precision
    step = step * (LONGEST / step.norm().clamp_min(LONGEST))
    root = torch.linalg.qr(((q.scale @ directions) * precision.rsqrt()).mT).R.mT
    return Start(q.loc + q.scale @ (directions @ step), root * root.diagonal().sign(), -math.inf)
