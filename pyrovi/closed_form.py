"""A posterior in closed form over a flat unconstrained vector: Gaussians, their scales, Dirichlets, independent of each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._exact import ExactPosterior
from pyrovi.centering import Part
from pyrovi.structure import Site, Structure

__all__ = ["MOST_DENSE", "ClosedForm", "Gaussian", "Scales", "Simplexes", "kind", "log_volume", "log_weights", "to_exact"]

MOST_DENSE = 3_000
"""Latent scalars that may all depend on each other; more are looked at only where each is independent of the others."""

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class Gaussian:
    """Latents r at places `at` of the flat vector: Normal(mean, covariance), or covariance / w given the scale's w.

    `root` is the lower Cholesky factor of the precision times `unit` from both sides, or the diagonal's root where P is diagonal.
    """

    at: Index
    mean: Array
    unit: Array
    root: Array
    scale: int | None = None

    @classmethod
    def of(cls, at: Index, mean: Array, precision: Array, scale: int | None = None) -> Gaussian:
        """With a precision `(d, d)`, or `(d,)` where it is diagonal.

        Raises:
            numpy.linalg.LinAlgError: It is not positive definite.
        """
        diagonal = precision if precision.ndim == 1 else np.diag(precision)
        if not (diagonal > 0).all():
            raise np.linalg.LinAlgError
        unit = diagonal**-0.5
        if precision.ndim == 1:
            return cls(at, mean, unit, np.ones_like(unit), scale)
        return cls(at, mean, unit, np.asarray(np.linalg.cholesky(precision * unit[:, None] * unit), dtype=float), scale)

    def solve(self, gradient: Array) -> Array:
        """The covariance times a vector."""
        from scipy.linalg import cho_solve

        if self.root.ndim == 1:
            return self.unit**2 * gradient
        return self.unit * cho_solve((self.root, True), self.unit * gradient)

    def covariance(self) -> Array:
        """Shape `(d, d)`; diagonal for d independent latents."""
        if self.root.ndim == 1:
            return np.diag(self.unit**2)
        inverse = np.linalg.inv(self.root)
        return np.asarray((inverse.T @ inverse) * self.unit[:, None] * self.unit)

    def variance(self) -> Array:
        return self.unit**2 if self.root.ndim == 1 else np.diag(self.covariance())

    def spread(self, noise: Array, w: Array) -> Array:
        """Standard Normal rows `(n, d)` as deviations from the mean, given w, shape `(n,)`."""
        from scipy.linalg import solve_triangular

        deviation = noise if self.root.ndim == 1 else solve_triangular(self.root.T, noise.T, lower=False).T
        return np.asarray(self.unit * deviation / np.sqrt(w)[:, None])

    def log_density(self, r: Array, w: Array) -> Array:
        e = (r - self.mean) / self.unit
        e = e if self.root.ndim == 1 else e @ self.root
        log_det = np.log(np.diag(self.root) if self.root.ndim == 2 else self.root).sum() - np.log(self.unit).sum()
        return np.asarray(log_det - 0.5 * self.at.size * np.log(2 * np.pi / w) - 0.5 * w * (e**2).sum(1))


def _log_gamma(shape: Array, n: int, rng: np.random.Generator) -> Array:
    """The logarithms of standard Gamma draws, `(n, …)`; of a shape of 0.01 the draws themselves are 0."""
    size = (n, *shape.shape)
    return np.asarray(np.log(rng.standard_gamma(shape + 1, size)) + np.log1p(-rng.uniform(size=size)) / shape)


@dataclass(frozen=True)
class Scales:
    """Positive latents at places `at` of the flat vector, as logarithms: Gamma(a, rate b), or inverse Gamma where `inverse`."""

    at: Index
    inverse: NDArray[np.bool_]
    a: Array
    b: Array

    def log_density(self, log_x: Array) -> Array:
        """Of the latents themselves, at their logarithms, shape `(n, d)`."""
        from scipy.special import gammaln

        log_w = np.where(self.inverse, -log_x, log_x)
        constant = self.a * np.log(self.b) - gammaln(self.a)
        return np.asarray((constant + (self.a - 1) * log_w - self.b * np.exp(log_w) + 2 * log_w * self.inverse).sum(1))

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        log_w = _log_gamma(self.a, n, rng) - np.log(self.b)
        return np.where(self.inverse, -log_w, log_w)


@dataclass(frozen=True)
class Simplexes:
    """The rows of one site on the simplex, or in the unit interval: Dirichlet, of `concentration` `(rows, K)`."""

    part: Part
    concentration: Array

    @property
    def unit_interval(self) -> bool:
        return kind(self.part) == "unit"

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Shape `(n, rows, K)`, or `(n, rows)` in the unit interval."""
        alpha = self.concentration
        logs = _log_gamma(alpha, n, rng)
        x = np.exp(logs - logs.max(-1, keepdims=True))
        x /= x.sum(-1, keepdims=True)
        return np.asarray(x[..., 0] if self.unit_interval else x)

    def log_density(self, u: torch.Tensor) -> Array:
        """Of the latents themselves, at unconstrained rows `(n, d)`."""
        from scipy.special import gammaln

        alpha = self.concentration
        constant = (gammaln(alpha.sum(-1)) - gammaln(alpha).sum(-1)).sum()
        logs = log_weights(self.part, u).numpy()
        return np.asarray(constant + ((alpha - 1) * logs).sum((-2, -1)))


