"""`pyrovi.fit`: it is `svi.step`, it is reproducible, it leaves nothing behind, and it ends as its status says."""

import functools
import os
import random
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch.distributions import constraints

import pyrovi
from pyrovi.guides import gamma_poisson as gamma_guide
from pyrovi.guides import linear_regression as regression_guide
from pyrovi.guides import normal_mean as normal_guide
from pyrovi.models import gamma_poisson, linear_regression, normal_mean

X = np.random.RandomState(0).normal(1.0, 1.0, 30)


def mean_model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def mean_guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale))


def fit(model=mean_model, guide=mean_guide, data=None, **settings):
    settings = {"steps": 50, "lr": 0.05, "stop": None, **settings}
    return pyrovi.fit(model, guide, {"x": X} if data is None else data, **settings)


def bare_loop(model, guide, data, steps, lr, particles=1, nesting=1):
    pyro.set_rng_seed(0)
    svi = SVI(
        model,
        guide,
        pyro.optim.Adam({"lr": lr}),
        Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=nesting),
    )
    elbo = [-svi.step(**data) for _ in range(steps)]
    values = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    pyro.clear_param_store()
    return elbo, values


@pytest.mark.parametrize("particles", [1, 7])
def test_the_fit_is_the_svi_step_loop_bit_for_bit(particles):
    ours = fit(particles=particles, engine="pyro")
    elbo, values = bare_loop(mean_model, mean_guide, {"x": torch.tensor(X, dtype=torch.float32)}, 50, 0.05, particles)
    assert ours.elbo[0].tolist() == elbo
    assert {k: v.item() for k, v in ours.parameters.items()} == {k: v.item() for k, v in values.items()}


def test_the_fit_is_the_svi_step_loop_on_the_document_model():
    data = gamma_poisson.load(m=5)
    tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in data.items()}
    ours = fit(gamma_poisson.model, gamma_guide.guide, data, particles=4, steps=30, engine="pyro")
    elbo, _ = bare_loop(gamma_poisson.model, lambda x, prior_image: gamma_guide.guide(prior_image), tensors, 30, 0.05, 4, nesting=2)
    assert ours.elbo[0].tolist() == elbo


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "low_rank", "structured", "delta", "laplace"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(guide):
    first, again, other = (fit(guide=guide, seed=seed, dtype="float64") for seed in (3, 3, 4))
    assert np.array_equal(first.elbo, again.elbo)
    assert all(torch.equal(first.unconstrained[k], again.unconstrained[k]) for k in first.unconstrained)
    assert torch.equal(first.posterior(20)["w"], again.posterior(20)["w"])
    if guide not in ("delta", "laplace"):
        assert not np.array_equal(first.elbo, other.elbo)


