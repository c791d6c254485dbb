"""The mean of a Normal (D3).

    w ~ Normal(prior_mean, prior_sd)
    x_i ~ Normal(w, noise), i = 1..n

From "Variational Inference: Approximating Complex Integrals with Simpler Distributions" (2024), whose data are 100 draws of
Normal(2, 1).

Exact: w | x is Normal with precision 1/prior_sd² + n/noise² and mean (prior_mean/prior_sd² + Σx/noise²)/precision. With the
document's data that is 1.87738, not the sample mean 1.89615.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi._exact import ExactPosterior

__all__ = ["exact", "load", "model"]


def model(x: torch.Tensor, prior_mean: float = 0.0, prior_sd: float = 1.0, noise: float = 1.0) -> None:
    """Observe `x`, shape `(n,)`."""
    w = pyro.sample("w", dist.Normal(prior_mean, prior_sd))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, noise), obs=x)


def load(n: int = 100, seed: int = 42) -> dict[str, NDArray[np.float64]]:
    """`n` draws of Normal(2, 1); the defaults give the document's data."""
    return {"x": np.random.RandomState(seed).normal(loc=2.0, scale=1.0, size=n)}


def exact(x: ArrayLike, prior_mean: float = 0.0, prior_sd: float = 1.0, noise: float = 1.0) -> ExactPosterior:
    """The conjugate posterior, for any prior, noise and n.

    References:
        Bayesian Data Analysis, section 2.5 (Gelman et al., 2013)

    >>> round(float(exact(**load()).marginals["w"].mean()), 5)
    1.87738
    """
    from scipy import stats  # here, because it takes as long to import as Pyro

    residual = np.asarray(x, dtype=float) - prior_mean
    n, ratio = residual.size, (prior_sd / noise) ** 2
    shrunk = ratio * residual.sum() / (1 + n * ratio)  # the posterior mean, less the prior's
    sd = prior_sd / math.sqrt(1 + n * ratio)
    log_det = 2 * n * math.log(noise) + math.log1p(n * ratio)
    square = (residual @ residual - shrunk * residual.sum()) / noise**2
    return ExactPosterior(
        marginals={"w": stats.norm(prior_mean + shrunk, sd)},
        log_evidence=-0.5 * (n * math.log(2 * math.pi) + log_det + square),
        predictive={"x": stats.norm(prior_mean + shrunk, math.hypot(sd, noise))},
    )
