"""Guides for `pyrovi.models.latent_outcome`: a Normal of its own for every point, or networks that read y or x."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch.distributions import constraints

from pyrovi.networks import perceptron

__all__ = ["amortized_on_x", "amortized_on_y", "guide", "optimum"]

WIDTHS = (20, 10)
"""The document's hidden layers."""


def guide(x: torch.Tensor) -> None:
    """Not amortized: q(z_i) = Normal(loc_i, scale_i), which holds the exact posterior. It starts at the document's prior."""
    n = len(x)
    loc = pyro.param("loc", lambda: x.new_zeros(n))
    scale = pyro.param("scale", lambda: x.new_ones(n), constraint=constraints.positive)
    with pyro.plate("data", n):
        pyro.sample("z", dist.Normal(loc, scale))


def amortized_on_y(y: torch.Tensor, widths: Sequence[int] = WIDTHS) -> None:
    """q(z_i) = Normal(f(y_i), g(y_i)) by two networks, which hold the exact posterior too: it is linear in y."""
    _by_networks(y, widths)


def amortized_on_x(x: torch.Tensor, widths: Sequence[int] = WIDTHS) -> None:
    """The document's guide, q(z_i) = Normal(f(x_i), g(x_i)): blind to the outcome, it can only know its expectation.

    `x` has shape `(n,)` or `(n, d)`. See `optimum` for what that costs.
    """
    _by_networks(x, widths)


def _by_networks(inputs: torch.Tensor, widths: Sequence[int]) -> None:
    rows = inputs[:, None] if inputs.dim() == 1 else inputs
    loc = perceptron(rows, "loc", (*widths, 1)).squeeze(-1)
    log_variance = perceptron(rows, "log_variance", (*widths, 1)).squeeze(-1)
    with pyro.plate("data", len(inputs)):
        pyro.sample("z", dist.Normal(loc, (log_variance / 2).exp()))


def optimum(x: ArrayLike, y: ArrayLike, prior_scale: float = 1.0, noise: float = 1.0, expected: ArrayLike | None = None) -> float:
    """The largest ELBO of `amortized_on_x`, in nats: below the log evidence by what it costs not to see y.

    With s = prior_scale, the best q(z | x) has the mean s² E[y | x] / (s² + noise²) and the posterior's own sd, and pays
    s² Var(y | x) / (2 noise² (s² + noise²)) a point: Var(y | x) / 4 in the document.

    Args:
        x: Shape `(n,)` or `(n, d)`.
        y: Shape `(n,)`.
        prior_scale: The prior's sd.
        noise: The likelihood's sd.
        expected: E[y | x], shape `(n,)`: the ELBO is that of the guide that knows it. When None it is the mean of the outcomes that
            share an x, and where no two do, y itself: networks that are large enough learn every outcome by heart.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if expected is None:
        _, group = np.unique(x.reshape(len(x), -1), axis=0, return_inverse=True)
        group = group.reshape(-1)
        expected = (np.bincount(group, y) / np.bincount(group))[group]
    total = prior_scale**2 + noise**2
    log_evidence = -0.5 * (len(y) * np.log(2 * np.pi * total) + (y**2).sum() / total)
    missed = ((y - np.asarray(expected, dtype=float)) ** 2).sum()
    return float(log_evidence - prior_scale**2 * missed / (2 * noise**2 * total))
