"""The report's sections: what each says, why it is missing, and several fits side by side."""

import functools
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from scipy import stats

import pyrovi
from pyrovi.sections import call
from tests.test_report import Page

DATA = {"x": [1.0, 2.0, 3.0, 1.5]}
EXACT = pyrovi.ExactPosterior({"w": stats.norm(1.5, 0.447)}, log_evidence=-7.0)
HOSTILE = "</td><script>alert(1)</script>"


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@functools.cache
def fitted(guide="normal", **settings):
    return pyrovi.fit(model, guide, DATA, **{"steps": 300, "lr": 0.05, "progress": False, **settings})


def report(fit, path, **options):
    return Page(pyrovi.report(fit, path, **options).read_text(encoding="utf-8"))


def test_verdict_comes_first_with_its_evidence(tmp_path):
    verdict = replace(fitted()).check(EXACT, max_draws=5_000)
    page = report(replace(fitted(), verdict=verdict), tmp_path / "page.html")
    first, *evidence = verdict.text.splitlines()
    assert page.said.index(f"{verdict.level.capitalize()}: {first}") < page.said.index("was fitted with")
    for line in evidence:
        assert line in page.said


def test_fit_with_an_exact_posterior_gets_a_verdict_and_one_without_says_that_it_has_none(tmp_path):
    assert "Not checked: how far q is from the posterior was not measured" in report(fitted(), tmp_path / "a.html").said
    assert "Right? Against the exact posterior" in report(fitted(), tmp_path / "b.html", exact=EXACT).said
    asked = report(fitted(), tmp_path / "c.html", check=True)
    assert fitted().verdict is None  # a page leaves its fit as it was
    assert "Same answer again? 12 dispersed restarts" in asked.said


def test_every_section_is_there_and_says_its_numbers(tmp_path):
    loo = pyrovi.loo(fitted(), draws=4_000)
    page = report(fitted(), tmp_path / "page.html", loo=loo)
    for name in ("elbo", "posterior", "intervals", "weights", "predictive-0", "loo"):
        assert page.figure(name).named("desc")
    assert f"{loo.elpd:,.2f} ± {loo.se:,.2f}" in page.said
    assert "0 of 4" in page.said
    assert page.figure("weights").text.count("k-hat")
    assert call(fitted()) in page.text


def test_phases_are_in_the_page_as_a_table(tmp_path):
    fit = pyrovi.fit(model, "normal", DATA, stop="auto", lr=0.05, progress=False)
    page = report(fit, tmp_path / "page.html")
    assert "Phases of the stopping rule" in page.said
    assert f"{fit.settings['phases'][0]['last']:,}" in page.said
    assert f"{fit.settings['phases'][-1]['mc_error']:.4g}"[:4] in page.said


def test_fit_without_settings_shows_its_rungs(tmp_path):
    fit = pyrovi.fit(model, data=DATA, progress=False)
    page = report(fit, tmp_path / "page.html")
    assert "takes no steps" in page.said
    assert "1 gaussian" in page.said
    assert f"fit = pyrovi.fit(model, data=data, seed={fit.seed})" in page.text


def silent():
    pyro.sample("w", dist.Normal(0.0, 1.0))


def test_section_that_cannot_be_computed_says_why(tmp_path):
    fit = pyrovi.fit(silent, "normal", {}, steps=300, lr=0.05, progress=False)
    page = report(fit, tmp_path / "page.html")
    assert "The model has no observed site, so there are no data to check against." in page.said
    assert "The model has no observed site, and so no datum to leave out." in page.said
    assert {"weights", "posterior", "elbo"} <= {a["aria-labelledby"].split("-title")[0] for a in page.named("svg")}


def test_stored_fit_without_likelihoods_says_why(tmp_path):
    container = fitted().to_arviz(200, pointwise=False)
    page = report(replace(fitted(), problem=None, stored=container), tmp_path / "page.html")
    assert "stored without predictions" in page.said or "no observed site" in page.said
    assert "stored without" in page.said.split("Leave-one-out")[-1] or "no observed" in page.said
    assert page.figure("weights").named("desc")


def test_too_many_data_are_not_left_out_unasked(tmp_path):
    data = {"x": np.random.default_rng(0).normal(1.0, 1.0, 2_500)}
    fit = pyrovi.fit(model, "normal", data, steps=300, lr=0.05, progress=False)
    page = report(fit, tmp_path / "page.html")
    assert "leaving out each of 2,500 data takes a while" in page.said.lower()


def test_reference_draws_are_compared_and_chains_that_did_not_converge_are_refused_in_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    good = {"w": rng.normal(1.5, 0.447, (4, 1_000))}
    bad = {"w": good["w"] + 3 * np.arange(4)[:, None]}
    pages = []
    for chains in (good, bad):
        posterior = pyrovi.export.dataset(chains, {}, {})
        container = pyrovi._arviz.container({"posterior": posterior}, {})
        pages.append(report(fitted(), tmp_path / "page.html", reference=container))
    assert "Against the reference" in pages[0].said
    assert "reference sds (w)" in pages[0].said
    assert "not fit to judge by" in pages[1].said


def test_calibration_is_shown(tmp_path):
    found = pyrovi.calibrate(model, "normal", DATA, replicates=24, steps=200, lr=0.05)
    page = report(fitted(), tmp_path / "page.html", calibration=found)
    assert "of 1 scalar within the band" in page.said
    assert page.figure("calibration").named("desc")


def test_call_names_what_differs_from_the_defaults():
    assert call(fitted()) == "fit = pyrovi.fit(model, 'normal', data, lr=0.05, method='svi', seed=0, steps=300)"
    recipe = pyrovi.recipe("normal_mean")
    assert call(recipe.fit(steps=200, progress=False)) == "fit = pyrovi.recipe('normal_mean').fit(method='svi', seed=0, steps=200)"
    again = eval(call(recipe.fit(steps=200, seed=3, progress=False)).removeprefix("fit = "))
    np.testing.assert_array_equal(again.elbo, recipe.fit(steps=200, seed=3, progress=False).elbo)


def test_several_fits_stand_side_by_side(tmp_path):
    fits = {"mean-field": fitted(), HOSTILE: fitted(guide="multivariate_normal"), "point": fitted(guide="delta")}
    page = report(fits, tmp_path / "page.html", exact=EXACT)
    assert page.said.count("3 fits side by side") == 1
    for name, fit in fits.items():
        assert name in page.text
        assert call(fit) in page.text
    assert "<script>alert" not in page.source
    assert page.figure("intervals").text.count("mean-field") == 1
    rows = [line for line in page.source.splitlines() if line.startswith('<tr><th scope="row">w</th>')]
    draws = fitted().posterior_arrays(1_000)["w"]
    assert f"{draws.mean():.3f}" in rows[0]
    assert f"{draws.std(ddof=1):.4f}" in rows[0]
    assert "1.500" in rows[0]  # the exact mean
    assert "Settings in which they differ" in page.said
    assert len(page.ids()) == len(set(page.ids()))
    assert not page.open


def test_a_list_of_fits_is_named_by_guide(tmp_path):
    page = report([fitted(), fitted(guide="multivariate_normal"), fitted(seed=1)], tmp_path / "page.html")
    assert "normal (1), multivariate_normal, normal (3)" in page.said


@pytest.mark.parametrize("wrong", [{}, [], "runs/one", {"a": "runs/one"}, ["runs/one"], 3])
def test_what_is_not_a_fit_is_refused_in_a_sentence(wrong, tmp_path):
    with pytest.raises(pyrovi.SettingsError, match="Fit|fits"):
        pyrovi.report(wrong, tmp_path / "page.html")
