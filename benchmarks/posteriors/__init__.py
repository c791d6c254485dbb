"""Posteriors of real data in raw units, with references by long NUTS runs: what a fit without settings is measured on.

    from posteriors import MODELS
    m = MODELS["spector"]
    fit = pyrovi.fit(m.model, data=m.data())
    m.reference()              # site -> Reference(mean, sd), and m.diagnostics() of the run it is from

The models are plain Pyro (`regressions`, `series`, `mixtures`, `hierarchies`) and were written before any of them was fitted by
pyrovi. `sources` wrote the data, from statsmodels and scikit-learn; `reference` wrote the references, by NumPyro on the same models
once more (`twins_*`), whose log densities are first shown to agree. Both are kept in `files`: nothing but NumPy is needed to read
them, and Pyro to run the models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posteriors import hierarchies, mixtures, regressions, series

__all__ = ["ALL", "MODELS", "Posterior", "Reference"]

FILES = Path(__file__).parent / "files"


class Reference(NamedTuple):
    """Means and sds of a latent site, in its own (constrained) shape; a constant entry has sd 0."""

    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Posterior:
    """A model, its data, and what its posterior is.

    `kind` is what the model is (linear, logistic, …); `not_centred` names the sites that the reference run sampled so.
    """

    name: str
    model: Callable[..., Any]
    kind: str
    not_centred: tuple[str, ...] = ()

    def data(self) -> dict[str, np.ndarray]:
        """Argument name to array, floats in float64."""
        with np.load(FILES / f"{self.name}.npz") as found:
            return dict(found)

    def reference(self) -> dict[str, Reference]:
        """Mean and sd of every latent site, as the model names them."""
        return {name: Reference(np.array(s["mean"]), np.array(s["sd"])) for name, s in self._file()["sites"].items()}

    def diagnostics(self) -> dict[str, Any]:
        """How the reference was made: method, dimension, largest r_hat, smallest ess_bulk and ess_tail, divergences."""
        return self._file()["diagnostics"]

    def _file(self) -> dict[str, Any]:
        return json.loads((FILES / f"{self.name}.json").read_text())


KINDS = {
    regressions: {
        "longley": "linear, exact",
        "diabetes": "linear",
        "co2": "linear, seasonal",
        "engel": "linear, heteroscedastic",
        "stackloss": "robust",
        "spector": "logistic",
        "breast_cancer": "logistic",
        "star98": "binomial",
        "committee": "Poisson",
        "doctor_visits": "negative binomial",
        "no_visits": "zero-inflated Poisson",
        "anes96": "ordered logistic",
        "scotland": "Beta",
        "heart": "survival, censored",
        "mode_choice": "conditional logit",
        "linnerud": "covariance",
        "digits": "logistic, shrunk",
    },
    series: {
        "sunspots": "AR(9)",
        "inflation_arma": "ARMA(1, 1)",
        "bills_garch": "GARCH(1, 1)",
        "bills_volatility": "stochastic volatility",
        "nile_change": "change point",
        "nile_level": "local level",
        "inflation_regimes": "hidden Markov",
    },
    mixtures: {
        "iris": "mixture",
        "wine": "mixture, enumerated",
        "nile_process": "Gaussian process, marginal",
        "vote": "Gaussian process, latent",
        "transplants": "Gaussian process, latent",
    },
    hierarchies: {
        "eight_schools": "hierarchical, not centred",
        "eight_schools_centred": "hierarchical, centred",
        "diabetes_by_age": "hierarchical, centred",
        "affairs": "hierarchical logistic, not centred",
        "cancer": "hierarchical Poisson, centred",
        "star98_districts": "hierarchical binomial, centred",
        "fertility": "varying slopes, centred",
        "grunfeld": "varying slopes, not centred",
        "elnino": "crossed effects, centred",
        "china_smoking": "hierarchical, centred",
        "item_response": "item response",
    },
}

NOT_CENTRED = {
    "eight_schools_centred": ("theta",),
    "diabetes_by_age": ("intercept",),
    "digits": ("coef",),
    "china_smoking": ("a", "b"),
}

ALL = {
    name: Posterior(name, getattr(module, name), kind, NOT_CENTRED.get(name, ()))
    for module, kinds in KINDS.items()
    for name, kind in kinds.items()
}
"""Every model by name, with or without a reference."""

MODELS = {name: m for name, m in ALL.items() if (FILES / f"{name}.json").exists()}
"""Those with a reference by a clean run."""
