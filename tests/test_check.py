"""Levels of trust: never `trust` of a q known to be bad, always of one that is the exact posterior; and what the numbers claim."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from typer.testing import CliRunner

import pyrovi
from pyrovi import Estimate, Evidence, Level, Verdict, _arviz
from pyrovi.agreement import against_exact, against_weighted
from pyrovi.cli import app
from pyrovi.importance import weigh
from pyrovi.verdict import judge

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import levels  # noqa: E402

sys.path.remove(str(BENCHMARKS))

SCHOOLS = {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18]}


def level(name, seed):
    return levels.check(levels.CASES[name], seed)


# Levels by case


@pytest.mark.parametrize("name", [name for name, case in levels.BAD.items() if not case.slow])
def test_a_q_known_to_be_bad_is_never_trusted(name):
    assert level(name, 0).level is not Level.trust


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", levels.BAD)
def test_a_q_known_to_be_bad_is_never_trusted_on_any_seed(name, seed):
    assert level(name, seed).level is not Level.trust


@pytest.mark.parametrize("name", [name for name, case in levels.GOOD.items() if not case.slow])
def test_the_exact_posterior_is_trusted(name):
    assert level(name, 0).level is Level.trust


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", levels.GOOD)
def test_the_exact_posterior_is_trusted_on_every_seed(name, seed):
    if name.startswith("gamma_poisson") and seed > 2:
        pytest.skip("12 s each: all 20 are in benchmarks/levels.py")
    assert level(name, seed).level is Level.trust


def test_eight_schools_without_centring():
    verdict = level("mean-field on eight schools, non-centred", 0)
    found = verdict.evidence
    assert verdict.level is Level.reweight
    assert found.khat == pytest.approx(0.60, abs=0.05)
    assert found.elbo.value == pytest.approx(-31.596, abs=0.02)
    assert found.log_evidence.value == pytest.approx(-31.311, abs=0.05)
    full = level("full rank on eight schools, non-centred", 0).evidence
    assert full.elbo.value == pytest.approx(-31.534, abs=0.02)
    assert full.log_evidence.value == pytest.approx(-31.311, abs=0.05)


def test_reweighting_mends_what_q_has_wrong_of_eight_schools():
    """The sd of log tau is 0.73 under q and 1.17 by NUTS; a q that knows nothing of tau below 0.5 gives back 1.0 of it."""
    fit = levels.gaussian(levels.schools, "normal", levels.SCHOOLS)(0)
    plain = fit.posterior(4_000)["tau"].log().std().item()
    draws = fit.importance_resample(4_000)
    assert plain == pytest.approx(0.73, abs=0.03)
    assert draws["tau"].log().std().item() > 0.92
    assert draws["tau"].mean().item() == pytest.approx(3.598, abs=0.1 * 3.219)
    assert draws["eta"].shape == (4_000, 8)


def test_centred_eight_schools_are_not_resampled():
    fit = levels.gaussian(levels.schools_centred, "normal", levels.SCHOOLS)(0)
    with pytest.raises(pyrovi.PyroviError, match=r"weights cannot mend q: k-hat 0\.\d\d"):
        fit.importance_resample(100)


def test_a_mode_that_q_does_not_visit_is_found_and_named():
    verdict = level("q on one of two modes at ±5", 0)
    assert verdict.level is Level.enrich
    assert verdict.evidence.missed == pytest.approx(0.5, abs=0.05)
    assert verdict.evidence.missed_where == "x"
    assert "q does not visit a part of the posterior" in verdict.text


def test_weights_mend_a_wide_q_but_q_alone_is_off():
    verdict = level("q wide over two modes at ±5", 0)
    assert verdict.level is Level.reweight
    assert verdict.evidence.khat < 0
    assert verdict.evidence.sd_error.value == pytest.approx(6 / math.sqrt(26) - 1, abs=0.03)
    assert verdict.evidence.log_evidence.value == pytest.approx(0, abs=0.05)


def test_without_restarts_the_level_stops_at_reweight():
    fit = pyrovi.recipe("normal_mean").fit(progress=False)
    assert fit.check().level is Level.trust
    verdict = fit.check(restarts=0)
    assert verdict.level is Level.reweight
    assert "other modes were not looked for (restarts=0)" in verdict.text


def mixture(y):
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(m, 1.0)), obs=y)


def test_modes_that_differ_by_their_labels_alone_are_told_as_that():
    y = np.r_[np.random.default_rng(0).normal(-3, 1, 20), np.random.default_rng(1).normal(3, 1, 20)]
    fit = pyrovi.fit(mixture, "multivariate_normal", {"y": y}, method="deterministic", progress=False)
    verdict = fit.check()
    assert verdict.level is Level.reweight
    assert verdict.evidence.switched
    assert "by their labels alone" in verdict.text
    y[:8] = 3 + y[:8] / 10  # now the two have other weights, and the same two places
    assert pyrovi.fit(mixture, "multivariate_normal", {"y": y}, method="deterministic", progress=False).check().evidence.switched


def branching(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    scale = 1.0 if a > -100 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a, scale), obs=y)


@pytest.mark.slow
def test_a_model_that_cannot_be_recorded_is_fitted_again_instead(monkeypatch):
    monkeypatch.setattr("pyrovi.restarts.REFIT_DRAWS", 200)
    settings = {"steps": 250, "lr": 0.05, "stop": None, "progress": False}
    fit = pyrovi.fit(branching, "normal", {"y": np.ones(5)}, **settings)
    found = fit.check(max_draws=500).evidence
    assert found.restarts == 3
    assert 1 <= found.rhat < 1.2
    assert not found.missed

    def guide(y):
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.8)), 0.4))

    verdict = pyrovi.fit(branching, guide, {"y": np.ones(5)}, **settings).check(max_draws=500)
    assert verdict.evidence.restarts == 0
    assert verdict.level is not Level.trust
    assert "its course depends on the value of a latent" in verdict.text


def two_ways():
    """Modes at ±6, in a model that cannot be recorded."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    pyro.factor("modes", -0.5 * (a.abs() - 6) ** 2 if a < 100 else a)


