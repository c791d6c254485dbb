"""What ArviZ is given: groups, dims, attributes, on the line that is installed; and the same file on the other line."""

import os
import shutil
import subprocess

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch.distributions import constraints

import pyrovi
from pyrovi import _arviz
from pyrovi.models import gamma_poisson

matplotlib.use("Agg")
az = _arviz.arviz()

SCHOOLS = {
    "y": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]),
    "s": np.array([15.0, 10, 16, 11, 9, 11, 10, 18]),
}


def schools(y, s, prior=5.0):
    mu = pyro.sample("mu", dist.Normal(0.0, prior))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("school", len(s)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta + 0 * weights[..., 0], s), obs=y)


@pytest.fixture(scope="module")
def fit():
    return pyrovi.fit(schools, "normal", SCHOOLS, steps=800, lr=0.05, particles=4, stop=None)


@pytest.fixture(scope="module")
def idata(fit):
    return fit.to_arviz(500)


def test_every_group_is_there(idata):
    assert set(_arviz.groups(idata)) == {
        "posterior",
        "unconstrained_posterior",
        "log_likelihood",
        "log_prior",
        "sample_stats",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "observed_data",
        "constant_data",
        "optimization",
    }


def test_the_container_is_the_lines_own(idata):
    assert isinstance(idata, xr.DataTree if _arviz.ARVIZ_1 else az.InferenceData)


def test_dims_come_from_plates_and_events(idata):
    posterior = _arviz.group(idata, "posterior")
    assert posterior["z"].dims == ("chain", "draw", "school")
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["weights"].dims == ("chain", "draw", "weights_dim_0")
    assert posterior["mu"].dims == ("chain", "draw")
    assert _arviz.group(idata, "log_likelihood")["y"].dims == ("chain", "draw", "school")
    assert _arviz.group(idata, "log_prior")["weights"].dims == ("chain", "draw")
    assert _arviz.group(idata, "observed_data")["y"].dims == ("school",)
    assert _arviz.group(idata, "constant_data")["s"].dims == ("school",)
    assert _arviz.group(idata, "optimization")["elbo"].dims == ("restart", "step")


def test_every_dim_has_a_coordinate_of_its_name(idata):
    for name in _arviz.groups(idata):
        ds = _arviz.group(idata, name)
        assert set(ds.dims) <= set(ds.coords), name


def test_dims_and_coords_of_the_user_win(fit):
    idata = fit.to_arviz(10, dims={"weights": ["part"]}, coords={"school": list("ABCDEFGH"), "part": ["a", "b", "c"]})
    posterior = _arviz.group(idata, "posterior")
    assert posterior["weights"].dims == ("chain", "draw", "part")
    assert posterior["z"].sel(school="C").dims == ("chain", "draw")
    for dims, coords, word in (
        ({"weihgts": ["part"]}, {}, "weihgts"),
        ({"weights": ["a", "b"]}, {}, "2 axes"),
        ({}, {"school": ["A"]}, "1 labels"),
    ):
        with pytest.raises(pyrovi.SettingsError, match=word):
            fit.to_arviz(10, dims=dims, coords=coords)


def test_attributes(idata):
    attrs = _arviz.group(idata, "posterior").attrs
    assert {"created_at", "creation_library_version", "creation_library_language", "inference_library_version"} <= set(attrs)
    assert (attrs["creation_library"], attrs["inference_library"], attrs["guide"]) == ("pyrovi", "pyro-ppl", "normal")
    if _arviz.ARVIZ_1:
        assert list(attrs["sample_dims"]) == ["chain", "draw"]


def test_only_transformed_variables_are_unconstrained(idata):
    unconstrained, posterior = (_arviz.group(idata, g) for g in ("unconstrained_posterior", "posterior"))
    assert set(unconstrained.data_vars) == {"tau", "weights"}
    assert np.allclose(np.exp(unconstrained["tau"]), posterior["tau"], rtol=1e-5)
    assert unconstrained["weights"].shape == (1, 500, 2)


