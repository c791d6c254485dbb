"""Latents seen from their priors: coordinates in which a hierarchy's scale and its members are nearly independent.

A latent u with a Normal prior whose location and scale are other latents is given, in place of itself, by a standardised z,

    u = (loc + scale² precision estimate) / a + scale z / √a,   a = 1 + scale² precision,

its conditional distribution where the data say of it what a Normal observation `estimate` of that `precision` would. Precision 0
is the non-centred parametrisation, a large one the centred one, and each element has its own. Where the likelihood is
Normal, z is standard Normal whatever loc and scale are. For other location-scale priors and likelihoods it is a change of
variables all the same, and q pays for what it does not straighten.

References:
    A general framework for the parametrization of hierarchical models (Papaspiliopoulos, Roberts & Sköld, 2007) | https://doi.org/10.1214/088342307000000014
    Automatic structured variational inference (Ambrogioni et al., 2021) | https://proceedings.mlr.press/v130/ambrogioni21a.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch.distributions import biject_to

from pyrovi._typing import Model, Tensors
from pyrovi.errors import ModelError
from pyrovi.structure import WRAPPERS

__all__ = ["Centering", "Part", "Placing", "dependent", "parts_of"]


class Part(NamedTuple):
    """Where a latent site lies in the flat vector, and the bijection to its support."""

    name: str
    start: int
    stop: int
    shape: torch.Size
    """Of its unconstrained value,"""
    event_dim: int
    """and of that value's event."""
    transform: Any


def parts_of(prototype: Trace) -> tuple[Part, ...]:
    """The latents of a trace, laid end to end in its order."""
    parts, stop = [], 0
    for name, node in prototype.iter_stochastic_nodes():
        transform = biject_to(node["fn"].support)
        shape = transform.inv(node["value"]).shape
        start, stop = stop, stop + shape.numel()
        event_dim = node["fn"].event_dim + len(shape) - len(node["value"].shape)
        parts.append(Part(name, start, stop, shape, event_dim, transform))
    return tuple(parts)


class Centering(NamedTuple):
    """What the data are taken to say of a site: Normal observations of its elements, both of the site's shape."""

    precision: torch.Tensor
    estimate: torch.Tensor


def dependent(model: Model, data: Mapping[str, Any], parts: tuple[Part, ...], u: torch.Tensor) -> list[str]:
    """The location-scale latents whose prior depends on other latents, found by a run at `u`.

    Raises:
        ModelError: A latent's support depends on others.
    """
    values = {part.name: part.transform(u[part.start : part.stop].reshape(part.shape)) for part in parts}
    values = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad(), poutine.block(), pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(**data)
    found = []
    for name in values:
        if _moves(trace.nodes[name]["fn"].support):
            raise ModelError(
                f"the support of site {name!r} depends on other latents, and its transform to real numbers cannot; write it as "
                "these times, or plus, a latent whose support is fixed"
            )
        prior = _location_scale(trace.nodes[name]["fn"])
        if prior is not None and any(torch.as_tensor(x).requires_grad for x in prior):
            found.append(name)
    return found


def _moves(support: Any) -> bool:
    """Whether a support's bounds are computed from latents."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return any(isinstance(bound, torch.Tensor) and bound.requires_grad for bound in vars(support).values())


class Placing(Messenger):
    """Runs a model at coordinates z: gives every latent its value, and keeps what the supports' bijections were given.

    Args:
        parts: The latents.
        z: `(…, dimension)`; what stands for the dots is broadcast with plates, as a particle axis is.
        centering: By site; the others are their own coordinates.
        inverse: Whether `z` holds the unconstrained values instead, to be sent back to their coordinates.
    """

    def __init__(
        self, parts: tuple[Part, ...], z: torch.Tensor, centering: Mapping[str, Centering], *, inverse: bool = False
    ) -> None:
        super().__init__()
        self._parts = {part.name: part for part in parts}
        self._z, self._centering, self._inverse = z, centering, inverse
        self.placed: Tensors = {}
        self.log_det: Tensors = {}
        """By centred site: of du/dz, a value for each event or element."""

    def _pyro_sample(self, msg: Any) -> None:
        part = self._parts.get(msg["name"])
        if part is None:
            return
        shape = torch.broadcast_shapes(part.shape, self._z.shape[:-1] + (1,) * part.event_dim)
        u = placed = self._z[..., part.start : part.stop].reshape(shape)
        if part.name in self._centering:
            prior = _location_scale(msg["fn"])
            assert prior is not None
            placed, self.log_det[part.name] = _conditional(u, *prior, self._centering[part.name], self._inverse)
            u = u if self._inverse else placed
        self.placed[part.name] = placed
        msg["value"] = part.transform(u)
        msg["is_observed"] = True


class _Prior(NamedTuple):
    loc: torch.Tensor
    scale: torch.Tensor
    """Of the elements; or lower triangular, of the whole event."""
    whole: bool


def _location_scale(fn: Any) -> _Prior | None:
    """Location and scale of a distribution's unconstrained value, where it has them."""
    while type(fn).__name__ in WRAPPERS:
        fn = fn.base_dist
    if type(fn).__name__ in ("Normal", "StudentT", "Cauchy", "Laplace", "LogNormal"):
        return _Prior(fn.loc, fn.scale, False)
    if type(fn).__name__ == "MultivariateNormal":
        return _Prior(fn.loc, fn.scale_tril, True)
    return None


def _conditional(
    x: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor, whole: bool, data: Centering, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """From z to u, or back, and log |det du/dz|."""
    precision, estimate = data.precision.to(x.dtype), data.estimate.to(x.dtype)
    if not whole:
        a = 1 + scale.square() * precision
        centre, spread = (loc + (a - 1) * estimate) / a, scale * a.rsqrt()
        return (x - centre) / spread if inverse else centre + spread * x, spread.log().expand(x.shape)
    # With K = scale scaleᵀ: covariance (K⁻¹ + D)⁻¹ = scale A⁻¹ scaleᵀ, A = I + scaleᵀ D scale.
    a = scale.mT @ (precision[..., None] * scale) + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    root = torch.linalg.cholesky(a)
    pull = scale.mT @ (precision * (estimate - loc))[..., None]
    centre = loc + (scale @ torch.cholesky_solve(pull, root))[..., 0]
    log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if inverse:
        z = root.mT @ torch.linalg.solve_triangular(scale, (x - centre)[..., None], upper=False)
        return z[..., 0], log_det.expand(x.shape[:-1])
    u = centre + (scale @ torch.linalg.solve_triangular(root.mT, x[..., None], upper=True))[..., 0]
    return u, log_det.expand(x.shape[:-1])