@dataclass(frozen=True)
class ClosedForm:
    """A posterior in closed form, over the unconstrained flat vector: its independent pieces, and log p(data) in nats."""

    gaussians: tuple[Gaussian, ...]
    scales: Scales
    simplexes: tuple[Simplexes, ...]
    centre: Array
    log_evidence: float = float("nan")

    def w(self, u: Array, scale: int | None) -> Array:
        """What a Gaussian's precision is multiplied by, at rows `(n, d)`."""
        if scale is None:
            return np.ones(len(u))
        inverse = self.scales.inverse[np.searchsorted(self.scales.at, scale)]
        return np.asarray(np.exp(-u[:, scale] if inverse else u[:, scale]))

    def log_density(self, u: Array) -> Array:
        """Of real latents as the flat vector has them and of the others as they are, at rows `(n, d)`."""
        total = self.scales.log_density(u[:, self.scales.at])
        for gaussian in self.gaussians:
            total = total + gaussian.log_density(u[:, gaussian.at], self.w(u, gaussian.scale))
        for piece in self.simplexes:
            total = total + piece.log_density(torch.from_numpy(u[:, piece.part.start : piece.part.stop]))
        return total


def kind(part: Part) -> str | None:
    """What a latent lives on: `real`, `positive`, `unit` interval, `simplex`; None for anything else."""
    if part.stop == part.start:
        return None
    e = part.stop - part.start
    u = torch.stack([torch.zeros(e), torch.ones(e), 2 * torch.ones(e), -torch.ones(e)]).double().reshape(4, *part.shape)
    x = part.transform(u)
    if x.shape != u.shape:
        total = x.sum(-1)
        return "simplex" if torch.allclose(total, torch.ones_like(total)) and (x > 0).all() else None
    if torch.allclose(x[2] - x[1], x[1] - x[0], rtol=1e-12) and torch.allclose(x[1] - x[0], x[0] - x[3], rtol=1e-12):
        return "real"
    if torch.equal(x, u.exp()):
        return "positive"
    return "unit" if torch.allclose(x, u.sigmoid(), rtol=1e-12, atol=0) else None


def log_weights(part: Part, u: torch.Tensor) -> torch.Tensor:
    """Logarithms of a site's rows on the simplex, (x, 1 − x) for one in the unit interval: `(n, d)` to `(n, rows, K)`."""
    if kind(part) == "unit":
        return torch.stack([torch.nn.functional.logsigmoid(u), torch.nn.functional.logsigmoid(-u)], -1)
    x = part.transform(u.reshape(len(u), *part.shape))
    return x.log().reshape(len(u), -1, x.shape[-1])


def log_volume(part: Part, u: torch.Tensor) -> torch.Tensor:
    """The log of |det| of a site's bijection, at rows `(n, d)`."""
    u = u.reshape(len(u), *part.shape)
    return part.transform.log_abs_det_jacobian(u, part.transform(u)).reshape(len(u), -1).sum(1)


