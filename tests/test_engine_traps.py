"""Programs that a careless recorder would get wrong without a word."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi

Y = np.random.default_rng(0).normal(3.0, 1.0, 20).astype(np.float32)


def guide(**_):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("w", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)))


def score(w, y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def loc(model, engine, data=None, **settings):
    settings = {"steps": 400, "lr": 0.1, "stop": None, "particles": 1, **settings}
    fit = pyrovi.fit(model, guide, {"y": Y} if data is None else data, engine=engine, **settings)
    return fit.parameters["loc"].item(), fit.settings["engine"]


def of_rows_by_tolist(y):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 20, subsample_size=10) as rows:
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.stack([y[j] for j in rows.tolist()]))


def of_rows_by_numpy(y):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    score(w, torch.as_tensor(np.log1p(np.abs(y.numpy()))))


def writes_rows_of_a_base(y):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    x = torch.zeros(2, 20)
    for row, value in zip(x, (1.0, 2.0), strict=True):
        row.fill_(value)
    score(w + x.sum(0) - 3.0, y)


def writes_parts_of_a_base(y):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    x = torch.zeros(20)
    first, second = x.split(10)
    first.add_(2.0)
    second.copy_(torch.full((10,), 2.0))
    score(w + x - 2.0, y)


def writes_a_copy_of_the_data(y):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    moved = y * 1.0
    moved += -100.0
    pyro.factor("harmless", 0.0 * moved.sum())
    score(w, y)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (of_rows_by_tolist, {}),
        (of_rows_by_numpy, {"batch_size": 10}),
        (writes_rows_of_a_base, {}),
        (writes_parts_of_a_base, {}),
        (writes_a_copy_of_the_data, {}),
    ],
)
def test_every_engine_finds_what_pyro_finds(model, settings):
    """Within 0.4, some three sds of the last iterate; each of these models was off by more than 0.5 once."""
    wanted, _ = loc(model, "pyro", **settings)
    found, _ = loc(model, "auto", **settings)
    assert abs(found - wanted) < 0.4


def test_a_model_that_draws_from_python_now_and_then_runs_on_pyro():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        score(w, y - 100 if random.random() < 0.0 else y)

    assert loc(model, "auto")[1] == "pyro"


def test_values_taken_out_of_torch_name_the_reason():
    with pytest.warns(UserWarning, match="out of torch"):
        fit = pyrovi.fit(of_rows_by_numpy, guide, {"y": Y}, batch_size=10, steps=5, engine="traced")
    assert fit.settings["engine"] == "pyro"


def test_a_constant_that_a_model_copies_and_writes_into_is_the_users_own_afterwards():
    constant = torch.full((20,), 3.0)

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        double = constant * 1
        double.mul_(2)
        score(w + double - 6, y)

    wanted, found = (loc(model, engine)[0] for engine in ("pyro", "auto"))
    assert abs(found - wanted) < 0.4
    assert torch.equal(constant, torch.full((20,), 3.0))


def test_a_callback_keeps_auto_on_pyro_for_it_may_change_the_model():
    weight = torch.tensor(0.0)

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        with pyro.poutine.scale(scale=weight + 1e-6):
            score(w, y)

    found, engine = loc(model, "auto", callbacks=lambda step: weight.fill_(1.0) and None)
    assert engine == "pyro"
    assert abs(found - Y.mean()) < 0.5


def test_parameters_that_the_loss_does_not_depend_on_stay_where_they_start():
    def model(y):
        pyro.param("idle", torch.tensor(5.0))
        score(pyro.sample("w", dist.Normal(0.0, 10.0)), y)

    fit = pyrovi.fit(model, guide, {"y": Y}, engine="traced", steps=50, stop=None, optimizer="adamw")
    assert fit.settings["engine"] == "traced"
    assert fit.parameters["idle"] == 5.0


@pytest.mark.parametrize("engine", ["pyro", "traced"])
def test_a_parameter_of_the_last_batch_alone_is_fitted_and_kept(engine):
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 0.1))
        name = "few" if len(y) < 8 else "many"
        score(w + pyro.param(name, torch.tensor(0.0)), y)

    fit = pyrovi.fit(model, guide, {"y": Y}, batch_size=8, engine=engine, steps=600, lr=0.05, stop=None)
    assert fit.settings["engine"] == engine
    assert set(fit.parameters) == {"few", "loc", "many", "scale"}
    assert all(abs(fit.parameters[name] + fit.parameters["loc"] - Y.mean()) < 0.6 for name in ("few", "many"))


def test_one_compiled_step_does_not_serve_another_model_of_the_same_shapes():
    """The two differ in which argument belongs to the fit: on disk and in memory they must have two names."""

    def make(swap):
        def model(x, h):
            a, b = (h * 1.5, x * 1.5) if swap else (x * 1.5, h * 1.5)
            z = pyro.sample("w", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
            pyro.factor("f", -0.5 * ((z - a) ** 2).sum() - 1.5 * ((z - b) ** 2).sum())

        return model

    def normal(x, h):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(3)), 0.1).to_event(1))

    shared, own = {"x": torch.tensor([0.0, 10.0, 20.0])}, {"h": torch.tensor([0.0, 100.0, 1000.0])}
    options = {"steps": 60, "lr": 5.0, "stop": None}
    results = {
        (engine, swap): pyrovi.fit_many(make(swap), normal, shared, over=own, engine=engine, **options).parameters["loc"]
        for swap in (False, True)
        for engine in ("traced", "compiled")
    }
    for swap in (False, True):
        assert torch.allclose(results["traced", swap], results["compiled", swap], rtol=1e-3, atol=1e-2)


def test_outcomes_of_every_data_set_are_checked():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=w), obs=y)

    with pytest.raises(pyrovi.DataError, match="data set 1 of 'y'"):
        pyrovi.fit_many(model, guide, over={"y": [[0.0, 1.0], [0.0, 7.0]]}, steps=5)
    with pytest.raises(pyrovi.SettingsError, match="seed"):
        pyrovi.fit_many(model, guide, over={"y": [[0.0, 1.0], [0.0, 1.0]]}, steps=5, seed=2**32 - 1)
    assert len(pyrovi.fit_many(model, guide, over={"y": ((0.0, 1.0), (1.0, 1.0))}, steps=5)) == 2
