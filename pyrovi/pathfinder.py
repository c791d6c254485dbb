"""Where to start: Gaussians along several optimisation paths, scored by their ELBO.

Each path climbs log p from another point. At points along it, the curvature gives a Gaussian, and the one of the largest ELBO is
kept. It is seldom the one at the mode: where a hierarchy's scale goes to zero the density has no bound, and the Gaussians
that fit the posterior lie half-way. Three departures from the paper: the curvature is the Hessian itself, all points' in one batch,
not L-BFGS's memory of it; a path runs in coordinates scaled by the curvature's diagonal, set anew now and then, without
which predictors on raw scales stop it dead; and all paths run together, a row each.

References:
    Pathfinder: parallel quasi-Newton variational inference (Zhang et al., 2022) | https://jmlr.org/papers/v23/21-0889.html
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from pyrovi.density import Density
from pyrovi.errors import ModelError

__all__ = ["Start", "along_paths", "dispersed", "gaussians", "pathfinder", "standard_draws"]

PATHS = 8
"""One from the given point, the others from uniform draws in (−2, 2), as Stan starts its chains; eight run together at the price of
one or two."""

POINTS = 12
"""Along a path, evenly by iteration, the last one among them."""

MOST_DIAGONAL = 64
"""Latents up to which a Hessian's diagonal is exact; past that it is estimated from 32 products."""

MOST_STEPS, RESCALED, MEMORY = 80, (0, 12, 30, 50), 10
"""Of a path: its steps, those at which it is rescaled, if not before, and those that its curvature is read from."""

QUARTERINGS, FLAT = 10, 0.1
"""How often a step is shortened; the slope, per sd, of what is flat."""

SCORING_DRAWS = 32
"""Enough to rank Gaussians whose ELBOs differ by some nats."""

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
    return gaussians(density, dispersed(loc, seed, paths), full=full)


def dispersed(loc: torch.Tensor, seed: int, paths: int) -> torch.Tensor:
    """Starts, shape `(paths, dimension)`: the first at `loc`, the others uniform on (−2, 2)."""
    rng = np.random.default_rng(seed)
    return torch.stack([loc, *(torch.from_numpy(rng.uniform(-2, 2, len(loc))).to(loc) for _ in range(paths - 1))])


def gaussians(density: Density, starts: torch.Tensor, *, full: bool, points: int = POINTS) -> list[Start]:
    """The best Gaussian along the path from each start, `(paths, dimension)`, where it has one.

    With full covariances only the best two points of a path are looked at, best as independent Normals: a whole Hessian costs as
    much as `dimension` gradients.
    """
    paths = [path[np.unique(np.linspace(0, len(path) - 1, points).astype(int))] for path in climb(density, starts) if len(path)]
    if not paths:
        return []
    locs, scales = torch.cat(paths), _sds(density, torch.cat(paths))
    elbo, scales = _elbos(density, locs, scales)
    groups = torch.arange(len(locs)).split([len(path) for path in paths])
    if full:
        chosen = [group[elbo[group].argsort(descending=True)[:2]] for group in groups]
        locs, scales = locs[torch.cat(chosen)], _curved(density, locs[torch.cat(chosen)], scales[torch.cat(chosen)])
        elbo, scales = _elbos(density, locs, scales)
        groups = torch.arange(len(locs)).split([len(group) for group in chosen])
    best = [int(group[elbo[group].argmax()]) for group in groups]
    return [Start(locs[i], scales[i], float(elbo[i])) for i in best if torch.isfinite(elbo[i])]


def climb(density: Density, x: torch.Tensor) -> list[torch.Tensor]:
    """Ascents of log p, all at once: L-BFGS in coordinates scaled by the Hessian's diagonal, which is taken anew on the way.

    Args:
        density: Of the model.
        x: Where the paths start, shape `(paths, dimension)`.

    Returns:
        By path, its points, `(points, dimension)`, upwards; none where log p is not finite at the start.
    """
    value, gradient = density.gradient(x)
    running = torch.isfinite(value) & torch.isfinite(gradient).all(1)
    points, rises, scale, memory = [x], [running], torch.ones_like(x), _Memory(x)
    idle, rescale = ~running, list(RESCALED) if running.any() else []
    for step in range(MOST_STEPS):
        if rescale and (step >= rescale[0] or bool((idle | ~running).all())):
            rescale.pop(0)
            scale[running], memory, idle = _sds(density, x[running]), _Memory(x), ~running
        slope = torch.where(idle[:, None], 0.0, scale * gradient)
        idle = idle | (slope.abs().amax(1) <= FLAT)  # flat, or stuck, until the scales are seen anew
        if idle.all():
            if not rescale:
                break
            continue
        direction = memory.direction(slope)
        direction = torch.where(((direction * slope).sum(1) > 0)[:, None], direction, slope)
        rise, length, todo, before = (direction * slope).sum(1), torch.ones_like(value), ~idle, x
        for _ in range(QUARTERINGS):
            trial = torch.where(todo[:, None], before + length[:, None] * scale * direction, before)
            v, g = density.gradient(trial)
            good = todo & (v >= value + 1e-4 * length * rise) & torch.isfinite(g).all(1)
            x, value = torch.where(good[:, None], trial, x), torch.where(good, v, value)
            gradient = torch.where(good[:, None], g, gradient)
            todo, length = todo & ~good, length / 4
            if not todo.any():
                break
        points.append(x)
        rises.append(~idle & ~todo)
        idle = idle | (todo & memory.empty)
        memory.add((x - before) / scale, slope - scale * gradient, forget=todo)
    together = torch.stack(points, 1)
    return [path[rose] for path, rose in zip(together, torch.stack(rises, 1), strict=True)]