def test_a_new_process_gives_the_same_bits():
    program = (
        "import pyrovi, torch; torch.set_num_threads(1); f = pyrovi.recipe('gamma_poisson').fit(steps=20, particles=3, seed=5);"
        "print(f.elbo.tobytes().hex()[-64:], f.posterior(5)['theta'].numpy().tobytes().hex()[-64:])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    here = pyrovi.recipe("gamma_poisson").fit(steps=20, particles=3, seed=5)
    expected = f"{here.elbo.tobytes().hex()[-64:]} {here.posterior(5)['theta'].numpy().tobytes().hex()[-64:]}"
    assert there.stdout.strip() == expected


def test_nothing_is_left_behind():
    pyro.param("mine", torch.tensor(2.0))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    pyro.settings.set(module_local_params=True)
    try:
        result = fit(dtype="float64")
        result.to_arviz(10)
        assert pyro.settings.get("module_local_params")
    finally:
        pyro.settings.set(module_local_params=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert list(pyro.get_param_store()) == ["mine"]
    assert torch.get_default_dtype() == torch.float32
    assert pyro.distributions.is_validation_enabled()
    pyro.clear_param_store()


def test_a_failed_fit_leaves_nothing_behind_either():
    state = torch.get_rng_state()
    with pytest.raises(pyrovi.GuideError):
        fit(guide=lambda x: pyro.param("loc", torch.tensor(0.0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[-2]):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


class ModuleGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(1, 1))
        self.scale = PyroParam(torch.ones(1, 1), constraint=constraints.positive)

    def forward(self, x, y=None):
        pyro.sample("linear.weight", dist.Normal(self.loc, self.scale).to_event(2))


def test_modules_are_fitted_as_private_copies():
    model, guide = Regression(), ModuleGuide()
    data = {"x": X[:, None], "y": 2 * X + 1}
    bias = model.linear.bias.detach().clone()
    first = pyrovi.fit(model, guide, data, steps=600, lr=0.05, stop=None)
    again = pyrovi.fit(model, guide, data, steps=600, lr=0.05, stop=None)
    assert first.parameters["loc"].item() == pytest.approx(2.0, abs=0.2)
    assert first.parameters["linear.bias"].item() == pytest.approx(1.0, abs=0.2)
    assert torch.equal(model.linear.bias, bias)
    assert guide.loc.item() == 0.0
    assert np.array_equal(first.elbo, again.elbo)
    assert first.predictive(5, data={"x": np.zeros((3, 1))})["y"].shape == (5, 3)


def test_a_network_inside_a_closure_is_lent_and_given_back():
    net = torch.nn.Linear(1, 1)

    def model(x, y):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1), 1.0), obs=y)

    weight = net.weight.detach().clone()
    data = {"x": X[:, None], "y": 2 * X}
    first = pyrovi.fit(model, lambda x, y: None, data, steps=400, lr=0.05, stop=None)
    again = pyrovi.fit(model, lambda x, y: None, data, steps=400, lr=0.05, stop=None)
    assert torch.equal(net.weight, weight)
    assert net.weight.grad is None
    assert np.array_equal(first.elbo, again.elbo)
    fitted = first.parameters["net$$$weight"]
    assert fitted.item() == pytest.approx(2.0, abs=0.2)
    prediction = first.predictive(400, data={"x": np.ones((1, 1))})["y"].mean().item()
    assert prediction == pytest.approx((fitted + first.parameters["net$$$bias"]).item(), abs=5 / 400**0.5)


def test_an_autoguide_instance_can_be_fitted_to_data_of_two_sizes():
    guide = AutoNormal(mean_model)
    for n in (30, 10):
        assert fit(guide=guide, data={"x": X[:n]}).status
    assert guide.prototype_trace is None
    assert guide.model is not None


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("clipped_adam", {}),
        ("sgd", {"lr": 1e-3}),
        (torch.optim.RMSprop, {}),
        (functools.partial(torch.optim.Adam, betas=(0.9, 0.99)), {"clip_norm": 10.0}),
        ("adam", {"schedule": "cosine"}),
        ("adam", {"schedule": "exponential", "clip_norm": 5.0}),
        ("adam", {"schedule": lambda step: 1 / (1 + step / 100)}),
        (pyro.optim.Adam({"lr": 0.05}), {"lr": None}),
    ],
    ids=lambda v: str(v)[:30],
)
def test_every_way_to_name_an_optimizer_raises_the_elbo(optimizer, options):
    result = fit(optimizer=optimizer, **{"steps": 300, "particles": 4, **options})
    assert result.elbo[0, -50:].mean() > result.elbo[0, :5].mean() + 3


def test_a_schedule_lowers_the_rate_to_nothing():
    sizes = []
    last = [None]

    def watch(step):
        now = step.parameters()["loc"].item()
        if last[0] is not None:
            sizes.append(abs(now - last[0]))
        last[0] = now

    fit(schedule="cosine", steps=400, callbacks=watch)
    assert max(sizes[-10:]) < 0.02 * max(sizes[:50])


def test_stop_auto_ends_early_and_says_converged():
    result = pyrovi.fit(mean_model, mean_guide, {"x": X}, particles=64, lr=0.05, steps=20_000)
    assert result.status is pyrovi.Status.converged
    assert result.elbo.shape[1] < 20_000
    assert "stopped rising" in result.advice


def test_a_fit_that_is_still_rising_is_not_called_converged():
    """Far start, small rate: the ELBO rises all the way, whatever the seed."""
    for seed in range(5):
        result = fit(data={"x": X + 50}, steps=1_000, lr=0.001, particles=8, stop="auto", seed=seed)
        assert result.status is pyrovi.Status.step_limit
        assert "still rising" in result.advice
        assert result.settings["averaged_steps"] == 0


