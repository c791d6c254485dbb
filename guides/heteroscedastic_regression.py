"""For `pyrovi.models.heteroscedastic_regression`: empty; Bayes by Backprop for latent weights; or the document's q(z|x)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyrovi.networks import bayesian_perceptron_guide, perceptron

__all__ = ["guide"]


def guide(
    x: torch.Tensor,
    widths: tuple[int, ...] = (20, 10),
    loss: str = "likelihood",
    latent_weights: bool = False,
    nonlinearity: str = "relu",
    scale: float = 0.05,
    local_reparameterization: bool = True,
) -> None:
    """The first arguments are the model's, and so are the document's networks: the parameters have the same names.

    Args:
        x: Predictors.
        widths: The hidden layers.
        loss: The model's.
        latent_weights: The model's.
        nonlinearity: Between layers.
        scale: For latent weights, the sd of every factor at the start.
        local_reparameterization: For latent weights, see `pyrovi.networks.bayesian_layer_guide`.
    """
    inputs = x if x.dim() > 1 else x[:, None]
    shape = (*widths, 1)
    if loss == "document":
        mean, log_variance = (perceptron(inputs, name, shape, nonlinearity=nonlinearity) for name in ("mu", "log_variance"))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean.squeeze(-1), (log_variance.squeeze(-1) / 2).exp()))
    elif latent_weights:
        for name in ("mu", "log_variance"):
            bayesian_perceptron_guide(inputs.shape[1], name, shape, scale=scale, local_reparameterization=local_reparameterization)