def test_lp_and_log_q_are_the_densities_of_the_draws(fit, idata):
    """Scored here by SciPy, from the draws alone."""
    from scipy import stats

    posterior = _arviz.group(idata, "posterior")
    mu, tau, z = (posterior[v].values[0] for v in ("mu", "tau", "z"))
    y, s = SCHOOLS["y"], SCHOOLS["s"]
    like = stats.norm(mu[:, None] + tau[:, None] * z, s).logpdf(y)
    prior = {
        "mu": stats.norm(0, 5).logpdf(mu),
        "tau": stats.halfcauchy(scale=5).logpdf(tau),
        "weights": np.full(500, np.log(2.0)),
        "z": stats.norm.logpdf(z),
    }
    assert np.allclose(_arviz.group(idata, "log_likelihood")["y"][0], like, atol=1e-3)
    for name, value in prior.items():
        assert np.allclose(_arviz.group(idata, "log_prior")[name][0], value, atol=1e-3)
    total = like.sum(1) + sum(v if v.ndim == 1 else v.sum(1) for v in prior.values())
    assert np.allclose(_arviz.group(idata, "sample_stats")["lp"][0], total, atol=1e-2)

    p = fit.parameters
    loc, scale = p["AutoNormal.locs.mu"].item(), p["AutoNormal.scales.mu"].item()
    assert posterior["mu"].mean() == pytest.approx(loc, abs=5 * scale / 500**0.5)


