"""`neural_regression`: SVI with an empty guide is least squares, step for step what plain PyTorch does."""

import math

import numpy as np
import pytest
import torch

import pyrovi
from pyrovi import _arviz
from pyrovi.guides.neural_regression import guide
from pyrovi.models import neural_regression
from pyrovi.models.neural_regression import load, model


def initial(data, **settings):
    """The parameters that a fit of these data and settings starts from: a step too small to be one leaves them alone."""
    fit = pyrovi.fit(model, guide, data, steps=1, optimizer="sgd", lr=1e-300, dtype="float64", stop=None, **settings)
    return fit.parameters


def plain(parameters, layers):
    """The same network as a `torch.nn.Sequential`."""
    modules = []
    for i in range(layers):
        weight, bias = parameters[f"net.{i}.weight"], parameters[f"net.{i}.bias"]
        linear = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        linear.load_state_dict({"weight": weight.T, "bias": bias})
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def tensors(data):
    return torch.as_tensor(data["x"]).reshape(len(data["x"]), -1), torch.as_tensor(data["y"])


@pytest.mark.parametrize("noise", [1.0, 0.5])
@pytest.mark.parametrize("widths", [(20,), (7, 5, 3)])
@pytest.mark.parametrize("batch_size", [None, 64])  # 150 = 64 + 64 + 22
def test_loss_and_gradients_are_plain_pytorchs(widths, noise, batch_size):
    """−ELBO is n/2σ² times PyTorch's mean squared error of the batch, and a constant; so is the gradient, without the constant."""
    data = {**load(), "widths": widths, "noise": noise}
    batched = {"batch_size": batch_size} if batch_size else {}
    at, after = initial(data, **batched), []
    rate, steps, layers = 1e-9, 3, len(widths) + 1
    fit = pyrovi.fit(
        model,
        guide,
        data,
        steps=steps,
        optimizer="sgd",
        lr=rate,
        dtype="float64",
        stop=None,
        callbacks=lambda step: after.append(step.parameters()),
        **batched,
    )
    x, y = tensors(data)
    n, times = len(y), len(y) / (2 * noise**2)
    rows = fit.problem.batches.epochs(torch.Generator().manual_seed(0), x.device) if batch_size else None
    for step in range(steps):
        keep = next(rows) if rows is not None else torch.arange(n)
        net = plain(at, layers)
        error = torch.nn.functional.mse_loss(net(x[keep]).squeeze(-1), y[keep])
        error.backward()
        constant = n / 2 * math.log(2 * math.pi * noise**2)
        assert -fit.elbo[0, step] == pytest.approx(times * error.item() + constant, rel=1e-6)
        for i in range(layers):
            for name, gradient in (("weight", net[2 * i].weight.grad.T), ("bias", net[2 * i].bias.grad)):
                ours = (at[f"net.{i}.{name}"] - after[step][f"net.{i}.{name}"]) / rate
                theirs = times * gradient
                assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))
        at = after[step]


def test_training_ends_where_plain_pytorch_ends():
    """The document's settings: 200 epochs of Adam at 0.01, from the same start."""
    data, ours = load(), {}
    net = plain(initial(data), 2)
    x, y = tensors(data)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * (net(x).squeeze(-1) - y).square().sum()).backward()
        optimizer.step()
    fit = pyrovi.recipe("neural_regression").fit(dtype="float64", callbacks=lambda step: ours.update(step.parameters()) and None)
    assert fit.elbo.shape == (1, 200)
    for i in range(2):
        assert torch.allclose(ours[f"net.{i}.weight"].T, net[2 * i].weight, atol=1e-6)
        assert torch.allclose(ours[f"net.{i}.bias"], net[2 * i].bias, atol=1e-6)


def test_a_fit_is_a_point_estimate_that_predicts_new_data():
    fit = pyrovi.recipe("neural_regression").fit()
    assert fit.point_estimate
    groups = _arviz.groups(fit.to_arviz(5))
    assert "posterior" not in groups
    assert "observed_data" in groups
    new = np.array([-20.0, 0.0, 60.0])
    line = neural_regression.mean(fit, new)
    error = fit.predictive(400, data={"x": new})["y"].numpy().mean(0) - line
    assert np.abs(error).max() < 4 / 400**0.5  # in Monte Carlo standard errors of 1/√400, seed 0
    assert line[2] > line[0] + 1  # the data rise from about −1 to 1
    assert np.isfinite(neural_regression.mean(fit, new[:1])).all()


def test_without_hidden_layers_it_is_least_squares():
    data = pyrovi.data.diabetes()
    fit = pyrovi.fit(
        model, guide, {"x": data.X, "y": data.y, "widths": ()}, steps=3_000, lr=0.05, schedule="cosine", dtype="float64", stop=None
    )
    ones = np.column_stack([data.X, np.ones(len(data.y))])
    expected = np.linalg.lstsq(ones, data.y, rcond=None)[0]
    fitted = np.append(fit.parameters["net.0.weight"].numpy(), fit.parameters["net.0.bias"].numpy())
    assert np.abs(ones @ (fitted - expected)).max() < 0.01


def test_the_document_is_what_is_loaded():
    data = neural_regression.load()
    assert data["x"].shape == data["y"].shape == (150,)
    assert abs(data["y"].mean()) < 1e-12