def test_a_fit_that_wanders_about_the_optimum_reports_the_mean_of_its_iterates():
    """One draw a step at a high rate, ten seeds: the last iterates are off by over 0.4 sd (rms), the means by under 0.1."""
    exact = normal_mean.exact(X).marginals["w"]
    means, lasts = [], []
    for seed in range(10):
        result = fit(
            lr=0.2,
            steps=2_000,
            seed=seed,
            callbacks=lambda step: lasts.append(step.parameters()["loc"].item()) if step.number == 2_000 else None,
        )
        assert result.settings["averaged_steps"] == 1_000
        means.append(result.parameters["loc"].item())
    mean_error, last_error = ((np.array(v) - exact.mean()) / exact.std() for v in (means, lasts))
    assert np.sqrt((mean_error**2).mean()) < 0.1
    assert np.sqrt((last_error**2).mean()) > 0.4


def test_the_mean_of_the_iterates_yields_to_a_clearly_better_last_one_or_where_it_cannot_be_scored():
    from pyrovi.svi import _prefers_mean

    noise, nowhere = np.random.default_rng(0).normal(size=20), np.full(20, -np.inf)
    assert _prefers_mean(noise, noise)
    assert _prefers_mean(noise - 3, noise)
    assert not _prefers_mean(noise + 3, noise)
    assert not _prefers_mean(noise, nowhere)
    assert _prefers_mean(nowhere, noise)
    assert not _prefers_mean(nowhere, nowhere)


@pytest.mark.parametrize("which", ["pyro", "traced"])
def test_a_mean_of_iterates_where_the_model_cannot_be_run_does_not_cost_the_fit(monkeypatch, which):
    """Cholesky fails at the mean alone, as it may between two modes: the last iterate is reported."""
    from pyrovi.plain import Plain
    from pyrovi.traced import Traced

    far = [{"loc": torch.tensor(1e6), "scale": torch.tensor(0.0)}]
    for kind in (Plain, Traced):
        monkeypatch.setattr(kind, "means", lambda self: far)

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        root = torch.linalg.cholesky((1e3 - w) * torch.eye(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + 0 * root[0, 0], 1.0), obs=x)

    result = fit(model, steps=250, engine=which)
    assert result.settings["engine"] == which
    assert result.settings["averaged_steps"] == 0
    assert abs(result.parameters["loc"].item()) < 10


def test_a_nan_on_the_way_gives_the_last_finite_fit_and_names_the_site():
    def model(x):
        s = pyro.sample("s", dist.Normal(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    def guide(x):
        pyro.sample("s", dist.Delta(pyro.param("s_loc", torch.tensor(1.0))))

    result = pyrovi.fit(model, guide, {"x": 1e-3 * X}, lr=0.1, steps=200)
    assert result.status is pyrovi.Status.diverged
    assert "'x'" in result.advice
    assert torch.isfinite(result.parameters["s_loc"])
    assert np.isfinite(result.elbo).all()
    assert 0 < result.elbo.shape[1] < 200


def test_ctrl_c_returns_the_fit_so_far():
    def interrupt(step):
        if step.number == 20:
            raise KeyboardInterrupt

    result = fit(callbacks=interrupt)
    assert result.status is pyrovi.Status.interrupted
    assert result.elbo.shape == (1, 20)
    assert result.posterior(3)["w"].shape == (3,)


def test_a_callback_sees_every_step_and_can_end_the_fit():
    seen = []
    result = fit(callbacks=[lambda step: seen.append((step.number, step.elbo)), lambda step: step.number == 7])
    assert [n for n, _ in seen] == list(range(1, 8))
    assert [e for _, e in seen] == result.elbo[0].tolist()
    assert result.status is pyrovi.Status.interrupted


def test_an_error_inside_the_loop_says_at_which_step():
    calls = []

    def model(x):
        calls.append(0)
        if len(calls) > 30:
            raise ZeroDivisionError("mine")
        mean_model(x)

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        fit(model)
    assert "of pyrovi.fit" in caught.value.__notes__[0]


def test_particles_are_vectorised_where_the_model_allows_and_looped_where_not():
    def unvectorisable(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        assert w.shape == (2,)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w[0] + w[1], 1.0), obs=x)

    assert fit(particles=5).settings["vectorized"]
    looped = fit(unvectorisable, "normal", particles=5)
    assert not looped.settings["vectorized"]
    assert looped.posterior(4)["w"].shape == (4, 2)


def test_a_model_that_mixes_its_particles_up_is_not_vectorised():
    """`w.mean()` runs on any shape, and silently averages over particles."""

    def mixing(x):
        with pyro.plate("pair", 2):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.mean(), 1.0), obs=x)

    assert not fit(mixing, "normal", particles=5).settings["vectorized"]


