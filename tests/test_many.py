"""Many fits as one program: each is the fit of its own seed or data, and one that fails does not harm the others."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyrovi

X = np.random.RandomState(0).normal(1.0, 1.0, 20)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYROVI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def model(x, prior_sd=1.0):
    z = pyro.sample("z", dist.Normal(0.0, prior_sd))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide():
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


def gamma_guide():
    a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(a, b))


def counts_model(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


SETTINGS = {"steps": 60, "lr": 0.05, "stop": None, "engine": "traced"}


def close(a, b, tolerance=1e-6):
    assert np.allclose(a.elbo, b.elbo, rtol=tolerance, atol=tolerance)
    assert a.unconstrained.keys() == b.unconstrained.keys()
    assert all(torch.allclose(v, b.unconstrained[k], rtol=tolerance, atol=tolerance) for k, v in a.unconstrained.items())


def restarted(*args, **settings):
    """Every restart's final parameters, as a callback can see them only of the best; so by fits of one seed more each time."""
    return pyrovi.fit(*args, **{**SETTINGS, **settings})


MORE = {
    "whole": {},
    "batches": {"batch_size": 8},
    "annealed": {"kl_annealing": 20, "particles": 3},
    "clipped": {"clip_norm": 0.5, "optimizer": "sgd", "schedule": "cosine"},
    "mean": {"steps": 600},
}


@pytest.mark.parametrize("name", MORE)
def test_every_restart_is_the_fit_of_its_own_seed(name):
    more = {"seed": 4, "dtype": "float64", **MORE[name]}
    together = pyrovi.fit(model, guide, {"x": X}, **{**SETTINGS, "restarts": 4, **more})
    alone = [pyrovi.fit(model, guide, {"x": X}, **{**SETTINGS, **more, "seed": 4 + r}) for r in range(4)]
    assert together.settings["engine"] == "traced"
    assert together.elbo.shape == (4, together.settings["steps"])
    for row, fit in zip(together.elbo, alone, strict=True):
        assert np.allclose(row, fit.elbo[0], rtol=1e-9)
    best = alone[together.settings["best_restart"]]
    assert torch.allclose(together.parameters["loc"], best.parameters["loc"], rtol=1e-9)
    assert together.settings["averaged_steps"] == best.settings["averaged_steps"]
    assert together.status is best.status
    assert together.settings["restart_status"] == [str(fit.status) for fit in alone]


def test_restarts_of_a_gamma_guide_differ_although_its_draws_are_torchs_own():
    fit = pyrovi.fit(counts_model, gamma_guide, {"y": np.arange(6)}, **{**SETTINGS, "restarts": 3})
    assert fit.settings["engine"] == "traced"
    assert len(set(fit.elbo[:, 0])) == 3
    assert np.isfinite(fit.elbo).all()


def test_the_best_restart_is_the_one_with_the_highest_late_elbo():
    fit = pyrovi.fit(model, "normal", {"x": X}, **{**SETTINGS, "restarts": 5, "steps": 400})
    late = fit.elbo[:, -100:].mean(1)
    assert fit.settings["best_restart"] == late.argmax()
    assert fit.settings["restart_elbo"] == pytest.approx(late.tolist())
    assert np.array_equal(fit.best_elbo, fit.elbo[late.argmax()])
    assert (
        f"The best of 5 restarts; over the last steps their ELBOs lie between {late.min():,.2f} and {late.max():,.2f}" in fit.advice
    )
    assert fit.seed == 0
    assert np.array_equal(fit.elbo, pyrovi.fit(model, "normal", {"x": X}, **{**SETTINGS, "restarts": 5, "steps": 400}).elbo)


def test_the_first_restart_of_a_named_guide_starts_where_a_single_fit_does():
    first = pyrovi.fit(model, "normal", {"x": X}, **{**SETTINGS, "steps": 1})
    assert abs(float(first.parameters["AutoNormal.locs.z"])) < 0.051  # at 0, a step ago
    single = pyrovi.fit(model, "normal", {"x": X}, **SETTINGS)
    several = pyrovi.fit(model, "normal", {"x": X}, **SETTINGS, restarts=3)
    assert np.allclose(single.elbo[0], several.elbo[0], rtol=1e-5)
    own = pyrovi.fit(model, "normal", {"x": X}, **{**SETTINGS, "engine": "pyro"}, restarts=2)
    assert np.allclose(own.elbo[0], pyrovi.fit(model, "normal", {"x": X}, **{**SETTINGS, "engine": "pyro"}).elbo[0])


