"""A mixture of two Gaussians as a target density (D0): no data, and q is to look like p.

    x ~ 0.3 Normal(-3, 1) + 0.7 Normal(2, 1.5)

From a TensorFlow Probability tutorial on variational inference. The target is normalised, so −ELBO is KL(q‖p).

Exact: log Z = 0, and the target itself. A single Gaussian cannot be it: its optimum is Normal(0.7101, 2.4205), at KL 0.17871, by
quadrature. A mixture of two Gaussians holds the target; a flow comes close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi._exact import ExactPosterior
from pyrovi.errors import DataError

__all__ = ["Mixture", "exact", "load", "model"]


def model(weights: torch.Tensor, means: torch.Tensor, sds: torch.Tensor) -> None:
    """Draw `x` from the mixture of `Normal(means[k], sds[k])` with probabilities `weights[k]`, all of shape `(K,)`."""
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, sds)))


def load() -> dict[str, NDArray[np.float64]]:
    """The document's target."""
    return {"weights": np.array([0.3, 0.7]), "means": np.array([-3.0, 2.0]), "sds": np.array([1.0, 1.5])}


def exact(weights: ArrayLike, means: ArrayLike, sds: ArrayLike) -> ExactPosterior:
    """The target, which is its own posterior, with log Z = 0.

    >>> exact(**load()).marginals["x"].mean()
    0.5
    """
    return ExactPosterior(marginals={"x": Mixture(weights, means, sds)}, log_evidence=0.0)


class Mixture:
    """A mixture of Normals, with the methods of a frozen SciPy distribution that `ExactPosterior` wants.

    Args:
        weights: Shape `(K,)`; made to sum to 1.
        means: Shape `(K,)`.
        sds: Shape `(K,)`.

    Raises:
        DataError: The three differ in length, or a weight or an sd is not positive.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, sds: ArrayLike) -> None:
        w, self._m, self._s = (np.asarray(a, dtype=float) for a in (weights, means, sds))
        if not (w.ndim == 1 and w.shape == self._m.shape == self._s.shape):
            raise DataError(f"weights, means and sds must have one length; got {w.shape}, {self._m.shape} and {self._s.shape}")
        if not (w.min() > 0 and self._s.min() > 0):
            raise DataError("weights and sds must be above 0")
        self._w = w / w.sum()

    def _each(self, x: ArrayLike) -> NDArray[np.float64]:
        return np.asarray((np.asarray(x, dtype=float)[..., None] - self._m) / self._s)

    def pdf(self, x: ArrayLike) -> NDArray[np.float64]:
        return np.asarray((np.exp(-0.5 * self._each(x) ** 2) / (self._s * np.sqrt(2 * np.pi))) @ self._w)

    def cdf(self, x: ArrayLike) -> NDArray[np.float64]:
        from scipy.special import ndtr

        return np.asarray(ndtr(self._each(x)) @ self._w)

    def ppf(self, p: ArrayLike) -> NDArray[np.float64]:
        """By bisection between the least and the largest of the components' own quantiles, to rounding."""
        from scipy.special import ndtri

        p = np.asarray(p, dtype=float)
        ends = self._m + self._s * ndtri(p)[..., None]
        low, high = ends.min(-1), ends.max(-1)
        for _ in range(100):
            middle = (low + high) / 2
            below = self.cdf(middle) < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray((low + high) / 2)

    def mean(self) -> float:
        return float(self._w @ self._m)

    def std(self) -> float:
        return float(np.sqrt(self._w @ (self._s**2 + self._m**2) - self.mean() ** 2))

    def rvs(self, size: int | Sequence[int] = 1, random_state: Any = None) -> NDArray[np.float64]:
        rng = np.random.default_rng(random_state)
        k = rng.choice(len(self._w), size=size, p=self._w)
        return np.asarray(rng.normal(self._m[k], self._s[k]))
