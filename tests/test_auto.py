"""A fit without settings: against posteriors known by mathematics or quadrature."""

import contextlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

import pyrovi

EIGHT = {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18]}
EVIDENCE = -31.3113  # log p(data) of eight schools, by quadrature
EXACT = {"mu": (4.3968, 3.3177), "tau": (3.5979, 3.2192)}


def centred(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def not_centred(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def correlated():
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.99], [0.99, 1.0]])))


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("nine", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def banana():
    """Written as a density, so that nothing of its form can be read off the model."""
    x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([2]).to_event(1).mask(False))
    pyro.factor(
        "density", dist.Normal(0.0, 10.0).log_prob(x[..., 0]) + dist.Normal(0.03 * (x[..., 0] ** 2 - 100), 1.0).log_prob(x[..., 1])
    )


def bimodal():
    pyro.sample(
        "x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-5.0, 5.0]), 1.0))
    )


def bimodal_in_three():
    """The narrow mode has more mass, and a small basin of attraction."""
    x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([3]).to_event(1).mask(False))
    wide, narrow = dist.Normal(-4.0, 1.0).log_prob(x).sum(-1), dist.Normal(4.0, 0.5).log_prob(x).sum(-1)
    pyro.factor("density", torch.logaddexp(wide + math.log(0.3), narrow + math.log(0.7)))


def within(fit, name, mean, sd, n=4_000, errors=4.0):
    """The fit's draws have this mean and sd, within so many standard errors by its effective number of draws."""
    x = fit.posterior(n)[name].double()
    effective = min(n, fit.verdict.evidence.ess or n)
    assert x.mean(0).numpy() == pytest.approx(np.asarray(mean), abs=errors * np.max(sd) / math.sqrt(effective))
    kurtosis = float(((x - x.mean(0)) / x.std(0)).pow(4).mean(0).max())
    assert x.std(0).numpy() == pytest.approx(np.asarray(sd), rel=errors * math.sqrt((kurtosis - 1) / 4 / effective))


@pytest.mark.parametrize("model", [centred, not_centred])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_eight_schools_either_way_is_the_posterior_by_quadrature(model, seed):
    fit = pyrovi.fit(model, data=EIGHT, seed=seed)
    assert fit.verdict.level in ("trust", "reweight")
    assert fit.verdict.evidence.log_evidence.value == pytest.approx(EVIDENCE, abs=0.05)
    for name, (mean, sd) in EXACT.items():
        within(fit, name, mean, sd)


def test_a_hierarchy_seen_from_its_prior_needs_no_weights_to_speak_of():
    fit = pyrovi.fit(centred, data=EIGHT)
    assert fit.settings["centered"] == ["theta"]
    assert fit.elbo.max() > EVIDENCE - 0.1  # a centred full-covariance Gaussian has -32.59, a non-centred one -31.53