def test_the_export_holds_every_restart():
    fit = pyrovi.fit(model, guide, {"x": X}, **SETTINGS, restarts=3)
    trace = fit.to_arviz(10)["optimization"]
    assert trace["elbo"].dims == ("restart", "step")
    assert np.array_equal(trace["elbo"].values, fit.elbo)
    assert np.allclose(trace["final_elbo"].values, fit.settings["restart_elbo"])
    assert trace["final_elbo"].dims == ("restart",)


def test_restarts_on_pyro_run_one_after_another_each_as_a_single_fit():
    settings = {**SETTINGS, "engine": "pyro", "batch_size": 8}
    together = pyrovi.fit(model, guide, {"x": X}, **settings, restarts=3, seed=4)
    for r in range(3):
        assert np.array_equal(together.elbo[r], pyrovi.fit(model, guide, {"x": X}, **settings, seed=4 + r).elbo[0])


def two_modes(y):
    """The sign of z - 1/2 is unknown but for 3 nats in favour of plus; named guides start at 0, and a fit stays on its side."""
    z = pyro.sample("z", dist.Normal(0.5, 3.0)) - 0.5
    pyro.factor("favour", 3.0 * torch.sigmoid(10 * z))
    pyro.sample("y", dist.Normal(z**2, 0.1), obs=y)


@pytest.mark.parametrize("engine", ["pyro", "traced"])
def test_restarts_find_the_mode_that_the_default_start_misses(engine):
    settings = {"steps": 200, "lr": 0.1, "stop": None, "engine": engine, "particles": 4}
    single = pyrovi.fit(two_modes, "normal", {"y": np.array(4.0)}, **settings, seed=1)
    assert float(single.parameters["AutoNormal.locs.z"]) == pytest.approx(-1.5, abs=0.1)
    several = pyrovi.fit(two_modes, "normal", {"y": np.array(4.0)}, **settings, restarts=4, seed=1)
    locs = several.settings["restart_elbo"]
    assert float(several.parameters["AutoNormal.locs.z"]) == pytest.approx(2.5, abs=0.1)
    assert max(locs) - min(locs) == pytest.approx(3.0, abs=0.5)  # both roots were found, and the better one kept


