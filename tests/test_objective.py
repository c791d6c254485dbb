"""The objectives by name, the KL weight, and importance-weighted bounds, against values known in closed form."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import constraints

import pyrovi
from pyrovi._isolation import isolated
from pyrovi.errors import SettingsError
from pyrovi.models import normal_mean
from pyrovi.objective import ImportanceWeighted, KLWeight, MeanField, Renyi
from pyrovi.preflight import prepare

N, B = 11, 4  # the last batch has three data
Y = torch.linspace(-2, 3, N)
EVIDENCE = dist.Normal(0.0, math.sqrt(2)).log_prob(Y.double()).sum().item()


def local_model(y):
    """Each datum has its own latent, and the evidence is known."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def amortized_guide(y):
    """Off the optimum, y/2 and √½, in both."""
    slope = pyro.param("slope", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.9), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(slope * y, scale))


def positive_model(x):
    """Global latents, one of them constrained, so that an autoguide has a Jacobian to account for."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, s), obs=x)


def discrete_guide(y):
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Poisson(1.0))


def discrete_model(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def values(objective, model, guide, data, repeats, particles=1, batch_size=None, kl=None):
    """Many evaluations of an objective at the guide's start, whole or over whole passes of batches: `(mean, se)`, in nats."""
    with isolated(0, torch.float64):
        problem = prepare(model, guide, data, dtype=torch.float64, device=torch.device("cpu"), batch_size=batch_size)
        elbo = objective(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=problem.nesting)
        wrap = kl or (lambda program: program)
        out = []
        if problem.batches is None:
            out = [-elbo.loss(wrap(problem.model), wrap(problem.guide), **problem.data) for _ in range(repeats)]
        else:
            batched = problem.batched()
            for _ in range(repeats):
                total = 0.0
                for rows in problem.batches.blocks(problem.device):
                    batched.take(rows)
                    total -= elbo.loss(wrap(batched.model), wrap(batched.guide)) * len(rows) / N
                out.append(total)
    out = torch.tensor(out, dtype=torch.float64)
    return out.mean().item(), out.std().item() / math.sqrt(repeats)


def agree(a, b, errors=4.0):
    return abs(a[0] - b[0]) < errors * math.hypot(a[1], b[1]) + 1e-9


def elbo_of_the_local_guide():
    slope, scale = 0.3, 0.9
    loc = slope * Y.double()
    fit = -0.5 * ((Y.double() - loc) ** 2 + scale**2) - 0.5 * math.log(2 * math.pi)
    kl = 0.5 * (scale**2 + loc**2 - 1) - math.log(scale)
    return (fit - kl).sum().item()


@pytest.mark.parametrize("objective", [Trace_ELBO, MeanField, functools.partial(Renyi, alpha=1 - 1e-6)])
def test_objectives_agree_with_the_elbo_in_closed_form(objective):
    mean, se = values(objective, local_model, amortized_guide, {"y": Y}, 4_000)
    assert abs(mean - elbo_of_the_local_guide()) < 4 * se


def test_analytic_kl_has_the_expectation_of_the_sampled_one_under_an_autoguide():
    data = {"x": Y}
    sampled = values(Trace_ELBO, positive_model, "normal", data, 3_000)
    analytic = values(MeanField, positive_model, "normal", data, 3_000)
    assert agree(sampled, analytic)


def test_at_the_exact_posterior_the_sampled_kl_is_the_quieter():
    def exact_guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, math.sqrt(0.5)))

    sampled = values(Trace_ELBO, local_model, exact_guide, {"y": Y}, 200)
    analytic = values(MeanField, local_model, exact_guide, {"y": Y}, 200)
    assert sampled[0] == pytest.approx(EVIDENCE, abs=1e-6)
    assert sampled[1] < 1e-9 < analytic[1]


def importance_bound_by_hand(k, repeats):
    """E of Σ_i log mean_k w_ik for the local guide, from plain torch."""
    generator = torch.Generator().manual_seed(1)
    y = Y.double()
    z = 0.3 * y + 0.9 * torch.randn(repeats, k, N, generator=generator, dtype=torch.float64)
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(y) - dist.Normal(0.3 * y, 0.9).log_prob(z)
    out = (torch.logsumexp(log_w, 1) - math.log(k)).sum(-1)
    return out.mean().item(), out.std().item() / math.sqrt(repeats)


