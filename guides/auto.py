"""Guides by name: Pyro's autoguides, in the field's words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from torch.distributions import biject_to, constraints, transform_to

from pyrovi.errors import GuideError, first_line, nearest
from pyrovi.guides.flows import AutoFlow
from pyrovi.guides.gaussian import AutoWhitened
from pyrovi.guides.mixture import AutoMixture
from pyrovi.guides.student import AutoStudent

__all__ = ["GUIDES", "HANDWRITTEN", "PROPOSALS", "make_guide"]

GUIDES: dict[str, type[AutoGuide]] = {
    "normal": autoguide.AutoNormal,
    "multivariate_normal": autoguide.AutoMultivariateNormal,
    "low_rank": autoguide.AutoLowRankMultivariateNormal,
    "structured": autoguide.AutoStructured,
    "mixture": AutoMixture,
    "flow": AutoFlow,
    "whitened": AutoWhitened,
    "delta": autoguide.AutoDelta,
    "laplace": autoguide.AutoLaplaceApproximation,
}
"""`normal`: independent Gaussians (mean field) in unconstrained space. `multivariate_normal`: one Gaussian with full covariance,
d(d+1)/2 numbers for d latents. `low_rank`: covariance of rank about √d plus a diagonal. `structured`: Gaussians that follow the
model's own dependencies. `mixture`: a mixture of Gaussians (`pyrovi.guides.mixture`). `flow`: a normalizing flow
(`pyrovi.guides.flows`). `whitened`: one Gaussian in coordinates in which the posterior is about standard, from Pathfinder's start
(`pyrovi.guides.gaussian`). `delta`: a point, the posterior mode of the constrained values. `laplace`: a Gaussian at the mode of the
unconstrained ones, with the curvature there."""

PROPOSALS: dict[str, type[AutoGuide]] = {"student": AutoStudent}
"""What a fit without settings may end with, besides, and no optimiser fits."""

# torch has no transform for a mixture's support, which is that of its components.
MIXTURE = getattr(constraints, "MixtureSameFamilyConstraint", None)  # which older versions of torch have not
for _registry in (biject_to, transform_to) if MIXTURE is not None else ():
    _registry.register(MIXTURE, lambda support, registry=_registry: registry(support.base_constraint))

HANDWRITTEN = "handwritten"
"""What a guide is called that has no name of its own."""


def make_guide(
    guide: str | type[AutoGuide] | Callable[..., Any], model: Callable[..., Any], options: Mapping[str, Any] | None = None
) -> tuple[Callable[..., Any], str]:
    """A guide for the model, and the name to call it by.

    Args:
        guide: A name in `GUIDES` or `PROPOSALS`, or `"auto"`, which is `"normal"` here; a class of autoguide; or a guide, which is
            returned as it is.
        model: The model that an autoguide is made from.
        options: What the named guide, or class, takes beside the model.

    Raises:
        GuideError: The name is not known, `guide` is not callable, or it does not take the options.
    """
    if guide == "auto":
        guide = "normal"
    if isinstance(guide, str):
        known = GUIDES | PROPOSALS
        if guide not in known:
            raise GuideError(f"unknown guide {guide!r}; {nearest(guide, [*GUIDES, 'auto'])}")
        return _made(known[guide], model, options, guide), guide
    if isinstance(guide, type) and issubclass(guide, AutoGuide):
        return _made(guide, model, options, guide.__name__), guide.__name__
    if options:
        raise GuideError("guide_options are for a guide given by name or class; a guide that is made already has its own")
    if not callable(guide):
        raise GuideError(f"guide must be a name, an autoguide or a function; got {type(guide).__name__}")
    name = getattr(guide, "__name__", type(guide).__name__)
    return guide, HANDWRITTEN if name in ("guide", "<lambda>") else name


def _made(cls: type[AutoGuide], model: Callable[..., Any], options: Mapping[str, Any] | None, name: str) -> AutoGuide:
    if options is not None and not isinstance(options, Mapping):
        raise GuideError(f"guide_options must map names to values, as in {{'rank': 3}}; got {type(options).__name__}")
    options = dict(options or {})
    takes = [p for p in inspect.signature(cls).parameters if p != "model"]
    for option in options:
        if option not in takes:
            raise GuideError(f"guide {name!r} takes no option {option!r}; {nearest(option, takes)}")
    try:
        return cls(model, **options)
    except (TypeError, ValueError, AssertionError) as error:
        if isinstance(error, GuideError):
            raise
        raise GuideError(f"guide {name!r} cannot be made with {options}: {first_line(error)}") from error
