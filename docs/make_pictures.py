"""The pictures of the recipes' pages, docs/recipes/NAME.png: each recipe fitted as it stands, or smaller where that takes minutes.

python docs/make_pictures.py              # all, some five minutes on one core
python docs/make_pictures.py vae local_level
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import run_blocks
from matplotlib.figure import Figure
from PIL import Image

import pyrovi
from pyrovi import autoencoder, data, plots
from pyrovi.guides import latent_outcome as latent_outcome_guides
from pyrovi.models import (
    bayesian_classifier,
    bayesian_neural_network,
    conditional_vae,
    heteroscedastic_regression,
    local_level,
    neural_classification,
    neural_regression,
    poisson_factorization,
)

FOLDER = Path(__file__).parent / "recipes"
DPI, COLOURS, MOST = 110, 64, 80_000
"""Dots an inch; colours that are kept, enough for lines and shades; the largest file, in bytes."""


def normal_mean() -> Figure:
    recipe = pyrovi.recipe("normal_mean")
    return plots.posterior(recipe.fit(), recipe.exact(**recipe.load()))


def gamma_poisson() -> Figure:
    recipe = pyrovi.recipe("gamma_poisson")
    fit = recipe.fit(particles=32, lr=0.3)
    return plots.posterior(fit, recipe.exact(**recipe.load()), ["theta[20]", "theta[36]"])


def linear_regression() -> Figure:
    recipe = pyrovi.recipe("linear_regression")
    return plots.posterior(recipe.fit(), recipe.exact(**recipe.load()), ["beta[2]", "beta[4]", "beta[5]"])


def gaussian_mixture() -> Figure:
    recipe = pyrovi.recipe("gaussian_mixture")
    target = recipe.exact(**recipe.load()).marginals["x"]
    return plots.density(recipe.fit(), lambda x: np.log(target.pdf(x)))


def latent_outcome() -> Figure:
    recipe = pyrovi.recipe("latent_outcome")
    given = recipe.load()
    draws = recipe.fit(given, guide=latent_outcome_guides.amortized_on_x).predictive(4_000)["y"]
    quantiles = np.quantile(draws.numpy(), (0.05, 0.5, 0.95), axis=0)
    return plots.quantile_bands(given["x"], quantiles, observed=(given["x"], given["y"]))


def local_level_() -> Figure:
    given = local_level.load()
    fit = pyrovi.recipe("local_level").fit(given)
    exact, future = local_level.exact(**given), local_level.forecast(**given, horizon=10)
    ahead = fit.predictive(2_000, data={"horizon": 10})["future_y"]
    return plots.forecast(
        given["time"],
        given["y"],
        fit.posterior(2_000)["level"],
        future.time,
        ahead,
        exact=None if exact is None else (exact.marginals["level"], future.y),
        labels=("year", "flow, 10⁸ m³"),
    )


def neural_regression_() -> Figure:
    recipe = pyrovi.recipe("neural_regression")
    given, x, truth = _vink(recipe)
    return plots.bands(x, neural_regression.mean(recipe.fit(), x), observed=(given["x"], given["y"]), truth=truth)


def neural_classification_() -> Figure:
    fit = pyrovi.recipe("neural_classification").fit()
    test = neural_classification.load(split="test")
    found = neural_classification.classify(fit, test["images"])
    wrong = np.flatnonzero(found != test["labels"])[:12]
    titles = [f"{test['labels'][i]}, taken for {found[i]}" for i in wrong]
    return plots.images(test["images"][wrong].reshape(-1, 8, 8), titles)


def heteroscedastic_regression_() -> Figure:
    recipe = pyrovi.recipe("heteroscedastic_regression")
    given, x, truth = _vink(recipe)
    quantiles = heteroscedastic_regression.quantiles(recipe.fit(), x)
    return plots.quantile_bands(x, quantiles, observed=(given["x"], given["y"]), truth=truth)


def bayesian_neural_network_() -> Figure:
    recipe = pyrovi.recipe("bayesian_neural_network")
    given = recipe.load()
    x = np.linspace(-5.0, 5.0, 300)
    mean, epistemic, aleatoric = bayesian_neural_network.uncertainty(recipe.fit({**given, "noise": 0.3}), x)
    return plots.bands(x, mean, epistemic, aleatoric, observed=(given["x"], given["y"]))


def bayesian_classifier_() -> Figure:
    fit = pyrovi.recipe("bayesian_classifier").fit()
    test = bayesian_classifier.load(split="test")
    chances = bayesian_classifier.probabilities(fit, test["images"])
    doubtful = np.argsort(chances.max(1))[:12]
    ranked = np.argsort(-chances[doubtful], 1)
    titles = [
        ", ".join(f"{label}: {row[label]:.0%}" for label in first[:2]) for row, first in zip(chances[doubtful], ranked, strict=True)
    ]
    return plots.images(test["images"][doubtful].reshape(-1, 8, 8), titles)


def vae() -> Figure:
    fit = pyrovi.recipe("vae").fit()
    return plots.latent_grid(lambda z: autoencoder.decode(fit, z), (8, 8), n=20)


def conditional_vae_() -> Figure:
    fit = pyrovi.recipe("conditional_vae").fit()
    digits = [conditional_vae.draw(fit, label, n=4).reshape(-1, 8, 8)[row].numpy() for row in range(4) for label in range(10)]
    return plots.images(np.stack(digits), columns=10)


def poisson_factorization_() -> Figure:
    fit = pyrovi.recipe("poisson_factorization").fit()
    draws = fit.posterior_arrays(300)
    factors = poisson_factorization.factors(draws["theta"], draws["beta"]).images
    return plots.images(factors.reshape(-1, 8, 8), own_scale=True, columns=10)


def _vink(recipe: pyrovi.Recipe) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The waves, a grid, and the mean there that they were made with."""
    given, vink = recipe.load(), data.vink()
    x, order = np.linspace(vink.x.min(), vink.x.max(), 300), np.argsort(vink.x)
    return given, x, np.interp(x, vink.x[order], vink.expected[order])