def test_one_large_site_does_not_hide_that_another_mixes_its_particles_up():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(torch.zeros(50_000), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w, 1.0).expand([len(x)]).to_event(1), obs=x)

    result = fit(model, "normal", {"x": [0.5, 1.0]}, steps=2)
    assert not result.settings["vectorized"]
    assert result.posterior(3)["w"].shape == (3,)


def test_a_guide_or_a_deterministic_site_that_mixes_its_particles_up_is_not_vectorised():
    def model(x):
        with pyro.plate("three", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b + 0 * a[..., :1], 1.0), obs=x)

    def mixing(x):
        l = pyro.param("l", torch.tensor(0.0))  # noqa: E741
        with pyro.plate("three", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(l + a.mean(), 0.1))

    looped = fit(model, mixing, particles=2, steps=2, lr=1e-9)
    assert not looped.settings["vectorized"]
    assert looped.posterior(2_000)["b"].std().item() == pytest.approx((1 / 3 + 0.01) ** 0.5, rel=0.1)

    def summarising(x):
        with pyro.plate("three", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.deterministic("mean", a.mean())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    result = fit(summarising, "normal", steps=2)
    draws = result.posterior(50)
    assert torch.allclose(draws["mean"], draws["a"].mean(1))


def test_what_the_caller_does_to_the_data_later_does_not_change_the_fit():
    x = X.astype(np.float32)
    result = fit(data={"x": x})
    before = result.draws(5).log_p
    x *= 3
    assert torch.equal(result.draws(5).log_p, before)


def test_the_same_array_under_two_names_can_be_saved(tmp_path):
    def model(x, y):
        mean_model(x)

    tensor = torch.tensor(X, dtype=torch.float32)
    fit(model, "normal", {"x": tensor, "y": tensor}, folder=tmp_path / "run")
    assert (tmp_path / "run" / "fit.json").exists()


def test_a_laplace_fit_without_curvature_keeps_its_mode():
    def flat(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).mask(False))
        mean_model(x + 0 * a)

    result = fit(flat, "laplace", steps=20)
    assert result.advice.startswith("the Laplace approximation does not exist")
    assert result.point_estimate
    assert result.posterior(2)["w"].shape == (2,)


def test_a_reparametrised_site_is_a_computed_one():
    from pyro.infer.reparam import LocScaleReparam

    def centred(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model = pyro.poutine.reparam(centred, config={"z": LocScaleReparam(centered=0.0)})
    result = fit(model, "normal", steps=5)
    assert set(result.problem.structure.observed) == {"x"}
    drawn = result.posterior(4)
    assert drawn["z"].shape == (4, 30)
    assert torch.allclose(drawn["z"], drawn["mu"][:, None] + drawn["z_decentered"], atol=1e-5)
    assert result.predictive(4)["x"].shape == (4, 30)


def test_a_fit_inside_a_handler_or_in_inference_mode_is_the_same_fit():
    expected = fit().elbo
    with torch.inference_mode():
        assert np.array_equal(fit().elbo, expected)
    with pyro.poutine.trace() as outer:
        assert np.array_equal(fit().elbo, expected)
    assert not outer.trace.nodes


def test_numpy_integers_are_whole_numbers():
    result = fit(steps=np.int64(5), particles=np.int32(2), seed=np.int64(3), batch_size=np.int64(7))
    assert result.elbo.shape == (1, 5)
    assert result.posterior(np.int64(2))["w"].shape == (2,)


def test_a_model_and_guide_without_parameters_is_only_evaluated():
    result = fit(mean_model, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), steps=5)
    assert result.elbo.shape == (1, 5)
    assert result.parameters == {}


