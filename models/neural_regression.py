"""Least squares with a neural network, as maximum likelihood (D4).

    y_i ~ Normal(f(x_i), noise), i = 1..n

f is a perceptron whose weights are parameters of the model. There is nothing latent, so the guide is empty, the ELBO is the log
likelihood, and SVI is maximum likelihood: with the noise 1, −ELBO = ½ Σ (y_i − f(x_i))² + n/2 log 2π.

From "Variational inference from scratch" (Ritchie Vink, 2019).

Exact: none; the same network trained in plain PyTorch has the same loss and gradients, up to the constant and the mean's 1/n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine

from pyrovi import data
from pyrovi.inputs import to_tensors
from pyrovi.networks import perceptron
from pyrovi.result import Fit

__all__ = ["load", "mean", "model", "outcome"]


def model(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    widths: tuple[int, ...] = (20,),
    noise: float = 1.0,
    nonlinearity: str = "relu",
) -> None:
    """Observe `y`, shape `(n,)`, given `x`, shape `(n,)` or `(n, d)`.

    Args:
        x: Predictors.
        y: Outcomes; None to predict them.
        widths: The hidden layers.
        noise: The sd of y about f(x); it does not change the best f.
        nonlinearity: Between layers; a name in `pyrovi.networks.ACTIVATIONS`.
    """
    x = x if x.dim() > 1 else x[:, None]
    out = perceptron(x, "net", (*widths, 1), nonlinearity=nonlinearity)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(out.squeeze(-1), noise), obs=y)


def load() -> dict[str, Any]:
    """The document's 150 points (`pyrovi.data.vink`): x from −20 to 60, y standardised."""
    points = data.vink()
    return {"x": points.x, "y": points.y}


def mean(fit: Fit, x: ArrayLike) -> NDArray[np.float64]:
    """The fitted f at `x`, shape `(n,)`: the maximum-likelihood line."""
    line: NDArray[np.float64] = outcome(fit, "y", x=x, y=None).mean.double().cpu().numpy()
    return line


def outcome(fit: Fit, site: str, **new: Any) -> Any:
    """The distribution of an observed site at new data, of a fit that has parameters only: nothing has to be drawn.

    Args:
        fit: Of any model without latent sites, or whose observed site does not depend on them.
        site: The site's name.
        new: Arguments of the model over those of the fit; outcomes as None.
    """
    with fit.loaded() as problem, torch.no_grad():
        tensors = to_tensors(new, problem.dtype, problem.device)
        return poutine.trace(problem.model).get_trace(**{**problem.data, **tensors}).nodes[site]["fn"]
