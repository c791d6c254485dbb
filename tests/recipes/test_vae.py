"""The variational autoencoder: probabilistic PCA where it is linear, and what images need."""

import functools
import math
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import linalg, stats

import pyrovi
from pyrovi import data
from pyrovi._isolation import isolated
from pyrovi.guides import vae as encoder
from pyrovi.models import vae
from pyrovi.preflight import prepare

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
X = data.diabetes().X[:150].astype(np.float32)
LINEAR = {"images": X, "latent": 2, "widths": (), "likelihood": "gaussian"}
RNG = np.random.default_rng(0)


@functools.cache
def linear_fit(seed=0, steps=1_500, lr=0.02):
    return pyrovi.fit(vae.model, encoder.guide, LINEAR, steps=steps, lr=lr, particles=4, stop=None, seed=seed)


def covariance(loadings, noise):
    return loadings.T @ loadings + noise**2 * np.eye(loadings.shape[1])


@pytest.mark.parametrize("noise", [None, 0.9])
def test_the_exact_likelihood_is_that_of_its_gaussian_and_no_other_is_higher(noise):
    exact = vae.exact(**LINEAR, noise=noise)
    x = X - X.mean(0, dtype=float)
    cov = exact.covariance["z"]
    mean = exact.marginals["z"].mean()
    # W and the noise follow from the posterior: cov = noise²(WWᵀ + noise² I)⁻¹
    variance = np.linalg.eigvalsh(x.T @ x / len(x))[:-2].mean() if noise is None else noise**2
    loadings = np.linalg.lstsq(mean, x, rcond=None)[0]  # nearly: regression of x on E[z] gives W up to shrinkage
    gram = variance * np.linalg.inv(cov) - variance * np.eye(2)
    loadings *= np.sqrt(np.diag(gram) / (loadings**2).sum(1))[:, None]

    def log_likelihood(w, sd):
        return stats.multivariate_normal(np.zeros(10), covariance(w, sd)).logpdf(x).sum()

    assert exact.log_evidence == pytest.approx(log_likelihood(loadings, variance**0.5), abs=1e-6)
    for _ in range(20):
        step = 0.02 * RNG.normal(size=loadings.shape)
        sd = variance**0.5 * (np.exp(0.02 * RNG.normal()) if noise is None else 1.0)
        assert log_likelihood(loadings + step, sd) < exact.log_evidence
    m = loadings @ loadings.T + variance * np.eye(2)  # the posterior of z by conditioning
    assert np.allclose(mean, x @ loadings.T @ np.linalg.inv(m))
    assert np.allclose(cov, variance * np.linalg.inv(m))


def test_a_linear_decoder_reaches_the_closed_form_maximum_likelihood():
    """Within 0.5 nats of 150 rows together; the same subspace; the axes that a mean-field q needs; the posterior of z."""
    fit = linear_fit()
    weight, noise = (fit.parameters[name].double().numpy() for name in ("decoder.0.weight", "noise"))
    exact = vae.exact(**LINEAR, weight=weight)
    kl = pyrovi.compare(fit, exact, draws=1_000).attrs["kl"]
    assert -4 * kl.se < kl.value < 0.5
    assert kl.se < 0.05
    sample_covariance = np.cov(X.T, ddof=0)
    assert noise**2 == pytest.approx(np.linalg.eigvalsh(sample_covariance)[:-2].mean(), rel=0.02)
    assert linalg.subspace_angles(weight.T, np.linalg.eigh(sample_covariance)[1][:, -2:]).max() < 0.01
    gram = weight @ weight.T
    assert abs(gram[0, 1]) < 0.02 * np.diag(gram).min()
    z, (mean, scale) = exact.marginals["z"], vae.encode(fit, X)
    assert np.abs((mean.numpy() - z.mean()) / z.std()).max() < 0.05
    assert np.abs(scale.numpy() / z.std() - 1).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_the_same_on_the_digits_over_seeds(seed):
    images = {**LINEAR, "images": data.pixels().images}
    fit = pyrovi.fit(vae.model, encoder.guide, images, steps=12_000, lr=0.01, objective="mean_field", stop=None, seed=seed)
    elbo = fit.estimate_elbo(500)
    assert vae.exact(**images).log_evidence - elbo.value < 0.5
    assert elbo.se < 0.05


