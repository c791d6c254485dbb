"""Gaussians in whitened coordinates, optionally skewed: what `method="deterministic"` fits, and `guide="whitened"` for SVI.

    u = loc + scale (shift + L y),   y = e, or with skew y_j = sinh((asinh e_j + skew_j) exp(tail_j)),   e ~ Normal(0, 1)

in unconstrained space. `loc` and `scale` are the coordinates: they are found at the start and held, so that what is fitted, `shift`
and L, is of order one however the latents are scaled. They are parameters all the same, to be saved and loaded with the others.

References:
        Sinh-arcsinh distributions (Jones & Pewsey, 2009) | https://doi.org/10.1093/biomet/asp053
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import init_to_feasible

from pyrovi._typing import Tensors
from pyrovi.errors import GuideError, nearest
from pyrovi.guides.coordinates import AutoCoordinates

__all__ = ["FAMILIES", "HELD", "AutoWhitened", "initial", "place", "starts_full", "triangular"]

FAMILIES = ("normal", "low_rank", "multivariate_normal")
"""`normal`: L = diag(exp log_scale), and `scale` a vector. `low_rank`: L = diag(exp log_scale) (I + F Fᵀ), F of `rank` columns,
which gives every covariance that is diagonal plus one of that rank. `multivariate_normal`: L, and `scale`, lower triangular."""

HELD = ("loc", "scale")
"""The coordinates."""

MOST_FULL = 2_000
"""Latents whose full covariance is still worth its d(d+1)/2 numbers and d³ operations."""


MOST_DENSE = 300
"""Latents up to which Hessians are computed whole where they are not asked for."""


def starts_full(family: str, dimension: int) -> bool:
    """Whether a family is to start from a Gaussian with full covariance."""
    return family == "multivariate_normal" or (family == "low_rank" and dimension <= MOST_DENSE)


def initial(family: str, loc: torch.Tensor, scale: torch.Tensor, rank: int = 0, skew: bool = False) -> Tensors:
    """The parameters, for `place`, of u = loc + scale e: `scale` is a vector of sds, or lower triangular.

    For `low_rank` it may be either. Of a triangular one, the factor takes the directions in which that covariance is longest beside
    the independent Normals of the same curvature.
    """
    d = len(loc)
    if family == "low_rank" and scale.dim() == 2:
        sds = torch.cholesky_inverse(scale).diagonal().rsqrt()
        w, v = torch.linalg.eigh((scale / sds[:, None]) @ (scale / sds[:, None]).mT)
        stretch = (w[-rank:].clamp_min(1.0).sqrt() - 1).clamp_min(0.01)
        return initial(family, loc, sds, rank, skew) | {"factor": v[:, -rank:] * stretch.sqrt()}
    p = {"loc": loc, "scale": scale, "shift": torch.zeros_like(loc), "log_scale": torch.zeros_like(loc)}
    if family == "multivariate_normal":
        p["lower"] = loc.new_zeros(d * (d - 1) // 2)
    if family == "low_rank":  # F = 0 would be a saddle: cosines, all different, on none of the axes
        angle = torch.arange(0.5, d, dtype=loc.dtype, device=loc.device)[:, None] * torch.arange(1, rank + 1, device=loc.device)
        p["factor"] = 0.3 * (math.pi / d * angle).cos() / math.sqrt(d)
    if skew:
        p |= {"skew": torch.zeros_like(loc), "tail": torch.zeros_like(loc)}
    return p


def place(p: Mapping[str, torch.Tensor], e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From standard Normal rows `e`, `(…, d)`, to u, and log |det du/de|: `(…)`, or a scalar where it is the same for all."""
    log_det = p["log_scale"].sum()
    if "skew" in p:
        t = (torch.asinh(e) + p["skew"]) * p["tail"].exp()
        log_det = log_det + (torch.logaddexp(t, -t) - math.log(2) + p["tail"] - 0.5 * torch.log1p(e * e)).sum(-1)
        e = torch.sinh(t)
    if "factor" in p:
        log_det = log_det + torch.logdet(_inner(p))
    y, scale = p["shift"] + _spread(p, e), p["scale"]
    if scale.dim() == 1:
        return p["loc"] + scale * y, log_det + scale.log().sum()
    return p["loc"] + y @ scale.mT, log_det + scale.diagonal().log().sum()


