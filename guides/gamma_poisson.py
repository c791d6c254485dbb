"""q(theta_j) = Gamma(alpha_j, beta_j), for `pyrovi.models.gamma_poisson`: the family that holds the exact posterior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

__all__ = ["guide"]


def guide(prior_image: torch.Tensor, weight: float = 2.0) -> None:
    """Independent Gammas that start at the prior."""
    alpha = pyro.param("alpha", lambda: weight * prior_image, constraint=constraints.positive)
    beta = pyro.param("beta", lambda: torch.full_like(prior_image, weight), constraint=constraints.positive)
    with pyro.plate("pixel", len(prior_image), dim=-1):
        pyro.sample("theta", dist.Gamma(alpha, beta))
