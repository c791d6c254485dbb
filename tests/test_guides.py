"""`guide="mixture"` and `guide="flow"`: their gradients, their densities, and that they beat mean field where it must fail."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi
from pyrovi.guides.mixture import MixtureOfNormals
from pyrovi.models import linear_regression


def test_gradients_through_a_mixtures_draws_are_those_of_its_moments():
    """E z = Σ π m and E z² = Σ π (m² + s²): their derivatives are known, for the weights too."""
    torch.manual_seed(0)
    leaves = [torch.tensor([[-2.0], [1.0], [4.0]]), torch.tensor([[0.5], [1.5], [0.7]]), torch.tensor([0.3, -0.4, 0.1])]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    locs, scales, logits = leaves
    weights = logits.softmax(0)
    wanted = torch.autograd.grad((weights * (locs[:, 0] ** 2 + scales[:, 0] ** 2 + locs[:, 0])).sum(), leaves)
    batches = []
    for _ in range(100):
        z = MixtureOfNormals(*leaves).rsample((2_000,))
        batches.append(torch.cat([g.flatten() for g in torch.autograd.grad((z**2 + z).mean(), leaves)]))
    found = torch.stack(batches)
    error = (found.mean(0) - torch.cat([g.flatten() for g in wanted])).abs()
    assert (error < 4 * found.std(0) / math.sqrt(len(found)) + 1e-6).all()


def test_a_mixtures_gradient_is_finite_in_its_tails():
    locs = torch.tensor([[-8.0], [8.0]], requires_grad=True)
    logits = torch.zeros(2, requires_grad=True)
    z = MixtureOfNormals(locs, torch.full((2, 1), 0.1), logits).rsample((20_000,))
    gradient = torch.autograd.grad(z.sum(), [locs, logits])
    assert torch.isfinite(torch.cat([g.flatten() for g in gradient])).all()
    assert gradient[0].sum() == pytest.approx(20_000, rel=1e-3)  # moving both components moves every draw as far


def correlated(rho=0.95):
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))


@pytest.mark.parametrize(
    ("guide", "options"),
    [
        ("flow", {}),
        ("flow", {"flow": "masked_autoregressive"}),
        ("flow", {"transforms": 1, "widths": (16,)}),
        ("mixture", {"components": 4}),
    ],
)
def test_beats_mean_field_on_a_correlated_target(guide, options):
    """Mean field's best there is ½ log(1 − ρ²)."""
    mean_field = 0.5 * math.log(1 - 0.95**2)
    fit = pyrovi.fit(
        correlated, guide, guide_options=options, particles=32, steps=1_500, lr=0.02, schedule="cosine", stop=None, progress=False
    )
    elbo = fit.estimate_elbo(20_000)
    assert fit.settings["vectorized"]
    assert elbo.value - 4 * elbo.se > mean_field + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["neural_spline", "masked_autoregressive"])
def test_flow_beats_mean_field_on_the_regressions_posterior(flow):
    data = linear_regression.load()
    exact = linear_regression.exact(**data)
    mean_field = pyrovi.fit(linear_regression.model, "normal", data, particles=16, steps=3_000, lr=0.02, stop=None, progress=False)
    fit = pyrovi.fit(
        linear_regression.model, "flow", data, guide_options={"flow": flow}, particles=16, steps=3_000, lr=0.005, schedule="cosine",
        stop=None, progress=False,
    )  # fmt: skip
    ours, theirs = fit.estimate_elbo(5_000), mean_field.estimate_elbo(5_000)
    assert theirs.value < ours.value - 4 * math.hypot(ours.se, theirs.se)
    assert exact.log_evidence - ours.value < 0.5


@pytest.mark.parametrize("guide", ["mixture", "flow"])
def test_log_q_is_the_density_that_it_draws_from(guide):
    """Over a box that holds it, exp(log q) integrates to one: the mean of 1/q over draws, inside the box, is the box's volume."""
    fit = pyrovi.fit(correlated, guide, steps=30, particles=8, stop=None, progress=False)
    draws = fit.draws(50_000)
    x, log_q = draws.posterior["x"], draws.log_q
    inside = ((x > -0.5) & (x < 0.5)).all(-1)
    weights = torch.where(inside, (-log_q).exp(), 0.0)
    assert abs(weights.mean() - 1.0) < 5 * weights.std() / math.sqrt(len(weights))


@pytest.mark.parametrize("guide", ["mixture", "flow", "structured", "low_rank"])
def test_constrained_latents_stay_in_their_support(guide):
    def model(y):
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(p[..., :1] * 3, s[..., None] if s.dim() else s), obs=y)

    fit = pyrovi.fit(model, guide, {"y": torch.linspace(0, 2, 9)}, steps=50, progress=False)
    draws = fit.posterior(200)
    assert (draws["s"] > 0).all()
    assert torch.allclose(draws["p"].sum(-1), torch.ones(200), atol=1e-5)


def test_a_mixture_holds_a_hundred_latents_and_says_when_it_cannot():
    def model(d):
        pyro.sample("x", dist.Normal(torch.zeros(d), 1.0).to_event(1))

    fit = pyrovi.fit(model, "mixture", {"d": 100}, steps=30, particles=4, progress=False)
    assert fit.status is not pyrovi.Status.diverged
    with pytest.raises(pyrovi.errors.GuideError, match="1,000 latent scalars"):
        pyrovi.fit(model, "mixture", {"d": 1_000}, steps=5, progress=False)


@pytest.mark.parametrize("guide", ["mixture", "flow"])
def test_the_same_seed_gives_the_same_fit(guide):
    one, two = (pyrovi.fit(correlated, guide, steps=20, seed=4, progress=False) for _ in range(2))
    assert (one.elbo == two.elbo).all()
    assert torch.equal(one.posterior(5)["x"], two.posterior(5)["x"])