def test_there_is_an_exact_answer_for_a_linear_gaussian_decoder_only():
    assert vae.exact(X) is None
    assert vae.exact(X, widths=(3,), likelihood="gaussian") is None
    assert vae.exact(X, widths=(), likelihood="grey") is None
    with pytest.raises(pyrovi.DataError, match="latent must be from 1 to 9"):
        vae.exact(X, 10, (), likelihood="gaussian")
    with pytest.raises(pyrovi.DataError, match="no noise at all"):
        vae.exact(np.outer(np.arange(5.0), np.ones(3)), 1, (), likelihood="gaussian")


def test_axes_of_the_exact_posterior_turn_to_a_fitted_decoder():
    plain = vae.exact(**LINEAR)
    turn = np.array([[0.6, -0.8], [-0.8, -0.6]])
    loadings = np.linalg.lstsq(plain.marginals["z"].mean(), X - X.mean(0), rcond=None)[0]
    turned = vae.exact(**LINEAR, weight=turn @ loadings)
    assert np.allclose(turned.marginals["z"].mean(), plain.marginals["z"].mean() @ turn.T, atol=1e-3)
    assert np.allclose(turned.covariance["z"], turn @ plain.covariance["z"] @ turn.T, atol=1e-3)
    assert turned.log_evidence == pytest.approx(plain.log_evidence)
    draws = turned.draws(4_000)["z"] - turned.marginals["z"].mean()
    assert np.allclose(np.cov(draws.reshape(-1, 2).T), turned.covariance["z"], rtol=0.02, atol=1e-4)


N, B = 23, 5  # the last batch has three images
SMALL = {"images": data.pixels().images[:N], "widths": (6, 5), "latent": 3}


