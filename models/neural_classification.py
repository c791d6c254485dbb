"""A neural network that classifies images, as maximum likelihood (D1).

    label_i ~ Categorical(softmax(f(x_i))), image i = 1..n                   likelihood="categorical"
    label_i ~ Normal(f(x_i), noise), one number a class, one-hot             likelihood="gaussian"

f is a perceptron whose weights are parameters of the model, and the guide is empty: −ELBO is the cross entropy, or with the noise 1
half the squared error plus a constant, summed over images.

From "Variational Inference in TensorFlow" (Danijar Hafner, 2018).

Exact: none; the same network trained in plain PyTorch has the same loss and gradients, up to the constant and the mean's 1/n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi.errors import DataError, SettingsError, nearest
from pyrovi.networks import perceptron
from pyrovi.result import Fit

__all__ = ["LIKELIHOODS", "accuracy", "load", "model", "one_hot"]

LIKELIHOODS = ("categorical", "gaussian")


def model(
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    classes: int = 10,
    widths: tuple[int, ...] = (100,),
    likelihood: str = "categorical",
    noise: float = 1.0,
    nonlinearity: str = "relu",
) -> None:
    """Observe `labels` given `images`, an image a row of any shape.

    Args:
        images: Pixels, shape `(n, …)`; what follows n is flattened.
        labels: Classes from 0 to `classes - 1`, shape `(n,)`; for `"gaussian"` one-hot, shape `(n, classes)`. None to predict them.
        classes: How many there are.
        widths: The hidden layers.
        likelihood: One of `LIKELIHOODS`.
        noise: For `"gaussian"`, the sd about the network's outputs.
        nonlinearity: Between layers; a name in `pyrovi.networks.ACTIVATIONS`.
    """
    out = perceptron(images.flatten(1), "net", (*widths, classes), nonlinearity=nonlinearity)
    with pyro.plate("image", len(images)):
        output = pyro.deterministic("output", out, event_dim=1)
        pyro.sample("label", _labelled(output, likelihood, noise, labels), obs=labels)


def _labelled(output: torch.Tensor, likelihood: str, noise: float, labels: torch.Tensor | None) -> dist.TorchDistribution:
    if likelihood == "categorical":
        return dist.Categorical(logits=output)
    if likelihood == "gaussian":
        if labels is not None and labels.shape != output.shape:
            raise DataError(
                f"likelihood='gaussian' wants one-hot labels of shape {tuple(output.shape)}; got {tuple(labels.shape)}: "
                "pass pyrovi.models.neural_classification.one_hot(labels)"
            )
        return dist.Normal(output, noise).to_event(1)
    raise SettingsError(f"unknown likelihood {likelihood!r}; {nearest(likelihood, LIKELIHOODS)}")


def load(likelihood: str = "categorical", train: bool = True) -> dict[str, Any]:
    """The 1,797 digits of 8 x 8 pixels, scaled to [0, 1]: the first 1,437 to train on, or the last 360 to test on."""
    digits = data.digits()
    part = slice(0, 1_437) if train else slice(1_437, None)
    images, labels = digits.images[part].reshape(-1, 64) / 16.0, digits.labels[part].astype(np.int64)
    if likelihood == "categorical":
        return {"images": images, "labels": labels}
    return {"images": images, "labels": one_hot(labels), "likelihood": likelihood}


def one_hot(labels: ArrayLike, classes: int = 10) -> NDArray[np.float64]:
    """A row of zeros with a one at its class for every label, shape `(n, classes)`.

    >>> one_hot([2, 0], classes=3)
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    return np.eye(classes)[np.asarray(labels, dtype=int)]


def accuracy(fit: Fit, images: ArrayLike, labels: ArrayLike) -> float:
    """The share of images whose largest output is at their label (classes, shape `(n,)`), of either likelihood."""
    output = fit.predictive(1, data={"images": images})["output"][0]
    return float(np.mean(output.argmax(-1).cpu().numpy() == np.asarray(labels)))