class _Memory:
    """The last steps of several ascents, and what they say of the curvature: L-BFGS's, a row a path."""

    def __init__(self, x: torch.Tensor) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.empty = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def add(self, step: torch.Tensor, change: torch.Tensor, forget: torch.Tensor) -> None:
        """A step and how much the gradient fell along it; `forget` are the paths whose memory misled them."""
        along = (step * change).sum(1)
        use = along > 1e-10 * (step * step).sum(1).sqrt() * (change * change).sum(1).sqrt()
        kept = [(s, y, torch.where(forget, 0.0, w)) for s, y, w in self.steps]
        self.steps = [*kept, (step, change, torch.where(use, 1 / torch.where(use, along, 1.0), 0.0))][-MEMORY:]
        self.empty = (self.empty & ~use) | forget

    def direction(self, slope: torch.Tensor) -> torch.Tensor:
        """The inverse curvature times the slope, by path."""
        q, seen = slope, []
        for s, y, w in reversed(self.steps):
            a = w * (s * q).sum(1)
            q = q - a[:, None] * y
            seen.append(a)
        sized = torch.zeros_like(self.empty)
        for _, y, w in reversed(self.steps):  # the last pair that a path has tells the size of its curvature
            first = (w > 0) & ~sized
            q = torch.where(first[:, None], q / (w * (y * y).sum(1)).clamp_min(1e-300)[:, None], q)
            sized = sized | first
        for (s, y, w), a in zip(self.steps, reversed(seen), strict=True):
            q = q + s * (a - w * (y * q).sum(1))[:, None]
        return q


def _sds(density: Density, u: torch.Tensor) -> torch.Tensor:
    """1/√|Hessian's diagonal| at each row: the sds of the best independent Normals where the log density is quadratic."""
    n, d = u.shape
    if d <= MOST_DIAGONAL:
        diagonal = density.hessian(u).diagonal(dim1=-2, dim2=-1)
    else:
        signs = 1.0 - 2.0 * torch.randint(2, (32, d), generator=torch.Generator().manual_seed(0)).to(u)
        rows = density.curvature(u.repeat_interleave(len(signs), 0), signs.repeat(n, 1)) * signs.repeat(n, 1)
        diagonal = rows.reshape(n, len(signs), d).mean(1)
    size = diagonal.nan_to_num(1.0).abs()
    return torch.where(size > 0, size, 1.0).rsqrt().clamp(1e-12, 1e12)


def _curved(density: Density, u: torch.Tensor, sds: torch.Tensor) -> torch.Tensor:
    """Lower triangular scales of the Gaussians with the Hessians at the rows of `u`, whose saddles are turned into hills."""
    # Scaled first: the eigenvalues of a Hessian in raw units are lost in rounding.
    h = -sds[:, :, None] * density.hessian(u).nan_to_num(0.0) * sds[:, None, :]
    w, v = torch.linalg.eigh((h + h.mT) / 2)
    w = w.abs().clamp_min(1e-10 * w.abs().max(-1, keepdim=True).values).clamp_min(1e-12)
    root = torch.linalg.qr((sds[:, :, None] * v * w.rsqrt()[:, None, :]).mT).R.mT
    return root * root.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]


def _elbos(density: Density, u: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ELBOs of Gaussians about the rows of `u`, and their scales, made smaller where some draw has no density."""
    n, d = u.shape
    e = standard_draws(SCORING_DRAWS, d, 0).to(u)
    elbo, scales, todo = torch.full_like(u[:, 0], -torch.inf), scales.clone(), torch.ones_like(u[:, 0], dtype=torch.bool)
    for shrink in (1.0, 0.3, 1 / 3, 0.1):  # of what it was before
        scales[todo] *= shrink
        wide = scales[todo]
        full = wide.dim() == 3
        placed = u[todo][:, None] + (e @ wide.mT if full else e * wide[:, None])
        values = density(placed.reshape(-1, d)).reshape(-1, len(e)).mean(1)
        log_det = (wide.diagonal(dim1=-2, dim2=-1) if full else wide).log().sum(-1)
        elbo[todo] = values + log_det + d / 2 * (1 + math.log(2 * math.pi))
        elbo = torch.where(torch.isfinite(elbo), elbo, -torch.inf)
        todo = ~torch.isfinite(elbo)
        if not todo.any():
            break
    return elbo, scales
