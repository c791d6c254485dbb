"""Variational autoencoder (D0, D1): every image has a latent code of its own, and one network decodes them all.

    z_i ~ Normal(0, I), latent coordinates 1..k, image i = 1..n
    x_ij ~ Bernoulli(σ(f_j(z_i))), pixel j = 1..d

f is a perceptron. Instead of Bernoulli pixels: `likelihood="grey"`, or `"gaussian"`, x_ij ~ Normal(f_j(z_i), noise).

From a TensorFlow Probability tutorial on variational inference and from "Variational Inference in TensorFlow" (Danijar Hafner,
2018). A Bernoulli pixel is 0 or 1, and grey ones are refused: `binarize`, as a fit's `transform`, draws 0 or 1 with the grey value
as probability, anew in every step.

Exact: where the decoder is linear (`widths=()`) and the pixels are Gaussian this is probabilistic principal component analysis; the
largest likelihood, and the posterior of z there, are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray
from torch.distributions import constraints

from pyrovi import data
from pyrovi._exact import ExactPosterior
from pyrovi.autoencoder import Gap, amortization_gap, decode, encode, neighbours, samples
from pyrovi.errors import DataError, SettingsError, nearest
from pyrovi.networks import perceptron

__all__ = [
    "LIKELIHOODS",
    "PRESETS",
    "Gap",
    "GreyBernoulli",
    "amortization_gap",
    "binarize",
    "check_images",
    "decode",
    "encode",
    "exact",
    "load",
    "model",
    "neighbours",
    "pixels",
    "preset_widths",
    "principal_components",
    "samples",
]

PRESETS: Mapping[str, tuple[int, ...]] = {"D0": (512, 256), "D1": (100,)}
"""The hidden layers of the two documents' encoders; their decoders have the same in reverse."""
LIKELIHOODS = ("bernoulli", "grey", "gaussian")


def model(
    images: torch.Tensor,
    latent: int = 2,
    widths: tuple[int, ...] = (512, 256),
    nonlinearity: str = "relu",
    likelihood: str = "bernoulli",
    noise: float | None = None,
) -> None:
    """Observe `images`, shape `(n, d)`.

    Args:
        images: Pixels, 0 or 1 for `"bernoulli"`, between 0 and 1 for `"grey"`, any number for `"gaussian"`.
        latent: k, the length of an image's code.
        widths: The hidden layers from the image to its code, as the encoder has them; the decoder's are the same in reverse.
        nonlinearity: Between layers; a name in `pyrovi.networks.ACTIVATIONS`.
        likelihood: Of a pixel, one of `LIKELIHOODS`.
        noise: The sd of Gaussian pixels; when None it is a parameter, started at 1.
    """
    check_images(images)
    with pyro.plate("image", len(images)):
        z = pyro.sample("z", dist.Normal(images.new_zeros(latent), 1.0).to_event(1))
        out = perceptron(z, "decoder", (*reversed(widths), images.shape[-1]), nonlinearity=nonlinearity)
        pyro.sample("x", pixels(out, likelihood, noise), obs=images)


class GreyBernoulli(dist.Bernoulli):
    """A Bernoulli's log probability at a grey value x between 0 and 1: x log p + (1 - x) log(1 - p), minus the cross-entropy.

    It is not a density: it does not integrate to 1 over [0, 1], so ELBOs of grey images compare with one another and with nothing
    else. A draw is 0 or 1.
    """

    support: Any = constraints.unit_interval


def pixels(out: torch.Tensor, likelihood: str = "bernoulli", noise: float | None = None) -> dist.TorchDistribution:
    """The distribution of images given the decoder's outputs, shape `(…, d)`: logits, or the means of Gaussian pixels."""
    if likelihood == "bernoulli":
        return dist.Bernoulli(logits=out).to_event(1)
    if likelihood == "grey":
        return GreyBernoulli(logits=out).to_event(1)
    if likelihood == "gaussian":
        scale = noise if noise is not None else pyro.param("noise", out.new_ones(()), constraint=constraints.positive)
        return dist.Normal(out, scale).to_event(1)
    raise SettingsError(f"unknown likelihood {likelihood!r}; {nearest(likelihood, LIKELIHOODS)}")


