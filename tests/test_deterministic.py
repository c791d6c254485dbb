"""`method="deterministic"` and `guide="whitened"` against exact answers: conjugate posteriors, quadrature, published numbers."""

import math
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import OrderedTransform
from pyro.nn import PyroModule, PyroSample

import pyrovi
from pyrovi.density import log_density
from pyrovi.differentiable import record
from pyrovi.guides.gaussian import AutoWhitened, initial, place
from pyrovi.models import linear_regression, normal_mean
from pyrovi.pathfinder import climb, standard_draws

EIGHT = {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18]}


def eight_schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def centred(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def fit(model, guide="normal", data=None, **settings):
    return pyrovi.fit(model, guide, data, method="deterministic", **settings)


def density(model, data=None, **options):
    """The recorded density of a model, in float64."""
    guide = AutoWhitened(model, "normal", start=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        guide(**(data or {}))
        pyro.clear_param_store()
        return log_density(model, data or {}, guide.prototype_trace, **options)
    finally:
        torch.set_default_dtype(before)


# The density


def test_density_of_a_beta_integrates_to_the_evidence():
    def model(k):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("k", dist.Binomial(30, p), obs=k)

    u = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    found = torch.logsumexp(density(model, {"k": torch.tensor(9.0)})(u[:, None]), 0) + math.log(60 / 20_000)
    exact = math.lgamma(31) - math.lgamma(10) - math.lgamma(22)  # of the BetaBinomial(2, 3)
    exact += math.lgamma(11) + math.lgamma(24) - math.lgamma(35) - math.lgamma(2) - math.lgamma(3) + math.lgamma(5)
    assert found.item() == pytest.approx(exact, abs=1e-6)


def test_density_of_a_dirichlet_integrates_to_the_evidence():
    """Counts n under Dirichlet(α): Γ(Σα)/Γ(Σα + Σn) Π Γ(α + n)/Γ(α), on a grid of the plane."""
    alpha, counts = torch.tensor([1.0, 2.0, 0.7], dtype=torch.float64), torch.tensor([4, 1, 2])

    def model(x):
        p = pyro.sample("p", dist.Dirichlet(alpha.to(torch.get_default_dtype())))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    side = torch.linspace(-16, 12, 401, dtype=torch.float64)
    found = torch.logsumexp(density(model, {"x": torch.arange(3).repeat_interleave(counts)})(torch.cartesian_prod(side, side)), 0)
    found = found + 2 * math.log(28 / 400)
    exact = torch.lgamma(alpha.sum()) - torch.lgamma(alpha.sum() + 7) + (torch.lgamma(alpha + counts) - torch.lgamma(alpha)).sum()
    assert found.item() == pytest.approx(exact.item(), abs=1e-5)


PRIORS = {
    "gamma": (lambda: dist.Gamma(2.0, 3.0), 1),
    "uniform": (lambda: dist.Uniform(-1.0, 2.0), 1),
    "half_cauchy": (lambda: dist.HalfCauchy(2.0), 1),
    "inverse_gamma": (lambda: dist.InverseGamma(3.0, 1.0), 1),
    "correlation": (lambda: dist.LKJCholesky(2, 1.5), 1),
    "vector": (lambda: dist.LogNormal(0.0, 1.0).expand([2]).to_event(1), 2),
    "ordered": (lambda: dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]), [OrderedTransform()]), 2),
    "mixture": (lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.tensor([2.0, 3.0]), 1.0)), 1),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_priors_density_integrates_to_one(name):
    prior, dimension = PRIORS[name]
    side = torch.linspace(-30, 30, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(*[side] * dimension).reshape(-1, dimension)
    found = density(lambda: pyro.sample("x", prior()))(grid).exp().sum() * (60 / 600) ** dimension
    assert found.item() == pytest.approx(1.0, abs=2e-3)  # the Cauchy's tail, and the ends of a uniform


def everything(x, group):
    rate = pyro.sample("rate", dist.LogNormal(torch.zeros(int(group.max()) + 1), 1.0).to_event(1))  # a size read off the data
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    root = pyro.sample("root", dist.LKJCholesky(3, 2.0))
    filled = torch.zeros(3)
    filled[0] = weights[1]  # written in place, into a part
    filled[1:] = rate[:2]
    pyro.sample("count", dist.Poisson(rate[group]).to_event(1), obs=x)
    pyro.sample("pair", dist.MultivariateNormal(filled, scale_tril=root), obs=torch.ones(3))
    pyro.factor("more", torch.linalg.cholesky(torch.eye(2) * (1 + weights[0]))[0, 0])


def test_derivatives_are_those_of_pyros_own_log_density():
    data = {"x": torch.tensor([3.0, 0.0, 2.0, 5.0]), "group": torch.tensor([0, 1, 1, 2])}
    recorded = density(everything, data)
    torch.manual_seed(0)
    u, along = torch.randn(3, recorded.dimension).double(), torch.randn(3, recorded.dimension).double()
    value, gradient = recorded.gradient(u)
    curvature = recorded.curvature(u, along)
    torch.set_default_dtype(torch.float64)
    try:
        for i in range(3):
            x, log_det = u[i].clone().requires_grad_(), 0.0
            values = {name: site[0] for name, site in recorded.sites(x[None]).items()}
            for part in recorded.parts:
                at = x[part.start : part.stop].reshape(part.shape)
                log_det = log_det + part.transform.log_abs_det_jacobian(at, values[part.name]).sum()
            whole = pyro.poutine.trace(pyro.condition(everything, data=values)).get_trace(**data).log_prob_sum() + log_det
            (slope,) = torch.autograd.grad(whole, x, create_graph=True)
            (bend,) = torch.autograd.grad(slope @ along[i], x)
            torch.testing.assert_close(value[i], whole.detach())
            torch.testing.assert_close(recorded(u[i : i + 1])[0], whole.detach())
            torch.testing.assert_close(gradient[i], slope.detach())
            torch.testing.assert_close(curvature[i], bend)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_depends_on_the_data_alone_is_not_recorded():
    x = torch.tensor([1.0, 2.0])
    graph = record(lambda u: (u * torch.lgamma(x + 1)).sum(), torch.ones(2))
    assert "lgamma" not in graph.code


def test_a_failed_decomposition_counts_as_minus_infinity():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.linalg.cholesky(torch.eye(2) * (1 + a)).diagonal().sum())

    value = density(model)(torch.tensor([[0.0], [-2.0], [3.0]], dtype=torch.float64))
    assert torch.isfinite(value).tolist() == [True, False, True]


