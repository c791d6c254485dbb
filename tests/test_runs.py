"""Run folders: what is saved comes back, and code is never read from them."""

import importlib.metadata
import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi
from pyrovi import _arviz

X = {"x": np.array([0.5, 1.5, 2.0]), "scale": 2.0}


def model(x, scale):
    w = pyro.sample("w", dist.Normal(0.0, scale))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.5))


@pytest.fixture
def fit():
    return pyrovi.fit(model, guide, X, steps=40, lr=0.1)


def test_a_run_folder_holds_four_files(fit, tmp_path):
    fit.save(tmp_path / "a" / "run")
    names = {p.name for p in (tmp_path / "a" / "run").iterdir()}
    assert names == {"fit.json", "parameters.safetensors", "data.safetensors", "posterior.nc"}
    state = json.loads((tmp_path / "a" / "run" / "fit.json").read_text())
    assert state["status"] == "step_limit"
    assert state["settings"]["lr"] == 0.1
    assert state["versions"]["torch"] == importlib.metadata.version("torch")
    assert state["data"] == {"scale": 2.0}


def test_a_recipes_fit_comes_back_whole(tmp_path):
    for guide in (None, "multivariate_normal", "laplace"):
        recipe = pyrovi.recipe("linear_regression")
        fit = recipe.fit(guide=guide, steps=300, lr=0.05, folder=tmp_path / f"{guide}")
        back = pyrovi.load(tmp_path / f"{guide}")
        assert back.recipe == "linear_regression"
        assert torch.equal(back.posterior(20)["beta"], fit.posterior(20)["beta"])
        assert np.array_equal(back.elbo, fit.elbo)
        assert {k: v.tolist() for k, v in back.parameters.items()} == {k: v.tolist() for k, v in fit.parameters.items()}
        assert (back.status, back.advice, back.settings, back.seed) == (fit.status, fit.advice, fit.settings, fit.seed)


def test_a_users_fit_comes_back_with_its_model(fit, tmp_path):
    fit.save(tmp_path / "run")
    back = pyrovi.load(tmp_path / "run", model=model, guide=guide)
    assert torch.equal(back.posterior(20)["w"], fit.posterior(20)["w"])
    assert back.estimate_elbo(50) == fit.estimate_elbo(50)
    assert back.predictive(3)["x"].shape == (3, 3)


def test_without_the_model_there_are_the_stored_draws(fit, tmp_path):
    fit.save(tmp_path / "run", draws=30)
    back = pyrovi.load(tmp_path / "run")
    assert _arviz.group(back.to_arviz(), "posterior").sizes["draw"] == 30
    assert np.array_equal(back.elbo, fit.elbo)
    assert torch.equal(back.unconstrained["loc"], fit.unconstrained["loc"])
    assert back.summary().loc["w", "mean"] == pytest.approx(fit.summary(30).loc["w", "mean"], rel=1e-4)
    assert "loaded without its model" in repr(back)
    with pytest.raises(pyrovi.PyroviError, match="loaded without its model"):
        back.posterior(3)
    with pytest.raises(pyrovi.GuideError, match="pass it too"):
        pyrovi.load(tmp_path / "run", model=model)


def test_a_point_estimate_is_one_without_its_model_too(tmp_path):
    fit = pyrovi.fit(model, "delta", X, steps=5)
    fit.save(tmp_path / "run")
    assert list(pyrovi.load(tmp_path / "run").summary().columns) == ["point estimate"]


def test_a_batched_fit_comes_back(tmp_path):
    def two_plates(x, prior):
        with pyro.plate("column", 3, dim=-1):
            w = pyro.sample("w", dist.Normal(prior, 1.0))
            with pyro.plate("row", len(x), dim=-2):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    data = {"x": np.ones((3, 3)), "prior": np.arange(3.0)}  # as long as the rows by chance
    fit = pyrovi.fit(two_plates, "normal", data, batch_size={"row": 2}, batch_data=["x"], steps=3, folder=tmp_path / "run")
    back = pyrovi.load(tmp_path / "run", model=two_plates)
    assert torch.equal(back.posterior(4)["w"], fit.posterior(4)["w"])


def test_another_model_is_refused(fit, tmp_path):
    fit.save(tmp_path / "run")

    def other(x):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(2)).sum(), 0.5))

    with pytest.raises(pyrovi.ModelError, match="parameter 'loc' differs"):
        pyrovi.load(tmp_path / "run", model=model, guide=other)


def test_a_folder_that_is_no_run_and_a_damaged_one(fit, tmp_path):
    with pytest.raises(pyrovi.RunFolderError, match="it has no fit.json"):
        pyrovi.load(tmp_path)
    for name in ("fit.json", "parameters.safetensors", "posterior.nc"):
        folder = tmp_path / name
        fit.save(folder)
        (folder / name).write_bytes(b"{damaged")
        with pytest.raises(pyrovi.RunFolderError, match="damaged"):
            pyrovi.load(folder)


def test_an_existing_run_is_kept_unless_told_otherwise(fit, tmp_path):
    fit.save(tmp_path / "run")
    with pytest.raises(pyrovi.RunFolderError, match="exists already"):
        fit.save(tmp_path / "run")
    fit.save(tmp_path / "run", overwrite=True)
    assert pyrovi.load(tmp_path / "run").seed == 0
