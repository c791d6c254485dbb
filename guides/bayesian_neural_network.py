"""Bayes by Backprop, for `pyrovi.models.bayesian_neural_network`: weights and biases independent Normals; noise a LogNormal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from pyrovi.networks import bayesian_perceptron_guide

__all__ = ["STARTS", "guide"]


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


STARTS: Mapping[str, dict[str, float]] = {
    "D0": {"loc_sd": 0.1, "scale": _softplus(-3.0), "bias_loc_sd": 0.1, "bias_scale": _softplus(-3.0)},
    "D4": {"loc_sd": 0.001, "scale": _softplus(-2.5), "bias_loc_sd": 0.0, "bias_scale": _softplus(0.0)},
}
"""Where the documents start, for `functools.partial(guide, **STARTS["D4"])`."""


def guide(
    x: torch.Tensor,
    widths: tuple[int, ...] = (20,),
    noise: float | None = 1.0,
    loc_sd: float | None = 0.1,
    scale: float = _softplus(-3.0),
    bias_loc_sd: float = 0.1,
    bias_scale: float | None = None,
    local_reparameterization: bool = False,
) -> None:
    """The first arguments are the model's.

    Args:
        x: Predictors.
        widths: The hidden layers.
        noise: None where it is unknown; its factor then starts at a median of 0.5.
        loc_sd: The sd of the weights' locations at the start; 1/√inputs when None. This and the next three are D0's by default.
        scale: The weights' scales at the start.
        bias_loc_sd: The sd of the biases' locations at the start.
        bias_scale: The biases' scales at the start; `scale` when None.
        local_reparameterization: See `pyrovi.networks.bayesian_layer_guide`.
    """
    if noise is None:
        location = pyro.param("noise.location", torch.tensor(math.log(0.5)))
        spread = pyro.param("noise.spread", torch.tensor(0.05), constraint=constraints.softplus_positive)
        pyro.sample("noise", dist.LogNormal(location, spread))
    start: dict[str, Any] = {"loc_sd": loc_sd, "scale": scale, "bias_loc_sd": bias_loc_sd, "bias_scale": bias_scale}
    inputs = x.shape[1] if x.dim() > 1 else 1
    bayesian_perceptron_guide(inputs, "net", (*widths, 1), **start, local_reparameterization=local_reparameterization)
