"""Closed forms found in a recorded log joint: by no table of pairs of distributions, but from the form of the function itself.

As a function of its latents a conjugate model's log joint is a sum of a few known terms, whose coefficients are the posterior's:

    Gaussian         −½ rᵀPr + hᵀr
    Gamma            (a − 1) log w − b w
    inverse Gamma    −(a + 1) log v − b / v
    Normal-Gamma     w (−½ rᵀPr + hᵀr) beside one of the last two, where 1/v serves for w
    Dirichlet        Σ (α_k − 1) log x_k, a Beta where there are two

The Hessian says which latents have to do with each other, gradients at a few points give the coefficients, and then the log joint
less the log density found is evaluated at points all about the posterior and far from it. It is the log evidence at all of them, or
there is no such form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi.closed_form import MOST_DENSE, Array, ClosedForm, Gaussian, Index, Scales, Simplexes, kind, log_volume, log_weights
from pyrovi.density import Density

__all__ = ["NoClosedForm", "find"]

NEGLIGIBLE = 1e-9
"""A second derivative, in units of the two curvatures, that is rounding."""

AGREEMENT = 1e-6, 1e-11
"""How far the log evidence may differ from point to point, in nats and as a share of the log joint, as rounding is."""

REACH = np.repeat([1.0, 3.0, 10.0, 100.0], [12, 12, 6, 6])[:, None]
"""How far out it is evaluated, in posterior sds; a second mode a hundred sds away is not to be missed."""

FAR, NEAR = 30.0, 10.0
"""How far from the posterior's centre the logarithm of a latent is taken at most, past which numbers overflow, and the logit of a
probability, past which 1 − p is rounded and Pyro's distributions clamp it."""

SHIFTS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
"""Of a positive latent's logarithm: five points for two coefficients, so that three are left to choose the family by."""


class NoClosedForm(Exception):
    """The log joint has none of the forms known here; `names` are the latents whose part has not, all where it is not known."""

    def __init__(self, reason: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.names = names


def find(density: Density, elsewhere: Array | None = None, seed: int = 0) -> ClosedForm:
    """The closed form of a recorded density, proven at several dozen points.

    Args:
        density: Of the model.
        elsewhere: More points to prove it at, shape `(n, dimension)`: draws from the prior, which has mass where the posterior has.
        seed: Of the points.

    Raises:
        NoClosedForm: It has none, or none of those known here.
    """
    kinds = {part.name: kind(part) for part in density.parts}
    odd = [name for name, what in kinds.items() if what is None]
    if odd:
        raise NoClosedForm("support", (odd[0],))
    rng = np.random.default_rng(seed)
    layout = _layout(density, kinds, rng)
    form = _solve(density, layout, rng)
    return _proven(density, form, elsewhere, rng)


@dataclass(frozen=True)
class _Layout:
    """Which places of the flat vector belong together."""

    free: Index
    """Real latents that no scale multiplies."""
    scaled: dict[int, Index]
    """A scale's place, and those of the reals that it scales."""
    positive: Index
    dense: bool


def _layout(density: Density, kinds: dict[str, str | None], rng: np.random.Generator) -> _Layout:
    from scipy.sparse.csgraph import connected_components

    d = density.dimension
    kind_at = np.concatenate([np.full(p.stop - p.start, kinds[p.name]) for p in density.parts])
    positive = np.flatnonzero(kind_at == "positive")
    u, probes = torch.from_numpy(rng.normal(size=(1, d)) / 2), torch.from_numpy(rng.uniform(1, 2, (2, 1, d)))
    first, second = (density.curvature(u, probe) / probe for probe in probes)
    if torch.allclose(first, second, rtol=NEGLIGIBLE, atol=0):  # the Hessian is diagonal, or the proof will fail
        return _Layout(np.flatnonzero(kind_at == "real"), {}, positive, False)
    if d > MOST_DENSE:
        raise NoClosedForm("size")
    points = torch.from_numpy(rng.normal(size=(2, d)) / 2)
    linked = np.zeros((d, d), dtype=bool)
    for h in density.hessian(points).numpy():
        if not np.isfinite(h).all():
            raise NoClosedForm("infinite")
        size = np.sqrt(np.abs(np.diag(h)))
        linked |= np.abs(h) > NEGLIGIBLE * size[:, None] * size + np.finfo(float).tiny
    for part in density.parts:
        if kinds[part.name] == "simplex":
            for start in range(part.start, part.stop, part.shape[-1]):
                linked[start : start + part.shape[-1], start : start + part.shape[-1]] = True
    label = connected_components(linked, directed=False)[1]
    owner = np.concatenate([np.full(p.stop - p.start, i) for i, p in enumerate(density.parts)])
    free, scaled = [], {}
    for group in np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1]):
        real = kind_at[group] == "real"
        others, names = group[~real], tuple(density.parts[i].name for i in np.unique(owner[group]))
        if real.all():
            free.append(group)
        elif len(others) == 1 and kind_at[others[0]] == "positive":
            if real.any():
                scaled[int(others[0])] = group[real]
        else:
            part = density.parts[owner[others[0]]]
            if real.any() or len(others) > (part.shape[-1] if kinds[part.name] == "simplex" else 1):
                raise NoClosedForm("together", names)
    return _Layout(np.sort(np.concatenate(free)) if free else np.zeros(0, dtype=np.intp), scaled, positive, True)


