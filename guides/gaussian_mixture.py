"""q(x) = Normal(loc, scale), for `pyrovi.models.gaussian_mixture`: one Gaussian for a target with two modes."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch.distributions import constraints

__all__ = ["guide", "optimum"]


def guide() -> None:
    """A Normal that starts at 0 with scale 1."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("x", dist.Normal(loc, scale))


def optimum(weights: ArrayLike, means: ArrayLike, sds: ArrayLike) -> float:
    """The largest ELBO of one Gaussian, in nats: −KL at the optimum, by Gauss–Hermite quadrature and Nelder–Mead.

    KL may have several optima, one in each mode and one over all of them; the search starts at every mean and at the target's own
    moments, and the best is kept.

    >>> round(optimum([0.3, 0.7], [-3.0, 2.0], [1.0, 1.5]), 5)
    -0.17871
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    w, m, s = (np.asarray(a, dtype=float) for a in (weights, means, sds))
    w = w / w.sum()
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(200)
    node_weights = node_weights / node_weights.sum()

    def kl(q: np.ndarray) -> float:
        x = q[0] + np.exp(q[1]) * nodes
        log_p = logsumexp(np.log(w / s) - 0.5 * ((x[:, None] - m) / s) ** 2, axis=1)
        return float(-q[1] - 0.5 - node_weights @ log_p)  # the two log √2π cancel

    mean = w @ m
    starts = [(mean, np.log(np.sqrt(w @ (s**2 + m**2) - mean**2))), *zip(m, np.log(s), strict=True)]
    found = [minimize(kl, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}) for start in starts]
    return -float(min(f.fun for f in found))
