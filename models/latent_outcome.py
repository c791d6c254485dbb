"""A latent value for every outcome (D4's second loss), for guides that are amortized or not.

    z_i ~ Normal(0, prior_scale), point i = 1..n
    y_i | z_i ~ Normal(z_i, noise)

From "Variational inference from scratch" (Ritchie Vink, 2019), whose loss of squared error plus KL is the negative ELBO of this
model with both sds 1. The predictors x are not in it: only a guide may read them.

Exact: with s = prior_scale, z_i | y_i ~ Normal(s² y_i / (s² + noise²), s noise / √(s² + noise²)), which is Normal(y_i / 2, √½) in
the document, and the evidence is the product of Normal(0, √(s² + noise²)) at each y_i.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi._exact import ExactPosterior

__all__ = ["exact", "load", "model"]


def model(x: torch.Tensor, y: torch.Tensor | None = None, prior_scale: float = 1.0, noise: float = 1.0) -> None:
    """Observe `y`, shape `(n,)`; of `x`, shape `(n,)` or `(n, d)`, only the length is read."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, prior_scale))
        pyro.sample("y", dist.Normal(z, noise), obs=y)


def load(n: int = 150, seed: int = 43) -> dict[str, NDArray[np.float64]]:
    """`n` points of the document's waves, y standardised, sorted by x; the defaults give the document's data."""
    waves = data.vink(n, seed)
    return {"x": waves.x, "y": waves.y}


def exact(x: ArrayLike, y: ArrayLike, prior_scale: float = 1.0, noise: float = 1.0) -> ExactPosterior:
    """The conjugate posterior, independent by point; the predictive repeats each outcome.

    References:
        Bayesian Data Analysis, section 2.5 (Gelman et al., 2013)

    >>> round(exact(**load()).log_evidence, 3)
    -227.327
    """
    from scipy import stats  # here, because it takes as long to import as Pyro

    y = np.asarray(y, dtype=float)
    total = math.hypot(prior_scale, noise)
    mean, sd = (prior_scale / total) ** 2 * y, prior_scale * noise / total
    return ExactPosterior(
        marginals={"z": stats.norm(mean, np.full_like(mean, sd))},
        log_evidence=float(stats.norm(0, total).logpdf(y).sum()),
        predictive={"y": stats.norm(mean, math.hypot(sd, noise))},
    )