def _solve(density: Density, layout: _Layout, rng: np.random.Generator) -> ClosedForm:
    """The coefficients: at the origin, and for accuracy once more about the posterior that they give."""
    centre, simplexes = np.zeros(density.dimension), _dirichlets(density, rng)
    for piece in simplexes:
        mean = torch.from_numpy(piece.concentration / piece.concentration.sum(-1, keepdims=True))
        inside = mean[:, 0] if piece.unit_interval else mean
        centre[piece.part.start : piece.part.stop] = piece.part.transform.inv(inside).reshape(-1).numpy()
    gaussians: tuple[Gaussian, ...] = ()
    inverse = np.zeros(layout.positive.size, dtype=bool)
    for _ in range(2):
        gaussians = _gaussians(density, layout, centre, inverse)
        for gaussian in gaussians:
            centre[gaussian.at] = gaussian.mean
        scales = _scales(density, layout, centre)
        inverse = scales.inverse
        centre[scales.at] = np.where(inverse, -1, 1) * np.log(scales.a / scales.b)
    return ClosedForm(gaussians, scales, simplexes, centre)


def _gaussians(density: Density, layout: _Layout, centre: Array, inverse: NDArray[np.bool_]) -> tuple[Gaussian, ...]:
    u = torch.from_numpy(centre)[None]
    gradient = density.gradient(u)[1][0].numpy()
    if layout.dense:
        precision = -density.hessian(u)[0].numpy()
        precision = (precision + precision.T) / 2
    else:
        precision = -density.curvature(u, torch.ones_like(u))[0].numpy()
    found = []
    for scale, at in [(None, layout.free), *layout.scaled.items()]:
        if not at.size:
            continue
        sign = -1 if scale is not None and inverse[np.searchsorted(layout.positive, scale)] else 1
        w = 1.0 if scale is None else float(np.exp(sign * centre[scale]))
        block = precision[at] if precision.ndim == 1 else precision[np.ix_(at, at)]
        try:
            step = Gaussian.of(at, centre[at], block, scale).solve(gradient[at])
            found.append(Gaussian.of(at, centre[at] + step, block / w, scale))
        except (np.linalg.LinAlgError, ValueError) as error:
            raise NoClosedForm("improper", _names(density, at)) from error
    return tuple(found)


def _scales(density: Density, layout: _Layout, centre: Array) -> Scales:
    """Gamma or inverse Gamma, whichever fits the slope of the log joint along the latent's logarithm."""
    at = layout.positive
    if not at.size:
        return Scales(at, np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0))
    points = torch.from_numpy(np.tile(centre, (len(SHIFTS), 1)))
    points[:, at] += torch.from_numpy(SHIFTS)[:, None]
    slope = density.gradient(points)[1][:, at].numpy() - 1  # the Jacobian's share is 1
    if not np.isfinite(slope).all():
        raise NoClosedForm("infinite", _names(density, at))
    fits = []
    for sign in (1, -1):  # of a Gamma the slope is A − c eᵘ, of an inverse Gamma −A + c e⁻ᵘ
        design = np.stack([np.full(len(SHIFTS), sign), -sign * np.exp(sign * SHIFTS)], 1)
        coefficients = np.linalg.lstsq(design, slope, rcond=None)[0]
        fits.append((np.abs(slope - design @ coefficients).max(0), coefficients[0], coefficients[1] * np.exp(-sign * centre[at])))
    inverse = fits[1][0] < fits[0][0]
    power, b = (np.where(inverse, fits[1][i], fits[0][i]) for i in (1, 2))
    reals = np.zeros(at.size)
    for scale, group in layout.scaled.items():
        reals[np.searchsorted(at, scale)] = group.size
    a = power + np.where(inverse, -1, 1) - reals / 2
    if not ((a > 0) & (b > 0)).all():
        raise NoClosedForm("improper", _names(density, at[~((a > 0) & (b > 0))]))
    return Scales(at, inverse, a, b)