def _spread(p: Mapping[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """L times each row of `y`."""
    if "lower" in p:
        return y @ triangular(p).mT
    if "factor" in p:
        y = y + (y @ p["factor"]) @ p["factor"].mT
    return p["log_scale"].exp() * y


def _back(p: Mapping[str, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
    """The e that `place` sends to u."""
    y, scale = u - p["loc"], p["scale"]
    y = (y / scale if scale.dim() == 1 else _solve(scale, y)) - p["shift"]
    y = _solve(triangular(p), y) if "lower" in p else y / p["log_scale"].exp()
    if "factor" in p:
        y = y - torch.linalg.solve(_inner(p), (y @ p["factor"])[..., None])[..., 0] @ p["factor"].mT
    if "skew" in p:
        y = torch.sinh(torch.asinh(y) * (-p["tail"]).exp() - p["skew"])
    return y


def _inner(p: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rank = p["factor"].shape[1]
    return torch.eye(rank, dtype=p["factor"].dtype, device=p["factor"].device) + p["factor"].mT @ p["factor"]


def triangular(p: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """L of the full family."""
    d = len(p["log_scale"])
    row, column = torch.tril_indices(d, d, -1, device=p["lower"].device)
    below = p["lower"].new_zeros(d * d).scatter(0, row * d + column, p["lower"])
    return below.reshape(d, d) + torch.diag(p["log_scale"].exp())


def _solve(lower: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve_triangular(lower, y[..., None], upper=False)[..., 0]


class AutoWhitened(AutoCoordinates):
    """A Gaussian over all latents together, in coordinates in which the posterior is about standard.

    Under SVI the coordinates are those of Pathfinder's best Gaussian (`pyrovi.pathfinder`), where q also starts. That takes a model
    that can be recorded (`pyrovi.density`).

    Args:
        model: A Pyro model.
        family: One of `FAMILIES`.
        skew: Whether each whitened coordinate has a skewness and a tail weight of its own.
        rank: Of the family `low_rank`; about √d when None.
        start: Whether to look for the coordinates; without it q starts as the standard Gaussian about `init_loc_fn`'s point.
        init_scale: The scale of that Gaussian; 1 when None.
        centered: As for `AutoCoordinates`,
        together: likewise,
        init_loc_fn: and likewise; where the search starts.
    """

    family: str
    skewed: bool

    def __init__(
        self,
        model: Callable[..., Any],
        family: str = "multivariate_normal",
        *,
        skew: bool = False,
        rank: int | None = None,
        start: bool = True,
        init_scale: float | None = None,
        centered: Sequence[str] = (),
        together: bool = True,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
    ) -> None:
        if family not in FAMILIES:
            raise GuideError(f"unknown family {family!r}; {nearest(str(family), FAMILIES)}")
        if rank is not None and (family != "low_rank" or not (isinstance(rank, numbers.Integral) and rank >= 1)):
            raise GuideError(f"rank is a whole number of at least 1, for family='low_rank'; got {rank!r} for {family!r}")
        self.family, self.skewed = family, bool(skew)
        self._rank, self._start, self._width = rank, start, init_scale
        super().__init__(model, centered=centered, together=together, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        d = self.latent_dim
        if self.family == "multivariate_normal" and d > MOST_FULL:
            raise GuideError(f"the model has {d:,} latent scalars, too many for a full covariance; use 'low_rank' or 'normal'")
        loc = self._init_loc()
        width = 1.0 if self._width is None else self._width
        scale = width * torch.eye(d, device=loc.device) if self.family == "multivariate_normal" else torch.full_like(loc, width)
        if self._start:
            from pyrovi.density import log_density
            from pyrovi.pathfinder import pathfinder

            with poutine.block():
                density = log_density(self._written[0], kwargs, self.prototype_trace)
            best = pathfinder(density, loc.double(), full=starts_full(self.family, d))
            loc, scale = best.loc.to(loc), best.scale.to(scale)
        self.rank: int = min(d, self._rank or math.ceil(math.sqrt(d)))
        for name, value in initial(self.family, loc, scale, self.rank, self.skewed).items():
            setattr(self, name, torch.nn.Parameter(value))

    def values(self) -> Tensors:
        """The parameters as `place` takes them, the held ones without gradients."""
        names = [n for n in ("loc", "scale", "shift", "log_scale", "lower", "factor", "skew", "tail") if n in self._parameters]
        return {name: getattr(self, name).detach() if name in HELD else getattr(self, name) for name in names}

    def coordinates(self) -> dist.TorchDistribution:
        p = self.values()
        return dist.TransformedDistribution(dist.Normal(torch.zeros_like(p["loc"]), 1.0).to_event(1), [_Placed(p)])


class _Placed(torch.distributions.transforms.Transform):
    """`place` as a transform; it keeps its last result, so that a draw is scored without being sent back."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, p: Mapping[str, torch.Tensor]) -> None:
        super().__init__(cache_size=1)
        self._p = p

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return place(self._p, x)[0]

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return _back(self._p, y)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return place(self._p, x)[1]
