"""Bayesian softmax regression on images (D1), with hidden layers as an option.

    weight ~ Normal(0, prior_scale), bias ~ Normal(0, prior_scale), in every layer
    label_i ~ Categorical(softmax(f(x_i))), image i = 1..n

f is linear, or a perceptron with those weights. With `latent_bias=False` the biases are parameters.

From "Variational Inference in TensorFlow" (Danijar Hafner, 2018).

Exact: none. NUTS on a small problem is the reference.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine

from pyrovi import data
from pyrovi.errors import DataError
from pyrovi.inputs import to_tensors
from pyrovi.networks import bayesian_perceptron
from pyrovi.result import Fit
from pyrovi.scores import Scores, scores

__all__ = ["Axes", "evaluate", "load", "model", "principal_axes", "probabilities"]


def model(
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    classes: int = 10,
    widths: tuple[int, ...] = (),
    prior_scale: float = 1.0,
    latent_bias: bool = True,
    nonlinearity: str = "relu",
) -> None:
    """Observe `labels`, shape `(n,)`, given `images`, an image a row of any shape.

    Args:
        images: Pixels, shape `(n, …)`; what follows n is flattened.
        labels: Classes from 0 to `classes - 1`; None to predict them.
        classes: How many there are.
        widths: The hidden layers; none for softmax regression.
        prior_scale: The prior sd of every weight, and of every bias.
        latent_bias: Whether biases have that prior; otherwise they are parameters, fitted without one.
        nonlinearity: Between layers; a name in `pyrovi.networks.ACTIVATIONS`.
    """
    layers = (*widths, classes)
    logits = bayesian_perceptron(
        images.flatten(1), "net", layers, prior_scale=prior_scale, latent_bias=latent_bias, nonlinearity=nonlinearity
    )
    with pyro.plate("image", len(images)):
        pyro.sample("label", dist.Categorical(logits=logits), obs=labels)


def load(
    source: str = "digits", split: str = "train", folder: str | os.PathLike[str] | None = None, components: int | None = None
) -> dict[str, Any]:
    """Images in [0, 1] and their labels.

    Args:
        source: `"digits"`, `"mnist"` or `"fashion_mnist"`.
        split: `"train"` or `"test"`.
        folder: Of the IDX files; see `pyrovi.data.mnist`.
        components: Give the images by their coordinates on that many principal axes of the training images, see `principal_axes`,
            instead of by their pixels.
    """
    images, labels = data.pixels(source, split, folder)
    if components is not None:
        train = images if split == "train" else data.pixels(source, "train", folder).images
        images = principal_axes(train, components).transform(images)
    return {"images": images, "labels": labels}


@dataclass(frozen=True)
class Axes:
    """Principal axes of images: `mean`, shape `(d,)`, and `axes`, shape `(d, k)`, orthonormal, in falling order of variance."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]

    def transform(self, images: ArrayLike) -> NDArray[np.float32]:
        """Coordinates `(m, k)` of images `(m, d)`."""
        return ((np.asarray(images, dtype=float) - self.mean) @ self.axes).astype(np.float32)


def principal_axes(images: ArrayLike, k: int) -> Axes:
    """The first `k` principal axes of images `(n, d)`, in whose coordinates a mean-field guide loses less.

    Pixels go together, so their weights do in the posterior, which a mean-field guide cannot say. In these coordinates, which go
    together no more, it comes closer. With all d axes the model is that of the centred pixels, since the prior has no direction.
    """
    x = np.asarray(images, dtype=float)
    if not 0 < k <= x.shape[1]:
        raise DataError(f"there are {x.shape[1]} principal axes of these images; got k = {k}")
    mean = x.mean(0)
    _, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    return Axes(mean, vectors[:, ::-1][:, :k])


def probabilities(fit: Fit, images: Any, draws: int = 100, *, seed: int | None = None) -> NDArray[np.float64]:
    """The predictive probabilities of the classes of images `(m, …)`: softmax, averaged over draws of the weights; `(m, classes)`.

    Args:
        fit: Of this model, with any guide.
        images: New images.
        draws: Of the weights.
        seed: The fit's own when None.
    """
    with fit.loaded(draws, seed) as problem, torch.no_grad():
        given = {**problem.data, **to_tensors({"images": images}, problem.dtype, problem.device), "labels": None}
        mean: Any = 0.0
        for _ in range(draws):
            weights = poutine.trace(problem.guide).get_trace(**problem.data)
            trace = poutine.trace(poutine.replay(problem.model, trace=weights)).get_trace(**given)
            mean = mean + trace.nodes["label"]["fn"].probs.double() / draws
    return np.asarray(mean.cpu())


def evaluate(fit: Fit, images: Any, labels: ArrayLike, draws: int = 100, *, seed: int | None = None) -> Scores:
    """Accuracy, log score (nats an image) and calibration error of `probabilities` on images `(m, …)` of known labels `(m,)`."""
    return scores(probabilities(fit, images, draws, seed=seed), labels)
