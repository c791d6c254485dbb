"""Bayesian neural network for regression (D0, D4, D0's exercise 2).

    weight ~ Normal(0, prior_scale), bias ~ Normal(0, prior_scale), in every layer
    y_i ~ Normal(f(x_i), noise), i = 1..n

f is a perceptron with those weights. With `noise=None` it is unknown: noise ~ LogNormal(noise_location, noise_spread).

From a TensorFlow Probability tutorial on variational inference and from "Variational inference from scratch" (Ritchie Vink, 2019).

Exact: only without hidden layers, where it is Bayesian linear regression. Elsewhere NUTS on a small network is the reference: the
weights can be permuted and rescaled without changing f, so it is the predictions that are compared, not the weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi._exact import ExactPosterior
from pyrovi.errors import SettingsError, nearest
from pyrovi.models import linear_regression
from pyrovi.networks import bayesian_perceptron
from pyrovi.result import Fit

__all__ = ["DOCUMENTS", "Uncertainty", "exact", "load", "model", "uncertainty"]

DOCUMENTS: dict[str, dict[str, Any]] = {
    "D0": {"widths": (20,), "prior_scale": 1.0, "noise": 1.0},
    "D4": {"widths": (20, 20), "prior_scale": 1.0, "noise": 0.1},
}
"""The networks of the two documents. Neither noise is right: the data of D0 have 0.3, those of D4 from 0.17 to 0.83."""

NOISE = 1.0


def model(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    widths: tuple[int, ...] = (20,),
    prior_scale: float = 1.0,
    noise: float | None = NOISE,
    noise_location: float = -1.0,
    noise_spread: float = 1.0,
    nonlinearity: str = "relu",
) -> None:
    """Observe `y`, shape `(n,)`, given `x`, shape `(n,)` or `(n, d)`.

    Args:
        x: Predictors.
        y: Outcomes; None to predict them.
        widths: The hidden layers.
        prior_scale: The prior sd of every weight and bias.
        noise: The sd of y about f(x), or None for an unknown one.
        noise_location: Of the unknown noise's logarithm. The default, with `noise_spread`, puts 95% of the prior between 0.05 and
            2.6, wide for an outcome of sd 1.
        noise_spread: Likewise.
        nonlinearity: Between layers; a name in `pyrovi.networks.ACTIVATIONS`.
    """
    sd = noise if noise is not None else pyro.sample("noise", dist.LogNormal(noise_location, noise_spread))
    x = x if x.dim() > 1 else x[:, None]
    out = bayesian_perceptron(x, "net", (*widths, 1), prior_scale=prior_scale, nonlinearity=nonlinearity)
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", out.squeeze(-1))
        pyro.sample("y", dist.Normal(mean, sd), obs=y)


def load(document: str = "D0") -> dict[str, Any]:
    """The data and the network of a document.

    D0: 100 points of a sine with noise 0.3, on [−3, 3]. D4: 150 points whose noise grows with x (`pyrovi.data.vink`).
    The guides start where `pyrovi.guides.bayesian_neural_network.STARTS` says.
    """
    if document not in DOCUMENTS:
        raise SettingsError(f"unknown document {document!r}; {nearest(document, DOCUMENTS)}")
    if document == "D4":
        points = data.vink()
        return {"x": points.x, "y": points.y, **DOCUMENTS["D4"]}
    x = np.linspace(-3.0, 3.0, 100)
    return {"x": x, "y": np.sin(x) + 0.3 * np.random.RandomState(42).randn(100), **DOCUMENTS["D0"]}


class Uncertainty(NamedTuple):
    """Predictions, each of shape `(n,)`: the mean, and the sds that the weights (epistemic) and the noise (aleatoric) give."""

    mean: NDArray[np.float64]
    epistemic: NDArray[np.float64]
    aleatoric: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """The predictive sd: variances add."""
        return np.hypot(self.epistemic, self.aleatoric)


def uncertainty(fit: Fit, x: ArrayLike, draws: int = 1_000, *, seed: int | None = None) -> Uncertainty:
    """What a fit predicts at `x`, and why it is not sure.

    Epistemic uncertainty is the sd of f(x) over draws of the weights: more data would lower it. Aleatoric uncertainty is the
    noise (its root mean square where it is unknown): more data would not.

    Args:
        fit: Of this model, with any guide.
        x: New predictors, shape `(n,)` or `(n, d)`.
        draws: Of the weights; 1,000 leave an error of 2% in an sd.
        seed: The fit's own when None.

    References:
        What uncertainties do we need in Bayesian deep learning for computer vision? (Kendall & Gal, 2017) |
        https://arxiv.org/abs/1703.04977
    """
    mean = fit.predictive(draws, data={"x": x}, seed=seed)["mean"].double().cpu().numpy()
    noise = fit.problem.data.get("noise", NOISE) if fit.problem is not None else NOISE
    if noise is None:
        noise = fit.posterior(draws, seed=seed)["noise"].double().square().mean().sqrt().item()
    return Uncertainty(mean.mean(0), mean.std(0, ddof=1), np.full(mean.shape[1], float(noise)))


def exact(
    x: ArrayLike,
    y: ArrayLike,
    widths: tuple[int, ...] = (20,),
    prior_scale: float = 1.0,
    noise: float | None = NOISE,
    noise_location: float = -1.0,
    noise_spread: float = 1.0,
    nonlinearity: str = "relu",
) -> ExactPosterior | None:
    """The posterior of the network without hidden layers and with known noise, a linear regression; None for any other."""
    if widths or noise is None:
        return None
    x = np.asarray(x, dtype=float)
    X = np.column_stack([x, np.ones(len(x))])
    line = linear_regression.exact(X, y, prior_scale, noise)
    beta, shapes = line.marginals["beta"], {"net.0.weight": (-1, 1), "net.0.bias": (1,)}
    parts = {"net.0.weight": slice(None, -1), "net.0.bias": slice(-1, None)}

    def joint(n: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        draws = rng.multivariate_normal(beta.mean(), line.covariance["beta"], size=n)
        return {name: draws[:, part].reshape(n, *shapes[name]) for name, part in parts.items()}

    from scipy import stats  # here, because it takes as long to import as Pyro

    return ExactPosterior(
        marginals={n: stats.norm(beta.mean()[p].reshape(shapes[n]), beta.std()[p].reshape(shapes[n])) for n, p in parts.items()},
        log_evidence=line.log_evidence,
        predictive=line.predictive,
        joint=joint,
    )
