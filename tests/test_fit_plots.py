"""`fit.plot`: every figure says what the fit says, and says in a sentence where there is none."""

import functools
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

import pyrovi
from pyrovi import plots

DATA = {"x": [1.0, 2.0, 3.0, 1.5]}


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.HalfNormal(1e4))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@functools.cache
def fitted(guide="normal", **settings):
    return pyrovi.fit(model, guide, DATA, **{"steps": 300, "lr": 0.05, "progress": False, **settings})


def lines(axes, colour):
    return [line for line in axes.lines if line.get_color() == colour]


@pytest.mark.parametrize("name", ["elbo", "posterior", "forest", "pair", "khat", "predictive", "loo", "__call__"])
def test_every_method_returns_a_figure_made_without_pyplot(name):
    figure = getattr(fitted().plot, name)()
    assert isinstance(figure, Figure)
    assert type(figure.canvas).__name__ == "FigureCanvasBase"


@pytest.mark.parametrize("name", ["posterior", "forest", "pair", "khat", "loo"])
def test_a_point_has_no_spread_to_plot_and_says_so(name):
    with pytest.raises(pyrovi.PyroviError, match="point estimate"):
        getattr(fitted("delta").plot, name)()
    assert isinstance(fitted("delta").plot(), Figure)  # its ELBO


def test_forest_shows_the_quantiles_of_the_draws():
    figure = fitted().plot.forest(["w"], draws=2_000)
    draws = fitted().posterior_arrays(2_000)["w"]
    thin, thick = (c.get_segments()[0][:, 0] for c in figure.axes[0].collections)
    np.testing.assert_allclose(thin, np.quantile(draws, [0.05, 0.95]))
    np.testing.assert_allclose(thick, np.quantile(draws, [0.25, 0.75]))
    assert lines(figure.axes[0], plots.FITTED)[0].get_xdata()[0] == pytest.approx(np.median(draws))


def test_variables_of_another_scale_have_an_axis_of_their_own():
    assert [axes.get_yticklabels()[0].get_text() for axes in fitted().plot.forest().axes] == ["w", "scale"]


def test_forest_of_several_fits_has_a_lane_and_a_marker_each_and_the_exact_one_below():
    exact = pyrovi.ExactPosterior({"w": stats.norm(1.5, 0.4)}, -7.0)
    axes = plots.forest({"one": fitted(), "$two$": fitted("multivariate_normal")}, exact, ["w"]).axes[0]
    heights = [line.get_ydata()[0] for line in axes.lines]
    assert heights == sorted(heights)
    assert len({line.get_marker() for line in axes.lines}) == 3
    assert axes.lines[2].get_xdata()[0] == pytest.approx(1.5)
    assert axes.figure.legends[0].get_texts()[1].get_text() == r"\$two\$"  # a name, not mathematics


def test_khat_figure_says_the_khat_of_its_weights():
    fit = fitted()
    ratio = fit.draws(5_000).elbo.numpy()
    weights = pyrovi.importance.weigh(ratio)
    left, right = fit.plot.khat(draws=5_000).axes
    assert right.get_title() == f"k-hat {weights.khat:.2f} ± {weights.khat_se:.2f}, threshold {weights.threshold:.2f}"
    assert left.get_title() == f"{weights.ess:,.0f} effective of 5,000 draws"
    assert lines(left, plots.FITTED)[0].get_xdata()[0] == pytest.approx(ratio.mean())  # the ELBO
    x, share = lines(right, plots.FITTED)[0].get_data()
    assert x[0] == pytest.approx(np.exp(ratio.max() - weights.log_mean))
    assert share[0] == 1 / 5_000


def test_latents_of_a_datum_have_a_khat_each():
    recipe = pyrovi.recipe("latent_outcome")
    axes = recipe.fit(steps=300, progress=False).plot.khat().axes[0]
    assert axes.get_title().startswith("k-hat of 150 data")


def test_stored_draws_have_weights_and_predictions(tmp_path):
    fitted().save(tmp_path / "run", draws=400)
    fit = pyrovi.load(tmp_path / "run")
    assert fit.plot.khat().axes[0].get_title().endswith("effective of 400 draws")
    assert len(fit.plot.predictive().axes) == 1
    assert isinstance(fit.plot.loo(), Figure)