def test_a_row_at_which_the_model_raises_does_not_end_the_others():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.linalg.svdvals(torch.eye(2) * (1 + a).log()).sum())

    value, gradient = density(model).gradient(torch.tensor([[0.0], [-2.0], [1.0]], dtype=torch.float64))
    assert torch.isfinite(value).tolist() == [True, False, True]
    assert gradient.shape == (3, 1)


@pytest.mark.slow
def test_a_fit_imports_no_compiler():
    """torch's takes three seconds to import; so do some of its functions, which are not used."""
    code = (
        "import sys, torch\n"
        "from pyrovi.differentiable import record\n"
        "g = record(lambda u: (u**2).sum() * torch.linalg.cholesky(torch.eye(2) * u[0])[0, 0], torch.ones(3))\n"
        "u = torch.ones(3, requires_grad=True)\n"
        "h = record(lambda u: torch.autograd.grad(g(u), u)[0], u)\n"
        "record(torch.func.vmap(h), torch.ones(4, 3))(torch.ones(4, 3))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The guide


@pytest.mark.parametrize("skew", [False, True])
@pytest.mark.parametrize("family", ["normal", "low_rank", "multivariate_normal"])
def test_draws_are_scored_as_other_values_are(family, skew):
    """A value that is not the guide's last draw is sent back to its noise; the Jacobian is that of autograd."""
    torch.manual_seed(1)
    d = 4
    scale = torch.rand(d) + 0.5 if family != "multivariate_normal" else torch.tril(torch.rand(d, d)) + torch.eye(d)
    p = {name: value.double() for name, value in initial(family, torch.randn(d), scale, 2, skew).items()}
    p |= {name: value + 0.2 * torch.randn_like(value) for name, value in p.items() if name not in ("loc", "scale")}
    e = torch.randn(5, d, dtype=torch.float64)
    u, log_det = place(p, e)
    from pyrovi.guides.gaussian import _back

    torch.testing.assert_close(_back(p, u), e)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda x: place(p, x)[0], e[i])
        torch.testing.assert_close(log_det.expand(5)[i], torch.linalg.slogdet(jacobian)[1])


