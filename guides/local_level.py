"""q(level) for `pyrovi.models.local_level`: a Gaussian Markov chain, the family that holds the exact posterior."""

from __future__ import annotations

import pyro
import torch
from torch.distributions import constraints

from pyrovi.distributions import MarkovNormal, Scaled, natural_scale

__all__ = ["guide"]


def guide(time: torch.Tensor, y: torch.Tensor | None = None, observed: torch.Tensor | None = None) -> None:
    """level_t | level_{t−1} ~ Normal(loc_t + coupling_t (level_{t−1} − loc_{t−1}), scale_t): 3T − 1 parameters.

    It starts at the data, each level on its own. Means are learned in units of the data's steps, so that one learning rate suits
    series on any scale. `y` is needed by the first call only.
    """
    if y is not None:
        center, unit = natural_scale(y, None if observed is None else observed.bool())
        pyro.param("loc", lambda: center.clone(), constraint=Scaled(center, unit))
        pyro.param("scale", lambda: (unit / 2).repeat(len(time)), constraint=constraints.positive)
        pyro.param("coupling", lambda: y.new_zeros(len(time) - 1))
    pyro.sample("level", MarkovNormal(*(pyro.param(name) for name in ("loc", "scale", "coupling"))))
