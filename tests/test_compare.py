"""`compare`: right to its stated errors where the answer is known in closed form."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyrovi
from pyrovi import _arviz
from pyrovi.export import dataset
from pyrovi.models import normal_mean
from pyrovi.sample import Sample

DATA = normal_mean.load()
EXACT = normal_mean.exact(**DATA)


def held_at(loc, scale):
    """A fit whose guide is Normal(loc, scale) and does not move."""

    def guide():
        pyro.param("unused", torch.tensor(0.0))
        pyro.sample("w", dist.Normal(torch.tensor(float(loc)), torch.tensor(float(scale))))

    return pyrovi.fit(normal_mean.model, guide, DATA, steps=1, dtype="float64")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("shift", "widen"), [(0.0, 1.0), (1.0, 1.0), (0.0, 2.0), (-0.5, 0.6)])
def test_kl_and_its_standard_error_are_right(shift, widen, seed):
    """KL of two Normals is log(s_p/s_q) + (s_q² + d²)/(2 s_p²) − ½; the estimate is within 4 of its standard errors."""
    p = EXACT.marginals["w"]
    fit = held_at(p.mean() + shift * p.std(), widen * p.std())
    kl = pyrovi.compare(fit, EXACT, draws=4_000, seed=seed).attrs["kl"]
    expected = -np.log(widen) + (widen**2 + shift**2) / 2 - 0.5
    assert abs(kl.value - expected) < 4 * kl.se + 1e-6
    if shift or widen != 1:
        assert 0.001 < kl.se < 0.1


def test_the_standard_error_is_the_spread_of_the_estimate():
    """Over 60 seeds the estimates' sd is the stated standard error, within 4 of its own (1/√120)."""
    p = EXACT.marginals["w"]
    fit = held_at(p.mean() + p.std(), 1.5 * p.std())
    kls = [pyrovi.compare(fit, EXACT, draws=500, seed=seed).attrs["kl"] for seed in range(60)]
    spread = np.std([kl.value for kl in kls], ddof=1)
    assert spread == pytest.approx(np.mean([kl.se for kl in kls]), rel=4 / 120**0.5)


def test_every_column_means_what_it_says():
    p = EXACT.marginals["w"]
    q = stats.norm(p.mean() + 0.5 * p.std(), 1.5 * p.std())
    row = pyrovi.compare(held_at(q.mean(), q.std()), EXACT, draws=200_000).loc["w"]
    assert row["error"] == pytest.approx(0.5, abs=0.015)
    assert row["sd_ratio"] == pytest.approx(1.5, rel=0.01)
    assert row["mean_ref"] == p.mean()
    assert row["sd_ref"] == p.std()
    for name, probability in (("5%", 0.05), ("50%", 0.5), ("95%", 0.95)):
        assert row[name] == pytest.approx(q.ppf(probability), abs=0.01 * q.std())
        assert row[f"{name}_ref"] == p.ppf(probability)
    grid = (np.arange(100_000) + 0.5) / 100_000
    assert row["wasserstein"] == pytest.approx(np.abs(q.ppf(grid) - p.ppf(grid)).mean() / p.std(), abs=0.02)


def test_fits_and_arviz_containers_are_references_too():
    fit, other = held_at(0.0, 1.0), held_at(1.0, 2.0)
    against_fit = pyrovi.compare(fit, other, draws=50_000)
    assert against_fit.loc["w", "error"] == pytest.approx(-0.5, abs=0.02)
    assert "kl" not in against_fit.attrs
    against_container = pyrovi.compare(fit, other.to_arviz(50_000), draws=50_000)
    assert against_container.loc["w", "sd_ratio"] == pytest.approx(0.5, abs=0.02)
    assert _arviz.groups(other.to_arviz(5))


def test_a_point_estimate_has_no_kl():
    fit = pyrovi.fit(normal_mean.model, "delta", DATA, steps=5)
    assert not {"kl", "elbo"} & set(pyrovi.compare(fit, EXACT, draws=10).attrs)


def test_what_cannot_be_compared_says_so():
    fit = held_at(0.0, 1.0)
    with pytest.raises(pyrovi.SettingsError, match="got int"):
        pyrovi.compare(fit, 3)
    other = pyrovi.recipe("gamma_poisson")
    with pytest.raises(pyrovi.PyroviError, match="nothing to compare: the fit has w, the reference theta"):
        pyrovi.compare(fit, other.exact(**other.load()))


def test_elements_of_a_matrix_are_named():
    fit = pyrovi.recipe("gamma_poisson").fit(steps=2, particles=2)
    recipe = pyrovi.recipe("gamma_poisson")
    assert list(pyrovi.compare(fit, recipe.exact(**recipe.load()), draws=50).index[:2]) == ["theta[0]", "theta[1]"]


def chains(x, diverging=None):
    """An ArviZ container of chains of `w`, shape `(chains, draws)`."""
    groups = {"posterior": dataset({"w": x}, {}, {})}
    if diverging is not None:
        groups["sample_stats"] = dataset({"diverging": diverging}, {}, {})
    return _arviz.container(groups, {})


