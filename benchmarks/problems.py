"""What is fitted: data as NumPy arrays, without a model, so that a peer's process imports neither torch nor Pyro."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
LAYERS = (784, 400, 20)
"""Of the autoencoder: pixels, hidden units, the code."""
BATCH = 128


def eight_schools() -> dict[str, Any]:
    """Eight effects of coaching and their standard errors (Rubin, 1981); the model is non-centred, with 10 latents."""
    return {"y": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), "s": np.array([15.0, 10, 16, 11, 9, 11, 10, 18])}


def many_schools(replicates: int, seed: int = 0) -> np.ndarray:
    """Data sets drawn from the eight schools' prior, shape `(replicates, 8)`."""
    rng = np.random.default_rng(seed)
    mu, tau = 5 * rng.normal(size=(replicates, 1)), 5 * np.abs(rng.standard_cauchy((replicates, 1)))
    s = eight_schools()["s"]
    return mu + tau * rng.normal(size=(replicates, 8)) + s * rng.normal(size=(replicates, 8))


def radon_like(houses: int = 919, counties: int = 85, seed: int = 0) -> dict[str, Any]:
    """A regression of the radon study's shape, on synthetic data: an intercept and a slope a county, 2·counties + 5 latents."""
    rng = np.random.default_rng(seed)
    extra = rng.choice(counties, houses - counties, p=rng.dirichlet(np.ones(counties)))  # every county has a house
    county = np.sort(np.concatenate([np.arange(counties), extra]))
    floor = rng.binomial(1, 0.17, houses).astype(float)
    a, b = rng.normal(1.5, 0.3, counties), rng.normal(-0.7, 0.3, counties)
    return {"y": rng.normal(a[county] + b[county] * floor, 0.75), "floor": floor, "county": county, "counties": counties}


def images(n: int = 10_000) -> np.ndarray:
    """Pixels 0 or 1, shape `(n, 784)`: MNIST above one half where it lies beside the checkout, else strokes of noise as sparse."""
    if MNIST.is_dir():
        from pyrovi.data import pixels

        return (pixels("mnist", "train", str(MNIST)).images[:n] > 0.5).astype(np.float32)
    return (np.random.default_rng(0).random((n, LAYERS[0])) < 0.13).astype(np.float32)


class Gaussians(NamedTuple):
    """Means and sds of mu, log tau and z, in unconstrained space, each of shape `(10,)`."""

    loc: np.ndarray
    sd: np.ndarray

    def errors(self, optimum: Gaussians) -> tuple[float, float]:
        """The largest error of a mean, in the optimum's sds, and of an sd, as a fraction."""
        return float(np.abs((self.loc - optimum.loc) / optimum.sd).max()), float(np.abs(self.sd / optimum.sd - 1).max())

    def near(self, optimum: Gaussians) -> bool:
        """Within 0.1 sd in every mean and 10% in every sd."""
        return max(self.errors(optimum)) <= 0.1


def optimum() -> Gaussians:
    """The mean-field optimum of the eight schools, without Monte Carlo: the ELBO in closed form but for one integral over log tau.

    That integral is by Gauss-Hermite quadrature with 100 points.
    """
    from scipy.optimize import minimize

    data = eight_schools()
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()

    def negative_elbo(v: np.ndarray) -> float:
        loc, log_sd = v[:10], v[10:]
        var = np.exp(2 * log_sd)
        t = loc[1] + np.exp(log_sd[1]) * nodes
        tau, tau2 = np.exp(loc[1] + var[1] / 2), np.exp(2 * loc[1] + 2 * var[1])
        square = (data["y"] - loc[0] - tau * loc[2:]) ** 2 + var[0] + tau2 * (loc[2:] ** 2 + var[2:]) - (tau * loc[2:]) ** 2
        log_joint = -(loc[0] ** 2 + var[0]) / 50 - weights @ np.log1p(np.exp(2 * t) / 25) + loc[1]
        return -float(log_joint - (loc[2:] ** 2 + var[2:]).sum() / 2 - (square / data["s"] ** 2).sum() / 2 + log_sd.sum())

    best = min((minimize(negative_elbo, np.r_[np.zeros(10), np.full(10, s)], tol=1e-9) for s in (-2.0, 0.0)), key=lambda r: r.fun)
    return Gaussians(best.x[:10], np.exp(best.x[10:]))
