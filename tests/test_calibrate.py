"""Simulation-based calibration: what is calibrated passes, what is not fails, and the figure and the words say how."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyrovi
from pyrovi import Calibration, calibrate
from pyrovi.models import normal_mean
from pyrovi.ranks import NullECDF, asymmetry, shape_of

QUICK = {"lr": 0.1, "steps": 700, "particles": 4, "schedule": "cosine", "engine": "traced", "progress": False}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYROVI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def scaled(factor=1.0, shift=0.0):
    """The exact posterior of five Normal outcomes, its sd times a factor and its mean moved by so many sds."""

    def guide(x):
        pyro.param("unused", torch.tensor(0.0))
        sd = 6**-0.5
        loc = x.sum() / 6 + shift * sd + 0 * pyro.param("loc", torch.tensor(0.0))
        pyro.sample("w", dist.Normal(loc, factor * sd))

    return guide


def of_five(factor=1.0, shift=0.0, **settings):
    data = {"x": np.zeros(5)}
    return calibrate(normal_mean.model, scaled(factor, shift), data, **{"steps": 5, "progress": False, **settings})


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 20))])
def test_the_exact_posterior_is_calibrated(seed):
    """The bands are 95%: of twenty seeds about one may be outside; at 99.9% none is."""
    found = of_five(seed=seed, replicates=256, prob=0.999)
    assert found.passes
    row = found.table().loc["w"]
    assert row["shape"] == "calibrated"
    assert abs(row["z_sd"] - 1) < 4 / np.sqrt(2 * 256) + 0.01
    assert abs(row["z_mean"]) < 4 / np.sqrt(256)


@pytest.mark.parametrize(
    ("factor", "shift", "words"),
    [
        (0.6, 0.0, "overconfident: ∪-shaped"),
        (1.8, 0.0, "underconfident: ∩-shaped"),
        (1.0, 0.7, "shifted: q too high"),
        (1.0, -0.7, "shifted: q too low"),
    ],
)
def test_what_is_wrong_is_found_and_named(factor, shift, words):
    found = of_five(factor, shift, replicates=256)
    row = found.table().loc["w"]
    assert not found.passes
    assert row["p_uniform"] < 0.01
    assert row["shape"].startswith(words)
    assert row["z_sd"] == pytest.approx(1 / factor, rel=0.15)
    assert row["z_mean"] == pytest.approx(-shift / factor, abs=0.2)
    assert bool(row["p_symmetric"] < 0.01) is (shift != 0)
    assert words in repr(found)


def test_512_replicates_of_normal_mean_pass_their_bands():
    recipe = pyrovi.recipe("normal_mean")
    found = calibrate(recipe.model, recipe.guide, recipe.load(), **QUICK)
    assert found.replicates == 512
    assert found.passes
    assert abs(found.table().loc["w", "z_sd"] - 1) < 0.1
    assert found.seconds > 0 < found.one_fit_seconds


def correlated(X, y):
    with pyro.plate("feature", 2):
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(beta @ X.T, 1.0), obs=y)


def predictors(correlation, n=20):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n))
    return np.stack([a, correlation * a + (1 - correlation**2) ** 0.5 * b], -1)


def test_mean_field_on_a_correlated_regression_fails_with_sds_too_small_and_full_rank_passes():
    data = {"X": predictors(0.95), "y": np.zeros(20)}
    narrow, right = (calibrate(correlated, guide, data, **QUICK) for guide in ("normal", "multivariate_normal"))
    assert not narrow.passes
    assert all(shape.startswith("overconfident: ∪-shaped") for shape in narrow.table()["shape"])
    assert (narrow.table()["z_sd"] > 1.2).all()
    assert right.passes
    assert list(right.table().index) == ["beta[0]", "beta[1]"]


@pytest.mark.slow
def test_512_replicates_of_linear_regression_pass_their_bands_and_mean_field_does_not():
    recipe = pyrovi.recipe("linear_regression")
    settings = {"lr": 0.1, "steps": 5_000, "particles": 2, "schedule": "cosine", "progress": False}
    right = calibrate(recipe.model, "whitened", recipe.load(), **settings)
    assert right.passes, right
    narrow = calibrate(recipe.model, "normal", recipe.load(), **{**settings, "steps": 2_000})
    assert not narrow.passes
    assert narrow.table().loc["beta[4]", "shape"].startswith("overconfident")


def test_the_figure_shows_the_curve_outside_its_band():
    figure = of_five(0.6, replicates=128).plot()
    (axes,) = figure.axes
    curve = axes.lines[1].get_ydata()
    assert curve[: len(curve) // 2].mean() > 0.02  # up, then down: ranks at both ends
    assert curve[len(curve) // 2 :].mean() < -0.02
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["simultaneous 95% band", "ECDF of ranks − uniform", "outside"]


def test_the_same_seed_gives_the_same_ranks():
    a, b, c = (of_five(seed=seed, replicates=40) for seed in (1, 1, 2))
    assert np.array_equal(a.ranks["w"], b.ranks["w"])
    assert not np.array_equal(a.ranks["w"], c.ranks["w"])


@pytest.mark.parametrize("prob", [0.9, 0.95])
def test_bands_hold_simultaneously_as_often_as_they_say(prob):
    """Of 4,000 uniform samples, to three standard errors, and the p-value says the same as the band."""
    null = NullECDF.of(100, 99, prob)
    rng, low_high = np.random.default_rng(1), null.band
    samples = rng.integers(0, 100, size=(4_000, 100))
    inside, by_p = [], []
    for ranks in samples:
        ecdf = null.ecdf(ranks)
        inside.append(((ecdf >= low_high[0] - 1e-12) & (ecdf <= low_high[1] + 1e-12)).all())
        by_p.append(null.p_value(ranks) > 1 - prob)
    assert np.mean(inside) >= prob - 3 * (prob * (1 - prob) / 4_000) ** 0.5
    assert np.mean(inside) < prob + 0.03  # counts are discrete
    assert inside == by_p


def test_the_test_of_symmetry_rejects_as_often_as_it_says():
    rng = np.random.default_rng(2)
    p = np.array([asymmetry(rng.integers(0, 100, size=512), 99) for _ in range(2_000)])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 2_000) ** 0.5 + 0.005)
    bell = np.clip(rng.normal(50, 10, size=512), 0, 99).astype(int)
    assert asymmetry(bell, 99) > 0.01
    assert asymmetry(rng.integers(20, 100, size=512), 99) < 1e-4


def test_a_shape_that_is_no_other_is_called_misshapen():
    assert shape_of(np.tile([20, 30, 69, 79], 50), 99).startswith("misshapen")


def test_ties_are_broken_at_random():
    """A Bernoulli latent's draws tie with the truth; its ranks are uniform all the same where q is the posterior."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z * 1e-9, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(0.3 + 0 * pyro.param("p", torch.tensor(0.1), constraint=constraints.positive)))

    found = calibrate(model, guide, {"x": np.zeros(3)}, replicates=50, steps=1, prob=0.999, progress=False)
    assert found.passes


MISTAKES = {
    "too few replicates": ({"replicates": 5}, pyrovi.SettingsError, "at least 20"),
    "a setting of fit's alone": ({"restarts": 2}, pyrovi.SettingsError, "restarts"),
    "a probability that is none": ({"prob": 2.0}, pyrovi.SettingsError, "prob"),
    "a point estimate": ({"guide": "delta"}, pyrovi.PyroviError, "point estimate"),
    "an outcome that is no argument": ({"model": lambda x: normal_mean.model(x + 1)}, pyrovi.ModelError, "as it is"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_say_what_to_do(name):
    changed, error, words = MISTAKES[name]
    given = {"model": normal_mean.model, "guide": "normal", "data": {"x": np.zeros(5)}, "steps": 5, **changed}
    with pytest.raises(error, match=words):
        calibrate(**given)


def test_a_calibration_is_frozen():
    found = of_five(replicates=20)
    assert isinstance(found, Calibration)
    with pytest.raises(AttributeError):
        found.draws = 3
