"""Every recipe, end to end, with its document's settings but few steps: fit, draws, prediction, ArviZ, a run folder."""

import inspect

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyrovi
from pyrovi import _arviz
from pyrovi._isolation import isolated
from pyrovi.preflight import prepare

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


def rows(data, n, *names):
    return {name: value[:n] if name in names else value for name, value in data.items()}


def batched_recipes():
    """The recipes whose data can be taken in batches, on few of their rows, so that the last batch is smaller."""
    names = {
        "normal_mean": ("x",),
        "gamma_poisson": ("x",),
        "linear_regression": ("X", "y"),
        "latent_outcome": ("x", "y"),
        "neural_regression": ("x", "y"),
        "neural_classification": ("images", "labels", "x", "y"),
        "heteroscedastic_regression": ("x", "y"),
        "bayesian_neural_network": ("x", "y"),
        "bayesian_classifier": ("images", "labels"),
        "vae": ("images",),
        "conditional_vae": ("images", "labels"),
        "poisson_factorization": ("x",),
    }
    return {name: names[name] for name in RECIPES if name not in ("gaussian_mixture", "local_level")}


@pytest.mark.parametrize("name", list(batched_recipes()))
def test_a_pass_over_batches_has_the_full_batchs_expected_elbo(name):
    """Each batch's estimate, weighted by its share of the rows, adds up to the estimate on all of them; 23 rows in batches of 5."""
    recipe = pyrovi.recipe(name)
    data = rows(recipe.load(), 23, *batched_recipes()[name])
    if "transform" in recipe.settings:
        torch.manual_seed(0)
        data = {n: torch.as_tensor(v).float() if n == "images" else v for n, v in data.items()}
        data = recipe.settings["transform"](data)  # once: the same view for both
    repeats, means, errors = 400, [], []
    for size in (None, 5):
        with isolated(0, torch.float64):
            problem = prepare(recipe.model, recipe.guide, data, dtype=torch.float64, device=torch.device("cpu"), batch_size=size)
            pyro.set_rng_seed(1)
            if size is None:
                start = problem.parameters.values()
            problem.parameters.assign(start)  # the same network in both
            elbo, out = Trace_ELBO(), []
            batched = problem.batched()
            for _ in range(repeats):
                if batched is None:
                    out.append(-elbo.loss(problem.model, problem.guide, **problem.data))
                    continue
                total = 0.0
                for block in problem.batches.blocks(problem.device):
                    batched.take(block)
                    total -= elbo.loss(batched.model, batched.guide) * len(block) / 23
                out.append(total)
        values = np.array(out)
        means.append(values.mean())
        errors.append(values.std(ddof=1) / np.sqrt(repeats))
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors) + 1e-6 * abs(means[0])
    assert np.hypot(*errors) < 0.05 * abs(means[0])  # else the comparison says nothing
