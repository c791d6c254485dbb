"""q(w) = Normal(loc, scale), for `pyrovi.models.normal_mean`."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

__all__ = ["guide"]


def guide() -> None:
    """A Normal that starts at 0 with the document's scale, softplus(0.54)."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.nn.functional.softplus(torch.tensor(0.54)), constraint=constraints.softplus_positive)
    pyro.sample("w", dist.Normal(loc, scale))