def test_another_mode_that_a_refit_finds_is_named(monkeypatch):
    monkeypatch.setattr("pyrovi.restarts.REFIT_DRAWS", 200)
    settings = {"steps": 200, "lr": 0.1, "stop": None, "progress": False}
    verdict = pyrovi.fit(two_ways, "normal", **settings).check(max_draws=300)
    assert verdict.evidence.restarts == 3
    assert verdict.evidence.missed > 0.2
    assert verdict.evidence.missed_where == "a"
    assert verdict.level is Level.enrich


def local(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def local_guide(y):
    loc = pyro.param("loc", lambda: y / 2)
    scale = pyro.param("scale", lambda: torch.full_like(y, math.sqrt(0.5)), constraint=dist.constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(loc, scale))


def test_latents_of_data_have_weights_of_their_own():
    """q has the exact posterior of all data but two; jointly 400 ratios would be hopeless."""
    y = np.linspace(-2, 2, 400)
    fit = pyrovi.fit(local, local_guide, {"y": y}, steps=1, dtype="float64", progress=False)
    values = {name: value.clone() for name, value in fit.unconstrained.items()}
    values["loc"], values["scale"] = torch.from_numpy(y / 2), torch.full((400,), math.log(math.sqrt(0.5))).double()
    exact = replace(fit, unconstrained=values).check(restarts=0).evidence
    assert exact.data == 200
    assert exact.share_above == 0
    assert exact.kl.value == pytest.approx(0, abs=1e-6)
    truth = -0.5 * (400 * math.log(4 * math.pi) + (y**2).sum() / 2)
    assert abs(exact.log_evidence.value - truth) < 4 * exact.log_evidence.se
    values["scale"][[0, 399]] -= 1.5  # at both ends, which are always among those looked at
    off = replace(fit, unconstrained=values).check(restarts=0)
    assert off.evidence.share_above == pytest.approx(2 / 200)
    assert off.level is not Level.trust


# What is measured


@pytest.mark.parametrize("seed", range(20))
def test_kl_is_right_to_its_standard_error(seed):
    """Of a shifted, stretched q for Normal(1.877, 0.0995): log s + (1 + t²)/(2 s²)… in closed form, by draws and by weights."""
    recipe = pyrovi.recipe("normal_mean")
    fit = recipe.fit(steps=1, dtype="float64", progress=False, stop=None)
    exact = recipe.exact(**recipe.load())
    mean, sd = float(exact.marginals["w"].mean()), float(exact.marginals["w"].std())
    names = list(fit.unconstrained)
    location = next(n for n in names if "scale" not in n and "sd" not in n)
    scale = next(n for n in names if n != location)
    constrain = fit.problem.parameters.constraints[scale]
    values = {
        location: torch.tensor(mean + 0.3 * sd).double(),
        scale: torch.distributions.transform_to(constrain).inv(torch.tensor(1.2 * sd).double()),
    }
    off = replace(fit, unconstrained=values)
    truth = 0.5 * (1.2**2 + 0.3**2 - 1) - math.log(1.2)
    for found in (off.check(exact, seed=seed).evidence, off.check(seed=seed, restarts=0).evidence):
        assert abs(found.kl.value - truth) < 4 * found.kl.se
        assert found.kl.se < 0.01
        assert found.mean_error.value == pytest.approx(0.3, abs=0.05)
        assert found.sd_error.value == pytest.approx(0.2, abs=0.05)
    assert found.mean_bound > 0.3 / 1.2  # sds of q


def test_agreement_of_weighted_draws_has_the_standard_errors_it_states():
    """q = Normal(0.1, 1.2), p = Normal(0, 1): the errors of 100 repetitions have the sd that is stated."""
    errors, stated = [], []
    for seed in range(100):
        x = 0.1 + 1.2 * np.random.default_rng(seed).normal(size=(2_000, 1))
        ratio = -0.5 * x[:, 0] ** 2 + 0.5 * ((x[:, 0] - 0.1) / 1.2) ** 2 + math.log(1.2)
        found = against_weighted(["x"], x, weigh(ratio).weights)
        errors.append([found.mean_error.value, found.sd_error.value])
        stated.append([found.mean_error.se, found.sd_error.se])
    assert np.mean(errors, 0) == pytest.approx([0.1, 0.2], abs=0.01)
    assert np.std(errors, 0) / np.mean(stated, 0) == pytest.approx([1, 1], abs=0.3)  # 7% a standard error, and psis


def test_equal_weights_leave_no_error_at_all():
    x = np.random.default_rng(0).normal(size=(1_000, 2))
    found = against_weighted(["x", "y"], x, np.full(1_000, 1e-3))
    for error in (found.mean_error, found.sd_error):
        assert (error.value, error.se) == pytest.approx((0, 0), abs=1e-9)
    assert found.quantile_error.value < 0
    assert found.decided


def test_a_variable_that_does_not_vary_is_no_error():
    x = np.c_[np.ones(1_000), np.random.default_rng(0).normal(size=1_000)]
    assert against_weighted(["one", "x"], x, np.full(1_000, 1e-3)).mean_error.value == pytest.approx(0, abs=1e-9)


def test_a_large_k_hat_of_few_draws_is_looked_at_again():
    """A Gaussian for a Student-t(2): of 12,500 draws k-hat is 1 to 7, for a crowd of equal ratios at 0; of 200,000 it is 0.7."""
    found = level("Gaussian on a Student-t(2)", 0).evidence
    assert found.draws == 200_000
    assert 0.55 < found.khat < 0.95


def test_agreement_with_an_exact_posterior():
    from scipy import stats

    x = np.random.default_rng(0).normal([0.0, 0.5], [1.0, 2.0], size=(20_000, 2))
    found = against_exact({"x": x}, {"x": stats.norm([0.0, 0.0], [1.0, 2.0])})
    assert found.mean_worst == "x[1]"
    assert found.mean_error.value == pytest.approx(0.25, abs=0.03)
    assert found.sd_error.value < 0.02


def test_sums_over_the_data_are_of_the_plate_that_the_latents_belong_to():
    """Of 64 pixels, that is, not of the 178 images that each of them is seen in."""
    fit = pyrovi.recipe("gamma_poisson").fit(steps=200)
    found = fit.check(restarts=0, max_draws=2_000).evidence
    elbo = fit.estimate_elbo(2_000)
    assert found.data == 64
    assert abs(found.elbo.value - elbo.value) < 4 * math.hypot(found.elbo.se, elbo.se)


# Levels by evidence

FINE = Evidence(
    guide="normal",
    richer="multivariate_normal",
    converged=True,
    draws=100_000,
    khat=0.2,
    khat_se=0.04,
    ess=90_000.0,
    mean_error=Estimate(0.01, 0.01),
    sd_error=Estimate(0.01, 0.01),
    quantile_error=Estimate(-0.1, 0.01),
    restarts=12,
    rhat=1.0,
)


def test_all_that_can_be_asked_is_trusted():
    assert judge(FINE).level is Level.trust


def test_restarts_that_differ_are_explained_where_q_covers_them():
    assert "and q covers it" in judge(replace(FINE, rhat=1.7)).text
    assert "and q covers it" not in judge(FINE).text
    assert "and q covers it" not in judge(replace(FINE, rhat=1.7, missed=0.3, missed_where="c")).text


@pytest.mark.parametrize(
    ("change", "expected", "why"),
    [
        ({"converged": False, "convergence": "it still rose"}, "reweight", "has not come to rest"),
        ({"converged": None}, "reweight", "convergence was not tested"),
        ({"mean_error": Estimate(0.2, 0.01), "mean_worst": "a"}, "reweight", "mean of a by 0.20 sd"),
        ({"mean_error": Estimate(0.09, 0.01), "mean_worst": "a"}, "reweight", "is not known"),
        ({"sd_error": Estimate(0.3, 0.01), "sd_worst": "b[1]"}, "reweight", "sd of b[1] by 30%"),
        ({"quantile_error": Estimate(0.1, 0.01)}, "reweight", "quantile"),
        ({"mean_error": None}, "reweight", "means were not compared"),
        ({"finite": 0.99}, "reweight", "have no finite density"),
        ({"restarts": 0, "untested": "no time"}, "reweight", "not looked for (no time)"),
        ({"missed": 0.3, "missed_where": "c"}, "enrich", "at least 30% of it, which lies off in c"),
        ({"missed": 0.3, "switched": True}, "reweight", "by their labels alone"),
        ({"khat": 0.9}, "enrich", "too far from the posterior"),
        ({"khat": 0.68}, "enrich", "is not known: k-hat 0.68"),
        ({"khat": math.inf}, "enrich", "could not be estimated"),
        ({"khat": math.nan}, "enrich", "is not known"),
        ({"khat": None}, "enrich", "were not measured"),
        ({"khat": 0.9, "richer": None}, "sample", "pyrovi.nuts(model, data)"),
        ({"finite": 0.2}, "enrich", "80% of q's draws have no finite density"),
        ({"data": 100, "share_above": 0.02}, "enrich", "of 100 data, 2.0% have a k-hat"),
        ({"point": True}, "enrich", "q is a point"),
        ({"exact": True, "khat": 2.0, "restarts": 0}, "trust", "agrees with the exact posterior"),
        ({"exact": True, "sd_error": Estimate(0.3, 0.01)}, "reweight", "the exact posterior differ"),
        ({"exact": True, "khat": 2.0, "sd_error": Estimate(0.3, 0.01)}, "enrich", "too far"),
    ],
)
def test_every_doubt_costs_a_level(change, expected, why):
    verdict = judge(replace(FINE, **change))
    assert verdict.level == expected
    assert why in verdict.text


def test_a_verdict_survives_json():
    for change in ({}, {"khat": -math.inf, "kl": Estimate(math.inf, 0.0), "missed": 0.5, "missed_where": "inf"}, {"point": True}):
        verdict = judge(replace(FINE, **change))
        again = Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False)))
        assert again == verdict
    assert Verdict.from_dict({"level": "trust", "text": "", "evidence": {"unknown": 1}}).level is Level.trust


