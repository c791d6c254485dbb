"""Optimisers and schedules by name, and the optimisers written as pure functions beside those they stand for."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovi
from pyrovi.errors import SettingsError
from pyrovi.optim import OPTIMIZERS, SCHEDULES, make_optimizer, rate_factor
from pyrovi.updates import FLAT, clip_by_norm, flat_optimizer

RATE = torch.tensor(0.01, dtype=torch.float64)
X = torch.tensor([0.5, 1.5, 2.0])
SIZES = [3, 1, 5]


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_optimizer_runs_with_every_schedule(optimizer, schedule):
    if optimizer == "rprop" and schedule != "constant":
        with pytest.raises(SettingsError, match="finds its own rates"):
            pyrovi.fit(model, "normal", {"x": X}, optimizer=optimizer, schedule=schedule, steps=3)
        return
    moved = {}
    pyrovi.fit(
        model,
        "normal",
        {"x": X},
        optimizer=optimizer,
        schedule=schedule,
        steps=6,
        stop=None,
        callbacks=lambda step: moved.update({step.number: step.parameters()}),
    )
    first, last = moved[1], moved[6]
    assert all(torch.isfinite(value).all() for value in last.values())
    assert any(not torch.equal(first[name], last[name]) for name in last)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_rate_of_a_step_is_lr_times_its_factor(schedule):
    """Plain gradient descent with a constant gradient moves by the rate."""
    steps, lr = 40, 0.1
    optim, _ = make_optimizer("sgd", lr, schedule, None, steps)
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    factor = rate_factor(schedule, steps)
    with pyro.get_param_store().scope():
        pyro.param("weight", weight)
        for step in range(steps):
            before = weight.item()
            weight.grad = torch.tensor(-1.0, dtype=torch.float64)
            optim([weight])
            if hasattr(optim, "step"):
                optim.step()
            assert weight.item() - before == pytest.approx(lr * factor(step), abs=1e-12)


def test_warm_up_rises_over_a_tenth_then_falls_to_nothing():
    factor = rate_factor("warmup_cosine", 1_000)
    rates = [factor(step) for step in range(1_001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == pytest.approx(1.0)
    assert max(rates) == rates[100]
    assert rates[1_000] == pytest.approx(0.0, abs=1e-12)
    assert all(a < b for a, b in zip(rates[:100], rates[1:101], strict=True))
    assert all(a > b for a, b in zip(rates[100:1_000], rates[101:], strict=True))


def test_two_schedules_at_once_are_refused():
    with pytest.raises(SettingsError, match="lrd"):
        make_optimizer(functools.partial(ClippedAdam, lrd=0.99), 0.01, "cosine", None, 10)
    make_optimizer(functools.partial(ClippedAdam, lrd=0.99), 0.01, None, None, 10)


CASES = {
    **{name: (name, OPTIMIZERS[name]) for name in FLAT},
    "adam with options": (functools.partial(torch.optim.Adam, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),) * 2,
    "adamw with options": (functools.partial(torch.optim.AdamW, weight_decay=0.3),) * 2,
    "sgd with momentum": (functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),) * 2,
    "nesterov": (functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),) * 2,
    "clipped_adam with options": (functools.partial(ClippedAdam, clip_norm=0.5, lrd=0.99, weight_decay=0.1),) * 2,
    "adagrad with options": (functools.partial(torch.optim.Adagrad, lr_decay=0.1),) * 2,
    "rmsprop with options": (functools.partial(torch.optim.RMSprop, alpha=0.9),) * 2,
    "nadam with options": (functools.partial(torch.optim.NAdam, momentum_decay=0.1),) * 2,
}


def quadratic(seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(sum(SIZES), sum(SIZES), generator=generator, dtype=torch.float64)
    return root @ root.T, torch.randn(3, sum(SIZES), generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def in_double():
    """NAdam keeps a product in torch's default dtype, which a fit sets to its own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def by_torch(build, start, hessian, steps, lr, clip_norm):
    """`steps` steps of torch.optim from each start, each parameter with an optimiser of its own, as Pyro has it."""
    out = []
    for vector in start:
        leaves = [torch.nn.Parameter(part.clone()) for part in vector.split(SIZES)]
        optimizers = [build([leaf], lr=lr) for leaf in leaves]
        for _ in range(steps):
            gradient = hessian @ torch.cat([leaf.detach() for leaf in leaves])
            for leaf, part, optimizer in zip(leaves, gradient.split(SIZES), optimizers, strict=True):
                leaf.grad = part.clone()
                if clip_norm:
                    torch.nn.utils.clip_grad_norm_(leaf, clip_norm)
                optimizer.step()
        out.append(torch.cat([leaf.detach() for leaf in leaves]))
    return torch.stack(out)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_flat_updates_are_torchs(case, clip_norm):
    """Fifty steps of three replicates at once, in float64: to rounding."""
    named, build = CASES[case]
    flat = flat_optimizer(named)
    hessian, start = quadratic(seed=7)
    params, state, lr = start, flat.init(start), torch.tensor(0.02, dtype=torch.float64)
    for t in range(1, 51):
        gradient = params @ hessian
        if clip_norm:
            gradient = clip_by_norm(gradient, SIZES, clip_norm)
        params, state = flat.update(params, gradient, state, torch.tensor(t), lr)
    assert all(s.shape == params.shape for s in state)
    expected = by_torch(build, start, hessian, 50, 0.02, clip_norm)
    assert (params - start).abs().max() > 0.01
    torch.testing.assert_close(params, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FLAT))
def test_flat_updates_hold_two_hundred_steps_and_float32(name):
    hessian, start = quadratic(seed=8)
    expected = by_torch(OPTIMIZERS[name], start, hessian, 200, 0.01, None)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        params = start.to(dtype)
        state = FLAT[name].init(params)
        for t in range(1, 201):
            params, state = FLAT[name].update(params, params @ hessian.to(dtype), state, torch.tensor(t), RATE)
            assert params.dtype == dtype
        torch.testing.assert_close(params.double(), expected, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("name", sorted(FLAT))
def test_flat_updates_take_a_rate_a_replicate_and_can_be_recorded(name):
    hessian, start = quadratic(seed=9)
    rates = torch.tensor([[0.01], [0.02], [0.05]], dtype=torch.float64)
    update, state = FLAT[name].update, FLAT[name].init(start)
    recorded = make_fx(update)(start, start @ hessian, state, torch.tensor(1), rates)
    params = start
    for t in range(1, 21):
        params, state = recorded(params, params @ hessian, state, torch.tensor(t), rates)
    for i, rate in enumerate(rates[:, 0].tolist()):
        expected = by_torch(OPTIMIZERS[name], start[i : i + 1], hessian, 20, rate, None)[0]
        torch.testing.assert_close(params[i], expected, rtol=1e-9, atol=1e-11)


def test_optimizers_without_a_flat_form_are_known():
    assert flat_optimizer("dct_adam") is None
    assert flat_optimizer(functools.partial(torch.optim.Adam, amsgrad=True)) is None
    assert flat_optimizer(torch.optim.Adam([torch.zeros(1)])) is None
    assert flat_optimizer(functools.partial(torch.optim.Adam, lr=0.3)) is not None
    assert math.isfinite(rate_factor(None, 10)(3))
