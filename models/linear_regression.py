"""Bayesian linear regression (D4, the homoscedastic case), the noise known or not.

    beta_j ~ Normal(0, prior_scale), feature j = 1..d
    y_i ~ Normal(x_i · beta, noise), i = 1..n

With `noise=None` it is unknown and the prior is the conjugate Normal-inverse-Gamma:

    variance ~ InverseGamma(shape, rate)
    beta_j | variance ~ Normal(0, prior_scale · √variance)
    y_i ~ Normal(x_i · beta, √variance)

From "Variational inference from scratch" (Ritchie Vink, 2019). The data are standardised, so there is no intercept.

Exact: beta | y is Normal with precision XᵀX/noise² + I/prior_scale² (a Student t where the noise is unknown). A mean-field guide
cannot hold its correlations: at its optimum the variances are 1/diag(precision), below the true ones.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi._exact import ExactPosterior

__all__ = ["exact", "load", "mean_field_optimum", "model"]


def model(
    X: torch.Tensor,
    y: torch.Tensor | None = None,
    prior_scale: float = 1.0,
    noise: float | None = 0.7,
    shape: float = 2.0,
    rate: float = 1.0,
) -> None:
    """Observe `y`, shape `(n,)`, given `X`, shape `(n, d)`.

    The defaults suit standardised data: coefficients of order one, and noise of 0.7, which is what an R² of about a
    half leaves. With `noise=None`, `shape` and `rate` are those of the variance's prior, of mean 1.
    """
    scale = noise if noise is not None else pyro.sample("variance", dist.InverseGamma(shape, rate)).sqrt()
    with pyro.plate("feature", X.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, prior_scale if noise is not None else prior_scale * scale))
    mean = beta @ X.T
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def load() -> dict[str, NDArray[np.float64]]:
    """The diabetes data: 442 patients, 10 predictors, all standardised."""
    X, y, _ = data.diabetes()
    return {"X": X, "y": y}


def exact(
    X: ArrayLike,
    y: ArrayLike,
    prior_scale: float = 1.0,
    noise: float | None = 0.7,
    shape: float = 2.0,
    rate: float = 1.0,
    X_new: ArrayLike | None = None,
) -> ExactPosterior:
    """The conjugate posterior, with full covariance; the predictive is for the rows of `X_new`, or of `X`.

    References:
        Pattern Recognition and Machine Learning, section 3.3 (Bishop, 2006), and for unknown noise
        Bayesian inference for the Gaussian and for linear regression (Murphy, 2012), Machine Learning: a Probabilistic
        Perspective, section 7.6.3
    """
    from scipy import stats  # here, because it takes as long to import as Pyro
    from scipy.special import gammaln

    X, y = np.asarray(X, dtype=float), np.asarray(y, dtype=float)
    rows = X if X_new is None else np.asarray(X_new, dtype=float)
    n, d = X.shape
    s2 = 1.0 if noise is None else noise**2  # with unknown noise all is relative to the variance
    precision = X.T @ X / s2 + np.eye(d) / prior_scale**2
    cov = np.linalg.inv(precision)
    mean = np.linalg.solve(precision, X.T @ y / s2)
    residual = y - X @ mean
    square = residual @ residual / s2 + mean @ mean / prior_scale**2
    # log |s2 I + prior_scale² X Xᵀ| by the determinant lemma
    log_det = n * math.log(s2) + 2 * d * math.log(prior_scale) + np.linalg.slogdet(precision)[1]
    spread = np.einsum("nd,de,ne->n", rows, cov, rows)

    if noise is not None:
        return ExactPosterior(
            marginals={"beta": stats.norm(mean, np.sqrt(np.diag(cov)))},
            log_evidence=-0.5 * (n * math.log(2 * math.pi) + log_det + square),
            predictive={"y": stats.norm(rows @ mean, np.sqrt(s2 + spread))},
            covariance={"beta": cov},
            joint=lambda size, rng: {"beta": rng.multivariate_normal(mean, cov, size=size)},
        )

    a, b = shape + n / 2, rate + square / 2
    t_scale = math.sqrt(b / a)

    def joint(size: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        variance = stats.invgamma(a, scale=b).rvs(size=size, random_state=rng)
        noise_free = rng.multivariate_normal(np.zeros(d), cov, size=size)
        return {"variance": variance, "beta": mean + np.sqrt(variance)[:, None] * noise_free}

    return ExactPosterior(
        marginals={"variance": stats.invgamma(a, scale=b), "beta": stats.t(2 * a, mean, t_scale * np.sqrt(np.diag(cov)))},
        log_evidence=float(
            -0.5 * (n * math.log(2 * math.pi) + log_det) + shape * math.log(rate) - a * math.log(b) + gammaln(a) - gammaln(shape)
        ),
        predictive={"y": stats.t(2 * a, rows @ mean, t_scale * np.sqrt(1 + spread))},
        covariance={"beta": cov * b / (a - 1)},
        joint=joint,
    )


def mean_field_optimum(
    X: ArrayLike, y: ArrayLike, prior_scale: float = 1.0, noise: float | None = 0.7, shape: float = 2.0, rate: float = 1.0
) -> float | None:
    """The largest ELBO of independent Normals, in nats: log evidence − ½ (Σ log P_jj − log |P|), P the posterior precision.

    None where the noise is unknown: the optimum has no closed form then.

    >>> round(mean_field_optimum(**load()), 2)
    -500.39
    """
    if noise is None:
        return None
    X = np.asarray(X, dtype=float)
    precision = X.T @ X / noise**2 + np.eye(X.shape[1]) / prior_scale**2
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return float(exact(X, y, prior_scale, noise).log_evidence - gap)
