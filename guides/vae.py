"""The encoder, for `pyrovi.models.vae`: q(z_i | x_i) = Normal, its mean and scale by one network for all images."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyrovi.errors import SettingsError, nearest
from pyrovi.networks import perceptron

__all__ = ["SPREADS", "encoder", "guide"]

SPREADS = ("log_variance", "softplus")


def guide(
    images: torch.Tensor,
    latent: int = 2,
    widths: tuple[int, ...] = (512, 256),
    nonlinearity: str = "relu",
    spread: str = "log_variance",
) -> None:
    """An amortised guide; the arguments are the model's, and `spread`, what the network's second half of outputs is.

    `"log_variance"` (D0) or `"softplus"` (D1), of which they are the scale: `functools.partial(guide, spread="softplus")`.
    """
    loc, scale = encoder(images, latent, widths, nonlinearity, spread)
    with pyro.plate("image", len(images)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def encoder(
    images: torch.Tensor, latent: int, widths: tuple[int, ...], nonlinearity: str = "relu", spread: str = "log_variance"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and scales of the codes, each of shape `(n, latent)`."""
    loc, raw = perceptron(images, "encoder", (*widths, 2 * latent), nonlinearity=nonlinearity).chunk(2, -1)
    if spread == "log_variance":
        return loc, (raw / 2).exp()
    if spread == "softplus":
        return loc, torch.nn.functional.softplus(raw)
    raise SettingsError(f"unknown spread {spread!r}; {nearest(spread, SPREADS)}")
