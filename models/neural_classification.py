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
from pyrovi.models.neural_regression import outcome
from pyrovi.networks import perceptron
from pyrovi.result import Fit

__all__ = ["LIKELIHOODS", "accuracy", "classify", "load", "model", "one_hot"]

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
        pyro.sample("label", _labelled(out, likelihood, noise, labels), obs=labels)


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


def load(
    likelihood: str = "categorical", source: str = "digits", split: str = "train", folder: str | None = None
) -> dict[str, Any]:
    """Images in [0, 1] and their labels, one-hot for `likelihood="gaussian"`.

    Args:
        likelihood: The model's.
        source: `"digits"`, `"mnist"` or `"fashion_mnist"`.
        split: `"train"` or `"test"`.
        folder: Of the IDX files; see `pyrovi.data.mnist`.
    """
    images, labels = data.pixels(source, split, folder)
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


def classify(fit: Fit, images: ArrayLike) -> NDArray[np.int64]:
    """The class whose output is largest, shape `(n,)`, for new images and either likelihood."""
    label = outcome(fit, "label", images=images, labels=None)
    output = label.logits if isinstance(label, dist.Categorical) else label.mean
    classes: NDArray[np.int64] = output.argmax(-1).cpu().numpy()
    return classes


def accuracy(fit: Fit, images: ArrayLike, labels: ArrayLike) -> float:
    """The share of images put into their class; `labels` are classes, shape `(n,)`, for either likelihood."""
    return float(np.mean(classify(fit, images) == np.asarray(labels)))