@pytest.mark.parametrize(("model", "name", "mean", "sd"), [(correlated, "x", [0, 0], [1, 1]), (funnel, "v", 0.0, 3.0)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_what_a_gaussian_in_the_right_coordinates_fits_exactly_is_trusted(model, name, mean, sd, seed):
    fit = pyrovi.fit(model, seed=seed)
    assert fit.verdict.level == "trust"
    assert fit.settings["rung"] == "gaussian"
    assert fit.estimate_elbo().value == pytest.approx(0.0, abs=0.01)
    within(fit, name, mean, sd)


def banana_is_right(fit):
    x = fit.posterior(4_000)["x"]
    assert x[:, 0].std().item() == pytest.approx(10.0, rel=0.1)
    assert x[:, 1].mean().item() == pytest.approx(0.0, abs=0.1 * math.sqrt(1 + 2 * 3**2))
    assert x[:, 1].std().item() == pytest.approx(math.sqrt(1 + 2 * 3**2), rel=0.12)


def test_a_banana_without_a_form_to_read_is_weighted():
    fit = pyrovi.fit(banana)
    assert fit.verdict.level in ("trust", "reweight")
    banana_is_right(fit)


@pytest.mark.slow
def test_a_banana_is_vouched_for_on_nearly_all_seeds_and_right_whenever_it_is():
    vouched = [fit for fit in (pyrovi.fit(banana, seed=seed) for seed in range(20)) if fit.verdict.level in ("trust", "reweight")]
    assert len(vouched) >= 18
    for fit in vouched:
        banana_is_right(fit)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_both_of_two_modes_are_there_with_their_shares(seed):
    fit = pyrovi.fit(bimodal, seed=seed)
    assert fit.verdict.level in ("trust", "reweight")
    assert (fit.posterior(4_000)["x"] > 0).float().mean().item() == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_a_mode_with_a_small_basin_is_found(seed):
    fit = pyrovi.fit(bimodal_in_three, seed=seed)
    assert fit.verdict.level in ("trust", "reweight")
    assert (fit.posterior(4_000)["x"][:, 0] > 0).float().mean().item() == pytest.approx(0.7, abs=0.04)


def test_predictors_in_raw_units_are_least_squares():
    """A flat prior and many data: the posterior of the coefficients is Student-t about the least-squares estimate."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(200), rng.normal(170, 10, 200), rng.normal(50_000, 12_000, 200)])
    y = x @ [-60_000, 1_300, 0.01] + rng.normal(0, 19_000, 200)

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1e8).expand([3]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(1e5))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(x @ b, sigma), obs=y)

    fit = pyrovi.fit(model, data={"x": x, "y": y})
    b, rest, *_ = np.linalg.lstsq(x, y, rcond=None)
    sd = np.sqrt(np.linalg.inv(x.T @ x).diagonal() * rest / (200 - 3))
    draws = fit.posterior(4_000)["b"].numpy()
    assert fit.verdict.level in ("trust", "reweight")
    assert (draws.mean(0) - b) / sd == pytest.approx(np.zeros(3), abs=0.1)
    assert draws.std(0) / sd == pytest.approx(np.ones(3), abs=0.07)


def test_a_simplex_with_an_empty_class_is_the_dirichlet():
    counts = torch.tensor([3.0, 7, 1, 0])

    def model(c):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        pyro.sample("c", dist.Multinomial(11, p), obs=c)

    fit = pyrovi.fit(model, data={"c": counts})
    exact = stats.dirichlet((counts + 1).numpy())
    draws = fit.posterior(4_000)["p"].numpy()
    assert fit.verdict.level in ("trust", "reweight")
    assert (draws.mean(0) - exact.mean()) / np.sqrt(exact.var()) == pytest.approx(np.zeros(4), abs=0.1)
    assert draws.std(0) == pytest.approx(np.sqrt(exact.var()), rel=0.1)


def test_parameters_at_which_the_model_raises_have_no_density():
    """A covariance that is not positive definite for correlations past ½ in a model that does not say so."""

    def model(y):
        r = pyro.sample("r", dist.Uniform(-0.99, 0.99))
        covariance = torch.eye(3) + r[..., None, None] * (torch.ones(3, 3) - torch.eye(3))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), covariance), obs=y)

    y = np.array([[1.0, -0.9, 0.3]])
    r = np.linspace(-0.4999, 0.9899, 200_001)
    covariance = np.eye(3) + r[:, None, None] * (np.ones((3, 3)) - np.eye(3))
    log_p = -0.5 * np.einsum("i,rij,j->r", y[0], np.linalg.inv(covariance), y[0]) - 0.5 * np.log(np.linalg.det(covariance))
    p = np.exp(log_p - log_p.max())
    mean = (r * p).sum() / p.sum()
    sd = math.sqrt(((r - mean) ** 2 * p).sum() / p.sum())
    fit = pyrovi.fit(model, data={"y": y[0]})
    assert fit.verdict.level in ("trust", "reweight")
    draws = fit.posterior(4_000)["r"]
    assert draws.mean().item() == pytest.approx(mean, abs=0.1 * sd)
    assert draws.std().item() == pytest.approx(sd, rel=0.1)


def test_a_discrete_latent_is_summed_out():
    """Two known Normals with an unknown share: its posterior by quadrature."""
    rng = np.random.default_rng(1)
    y = np.where(rng.random(60) < 0.3, rng.normal(-1, 1, 60), rng.normal(2, 1, 60))

    def model(y):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("row", len(y)):
            k = pyro.sample("k", dist.Bernoulli(share))
            pyro.sample("y", dist.Normal(-1.0 + 3.0 * k, 1.0), obs=y)

    def density(p):
        each = np.log((1 - p) * stats.norm.pdf(y, -1, 1) + p * stats.norm.pdf(y, 2, 1)).sum()
        return math.exp(each + 130) * stats.beta.pdf(p, 2, 2)

    total, mean, square = (integrate.quad(lambda p, k=k: p**k * density(p), 0, 1)[0] for k in range(3))
    mean, sd = mean / total, math.sqrt(square / total - (mean / total) ** 2)
    fit = pyrovi.fit(model, data={"y": y})
    assert fit.verdict.level in ("trust", "reweight")
    within(fit, "share", mean, sd)
    assert fit.verdict.evidence.log_evidence.value == pytest.approx(math.log(total) - 130, abs=0.02)


def test_a_summed_out_models_run_is_loaded_and_its_outcomes_are_refused(tmp_path):
    def model(y):
        p = pyro.sample("p", dist.Beta(torch.tensor([2.0, 4.0]), 3.0).to_event(1))
        with pyro.plate("row", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.4)).long()
            pyro.sample("y", dist.Bernoulli(p[k]), obs=y)

    fit = pyrovi.fit(model, data={"y": np.array([0, 1, 1, 0, 1])}, folder=tmp_path / "run")
    again = pyrovi.load(tmp_path / "run", model=model)
    assert torch.equal(again.posterior(50)["p"], fit.posterior(50)["p"])
    with pytest.raises(pyrovi.PyroviError, match="summed out"):
        fit.predictive(10)


def test_a_support_that_moves_is_refused():
    def model(y):
        a = pyro.sample("a", dist.Gamma(3.0, 1.0))
        x = pyro.sample("x", dist.Uniform(0.0, a))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(pyrovi.ModelError, match="support of site 'x' depends on other latents"):
        pyrovi.fit(model, data={"y": np.array([4.0])})


def test_a_latent_whose_prior_depends_on_a_discrete_one_is_refused():
    def model(y):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        x = pyro.sample("x", dist.Normal(k, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(pyrovi.ModelError, match="cannot be summed out"):
        pyrovi.fit(model, data={"y": [1.0, 2.0]})


def test_settings_of_svi_ask_for_svi():
    fit = pyrovi.fit(correlated, steps=50)
    assert fit.settings["method"] == "svi"
    assert fit.settings["guide"] == "normal"
    assert fit.verdict is None


def test_a_model_with_parameters_of_its_own_is_fitted_by_svi_and_says_so():
    def model(y):
        sigma = pyro.param("sigma", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    fit = pyrovi.fit(model, data={"y": [1.0, 2.0, 4.0, 3.0]})
    assert fit.settings["method"] == "svi"
    assert "a parameter of its own, 'sigma'" in fit.advice
    assert fit.verdict is not None


def test_the_same_seed_gives_the_same_draws():
    one, two, three = (pyrovi.fit(centred, data=EIGHT, seed=seed).posterior(100)["tau"] for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_draws_and_verdict_survive_the_disk(tmp_path):
    fit = pyrovi.fit(not_centred, data=EIGHT)
    fit.save(tmp_path / "run")
    again = pyrovi.load(tmp_path / "run", model=not_centred)
    assert again.verdict.to_dict() == fit.verdict.to_dict()
    assert torch.equal(again.posterior(100)["tau"], fit.posterior(100)["tau"])
    assert again.estimate_elbo(1_000) == fit.estimate_elbo(1_000)
    assert pyrovi.load(tmp_path / "run").to_arviz() is not None


def test_arviz_gets_the_recommended_draws():
    fit = pyrovi.fit(bimodal)
    data = fit.to_arviz(2_000)
    x = np.asarray(data["posterior"]["x"]).ravel()
    assert (x > 0).mean() == pytest.approx(0.7, abs=0.05)
    assert "log_q" not in data["sample_stats"]
    assert fit.summary().loc["x", "mean"] == pytest.approx(2.0, abs=0.4)


def test_a_fit_without_settings_has_its_report(tmp_path):
    fit = pyrovi.fit(not_centred, data=EIGHT)
    page = pyrovi.report(fit, tmp_path / "page.html").read_text()
    assert "without settings" in page
    assert fit.settings["rung"] in page
    assert fit.verdict.level.capitalize() in page
    assert "without settings" in repr(fit)


def test_the_command_fits_a_file_without_settings_and_checks_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from pyrovi.cli import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def model(y):\n"
        "    mu = pyro.sample('mu', dist.Normal(0.0, 10.0))\n"
        "    with pyro.plate('row', len(y)):\n"
        "        pyro.sample('y', dist.Normal(mu, 1.0), obs=y)\n"
    )
    (tmp_path / "own.csv").write_text("y\n1.0\n2.5\n0.5\n")
    run = CliRunner().invoke(app, ["fit", "own.py:model", "--data", "own.csv"])
    assert run.exit_code == 0, run.output
    assert "Level trust" in " ".join(run.output.split())
    assert CliRunner().invoke(app, ["check", "runs/own-model"]).exit_code in (0, 10)


@pytest.mark.parametrize(
    ("prior", "y", "said"),
    [
        (dist.Normal(0.0, 1.0), 3.0, r"observed value of site 'y' is the number 3.0, .* give it as an array"),
        (dist.ImproperUniform(dist.constraints.real, (), ()), np.array(3.0), "give the latent a proper prior"),
        (dist.Normal(0.0, 1.0), np.array([]), "the data 'y' are empty: give at least one row"),
    ],
)
def test_what_cannot_be_fitted_is_said_with_its_cure(prior, y, said):
    def model(y):
        mu = pyro.sample("mu", prior)
        with pyro.plate("row", len(y)) if np.ndim(y) else contextlib.nullcontext():
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(pyrovi.PyroviError, match=said):
        pyrovi.fit(model, data={"y": y})
