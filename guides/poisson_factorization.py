"""Mean field for `pyrovi.models.poisson_factorization`: every theta_uk and beta_ki a Gamma, with implicit reparameterisation."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

__all__ = ["guide", "least_shape"]

SHAPE = 10.0
"""All shapes at the start: draws within a third of their mean. Starting at the prior's 0.3, most draws of a factor are next to 0,
and the first gradients are noise."""


def guide(
    x: torch.Tensor | None = None,
    K: int = 20,
    observed: torch.Tensor | None = None,
    shape: tuple[int, int] | None = None,
    start: Any = None,
) -> None:
    """Parameters `theta_shape` and `theta_rate`, `(K, n)`, `beta_shape` and `beta_rate`, `(K, m)`.

    They start at a shape of 10 and at exponential random means, on the level at which the K factors add up to the mean count.
    Equal factors would stay equal: the fit's seed tells them apart.

    Args:
        x: Counts, `(n, m)`, read for their shape and mean.
        K: The number of factors.
        observed: Which entries count, `(n, m)` booleans; all when None.
        shape: `(n, m)` where there is no `x`.
        start: Start here instead: what `coordinate_ascent` returns, or anything with the four parameters as attributes. Bind
            it with `functools.partial(guide, start=…)`.
    """
    n, m = (x.shape if x is not None else shape) or (0, 0)
    level = 1.0 if x is None else math.sqrt(max(float((x if observed is None else x[observed.bool()]).double().mean()), 1e-3) / K)
    theta_shape, theta_rate = _gamma("theta", K, n, level, start)
    beta_shape, beta_rate = _gamma("beta", K, m, level, start)
    with pyro.plate("factor", K, dim=-3):
        with pyro.plate("row", n, dim=-2):
            pyro.sample("theta", dist.Gamma(theta_shape.unsqueeze(-1), theta_rate.unsqueeze(-1)))
        with pyro.plate("column", m, dim=-1):
            pyro.sample("beta", dist.Gamma(beta_shape.unsqueeze(-2), beta_rate.unsqueeze(-2)))


def _gamma(name: str, K: int, size: int, level: float, start: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The parameters of one factor of q, `(K, size)`."""
    least = least_shape(torch.get_default_dtype())

    def given(part: str) -> torch.Tensor:
        # Of a batch only as many rows as it has, by which the fit sees that there is a row a datum.
        return torch.as_tensor(getattr(start, f"{name}_{part}"), dtype=torch.get_default_dtype())[:, :size].clone()

    def shape() -> torch.Tensor:
        return torch.full((K, size), SHAPE) if start is None else given("shape").clamp(min=1.01 * least)

    def rate() -> torch.Tensor:
        return SHAPE / (level * torch.empty(K, size).exponential_().clamp(min=0.01)) if start is None else given("rate")

    return (
        pyro.param(f"{name}_shape", shape, constraint=constraints.greater_than(least)),
        pyro.param(f"{name}_rate", rate, constraint=constraints.positive),
    )


def least_shape(dtype: torch.dtype) -> float:
    """The least shape of a Gamma whose draws a dtype can hold: 0.115 in float32, 0.014 in float64.

    A draw below the smallest float, `tiny`, comes out as `tiny`, with probability tiny**shape: 42% for a shape of 0.01 in
    float32. Its log densities are finite but wrong: log p − log q at `tiny` rises without end as the shape falls, and an optimiser
    finds that. At the least shape the probability is e⁻¹⁰. A prior with a smaller one wants dtype="float64" for a tight fit; the
    ELBO is a lower bound all the same.
    """
    return -10 / math.log(torch.finfo(dtype).tiny)