def check_images(images: torch.Tensor) -> None:
    """Raise where images are not rows of floating pixels."""
    if images.dim() != 2 or not images.is_floating_point():
        raise DataError(
            f"images need shape (n, d), a row of floating pixels an image; got {tuple(images.shape)} of {images.dtype}: flatten "
            "them, and divide grey values by their largest"
        )


def binarize(data: Mapping[str, Any]) -> dict[str, Any]:
    """Every grey pixel replaced by a draw of 0 or 1 that has the grey value as probability; for `pyrovi.fit(transform=…)`.

    Data whose `likelihood` is not Bernoulli's stay as they are.
    """
    if data.get("likelihood", "bernoulli") != "bernoulli" or not data["images"].is_floating_point():
        return dict(data)  # whole numbers are refused by the model, in words
    return {**data, "images": torch.bernoulli(data["images"])}


def load(source: str = "digits", preset: str = "D0", split: str = "train", folder: str | None = None) -> dict[str, Any]:
    """Images in [0, 1], and the hidden layers of one of the `PRESETS`.

    Args:
        source: `"digits"`, `"mnist"` or `"fashion_mnist"`.
        preset: `"D0"` or `"D1"`.
        split: `"train"` or `"test"`.
        folder: Of the IDX files; see `pyrovi.data.mnist`.
    """
    return {"images": data.pixels(source, split, folder).images, "widths": preset_widths(preset)}


def preset_widths(name: str) -> tuple[int, ...]:
    if name not in PRESETS:
        raise SettingsError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]


def exact(
    images: ArrayLike,
    latent: int = 2,
    widths: tuple[int, ...] = (512, 256),
    nonlinearity: str = "relu",
    likelihood: str = "bernoulli",
    noise: float | None = None,
    weight: ArrayLike | None = None,
) -> ExactPosterior | None:
    """Probabilistic PCA at its largest likelihood; None where the decoder is not linear or the pixels not Gaussian.

    Its `log_evidence` is that largest log likelihood, which the ELBO reaches where the encoder is linear too; its posterior is that
    of z at the maximum. There, any rotation of the codes does as well: axes are principal ones in falling order, each with its
    largest loading above 0, or, given the `weight` of a fitted decoder, shape `(k, d)`, the rotation that is nearest to it.

    References:
        Probabilistic principal component analysis (Tipping & Bishop, 1999) | https://doi.org/10.1111/1467-9868.00196
    """
    if widths or likelihood != "gaussian":
        return None
    x = np.asarray(images, dtype=float)
    return principal_components(x - x.mean(0), latent, noise, weight)


def principal_components(
    centred: NDArray[np.float64], latent: int, noise: float | None, weight: ArrayLike | None = None
) -> ExactPosterior:
    """`exact` for data `(n, d)` from which their maximum-likelihood means have been taken."""
    from scipy import stats  # here, because it takes as long to import as Pyro

    n, d = centred.shape
    if not 0 < latent < d:
        raise DataError(f"latent must be from 1 to {d - 1}, less than the {d} pixels; got {latent}")
    values, vectors = np.linalg.eigh(centred.T @ centred / n)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    variance = float(values[latent:].mean()) if noise is None else noise**2
    if variance <= 1e-12 * values[0]:
        raise DataError(f"{latent} components leave no noise at all, so the likelihood has no maximum; use fewer, or give noise")
    kept = values[:latent].clip(min=variance)  # a component below the noise is left out
    loadings = vectors[:, :latent] * np.sqrt(kept - variance)
    loadings *= np.sign(loadings[np.abs(loadings).argmax(0), np.arange(latent)] + 1e-300)
    if weight is not None:
        u, _, v = np.linalg.svd(loadings.T @ np.asarray(weight, dtype=float).T)
        loadings = loadings @ u @ v
    cov = variance * np.linalg.inv(loadings.T @ loadings + variance * np.eye(latent))
    mean = centred @ loadings @ cov / variance
    log_det = np.log(kept).sum() + (d - latent) * math.log(variance)
    square = (values[:latent] / kept).sum() + values[latent:].sum() / variance
    sd = np.broadcast_to(np.sqrt(np.diag(cov)), mean.shape)
    return ExactPosterior(
        marginals={"z": stats.norm(mean, sd)},
        log_evidence=float(-0.5 * n * (d * math.log(2 * math.pi) + log_det + square)),
        covariance={"z": cov},
        joint=lambda size, rng: {"z": mean + rng.multivariate_normal(np.zeros(latent), cov, size=(size, n))},
    )