def test_log_q_integrates_to_one():
    """The mean of 1/q-weighted prior densities is 1, within 4 standard errors: a wrong Jacobian in log_q shows here."""

    def model(x):
        s = pyro.sample("s", dist.Gamma(3.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    draws = pyrovi.fit(model, "normal", {"x": [1.0, -2.0]}, steps=600, lr=0.05, particles=8, stop=None).draws(50_000)
    prior = torch.distributions.Gamma(3.0, 1.0).log_prob(draws.posterior["s"]).double()
    weights = (prior - draws.log_q).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / len(weights) ** 0.5
    assert weights.std() < 3


def test_pointwise_log_likelihoods_are_not_scaled():
    def scaled(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=10.0):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    drawn = pyrovi.fit(scaled, "normal", {"x": [1.0, 2.0]}, steps=2).draws(5, pointwise=True)
    expected = torch.distributions.Normal(drawn.posterior["w"][:, None], 1.0).log_prob(torch.tensor([1.0, 2.0]))
    assert torch.allclose(drawn.log_likelihood["x"], expected)


def test_predictions_follow_the_posterior(idata):
    predictive, posterior = (_arviz.group(idata, g) for g in ("posterior_predictive", "posterior"))
    residual = (predictive["y"] - posterior["theta"]).values / SCHOOLS["s"]
    assert abs(residual.mean()) < 5 / residual.size**0.5
    assert abs(residual.std() - 1) < 5 / (2 * residual.size) ** 0.5


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # eight schools do have influential observations
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 on pandas 3
def test_arviz_reads_it(idata):
    assert set(az.summary(idata)) >= {"mean", "sd"}
    assert list(fit_summary_columns(idata)) == ["mean", "sd", "5%", "95%", "mcse_mean"]
    loo = az.loo(idata, var_name="y")
    assert np.isfinite(loo.elpd if _arviz.ARVIZ_1 else loo.elpd_loo)
    table = az.compare({"a": idata, "b": idata})
    assert len(table) == 2


def fit_summary_columns(idata):
    from pyrovi.export import summary

    return summary(idata).columns


@pytest.mark.filterwarnings("ignore")  # ArviZ's plots warn of their own accord
@pytest.mark.parametrize(
    "plot",
    ["plot_dist", "plot_forest", "plot_trace", "plot_pair", "plot_ppc_dist", "plot_ridge"]
    if _arviz.ARVIZ_1
    else ["plot_posterior", "plot_forest", "plot_trace", "plot_pair", "plot_ppc", "plot_density", "plot_dist_comparison"],
)
def test_the_usual_plots_take_it(idata, plot):
    options = {} if plot in ("plot_ppc", "plot_ppc_dist") else {"var_names": ["mu", "tau"]}
    if _arviz.ARVIZ_1:
        options["backend"] = "matplotlib"
    assert getattr(az, plot)(idata, **options) is not None
    matplotlib.pyplot.close("all")


def test_the_summary_does_not_quote_r_hat(fit):
    table = fit.summary(200)
    assert list(table.columns) == ["mean", "sd", "5%", "95%", "mcse_mean"]
    assert table.loc["tau", "5%"] > 0
    assert np.allclose(table["mcse_mean"], table["sd"] / 200**0.5)


def test_a_file_of_one_line_is_read_on_the_other(idata, tmp_path):
    """The other interpreter is named by PYROVI_OTHER_PYTHON, which `.ci/run` sets."""
    other = os.environ.get("PYROVI_OTHER_PYTHON")
    path = tmp_path / "posterior.nc"
    _arviz.write(idata, str(path))
    back = _arviz.read(str(path))
    assert np.array_equal(_arviz.group(back, "posterior")["z"], _arviz.group(idata, "posterior")["z"])
    if not other or not shutil.which(other):
        pytest.skip("PYROVI_OTHER_PYTHON names no second interpreter")
    program = (
        "import sys, warnings; warnings.simplefilter('ignore'); from pyrovi import _arviz; import arviz as az;"
        "d = _arviz.read(sys.argv[1]); az.summary(d); az.loo(d);"
        "print(_arviz.ARVIZ_1, repr(float(_arviz.group(d, 'posterior')['z'].sum())))"
    )
    run = subprocess.run([other, "-c", program, str(path)], capture_output=True, text=True, check=True)
    line, total = run.stdout.split()
    assert line == str(not _arviz.ARVIZ_1)
    assert float(total) == pytest.approx(float(_arviz.group(idata, "posterior")["z"].sum()), rel=1e-6)


def test_pareto_k_has_the_right_sign():
    """q = N(0, 0.5) for p = N(0, 1): the tail index is 0.75; the wrong sign gives about -1.75 (design, arviz.md)."""
    z = np.random.default_rng(0).normal(size=100_000) * 0.5
    log_ratio = -0.5 * z**2 + 0.5 * (z / 0.5) ** 2 + np.log(0.5)
    assert _arviz.psis(log_ratio)[1] == pytest.approx(0.75, abs=0.15)


def test_a_matrix_of_two_plates_keeps_their_order():
    fit = pyrovi.recipe("gamma_poisson").fit(gamma_poisson.load(m=4), steps=2, particles=2)
    idata = fit.to_arviz(6)
    assert _arviz.group(idata, "log_likelihood")["x"].dims == ("chain", "draw", "image", "pixel")
    assert _arviz.group(idata, "posterior")["theta"].dims == ("chain", "draw", "pixel")
    assert _arviz.group(idata, "constant_data")["prior_image"].dims == ("pixel",)
    assert np.array_equal(_arviz.group(idata, "observed_data")["x"], gamma_poisson.load(m=4)["x"])


def test_groups_as_large_as_draws_times_data_are_made_unasked_only_while_they_are_small(monkeypatch, fit):
    large = {"log_likelihood", "posterior_predictive", "prior_predictive"}
    monkeypatch.setattr("pyrovi.export.POINTWISE_SCALARS", 10 * 8 - 1)
    assert not large & set(_arviz.groups(fit.to_arviz(10)))
    assert large <= set(_arviz.groups(fit.to_arviz(9)))
    assert large <= set(_arviz.groups(fit.to_arviz(10, pointwise=True)))
    assert not large & set(_arviz.groups(fit.to_arviz(9, pointwise=False)))


def test_a_slash_in_a_name_becomes_a_dot():
    from pyro.contrib.autoname import scope

    @scope(prefix="part")
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    fit = pyrovi.fit(model, "normal", {"x": [1.0, 2.0]}, steps=2)
    assert list(fit.posterior(3)) == ["part/w"]
    assert list(_arviz.group(fit.to_arviz(3), "posterior").data_vars) == ["part.w"]


def test_axes_that_no_plate_owns_are_dropped():
    def model(x):
        with pyro.plate("row", 2, dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))  # shape (2, 1)
            with pyro.plate("column", 3, dim=-1):
                pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    fit = pyrovi.fit(model, "normal", {"x": np.zeros((2, 3))}, steps=2)
    assert fit.posterior(5)["a"].shape == (5, 2)
    assert _arviz.group(fit.to_arviz(5), "posterior")["a"].dims == ("chain", "draw", "row")


@pytest.mark.parametrize("subsampling", [False, True], ids=["plain", "subsampling"])
def test_a_fit_on_batches_exports_all_of_its_data(subsampling):
    x = np.linspace(-1, 2, 13)

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5 if subsampling else None) as i:
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[i])

    def guide(x):
        pyro.sample("m", dist.Normal(pyro.param("m_loc", torch.tensor(0.0)), 0.3))
        loc = pyro.param("loc", lambda: torch.zeros(13))
        scale = pyro.param("scale", lambda: torch.ones(13), constraint=constraints.positive)
        with pyro.plate("data", 13, subsample_size=5 if subsampling else None) as i:
            pyro.sample("z", dist.Normal(loc[i], scale[i]))

    fit = pyrovi.fit(model, guide, {"x": x}, batch_size=5, steps=300, lr=0.05, particles=4, stop=None)
    idata = fit.to_arviz(40)
    posterior, like = _arviz.group(idata, "posterior"), _arviz.group(idata, "log_likelihood")
    assert posterior["z"].shape == like["x"].shape == (1, 40, 13)
    z = posterior["z"].values[0]
    assert np.allclose(like["x"][0], -0.5 * ((x - z) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi)), atol=1e-4)
    m = posterior["m"].values[0]
    lp = like["x"].values[0].sum(1) + (-0.5 * (z - m[:, None]) ** 2).sum(1) - 0.5 * m**2 - 7 * np.log(2 * np.pi)
    assert np.allclose(_arviz.group(idata, "sample_stats")["lp"][0], lp, atol=1e-3)
    loc, scale = (fit.parameters[k].numpy() for k in ("loc", "scale"))
    log_q = (-0.5 * ((z - loc) / scale) ** 2 - np.log(scale)).sum(1) - 7 * np.log(2 * np.pi)
    log_q += -0.5 * ((m - fit.parameters["m_loc"].item()) / 0.3) ** 2 - np.log(0.3)
    assert np.allclose(_arviz.group(idata, "sample_stats")["log_q"][0], log_q, atol=1e-3)