def test_a_low_rank_start_has_the_covariance_it_was_given():
    torch.manual_seed(0)
    direction = torch.randn(6, 1).double()
    covariance = torch.eye(6).double() + 3 * direction @ direction.T
    sds = covariance.inverse().diagonal().rsqrt()
    p = initial("low_rank", torch.zeros(6).double(), torch.linalg.cholesky(covariance), rank=6)
    u, _ = place(p, torch.eye(6).double())
    # Only stretches are kept: between the independent Normals of the same curvature and the whole.
    found = u.T @ u
    assert torch.linalg.eigvalsh(found - torch.diag(sds**2)).min() > -0.05
    assert torch.linalg.eigvalsh(found)[-1] == pytest.approx(torch.linalg.eigvalsh(covariance)[-1].item(), rel=0.2)


def test_sobol_draws_are_standard_normal():
    e = standard_draws(4_096, 5, 3)
    assert e.mean(0).abs().max() < 0.002
    assert (e.T @ e / len(e) - torch.eye(5)).abs().max() < 0.01


# Conjugate answers


def test_posterior_of_a_mean_is_the_conjugate_one():
    data = normal_mean.load()
    exact = normal_mean.exact(**data)
    found = fit(normal_mean.model, "normal", data)
    assert found.status == "converged"
    assert found.parameters["AutoWhitened.loc"].item() == pytest.approx(
        exact.marginals["w"].mean(), abs=0.005 * exact.marginals["w"].std()
    )
    assert found.parameters["AutoWhitened.scale"].item() == pytest.approx(exact.marginals["w"].std(), rel=0.005)
    assert found.elbo[0, -1] == pytest.approx(exact.log_evidence, abs=0.005)


@pytest.mark.parametrize("guide", ["multivariate_normal", "low_rank"])
def test_a_gaussian_posterior_is_found_whole(guide):
    """KL(q‖p) is the evidence less the ELBO: 0 for a full covariance, and for a diagonal plus one of rank nine of ten latents."""
    data = linear_regression.load()
    exact = linear_regression.exact(**data)
    found = fit(linear_regression.model, guide, data, guide_options={"rank": 9} if guide == "low_rank" else None)
    gap = exact.log_evidence - found.estimate_elbo(2_000).value
    assert found.status == "converged"
    assert gap < 0.02
    draws = found.posterior(4_000)["beta"].numpy()
    sd = exact.marginals["beta"].std()
    assert np.abs((draws.mean(0) - exact.marginals["beta"].mean()) / sd).max() < 4 / math.sqrt(4_000) + 0.01


def test_mean_field_finds_its_own_optimum_and_linear_response_the_covariance():
    data = linear_regression.load()
    exact = linear_regression.exact(**data)
    found = fit(linear_regression.model, "normal", data)
    assert found.settings["fresh_elbo"] == pytest.approx(linear_regression.mean_field_optimum(**data), abs=0.02)
    sd = np.sqrt(np.diag(exact.covariance["beta"]))
    response = found.linear_response()
    assert found.parameters["AutoWhitened.scale"].numpy().min() < 0.5 * sd.max()  # mean field has it wrong
    assert (response.covariance["beta"].numpy() / np.outer(sd, sd)) == pytest.approx(
        exact.covariance["beta"] / np.outer(sd, sd), abs=0.02
    )
    assert response.sd["beta"].shape == (10,)


