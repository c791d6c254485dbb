"""Mean field for `pyrovi.models.linear_regression`: q(beta) = Π Normal; q(variance) = InverseGamma where the noise is unknown."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

__all__ = ["guide"]


def guide(X: torch.Tensor, noise: float | None = 0.7, shape: float = 2.0, rate: float = 1.0) -> None:
    """Independent Normals that start at 0 with scale 0.1; the variance's factor starts at its prior."""
    if noise is None:
        a = pyro.param("variance_shape", torch.tensor(shape), constraint=constraints.positive)
        b = pyro.param("variance_rate", torch.tensor(rate), constraint=constraints.positive)
        pyro.sample("variance", dist.InverseGamma(a, b))
    d = X.shape[-1]
    loc = pyro.param("loc", lambda: torch.zeros(d))
    scale = pyro.param("scale", lambda: torch.full((d,), 0.1), constraint=constraints.positive)
    with pyro.plate("feature", d):
        pyro.sample("beta", dist.Normal(loc, scale))
