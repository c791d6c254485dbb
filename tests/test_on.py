"""Other data than those of the fit: transforms of a step's data, predictions, scores and bounds on a test set."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyrovi
from pyrovi.errors import DataError, GuideError, ModelError, PyroviError
from pyrovi.guides import linear_regression as regression_guide
from pyrovi.models import linear_regression

fit_quietly = functools.partial(pyrovi.fit, progress=False)

Y = torch.linspace(-2, 3, 20)


def local_model(y=None, x=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def amortized(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.7071), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def per_datum(x):
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


DATA = {"y": Y, "x": Y}


def amortized_fit(**settings):
    return fit_quietly(local_model, amortized, DATA, steps=1, lr=1e-9, stop=None, **settings)


# Transforms


def binarize(data):
    return {**data, "pixels": torch.bernoulli(data["pixels"])}


def pixel_model(pixels):
    with pyro.plate("image", len(pixels)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("pixels", dist.Bernoulli(logits=z[..., None].expand(*z.shape, pixels.shape[-1])).to_event(1), obs=pixels)


def pixel_guide(pixels):
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("image", len(pixels)):
        pyro.sample("z", dist.Normal(slope * pixels.mean(-1), 1.0))


GREY = torch.rand(23, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [None, 5])
def test_model_and_guide_see_the_same_fresh_view_at_every_step(batch_size):
    by_guide, by_model = [], []

    def guide(pixels):
        by_guide.append(pixels)
        pixel_guide(pixels)

    def model(pixels):
        by_model.append(pixels)
        pixel_model(pixels)

    fit_quietly(model, guide, {"pixels": GREY}, transform=binarize, steps=10, batch_size=batch_size, stop=None)
    pairs = list(zip(by_guide[-8:], by_model[-8:], strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(set(a.unique().tolist()) <= {0.0, 1.0} for a, _ in pairs)
    if batch_size is None:
        assert not torch.equal(pairs[0][0], pairs[1][0])


def test_without_it_grey_pixels_are_refused():
    with pytest.raises(DataError, match="Bernoulli"):
        fit_quietly(pixel_model, pixel_guide, {"pixels": GREY}, steps=5)


def test_a_fit_draws_and_scores_on_one_view_of_its_data():
    fit = fit_quietly(pixel_model, pixel_guide, {"pixels": GREY}, transform=binarize, steps=50, batch_size=5, stop=None)
    container = fit.to_arviz(50)
    outcome = np.asarray(container["observed_data"]["pixels"])
    assert set(np.unique(outcome)) == {0.0, 1.0}
    likelihood = fit.draws(20, pointwise=True).log_likelihood["pixels"]
    assert likelihood.shape == (20, 23)
    assert torch.isfinite(fit.draws(20).elbo).all()
    assert fit.predictive(5)["pixels"].shape == (5, 23, 4)


def test_a_saved_fit_asks_for_its_transform(tmp_path):
    fit = fit_quietly(pixel_model, pixel_guide, {"pixels": GREY}, transform=binarize, steps=20, stop=None)
    fit.save(tmp_path / "run")
    with pytest.raises(ModelError, match="'binarize'"):
        pyrovi.load(tmp_path / "run", model=pixel_model, guide=pixel_guide)
    again = pyrovi.load(tmp_path / "run", model=pixel_model, guide=pixel_guide, transform=binarize)
    assert torch.equal(again.posterior(30)["z"], fit.posterior(30)["z"])


def test_the_same_seed_gives_the_same_fit_with_a_random_transform():
    one, two = (
        fit_quietly(pixel_model, pixel_guide, {"pixels": GREY}, transform=binarize, steps=30, batch_size=5, seed=3)
        for _ in range(2)
    )
    assert np.array_equal(one.elbo, two.elbo)


def test_a_transform_must_keep_the_names():
    with pytest.raises(DataError, match="transform must return the data under the names"):
        fit_quietly(pixel_model, pixel_guide, {"pixels": GREY}, transform=lambda data: {"image": data["pixels"]}, steps=5)
    with pytest.raises(DataError, match="transform must return"):
        fit_quietly(pixel_model, pixel_guide, {"pixels": GREY}, transform=lambda data: data["pixels"], steps=5)


# Other data


def test_elbo_on_a_test_set_is_that_of_its_own_rows():
    fit = amortized_fit()
    new = torch.tensor([0.5, -1.0, 2.0])
    elbo = fit.on({"y": new, "x": new}).estimate_elbo(20_000)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(new).sum().item()  # the guide is the exact posterior
    assert elbo.value == pytest.approx(exact, abs=1e-3)
    assert fit.estimate_elbo(1_000).value == pytest.approx(dist.Normal(0.0, math.sqrt(2)).log_prob(Y).sum().item(), abs=1e-3)


def test_everything_runs_on_the_new_data():
    new = {"y": torch.tensor([0.5, -1.0, 2.0]), "x": torch.tensor([0.5, -1.0, 2.0])}
    moved = amortized_fit(batch_size=7).on(new)
    assert moved.posterior(10)["z"].shape == (10, 3)
    assert moved.draws(10, pointwise=True).log_likelihood["y"].shape == (10, 3)
    assert moved.to_arviz(20)["posterior"]["z"].shape == (1, 20, 3)
    assert list(moved.summary(50).index) == ["z[0]", "z[1]", "z[2]"]
    assert torch.allclose(moved.posterior(50_000)["z"].mean(0), new["x"] / 2, atol=4 * 0.7071 / math.sqrt(50_000) + 1e-3)


def test_an_autoguide_cannot_follow_latents_of_new_data():
    fit = fit_quietly(local_model, "normal", DATA, steps=5)
    with pytest.raises(GuideError, match="'z' belongs to the data"):
        fit.on({"y": Y[:3], "x": Y[:3]})
    with pytest.raises(GuideError, match="'z' belongs to the data"):
        fit.on({"y": -Y, "x": -Y})  # as many, but others


def test_a_guide_with_a_parameter_a_datum_cannot_either():
    fit = fit_quietly(local_model, per_datum, DATA, steps=5)
    with pytest.raises(GuideError):
        fit.on({"y": Y[:3], "x": Y[:3]})
    with pytest.raises(GuideError, match="a row a datum"):
        fit.on({"y": -Y, "x": -Y})


def test_wrong_names_are_told():
    with pytest.raises(DataError, match="no data named 'yy'"):
        amortized_fit().on({"yy": Y})


def test_log_predictive_is_the_exact_predictive_density():
    X, y = (torch.as_tensor(a) for a in linear_regression.load().values())
    train, test = {"X": X[:300], "y": y[:300]}, {"X": X[300:], "y": y[300:]}
    fit = fit_quietly(
        linear_regression.model, "multivariate_normal", train, steps=3_000, lr=0.02, particles=16, schedule="cosine", stop=None,
        dtype="float64",
    )  # fmt: skip
    ours = fit.on(test).log_predictive(4_000)["y"]
    exact = linear_regression.exact(**{k: v.numpy() for k, v in train.items()}, X_new=test["X"].numpy()).predictive["y"]
    assert ours.shape == (142,)
    error = ours.numpy() - exact.logpdf(test["y"].numpy())
    assert abs(error.mean()) < 0.005  # the Monte Carlo error of one is up to 0.03, where the datum is far out
    assert np.abs(error).max() < 0.1


# Predictions


def test_an_amortized_guide_predicts_for_new_data():
    new = torch.tensor([3.0, -3.0, 1.0])
    drawn = amortized_fit().predictive(40_000, data={"x": new})["y"]
    assert drawn.shape == (40_000, 3)
    sd = math.sqrt(1 + 0.5)
    assert torch.allclose(drawn.mean(0), new / 2, atol=4 * sd / math.sqrt(40_000))
    assert torch.allclose(drawn.std(0), torch.full((3,), sd), rtol=0.02)


def test_also_for_as_many_data_as_it_was_fitted_to():
    drawn = amortized_fit().predictive(20_000, data={"x": -Y})["y"]
    assert torch.allclose(drawn.mean(0), -Y / 2, atol=5 * math.sqrt(1.5) / math.sqrt(20_000))


def test_global_latents_keep_their_draws():
    X, y = linear_regression.load().values()
    fit = fit_quietly(linear_regression.model, regression_guide.guide, {"X": X, "y": y}, steps=200)
    beta = fit.posterior(500)["beta"]
    pyro.set_rng_seed(0)
    predicted = fit.predictive(500, data={"X": 1_000 * X[:2]})["y"]  # so large that the noise is nothing beside it
    assert torch.allclose(predicted / 1_000, beta @ torch.as_tensor(X[:2], dtype=torch.float32).T, atol=0.02)


def test_sites_that_only_new_data_bring_are_returned():
    def walk(y, horizon=0):
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)
        if horizon:
            with pyro.plate("future", horizon):
                pyro.sample("ahead", dist.Normal(level, 1.0))

    fit = fit_quietly(walk, "normal", {"y": Y}, steps=500, lr=0.05)
    drawn = fit.predictive(4_000, data={"horizon": 3, "y": Y})
    assert drawn["ahead"].shape == (4_000, 3)
    assert drawn["ahead"].mean(0) == pytest.approx([0.5] * 3, abs=0.3)


def test_a_guide_that_reads_the_outcomes_does_not_predict_with_old_latents():
    def reads_y(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 0.7071))

    fit = fit_quietly(local_model, reads_y, DATA, steps=1, lr=1e-9, stop=None)
    with pytest.raises(DataError, match=r"redraw=\['z'\]"):
        fit.predictive(10, data={"x": -Y})
    drawn = fit.predictive(20_000, data={"x": -Y}, redraw=["z"])["y"]
    assert drawn.std(0).mean().item() == pytest.approx(math.sqrt(2), rel=0.02)


def test_the_score_of_a_datum_by_its_own_latent_is_refused():
    with pytest.raises(PyroviError, match="use estimate_bound"):
        amortized_fit().on({"y": Y[:3], "x": Y[:3]}).log_predictive(10)


def test_predictions_go_through_the_transform():
    def standardise(data):
        return {**data, "x": (data["x"] - 100) / 10}

    def line(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)

    x = torch.linspace(80, 120, 50)
    fit = fit_quietly(line, "normal", {"x": x, "y": 2 * (x - 100) / 10}, transform=standardise, steps=1_500, lr=0.05)
    drawn = fit.predictive(2_000, data={"x": torch.tensor([110.0, 90.0]), "y": torch.zeros(2)})["y"]
    assert drawn.mean(0).tolist() == pytest.approx([2.0, -2.0], abs=0.05)


def test_a_transform_may_work_in_place_and_must_give_tensors():
    def shift(data):
        data["x"].add_(1.0)
        return data

    def shifted(x):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    fit = fit_quietly(shifted, "normal", {"x": Y}, transform=shift, steps=1_500, lr=0.05, schedule="cosine", stop=None)
    assert fit.posterior(4_000)["m"].mean().item() == pytest.approx(1.5, abs=0.1)
    with pytest.raises(DataError, match="must return tensors"):
        fit_quietly(shifted, "normal", {"x": Y}, transform=lambda data: {"x": data["x"].numpy()}, steps=5)


# Options of named guides


def test_guide_options_reach_the_guide():
    X, y = linear_regression.load().values()
    fit = fit_quietly(linear_regression.model, "low_rank", {"X": X, "y": y}, guide_options={"rank": 3}, steps=5)
    assert fit.parameters["AutoLowRankMultivariateNormal.cov_factor"].shape == (10, 3)
    assert fit.settings["guide_options"] == {"rank": 3}


@pytest.mark.parametrize(
    ("guide", "options", "words"),
    [
        ("normal", {"rank": 3}, "takes no option 'rank'"),
        ("mixture", {"components": 0}, "components"),
        ("flow", {"flow": "planar"}, "unknown flow 'planar'"),
        ("flow", {"transforms": 0}, "transforms"),
        (regression_guide.guide, {"rank": 3}, "given by name or class"),
    ],
)
def test_options_that_a_guide_does_not_take(guide, options, words):
    X, y = linear_regression.load().values()
    with pytest.raises(GuideError, match=words):
        fit_quietly(linear_regression.model, guide, {"X": X, "y": y}, guide_options=options, steps=5)


def test_options_survive_a_run_folder(tmp_path):
    X, y = linear_regression.load().values()
    fit = fit_quietly(linear_regression.model, "flow", {"X": X, "y": y}, guide_options={"transforms": 1, "widths": (8,)}, steps=5)
    fit.save(tmp_path / "run")
    again = pyrovi.load(tmp_path / "run", model=linear_regression.model)
    assert torch.equal(again.posterior(10)["beta"], fit.posterior(10)["beta"])