def tutorial() -> pyrovi.Fit:
    """The fit that the tutorial's own blocks make."""
    page, home = (FOLDER.parent / "tutorial.md").read_text(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        try:
            files = [block for block in run_blocks.blocks(page) if block.file]
            for block in files:
                Path(block.file).write_text(block.text)
            model = importlib.import_module("beetles").model
            return pyrovi.fit(model, data=dict(pd.read_csv("beetles.csv")))
        finally:
            sys.path.remove(folder)
            os.chdir(home)


PICTURES: dict[str, Callable[[], Figure]] = {
    "normal_mean": normal_mean,
    "gamma_poisson": gamma_poisson,
    "linear_regression": linear_regression,
    "gaussian_mixture": gaussian_mixture,
    "latent_outcome": latent_outcome,
    "local_level": local_level_,
    "neural_regression": neural_regression_,
    "neural_classification": neural_classification_,
    "heteroscedastic_regression": heteroscedastic_regression_,
    "bayesian_neural_network": bayesian_neural_network_,
    "bayesian_classifier": bayesian_classifier_,
    "vae": vae,
    "conditional_vae": conditional_vae_,
    "poisson_factorization": poisson_factorization_,
    "tutorial_pair": lambda: tutorial().plot.pair(),
    "tutorial_predictive": lambda: tutorial().plot.predictive(),
}


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        path = (FOLDER.parent if name.startswith("tutorial") else FOLDER) / f"{name}.png"
        PICTURES[name]().savefig(path, dpi=DPI, facecolor="white")
        Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
        size = path.stat().st_size
        print(f"{name}: {size:,} bytes", flush=True)
        if size > MOST:
            raise SystemExit(f"{path} has {size:,} bytes, more than {MOST:,}")


if __name__ == "__main__":
    main(sys.argv[1:])