# Mistakes, and what has no posterior


def test_a_point_is_never_trusted_even_beside_the_exact_posterior():
    recipe = pyrovi.recipe("normal_mean")
    fit = recipe.fit(guide="delta", steps=300, progress=False)
    assert fit.check(recipe.exact(**recipe.load())).level is Level.enrich
    assert 'Next: guide="normal"' in fit.check().text


def test_a_fit_that_ran_away_is_not_trusted_and_does_not_raise():
    fit = pyrovi.fit(levels.schools, "normal", SCHOOLS, steps=300, lr=1e4, progress=False)
    assert fit.status == "diverged"
    assert fit.check().level is Level.enrich


def test_a_trace_too_short_to_tell_is_not_converged():
    """Even of a q that is right from its start, which nothing else would give away."""
    fit = pyrovi.fit(local, local_guide, {"y": np.linspace(-2, 2, 5)}, steps=50, lr=1e-6, progress=False)
    verdict = fit.check()
    assert verdict.evidence.kl.value == pytest.approx(0, abs=1e-3)
    assert verdict.evidence.converged is False
    assert verdict.level is Level.reweight
    longer = pyrovi.fit(local, local_guide, {"y": np.linspace(-2, 2, 5)}, steps=300, lr=1e-6, stop=None, progress=False)
    assert longer.check().level is Level.trust