def _dirichlets(density: Density, rng: np.random.Generator) -> tuple[Simplexes, ...]:
    parts = [part for part in density.parts if kind(part) in ("unit", "simplex")]
    if not parts:
        return ()
    points, rows = torch.zeros(4, density.dimension, dtype=torch.float64), {}
    for part in parts:
        width = part.shape[-1] if kind(part) == "simplex" else 1
        rows[part.name] = torch.from_numpy(np.concatenate([np.zeros((1, width)), 0.7 * rng.normal(size=(3, width))]))
        points[:, part.start : part.stop] = rows[part.name].repeat(1, (part.stop - part.start) // width)
    gradient, found = density.gradient(points)[1], []
    for part in parts:
        u = rows[part.name]
        single = part._replace(start=0, stop=u.shape[1], shape=u.shape[1:] if kind(part) == "simplex" else torch.Size(()))
        slopes = [torch.autograd.functional.jacobian(lambda x, s=single: log_weights(s, x[None])[0, 0], row) for row in u]
        volume = [torch.autograd.functional.jacobian(lambda x, s=single: log_volume(s, x[None])[0], row) for row in u]
        design = torch.cat([slope.mT for slope in slopes])  # (4 width, K)
        seen = gradient[:, part.start : part.stop].reshape(4, -1, u.shape[1])
        wanted = (seen - torch.stack(volume)[:, None]).transpose(1, 2).reshape(4 * u.shape[1], -1)
        if not torch.isfinite(wanted).all():
            raise NoClosedForm("infinite", (part.name,))
        concentration = torch.linalg.lstsq(design, wanted).solution.mT.numpy() + 1
        if not (concentration > 0).all():
            raise NoClosedForm("improper", (part.name,))
        found.append(Simplexes(part, concentration))
    return tuple(found)


def _proven(density: Density, form: ClosedForm, elsewhere: Array | None, rng: np.random.Generator) -> ClosedForm:
    """With its log evidence, which must come out the same wherever it is evaluated."""
    points = len(REACH)
    u, width = np.tile(form.centre, (points, 1)), np.zeros(density.dimension)
    width[form.scales.at] = 1 / np.sqrt(np.maximum(form.scales.a, 1))
    for piece in form.simplexes:
        size = 1 / np.sqrt(np.maximum(piece.concentration.sum(-1), 1))
        width[piece.part.start : piece.part.stop] = np.repeat(size, (piece.part.stop - piece.part.start) // size.size)
    far = np.where(width > 0, NEAR, np.inf)
    far[form.scales.at] = FAR
    u += (REACH * rng.normal(size=u.shape) * width).clip(-far, far)
    for gaussian in form.gaussians:
        noise = rng.normal(size=(points, gaussian.at.size))
        u[:, gaussian.at] = gaussian.mean + REACH * gaussian.spread(noise, form.w(u, gaussian.scale))
    if elsewhere is not None:
        bounded = elsewhere.clip(form.centre - far, form.centre + far)
        u = np.concatenate([u, bounded[np.isfinite(bounded).all(1)]])
    joint = density(torch.from_numpy(u)).numpy()
    for part in density.parts:
        if kind(part) != "real":
            joint = joint - log_volume(part, torch.from_numpy(u[:, part.start : part.stop])).numpy()
    evidence = joint - form.log_density(u)
    value = float(np.median(evidence[: REACH.size // 3]))
    if not (np.abs(evidence - value) <= AGREEMENT[0] + AGREEMENT[1] * np.abs(joint)).all():  # which NaN is not either
        raise NoClosedForm("form")
    return replace(form, log_evidence=value)


def _names(density: Density, at: Index) -> tuple[str, ...]:
    return tuple(p.name for p in density.parts if ((at >= p.start) & (at < p.stop)).any())