def test_phases_of_the_stopping_rule_are_drawn_where_they_ended():
    fit = fitted()
    phases = [{"last": 100}, {"last": 200}, {"last": 300}]
    fit = replace(fit, settings={**fit.settings, "phases": phases, "averaged_steps": 80})
    whole, late = fit.plot.elbo().axes
    assert [line.get_xdata()[0] for line in whole.lines if line.get_linestyle() == ":"] == [100, 200]
    assert [line.get_xdata()[0] for line in late.lines if line.get_linestyle() == ":"] == [200]
    assert late.patches[0].get_x() == 220


def test_a_rung_far_below_the_others_does_not_flatten_them():
    fit = fitted()
    settings = {**fit.settings, "method": "auto", "tried": ["gaussian", "skewed", "student"]}
    fit = replace(fit, settings=settings, elbo=np.array([[-10.0, -9.5, -2e10]]))
    axes = fit.plot.elbo(exact=pyrovi.ExactPosterior({}, -9.0)).axes[0]
    assert axes.get_ylim()[0] > -20
    assert [text.get_text() for text in axes.texts] == ["-2e+10"]


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def test_predictive_check_counts_the_data_and_says_how_many_lie_within():
    y = torch.tensor([0.0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 2, 30])
    fit = pyrovi.fit(counts, "normal", {"y": y}, steps=500, lr=0.05, progress=False)
    left, right = fit.plot.predictive(draws=500).axes
    heights, edges, _ = next(p for p in left.patches if not p.get_fill()).get_data()
    assert (edges[:3] == [-0.5, 0.5, 1.5]).all() or len(heights) <= 25
    assert heights.sum() == len(y)
    assert right.get_title() == "83% of 12 data lie in their 90%"  # all but the 0 and the 30


def test_reference_draws_stand_in_for_an_exact_posterior():
    rng = np.random.default_rng(0)
    reference = pyrovi.export.dataset({"w": rng.normal(1.5, 0.4, (1, 4_000))}, {}, {})
    container = pyrovi._arviz.container({"posterior": reference}, {})
    forest = fitted().plot.forest(["w"], exact=container).axes[0]
    assert lines(forest, plots.REFERENCE)[0].get_xdata()[0] == pytest.approx(1.5, abs=0.03)
    panel = fitted().plot.posterior(["w"], exact=container).axes[0]
    assert "reference draws" in [patch.get_label() for patch in panel.patches]


def test_unknown_names_are_one_sentence():
    for call in (fitted().plot.forest, fitted().plot.pair):
        with pytest.raises(pyrovi.SettingsError, match="did you mean 'scale'"):
            call(["scal"])
    with pytest.raises(pyrovi.SettingsError, match="'w' is not observed"):
        fitted().plot.predictive("w")
    with pytest.raises(pyrovi.SettingsError, match="at least one fit"):
        plots.forest({})


def test_draws_at_hand_will_do_in_place_of_a_fit():
    draws = {"w": np.linspace(0.0, 1.0, 101)}
    axes = plots.forest({"mine": draws, "q": fitted()}, var_names=["w"]).axes[0]
    assert axes.lines[0].get_xdata()[0] == 0.5
    assert plots.posterior(draws).axes[0].patches[0].get_label() == "draws"


def test_one_name_will_do_and_other_arguments_have_names():
    fit = pyrovi.recipe("normal_mean").fit(steps=200, progress=False)
    assert fit.plot.posterior("w").axes
    assert fit.plot.forest("w").axes
    with pytest.raises(TypeError):
        fit.plot.posterior(None, pyrovi.recipe("normal_mean").exact(**pyrovi.recipe("normal_mean").load()))


def test_a_verdict_that_tested_less_does_not_replace_one_that_tested_more():
    fit = pyrovi.recipe("normal_mean").fit(steps=500, progress=False)
    whole = fit.check()
    assert fit.verdict is whole
    fit.check(restarts=0, max_draws=2_000)
    assert fit.verdict is whole