def test_a_binomials_probability_against_its_beta():
    """Beta(2, 3) and 9 of 30: Beta(11, 24). Skewed, q's mean and sd are right to a hundredth of an sd."""

    def model(k):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("k", dist.Binomial(30, p), obs=k)

    mean, sd = 11 / 35, math.sqrt(11 * 24 / 35**2 / 36)
    found = fit(model, "normal", {"k": torch.tensor(9.0)}, guide_options={"skew": True})
    draws = torch.sigmoid(place_of(found, standard_draws(2**14, 1, 5)))
    assert draws.mean().item() == pytest.approx(mean, abs=0.01 * sd)
    assert draws.std().item() == pytest.approx(sd, rel=0.01)
    assert found.linear_response().sd["p"].item() == pytest.approx(sd, rel=0.01)


def place_of(found, e):
    parameters = {name.removeprefix("AutoWhitened."): value for name, value in found.parameters.items()}
    return place(parameters, e)[0]


# Eight schools: the best Gaussians' ELBOs by 20,000 Sobol draws, sds by NUTS and by linear response


@pytest.mark.parametrize(
    ("model", "guide", "best"),
    [
        (eight_schools, "normal", -31.596),
        (eight_schools, "multivariate_normal", -31.534),
        (centred, "normal", -33.407),
        (centred, "multivariate_normal", -32.595),
    ],
)
def test_eight_schools_elbo_is_the_familys_best(model, guide, best):
    found = fit(model, guide, EIGHT)
    assert found.status == "converged"
    assert found.settings["fresh_elbo"] == pytest.approx(best, abs=4 * found.settings["fresh_elbo_se"] + 0.005)


def test_eight_schools_sds():
    found = fit(eight_schools, "normal", EIGHT)
    response = found.linear_response()
    assert found.parameters["AutoWhitened.scale"][1].item() == pytest.approx(0.74, rel=0.02)  # log tau; NUTS has 1.17
    assert response.unconstrained_sd["tau"].item() == pytest.approx(1.08, rel=0.02)
    assert response.unconstrained_sd["mu"].item() == pytest.approx(3.23, rel=0.01)
    assert response.sd["mu"].item() == response.unconstrained_sd["mu"].item()
    assert response.covariance["z"].shape == (8, 8)


def test_skew_raises_the_elbo():
    plain, skewed = (fit(eight_schools, "normal", EIGHT, guide_options={"skew": skew}) for skew in (False, True))
    assert skewed.settings["fresh_elbo"] > plain.settings["fresh_elbo"] + 0.1
    assert skewed.elbo[0, -1] < -31.3113  # log p(data), by quadrature


# Starts


def test_predictors_on_raw_scales():
    """y = a + b x with x about 170: the posterior is the least squares one."""
    rng = np.random.default_rng(0)
    x = rng.normal(170, 10, 200)
    y = -60_000 + 1_300 * x + rng.normal(0, 19_000, 200)

    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1e6))
        b = pyro.sample("b", dist.Normal(0.0, 1e6))
        sigma = pyro.sample("sigma", dist.HalfCauchy(1e4))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(a + b * x, sigma), obs=y)

    found = fit(model, "multivariate_normal", {"x": x, "y": y})
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - intercept - slope * x
    sd = math.sqrt(residual @ residual / 200) / (x.std() * math.sqrt(200))
    assert found.status == "converged"
    u = place_of(found, standard_draws(4_096, 3, 1))
    assert u[:, 1].mean().item() == pytest.approx(slope, abs=0.05 * sd)
    assert u[:, 1].std().item() == pytest.approx(sd, rel=0.03)


