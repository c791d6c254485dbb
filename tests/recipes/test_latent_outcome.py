"""A latent a datum: a factor for each and a network that reads y reach the evidence, one that reads x its own optimum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy import integrate, stats

import pyrovi
from pyrovi import data
from pyrovi._isolation import isolated
from pyrovi.guides import latent_outcome as guides
from pyrovi.models import latent_outcome
from pyrovi.preflight import prepare

DATA = latent_outcome.load()


def test_data_are_the_documents():
    """Drawn in the order x, noise, and sorted together; the standardised noise runs from 0.17 to 0.83."""
    waves = data.vink()
    assert len(waves.x) == 150
    assert np.all(np.diff(waves.x) > 0)
    assert waves.y.mean() == pytest.approx(0, abs=1e-12)
    assert waves.y.std() == pytest.approx(1)
    rng = np.random.RandomState(43)
    x = 80 * rng.rand(150) - 20
    noise = rng.randn(150) * 3 * (0.25 + ((x + 20) / 80) ** 2)
    y = 0.125 * x * (1 + np.sin(x)) + 5 + noise
    assert np.allclose(waves.y * waves.sd + waves.mean, y[np.argsort(x)])
    assert np.allclose((waves.y - waves.expected) * waves.sd, noise[np.argsort(x)])
    assert waves.noise.min() == pytest.approx(0.17, abs=0.005)
    assert waves.noise.max() == pytest.approx(0.83, abs=0.005)
    fresh = data.vink(10_000, seed=1, standardise_by=waves)
    assert np.std((fresh.y - fresh.expected) / fresh.noise) == pytest.approx(1, abs=5 / math.sqrt(2 * 10_000))


@settings(max_examples=20, deadline=None)
@given(y=st.floats(-3, 3), prior_scale=st.floats(0.3, 3), noise=st.floats(0.3, 3))
def test_exact_is_the_integral_over_the_latent(y, prior_scale, noise):
    exact = latent_outcome.exact([0.0], [y], prior_scale, noise)

    def joint(z):
        return stats.norm(0, prior_scale).pdf(z) * stats.norm(z, noise).pdf(y)

    reach = 12 * prior_scale
    evidence, mean = (
        integrate.quad(lambda z, k=k: z**k * joint(z), -reach, reach, points=[0, y] if abs(y) < reach else None)[0] for k in (0, 1)
    )
    assert exact.log_evidence == pytest.approx(math.log(evidence), abs=1e-6)
    assert exact.marginals["z"].mean()[0] == pytest.approx(mean / evidence, abs=1e-6)
    assert exact.marginals["z"].pdf(0.3)[0] == pytest.approx(joint(0.3) / evidence, rel=1e-5)


def test_document_has_half_the_outcome_and_root_half():
    exact = latent_outcome.exact(**DATA)
    assert np.allclose(exact.marginals["z"].mean(), DATA["y"] / 2)
    assert np.allclose(exact.marginals["z"].std(), math.sqrt(0.5))
    assert exact.log_evidence == pytest.approx(stats.norm(0, math.sqrt(2)).logpdf(DATA["y"]).sum())


def parameters_within_five_percent(fit):
    """Against the parameters themselves, without Monte Carlo error; KL(q‖p) of Normals in closed form."""
    loc, scale = (fit.parameters[name].double().numpy() for name in ("loc", "scale"))
    sd = math.sqrt(0.5)
    assert np.abs(loc - DATA["y"] / 2).max() < 0.05 * sd
    assert np.abs(scale / sd - 1).max() < 0.05
    kl = np.log(sd / scale) + (scale**2 + (loc - DATA["y"] / 2) ** 2) / (2 * sd**2) - 0.5
    assert kl.sum() < 0.05


def test_a_factor_a_datum_reaches_the_evidence_with_the_recipes_settings():
    """Seeds 0 to 19: errors up to 0.022 sd and 1.4%, KL up to 0.004 nats."""
    fit = pyrovi.recipe("latent_outcome").fit(progress=False)
    parameters_within_five_percent(fit)
    table = pyrovi.compare(fit, latent_outcome.exact(**DATA), draws=2_000)
    assert abs(table.attrs["kl"].value) < 0.05 + 4 * table.attrs["kl"].se


def test_so_does_a_network_that_reads_the_outcome():
    """20,000 draws: a Monte Carlo error of 0.007 sd in a mean and 0.5% in an sd."""
    fit = pyrovi.recipe("latent_outcome").fit(guide=guides.amortized_on_y, progress=False)
    assert fit.settings["guide"] == "amortized_on_y"
    assert fit.settings["vectorized"]
    z, exact = fit.posterior(20_000)["z"].double().numpy(), latent_outcome.exact(**DATA)
    assert np.abs(z.mean(0) - DATA["y"] / 2).max() < 0.05 * math.sqrt(0.5)
    assert np.abs(z.std(0) / math.sqrt(0.5) - 1).max() < 0.05
    reached = fit.estimate_elbo()
    assert reached.value == pytest.approx(exact.log_evidence, abs=0.1 + 4 * reached.se)


def replicated(n=40, seed=0):
    """Many outcomes at each of five x, so that E[y | x] and Var(y | x) are those of the sample, and no network can tell more."""
    rng = np.random.default_rng(seed)
    x = np.repeat(np.linspace(-1, 1, 5), n)
    return {"x": x, "y": np.sin(3 * x) + rng.normal(size=len(x)) * np.where(x > 0, 0.8, 0.3)}


def test_a_network_that_reads_x_lands_on_its_own_optimum():
    """The mean is E[y | x]/2 within 0.05 sd, the sd √½ within 5%, and the ELBO the optimum, 14.1 nats below the evidence."""
    replicates = replicated()
    fit = pyrovi.recipe("latent_outcome").fit(
        replicates, guide=guides.amortized_on_x, steps=2_000, lr=0.01, particles=8, progress=False
    )
    groups = replicates["y"].reshape(5, -1)
    optimum = guides.optimum(**replicates)
    evidence = latent_outcome.exact(**replicates).log_evidence
    assert evidence - optimum == pytest.approx(40 * groups.var(1).sum() / 4)
    assert evidence - optimum == pytest.approx(14.15, abs=0.01)
    z = fit.posterior(100_000)["z"].double().numpy()[:, ::40]
    assert np.all(np.abs(z.mean(0) - groups.mean(1) / 2) < 0.05 * math.sqrt(0.5))
    assert np.all(np.abs(z.std(0) / math.sqrt(0.5) - 1) < 0.05)
    reached = fit.estimate_elbo(50_000)
    assert reached.value == pytest.approx(optimum, abs=0.1 + 4 * reached.se)
    assert reached.value < optimum + 4 * reached.se


@settings(max_examples=20, deadline=None)
@given(prior_scale=st.floats(0.3, 3), noise=st.floats(0.3, 3))
def test_the_optimum_on_x_is_the_best_mean_and_sd(prior_scale, noise):
    """The ELBO of any q(z | x) = Normal(m, s) in closed form; none of its neighbours is better."""
    replicates = replicated(4)
    groups = replicates["y"].reshape(5, -1)

    def elbo(m, s):
        likelihood = stats.norm(m[:, None], noise).logpdf(groups) - s[:, None] ** 2 / (2 * noise**2)
        kl = np.log(prior_scale / s) + (s**2 + m**2) / (2 * prior_scale**2) - 0.5
        return (likelihood - kl[:, None]).sum()

    best = guides.optimum(**replicates, prior_scale=prior_scale, noise=noise)
    m = prior_scale**2 / (prior_scale**2 + noise**2) * groups.mean(1)
    s = np.full(5, prior_scale * noise / math.hypot(prior_scale, noise))
    assert elbo(m, s) == pytest.approx(best)
    for change in (0.99, 1.01):
        assert elbo(m * change, s) < best
        assert elbo(m, s * change) < best


def test_with_the_kl_of_the_documents_formula_there_is_no_optimum():
    """Its sign reversed, the loss of a point is (y² − 2yμ + 1 + log σ²)/2, and falls without end."""

    def loss(y, mean, sd):
        squared_error = ((y - mean) ** 2 + sd**2) / 2
        kl = (sd**2 + mean**2 - 1) / 2 - math.log(sd)
        assert squared_error - kl == pytest.approx((y**2 - 2 * y * mean + 1 + math.log(sd**2)) / 2)
        return squared_error - kl, squared_error + kl

    reversed_, right = zip(*(loss(1.5, 0.75, sd) for sd in (1.0, math.sqrt(0.5), 1e-3, 1e-6)), strict=True)
    assert all(after < before for before, after in zip(reversed_, reversed_[1:], strict=False))
    assert min(right) == right[1]


def test_on_the_documents_data_the_optimum_is_six_nats_short():
    """Of a guide that knows E[y | x]; one that learned every outcome by heart would have none to pay."""
    evidence = latent_outcome.exact(**DATA).log_evidence
    assert guides.optimum(**DATA) == pytest.approx(evidence)
    assert evidence - guides.optimum(**DATA, expected=data.vink().expected) == pytest.approx(6.02, abs=0.005)
    assert (data.vink().noise ** 2).sum() / 4 == pytest.approx(7.18, abs=0.005)  # what it pays for fresh outcomes, on average


def test_with_predictors_in_which_the_wave_is_linear_it_lands_on_that_optimum():
    """From x and x sin x without a hidden layer it is least squares, on these data a little better than the true mean."""
    waves = data.vink()
    X = np.column_stack([waves.x, waves.x * np.sin(waves.x)]) / 30

    def linear(x):
        guides.amortized_on_x(x, widths=())

    fit = pyrovi.recipe("latent_outcome").fit(
        {"x": X, "y": waves.y}, guide=linear, steps=1_500, lr=0.01, particles=8, progress=False
    )
    design = np.column_stack([X, np.ones(150)])
    fitted = design @ np.linalg.lstsq(design, waves.y, rcond=None)[0]
    optimum = guides.optimum(X, waves.y, expected=fitted)
    reached = fit.estimate_elbo(20_000)
    assert reached.value == pytest.approx(optimum, abs=0.1 + 4 * reached.se)
    assert optimum == pytest.approx(guides.optimum(**DATA, expected=waves.expected), abs=0.2)


@pytest.mark.parametrize("guide", [guides.guide, guides.amortized_on_y, guides.amortized_on_x], ids=lambda guide: guide.__name__)
def test_one_pass_over_batches_has_the_elbo_of_the_full_batch(guide):
    """150 data in batches of 64, the last of 22: weighted by B/n, within 4 Monte Carlo errors of each other."""
    with isolated(0, torch.float64):
        problem, whole = (
            prepare(latent_outcome.model, guide, DATA, dtype=torch.float64, device=torch.device("cpu"), batch_size=size)
            for size in (64, None)
        )
        whole.parameters.assign(problem.parameters.values())
        assert problem.batches is not None
        assert [len(rows) for rows in problem.batches.blocks(problem.device)] == [64, 64, 22]
        batches, full = (np.array([one_pass(p) for _ in range(400)]) for p in (problem, whole))
    se = math.sqrt(batches.var() / 400 + full.var() / 400)
    assert abs(batches.mean() - full.mean()) < 4 * se


@torch.no_grad()
def one_pass(problem):
    total = 0.0
    for block in range(problem.batches.steps_per_epoch if problem.batches else 1):
        guide, model, given = problem.step_programs(block)
        weight = len(problem.batches.blocks(problem.device)[block]) / 150 if problem.batches else 1.0
        guided = poutine.trace(guide).get_trace(**given)
        modelled = poutine.trace(poutine.replay(model, trace=guided)).get_trace(**given)
        total += weight * (modelled.log_prob_sum() - guided.log_prob_sum()).item()
    return total


def test_trained_on_batches_it_reaches_the_same_evidence():
    fit = pyrovi.recipe("latent_outcome").fit(batch_size=64, lr=0.02, progress=False)
    assert fit.settings["batch_plate"] == "data"
    parameters_within_five_percent(fit)


def test_a_network_predicts_for_new_points():
    fit = pyrovi.recipe("latent_outcome").fit(replicated(), guide=guides.amortized_on_x, steps=50, progress=False)
    drawn = fit.predictive(200, data={"x": np.array([-1.0, 0.2, 0.4])})
    assert drawn["y"].shape == (200, 3)
    assert fit.on({"x": np.array([-1.0, 0.2]), "y": np.array([0.0, 1.0])}).draws(7).posterior["z"].shape == (7, 2)
