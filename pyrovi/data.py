"""The data sets that come with pyrovi, as NumPy arrays."""

from __future__ import annotations

from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Digits", "Regression", "diabetes", "digits"]

Array = NDArray[np.float64]


class Digits(NamedTuple):
    """`images`: `(n, 8, 8)` counts from 0 to 16. `labels`: `(n,)` digits."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Regression(NamedTuple):
    """`X`: `(n, d)` predictors. `y`: `(n,)` outcomes. `features`: the d names."""

    X: Array
    y: Array
    features: list[str]


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


def _read(name: str) -> dict[str, Any]:
    with resources.as_file(resources.files("pyrovi") / "datasets" / f"{name}.npz") as path, np.load(path) as arrays:
        return dict(arrays)
