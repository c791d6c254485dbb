"""The encoder, for `pyrovi.models.conditional_vae`: q(z_i | x_i, c_i) = Normal, by one network of images and their classes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyrovi.guides.vae import encoder

__all__ = ["guide"]


def guide(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int = 10,
    latent: int = 2,
    widths: tuple[int, ...] = (512, 256),
    nonlinearity: str = "relu",
    spread: str = "log_variance",
) -> None:
    """An amortised guide; the arguments are the model's, and `spread` as in `vae.guide`."""
    c = torch.nn.functional.one_hot(labels, classes).to(images.dtype)
    loc, scale = encoder(torch.cat([images, c], -1), latent, widths, nonlinearity, spread)
    with pyro.plate("image", len(images)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))
