"""How good predicted class probabilities are: accuracy, log score, calibration."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import DataError

__all__ = ["Scores", "accuracy", "calibration_error", "log_score", "scores"]


class Scores(NamedTuple):
    """Of predicted class probabilities: the share of cases right, the mean log probability of the truth, in nats, and the ECE."""

    accuracy: float
    log_score: float
    calibration_error: float


def scores(probabilities: ArrayLike, labels: ArrayLike) -> Scores:
    """All three, for probabilities `(n, classes)` and true labels `(n,)`."""
    p, y = _checked(probabilities, labels)
    return Scores(accuracy(p, y), log_score(p, y), calibration_error(p, y))


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The share of cases whose likeliest class is the true one.

    >>> accuracy([[0.9, 0.1], [0.6, 0.4]], [0, 1])
    0.5
    """
    p, y = _checked(probabilities, labels)
    return float((p.argmax(1) == y).mean())


def log_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean log probability of the true class, in nats: 0 at best, -log(classes) for even guesses."""
    p, y = _checked(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(np.log(p[np.arange(len(y)), y]).mean())


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """The expected calibration error (ECE): the gap between confidence and accuracy, averaged over cases in bins of equal width.

    Confidence is the probability of the likeliest class. Of a perfectly calibrated forecast of few cases it is above 0 by chance.

    References:
        On calibration of modern neural networks (Guo et al., 2017) | https://arxiv.org/abs/1706.04599

    >>> round(calibration_error([[0.8, 0.2]] * 5, [0, 0, 0, 0, 1]), 12)
    0.0
    """
    p, y = _checked(probabilities, labels)
    confidence, right = p.max(1), p.argmax(1) == y
    found = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(found, right - confidence, bins)  # the sum over a bin's cases
    return float(np.abs(gap).sum() / len(y))


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, y = np.asarray(probabilities, dtype=float), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(y):
        raise DataError(f"scores need probabilities (n, classes) and labels (n,); got {p.shape} and {y.shape}")
    if y.min() < 0 or y.max() >= p.shape[1] or (y != y.astype(int)).any():
        raise DataError(f"labels must be whole numbers from 0 to {p.shape[1] - 1}; got {y.min()} to {y.max()}")
    return p, y.astype(int)