def test_an_ascent_on_raw_scales_reaches_the_top():
    """Two predictors about 1,000 and 10⁻⁶, and their products' coefficients ten orders apart; the least squares value is known."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.stack([rng.normal(1_000, 10, 50), rng.normal(0, 1e-6, 50)], 1))
    y = x @ torch.tensor([0.3, 4e5], dtype=torch.float64) + torch.from_numpy(rng.normal(0, 1, 50))

    def model(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1e8).to_event(1))
        pyro.sample("y", dist.Normal(x @ b, 1.0).to_event(1), obs=y)

    recorded = density(model, {"x": x, "y": y})
    top = recorded(torch.linalg.lstsq(x, y[:, None]).solution.T).item()
    reached = recorded(climb(recorded, torch.ones(1, 2, dtype=torch.float64))[0][-1:]).item()
    assert reached == pytest.approx(top, abs=0.1)


def test_neals_funnel_gives_mean_fields_optimum():
    """v ~ Normal(0, 3), x ~ Normal(0, exp(v/2)), nine of them. For independent Normals the best sds are known: of v, 1/√(1/9 + 9/2)
    (the curvature of −E log p in v), of x, exp((m − s²/2)/2), and the mean m of v balances the nine terms."""

    def funnel():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("nine", 9):
            pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    found = fit(funnel, "normal")
    loc, scale = found.parameters["AutoWhitened.loc"], found.parameters["AutoWhitened.scale"]
    sd = 1 / math.sqrt(1 / 9 + 9 / 2)
    assert found.status == "converged"
    assert scale[0].item() == pytest.approx(sd, rel=0.02)
    assert loc[0].item() == pytest.approx(0.0, abs=0.05 * sd)
    assert scale[1:].numpy() == pytest.approx(np.full(9, math.exp(-(sd**2) / 4)), rel=0.02)


@pytest.mark.parametrize("guide", ["normal", pytest.param("multivariate_normal", marks=pytest.mark.slow)])
def test_sixty_groups(guide):
    """Groups of known size around tau = 0.4: the group sd is found, though the mode has none."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), rng.integers(2, 15, 60))
    y = rng.normal(rng.normal(2, 0.4, 60)[group], 0.8)

    def model(group, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfNormal(2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("group", 60):
            a = pyro.sample("a", dist.Normal(mu, tau))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(a[group], sigma), obs=y)

    found = fit(model, guide, {"group": group, "y": y})
    assert found.status == "converged"
    means = {name: value.mean().item() for name, value in found.posterior(500).items()}
    assert 0.25 < means["tau"] < 0.6
    assert means["sigma"] == pytest.approx(0.8, abs=0.1)


def test_a_start_whose_tails_have_no_density_is_narrowed():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(a.abs() < 3, 0.0, -torch.inf))

    found = fit(model, "normal")
    assert np.isfinite(found.elbo).all()
    assert 0.7 < found.parameters["AutoWhitened.scale"].item() < 0.95  # the farthest of 1,024 draws is at 3.3 sds


# What a fit is


def test_the_same_seed_gives_the_same_bits():
    first, again = (fit(eight_schools, "normal", EIGHT, seed=3) for _ in range(2))
    assert all(torch.equal(first.unconstrained[name], again.unconstrained[name]) for name in first.unconstrained)
    assert np.array_equal(first.elbo, again.elbo)


def test_other_seeds_agree_within_the_stated_sd():
    fits = [fit(eight_schools, "normal", EIGHT, seed=seed) for seed in range(5)]
    scale = torch.stack([f.parameters["AutoWhitened.scale"] for f in fits])
    means = torch.stack([f.parameters["AutoWhitened.loc"] for f in fits]) / scale.mean(0)
    stated = max(f.settings["frequentist_sd"] for f in fits)
    assert stated <= 0.1
    assert max(means.std(0).max(), scale.log().std(0).max()) < 2 * stated  # sds of five, and of six, the largest of twenty


def test_more_draws_until_the_optimum_stands_still():
    """Sixteen draws of ten latents are learned by heart: told so, and not called converged."""
    few = fit(eight_schools, "multivariate_normal", EIGHT, particles=16)
    assert few.status == "step_limit"
    assert "more particles" in few.advice
    assert few.elbo[0, -1] > few.settings["fresh_elbo"] + 1


