"""The conditional autoencoder: class-centred PCA where it is linear, and a digit on demand."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import linalg, stats

import pyrovi
from pyrovi import data
from pyrovi._isolation import isolated
from pyrovi.guides import conditional_vae as encoder
from pyrovi.models import conditional_vae, vae
from pyrovi.preflight import prepare

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
PATIENTS = data.diabetes().X[:200].astype(np.float32)
X, sex = np.delete(PATIENTS, 1, axis=1), (PATIENTS[:, 1] > 0).astype(int)
LINEAR = {"images": X, "labels": sex, "classes": 2, "latent": 2, "widths": (), "likelihood": "gaussian"}
CENTRED = X - np.stack([X[sex == c].mean(0) for c in range(2)])[sex]


@functools.cache
def linear_fit():
    return pyrovi.fit(conditional_vae.model, encoder.guide, LINEAR, steps=2_000, lr=0.02, particles=4, stop=None)


def test_a_linear_decoder_reaches_the_maximum_likelihood_of_class_centred_data():
    fit = linear_fit()
    weight = fit.parameters["decoder.0.weight"].double().numpy()[:2]
    exact = conditional_vae.exact(**LINEAR, weight=weight)
    kl = pyrovi.compare(fit, exact, draws=1_000).attrs["kl"]
    assert -4 * kl.se < kl.value < 0.5
    assert kl.se < 0.05
    principal = np.linalg.eigh(np.cov(CENTRED.T))[1][:, -2:]
    assert linalg.subspace_angles(weight.T, principal).max() < 0.01
    z, (mean, scale) = exact.marginals["z"], conditional_vae.encode(fit, X, labels=sex)
    assert np.abs((mean.numpy() - z.mean()) / z.std()).max() < 0.05
    assert np.abs(scale.numpy() / z.std() - 1).max() < 0.05
    for label in range(2):  # the decoder's image of the code 0 is the mean of the class
        image = conditional_vae.decode(fit, torch.zeros(1, 2), labels=[label])[0]
        assert np.allclose(image, X[sex == label].mean(0), atol=0.05)


def test_the_exact_likelihood_is_that_of_a_gaussian_about_each_class_mean():
    exact = conditional_vae.exact(**LINEAR)
    values, vectors = np.linalg.eigh(CENTRED.T.astype(float) @ CENTRED / len(X))
    noise = values[:-2].mean()
    covariance = (vectors[:, -2:] * (values[-2:] - noise)) @ vectors[:, -2:].T + noise * np.eye(9)
    by_hand = stats.multivariate_normal(np.zeros(9), covariance).logpdf(CENTRED).sum()
    assert exact.log_evidence == pytest.approx(by_hand, abs=1e-3)
    pooled = vae.exact(X, 2, (), likelihood="gaussian")
    assert exact.log_evidence > pooled.log_evidence + 1  # the class is worth something here
    assert conditional_vae.exact(X, sex) is None
    assert conditional_vae.exact(X, sex, widths=(), likelihood="grey") is None


N, B = 23, 5  # the last batch has three images
IMAGES, LABELS = (part[:N] for part in data.pixels())
SMALL = {"images": IMAGES, "labels": LABELS, "widths": (6,), "latent": 3}


def test_one_pass_has_the_elbo_of_the_full_batch():
    """At given codes every batch's log densities, weighted by B/n, add up to the full ones, so their expectations do."""
    codes = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))

    def log_probs(program, z, **arguments):
        return poutine.trace(poutine.condition(program, data={"z": z})).get_trace(**arguments).log_prob_sum().item()

    with isolated(0, torch.float32, validate=True):
        given = {**SMALL, "images": IMAGES.round()}
        make = functools.partial(
            prepare, conditional_vae.model, encoder.guide, given, dtype=torch.float32, device=torch.device("cpu")
        )
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
    fit = pyrovi.recipe("conditional_vae").fit(SMALL, steps=5, particles=3, batch_size=B, objective=objective)
    assert fit.settings["vectorized"]
    assert fit.predictive(4)["x"].shape == (4, N, 64)
    assert fit.recipe == "conditional_vae"
    assert pyrovi.recipe("conditional_vae").fit(SMALL, "normal", steps=5, batch_size=B).posterior(2)["z"].shape == (2, N, 3)


def test_a_label_out_of_range_is_refused():
    with pytest.raises(pyrovi.ModelError, match="smaller than num_classes"):
        pyrovi.recipe("conditional_vae").fit({**SMALL, "classes": 5}, steps=2)


def test_each_digit_is_drawn_on_demand():
    """The nearest mean of the ten classes to a drawn image is that of the class asked for, nine times in ten at least."""
    given = {**conditional_vae.load(preset="D1"), "latent": 4}
    fit = pyrovi.recipe("conditional_vae").fit(given, steps=700, lr=3e-3)
    means = torch.stack([torch.as_tensor(given["images"][given["labels"] == c].mean(0)) for c in range(10)])
    drawn = torch.stack([conditional_vae.draw(fit, c, 20, seed=c) for c in range(10)])
    assert drawn.shape == (10, 20, 64)
    nearest = torch.cdist(drawn.flatten(0, 1), means).argmin(1).reshape(10, 20)
    assert (nearest == torch.arange(10)[:, None]).double().mean() > 0.9
    assert drawn.std(1).mean() > 0.01  # and they are not all the same
    test = conditional_vae.load(split="test")
    right = fit.on({k: test[k] for k in ("images", "labels")}).estimate_elbo(20)
    wrong = fit.on({"images": test["images"], "labels": (test["labels"] + 1) % 10}).estimate_elbo(20)
    assert right.value > wrong.value + 4 * (right.se + wrong.se)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_mnist_through_the_same_arguments():
    given = conditional_vae.load("mnist", "D1", "test", MNIST)
    few = {**given, "images": given["images"][:200], "labels": given["labels"][:200]}
    fit = pyrovi.recipe("conditional_vae").fit(few, steps=3)
    assert conditional_vae.draw(fit, 7, 2).shape == (2, 784)


@pytest.mark.slow
def test_the_documents_settings_end_to_end():
    """The class makes the images likelier than an autoencoder without it finds them, at the same settings (seed 0)."""
    test = conditional_vae.load(split="test")
    fit = pyrovi.recipe("conditional_vae").fit()
    given = fit.on({k: test[k] for k in ("images", "labels")}).estimate_elbo(50).value
    alone = pyrovi.recipe("vae").fit().on({"images": test["images"]}).estimate_elbo(50).value
    assert given > alone + len(test["images"])
