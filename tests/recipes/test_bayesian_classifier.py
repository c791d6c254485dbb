"""The Bayesian classifier: the posterior of NUTS on a small problem, and what its probabilities are worth."""

import functools
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS

import pyrovi
from pyrovi import data
from pyrovi._isolation import isolated
from pyrovi.guides import bayesian_classifier as factorised
from pyrovi.models import bayesian_classifier
from pyrovi.preflight import prepare

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
N, B = 23, 5  # the last batch has three images
IMAGES, LABELS = data.pixels()
SMALL = {"images": IMAGES[:N], "labels": LABELS[:N], "widths": (6,)}
WEIGHTS = {"net.0.weight": (64, 6), "net.0.bias": (6,), "net.1.weight": (6, 10), "net.1.bias": (10,)}


@pytest.mark.parametrize("latent_bias", [True, False])
def test_one_pass_has_the_elbo_of_the_full_batch(latent_bias):
    """At given weights every batch's log densities, weighted by B/n, add up to the full ones, so their expectations do."""
    generator = torch.Generator().manual_seed(0)
    weights = {n: 0.3 * torch.randn(s, generator=generator) for n, s in WEIGHTS.items() if latent_bias or "weight" in n}

    def log_prob(program, **arguments):
        return poutine.trace(poutine.condition(program, data=weights)).get_trace(**arguments).log_prob_sum().item()

    with isolated(0, torch.float32, validate=True):
        make = functools.partial(
            prepare, bayesian_classifier.model, factorised.guide, {**SMALL, "latent_bias": latent_bias}, dtype=torch.float32,
            device=torch.device("cpu"),
        )  # fmt: skip
        batched, whole = make(batch_size=B).batched(), make()
        for program in ("model", "guide"):
            total = 0.0
            for i in range(-(-N // B)):
                batched.take(batched.rows(i))
                total += batched.count / N * log_prob(getattr(batched, program))
            assert batched.count == N % B
            assert total == pytest.approx(log_prob(getattr(whole, program), **whole.data), rel=1e-5)


def test_the_likelihood_is_the_cross_entropy_of_the_network():
    weights = {name: 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in WEIGHTS.items()}
    images, labels = torch.as_tensor(SMALL["images"]), torch.as_tensor(SMALL["labels"])
    conditioned = poutine.condition(bayesian_classifier.model, data=weights)
    trace = poutine.trace(conditioned).get_trace(images, labels, widths=(6,))
    trace.compute_log_prob()
    hidden = torch.relu(images @ weights["net.0.weight"] + weights["net.0.bias"])
    logits = hidden @ weights["net.1.weight"] + weights["net.1.bias"]
    expected = -torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert trace.nodes["label"]["log_prob_sum"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("local", [True, False])
def test_one_pass_has_the_expected_elbo_of_the_full_batch_also_with_outputs_drawn_for_every_row(local):
    """Within 4 Monte Carlo standard errors, 500 estimates each, at the parameters that the guide starts from (seed 0)."""
    guide = functools.partial(factorised.guide, local_reparameterization=local, scale=0.3)
    with isolated(0, torch.float32):
        means, errors = [], []
        for size in (None, B):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            problem = prepare(
                bayesian_classifier.model, guide, SMALL, dtype=torch.float32, device=torch.device("cpu"), batch_size=size,
            )  # fmt: skip
            with torch.no_grad():
                for i, leaf in enumerate(problem.parameters.leaves.values()):
                    if leaf.std() > 0:
                        leaf.copy_(0.2 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(i)))
            batches = -(-N // B) if size else 1
            values = torch.zeros(500 // batches, dtype=torch.float64)
            for i in range(batches):
                run, model, given = problem.step_programs(i)
                weight = problem.batched().plan.blocks(problem.device)[i].numel() / N if size else 1.0
                for j in range(len(values)):
                    q = poutine.trace(run).get_trace(**given)
                    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(**given)
                    values[j] += weight * (p.log_prob_sum() - q.log_prob_sum()).item()
            means.append(values.mean())
            errors.append(values.var() / len(values))
    assert abs(means[0] - means[1]) < 4 * (errors[0] + errors[1]).sqrt()


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", None])
def test_batches_and_particles_run_together_and_new_images_are_classified(guide):
    few = {"images": IMAGES[:N, :9], "labels": LABELS[:N]}
    fit = pyrovi.recipe("bayesian_classifier").fit(few, guide, steps=5, particles=3, batch_size=B)
    assert fit.settings["vectorized"]
    drawn = fit.predictive(7, data={"images": IMAGES[:4, :9]})["label"]
    assert drawn.shape == (7, 4)
    assert drawn.unique().numel() > 1
    p = bayesian_classifier.probabilities(fit, IMAGES[:4, :9], draws=50)
    assert p.shape == (4, 10)
    assert np.allclose(p.sum(1), 1)
    assert np.array_equal(p, bayesian_classifier.probabilities(fit, IMAGES[:4, :9], draws=50))


def test_images_of_any_shape_and_any_classes():
    own = {"images": np.random.default_rng(0).random((12, 3, 5)), "labels": np.arange(12) % 4, "classes": 4, "widths": (3, 2)}
    fit = pyrovi.recipe("bayesian_classifier").fit(own, steps=3, batch_size=5)
    assert fit.parameters["net.0.weight.loc"].shape == (15, 3)
    assert bayesian_classifier.probabilities(fit, own["images"][:2], 3).shape == (2, 4)


def test_the_probabilities_are_the_mean_likelihood_of_the_draws():
    """The log score is the log predictive density by another route, within what 2,000 draws leave of noise."""
    given = {"images": IMAGES[:200], "labels": LABELS[:200]}
    fit = pyrovi.recipe("bayesian_classifier").fit(given, steps=200)
    test = {"images": IMAGES[200:260], "labels": LABELS[200:260]}
    score = bayesian_classifier.evaluate(fit, **test, draws=2_000).log_score
    assert score == pytest.approx(fit.on(test).log_predictive(2_000)["label"].mean().item(), abs=0.02)


@functools.cache
def digits_scores(kl_weight=1.0):
    fit = pyrovi.recipe("bayesian_classifier").fit(lr=0.03, steps=600, kl_weight=kl_weight)
    return bayesian_classifier.evaluate(fit, **bayesian_classifier.load(split="test"))


def test_the_recipe_learns_the_digits():
    """Softmax regression is right nine times in ten, and knows how sure it may be."""
    found = digits_scores()
    assert found.accuracy > 0.89
    assert found.log_score > -0.45
    assert found.calibration_error < 0.1


def test_principal_axes_are_the_same_model_and_a_better_mean_field():
    """Rotated, centred pixels have the same evidence under a prior without direction; the ELBO of q is nearer to it."""
    axes = bayesian_classifier.principal_axes(IMAGES, 64)
    assert np.allclose(axes.axes.T @ axes.axes, np.eye(64), atol=1e-10)
    rotated = axes.transform(IMAGES)
    assert np.allclose(rotated @ axes.axes.T + axes.mean, IMAGES, atol=1e-5)
    assert np.all(np.diff(rotated.var(0)) < 1e-6)
    recipe, elbos = pyrovi.recipe("bayesian_classifier"), []
    for x in (rotated, IMAGES - axes.mean):
        fit = recipe.fit({"images": x.astype(np.float32), "labels": LABELS}, lr=0.03, steps=500)
        elbos.append(fit.estimate_elbo(300))
    assert elbos[0].value > elbos[1].value + 10
    few = bayesian_classifier.load(split="test", components=7)["images"]
    assert np.allclose(few, axes.transform(data.pixels(split="test").images)[:, :7])
    with pytest.raises(pyrovi.DataError, match="64 principal axes"):
        bayesian_classifier.load(components=65)


def test_a_kl_that_is_too_heavy_gives_the_prior():
    """The document's mean over the KL's batch shape weighs it n/d times; on 1,500 images of 64 pixels, 23.4."""
    right, heavy = digits_scores(), digits_scores(1_500 / 64)
    assert heavy.log_score < right.log_score - 0.5


SUMMED = np.array([[0, 1], [2, 3]]).repeat(4, 0).repeat(4, 1).ravel()
"""Which quarter of the image each of its 64 pixels is in."""


@pytest.mark.slow
def test_predictions_match_nuts_on_a_small_problem():
    """150 images of three digits by the four quarters of the image: 15 latent numbers. Mean field is close, a full
    covariance closer.

    NUTS's own error in a probability is about 0.01 (sd 0.15 over 500 draws that are not independent); seed 0.
    """
    keep = np.flatnonzero(LABELS < 3)[:150]
    quarters = np.stack([IMAGES[keep][:, q == SUMMED].mean(1) for q in range(4)], 1) * 4
    given = {"images": quarters.astype(np.float32), "labels": LABELS[keep], "classes": 3}
    tensors = {name: torch.as_tensor(value) if name != "classes" else value for name, value in given.items()}
    with isolated(0, torch.float32):
        nuts = MCMC(NUTS(bayesian_classifier.model), num_samples=1_000, warmup_steps=300, disable_progbar=True)
        nuts.run(**tensors)
        draws = nuts.get_samples()
    reference = (tensors["images"] @ draws["net.0.weight"] + draws["net.0.bias"][:, None]).softmax(-1).mean(0).numpy()
    for guide, tolerance in (("multivariate_normal", 0.03), (None, 0.06)):
        fit = pyrovi.recipe("bayesian_classifier").fit(
            given, guide, steps=4_000, lr=0.02, particles=4, batch_size=150, schedule="cosine"
        )
        p = bayesian_classifier.probabilities(fit, given["images"], 1_000)
        assert np.abs(p - reference).max() < tolerance
        if guide is not None:
            weight = fit.posterior(4_000)["net.0.weight"]
            assert (weight.std(0) / draws["net.0.weight"].std(0) - 1).abs().max() < 0.15


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_softmax_regression_on_mnist_is_right_92_times_in_100():
    given = bayesian_classifier.load("mnist", folder=MNIST)
    fit = pyrovi.recipe("bayesian_classifier").fit(given, steps=1_800)
    found = bayesian_classifier.evaluate(fit, **bayesian_classifier.load("mnist", "test", MNIST), draws=30)
    assert found.accuracy >= 0.92
    assert found.calibration_error < 0.03


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_a_hidden_layer_on_mnist_is_right_98_times_in_100_and_calibrated():
    """On a hundred principal axes, the KL at its full weight; a minute or two."""
    given = {**bayesian_classifier.load("mnist", folder=MNIST, components=100), "widths": (400,), "prior_scale": 0.3}
    guide = functools.partial(factorised.guide, scale=0.01)
    fit = pyrovi.fit(bayesian_classifier.model, guide, given, epochs=40, lr=3e-3, batch_size=200, schedule="cosine", stop=None)
    found = bayesian_classifier.evaluate(fit, **bayesian_classifier.load("mnist", "test", MNIST, 100), draws=50)
    assert found.accuracy >= 0.98
    assert found.calibration_error < 0.02