def test_draws_grow_until_they_are_enough(monkeypatch):
    monkeypatch.setattr("pyrovi.deterministic.first_draws", lambda *_: 16)
    found = fit(eight_schools, "multivariate_normal", EIGHT)
    assert found.status == "converged"
    assert found.settings["particles"] >= 128
    assert found.settings["fresh_elbo"] == pytest.approx(-31.534, abs=0.05)


def test_too_few_evaluations_are_reported():
    short = fit(eight_schools, "normal", EIGHT, steps=3)
    assert short.status == "step_limit"
    assert "allow more steps" in short.advice


def test_a_fit_stopped_by_hand_keeps_the_last_optimum(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyrovi.deterministic.frequentist_sd", stop)
    found = fit(eight_schools, "normal", EIGHT)
    assert found.status == "interrupted"
    assert found.estimate_elbo(4_000).value == pytest.approx(-31.596, abs=0.1)


def test_an_improper_posterior_is_not_called_converged():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)
        pyro.factor("takes_the_prior_away", 0.5 * b**2)

    found = fit(model, "normal", {"y": torch.tensor(1.0)}, steps=300)
    assert found.status != "converged"


def test_a_fit_is_saved_and_loaded_with_its_draws(tmp_path):
    found = fit(eight_schools, "low_rank", EIGHT, guide_options={"rank": 2}, folder=tmp_path / "run")
    again = pyrovi.load(tmp_path / "run", model=eight_schools)
    assert all(torch.equal(v, again.posterior(5)[name]) for name, v in found.posterior(5).items())
    assert again.linear_response().sd["mu"] == pytest.approx(found.linear_response().sd["mu"].item())
    assert repr(again).startswith("Fit(low_rank guide; mu, tau, z; converged after")
    assert found.estimate_elbo(2_000).value == pytest.approx(found.settings["fresh_elbo"], abs=0.05)


def test_progress_is_shown_on_request(capfd):
    fit(eight_schools, "normal", EIGHT, progress=True)
    assert "ELBO" in capfd.readouterr().err


def test_float32_on_request():
    found = fit(eight_schools, "normal", EIGHT, dtype="float32")
    assert found.parameters["AutoWhitened.loc"].dtype == torch.float32
    assert found.settings["fresh_elbo"] == pytest.approx(-31.596, abs=0.02)