def to_exact(form: ClosedForm, parts: Sequence[Part], structure: Structure) -> ExactPosterior:
    """The same by site, in the sites' own values."""
    from scipy import stats

    shapes = {part.name: _shape(structure.sites[part.name]) for part in parts}
    dof, sd = np.full(form.centre.size, np.inf), np.zeros(form.centre.size)
    covariances: list[tuple[Gaussian, float]] = []
    for gaussian in form.gaussians:
        sd[gaussian.at], factor = np.sqrt(gaussian.variance()), 1.0
        if gaussian.scale is not None:
            i = np.searchsorted(form.scales.at, gaussian.scale)
            a, b = form.scales.a[i], form.scales.b[i]
            dof[gaussian.at] = 2 * a
            sd[gaussian.at] *= np.sqrt(b / a)
            factor = b / (a - 1) if a > 1 else np.nan
        covariances.append((gaussian, factor))
    marginals: dict[str, Any] = {}
    for part in parts:
        here, shape, what = slice(part.start, part.stop), shapes[part.name], kind(part)
        if what == "real":
            shift, unit = _affine(part)
            loc, scale = (shift + unit * form.centre[here]).reshape(shape), (unit * sd[here]).reshape(shape)
            student = np.isfinite(dof[here]).any()
            marginals[part.name] = stats.t(dof[here].reshape(shape), loc, scale) if student else stats.norm(loc, scale)
        elif what == "positive":
            at = np.searchsorted(form.scales.at, np.arange(part.start, part.stop))
            a, b, inverse = (x[at].reshape(shape) for x in (form.scales.a, form.scales.b, form.scales.inverse))
            marginals[part.name] = stats.invgamma(a, scale=b) if inverse.all() else stats.gamma(a, scale=1 / b)
    for piece in form.simplexes:
        alpha, shape = piece.concentration, shapes[piece.part.name]
        rest = alpha.sum(-1, keepdims=True) - alpha
        first, second = (alpha[:, 0], alpha[:, 1]) if piece.unit_interval else (alpha, rest)
        marginals[piece.part.name] = stats.beta(first.reshape(shape), second.reshape(shape))
    own, cross = _covariances(parts, covariances)
    return ExactPosterior(
        marginals={part.name: marginals[part.name] for part in parts},
        log_evidence=form.log_evidence,
        covariance=own,
        cross_covariance=cross,
        joint=functools.partial(_draws, form, tuple(parts), shapes),
    )


def _shape(site: Site) -> tuple[int, ...]:
    """As draws of a site are kept: without axes that are there only to line up with other sites."""
    return tuple(site.shape[axis] for axis in site.axes()[0])


def _affine(part: Part) -> tuple[Array, Array]:
    """Shift and unit of a real latent's values as the flat vector has them."""
    u = torch.stack([torch.zeros(part.shape), torch.ones(part.shape)]).double()
    x = part.transform(u).reshape(2, -1).numpy()
    return x[0], x[1] - x[0]


def _covariances(
    parts: Sequence[Part], pieces: list[tuple[Gaussian, float]]
) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
    """Of each site with correlated elements, and of each two sites that are correlated."""
    d = parts[-1].stop
    if d > MOST_DENSE or all(gaussian.root.ndim == 1 for gaussian, _ in pieces):
        return {}, {}
    units, full = np.ones(d), np.zeros((d, d))
    for part in parts:
        if kind(part) == "real":
            units[part.start : part.stop] = _affine(part)[1]
    for gaussian, factor in pieces:
        full[np.ix_(gaussian.at, gaussian.at)] = factor * gaussian.covariance()
    full *= units[:, None] * units
    size = np.sqrt(np.diag(full))
    linked = np.abs(full) > 1e-12 * size[:, None] * size
    own, cross = {}, {}
    for i, first in enumerate(parts):
        for second in parts[i:]:
            block = slice(first.start, first.stop), slice(second.start, second.stop)
            if first is second:
                if (linked[block] & ~np.eye(first.stop - first.start, dtype=bool)).any():
                    own[first.name] = full[block].copy()
            elif linked[block].any():
                cross[first.name, second.name] = full[block].copy()
    return own, cross


def _draws(
    form: ClosedForm, parts: tuple[Part, ...], shapes: dict[str, tuple[int, ...]], n: int, rng: np.random.Generator
) -> dict[str, Array]:
    u, out = np.tile(form.centre, (n, 1)), {}
    u[:, form.scales.at] = form.scales.draw(n, rng)
    for gaussian in form.gaussians:
        u[:, gaussian.at] += gaussian.spread(rng.normal(size=(n, gaussian.at.size)), form.w(u, gaussian.scale))
    pieces = {piece.part.name: piece for piece in form.simplexes}
    for part in parts:
        if part.name in pieces:
            x = pieces[part.name].draw(n, rng)
        else:
            x = part.transform(torch.from_numpy(u[:, part.start : part.stop]).reshape(n, *part.shape)).numpy()
        out[part.name] = x.reshape(n, *shapes[part.name])
    return out
