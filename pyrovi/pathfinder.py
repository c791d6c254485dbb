"""Where to start: Gaussians along several optimisation paths, scored by their ELBO.

Each path climbs log p from another point. At points along it, the curvature gives a Gaussian, and the one of the largest ELBO is
kept. It is seldom the one at the mode: where a hierarchy's scale goes to zero the density has no bound, and the Gaussians
that fit the posterior lie half-way. Two departures from the paper: the curvature is the Hessian itself, all points' in one batch,
not L-BFGS's memory of it; and a path runs in coordinates scaled by the curvature's diagonal, set anew where it gets stuck,
without which predictors on raw scales stop it dead.

References:
    Pathfinder: parallel quasi-Newton variational inference (Zhang et al., 2022) | https://jmlr.org/papers/v23/21-0889.html
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi.density import Density
from pyrovi.errors import ModelError
from pyrovi.guides.gaussian import MOST_DENSE, initial, place

__all__ = ["Start", "along_paths", "pathfinder", "standard_draws"]

PATHS = 4
"""One from the given point, the others from uniform draws in (−2, 2), as Stan starts its chains."""

POINTS = 12
"""Along a path, evenly by iteration, the last one among them."""

SCORING_DRAWS = 64
"""Enough to rank Gaussians whose ELBOs differ by a nat."""

SOBOL_DIMENSIONS = 21_201
"""Of torch's table of direction numbers."""


class Start(NamedTuple):
    """The best Gaussian of all paths."""

    loc: torch.Tensor
    scale: torch.Tensor
    """Its sds, or where a full covariance was asked for, the lower Cholesky factor of that."""
    elbo: float


def standard_draws(n: int, dimension: int, seed: int) -> torch.Tensor:
    """Standard Normal rows from scrambled Sobol points, shape `(n, dimension)`; pseudo-random past the table of those."""
    if dimension > SOBOL_DIMENSIONS:
        return torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    points = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed).draw(n, dtype=torch.float64)
    return math.sqrt(2) * torch.erfinv(2 * points.clamp(1e-9, 1 - 1e-9) - 1)


def pathfinder(density: Density, loc: torch.Tensor, *, full: bool, seed: int = 0, paths: int = PATHS) -> Start:
    """The Gaussian of the largest ELBO along several paths.

    Args:
        density: Of the model.
        loc: Where the first path starts, shape `(dimension,)`.
        full: Whether it is to have a full covariance.
        seed: Of the other paths' starts.
        paths: How many.

    Raises:
        ModelError: No Gaussian has a finite ELBO.
    """
    found = along_paths(density, loc, full=full, seed=seed, paths=paths)
    if not found:
        raise ModelError(
            f"no Gaussian about any of {paths} paths from different starts has a finite ELBO: the model's density is zero or NaN "
            "wherever they went; check its priors and supports"
        )
    return max(found, key=lambda start: start.elbo)


def along_paths(density: Density, loc: torch.Tensor, *, full: bool, seed: int = 0, paths: int = PATHS) -> list[Start]:
    """The best Gaussian of every path that has one; the arguments are `pathfinder`'s.

    Paths that end in different places have found different modes.
    """
    rng, best = np.random.default_rng(seed), []
    for path in range(paths):
        points = climb(density, loc.cpu().numpy() if path == 0 else rng.uniform(-2, 2, len(loc)))
        if points:
            chosen = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))]
            candidate = _best(density, torch.from_numpy(np.stack(chosen)).to(loc.device), full)
            best += [candidate] if candidate is not None else []
    return best


def climb(density: Density, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The points of an ascent of log p from `x`: L-BFGS in coordinates scaled by the Hessian's diagonal, rescaled on the way."""
    from scipy.optimize import minimize

    points: list[NDArray[np.float64]] = []
    for _ in range(4):
        here = torch.from_numpy(x).to(density.device)[None]
        scale = _sds(density, here)[0].cpu().numpy()

        def potential(
            z: NDArray[np.float64], x: NDArray[np.float64] = x, scale: NDArray[np.float64] = scale
        ) -> tuple[float, NDArray[np.float64]]:
            value, gradient = density.gradient(torch.from_numpy(x + scale * z).to(density.device)[None])
            if not (torch.isfinite(value).all() and torch.isfinite(gradient).all()):
                return 1e300, np.zeros_like(z)
            return -value.item(), -gradient[0].cpu().numpy() * scale

        if potential(np.zeros_like(x))[0] >= 1e300:
            return points
        found: list[NDArray[np.float64]] = []
        with np.errstate(all="ignore"):
            out = minimize(
                potential,
                np.zeros_like(x),
                jac=True,
                method="L-BFGS-B",
                callback=lambda z, x=x, scale=scale, found=found: found.append(x + scale * z),
                options={"maxiter": 60, "maxcor": 20, "gtol": 0.1, "ftol": 1e-12},
            )
        points += found
        moved, x = np.abs(out.x).max(), x + scale * out.x
        if out.status == 0 and np.abs(out.jac).max() < 0.1 and moved < 10:
            break
    return points or [x]


def _sds(density: Density, u: torch.Tensor) -> torch.Tensor:
    """1/√|Hessian's diagonal| at each row: the sds of the best independent Normals where the log density is quadratic."""
    n, d = u.shape
    if d <= MOST_DENSE:
        diagonal = density.hessian(u).diagonal(dim1=-2, dim2=-1)
    else:
        signs = 1.0 - 2.0 * torch.randint(2, (32, d), generator=torch.Generator().manual_seed(0)).to(u)
        rows = density.curvature(u.repeat_interleave(len(signs), 0), signs.repeat(n, 1)) * signs.repeat(n, 1)
        diagonal = rows.reshape(n, len(signs), d).mean(1)
    size = diagonal.nan_to_num(1.0).abs()
    return torch.where(size > 0, size, 1.0).rsqrt().clamp(1e-12, 1e12)


def _best(density: Density, u: torch.Tensor, full: bool) -> Start | None:
    """Of the Gaussians with the curvature at the rows of `u`, the one with the largest ELBO."""
    _, d = u.shape
    e = standard_draws(SCORING_DRAWS, d, 0).to(u)
    scales = _sds(density, u)
    if full:
        # Scaled first: the eigenvalues of a Hessian in raw units are lost in rounding. Its saddles are turned into hills.
        h = -scales[:, :, None] * density.hessian(u).nan_to_num(0.0) * scales[:, None, :]
        w, v = torch.linalg.eigh((h + h.mT) / 2)
        w = w.abs().clamp_min(1e-10 * w.abs().max(-1, keepdim=True).values).clamp_min(1e-12)
        root = torch.linalg.qr((scales[:, :, None] * v * w.rsqrt()[:, None, :]).mT).R.mT
        scales = root * root.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    family = "multivariate_normal" if full else "normal"
    for shrink in (1.0, 0.3, 0.1, 0.01):
        q = [initial(family, loc, shrink * scale) for loc, scale in zip(u, scales, strict=True)]
        placed = [place(p, e) for p in q]
        values = density.gradient(torch.cat([x for x, _ in placed]))[0].reshape(len(u), len(e)).mean(1)
        elbo = values + torch.stack([log_det for _, log_det in placed]) + d / 2 * (1 + math.log(2 * math.pi))
        elbo = torch.where(torch.isfinite(elbo), elbo, -torch.inf)
        if torch.isfinite(elbo.max()):
            i = int(elbo.argmax())
            return Start(u[i], shrink * scales[i], float(elbo[i]))
    return None