def test_predictions_on_new_data_keep_global_and_redraw_local_latents():
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(0.0, 0.01))
            pyro.sample("y", dist.Normal(a * x + b, 0.1), obs=y)

    x = np.linspace(1, 2, 20)
    fit = pyrovi.fit(model, "normal", {"x": x, "y": 3 * x}, steps=1_500, lr=0.05, particles=4, stop=None)
    with pytest.raises(pyrovi.DataError, match=r"'b' has shape \(20,\) in the fit and \(2,\).*redraw=\['b'\]"):
        fit.predictive(4, data={"x": [10.0, 20.0]})
    with pytest.raises(pyrovi.SettingsError, match="redraw names 'c'"):
        fit.predictive(4, data={"x": [10.0, 20.0]}, redraw=["c"])
    new = fit.predictive(400, data={"x": [10.0, 20.0]}, redraw=["b"])["y"]
    assert new.shape == (400, 2)
    assert new.mean(0).tolist() == pytest.approx([30.0, 60.0], rel=0.03)
    with pytest.raises(pyrovi.DataError, match="did you mean 'x'"):
        fit.predictive(4, data={"xx": [1.0]})
    with pytest.raises(pyrovi.DataError, match="NaN"):
        fit.predictive(4, data={"x": [np.nan]})


def test_outcomes_that_the_model_must_have_are_asked_for():
    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)

    fit = pyrovi.fit(model, "normal", {"x": [1.0, 2.0], "y": [1.0, 2.0]}, steps=2)
    with pytest.raises(pyrovi.DataError, match="passed as None"):
        fit.predictive(4, data={"x": [1.0]})


def test_a_model_without_latents_exports_what_it_has():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit = pyrovi.fit(model, lambda x: None, {"x": [1.0, 2.0]}, steps=300, lr=0.05, stop=None)
    assert fit.parameters["loc"].item() == pytest.approx(1.5, abs=1e-2)
    groups = _arviz.groups(fit.to_arviz(7))
    assert "posterior" not in groups
    assert {"log_likelihood", "posterior_predictive", "observed_data"} <= set(groups)
    assert len(fit.summary(10)) == 0
    assert "no latents" in repr(fit)
    assert fit.posterior(3) == {}
