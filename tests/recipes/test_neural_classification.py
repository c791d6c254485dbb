"""`neural_classification`: its two likelihoods are cross entropy and squared error, as plain PyTorch computes them."""

import math

import numpy as np
import pytest
import torch

import pyrovi
from pyrovi import _arviz
from pyrovi.guides.neural_classification import guide
from pyrovi.models import neural_classification as recipe
from pyrovi.models.neural_classification import accuracy, load, model, one_hot

ROWS = ("images", "labels")


def few(likelihood, n=50):
    data = load(likelihood)
    return {**data, **{name: data[name][:n] for name in ROWS}, "widths": (12,)}


def plain_loss(likelihood, output, labels):
    """PyTorch's mean loss, and what the ELBO's constant adds a datum."""
    if likelihood == "categorical":
        return torch.nn.functional.cross_entropy(output, labels), 1.0, 0.0
    return torch.nn.functional.mse_loss(output, labels), 10 / 2, 10 / 2 * math.log(2 * math.pi)


@pytest.mark.parametrize("likelihood", recipe.LIKELIHOODS)
@pytest.mark.parametrize("batch_size", [None, 20])  # 50 = 20 + 20 + 10
def test_loss_and_gradients_are_plain_pytorchs(likelihood, batch_size):
    data = few(likelihood)
    images, labels = (torch.as_tensor(data[name]).double() if name == "images" else torch.as_tensor(data[name]) for name in ROWS)
    batched = {"batch_size": batch_size} if batch_size else {}
    settings = {"dtype": "float64", "stop": None, "optimizer": "sgd", **batched}
    at = dict(pyrovi.fit(model, guide, data, steps=1, lr=1e-300, **settings).parameters)
    after = []
    rate = 1e-9
    fit = pyrovi.fit(
        model, guide, data, steps=3, lr=rate, callbacks=lambda step: after.append(dict(step.parameters())) and None, **settings
    )
    rows = fit.problem.batches.epochs(torch.Generator().manual_seed(0), images.device) if batch_size else None
    for step in range(3):
        keep = next(rows) if rows is not None else torch.arange(50)
        leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
        hidden = torch.relu(torch.nn.functional.linear(images[keep], leaves["net.0.weight"].T, leaves["net.0.bias"]))
        output = torch.nn.functional.linear(hidden, leaves["net.1.weight"].T, leaves["net.1.bias"])
        loss, times, constant = plain_loss(likelihood, output, labels[keep])
        loss.backward()
        assert -fit.elbo[0, step] == pytest.approx(50 * (times * loss.item() + constant), rel=1e-6)
        for name, leaf in leaves.items():
            ours, theirs = (at[name] - after[step][name]) / rate, 50 * times * leaf.grad
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))
        at = after[step]


@pytest.mark.parametrize("likelihood", recipe.LIKELIHOODS)
def test_it_reads_digits_that_it_has_not_seen(likelihood):
    """297 test digits: seeds 0 to 4 reach 0.91 to 0.93, and the standard error of such a share is 0.016."""
    fit = pyrovi.fit(model, guide, load(likelihood), epochs=40, lr=0.005, batch_size=100, schedule="cosine", stop=None)
    test = load(split="test")
    assert accuracy(fit, test["images"], test["labels"]) > 0.88
    assert fit.point_estimate
    assert "posterior" not in _arviz.groups(fit.to_arviz(2))
    drawn = fit.predictive(2, data={"images": test["images"]})["label"]
    assert drawn.shape == ((2, 297) if likelihood == "categorical" else (2, 297, 10))


def test_images_of_any_shape_and_classes_of_any_number():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = rng.normal(size=(60, 4, 5, 2)) + 2 * labels[:, None, None, None]
    data = {"images": images, "labels": labels, "classes": 3, "widths": (8, 8), "nonlinearity": "tanh"}
    fit = pyrovi.fit(model, guide, data, steps=200, lr=0.02, stop=None)
    assert accuracy(fit, images, labels) > 0.9


def test_classes_under_the_gaussian_are_refused_with_the_cure():
    data = {**few("categorical"), "likelihood": "gaussian"}
    with pytest.raises(pyrovi.PyroviError, match="one_hot"):
        pyrovi.fit(model, guide, data, steps=1)
    with pytest.raises(pyrovi.PyroviError, match="did you mean 'gaussian'"):
        pyrovi.fit(model, guide, {**data, "likelihood": "gausian"}, steps=1)
    assert one_hot([1], 2).tolist() == [[0.0, 1.0]]