def test_float64_is_float64_throughout():
    result = fit(dtype=torch.float64, guide="normal")
    assert {v.dtype for v in result.unconstrained.values()} == {torch.float64}
    assert result.posterior(2)["w"].dtype == torch.float64


def test_numpy_pandas_xarray_lists_and_tensors_are_the_same_data():
    import pandas as pd
    import xarray as xr

    kinds = [X, list(X), pd.Series(X), xr.DataArray(X), torch.tensor(X), X[::-1][::-1]]
    elbos = {fit(data={"x": x}).elbo.tobytes() for x in kinds}
    assert len(elbos) == 1


def test_laplace_gives_the_exact_posterior_of_a_gaussian_model():
    result = fit(guide="laplace", steps=2_000, lr=0.05, dtype="float64")
    exact = normal_mean.exact(X).marginals["w"]
    w = result.posterior(40_000)["w"]
    assert w.mean().item() == pytest.approx(exact.mean(), abs=0.01 + 4 * exact.std() / 200)
    assert w.std().item() == pytest.approx(exact.std(), rel=4 / (2 * 40_000) ** 0.5)


def test_batches_reach_the_exact_posterior():
    """Averaged over the last half, seed 0; the tolerance is that of the issue, 0.05 sd and 5%."""
    data = normal_mean.load()
    result = pyrovi.fit(normal_mean.model, normal_guide.guide, data, batch_size=30, epochs=1_500, lr=0.02, particles=4, stop=None)
    table = pyrovi.compare(result, normal_mean.exact(**data), draws=100_000)
    assert abs(table.loc["w", "error"]) < 0.05
    assert abs(table.loc["w", "sd_ratio"] - 1) < 0.05
    assert result.elbo.shape[1] == 1_500 * 4


def test_every_datum_is_met_once_a_pass_in_an_order_that_the_seed_shuffles():
    def passes(seed):
        seen, steps = [], []

        def model(x):
            seen.append(x.tolist())
            mean_model(x)

        fit(model, data={"x": X[:7]}, batch_size=3, epochs=4, steps=None, seed=seed, callbacks=lambda step: steps.append(seen[-1]))
        assert [len(batch) for batch in steps] == [3, 3, 1] * 4
        return [sum(steps[i : i + 3], []) for i in range(0, 12, 3)]

    everything = sorted(np.float32(X[:7]).tolist())
    first = passes(0)
    assert all(sorted(one_pass) == everything for one_pass in first)
    assert len({tuple(one_pass) for one_pass in first}) == 4
    assert passes(0) == first
    assert passes(1) != first


def test_delta_is_a_point_estimate():
    result = fit(guide=AutoDelta, steps=1_000)
    assert result.problem.point_estimate
    assert list(result.summary(50).columns) == ["point estimate"]


def test_every_guide_named_runs_on_the_conjugate_recipes():
    """Every recipe with few latents and a closed form; the others have tests of their own."""
    for name in ("normal_mean", "gamma_poisson", "linear_regression"):
        for guide in ("normal", "multivariate_normal", "low_rank", "structured", "mixture", "flow", "delta", "laplace", None):
            steps = 600 if guide == "laplace" else 5  # Laplace needs the mode
            result = pyrovi.recipe(name).fit(guide=guide, steps=steps, particles=2, lr=0.05)
            assert np.isfinite(result.elbo).all()
            assert set(result.posterior(2)) == set(result.problem.structure.latent)


def test_unknown_noise_runs_with_handwritten_and_automatic_guides():
    data = {**linear_regression.load(), "noise": None}
    for guide in (regression_guide.guide, "multivariate_normal"):
        result = pyrovi.fit(linear_regression.model, guide, data, steps=5, particles=3)
        assert set(result.posterior(2)) == {"variance", "beta"}
        assert result.settings["vectorized"]


def test_the_progress_bar_is_silent_without_a_terminal_and_speaks_when_asked(capsys):
    fit()
    assert capsys.readouterr().err == ""
    fit(progress=True)
    assert "ELBO" in capsys.readouterr().err


def test_a_guide_with_a_helper_of_its_own_is_vectorised():
    def guide(x):
        helper = pyro.sample("helper", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), infer={"is_auxiliary": True})
        pyro.sample("w", dist.Delta(0.5 * helper))

    assert fit(guide=guide, particles=4).settings["vectorized"]
