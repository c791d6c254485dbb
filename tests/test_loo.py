"""LOO of a fit whose q is known to be off, against the exact value; the same on both lines of ArviZ."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi
from pyrovi import _arviz

Y = np.random.default_rng(3).normal(size=25)


def model(y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale))


def at(loc, scale):
    """A fit with this q."""
    fit = pyrovi.fit(model, guide, {"y": Y}, steps=1, dtype="float64", progress=False)
    values = {"loc": torch.tensor(loc).double(), "scale": torch.tensor(math.log(scale)).double()}
    return replace(fit, unconstrained=values, parameters=fit.problem.parameters.constrained(values))


def posterior(y):
    return y.sum() / (1 + len(y)), 1 / math.sqrt(1 + len(y))


def exact(y=Y):
    """By datum: Normal with the mean of the posterior without it, and its variance plus the noise's."""
    out = []
    for i, value in enumerate(y):
        mean, sd = posterior(np.delete(y, i))
        variance = 1 + sd**2
        out.append(-0.5 * (math.log(2 * math.pi * variance) + (value - mean) ** 2 / variance))
    return np.array(out)


@pytest.fixture(scope="module")
def off():
    """Shifted by 0.05, which is a quarter of an sd, and 1.3 times too wide."""
    mean, sd = posterior(Y)
    return at(mean + 0.05, 1.3 * sd)


def plain(fit):
    """What is got by taking q's draws for the posterior's."""
    scores = fit.draws(4_000, pointwise=True).log_likelihood["y"].numpy()
    return sum(np.logaddexp.reduce(_arviz.psis(-own)[0] + own) for own in scores.T)


def test_loo_is_exact_to_a_twentieth_where_plain_loo_is_off(off):
    found = pyrovi.loo(off)
    assert found.elpd == pytest.approx(exact().sum(), abs=0.05)
    assert found.pointwise == pytest.approx(exact(), abs=0.02)
    assert plain(off) - exact().sum() == pytest.approx(-0.88, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_loo_is_exact_to_a_twentieth_on_every_seed(off, seed):
    assert pyrovi.loo(off, seed=seed).elpd == pytest.approx(exact().sum(), abs=0.05)


def test_loo_of_the_exact_posterior_is_the_plain_one():
    fit = at(*posterior(Y))
    found = pyrovi.loo(fit)
    assert found.elpd == pytest.approx(plain(fit), abs=1e-6)
    assert found.p_loo == pytest.approx((exact_with_all() - exact()).sum(), abs=0.05)
    assert not found.warning
    assert found.se == pytest.approx(math.sqrt(25 * found.pointwise.var()))


def exact_with_all():
    mean, sd = posterior(Y)
    variance = 1 + sd**2
    return -0.5 * (np.log(2 * math.pi * variance) + (Y - mean) ** 2 / variance)


@pytest.mark.skipif(not _arviz.ARVIZ_1, reason="ArviZ 0.x has no such function")
def test_loo_is_arvizs_own(off):
    import arviz_stats

    container, ours = off.to_arviz(4_000), pyrovi.loo(off, draws=4_000)
    stats = container["sample_stats"]
    theirs = arviz_stats.loo_approximate_posterior(container, stats["lp"].values[0], stats["log_q"].values[0], pointwise=True)
    assert ours.elpd == pytest.approx(theirs.elpd, abs=1e-6)
    assert ours.pareto_k == pytest.approx(theirs.pareto_k.values, abs=1e-6)


def test_a_fit_loaded_without_its_model_is_scored_by_its_stored_draws(off, tmp_path):
    off.save(tmp_path / "run", draws=3_000)
    loaded = pyrovi.load(tmp_path / "run")
    assert loaded.problem is None
    found = pyrovi.loo(loaded)
    assert found.draws == 3_000
    assert found.elpd == pytest.approx(exact().sum(), abs=0.1)


def test_of_several_observed_sites_one_has_to_be_named():
    def two(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)
            pyro.sample("z", dist.Normal(w, 2.0), obs=y)

    fit = pyrovi.fit(two, "normal", {"y": Y}, steps=2, progress=False)
    with pytest.raises(pyrovi.SettingsError, match="observes y, z; say which"):
        pyrovi.loo(fit)
    with pytest.raises(pyrovi.SettingsError, match="'x' is not observed; known: y, z"):
        pyrovi.loo(fit, site="x")
    assert pyrovi.loo(fit, site="z", draws=100).pointwise.shape == (25,)


def test_a_point_estimate_has_no_loo():
    fit = pyrovi.fit(model, "delta", {"y": Y}, steps=2, progress=False)
    with pytest.raises(pyrovi.PyroviError, match="point estimate"):
        pyrovi.loo(fit)


def test_a_q_that_is_far_off_is_told_by_its_k_hats():
    mean, sd = posterior(Y)
    found = pyrovi.loo(at(mean + 3 * sd, 0.4 * sd))
    assert found.warning
    assert "have a k-hat above 0.70: their share of the elpd is not to be relied on" in repr(found)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 with pandas 3
def test_models_are_compared_by_arviz(off):
    other = replace(pyrovi.loo(off), elpd=pyrovi.loo(off).elpd - 25, pointwise=pyrovi.loo(off).pointwise - 1)
    table = _arviz.arviz().compare({"better": pyrovi.loo(off).to_arviz(), "worse": other.to_arviz()})
    assert list(table.index) == ["better", "worse"]
    assert table["elpd_diff"].abs().iloc[1] == pytest.approx(25, abs=0.1)
