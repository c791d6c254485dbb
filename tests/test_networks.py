"""Networks as functions: layers of parameters and of latent weights, one draw at a time or many together."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyrovi
from pyrovi import networks

N = 60
X = torch.linspace(-2.0, 2.0, N)
Y = torch.sin(2 * X)
WIDTHS = (6, 4, 1)


@pytest.fixture
def store():
    with pyro.get_param_store().scope() as scope:
        pyro.set_rng_seed(0)
        yield scope


def model(latent_bias=True):
    out = networks.bayesian_perceptron(X[:, None], "net", WIDTHS, latent_bias=latent_bias)
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(out.squeeze(-1), 0.3), obs=Y)


def guide(local=False, latent_bias=True):
    networks.bayesian_perceptron_guide(1, "net", WIDTHS, scale=0.1, latent_bias=latent_bias, local_reparameterization=local)


def gradients(elbo, local, repeats, **options):
    """ELBO estimates, shape `(repeats,)`, and their gradients, shape `(repeats, parameters)`."""
    values, grads = [], []
    for _ in range(repeats):
        loss = elbo.differentiable_loss(lambda: model(**options), lambda: guide(local, **options))
        leaves = [pyro.param(name).unconstrained() for name in pyro.get_param_store()]
        found = torch.autograd.grad(loss, leaves)
        values.append(-loss.item())
        grads.append(-torch.cat([g.flatten() for g in found]))
    return torch.tensor(values), torch.stack(grads)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("latent_bias", [True, False])
def test_local_reparameterization_has_the_same_expected_elbo_and_gradient_and_less_noise(store, elbo, latent_bias):
    """400 estimates each way; means within 5 Monte Carlo standard errors, seed 0."""
    repeats = 400
    plain, plain_grads = gradients(elbo(), False, repeats, latent_bias=latent_bias)
    local, local_grads = gradients(elbo(), True, repeats, latent_bias=latent_bias)
    se = ((plain.var() + local.var()) / repeats).sqrt()
    assert abs(plain.mean() - local.mean()) < 5 * se
    grad_se = ((plain_grads.var(0) + local_grads.var(0)) / repeats).sqrt()
    assert ((plain_grads.mean(0) - local_grads.mean(0)).abs() < 5 * grad_se + 1e-4).all()
    assert local.var() < 0.25 * plain.var()
    assert local_grads.var(0).sum() < 0.25 * plain_grads.var(0).sum()


def test_local_reparameterization_of_many_particles_together(store):
    """The ELBO of 50 vectorised particles is that of single ones, within 5 standard errors over 40 repeats."""
    single, _ = gradients(Trace_ELBO(), True, 2_000)
    together, _ = gradients(Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1), True, 40)
    se = (single.var() / 2_000 + together.var() / 40).sqrt()
    assert abs(single.mean() - together.mean()) < 5 * se
    assert together.var() == pytest.approx(float(single.var()) / 50, rel=1.0)  # independent ones: an error shared by all would not


def test_outputs_have_the_moments_of_the_weights(store):
    """One layer: given its inputs, outputs are Gaussian with mean x·m + b and variance x²·s² + t², alone in every row."""
    x = torch.tensor([[1.0, -2.0], [0.0, 0.0], [3.0, 0.5]])

    def layer():
        return networks.bayesian_layer(x, "layer", 2)

    draws = []
    for _ in range(4_000):
        drawn = poutine.trace(
            lambda: networks.bayesian_layer_guide("layer", 2, 2, scale=0.3, bias_scale=0.7, local_reparameterization=True)
        ).get_trace()
        draws.append(poutine.replay(layer, trace=drawn)().detach())
    out = torch.stack(draws)
    m, s = pyro.param("layer.weight.loc"), pyro.param("layer.weight.scale")
    sd = (x.square() @ s.square() + 0.7**2).sqrt()
    assert ((out.mean(0) - x @ m).abs() < 5 * sd / 4_000**0.5).all()
    assert torch.allclose(out.std(0), sd, rtol=0.06)
    rows = torch.corrcoef(out[:, :, 0].T)
    assert (rows - torch.eye(3)).abs().max() < 5 / 4_000**0.5


def test_without_gradients_the_weights_are_used_as_drawn(store):
    with torch.no_grad():
        drawn = poutine.trace(lambda: guide(local=True)).get_trace()
        scored = [poutine.trace(poutine.replay(model, trace=drawn)).get_trace().log_prob_sum() for _ in range(2)]
    assert scored[0] == scored[1]
    conditioned = poutine.condition(model, data={n: v["value"] for n, v in drawn.nodes.items() if v["type"] == "sample"})
    assert poutine.trace(conditioned).get_trace().log_prob_sum() == scored[0]


def test_a_dead_row_without_spread_has_a_finite_gradient(store):
    x = torch.zeros(3, 2)

    def layer():
        return networks.bayesian_layer(x, "layer", 1, latent_bias=False)

    drawn = poutine.trace(
        lambda: networks.bayesian_layer_guide("layer", 2, 1, latent_bias=False, local_reparameterization=True)
    ).get_trace()
    out = poutine.replay(layer, trace=drawn)()
    (gradient,) = torch.autograd.grad(out.sum(), [pyro.param("layer.weight.scale").unconstrained()])
    assert torch.isfinite(gradient).all()


def test_a_vectorised_run_is_each_draw_on_its_own(store):
    plate = pyro.plate("particles", 5, dim=-2)
    drawn = poutine.trace(plate(guide)).get_trace()
    weights = {name: node["value"] for name, node in drawn.nodes.items() if name.startswith("net") and node["type"] == "sample"}
    together = poutine.condition(lambda: networks.bayesian_perceptron(X[:, None], "net", WIDTHS), data=weights)()
    assert together.shape == (5, N, 1)
    for i in range(5):
        one = {name: value[i, 0] for name, value in weights.items()}
        alone = poutine.condition(lambda: networks.bayesian_perceptron(X[:, None], "net", WIDTHS), data=one)()
        assert torch.allclose(together[i], alone, atol=1e-6)


def test_the_prior_is_as_told(store):
    trace = poutine.trace(
        lambda: networks.bayesian_perceptron(X[:, None], "net", WIDTHS, prior_scale=(1.0, 0.5, 2.0), nonlinearity="tanh")
    ).get_trace()
    for i, (scale, shape) in enumerate(zip((1.0, 0.5, 2.0), ((1, 6), (6, 4), (4, 1)), strict=True)):
        for name, expected in ((f"net.{i}.weight", shape), (f"net.{i}.bias", shape[1:])):
            site = trace.nodes[name]
            assert site["value"].shape == expected
            assert (site["fn"].base_dist.stddev == scale).all()
    with pytest.raises(pyrovi.SettingsError, match="2 numbers for 3 layers"):
        networks.bayesian_perceptron(X[:, None], "net", WIDTHS, prior_scale=(1.0, 0.5))
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'relu'"):
        networks.bayesian_perceptron(X[:, None], "net", WIDTHS, nonlinearity="rely")


def test_a_latent_prior_scale(store):
    """One prior scale a layer, drawn: with an axis of particles in front it is each draw's own."""

    def hierarchical():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        return networks.bayesian_layer(X[:, None], "layer", 3, prior_scale=scale)

    trace = poutine.trace(pyro.plate("particles", 5, dim=-2)(hierarchical)).get_trace()
    assert trace.nodes["layer.weight"]["value"].shape == (5, 1, 1, 3)
    assert torch.equal(trace.nodes["layer.weight"]["fn"].base_dist.stddev[:, 0, 0, 0], trace.nodes["scale"]["value"][:, 0])
    assert trace.nodes["_RETURN"]["value"].shape == (5, N, 3)


def test_where_a_guide_starts(store):
    networks.bayesian_layer_guide("a", 50, 2_000, scale=0.2)
    assert pyro.param("a.weight.loc").std().item() == pytest.approx(1 / math.sqrt(50), rel=0.02)
    assert torch.allclose(pyro.param("a.weight.scale"), torch.tensor(0.2))
    assert (pyro.param("a.bias.loc") == 0).all()
    networks.bayesian_layer_guide("b", 50, 2_000, loc_sd=0.001, scale=0.1, bias_loc_sd=0.5, bias_scale=0.7)
    assert pyro.param("b.weight.loc").std().item() == pytest.approx(0.001, rel=0.02)
    assert pyro.param("b.bias.loc").std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.allclose(pyro.param("b.bias.scale"), torch.tensor(0.7))
