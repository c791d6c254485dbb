"""Bayes by Backprop, for `pyrovi.models.bayesian_classifier`: every weight and latent bias an independent Normal."""

from __future__ import annotations

import torch

from pyrovi.networks import bayesian_perceptron_guide

__all__ = ["guide"]


def guide(
    images: torch.Tensor,
    classes: int = 10,
    widths: tuple[int, ...] = (),
    latent_bias: bool = True,
    scale: float = 0.05,
    local_reparameterization: bool = True,
) -> None:
    """The first arguments are the model's; give the others as in `functools.partial(guide, scale=0.01)`.

    Args:
        images: Pixels.
        classes: How many there are.
        widths: The hidden layers.
        latent_bias: Whether biases are latent.
        scale: The sd of every factor at the start.
        local_reparameterization: Draw a layer's outputs, not its weights, while gradients are taken: see
            `pyrovi.networks.bayesian_layer_guide`.
    """
    layers = (*widths, classes)
    bayesian_perceptron_guide(
        images[0].numel(), "net", layers, scale=scale, latent_bias=latent_bias, local_reparameterization=local_reparameterization
    )