class Linear(PyroModule):
    """Its priors are of torch's default dtype, and validate whatever the settings: they were made before."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](3, 1)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0, validate_args=True).expand([1, 3]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.layer(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)


def test_a_module_of_the_default_dtype_is_fitted_in_that():
    x = np.random.default_rng(0).normal(size=(40, 3))
    y = x @ [1, 2, 3] + 0.5 + 0.3 * np.random.default_rng(1).normal(size=40)
    found = fit(Linear(), "multivariate_normal", {"x": x, "y": y})
    assert found.status == "converged"
    assert found.settings["dtype"] == "float32"
    design = np.column_stack([x, np.ones(40)])
    exact = np.linalg.solve(design.T @ design / 0.09 + np.eye(4), design.T @ y / 0.09)
    assert found.parameters["AutoWhitened.loc"].numpy() == pytest.approx(exact, abs=0.002)


def test_svi_starts_from_the_same_whitening():
    """One step after the start q is already where mean field by name takes thousands to get."""
    found = pyrovi.fit(eight_schools, "whitened", EIGHT, steps=1_500, lr=0.02, schedule="cosine", particles=8, progress=False)
    assert found.estimate_elbo(4_000).value == pytest.approx(-31.534, abs=0.1)
    start = pyrovi.fit(eight_schools, "whitened", EIGHT, steps=1, progress=False)
    assert start.unconstrained["AutoWhitened.loc"].equal(found.unconstrained["AutoWhitened.loc"])
    assert start.unconstrained["AutoWhitened.scale"].equal(found.unconstrained["AutoWhitened.scale"])


def test_the_whitened_guide_takes_batches():
    """Its coordinates are those of all the data, whatever the batch."""
    data = linear_regression.load()
    exact = linear_regression.exact(**data)
    start = pyrovi.fit(linear_regression.model, "whitened", data, batch_size=100, steps=1, progress=False)
    sd = np.sqrt(np.diag(exact.covariance["beta"]))
    found = start.unconstrained["AutoWhitened.loc"].numpy()
    assert np.abs((found - exact.marginals["beta"].mean()) / sd).max() < 0.2


# What it cannot do


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"guide": "flow"}, pyrovi.GuideError, "'flow' use method='svi'"),
        ({"guide": lambda y, s: None}, pyrovi.GuideError, "use method='svi'"),
        ({"batch_size": 4}, pyrovi.SettingsError, "batch_size is for method='svi'"),
        ({"transform": dict}, pyrovi.SettingsError, "transform is for method='svi'"),
        ({"kl_weight": 2.0}, pyrovi.SettingsError, "kl_weight is for method='svi'"),
        ({"objective": "renyi"}, pyrovi.SettingsError, "objective is for method='svi'"),
        ({"lr": 0.1}, pyrovi.SettingsError, "lr is for method='svi'"),
        ({"engine": "pyro"}, pyrovi.SettingsError, "engine='pyro' is for method='svi'"),
        ({"guide_options": {"init_width": 1.0}}, pyrovi.GuideError, "takes no option 'init_width'"),
        ({"guide_options": {"rank": 2}}, pyrovi.GuideError, "for family='low_rank'"),
        ({"seed": -1}, pyrovi.SettingsError, "seed must be"),
        ({"method": "exact"}, pyrovi.SettingsError, "unknown method 'exact'"),
    ],
)
def test_settings_of_other_methods_are_refused(settings, error, says):
    with pytest.raises(error, match=says):
        pyrovi.fit(eight_schools, **{"guide": "normal", "data": EIGHT, "method": "deterministic", **settings})


def test_models_that_cannot_be_recorded_are_refused():
    def branching(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=y)

    def noisy(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z + torch.randn(()), 1.0), obs=y)

    def learning(y):
        z = pyro.sample("z", dist.Normal(0.0, pyro.param("scale", torch.tensor(1.0))))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def discrete(y):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def empty(y):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    for model, error, says in (
        (branching, pyrovi.ModelError, "value of a latent; fit it by method='svi'"),
        (noisy, pyrovi.ModelError, "random numbers outside its sample sites; fit it by method='svi'"),
        (learning, pyrovi.ModelError, "parameter of its own, 'scale'.*method='svi'"),
        (discrete, pyrovi.GuideError, "discrete"),
        (empty, pyrovi.GuideError, "no latents for a Gaussian; fit its parameters by method='svi' and an empty guide$"),
    ):
        with pytest.raises(error, match=says):
            fit(model, "normal", {"y": torch.tensor(1.0)})


def test_linear_response_is_refused_where_there_is_no_optimum():
    found = pyrovi.fit(eight_schools, "normal", EIGHT, steps=20, progress=False)
    with pytest.raises(pyrovi.PyroviError, match="method='deterministic'"):
        found.linear_response()
    elsewhere = fit(normal_mean.model, "normal", normal_mean.load()).on({"x": [5.0, 6.0]})
    with pytest.raises(pyrovi.PyroviError, match="not at its optimum for these data"):
        elsewhere.linear_response()


@pytest.mark.slow
def test_a_compiled_density_is_the_interpreted_one():
    data = {name: torch.tensor(value, dtype=torch.float64) for name, value in EIGHT.items()}
    plain, compiled = (density(eight_schools, data, patience=patience) for patience in (math.inf, 0))
    torch.manual_seed(0)
    u = torch.randn(3_000, 10, dtype=torch.float64)
    torch.testing.assert_close(compiled(u), plain(u))
    for mine, other in zip(compiled.gradient(u), plain.gradient(u), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(compiled.curvature(u, u), plain.curvature(u, u))