def log_probs(program, z, **arguments):
    return poutine.trace(poutine.condition(program, data={"z": z})).get_trace(**arguments).log_prob_sum().item()


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_one_pass_has_the_elbo_of_the_full_batch(likelihood):
    """At given codes every batch's log densities, weighted by B/n, add up to the full ones, so their expectations do."""
    codes, given = torch.randn(N, 3, generator=torch.Generator().manual_seed(1)), {**SMALL, "likelihood": likelihood}
    if likelihood == "bernoulli":
        given["images"] = given["images"].round()
    with isolated(0, torch.float32, validate=True):
        make = functools.partial(prepare, vae.model, encoder.guide, given, dtype=torch.float32, device=torch.device("cpu"))
        batched, whole = make(batch_size=B).batched(), make()
        for program in ("model", "guide"):
            total = 0.0
            for i in range(-(-N // B)):
                batched.take(batched.rows(i))
                total += batched.count / N * log_probs(getattr(batched, program), codes[batched.indices])
            assert batched.count == N % B
            assert total == pytest.approx(log_probs(getattr(whole, program), codes, **whole.data), rel=1e-5)


@pytest.mark.parametrize("objective", ["trace_elbo", "mean_field"])
def test_batches_and_particles_run_together(objective):
    fit = pyrovi.fit(
        vae.model, encoder.guide, SMALL, steps=5, particles=3, batch_size=B, objective=objective,
        transform=vae.binarize,
    )  # fmt: skip
    assert fit.settings["vectorized"]
    assert fit.draws(4, pointwise=True).log_likelihood["x"].shape == (4, N)
    assert fit.predictive(4)["x"].unique().tolist() == [0.0, 1.0]


def test_the_analytic_kl_has_the_expectation_of_the_sampled_one_and_at_the_exact_posterior_more_variance():
    fit = linear_fit()
    runs = {
        name: pyrovi.fit(
            vae.model,
            encoder.guide,
            LINEAR,
            steps=200,
            lr=1e-6,
            objective=name,
            stop=None,
            callbacks=start_at(fit),
            seed=1,
            engine="pyro",
        ).elbo[0, 1:]
        for name in ("trace_elbo", "mean_field")
    }
    sampled, analytic = runs["trace_elbo"], runs["mean_field"]
    se = math.hypot(sampled.std(), analytic.std()) / math.sqrt(199)
    assert abs(sampled.mean() - analytic.mean()) < 4 * se
    assert sampled.std() < 0.1 * analytic.std()


def start_at(fit):
    """A callback that puts a fit's parameters into Pyro's store after the first step."""
    import pyro

    def callback(step):
        if step.number == 1:
            state = pyro.get_param_store().get_state()["params"]
            with torch.no_grad():
                for name, value in fit.unconstrained.items():
                    state[name].copy_(value)

    return callback


def test_grey_pixels_are_refused_unless_drawn_or_said_to_be_grey():
    with pytest.raises(pyrovi.DataError, match="'x' is Bernoulli, whose values are 0 or 1"):
        pyrovi.fit(vae.model, encoder.guide, SMALL, steps=2)
    for settings in ({"transform": vae.binarize}, {"data": {**SMALL, "likelihood": "grey"}}):
        assert pyrovi.fit(vae.model, encoder.guide, **{"data": SMALL, "steps": 2, **settings}).status
    with pytest.raises(pyrovi.DataError, match="divide grey values by their largest"):
        pyrovi.fit(vae.model, encoder.guide, {**SMALL, "images": data.digits().images.reshape(-1, 64)}, steps=2)
    with pytest.raises(pyrovi.DataError, match=r"shape \(n, d\)"):
        pyrovi.fit(vae.model, encoder.guide, {**SMALL, "images": data.digits().images / 16}, steps=2)
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'gaussian'"):
        pyrovi.fit(vae.model, encoder.guide, {**SMALL, "likelihood": "gauss"}, steps=2)
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'D1'"):
        vae.load(preset="D2")
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'mnist'"):
        vae.load("mnits")


def test_a_grey_bernoulli_is_minus_the_cross_entropy_and_no_density():
    logits, x = torch.randn(7), torch.rand(7)
    p = torch.sigmoid(logits)
    grey = vae.GreyBernoulli(logits=logits)
    assert torch.allclose(grey.log_prob(x), x * p.log() + (1 - x) * (1 - p).log(), atol=1e-6)
    assert torch.equal(grey.log_prob(x.round()), dist.Bernoulli(logits=logits).log_prob(x.round()))
    grid = torch.linspace(0, 1, 1_001)[:, None]
    area = vae.GreyBernoulli(logits=torch.zeros(1)).expand([1]).log_prob(grid).exp().mean()
    assert area == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="support"):
        vae.GreyBernoulli(logits=logits, validate_args=True).log_prob(x + 1)


def test_binarised_pixels_have_the_grey_value_as_their_mean_and_are_drawn_anew():
    torch.manual_seed(0)
    grey = torch.tensor([[0.0, 0.3, 1.0]]).expand(20_000, 3)
    first, second = (vae.binarize({"images": grey, "latent": 2}) for _ in range(2))
    assert first["latent"] == 2
    assert first["images"].mean(0).tolist() == pytest.approx([0.0, 0.3, 1.0], abs=4 * (0.21 / 20_000) ** 0.5)
    assert not torch.equal(first["images"], second["images"])
    assert vae.binarize({"images": grey, "likelihood": "grey"})["images"] is grey


@pytest.mark.parametrize(
    ("preset", "spread", "layers"), [("D0", "log_variance", [64, 512, 256, 4]), ("D1", "softplus", [64, 100, 4])]
)
def test_presets_have_the_documents_layers_and_the_decoder_mirrors_them(preset, spread, layers):
    guide = functools.partial(encoder.guide, spread=spread)
    given = vae.load(preset=preset)
    fit = pyrovi.fit(vae.model, guide, {**given, "images": given["images"][:9]}, steps=1, transform=vae.binarize)
    shapes = {name: tuple(value.shape) for name, value in fit.parameters.items() if name.endswith("weight")}
    back = [2, *reversed(layers[:-1])]
    assert shapes == {
        **{f"encoder.{i}.weight": pair for i, pair in enumerate(zip(layers, layers[1:], strict=False))},
        **{f"decoder.{i}.weight": pair for i, pair in enumerate(zip(back, back[1:], strict=False))},
    }


def test_codes_and_images_of_the_linear_model_are_the_exact_ones():
    fit = linear_fit()
    weight = fit.parameters["decoder.0.weight"].double().numpy()
    exact = vae.exact(**LINEAR, weight=weight)
    mean, scale = vae.encode(fit, X[:7])
    assert np.allclose(mean, exact.marginals["z"].mean()[:7], atol=0.05 * exact.marginals["z"].std().max())
    assert np.allclose(scale, exact.marginals["z"].std()[:7], rtol=0.05)
    assert np.allclose(vae.decode(fit, mean), mean.numpy() @ weight + fit.parameters["decoder.0.bias"].numpy(), atol=1e-5)
    drawn = vae.samples(fit, 4_000, seed=3)
    assert drawn.shape == (4_000, 10)
    assert np.allclose(np.cov(drawn.T), weight.T @ weight, atol=0.12 * np.diag(weight.T @ weight).max())
    assert torch.equal(vae.samples(fit, 3, seed=3), vae.samples(fit, 3, seed=3))
    assert not torch.equal(vae.samples(fit, 3, seed=3), vae.samples(fit, 3, seed=4))
    near = vae.neighbours(fit, X[:5], X, k=3)
    assert near[:, 0].tolist() == list(range(5))  # each is its own nearest
    distance = np.linalg.norm(exact.marginals["z"].mean() - exact.marginals["z"].mean()[0], axis=1)
    assert distance[near[0, 2]] == pytest.approx(np.sort(distance)[2], rel=0.05)


def test_amortization_costs_nothing_where_the_encoder_can_be_exact_and_something_where_it_is_new():
    gap = vae.amortization_gap(linear_fit(), X[:20], steps=300)
    lost = (gap.own - gap.amortised).numpy()
    assert np.abs(lost).max() < 0.02
    exact = vae.exact(**LINEAR)
    assert gap.own.sum() == pytest.approx(exact.log_evidence / len(X) * 20, abs=60)  # nats an image

    young = pyrovi.fit(vae.model, encoder.guide, SMALL, steps=20, transform=vae.binarize)
    images = np.random.default_rng(0).binomial(1, SMALL["images"][:8])
    gap = vae.amortization_gap(young, images, steps=300)
    assert (gap.own - gap.amortised).min() > 0.1
    automatic = pyrovi.fit(vae.model, "normal", SMALL, steps=2, transform=vae.binarize)
    with pytest.raises(pyrovi.GuideError, match="no encoder"):
        vae.encode(automatic, images)


def test_an_automatic_guide_has_a_code_for_each_image():
    fit = pyrovi.recipe("vae").fit(SMALL, "normal", steps=20, batch_size=B)
    assert fit.posterior(2)["z"].shape == (2, N, 3)


def test_the_recipe_learns_the_digits_and_scores_others():
    """A hundred steps beat pixels that are independent, the best that no code at all can do."""
    given = vae.load(preset="D1")
    fit = pyrovi.recipe("vae").fit(given, steps=300, lr=3e-3)
    test = vae.load(split="test")["images"]
    p = given["images"].mean(0).clip(1e-3, 1 - 1e-3)
    alone = (test * np.log(p) + (1 - test) * np.log(1 - p)).sum()
    elbo = fit.on({"images": test}).estimate_elbo(20)
    assert elbo.value > alone + 5 * len(test) / 10 + 4 * elbo.se
    assert fit.recipe == "vae"


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_mnist_through_the_same_arguments():
    given = vae.load("mnist", "D1", "test", MNIST)
    assert given["images"].shape == (10_000, 784)
    assert 0 <= given["images"].min() < given["images"].max() == 1
    fit = pyrovi.recipe("vae").fit({**given, "images": given["images"][:200]}, steps=3)
    assert vae.samples(fit, 2).shape == (2, 784)


@pytest.mark.slow
def test_the_documents_settings_end_to_end():
    fit = pyrovi.recipe("vae").fit()
    assert fit.settings["steps"] == 6_000
    assert fit.settings["objective"] == "mean_field"
    images = vae.load(split="test")["images"]
    assert fit.on({"images": images}).estimate_elbo(50).value / len(images) > -25.5
