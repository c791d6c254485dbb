"""The one table of recipes: document, model, guide, data, exact posterior, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyrovi._exact import ExactPosterior
from pyrovi._fit import fit
from pyrovi._typing import Guide, Model
from pyrovi.errors import SettingsError, nearest
from pyrovi.guides import bayesian_classifier as bayesian_classifier_guide
from pyrovi.guides import bayesian_neural_network as bayesian_neural_network_guide
from pyrovi.guides import conditional_vae as conditional_vae_guide
from pyrovi.guides import gamma_poisson as gamma_poisson_guide
from pyrovi.guides import gaussian_mixture as gaussian_mixture_guide
from pyrovi.guides import heteroscedastic_regression as heteroscedastic_regression_guide
from pyrovi.guides import latent_outcome as latent_outcome_guide
from pyrovi.guides import linear_regression as linear_regression_guide
from pyrovi.guides import local_level as local_level_guide
from pyrovi.guides import neural_classification as neural_classification_guide
from pyrovi.guides import neural_regression as neural_regression_guide
from pyrovi.guides import normal_mean as normal_mean_guide
from pyrovi.guides import poisson_factorization as poisson_factorization_guide
from pyrovi.guides import vae as vae_guide
from pyrovi.models import (
    bayesian_classifier,
    bayesian_neural_network,
    conditional_vae,
    gamma_poisson,
    gaussian_mixture,
    heteroscedastic_regression,
    latent_outcome,
    linear_regression,
    local_level,
    neural_classification,
    neural_regression,
    normal_mean,
    poisson_factorization,
    vae,
)
from pyrovi.result import Fit

__all__ = ["Recipe", "recipe", "recipes"]


@dataclass(frozen=True)
class Recipe:
    """A document's model, with what is needed to run it as the document does.

    Attributes:
        name: What to call it by.
        title: A line about it.
        document: Where it comes from.
        model: The Pyro model.
        guide: The handwritten guide.
        load: Its data; takes the options that its docstring says.
        exact: From the data to the exact posterior, or to None where these arguments have none; None where there is never one.
        optimum: From the data to the largest ELBO, in nats, that the handwritten guide's family can reach, where that is not the
            log evidence and is known; None where it is not.
        reference: From the data to the plain ELBO of another method's answer, in nats, where there is such a method.
        settings: The document's, for `pyrovi.fit`.
    """

    name: str
    title: str
    document: str
    model: Model
    guide: Guide
    load: Callable[..., dict[str, Any]]
    exact: Callable[..., ExactPosterior | None] | None = None
    optimum: Callable[..., float | None] | None = None
    reference: Callable[..., Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        from pyrovi.display import of_recipe

        return of_recipe(self)

    def fit(self, data: Mapping[str, Any] | None = None, guide: Any = None, **settings: Any) -> Fit:
        """Fit the recipe as the document does.

        Args:
            data: Data of the same kind; the document's, by `load`, when None.
            guide: Another guide, by name for instance; the handwritten one when None.
            settings: What `pyrovi.fit` takes, over the document's.
        """
        folder = settings.pop("folder", None)
        if folder is not None:
            from pyrovi.runs import check_folder

            check_folder(folder)
        chosen = {**self.settings, **settings}
        if "epochs" in settings and "steps" not in settings:
            chosen.pop("steps", None)
        result = fit(self.model, self.guide if guide is None else guide, self.load() if data is None else data, **chosen)
        result = replace(result, recipe=self.name)
        if folder is not None:
            result.save(folder)
        return result


_RECIPES = [
    Recipe(
        name="normal_mean",
        title="the mean of a Normal",
        document="D3",
        model=normal_mean.model,
        guide=normal_mean_guide.guide,
        load=normal_mean.load,
        exact=normal_mean.exact,
        settings={"steps": 1_000, "lr": 0.1, "particles": 1, "stop": None},
    ),
    Recipe(
        name="gamma_poisson",
        title="pixel intensities of the digit zero",
        document="D2",
        model=gamma_poisson.model,
        guide=gamma_poisson_guide.guide,
        load=gamma_poisson.load,
        exact=gamma_poisson.exact,
        settings={"steps": 5_000, "lr": 0.2, "particles": 128, "stop": None},
    ),
    Recipe(
        name="gaussian_mixture",
        title="a mixture of two Gaussians as a target",
        document="D0",
        model=gaussian_mixture.model,
        guide=gaussian_mixture_guide.guide,
        load=gaussian_mixture.load,
        exact=gaussian_mixture.exact,
        optimum=gaussian_mixture_guide.optimum,
        settings={"steps": 1_000, "lr": 0.1, "particles": 1_000, "stop": None},
    ),
    Recipe(
        name="linear_regression",
        title="Bayesian linear regression",
        document="D4",
        model=linear_regression.model,
        guide=linear_regression_guide.guide,
        load=linear_regression.load,
        exact=linear_regression.exact,
        optimum=linear_regression.mean_field_optimum,
        settings={"steps": 5_000, "lr": 0.02, "particles": 16, "stop": None},
    ),
    Recipe(
        name="latent_outcome",
        title="a latent value for every outcome",
        document="D4",
        model=latent_outcome.model,
        guide=latent_outcome_guide.guide,
        load=latent_outcome.load,
        exact=latent_outcome.exact,
        settings={"steps": 1_500, "lr": 0.005, "particles": 16, "objective": "mean_field", "stop": None},
    ),
    Recipe(
        name="local_level",
        title="a drifting level seen through noise, and its forecast",
        document="D0",
        model=local_level.model,
        guide=local_level_guide.guide,
        load=local_level.load,
        exact=local_level.exact,
        settings={
            "steps": 1_000,
            "lr": 0.1,
            "schedule": "cosine",
            "particles": 256,
            "objective": "mean_field",
            "stop": None,
        },
    ),
    Recipe(
        name="vae",
        title="a variational autoencoder of images",
        document="D0, D1",
        model=vae.model,
        guide=vae_guide.guide,
        load=vae.load,
        exact=vae.exact,
        # 6,000 steps of 100 images are the document's ten epochs of MNIST.
        settings={
            "steps": 6_000,
            "lr": 1e-3,
            "batch_size": 100,
            "objective": "mean_field",
            "transform": vae.binarize,
            "stop": None,
        },
    ),
    Recipe(
        name="conditional_vae",
        title="a variational autoencoder of images of a given class",
        document="D0",
        model=conditional_vae.model,
        guide=conditional_vae_guide.guide,
        load=conditional_vae.load,
        exact=conditional_vae.exact,
        settings={
            "steps": 6_000,
            "lr": 1e-3,
            "batch_size": 100,
            "objective": "mean_field",
            "transform": vae.binarize,
            "stop": None,
        },
    ),
    Recipe(
        name="bayesian_classifier",
        title="Bayesian softmax regression on images",
        document="D1",
        model=bayesian_classifier.model,
        guide=bayesian_classifier_guide.guide,
        load=bayesian_classifier.load,
        settings={"steps": 3_000, "lr": 0.01, "batch_size": 100, "stop": None},
    ),
    Recipe(
        name="poisson_factorization",
        title="counts as a product of Gamma factors",
        document="D2",
        model=poisson_factorization.model,
        guide=poisson_factorization_guide.guide,
        load=poisson_factorization.load,
        reference=poisson_factorization.reference,
        settings={"steps": 4_000, "lr": 0.2, "schedule": "cosine", "particles": 1, "stop": None},
    ),
    Recipe(
        name="neural_regression",
        title="least squares with a neural network",
        document="D4",
        model=neural_regression.model,
        guide=neural_regression_guide.guide,
        load=neural_regression.load,
        settings={"steps": 200, "lr": 0.01, "stop": None},
    ),
    Recipe(
        name="neural_classification",
        title="a neural network that classifies images",
        document="D1",
        model=neural_classification.model,
        guide=neural_classification_guide.guide,
        load=neural_classification.load,
        # Adam's default rate as in the document, which does not say how long nor in what batches.
        settings={"steps": 1_500, "lr": 1e-3, "batch_size": 100, "stop": None},
    ),
    Recipe(
        name="heteroscedastic_regression",
        title="networks for the mean and the noise",
        document="D4",
        model=heteroscedastic_regression.model,
        guide=heteroscedastic_regression_guide.guide,
        load=heteroscedastic_regression.load,
        settings={"steps": 1_500, "lr": 0.005, "stop": None},
    ),
    Recipe(
        name="bayesian_neural_network",
        title="Bayes by Backprop for regression",
        document="D0, D4",
        model=bayesian_neural_network.model,
        guide=bayesian_neural_network_guide.guide,
        load=bayesian_neural_network.load,
        exact=bayesian_neural_network.exact,
        settings={"steps": 1_000, "lr": 0.01, "stop": None},
    ),
]

recipes: Mapping[str, Recipe] = {r.name: r for r in _RECIPES}
"""Every recipe by name."""


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    >>> recipe("normal_mean").title
    'the mean of a Normal'
    """
    if name not in recipes:
        raise SettingsError(f"unknown recipe {name!r}; {nearest(name, recipes)}")
    return recipes[name]
