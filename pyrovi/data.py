"""Data sets as NumPy arrays: those that come with pyrovi, sets of images, and tables of the user's own."""

from __future__ import annotations

import os
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrovi import idx
from pyrovi.errors import SettingsError, nearest
from pyrovi.tabular import Scaling, Table, table

__all__ = [
    "Digits",
    "Images",
    "Pixels",
    "Nile",
    "Regression",
    "Scaling",
    "Table",
    "Vink",
    "diabetes",
    "digits",
    "fashion_mnist",
    "mnist",
    "pixels",
    "nile",
    "table",
    "vink",
]

Array = NDArray[np.float64]


class Digits(NamedTuple):
    """`images`: `(n, 8, 8)` counts from 0 to 16. `labels`: `(n,)` digits."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Images(NamedTuple):
    """`images`: `(n, 28, 28)` grey values from 0 to 255. `labels`: `(n,)` classes from 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Nile(NamedTuple):
    """`years`: `(100,)`, 1871 to 1970. `volume`: `(100,)` annual flows in 10⁸ m³."""

    years: NDArray[np.int64]
    volume: Array


class Pixels(NamedTuple):
    """`images`: `(n, d)`, a row an image, from 0 to 1. `labels`: `(n,)` classes from 0 to 9."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


class Regression(NamedTuple):
    """`X`: `(n, d)` predictors. `y`: `(n,)` outcomes. `features`: the d names."""

    X: Array
    y: Array
    features: list[str]


class Vink(NamedTuple):
    """`x`, `y`: `(n,)`, sorted by x; y is standardised by `mean` and `sd`.

    `expected`, `noise`: the true mean and sd of y given x, `(n,)`, in y's standardised units.
    """

    x: Array
    y: Array
    mean: float
    sd: float
    expected: Array
    noise: Array


def digits(label: int | None = None) -> Digits:
    """The 1,797 handwritten digits of 8 x 8 pixels, or those of one label.

    Source: Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998), UCI Machine Learning Repository.

    >>> digits(0).images.shape
    (178, 8, 8)
    """
    arrays = _read("digits")
    keep = slice(None) if label is None else arrays["labels"] == label
    return Digits(arrays["images"][keep], arrays["labels"][keep])


def diabetes(*, standardised: bool = True) -> Regression:
    """442 diabetes patients: ten predictors and the disease's progression a year later.

    Source: Least Angle Regression (Efron, Hastie, Johnstone & Tibshirani, 2004).

    Args:
        standardised: Give predictors and outcome mean 0 and sd 1, so that no intercept is needed.
    """
    arrays = _read("diabetes")
    X, y = arrays["X"], arrays["y"]
    if standardised:
        X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    return Regression(X, y, arrays["features"].tolist())


def nile() -> Nile:
    """The annual flow of the Nile at Aswan, 1871 to 1970.

    Source: The problem of the Nile: conditional solution to a changepoint problem (Cobb, 1978).

    >>> float(nile().volume.mean())
    919.35
    """
    arrays = _read("nile")
    return Nile(arrays["years"].astype(np.int64), arrays["volume"].astype(float))


def vink(n: int = 150, seed: int = 43, standardise_by: Vink | None = None) -> Vink:
    """Wave-shaped data whose noise grows with x, made as in "Variational inference from scratch" (Ritchie Vink, 2019).

        x = 80 · Uniform(0, 1) − 20,   y = x (1 + sin x) / 8 + 5 + 3 (1/4 + ((x + 20) / 80)²) · Normal(0, 1)

    The defaults give the document's 150 points.

    Args:
        n: The number of points.
        seed: NumPy's; another one gives fresh data.
        standardise_by: Data whose mean and sd the outcomes are standardised by, as fresh data are by the training set's; their
            own when None.

    >>> train = vink()
    >>> fresh = vink(seed=1, standardise_by=train)
    >>> fresh.mean == train.mean
    True
    """
    rng = np.random.RandomState(seed)
    x = 80 * rng.rand(n) - 20
    noise = 3 * (0.25 + ((x + 20) / 80) ** 2)
    expected = 0.125 * x * (1 + np.sin(x)) + 5
    y = expected + rng.randn(n) * noise
    mean, sd = (float(y.mean()), float(y.std())) if standardise_by is None else (standardise_by.mean, standardise_by.sd)
    order = np.argsort(x)
    return Vink(x[order], (y[order] - mean) / sd, mean, sd, (expected[order] - mean) / sd, noise[order] / sd)


def mnist(split: str = "train", folder: str | os.PathLike[str] | None = None) -> Images:
    """Handwritten digits, 60,000 to train on or 10,000 to test on.

    Args:
        split: `"train"` or `"test"`.
        folder: The folder of the set's IDX files, gzipped or not. When None, the folder `mnist` in the one that the environment
            variable PYROVI_DATA names, or else the files are fetched (11 MB), checked by SHA-256 and kept in the user's cache.

    Raises:
        DataError: A file is missing, damaged or of the wrong shape, or cannot be fetched.

    References:
        The MNIST database of handwritten digits (LeCun, Cortes & Burges, 1998) | http://yann.lecun.com/exdb/mnist
    """
    return Images(*idx.load("mnist", split, folder))


def fashion_mnist(split: str = "train", folder: str | os.PathLike[str] | None = None) -> Images:
    """Articles of clothing in ten classes, in MNIST's format and sizes; the arguments are `mnist`'s, the folder `fashion_mnist`.

    References:
        Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms (Xiao, Rasul & Vollgraf, 2017)
        | https://arxiv.org/abs/1708.07747
    """
    return Images(*idx.load("fashion_mnist", split, folder))


def pixels(source: str = "digits", split: str = "train", folder: str | os.PathLike[str] | None = None) -> Pixels:
    """Images as rows of pixels from 0 to 1, as networks take them.

    Args:
        source: `"digits"`, those of 8 x 8 pixels that come with pyrovi, `"mnist"` or `"fashion_mnist"`.
        split: `"train"` or `"test"`; of the digits the first 1,500 and the last 297.
        folder: As in `mnist`.
    """
    sources: dict[str, Any] = {"digits": _digits, "mnist": mnist, "fashion_mnist": fashion_mnist}
    if source not in sources:
        raise SettingsError(f"unknown source {source!r}; {nearest(source, sources)}")
    images, labels = sources[source](split, folder)
    scale = np.float32(16 if source == "digits" else 255)
    return Pixels(images.reshape(len(images), -1) / scale, labels.astype(np.int64))


def _digits(split: str, _: Any) -> Digits:
    if split not in idx.FILES:
        raise SettingsError(f"unknown split {split!r}; {nearest(split, idx.FILES)}")
    images, labels = digits()
    rows = slice(None, 1_500) if split == "train" else slice(1_500, None)
    return Digits(images[rows], labels[rows])


def _read(name: str) -> dict[str, Any]:
    with resources.as_file(resources.files("pyrovi") / "datasets" / f"{name}.npz") as path, np.load(path) as arrays:
        return dict(arrays)
