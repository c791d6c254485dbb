"""Every recipe, end to end, with its document's settings but few steps: fit, draws, prediction, ArviZ, a run folder."""

import inspect

import numpy as np
import pytest
import torch

import pyrovi
from pyrovi import _arviz

RECIPES = list(pyrovi.recipes)


@pytest.fixture(scope="module")
def fits():
    return {}


def short(name, fits):
    """One short fit a recipe, shared by the tests of this file."""
    if name not in fits:
        fits[name] = pyrovi.recipe(name).fit(steps=12, progress=False)
    return fits[name]


@pytest.mark.parametrize("name", RECIPES)
def test_documented_settings_run(name, fits):
    fit = short(name, fits)
    settings = pyrovi.recipe(name).settings
    assert fit.elbo.shape == (1, 12)
    assert np.isfinite(fit.elbo).all()
    assert fit.recipe == name
    for key in ("lr", "particles", "objective", "kl_weight", "batch_size"):
        if key in settings:
            assert fit.settings[key] == settings[key]
    if fit.settings["particles"] > 1:
        assert fit.settings["vectorized"]


@pytest.mark.parametrize("name", RECIPES)
def test_shared_defaults_of_model_and_guide_agree(name):
    """A fit may leave an argument out: then model and guide must think the same of it."""
    recipe = pyrovi.recipe(name)
    model, guide = (inspect.signature(program).parameters for program in (recipe.model, recipe.guide))
    assert all(guide[own].default is not inspect.Parameter.empty for own in set(guide) - set(model))
    for shared in set(guide) & set(model):
        assert guide[shared].default == model[shared].default or guide[shared].default is inspect.Parameter.empty, shared


@pytest.mark.parametrize("name", RECIPES)
def test_arviz_reads_it(name, fits):
    fit = short(name, fits)
    container = fit.to_arviz(20)
    groups = _arviz.groups(container)
    assert ("posterior" in groups) == (not fit.point_estimate)
    if not fit.point_estimate:
        table = fit.summary(20)
        assert np.isfinite(table["mean"].astype(float)).all()
    if fit.problem.structure.observed:
        assert "observed_data" in groups


@pytest.mark.parametrize("name", RECIPES)
def test_it_comes_back_from_its_run_folder(name, fits, tmp_path):
    fit = short(name, fits)
    fit.save(tmp_path / "run", draws=5)
    again = pyrovi.load(tmp_path / "run")
    for site, draws in fit.posterior(3).items():
        assert torch.equal(again.posterior(3)[site], draws)


@pytest.mark.parametrize("name", RECIPES)
def test_it_predicts(name, fits):
    fit = short(name, fits)
    for site, draws in fit.predictive(3).items():
        assert draws.shape[0] == 3
        assert draws[0].numel() == fit.problem.structure.sites[site].shape.numel()
        assert torch.isfinite(draws).all()


@pytest.mark.parametrize("name", [name for name in RECIPES if pyrovi.recipes[name].exact is not None])
def test_exact_answer_takes_the_recipes_own_data(name):
    recipe = pyrovi.recipe(name)
    exact = recipe.exact(**recipe.load())
    if exact is not None:
        assert np.isfinite(exact.log_evidence)
        assert set(exact.marginals) <= set(short(name, {}).problem.structure.latent)


@pytest.mark.parametrize("name", RECIPES)
def test_an_automatic_guide_fits_it_too(name):
    """`normal` where there are latents to guide; a model of parameters alone has none."""
    recipe = pyrovi.recipe(name)
    if pyrovi.recipe(name).fit(steps=2, progress=False).point_estimate:
        pytest.skip("no latents")
    settings = {"particles": 1, "objective": "trace_elbo", "steps": 5, "progress": False}
    fit = recipe.fit(guide="normal", **settings)
    assert np.isfinite(fit.elbo).all()
