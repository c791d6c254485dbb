"""Guides by name: Pyro's autoguides, in the field's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide

from pyrovi.errors import GuideError, nearest

__all__ = ["GUIDES", "HANDWRITTEN", "make_guide"]

GUIDES: dict[str, type[AutoGuide]] = {
    "normal": autoguide.AutoNormal,
    "multivariate_normal": autoguide.AutoMultivariateNormal,
    "low_rank": autoguide.AutoLowRankMultivariateNormal,
    "structured": autoguide.AutoStructured,
    "delta": autoguide.AutoDelta,
    "laplace": autoguide.AutoLaplaceApproximation,
}
"""`normal`: independent Gaussians (mean field) in unconstrained space. `multivariate_normal`: one Gaussian with full covariance,
d(d+1)/2 numbers for d latents. `low_rank`: covariance of rank about √d plus a diagonal. `structured`: Gaussians that follow the
model's own dependencies. `delta`: a point, the posterior mode of the constrained values. `laplace`: a Gaussian at the mode of the
unconstrained ones, with the curvature there."""

HANDWRITTEN = "handwritten"
"""What a guide is called that has no name of its own."""


def make_guide(guide: str | type[AutoGuide] | Callable[..., Any], model: Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    """A guide for the model, and the name to call it by.

    Args:
        guide: A name in `GUIDES` or `"auto"` (`"normal"` for now), a class of autoguide, or a guide, which is returned as it is.
        model: The model that an autoguide is made from.

    Raises:
        GuideError: The name is not known, or `guide` is not callable.
    """
    if guide == "auto":
        guide = "normal"
    if isinstance(guide, str):
        if guide not in GUIDES:
            raise GuideError(f"unknown guide {guide!r}; {nearest(guide, [*GUIDES, 'auto'])}")
        return GUIDES[guide](model), guide
    if isinstance(guide, type) and issubclass(guide, AutoGuide):
        return guide(model), guide.__name__
    if not callable(guide):
        raise GuideError(f"guide must be a name, an autoguide or a function; got {type(guide).__name__}")
    name = getattr(guide, "__name__", type(guide).__name__)
    return guide, HANDWRITTEN if name in ("guide", "<lambda>") else name