def test_numbers_out_of_range_are_refused(tmp_path):
    fit = pyrovi.recipe("normal_mean").fit(steps=5, progress=False)
    with pytest.raises(pyrovi.SettingsError, match="restarts must be at least 0"):
        fit.check(restarts=-1)
    with pytest.raises(pyrovi.SettingsError, match="max_draws must be at least 1"):
        fit.check(max_draws=0)
    with pytest.raises(pyrovi.PyroviError, match="point estimate"):
        pyrovi.recipe("normal_mean").fit(guide="delta", steps=5, progress=False).importance_resample()
    other = pyrovi.fit(branching, "normal", {"y": np.ones(5)}, steps=2, progress=False)
    other.save(tmp_path / "run")
    with pytest.raises(pyrovi.PyroviError, match="without its model"):
        pyrovi.load(tmp_path / "run").check()


def test_the_same_seed_gives_the_same_verdict():
    fit = pyrovi.recipe("normal_mean").fit(steps=300, progress=False)
    assert fit.check(seed=3) == fit.check(seed=3)
    assert fit.check(seed=3) != fit.check(seed=4)


# Where a verdict is shown


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdict") / "run"
    pyrovi.recipe("normal_mean").fit(progress=False).save(folder)
    return folder


def command(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_tells_the_level_by_its_exit_code_and_keeps_the_verdict(run):
    told = command("check", run)
    assert told.exit_code == 0, told.output
    assert told.output.startswith("trust: q agrees with the exact posterior.")
    assert pyrovi.load(run).verdict.level is Level.trust
    told = command("check", run, "--blind", "--restarts", 0, "--json", "--no-keep")
    assert told.exit_code == 10
    answer = json.loads(told.output)
    assert answer["level"] == "reweight"
    assert answer["evidence"]["restarts"] == 0
    assert pyrovi.load(run).verdict.level is Level.trust


def test_a_kept_verdict_is_in_summary_report_and_arviz_and_saved_again(run, tmp_path):
    command("check", run)
    fit = pyrovi.load(run)
    assert fit.summary(100).attrs["verdict"]["level"] == "trust"
    attrs = fit.to_arviz(10).attrs
    assert attrs["verdict"] == "trust"
    assert attrs["verdict_text"] == fit.verdict.text
    assert attrs["khat"] == fit.verdict.evidence.khat
    page = pyrovi.report(fit, tmp_path / "page.html").read_text()
    assert "Evidence for the verdict" in page
    assert fit.verdict.text.splitlines()[0].removeprefix("trust: ") in page
    fit.save(tmp_path / "run")
    assert pyrovi.load(tmp_path / "run").verdict == fit.verdict
    assert _arviz.read(str(tmp_path / "run" / "posterior.nc")).attrs["verdict"] == "trust"


def test_a_fit_without_a_verdict_shows_none(tmp_path):
    fit = pyrovi.recipe("normal_mean").fit(steps=5, progress=False)
    assert "verdict" not in fit.to_arviz(10).attrs
    assert "Is it to be trusted?" not in pyrovi.report(fit, tmp_path / "page.html").read_text()
    fit.save(tmp_path / "run")
    assert pyrovi.load(tmp_path / "run").verdict is None
