"""Pixel intensities of the handwritten digit zero (D2).

    theta_j ~ Gamma(weight · prior_image_j, weight), pixel j = 1..64
    x_ij ~ Poisson(theta_j), image i = 1..m

From a variational-inference tutorial in JAX on the 8 x 8 digits. The prior is worth `weight` images that look like `prior_image`.

Exact: theta_j | x ~ Gamma(weight · prior_image_j + Σ_i x_ij, weight + m), pixels independent. It says how well the *mean* image is
known; how images differ from it is the predictive, a negative binomial.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi._exact import ExactPosterior

__all__ = ["exact", "load", "model", "ring"]

FLOOR = 0.05
"""The least prior intensity of a pixel. Sixteen pixels are 0 in all 178 images; a shape of 0 there would be improper."""


def model(x: torch.Tensor, prior_image: torch.Tensor, weight: float = 2.0) -> None:
    """Observe `x`, an `(m, 64)` matrix of counts; `prior_image` has shape `(64,)`, in counts, above 0."""
    with pyro.plate("pixel", x.shape[-1], dim=-1):
        theta = pyro.sample("theta", dist.Gamma(weight * prior_image, weight))
        with pyro.plate("image", len(x), dim=-2):
            pyro.sample("x", dist.Poisson(theta), obs=x)


def load(m: int = 178) -> dict[str, NDArray[np.float64]]:
    """The first `m` of the 178 images of zero, and the prior image."""
    return {"x": data.digits(0).images[:m].reshape(-1, 64).astype(float), "prior_image": ring()}


def ring() -> NDArray[np.float64]:
    """The prior image, shape `(64,)`: a smooth upright ring of peak intensity 13 about the centre, on a floor of 0.05.

    A zero as one might draw it before seeing the data: an ellipse with half axes of 2.2 and 2.6 pixels and a pen about
    two pixels wide. The document leaves it to a picture.
    """
    row, column = np.mgrid[:8, :8] - 3.5
    radius = np.hypot(row / 1.2, column)
    image: NDArray[np.float64] = FLOOR + 13 * np.exp(-0.5 * ((radius - 2.2) / 0.8) ** 2)
    return image.ravel()


def exact(x: ArrayLike, prior_image: ArrayLike, weight: float = 2.0) -> ExactPosterior:
    """The conjugate posterior, for any counts `(m, d)`, prior image `(d,)` and prior weight.

    References:
        Bayesian Data Analysis, section 2.6 (Gelman et al., 2013)
    """
    from scipy import stats  # here, because it takes as long to import as Pyro
    from scipy.special import gammaln

    x = np.asarray(x, dtype=float)
    a, m, total = weight * np.asarray(prior_image, dtype=float), len(x), x.sum(0)
    shape, rate = a + total, weight + m
    by_pixel = a * np.log(weight) - gammaln(a) + gammaln(shape) - shape * np.log(rate)
    return ExactPosterior(
        marginals={"theta": stats.gamma(shape, scale=1 / rate)},
        log_evidence=float(by_pixel.sum() - gammaln(x + 1).sum()),
        predictive={"x": stats.nbinom(shape, rate / (rate + 1))},
    )
