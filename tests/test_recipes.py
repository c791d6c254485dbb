"""Every recipe lands on its exact posterior: means within 0.05 posterior sd, sds within 5%.

The settings are the documents' or shorter ones. Moments are read off 100,000 draws of q, whose Monte Carlo error is 0.003 sd in a
mean and 0.2% in an sd, so the tolerance is the fit's own, not the draws'.
"""

import functools

import numpy as np
import pytest
import torch

import pyrovi
from pyrovi.guides import gamma_poisson as gamma_guide
from pyrovi.guides import linear_regression as regression_guide
from pyrovi.guides import normal_mean as normal_guide
from pyrovi.models import gamma_poisson, linear_regression, normal_mean

DTYPES = ["float32", "float64"]


def within_tolerance(fit, exact, draws=100_000, error=0.05, ratio=0.05):
    table = pyrovi.compare(fit, exact, draws=draws)
    assert table["error"].abs().max() < error, table["error"].abs().idxmax()
    assert (table["sd_ratio"] - 1).abs().max() < ratio, (table["sd_ratio"] - 1).abs().idxmax()
    return table


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 100])
def test_normal_mean_matches_its_conjugate_posterior(n, dtype):
    data = normal_mean.load(n)
    fit = pyrovi.fit(normal_mean.model, normal_guide.guide, data, steps=2_000, lr=0.05, particles=16, dtype=dtype, stop=None)
    table = within_tolerance(fit, normal_mean.exact(**data))
    assert fit.status is pyrovi.Status.converged
    assert abs(table.attrs["kl"].value) < 0.05
    assert table.attrs["kl"].se < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_mean_of_a_hundred_thousand_data(dtype):
    """From a scale 300 times the posterior's: Adam's memory of the first gradients, 1,000 steps by default, is shortened to 100."""
    data = normal_mean.load(100_000)
    adam = functools.partial(torch.optim.Adam, betas=(0.9, 0.99))
    fit = pyrovi.fit(
        normal_mean.model, normal_guide.guide, data, steps=6_000, lr=0.02, particles=4, optimizer=adam, dtype=dtype, stop=None
    )
    table = within_tolerance(fit, normal_mean.exact(**data), draws=4_000, error=0.05 + 3 / 4_000**0.5)
    loc, scale = fit.parameters["loc"].item(), fit.parameters["scale"].item()
    exact = normal_mean.exact(**data).marginals["w"]
    assert abs(loc - exact.mean()) < 0.05 * exact.std()
    assert abs(scale / exact.std() - 1) < 0.05
    assert abs(table.attrs["kl"].value) < 0.05


def gamma_within_tolerance(fit, data):
    """Against the parameters themselves as well: mean alpha/beta, sd √alpha/beta, with no Monte Carlo error at all."""
    exact = gamma_poisson.exact(**data)
    alpha, beta = (fit.parameters[k].double().numpy() for k in ("alpha", "beta"))
    theta = exact.marginals["theta"]
    error = (alpha / beta - theta.mean()) / theta.std()
    ratio = np.sqrt(alpha) / beta / theta.std()
    never_on = data["x"].sum(0) == 0
    assert never_on.sum() >= 16
    assert np.abs(error).max() < 0.05
    assert np.abs(ratio - 1).max() < 0.05
    table = within_tolerance(fit, exact, draws=20_000, error=0.05 + 4 / 20_000**0.5, ratio=0.05 + 0.03)
    assert len(table) == 64
    return table


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_gamma_poisson_matches_all_64_pixels(dtype):
    """With a quarter of the document's particles; the next test has them all."""
    data = gamma_poisson.load()
    fit = pyrovi.fit(gamma_poisson.model, gamma_guide.guide, data, steps=5_000, lr=0.3, particles=32, dtype=dtype, stop=None)
    gamma_within_tolerance(fit, data)


@pytest.mark.slow
def test_gamma_poisson_with_the_documents_settings():
    data = gamma_poisson.load()
    fit = pyrovi.recipe("gamma_poisson").fit()
    assert fit.settings["steps"] == 5_000
    assert fit.settings["particles"] == 128
    table = gamma_within_tolerance(fit, data)
    assert table.attrs["kl"].value < 0.05  # over 64 pixels


@pytest.mark.parametrize("unknown", [False, True], ids=["known noise", "unknown noise"])
def test_a_full_covariance_guide_matches_linear_regression(unknown):
    data = {**linear_regression.load(), **({"noise": None} if unknown else {})}
    fit = pyrovi.fit(
        linear_regression.model, "multivariate_normal", data, steps=6_000, lr=0.02, particles=16, schedule="cosine", stop=None
    )
    exact = linear_regression.exact(**data)
    table = within_tolerance(fit, exact)
    draws = fit.posterior(100_000)["beta"].double().numpy()
    covariance, expected = np.cov(draws.T), exact.covariance["beta"]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs(covariance - expected).max() < 0.05 * expected.max()
    assert (np.abs(covariance - expected) / scale).max() < 0.05
    assert table.attrs["kl"].value < 0.1


def test_mean_field_shrinks_variances_to_the_inverse_diagonal_of_the_precision():
    data = linear_regression.load()
    exact = linear_regression.exact(**data)
    expected = 1 / np.diag(np.linalg.inv(exact.covariance["beta"]))
    for guide in (regression_guide.guide, "normal"):
        fit = pyrovi.fit(linear_regression.model, guide, data, steps=3_000, lr=0.02, particles=16, stop=None)
        draws = fit.posterior(100_000)["beta"].double().numpy()
        assert np.allclose(draws.var(0), expected, rtol=0.05)
        table = pyrovi.compare(fit, exact)
        assert table["error"].abs().max() < 0.05 + 4 / 10_000**0.5  # the means are right all the same
        assert table["sd_ratio"].min() < 0.2  # s1 to s6 of the diabetes data are nearly collinear
        # KL(q‖p) of two Gaussians with the same mean, q's covariance diagonal, in closed form
        precision = np.linalg.inv(exact.covariance["beta"])
        kl = 0.5 * (np.diag(precision) @ expected - 10 - np.log(expected).sum() + np.linalg.slogdet(exact.covariance["beta"])[1])
        assert table.attrs["kl"].value == pytest.approx(kl, abs=0.02 + 4 * table.attrs["kl"].se)


def test_recipes_take_the_users_own_data():
    rng = np.random.default_rng(0)
    counts = rng.poisson([2.0, 7.0, 0.5], size=(40, 3)).astype(float)
    data = {"x": counts, "prior_image": np.array([1.0, 1.0, 1.0]), "weight": 1.0}
    fit = pyrovi.recipe("gamma_poisson").fit(data, particles=32, steps=5_000, lr=0.2, stop=None)
    within_tolerance(fit, gamma_poisson.exact(**data))


def test_a_recipe_knows_itself():
    fit = pyrovi.recipe("normal_mean").fit(steps=3)
    assert fit.recipe == "normal_mean"
    assert "recipe" in fit.to_arviz(5).attrs
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'normal_mean'"):
        pyrovi.recipe("normal_meen")
