"""Variational autoencoder given the class (D0, exercise 3): the code says how an image looks, the label what it is of.

    z_i ~ Normal(0, I), latent coordinates 1..k, image i = 1..n
    x_ij ~ Bernoulli(σ(f_j(z_i, c_i))), pixel j = 1..d, with c_i the one-hot class of image i

f is a perceptron. Pixels may be grey or Gaussian as in `pyrovi.models.vae`.

From the exercises of a TensorFlow Probability tutorial on variational inference.

Exact: where the decoder is linear (`widths=()`) and the pixels are Gaussian, each class has a mean image of its own and all share
their loadings: probabilistic principal component analysis of the images less the mean of their class, all classes together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike

from pyrovi import data
from pyrovi._exact import ExactPosterior
from pyrovi.autoencoder import amortization_gap, decode, encode, neighbours, samples
from pyrovi.models.vae import binarize, check_images, pixels, preset_widths, principal_components
from pyrovi.networks import perceptron
from pyrovi.result import Fit

__all__ = ["amortization_gap", "binarize", "decode", "draw", "encode", "exact", "load", "model", "neighbours", "samples"]


def model(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int = 10,
    latent: int = 2,
    widths: tuple[int, ...] = (512, 256),
    nonlinearity: str = "relu",
    likelihood: str = "bernoulli",
    noise: float | None = None,
) -> None:
    """Observe `images`, shape `(n, d)`, given `labels`, shape `(n,)`, from 0 to `classes - 1`; the rest is as in `vae.model`."""
    check_images(images)
    c = torch.nn.functional.one_hot(labels, classes).to(images.dtype)
    with pyro.plate("image", len(images)):
        z = pyro.sample("z", dist.Normal(images.new_zeros(latent), 1.0).to_event(1))
        given = torch.cat([z, c.expand(*z.shape[:-1], classes)], -1)
        out = perceptron(given, "decoder", (*reversed(widths), images.shape[-1]), nonlinearity=nonlinearity)
        pyro.sample("x", pixels(out, likelihood, noise), obs=images)


def load(source: str = "digits", preset: str = "D0", split: str = "train", folder: str | None = None) -> dict[str, Any]:
    """Images in [0, 1] and their labels; the arguments are those of `vae.load`."""
    images, labels = data.pixels(source, split, folder)
    return {"images": images, "labels": labels, "widths": preset_widths(preset)}


def draw(fit: Fit, label: int, n: int = 10, *, seed: int = 0) -> torch.Tensor:
    """Mean images `(n, d)` of one class, their codes drawn from the prior."""
    return samples(fit, n, seed=seed, labels=torch.full((n,), label))


def exact(
    images: ArrayLike,
    labels: ArrayLike,
    classes: int = 10,
    latent: int = 2,
    widths: tuple[int, ...] = (512, 256),
    nonlinearity: str = "relu",
    likelihood: str = "bernoulli",
    noise: float | None = None,
    weight: ArrayLike | None = None,
) -> ExactPosterior | None:
    """As `vae.exact`, of images less the means of their classes; `weight` is the first k rows of a fitted decoder's."""
    if widths or likelihood != "gaussian":
        return None
    x, c = np.array(images, dtype=float), np.asarray(labels)
    for label in np.unique(c):
        x[c == label] -= x[c == label].mean(0)
    return principal_components(x, latent, noise, weight)
