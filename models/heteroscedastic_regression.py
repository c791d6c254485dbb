"""Regression whose noise depends on x (D4): one network for the mean, one for the log variance.

    y_i ~ Normal(μ(x_i), σ(x_i)), i = 1..n                                                        loss="likelihood"

With `prior_scale` every weight and bias of both networks ~ Normal(0, prior_scale), and the fit finds their posterior mode, or with
`latent_weights` their posterior; without, it is maximum likelihood. The document's own objective is another one:

    z_i ~ Normal(0, 1),   q(z_i) = Normal(μ(x_i), σ(x_i)),   y_i ~ Normal(μ(x_i), σ(x_i))            loss="document"

The same networks are in model and guide, and z, which is drawn, is not in the likelihood. log σ² cancels between likelihood and KL.

From "Variational inference from scratch" (Ritchie Vink, 2019).

Exact: where the networks can be anything, the likelihood's optimum is μ = E[y|x] and σ² = Var(y|x), the document's
σ⁴ = E[(y − μ)²|x] and μ = E[y|x]/(1 + σ²) (`document_optimum`). Its σ is no estimate of the noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi.errors import SettingsError, nearest
from pyrovi.models.neural_regression import outcome
from pyrovi.networks import bayesian_perceptron, perceptron
from pyrovi.result import Fit

__all__ = ["LOSSES", "coverage", "document_optimum", "load", "mean_and_sd", "model", "quantiles"]

LOSSES = ("likelihood", "document")


def model(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    widths: tuple[int, ...] = (20, 10),
    loss: str = "likelihood",
    prior_scale: float | None = None,
    latent_weights: bool = False,
    nonlinearity: str = "relu",
) -> None:
    """Observe `y`, shape `(n,)`, given `x`, shape `(n,)` or `(n, d)`.

    Args:
        x: Predictors.
        y: Outcomes; None to predict them.
        widths: The hidden layers of both networks.
        loss: One of `LOSSES`.
        prior_scale: The prior sd of every weight and bias; None for no prior. Not with `"document"`.
        latent_weights: Whether weights are latent sites, for a posterior by any guide, or parameters, for its mode.
        nonlinearity: Between layers; a name in `pyrovi.networks.ACTIVATIONS`.
    """
    _check(loss, prior_scale, latent_weights)
    inputs = x if x.dim() > 1 else x[:, None]
    network: Any = bayesian_perceptron if latent_weights else perceptron
    mean, log_variance = (
        network(inputs, name, (*widths, 1), prior_scale=prior_scale, nonlinearity=nonlinearity) for name in ("mu", "log_variance")
    )
    mean, sd = mean.squeeze(-1), (log_variance.squeeze(-1) / 2).exp()
    with pyro.plate("data", len(x)):
        if loss == "document":
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        if latent_weights:
            mean, sd = pyro.deterministic("mean", mean), pyro.deterministic("sd", sd)
        pyro.sample("y", dist.Normal(mean, sd), obs=y)


def _check(loss: str, prior_scale: float | None, latent_weights: bool) -> None:
    if loss not in LOSSES:
        raise SettingsError(f"unknown loss {loss!r}; {nearest(loss, LOSSES)}")
    if loss == "document" and (prior_scale is not None or latent_weights):
        raise SettingsError(
            "loss='document' shares its networks between model and guide, without a prior: drop prior_scale and latent_weights"
        )
    if latent_weights and prior_scale is None:
        raise SettingsError("latent weights need a prior: give prior_scale, as in prior_scale=1.0")


def load(loss: str = "likelihood") -> dict[str, Any]:
    """The document's 150 points (`pyrovi.data.vink`): x from −20 to 60, y standardised.

    Maximum likelihood over-fits them: its 90% band holds 83% of fresh data. So for `"likelihood"` a `prior_scale` of 0.3 comes
    along, chosen by the log score of five-fold cross-validation on these points. For `"document"` there is none.
    """
    points = data.vink()
    chosen = {"prior_scale": 0.3} if loss == "likelihood" else {"loss": loss}
    return {"x": points.x, "y": points.y, **chosen}


def quantiles(
    fit: Fit, x: ArrayLike, probabilities: tuple[float, ...] = (0.05, 0.5, 0.95), draws: int = 1_000, *, seed: int | None = None
) -> NDArray[np.float64]:
    """Quantiles of y at `x`, shape `(len(probabilities), n)`: of draws with latent weights, else of Normal(μ(x), σ(x)) itself.

    Args:
        fit: Of this model.
        x: New predictors, shape `(n,)` or `(n, d)`.
        probabilities: Of the quantiles.
        draws: Of weights and y; 1,000 leave an error of about 0.05 σ in a 5% quantile.
        seed: The fit's own when None.
    """
    from scipy.special import ndtri

    levels = np.asarray(probabilities, dtype=float)
    if fit.problem is not None and fit.problem.data.get("latent_weights"):
        drawn = fit.predictive(draws, data={"x": x}, seed=seed)["y"].double().cpu().numpy()
        found: NDArray[np.float64] = np.quantile(drawn, levels, axis=0)
        return found
    mean, sd = mean_and_sd(fit, x)
    return mean + sd * np.asarray(ndtri(levels))[:, None]


def mean_and_sd(fit: Fit, x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The fitted μ and σ at `x`, each of shape `(n,)`, where weights are parameters.

    Latent weights have a distribution of them: the sites `mean` and `sd` of `fit.predictive(data={"x": x})`.
    """
    y = outcome(fit, "y", x=x, y=None)
    return y.mean.double().cpu().numpy(), y.stddev.double().cpu().numpy()


def coverage(fit: Fit, x: ArrayLike, y: ArrayLike, probability: float = 0.9, draws: int = 1_000) -> float:
    """The share of `y` inside the central band of that probability at `x`."""
    low, high = quantiles(fit, x, ((1 - probability) / 2, (1 + probability) / 2), draws)
    y = np.asarray(y)
    return float(np.mean((low <= y) & (y <= high)))


def document_optimum(mean: ArrayLike, variance: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """μ and σ that maximise the document's objective at an x where y has this mean and variance.

    The objective there is −(variance + (mean − μ)²)/2σ² − σ²/2 − μ²/2 and a constant: log σ² is gone. Setting its derivatives to 0
    gives σ⁴ = variance + (mean − μ)² and μ = mean/(1 + σ²), whose one solution is found by bisection.

    >>> mu, sigma = document_optimum(1.0, 0.25)
    >>> round(float(mu), 4), round(float(sigma), 4)
    (0.6125, 0.7953)
    """
    m, v = np.broadcast_arrays(np.asarray(mean, dtype=float), np.asarray(variance, dtype=float))
    low, high = np.maximum(np.abs(m) - 1, 0.0), 1 + np.abs(m) + np.sqrt(v)
    for _ in range(100):
        s = (low + high) / 2
        too_low = s**2 * (1 - (m / (1 + s)) ** 2) < v
        low, high = np.where(too_low, s, low), np.where(too_low, high, s)
    return m / (1 + s), np.sqrt(s)