def test_importance_weights_are_a_datum_each_and_approach_the_evidence():
    by_k = {k: values(ImportanceWeighted, local_model, amortized_guide, {"y": Y}, 800, particles=k) for k in (2, 10, 100)}
    for k, value in by_k.items():
        assert agree(value, importance_bound_by_hand(k, 20_000))
    assert elbo_of_the_local_guide() < by_k[2][0] < by_k[10][0] < by_k[100][0] < EVIDENCE
    assert by_k[100][0] == pytest.approx(EVIDENCE, abs=0.1)


def test_global_latents_share_one_weight_a_particle():
    """log mean of w over draws of the one latent: by hand, from the same guide."""

    def guide(x):
        pyro.sample("w", dist.Normal(1.0, 0.5))

    data = {"x": torch.tensor([0.3, 1.2])}
    mean, se = values(ImportanceWeighted, normal_mean.model, guide, data, 4_000, particles=5)
    w = 1 + 0.5 * torch.randn(50_000, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_w = dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(1.0, 0.5).log_prob(w)
    log_w = log_w + dist.Normal(w[..., None], 1.0).log_prob(data["x"].double()).sum(-1)
    by_hand = torch.logsumexp(log_w, 1) - math.log(5)
    assert agree((mean, se), (by_hand.mean().item(), by_hand.std().item() / math.sqrt(50_000)))


@pytest.mark.parametrize("n", [5, N])
def test_plates_that_only_share_an_axis_share_no_weights(n):
    """A latent a feature and an outcome a datum: one weight a particle, however many features there are."""

    def model(y):
        with pyro.plate("feature", n):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w.mean(-1, keepdim=True), 1.0), obs=y)

    def guide(y):
        with pyro.plate("feature", n):
            pyro.sample("w", dist.Normal(0.4, 0.9))

    mean, se = values(ImportanceWeighted, model, guide, {"y": Y}, 1_000, particles=5)
    w = 0.4 + 0.9 * torch.randn(20_000, 5, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_w = (dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(0.4, 0.9).log_prob(w)).sum(-1)
    log_w = log_w + dist.Normal(w.mean(-1, keepdim=True), 1.0).log_prob(Y.double()).sum(-1)
    by_hand = torch.logsumexp(log_w, 1) - math.log(5)
    assert agree((mean, se), (by_hand.mean().item(), by_hand.std().item() / math.sqrt(len(by_hand))))


@pytest.mark.parametrize("alpha", [0.0, 0.3, -1.0])
def test_renyi_is_its_formula(alpha):
    generator = torch.Generator().manual_seed(1)
    y = Y.double()
    z = 0.3 * y + 0.9 * torch.randn(20_000, 6, N, generator=generator, dtype=torch.float64)
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(y) - dist.Normal(0.3 * y, 0.9).log_prob(z)
    by_hand = ((torch.logsumexp((1 - alpha) * log_w, 1) - math.log(6)) / (1 - alpha)).sum(-1)
    value = values(functools.partial(Renyi, alpha=alpha), local_model, amortized_guide, {"y": Y}, 1_000, particles=6)
    assert agree(value, (by_hand.mean().item(), by_hand.std().item() / math.sqrt(len(by_hand))))


def test_padding_of_a_last_batch_weighs_nothing():
    """A model that subsamples its plate itself gets copies of the last datum to fill the batch."""

    def model(y):
        with pyro.plate("data", len(y), subsample_size=B) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    def guide(y):
        with pyro.plate("data", len(y), subsample_size=B) as i:
            pyro.sample("z", dist.Normal(0.3 * y[i], 0.9))

    whole = values(ImportanceWeighted, local_model, amortized_guide, {"y": Y}, 800, 3)
    assert agree(whole, values(ImportanceWeighted, model, guide, {"y": Y}, 800, 3, batch_size=B))


def test_weights_of_sites_that_are_scaled_otherwise_are_refused():
    def with_factor(y):
        pyro.factor("reg", torch.tensor(-0.1))
        local_model(y)

    def halved(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    options = {"objective": "importance_weighted", "particles": 5, "steps": 5}
    with pytest.raises(SettingsError, match="scaled otherwise"):
        pyrovi.fit(with_factor, amortized_guide, {"y": Y}, batch_size=B, **options)
    with pytest.raises(SettingsError, match="scaled otherwise"):
        pyrovi.fit(halved, amortized_guide, {"y": Y}, **options)
    with pytest.raises(SettingsError, match="scaled otherwise"):
        pyrovi.fit(local_model, amortized_guide, {"y": Y}, kl_weight=4.0, **options)


def test_analytic_kl_of_a_site_scaled_in_the_model_only():
    def halved(y):
        with pyro.plate("data", len(y)):
            with pyro.poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    sampled, analytic = (values(o, halved, amortized_guide, {"y": Y}, 1_500) for o in (Trace_ELBO, MeanField))
    assert agree(sampled, analytic)


@pytest.mark.parametrize("objective", [Trace_ELBO, MeanField, ImportanceWeighted, Renyi])
def test_a_pass_over_batches_has_the_full_batchs_expectation(objective):
    particles = 3
    whole = values(objective, local_model, amortized_guide, {"y": Y}, 1_000, particles)
    passes = values(objective, local_model, amortized_guide, {"y": Y}, 1_000, particles, batch_size=B)
    assert agree(whole, passes)


@pytest.mark.parametrize("objective", [MeanField, ImportanceWeighted, Renyi])
def test_gradient_is_the_derivative_of_the_value(objective):
    with isolated(0, torch.float64):
        problem = prepare(local_model, amortized_guide, {"y": Y}, dtype=torch.float64, device=torch.device("cpu"))
        elbo = objective(num_particles=4, vectorize_particles=True, max_plate_nesting=1)

        def value():
            pyro.set_rng_seed(5)
            return elbo.loss(problem.model, problem.guide, **problem.data)

        pyro.set_rng_seed(5)
        elbo.loss_and_grads(problem.model, problem.guide, **problem.data)
        for leaf in problem.parameters.leaves.values():
            gradient = leaf.grad.item()
            with torch.no_grad():
                leaf += 1e-6
                up = value()
                leaf -= 2e-6
                down = value()
                leaf += 1e-6
            assert gradient == pytest.approx((up - down) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("objective", ["mean_field", "importance_weighted", "renyi"])
def test_fits_by_name_reach_the_local_posterior(objective):
    fit = pyrovi.fit(
        local_model,
        amortized_guide,
        {"y": Y},
        objective=objective,
        particles=10,
        steps=1_500,
        lr=0.02,
        schedule="cosine",
        stop=None,
    )
    assert fit.settings["objective"] == objective
    assert fit.parameters["slope"].item() == pytest.approx(0.5, abs=0.02)
    assert fit.parameters["scale"].item() == pytest.approx(math.sqrt(0.5), rel=0.05)


def test_a_kl_weight_is_the_likelihood_to_a_power():
    data = {"x": torch.tensor([0.5, 1.5, 2.0])}
    fit = pyrovi.fit(
        normal_mean.model, "normal", data, kl_weight=0.25, particles=100, steps=1_500, lr=0.05, schedule="cosine", stop=None
    )
    tempered = normal_mean.exact(data["x"], noise=math.sqrt(0.25)).marginals["w"]  # the likelihood to the power 4
    draws = fit.posterior(20_000)["w"]
    assert draws.mean().item() == pytest.approx(tempered.mean(), abs=0.05 * tempered.std())
    assert draws.std().item() == pytest.approx(tempered.std(), rel=0.05)
    plain = values(Trace_ELBO, normal_mean.model, "normal", data, 2_000)
    weighed = values(Trace_ELBO, normal_mean.model, "normal", data, 2_000, kl=KLWeight(0.25))
    assert not agree(plain, weighed)


def test_the_reported_elbo_is_unweighted():
    data = {"x": torch.tensor([0.5, 1.5, 2.0])}
    fit = pyrovi.fit(normal_mean.model, "normal", data, kl_weight=0.25, steps=300, stop=None)
    loc, sd = fit.posterior(50_000)["w"].mean().item(), fit.posterior(50_000)["w"].std().item()
    likelihood = sum(-0.5 * math.log(2 * math.pi) - 0.5 * ((x - loc) ** 2 + sd**2) for x in data["x"].tolist())
    kl = 0.5 * (sd**2 + loc**2 - 1) - math.log(sd)
    elbo = fit.estimate_elbo(50_000)
    assert abs(elbo.value - (likelihood - kl)) < 5 * elbo.se + 0.01


def test_annealing_raises_the_weight_from_nothing():
    kl = KLWeight(2.0, annealing=10)
    seen = []
    for step in (1, 5, 10, 11, 1_000):
        kl.at(step)
        seen.append(kl.weight)
    assert seen == [0.2, 1.0, 2.0, 2.0, 2.0]


def test_annealing_ends_at_the_posterior_and_is_not_stopped_before():
    data = {"x": torch.tensor([0.5, 1.5, 2.0])}
    fit = pyrovi.fit(normal_mean.model, "normal", data, kl_annealing=1_500, particles=8, lr=0.02, steps=6_000)
    assert fit.elbo.shape[1] > 1_500
    exact = normal_mean.exact(data["x"]).marginals["w"]
    assert fit.posterior(20_000)["w"].std().item() == pytest.approx(exact.std(), rel=0.05)


def test_a_class_of_pyros_is_an_objective_too():
    fit = pyrovi.fit(local_model, amortized_guide, {"y": Y}, objective=pyro.infer.RenyiELBO, particles=4, steps=20)
    assert fit.settings["objective"] == "RenyiELBO"
    assert (
        pyrovi.fit(
            local_model, amortized_guide, {"y": Y}, objective=functools.partial(Renyi, alpha=0.2), particles=4, steps=20
        ).settings["objective"]
        == "Renyi"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "mean_feild"}, "did you mean 'mean_field'"),
        ({"objective": "importance_weighted"}, "particles=10"),
        ({"objective": Trace_ELBO()}, "instance"),
        ({"objective": 3}, "int"),
        ({"objective": functools.partial(Renyi, alpha=1), "particles": 3}, "trace_elbo"),
        ({"kl_weight": 0}, "above 0"),
        ({"kl_weight": math.inf}, "above 0"),
        ({"kl_annealing": 0}, "at least 1"),
        ({"kl_annealing": 5}, "full weight"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(SettingsError, match=words):
        pyrovi.fit(local_model, amortized_guide, {"y": Y}, steps=5, **settings)


def test_weights_on_batches_want_local_latents():
    with pytest.raises(SettingsError, match="'w' lies outside"):
        pyrovi.fit(normal_mean.model, "normal", {"x": Y}, batch_size=B, objective="importance_weighted", particles=5, steps=5)
    with pytest.raises(SettingsError, match="an autoguide draws"):
        pyrovi.fit(local_model, "normal", {"y": Y}, batch_size=B, objective="importance_weighted", particles=5, steps=5)


def test_draws_without_a_derivative_are_refused():
    for objective in ("mean_field", "importance_weighted"):
        with pytest.raises(SettingsError, match="'z' from Poisson"):
            pyrovi.fit(discrete_model, discrete_guide, {"y": Y}, objective=objective, particles=2, steps=5)


def test_analytic_kl_wants_the_models_order():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def reversed_guide(x):
        b = pyro.sample("b", dist.Normal(x, 1.0))
        pyro.sample("a", dist.Normal(b, 1.0))

    with pytest.raises(SettingsError, match="model's order"):
        pyrovi.fit(model, reversed_guide, {"x": torch.tensor(1.0)}, objective="mean_field", steps=5)


def fitted(model=local_model, guide=amortized_guide, data=None, **settings):
    return pyrovi.fit(model, guide, {"y": Y} if data is None else data, steps=1, stop=None, lr=1e-9, **settings)


def test_estimated_bound_is_the_evidence_with_many_weights():
    bound = fitted(dtype="float64").estimate_bound(20_000)
    assert abs(bound.value - EVIDENCE) < 4 * bound.se
    assert bound.se < 0.05


def test_estimated_bound_runs_in_blocks_of_data(monkeypatch):
    fit = fitted(dtype="float64")
    whole = fit.estimate_bound(5_000)
    monkeypatch.setattr("pyrovi.evidence.CHUNK_SCALARS", 64 * 2 * 3)  # three data at a time
    blocks = fit.estimate_bound(5_000)
    assert abs(whole.value - blocks.value) < 4 * math.hypot(whole.se, blocks.se)
    assert whole.value != blocks.value


def test_a_point_has_no_bound():
    fit = pyrovi.fit(local_model, "delta", {"y": Y}, steps=5)
    with pytest.raises(pyrovi.PyroviError, match="point estimate"):
        fit.estimate_bound(5)


def test_estimated_bound_with_global_latents():
    data = {"x": torch.tensor([0.5, 1.5, 2.0])}
    fit = pyrovi.fit(normal_mean.model, "normal", data, steps=1_000, lr=0.05, particles=8)
    bound = fit.estimate_bound(20_000)
    assert abs(bound.value - normal_mean.exact(data["x"]).log_evidence) < 4 * bound.se + 1e-4