def fragile(x):
    """Its likelihood is NaN where z is past 1."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0 + 0.0 * (1.0 - z).sqrt()), obs=x)


def narrow():
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(-1.0)), 0.01))


@pytest.mark.parametrize("engine", ["pyro", "traced"])
def test_a_data_set_whose_loss_is_nan_diverges_and_leaves_the_others_alone(engine):
    over = {"x": np.stack([X - 2, X + 9, X - 1.5])}
    settings = {"steps": 300, "lr": 0.02, "stop": None, "engine": engine}
    fits = pyrovi.fit_many(fragile, narrow, over=over, **settings)
    assert fits.status[1] is pyrovi.Status.diverged
    assert fits.status[0] is not pyrovi.Status.diverged
    assert fits.status[2] is not pyrovi.Status.diverged
    done = len(fits[1].elbo[0])
    assert 0 < done < 299
    assert np.isfinite(fits.elbo[1, :done]).all()
    assert np.isnan(fits.elbo[1, done:]).all()
    assert fits[1].advice.startswith(f"At step {done + 1:,} ")
    assert np.isfinite(fits.elbo[[0, 2]]).all()
    assert torch.isfinite(fits.parameters["loc"]).all()
    for i in (0, 2):
        alone = pyrovi.fit(fragile, narrow, {"x": over["x"][i]}, seed=i, **settings)
        assert np.allclose(fits.elbo[i], alone.elbo[0], rtol=1e-5)


def test_a_fit_that_has_failed_once_stays_where_it_was():
    """With draws this wide a loss is NaN now and then, and would be finite again a step later."""

    def wide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(-1.0)), 0.8))

    settings = {"engine": "traced", "steps": 150, "lr": 0.02, "stop": None}
    fits = pyrovi.fit_many(fragile, wide, over={"x": np.stack([X - 2] * 6)}, **settings)
    assert sum(status is pyrovi.Status.diverged for status in fits.status) >= 1
    for i, fit in enumerate(fits):
        alone = pyrovi.fit(fragile, wide, {"x": X - 2}, seed=i, **settings)
        assert fit.status is alone.status
        close(fit, alone, 1e-5)


@pytest.mark.parametrize("stop", ["auto", None])
def test_restarts_go_on_without_the_one_that_diverged(stop):
    def wild():
        """Starts anywhere; past 1 there is no likelihood."""
        pyro.sample("z", dist.Normal(pyro.param("loc", lambda: -3 * torch.randn(())), 0.01))

    fit = pyrovi.fit(fragile, wild, {"x": X - 2}, engine="traced", steps=800, lr=0.02, stop=stop, restarts=8, seed=3)
    lost = [status == "diverged" for status in fit.settings["restart_status"]]
    assert 0 < sum(lost) < 8
    assert not lost[fit.settings["best_restart"]]
    assert fit.status is not pyrovi.Status.diverged
    assert f"{sum(lost)} diverged" in fit.advice
    assert np.isfinite(fit.best_elbo).all()


def test_all_restarts_lost_is_a_fit_that_diverged():
    def near():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.9)), 0.01))

    fit = pyrovi.fit(fragile, near, {"x": X + 9}, engine="traced", steps=300, lr=0.02, restarts=3)
    assert fit.status is pyrovi.Status.diverged
    assert fit.elbo.shape[0] == 3
    assert 0 < fit.elbo.shape[1] < 20
    assert "log_prob of 'x' was not finite" in fit.advice
    assert "3 diverged" in fit.advice
    assert 0.9 < float(fit.parameters["loc"]) < 1.1


def test_each_of_many_data_sets_has_the_fit_of_its_own():
    rows = np.random.RandomState(1).normal(size=(4, 12)) + np.arange(4.0)[:, None]
    for more in ({}, {"batch_size": 5}, {"kl_annealing": 10, "particles": 2, "clip_norm": 1.0}):
        fits = pyrovi.fit_many(model, guide, over={"x": rows}, seed=3, dtype="float64", **{**SETTINGS, **more})
        assert fits.settings["engine"] == "traced"
        assert (len(fits), fits.seeds, fits.elbo.shape) == (4, [3, 4, 5, 6], (4, 60))
        assert fits.parameters["loc"].shape == (4,)
        for i, fit in enumerate(fits):
            alone = pyrovi.fit(model, guide, {"x": rows[i]}, seed=3 + i, dtype="float64", **{**SETTINGS, **more})
            close(fit, alone, 1e-9)
            assert fit.status is alone.status
            assert fit.seed == 3 + i
            assert torch.equal(fits.parameters["loc"][i], fit.parameters["loc"])


def test_many_on_pyro_run_one_after_another_each_as_a_single_fit():
    rows = np.stack([X, X + 1])
    fits = pyrovi.fit_many(model, guide, over={"x": rows}, **{**SETTINGS, "engine": "pyro"})
    for i in range(2):
        alone = pyrovi.fit(model, guide, {"x": rows[i]}, seed=i, **{**SETTINGS, "engine": "pyro"})
        assert np.array_equal(fits[i].elbo, alone.elbo)


def test_hyperparameters_are_data_of_one_number_each():
    sds = np.array([0.1, 1.0, 10.0])
    fits = pyrovi.fit_many(model, guide, {"x": X}, over={"prior_sd": sds}, steps=1_500, lr=0.02, particles=4, stop=None)
    precision = len(X) + 1 / sds**2
    assert np.allclose(fits.parameters["loc"].numpy(), X.sum() / precision, atol=0.1 / precision**0.5)
    assert np.allclose(fits.parameters["scale"].numpy(), precision**-0.5, rtol=0.1)


def test_counts_stay_whole_numbers_and_each_fit_answers_for_its_own():
    """Gamma posteriors, exact: the mean is (2 + Σy) / (1 + n)."""
    counts = np.random.RandomState(2).poisson([[1.0], [4.0], [9.0]], size=(3, 30))
    fits = pyrovi.fit_many(counts_model, gamma_guide, over={"y": counts}, steps=4_000, lr=0.1, particles=4, stop=None)
    assert fits.settings["engine"] in ("traced", "compiled")
    for i, fit in enumerate(fits):
        shape = 2 + counts[i].sum()
        mean, sd = shape / 31, shape**0.5 / 31
        table = fit.summary(4_000)
        assert table.loc["rate", "mean"] == pytest.approx(mean, abs=0.25 * sd)
        assert table.loc["rate", "sd"] == pytest.approx(sd, rel=0.3)
        groups = fit.to_arviz(50)
        assert np.array_equal(groups["observed_data"]["y"].values, counts[i])
        assert groups["observed_data"]["y"].dtype.kind == "i"
        replicated = fit.predictive(2_000)["y"]
        assert replicated.mean().item() == pytest.approx(mean, abs=0.25 * sd + 4 * math.sqrt(mean / 60_000))
        assert fit.posterior(10)["rate"].shape == (10,)
        assert fit.estimate_elbo(500).value < 0
    assert len({tuple(fit.to_arviz(5)["observed_data"]["y"].values) for fit in fits}) == 3


def test_a_sequence_like_any_other():
    fits = pyrovi.fit_many(model, guide, over={"x": np.stack([X, X + 1, X + 2])}, **SETTINGS)
    assert [fit.seed for fit in fits] == [0, 1, 2]
    assert fits[-1].seed == 2
    assert [fit.seed for fit in fits[1:]] == [1, 2]
    assert "Fits(3: 3 " in repr(fits)
    with pytest.raises(IndexError):
        fits[3]
    assert fits[1].elbo.shape == (1, 60)
    assert fits[1].settings["steps"] == 60


def branching_on_data(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z + 10 if x.mean() > 0 else z, 1.0), obs=x)


def choosing_data(x):
    chosen = x[x > 0]
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(chosen)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=chosen)


@pytest.mark.parametrize("program", [branching_on_data, choosing_data], ids=lambda f: f.__name__)
def test_a_course_that_differs_between_data_sets_is_not_taken_from_the_first(program):
    rows = np.stack([X, X - 2])
    with pytest.warns(UserWarning, match="one fit's own data"):
        fits = pyrovi.fit_many(program, guide, over={"x": rows}, **{**SETTINGS, "steps": 8})
    assert fits.settings["engine"] == "pyro"
    for i in range(2):
        alone = pyrovi.fit(program, guide, {"x": rows[i]}, seed=i, **{**SETTINGS, "steps": 8, "engine": "pyro"})
        assert np.array_equal(fits[i].elbo, alone.elbo)


def test_what_cannot_be_run_for_many_runs_one_after_another_and_says_so(monkeypatch):
    from pyrovi import traced

    def refuse(*_):
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(traced, "rerecord", refuse)
    with pytest.warns(UserWarning, match="for 2 fits at once: no batching rule"):
        fit = pyrovi.fit(model, guide, {"x": X}, **{**SETTINGS, "steps": 5}, restarts=2)
    assert fit.settings["engine"] == "pyro"
    assert fit.elbo.shape == (2, 5)


def filled(x):
    """Values written into a tensor one by one."""
    with pyro.plate("k", 4):
        z = pyro.sample("z", dist.Normal(0.0, 0.3))
    level = torch.zeros(4)
    for i in range(4):
        level[i] = z[i].exp() * (0.5 * level[i - 1] + 0.1 if i else 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(level.sum(), 1.0), obs=x)


@pytest.mark.parametrize("q", ["normal", "low_rank", "multivariate_normal", "structured"])
def test_named_guides_and_in_place_writes_run_many_at_once(q):
    rows = np.stack([X, X + 1])
    fits = pyrovi.fit_many(filled, q, over={"x": rows}, **{**SETTINGS, "steps": 10})
    assert fits.settings["engine"] == "traced", fits.settings["engine_reason"]
    one = pyrovi.fit_many(filled, q, over={"x": rows[:1]}, **{**SETTINGS, "steps": 10})
    assert np.allclose(fits.elbo[0], one.elbo[0], rtol=1e-5)


MISTAKES = {
    "no over": (pyrovi.DataError, {"over": {}}, "over must map argument names to arrays"),
    "over is an array": (pyrovi.DataError, {"over": X}, "over must map argument names to arrays"),
    "lengths": (pyrovi.DataError, {"over": {"x": np.zeros((3, 4)), "prior_sd": np.ones(2)}}, "a first axis of one length"),
    "a number": (pyrovi.DataError, {"over": {"prior_sd": 1.0}, "data": {"x": X}}, "a first axis of one length"),
    "no rows": (pyrovi.DataError, {"over": {"x": np.zeros((0, 4))}}, "a first axis of one length"),
    "in both": (pyrovi.DataError, {"over": {"x": np.zeros((3, 4))}, "data": {"x": X}}, "both have 'x'"),
    "a setting": (pyrovi.SettingsError, {"over": {"x": np.zeros((3, 4))}, "step": 10}, "no setting 'step'.*steps"),
    "restarts": (pyrovi.SettingsError, {"over": {"x": np.zeros((3, 4))}, "restarts": 2}, "no setting 'restarts'"),
    "callbacks": (pyrovi.SettingsError, {"over": {"x": np.zeros((3, 4))}, "callbacks": print}, "no setting 'callbacks'"),
    "not finite": (pyrovi.DataError, {"over": {"x": np.full((3, 4), np.nan)}}, "'x' has 12 NaN values"),
    "unknown": (pyrovi.DataError, {"over": {"y": np.zeros((3, 4))}, "data": {"x": X}}, "'y'"),
    "words": (pyrovi.DataError, {"over": {"x": np.array([["a"], ["b"]])}}, "not numbers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_before_any_work(name):
    error, settings, text = MISTAKES[name]
    with pytest.raises(error, match=text):
        pyrovi.fit_many(model, guide, **settings)


@pytest.mark.parametrize("restarts", [0, -1, 1.5, True, "2"])
def test_a_number_of_restarts_is_a_whole_number(restarts):
    with pytest.raises(pyrovi.SettingsError, match="restarts must be a whole number"):
        pyrovi.fit(model, guide, {"x": X}, restarts=restarts)


def ranks(seed, replicates=200, draws=99):
    """The rank of the true mean among q's draws, for simulated data sets of 5, and the fits: the conjugate Normal's calibration."""
    rng = np.random.RandomState(seed)
    truth = rng.normal(size=replicates)
    rows = truth[:, None] + rng.normal(size=(replicates, 5))
    fits = pyrovi.fit_many(model, guide, over={"x": rows}, steps=1_500, lr=0.02, particles=4, stop=None, seed=seed)
    loc, scale = (fits.parameters[name].double().numpy()[:, None] for name in ("loc", "scale"))
    return (loc + scale * rng.normal(size=(replicates, draws)) < truth[:, None]).sum(1), fits, rows


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_ranks_of_the_truth_are_uniform(seed):
    """Chi-square over 10 bins; p > 0.001. q is also compared with each exact posterior, Normal(Σx / 6, 1/√6)."""
    from scipy import stats

    rank, fits, rows = ranks(seed)
    assert fits.settings["engine"] in ("traced", "compiled")
    counts = np.bincount(rank // 10, minlength=10)
    assert stats.chisquare(counts).pvalue > 0.001
    error = (fits.parameters["loc"].numpy() - rows.sum(1) / 6) * 6**0.5
    assert np.abs(error).max() < 0.25
    assert np.abs(error.mean()) < 0.02
    assert np.allclose(fits.parameters["scale"].numpy(), 6**-0.5, rtol=0.2)


@pytest.mark.slow
def test_compiled_many_are_recorded_many():
    rows = np.random.RandomState(1).normal(size=(4, 12)) + np.arange(4.0)[:, None]
    pairs = [pyrovi.fit_many(model, guide, over={"x": rows}, **{**SETTINGS, "engine": e}) for e in ("traced", "compiled")]
    assert [fits.settings["engine"] for fits in pairs] == ["traced", "compiled"]
    for a, b in zip(*pairs, strict=True):
        close(a, b, 1e-4)
    again = pyrovi.fit_many(model, guide, over={"x": rows}, **{**SETTINGS, "engine": "compiled"})
    assert np.array_equal(again.elbo, pairs[1].elbo)


@pytest.mark.slow
def test_compiled_restarts_are_recorded_restarts():
    pair = [pyrovi.fit(model, "normal", {"x": X}, restarts=3, **{**SETTINGS, "engine": e}) for e in ("traced", "compiled")]
    assert [fit.settings["engine"] for fit in pair] == ["traced", "compiled"]
    close(*pair, 1e-4)
    lost = [
        pyrovi.fit_many(fragile, narrow, over={"x": np.stack([X - 2, X + 9, X - 1.5])}, steps=300, lr=0.02, stop=None, engine=e)
        for e in ("traced", "compiled")
    ]
    assert lost[0].status == lost[1].status
    assert np.allclose(lost[0].elbo, lost[1].elbo, rtol=1e-4, equal_nan=True)


def test_a_restart_that_diverged_is_best_only_where_all_did():
    from pyrovi.fits import Fits
    from pyrovi.result import Status
    from pyrovi.svi import Outcome

    fit = pyrovi.fit(model, guide, {"x": X}, steps=5)

    def best(*statuses):
        heights = (-5.0, -1.0, -3.0)
        outcomes = [Outcome(np.full(200, h), Status(s), "", fit.unconstrained, 0) for h, s in zip(heights, statuses, strict=True)]
        fits = Fits(fit.problem, outcomes, settings=fit.settings, versions={}, seconds=0.0, seeds=[0, 1, 2], stacked={})
        return fits.best().settings["best_restart"]

    assert best("step_limit", "converged", "step_limit") == 1
    assert best("step_limit", "diverged", "step_limit") == 2
    assert best("diverged", "diverged", "diverged") == 1


def test_restarts_on_pyro_that_are_interrupted_do_not_go_on_with_the_next():
    fit = pyrovi.fit(model, guide, {"x": X}, steps=50, restarts=3, engine="pyro", callbacks=lambda step: step.number == 20)
    assert fit.status is pyrovi.Status.interrupted
    assert fit.elbo.shape == (1, 20)
