"""`nuts`: right where the answer is known, honest about its own draws, kept and never served for another model."""

import json
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyrovi
from pyrovi import _arviz, _nuts
from pyrovi._exact import settled_problem
from pyrovi._isolation import isolated
from pyrovi.chains import convergence
from pyrovi.density import recorded
from pyrovi.export import dataset

X = np.random.default_rng(0).normal(size=(30, 2)) * [1.0, 200.0]
Y = 1 + X @ [1.0, 0.01] + np.random.default_rng(1).normal(size=30)
QUICK = {"draws": 200, "warmup": 100, "chains": 2}


def regression(X, y):
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, torch.tensor([10.0, 0.1])).to_event(1))
    pyro.deterministic("at_zero", 2 * a)
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(a + X @ b, 1.0), obs=y)


def rates(counts):
    with pyro.plate("cells", len(counts)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("counts", dist.Poisson(rate), obs=counts)


DATA, COUNTS = {"X": X, "y": Y}, {"counts": np.array([0.0, 3.0, 8.0])}


@pytest.fixture(scope="module")
def sampled():
    return pyrovi.nuts(regression, DATA, **QUICK)


def within(container, exact, sigmas=4.5):
    """Means and sds within their Monte Carlo errors of the exact ones."""
    table = pyrovi.compare(container, exact)
    sizes = np.concatenate(
        [np.ravel(v) for v in _arviz.arviz().ess(_arviz.group(container, "posterior")[list(exact.marginals)]).data_vars.values()]
    )
    assert np.all(np.abs(table["error"]) < sigmas / np.sqrt(sizes.min()))
    assert np.all(np.abs(table["sd_ratio"] - 1) < sigmas / np.sqrt(sizes.min()))


def test_a_regression_in_raw_units_has_its_exact_posterior(sampled):
    within(sampled, pyrovi.exact(regression, DATA))


def test_positive_latents_in_a_plate_have_their_exact_posterior():
    found = pyrovi.nuts(rates, COUNTS, **QUICK, seed=1)
    within(found, pyrovi.exact(rates, COUNTS))
    assert _arviz.group(found, "posterior")["rate"].dims == ("chain", "draw", "cells")
    rate, counts = _arviz.group(found, "posterior")["rate"].values, COUNTS["counts"]
    by_hand = stats.gamma(2).logpdf(rate).sum(-1) + stats.poisson(rate).logpmf(counts).sum(-1)  # of the rates, not their logarithms
    assert np.allclose(_arviz.group(found, "sample_stats")["lp"], by_hand, atol=1e-8)


def test_the_container_has_what_arviz_and_readers_want(sampled):
    posterior, told = (_arviz.group(sampled, name) for name in ("posterior", "sample_stats"))
    assert posterior["b"].shape == (2, 200, 2)
    assert np.allclose(posterior["at_zero"], 2 * posterior["a"], rtol=1e-12)
    assert told["diverging"].dtype == bool
    assert 0.6 < float(told["acceptance_rate"].mean()) <= 1
    assert int(told["n_steps"].min()) >= 1
    a, b = float(posterior["a"][1, 7]), torch.tensor(posterior["b"][1, 7].values)
    with torch.no_grad():
        trace = pyro.poutine.trace(pyro.poutine.condition(regression, data={"a": torch.tensor(a).double(), "b": b})).get_trace(
            torch.tensor(X), torch.tensor(Y)
        )
    assert float(told["lp"][1, 7]) == pytest.approx(float(trace.log_prob_sum()), abs=1e-4)
    found = convergence(sampled)
    assert sampled.attrs["r_hat"] == posterior.attrs["r_hat"] == found.r_hat
    assert sampled.attrs["divergences"] == found.divergences == 0
    assert {"ess_bulk", "ess_tail", "seconds", "step_size", "seed"} <= set(sampled.attrs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(_arviz.summary(sampled)) == 4


def test_a_fit_gives_start_scale_model_and_data():
    fit = pyrovi.fit(regression, "multivariate_normal", DATA, method="deterministic")
    found = pyrovi.nuts(fit, **QUICK)
    within(found, pyrovi.exact(regression, DATA))
    table = pyrovi.compare(fit, found, force=True)
    assert np.all(np.abs(table["error"]) < 4.5 * table["error_se"])
    assert np.all(np.abs(table["sd_ratio"] - 1) < 4.5 * table["sd_ratio_se"])


@pytest.mark.parametrize("with_fit", [True, False])
def test_the_coordinates_are_those_of_a_standard_posterior(with_fit):
    """The exact posterior's draws, in them, have unit covariance: to 0.25 by 1,000 draws of a fit, or by the Hessian."""
    fit = pyrovi.fit(regression, "multivariate_normal", DATA, method="deterministic") if with_fit else None
    exact = pyrovi.exact(regression, DATA).draws(20_000)
    with isolated(0, torch.float64):
        density = recorded(settled_problem(regression, DATA))
        space = _nuts._whitened(density, fit, 4, 0)
    u = torch.from_numpy(np.c_[exact["a"], exact["b"]])
    z = space.find(u)
    assert torch.allclose(space.place(z), u)
    assert torch.allclose(z.mT.cov(), torch.eye(3).double(), atol=0.25)
    assert len(space.starts) == 4
    assert all(float(start.norm()) < 6 for start in space.starts)
    assert len({float(start[0]) for start in space.starts}) == 4


def test_the_same_seed_gives_the_same_chains_and_another_others():
    runs = [pyrovi.nuts(rates, COUNTS, draws=15, warmup=10, chains=2, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (_arviz.group(run, "posterior")["rate"].values for run in runs)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_draws_are_kept_and_never_served_for_another_model(tmp_path, monkeypatch):
    settings = {"draws": 10, "warmup": 10, "chains": 2, "folder": tmp_path}
    first = pyrovi.nuts(rates, COUNTS, **settings)
    assert (tmp_path / "nuts.nc").is_file()

    class Ran(Exception):
        pass

    def ran(*_, **__):
        raise Ran

    monkeypatch.setattr(_nuts, "MCMC", ran)
    kept = pyrovi.nuts(rates, COUNTS, **settings)
    assert np.array_equal(_arviz.group(kept, "posterior")["rate"], _arviz.group(first, "posterior")["rate"])
    assert convergence(kept) == convergence(first)

    def other(counts):
        with pyro.plate("cells", len(counts)):
            pyro.sample("counts", dist.Poisson(pyro.sample("rate", dist.Gamma(2.5, 1.0))), obs=counts)

    for model, data, change in [
        (rates, {"counts": np.array([0.0, 3.0, 9.0])}, {}),
        (other, COUNTS, {}),
        (rates, COUNTS, {"draws": 30}),
        (rates, COUNTS, {"seed": 5}),
    ]:
        with pytest.raises(Ran):
            pyrovi.nuts(model, data, **{**settings, **change})
    (tmp_path / "nuts.nc").write_bytes(b"no")
    with pytest.raises(pyrovi.RunFolderError, match="cannot be read"):
        pyrovi.nuts(rates, COUNTS, **settings)
    with pytest.raises(pyrovi.RunFolderError, match="cannot be written to"):
        pyrovi.nuts(rates, COUNTS, **{**settings, "folder": tmp_path / "nuts.nc"})


def test_a_region_where_the_model_cannot_be_run_is_not_entered():
    """Beyond 1 the covariance is not positive definite, and its Cholesky decomposition raises."""

    def model():
        r = pyro.sample("r", dist.Normal(0.5, 1.0))
        cov = torch.eye(2) + r * (1 - torch.eye(2))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), cov), obs=torch.tensor([1.0, 0.5]))

    r = _arviz.group(pyrovi.nuts(model, draws=100, warmup=60, chains=1), "posterior")["r"]
    assert np.abs(r).max() < 1
    assert float(r.std()) > 0.1


@pytest.mark.slow
def test_the_compiled_gradient_gives_the_same_posterior(monkeypatch):
    monkeypatch.setattr(_nuts, "PATIENCE", 50)
    within(pyrovi.nuts(regression, DATA, **QUICK), pyrovi.exact(regression, DATA))


@pytest.mark.slow
def test_eight_schools_against_long_published_runs():
    """Non-centred, Normal(0, 5) and HalfCauchy(5) priors: μ 4.4 ± 3.3, τ 3.6, log τ's sd 1.17."""
    y, s = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def schools(y, s):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.deterministic("theta", mu + tau * pyro.sample("z", dist.Normal(0.0, 1.0)))
            pyro.sample("y", dist.Normal(theta, s), obs=y)

    posterior = _arviz.group(pyrovi.nuts(schools, {"y": y, "s": s}, draws=500, warmup=500), "posterior")
    assert float(posterior["mu"].mean()) == pytest.approx(4.4, abs=0.3)
    assert float(np.log(posterior["tau"]).std()) == pytest.approx(1.17, abs=0.1)


def test_what_cannot_be_sampled_says_so():
    def discrete():
        pyro.sample("k", dist.Bernoulli(0.5))

    def learned():
        pyro.sample(
            "x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.param("s", torch.tensor(1.0))), obs=torch.tensor(1.0)
        )

    with pytest.raises(pyrovi.ModelError, match="'k' is discrete"):
        pyrovi.nuts(discrete)
    with pytest.raises(pyrovi.ModelError, match="parameter 's', to be learned"):
        pyrovi.nuts(learned)
    with pytest.raises(pyrovi.SettingsError, match="chains must be a whole number of at least 1; got 0"):
        pyrovi.nuts(rates, COUNTS, chains=0)
    with pytest.raises(pyrovi.SettingsError, match="between 0 and 1"):
        pyrovi.nuts(rates, COUNTS, target_accept=1.0)
    fit = pyrovi.fit(rates, "normal", COUNTS, steps=1)
    with pytest.raises(pyrovi.SettingsError, match="no draws of site 'a'"):
        pyrovi.nuts(regression, DATA, fit=fit)
    with pytest.raises(pyrovi.SettingsError, match="takes model and data from the fit"):
        pyrovi.nuts(fit, COUNTS)


def test_the_command_compares_a_run_with_nuts_that_is_kept_in_its_folder(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from pyrovi.cli import app

    folder, calls = tmp_path / "run", []

    def draws(fit, folder):
        calls.append((fit.recipe, folder))
        return _arviz.container({"posterior": dataset({"w": np.random.default_rng(0).normal(2, 0.1, (4, 1_000))}, {}, {})}, {})

    monkeypatch.setattr(pyrovi, "nuts", draws)
    pyrovi.recipe("normal_mean").fit(steps=5, folder=folder)
    result = CliRunner().invoke(app, ["compare", str(folder), "--nuts", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reference"] == "nuts"
    assert json.loads(result.stdout)["comparison"]["w"]["mean_ref"] == pytest.approx(2, abs=0.01)
    assert calls == [("normal_mean", folder)]
    result = CliRunner().invoke(app, ["compare", str(folder), str(folder), "--nuts"])
    assert result.exit_code == 2
    assert "--nuts is a reference of its own" in result.output