def normal_chains(seed=0, shape=(4, 1_000), correlation=0.0):
    """Autoregressive draws of the exact posterior."""
    e = np.random.default_rng(seed).normal(size=shape)
    for t in range(1, shape[1]):
        e[:, t] = correlation * e[:, t - 1] + (1 - correlation**2) ** 0.5 * e[:, t]
    p = EXACT.marginals["w"]
    return p.mean() + p.std() * e


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (chains(normal_chains() + 0.1 * np.arange(4)[:, None]), "r-hat 1.[0-9]{3} of 'w', above 1.01"),
        (chains(normal_chains(shape=(4, 80))), "bulk ESS [0-9]+ of 'w', below 400, tail ESS [0-9]+ of 'w', below 400"),
        (chains(normal_chains(), np.arange(4_000).reshape(4, 1_000) == 7), "1 divergence;"),
        (chains(normal_chains(), np.arange(4_000).reshape(4, 1_000) < 9), "9 divergences"),
        (chains(normal_chains(shape=(1, 2_000)), np.zeros((1, 2_000), bool)), "one chain only"),
    ],
)
def test_chains_that_have_not_converged_are_no_reference(container, reason):
    fit = held_at(0.0, 1.0)
    with pytest.raises(pyrovi.PyroviError, match=reason):
        pyrovi.compare(fit, container, draws=100)
    assert len(pyrovi.compare(fit, container, draws=100, force=True)) == 1


def test_clean_chains_are_a_reference():
    table = pyrovi.compare(held_at(0.0, 1.0), chains(normal_chains(), np.zeros((4, 1_000), bool)), draws=1_000)
    assert table.loc["w", "mean_ref"] == pytest.approx(EXACT.mean()["w"], abs=0.01)


def test_the_stated_noise_is_the_spread_over_seeds():
    """Against chains with an autocorrelation of 0.8, so worth a ninth of their number; over 60 seeds the errors' sds are the stated
    ones within 4 of their own standard errors, 1/√120, and a tenth more for the error of an effective size of 440."""
    p = EXACT.marginals["w"]
    fit = held_at(p.mean() + 0.3 * p.std(), 0.8 * p.std())
    rows = [
        pyrovi.compare(fit, chains(normal_chains(seed, correlation=0.8)), draws=500, seed=seed, force=True).loc["w"]
        for seed in range(60)
    ]
    for value, stated in (("error", "error_se"), ("sd_ratio", "sd_ratio_se")):
        spread = np.std([row[value] for row in rows], ddof=1)
        assert spread == pytest.approx(np.mean([row[stated] for row in rows]), rel=4 / 120**0.5 + 0.1)
    assert np.mean([row["error"] for row in rows]) == pytest.approx(0.3, abs=0.03)


def test_of_an_exact_reference_only_the_fit_is_noisy():
    p = EXACT.marginals["w"]
    row = pyrovi.compare(held_at(p.mean(), 2 * p.std()), EXACT, draws=10_000).loc["w"]
    assert row["error_se"] == pytest.approx(2 / 100, rel=0.05)
    assert row["sd_ratio_se"] == pytest.approx(2 / 2**0.5 / 100, rel=0.1)
    assert abs(row["error"]) < 4 * row["error_se"]


def test_of_two_fits_the_elbos_differ_by_the_difference_of_their_divergences():
    p = EXACT.marginals["w"]
    near, far = (held_at(p.mean() + shift * p.std(), p.std()) for shift in (0.0, 1.0))
    attrs = pyrovi.compare(far, near, draws=4_000).attrs
    difference = attrs["elbo_ref"].value - attrs["elbo"].value
    assert difference == pytest.approx(0.5, abs=4 * np.hypot(attrs["elbo"].se, attrs["elbo_ref"].se))


def test_a_user_s_own_conjugate_model_has_a_reference_too():
    fit = held_at(0.0, 1.0)
    own, byhand = (pyrovi.compare(fit, exact, draws=500) for exact in (pyrovi.exact(normal_mean.model, DATA), EXACT))
    assert own.attrs["kl"].value == pytest.approx(byhand.attrs["kl"].value, abs=1e-9)


def test_weighted_draws_are_judged_as_the_fit_gives_them_and_are_worth_no_more_than_their_weights():
    """q is a sd off, its weighted draws are not; the ELBO, and the KL with it, remain q's: half a nat."""
    p = EXACT.marginals["w"]
    fit = held_at(p.mean() + p.std(), 1.2 * p.std())
    w = np.random.default_rng(0).normal(p.mean() + p.std(), 1.2 * p.std(), 4_000)
    weights = p.pdf(w) / stats.norm(p.mean() + p.std(), 1.2 * p.std()).pdf(w)
    weights /= weights.sum()
    sample = Sample({"w": torch.from_numpy(w)}, "importance-resampled", weights)
    table = pyrovi.compare(replace(fit, sample=sample), EXACT, draws=50_000)
    row = table.loc["w"]
    assert row["error_se"] == pytest.approx((weights**2).sum() ** 0.5 * row["sd_ratio"], rel=1e-6)
    assert abs(row["error"]) < 4 * row["error_se"] < 0.2
    assert table.attrs["kl"].value == pytest.approx(-np.log(1.2) + (1.44 + 1) / 2 - 0.5, abs=4 * table.attrs["kl"].se)
