"""One Gaussian, a mixture and flows on the same two-humped target; its KL to each is known or zero."""

import math

import numpy as np
import pytest
import torch

import pyrovi
from pyrovi.errors import DataError
from pyrovi.guides import gaussian_mixture as guide_module
from pyrovi.models import gaussian_mixture

DATA = gaussian_mixture.load()


def kl_of_normal(loc, scale):
    """KL(Normal(loc, scale) ‖ target) by the trapezoidal rule, as the guide's own quadrature is Gauss–Hermite's."""
    x = np.linspace(-40, 40, 200_001)
    q = np.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    p = gaussian_mixture.Mixture(**DATA).pdf(x)
    inside = q > 0
    return np.trapezoid(np.where(inside, q * (np.log(np.where(inside, q, 1)) - np.log(p)), 0), x)


def test_target_is_normalised_and_its_quantiles_invert_its_distribution_function():
    target = gaussian_mixture.Mixture(**DATA)
    x = np.linspace(-40, 40, 100_001)
    assert np.trapezoid(target.pdf(x), x) == pytest.approx(1, abs=1e-10)
    assert np.trapezoid(x * target.pdf(x), x) == pytest.approx(target.mean(), abs=1e-9)
    assert np.trapezoid((x - 0.5) ** 2 * target.pdf(x), x) == pytest.approx(target.std() ** 2, abs=1e-8)
    p = np.array([1e-6, 0.05, 0.3, 0.5, 0.95, 1 - 1e-6])
    assert target.cdf(target.ppf(p)) == pytest.approx(p, abs=1e-12)
    draws = target.rvs(size=100_000, random_state=np.random.default_rng(0))
    assert draws.mean() == pytest.approx(0.5, abs=4 * target.std() / math.sqrt(100_000))


def test_model_scores_the_target():
    import pyro
    from pyro import poutine

    x = torch.tensor(0.7, dtype=torch.float64)
    data = {name: torch.as_tensor(value) for name, value in DATA.items()}
    trace = poutine.trace(pyro.condition(gaussian_mixture.model, {"x": x})).get_trace(**data)
    assert trace.log_prob_sum().item() == pytest.approx(np.log(gaussian_mixture.Mixture(**DATA).pdf(0.7)), abs=1e-12)


@pytest.mark.parametrize(
    ("loc", "scale", "kl"), [(0.7101, 2.4205, 0.17871), (0.502, 2.834, 0.2317), (0.5, 2.669, 0.1979), (0.606, 2.608, 0.1890)]
)
def test_kl_of_the_documents_answers(loc, scale, kl):
    assert kl_of_normal(loc, scale) == pytest.approx(kl, abs=6e-4)


def test_optimum_of_one_gaussian_by_two_quadratures():
    assert guide_module.optimum(**DATA) == pytest.approx(-kl_of_normal(0.7101, 2.4205), abs=1e-6)


def test_one_gaussian_reaches_its_optimum():
    fit = pyrovi.recipe("gaussian_mixture").fit(progress=False)
    loc, scale = fit.parameters["loc"].item(), fit.parameters["scale"].item()
    assert abs(loc - 0.7101) < 0.02
    assert abs(scale - 2.4205) < 0.02
    assert kl_of_normal(loc, scale) == pytest.approx(0.1787, abs=0.003)
    told = pyrovi.compare(fit, gaussian_mixture.exact(**DATA), draws=100_000).attrs["kl"]
    assert abs(told.value - kl_of_normal(loc, scale)) < 4 * told.se


def test_two_gaussians_hold_the_target():
    fit = pyrovi.recipe("gaussian_mixture").fit(guide="mixture", particles=200, lr=0.02, schedule="cosine", progress=False)
    elbo = fit.estimate_elbo(100_000)
    assert -elbo.value + 4 * elbo.se < 0.005
    locs = fit.parameters["AutoMixture.locs"].flatten().sort().values
    assert torch.allclose(locs, torch.tensor([-3.0, 2.0]), atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_neural_spline_comes_close(seed):
    fit = pyrovi.recipe("gaussian_mixture").fit(guide="flow", particles=200, lr=0.02, schedule="cosine", seed=seed, progress=False)
    elbo = fit.estimate_elbo(100_000)
    assert -elbo.value + 2 * elbo.se < 0.01


def test_other_targets_go_through_the_same_arguments():
    three = {"weights": [0.2, 0.5, 0.3], "means": [-6.0, 0.0, 5.0], "sds": [0.5, 1.0, 0.7]}
    fit = pyrovi.recipe("gaussian_mixture").fit(
        three, "mixture", guide_options={"components": 3, "spread": 5.0}, particles=100, steps=1_500, lr=0.05, schedule="cosine",
        progress=False,
    )  # fmt: skip
    elbo = fit.estimate_elbo(50_000)
    assert -elbo.value + 4 * elbo.se < 0.01
    assert gaussian_mixture.exact(**three).marginals["x"].mean() == pytest.approx(0.3)


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match="one length"):
        gaussian_mixture.exact([0.5, 0.5], [0.0], [1.0, 1.0])
    with pytest.raises(DataError, match="above 0"):
        gaussian_mixture.exact([0.5, 0.5], [0.0, 1.0], [1.0, -1.0])
