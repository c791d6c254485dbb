"""Poisson factorization: the model, coordinate ascent and its bound, SVI's plain ELBO above both, batches, masks, ratings."""

import functools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from scipy.special import digamma, gammaln

import pyrovi
from pyrovi._isolation import isolated
from pyrovi.guides.poisson_factorization import guide, least_shape
from pyrovi.models import poisson_factorization as recipe
from pyrovi.models.poisson_factorization import coordinate_ascent, elbo, model
from pyrovi.preflight import prepare

N, M, K = 60, 12, 3


def toy(n=N, m=M, k=K, seed=0):
    """Counts of the model's own making, with shapes of 0.6 so that rows are mostly of one factor."""
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.6, 2.0, (n, k)) @ rng.gamma(0.6, 1.5, (k, m))).astype(float)


TOY = toy()
FAST = {"steps": 600, "lr": 0.2, "schedule": "cosine", "stop": None}


def svi(x, k=K, *, start=None, **settings):
    data = {"x": x, "K": k, **settings.pop("data", {})}
    return pyrovi.fit(model, functools.partial(guide, start=start) if start is not None else guide, data, **{**FAST, **settings})


def test_coordinate_ascent_updates_and_bound_are_those_with_the_allocations_written_out():
    """One iteration against phi as an n·m·K array, and the bound term by term with its multinomials' entropy."""
    x, a, b, c, d = toy(7, 5, 2, seed=1), 0.4, 0.7, 0.5, 0.9
    one, two = (coordinate_ascent(x, 2, a, b, c, d, iterations=i, tol=-1.0) for i in (1, 2))

    def logs(q, name):
        return digamma(getattr(q, f"{name}_shape")) - np.log(getattr(q, f"{name}_rate"))

    def phi(log_theta, log_beta):
        weights = np.exp(log_theta.T[:, None, :] + log_beta.T[None, :, :])
        return weights / weights.sum(-1, keepdims=True)

    allocated = x[..., None] * phi(logs(one, "theta"), logs(one, "beta"))
    assert np.allclose(two.theta_shape, a + allocated.sum(1).T)
    assert np.allclose(two.theta_rate, (b + (one.beta_shape / one.beta_rate).sum(1))[:, None])
    allocated = x[..., None] * phi(logs(two, "theta"), logs(one, "beta"))
    assert np.allclose(two.beta_shape, c + allocated.sum(0).T)
    assert np.allclose(two.beta_rate, (d + (two.theta_shape / two.theta_rate).sum(1))[:, None])

    p = phi(logs(two, "theta"), logs(two, "beta"))
    z = x[..., None] * p
    log_mean = logs(two, "theta").T[:, None, :] + logs(two, "beta").T[None, :, :]
    # E log p(z | theta, beta) − E log q(z | x); the factorials of z cancel against those of the multinomial, but for x's own.
    bound = (z * log_mean).sum() - (z * np.log(p)).sum() - gammaln(x + 1).sum()
    bound -= ((two.theta_shape / two.theta_rate).T @ (two.beta_shape / two.beta_rate)).sum()
    for name, prior in (("theta", (a, b)), ("beta", (c, d))):
        q = [torch.tensor(getattr(two, f"{name}_{part}")) for part in ("shape", "rate")]
        gammas = torch.distributions.Gamma(*q), torch.distributions.Gamma(*(torch.tensor(v, dtype=torch.float64) for v in prior))
        bound -= torch.distributions.kl_divergence(*gammas).sum().item()
    assert two.bound[-1] == pytest.approx(bound, rel=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_coordinate_ascent_never_lowers_its_bound(masked):
    for seed in range(5):
        observed = np.random.default_rng(seed).random(TOY.shape) < 0.7 if masked else None
        bound = coordinate_ascent(TOY, K, observed=observed, seed=seed, tol=0.0, iterations=300).bound
        assert np.diff(bound).min() > -1e-9 * abs(bound[-1])


def test_with_one_factor_there_is_nothing_to_allocate_and_the_bound_is_the_plain_elbo():
    q = coordinate_ascent(TOY, 1)
    plain = elbo(TOY, q, draws=1_000)
    assert abs(plain.value - q.bound[-1]) < 4 * plain.se
    assert plain.se < 0.5


def test_unobserved_entries_say_nothing():
    observed = np.random.default_rng(3).random(TOY.shape) < 0.8
    other = np.where(observed, TOY, 9.0)
    one, two = (coordinate_ascent(x, K, observed=observed) for x in (TOY, other))
    assert np.array_equal(one.theta_shape, two.theta_shape)
    assert elbo(TOY, one, observed=observed).value == elbo(other, one, observed=observed).value
    fits = [svi(x, data={"observed": observed}, steps=50) for x in (TOY, other)]
    assert torch.equal(fits[0].parameters["beta_rate"], fits[1].parameters["beta_rate"])
    here, there = elbo(TOY, fits[0].parameters, observed=observed, draws=1_000), fits[0].estimate_elbo(1_000)
    assert abs(here.value - there.value) < 4 * np.hypot(here.se, there.se)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_elbo_in_numpy_is_the_one_in_pyro(dtype):
    """At coordinate ascent's q: one step of a rate next to nothing leaves the start where it is. 4 standard errors."""
    q = coordinate_ascent(TOY, K)
    fit = svi(TOY, start=q, steps=1, lr=1e-12, schedule=None, dtype=dtype)
    for name, value in fit.parameters.items():
        assert np.allclose(value, getattr(q, name), rtol=1e-5)
    here, there = elbo(TOY, q, draws=4_000), fit.estimate_elbo(4_000)
    assert abs(here.value - there.value) < 4 * np.hypot(here.se, there.se)


def test_augmented_bound_is_below_the_plain_elbo_of_its_q_and_that_below_svi():
    """On the toy, three seeds each; SVI from random starts and from coordinate ascent's solution. Gaps of 4 standard errors."""
    climbed = [coordinate_ascent(TOY, K, seed=seed) for seed in range(3)]
    plain = [elbo(TOY, q, draws=1_000) for q in climbed]
    for q, estimate in zip(climbed, plain, strict=True):
        assert q.bound[-1] < estimate.value - 4 * estimate.se
    best = max(plain, key=lambda estimate: estimate.value)
    assert recipe.reference(TOY, K, draws=1_000) == best
    fits = [svi(TOY, seed=seed) for seed in range(3)] + [svi(TOY, start=climbed[0])]
    reached = [elbo(TOY, fit.parameters, draws=1_000) for fit in fits]
    assert min(estimate.value for estimate in reached) > best.value + 4 * best.se


@pytest.mark.slow
@pytest.mark.parametrize(("factors", "low", "high"), [(10, -242_100, -239_300), (20, -235_600, -231_800)])
def test_on_the_digits_svi_is_above_every_coordinate_ascent_and_that_is_in_the_measured_range(factors, low, high):
    """Seeds 0 to 2 of both. The range is of bounds measured elsewhere, given to 100 nats."""
    x = recipe.load()["x"]
    climbed = [coordinate_ascent(x, factors, seed=seed) for seed in range(3)]
    for q in climbed:
        assert low <= round(q.bound[-1], -2) <= high
    best = max((elbo(x, q, draws=100) for q in climbed), key=lambda estimate: estimate.value)
    for seed in range(3):
        fit = pyrovi.recipe("poisson_factorization").fit({"x": x, "K": factors}, seed=seed)
        reached, own = elbo(x, fit.parameters, draws=100), fit.estimate_elbo(100)
        assert reached.value > best.value + 4 * np.hypot(reached.se, best.se)
        assert abs(reached.value - own.value) < 4 * np.hypot(reached.se, own.se)


def test_on_the_zeros_svi_is_above_coordinate_ascent():
    data = recipe.load(0)
    fit = svi(data["x"], 10)
    reached, climbed = elbo(data["x"], fit.parameters), recipe.reference(data["x"], 10)
    assert reached.value > climbed.value + 4 * np.hypot(reached.se, climbed.se)


def test_a_single_factor_next_to_known_is_the_conjugate_posterior():
    """With beta's prior piled on 1, theta_u | x_u is Gamma(a + Σx, b + m) and the evidence a product of compound Poissons."""
    (n, m), sure = (30, 4), 1e4
    x, first = toy(n, m, 1), {"theta": np.full((1, n), 5.0), "beta": np.full((1, m), sure)}
    start = SimpleNamespace(**{f"{name}_{part}": value for name, value in first.items() for part in ("shape", "rate")})
    data = {"a": 0.8, "b": 0.5, "c": sure, "d": sure}
    fit = svi(x, 1, start=start, data=data, particles=32, steps=2_000, lr=0.05, schedule="cosine", dtype="float64")
    shape, rate = 0.8 + x.sum(1), 0.5 + m
    mean = (fit.parameters["theta_shape"][0] / fit.parameters["theta_rate"][0]).flatten().numpy()
    assert (np.abs(mean - shape / rate) < 0.1 * np.sqrt(shape) / rate).all()
    assert np.allclose(fit.parameters["theta_shape"][0].sqrt() / fit.parameters["theta_rate"][0], np.sqrt(shape) / rate, rtol=0.05)
    evidence = (0.8 * np.log(0.5) - gammaln(0.8) + gammaln(shape) - shape * np.log(rate)).sum() - gammaln(x + 1).sum()
    reached = fit.estimate_elbo(4_000)
    assert abs(reached.value - evidence) < 0.5 + 4 * reached.se


def test_particles_are_vectorised_with_every_argument():
    observed = np.random.default_rng(0).random(TOY.shape) < 0.5
    learned = {"c": np.full((K, 1, M), 2.0), "d": np.full((K, 1, M), 1.0)}
    for data in ({}, {"observed": observed}, learned):
        assert svi(TOY, data=data, steps=3, particles=4).settings["vectorized"]
        assert svi(TOY, data=data, steps=3, particles=4, batch_size=25).settings["vectorized"]


@pytest.mark.parametrize("masked", [False, True])
def test_one_pass_over_batches_has_the_elbo_of_the_full_batch(masked):
    """Both sides at given latents, so they are equal to rounding; the last batch has ten rows of the 25."""
    data = {"x": TOY, "K": K, **({"observed": np.random.default_rng(0).random(TOY.shape) < 0.7} if masked else {})}
    values = {"theta": torch.rand(K, N, 1) + 0.1, "beta": torch.rand(K, 1, M) + 0.1}

    def log_prob(program, rows, arguments):
        given = {"theta": values["theta"][:, rows], "beta": values["beta"]}
        return poutine.trace(poutine.condition(program, data=given)).get_trace(**arguments).log_prob_sum().item()

    def prepared(size):
        return prepare(model, guide, data, dtype=torch.float32, device=torch.device("cpu"), batch_size=size)

    with isolated(0, torch.float32):
        problem = prepared(25)
        batched = problem.batched()
        assert problem.batches.plate == "row"
        assert problem.batches.parameters == {"theta_shape": 1, "theta_rate": 1}
        sizes, log_p, log_q = [], 0.0, 0.0
        for i in range(problem.batches.steps_per_epoch):
            batched.take(batched.rows(i))
            sizes.append(batched.count)
            log_p += batched.count / N * log_prob(batched.model, batched.indices, {})
            log_q += batched.count / N * log_prob(batched.guide, batched.indices, {})
        assert sizes == [25, 25, 10]
        assert log_p == pytest.approx(log_prob(problem.model, torch.arange(N), problem.data), rel=1e-5)
        assert log_q == pytest.approx(log_prob(problem.guide, torch.arange(N), problem.data), rel=1e-5)


def test_one_pass_over_batches_has_the_expected_elbo_of_the_full_batch():
    """The same with the guide's own draws: the weighted mean over a pass, 300 passes, against 900 full ELBOs; 4 standard errors."""
    start = coordinate_ascent(TOY, K)
    programs = model, functools.partial(guide, start=start), {"x": TOY, "K": K}
    loss = pyro.infer.Trace_ELBO()
    with isolated(0, torch.float32):
        problem = prepare(*programs, dtype=torch.float32, device=torch.device("cpu"), batch_size=25)
        batched = problem.batched()
        passes = []
        for _ in range(300):
            total = 0.0
            for i in range(problem.batches.steps_per_epoch):
                batched.take(batched.rows(i))
                total -= batched.count / N * loss.loss(batched.model, batched.guide)
            passes.append(total)
        full = [-loss.loss(problem.model, problem.guide, **problem.data) for _ in range(900)]
    error = np.hypot(np.std(passes) / 300**0.5, np.std(full) / 900**0.5)
    assert abs(np.mean(passes) - np.mean(full)) < 4 * error
    assert error < 1.0


def test_batches_reach_the_full_fit():
    """Within 2% of the ELBO, for a third of the rows a step and twice the steps."""
    whole, batched = svi(TOY, seed=1), svi(TOY, seed=1, batch_size=20, steps=1_200)
    one, other = (elbo(TOY, fit.parameters, draws=1_000).value for fit in (whole, batched))
    assert other > one - 0.02 * abs(one)
    assert batched.settings["batch_data"] == ["x"]


@pytest.mark.parametrize("prior", [0.3, 0.01])
def test_float32_survives_shapes_that_underflow(prior):
    """Rows and columns of zeros, a count of 100,000, and a prior half of whose draws float32 cannot hold.

    Its own ELBO must be the one that float64 gives the same q: draws below the smallest float are what would raise it for nothing.
    """
    x = toy(40, 8, 2)
    x[:5], x[:, :2], x[7, 5] = 0.0, 0.0, 100_000.0
    data = {name: prior for name in "abcd"}
    fit = svi(x, 4, data=data)
    assert fit.status is not pyrovi.Status.diverged
    assert np.isfinite(fit.elbo).all()
    assert min(fit.parameters[f"{name}_shape"].min() for name in ("theta", "beta")) >= least_shape(torch.float32)
    own, other = fit.estimate_elbo(2_000), elbo(x, fit.parameters, *[prior] * 4, draws=1_000)
    assert abs(own.value - other.value) < 4 * np.hypot(own.se, other.se)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_of_the_least_shape_stay_above_the_smallest_float(dtype):
    """E log of 100,000 draws is the digamma function to 4 standard errors, where at a tenth of that shape it is off by a third."""
    torch.manual_seed(0)
    for share, is_right in ((1.0, True), (0.1, False)):
        shape = share * least_shape(dtype)
        logs = torch.distributions.Gamma(torch.tensor(shape, dtype=dtype), 1.0).sample((100_000,)).double().log().numpy()
        if is_right:
            assert abs(logs.mean() - digamma(shape)) < 4 * logs.std() / 100_000**0.5
        else:
            assert logs.mean() > 0.75 * digamma(shape)


def test_ratings_become_a_matrix_with_names():
    table = pd.DataFrame({"who": ["b", "a", "a", "b"], "what": [3, 1, 3, 3], "plays": [2, 5, 1, 4]})
    names = {"user": "who", "item": "what", "count": "plays"}
    found = recipe.ratings(table, **names)
    assert found.data["x"].tolist() == [[5, 1], [0, 6]]
    assert found.coords == {"row": ["a", "b"], "column": [1, 3]}
    seen = recipe.ratings(table, **names, missing="unobserved")
    assert seen.data["observed"].tolist() == [[True, True], [False, True]]


def test_ratings_from_a_file_are_fitted_and_exported_with_their_names(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"user": rng.choice(list("abcdefgh"), 80), "item": rng.choice(list("uvwxyz"), 80), "count": rng.poisson(3.0, 80)}
    )
    table.to_csv(tmp_path / "plays.csv", index=False)
    found = recipe.ratings(tmp_path / "plays.csv", missing="unobserved")
    assert np.array_equal(recipe.load(table=tmp_path / "plays.csv")["x"], found.data["x"])
    fit = pyrovi.fit(model, guide, {**found.data, "K": 2}, steps=100, lr=0.1, stop=None)
    posterior = fit.to_arviz(50, coords=found.coords).posterior
    assert posterior["theta"].sel(row="a").dims == ("chain", "draw", "factor")
    assert posterior["beta"].sel(column="u").sizes["factor"] == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": [1.5, 2.0]}, "must hold counts"),
        ({"count": [-1, 2]}, "must hold counts"),
        ({"count": ["many", "few"]}, "does not hold numbers"),
        ({"user": [None, "b"]}, "'user' has 1 missing"),
        ({"stars": [1, 2]}, "no column 'count'"),
    ],
)
def test_ratings_that_are_no_counts_are_refused_in_a_sentence(change, sentence):
    table = pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "count": [1, 2], **change})
    if "stars" in change:
        table = table.drop(columns="count")
    with pytest.raises(pyrovi.DataError, match=sentence):
        recipe.ratings(table)


def test_what_is_not_a_matrix_of_counts_is_refused():
    with pytest.raises(pyrovi.DataError, match="matrix of counts"):
        coordinate_ascent([[1.0, -2.0]], 2)
    with pytest.raises(pyrovi.DataError, match="observed has shape"):
        elbo(TOY, coordinate_ascent(TOY, 2, iterations=2), observed=np.ones((2, 2)))
    with pytest.raises(pyrovi.PyroviError, match="matrix of counts"):
        pyrovi.fit(model, guide, {"x": np.ones((3, 8, 8))}, steps=1)
    with pytest.raises(pyrovi.DataError, match="whose values are counts"):
        pyrovi.fit(model, guide, {"x": TOY + 0.5}, steps=1)
    with pytest.raises(pyrovi.DataError, match="cannot be read"):
        recipe.load(table="no/such/plays.csv")
    with pytest.raises(pyrovi.SettingsError, match="'zero' or 'unobserved'"):
        recipe.ratings(pd.DataFrame(), missing="mean")


def test_predictions_of_the_same_rows_and_of_new_ones():
    fit = svi(TOY)
    same = fit.predictive(400)["x"].numpy()
    assert same.shape == (400, N, M)
    assert np.abs(same.mean(0) - TOY).mean() < 0.5 * np.abs(TOY.mean(0) - TOY).mean()  # rows have means of their own
    new = fit.predictive(50, data={"shape": (7, M)}, redraw=["theta"])["x"]
    assert new.shape == (50, 7, M)


def test_new_rows_meet_the_factors_that_were_learned():
    """q(beta) of the first fit is the second's prior; half of every new row is predicted better than with a fresh prior."""
    everything = toy(240, M, K, seed=2)
    old, new = everything[:200], everything[200:]
    observed = np.random.default_rng(1).random(new.shape) < 0.5
    first = svi(old, steps=800)
    learned = {"c": first.parameters["beta_shape"].unsqueeze(-2), "d": first.parameters["beta_rate"].unsqueeze(-2)}

    def held_out(data):
        drawn = svi(new, data={"observed": observed, **data}, steps=800).posterior_arrays(300)
        return recipe.log_predictive(new, drawn["theta"], drawn["beta"])[~observed].mean()

    assert held_out(learned) > held_out({}) + 0.02


def test_factors_are_images_free_of_scale_that_add_up_to_the_average_row():
    rng = np.random.default_rng(0)
    theta, beta = rng.gamma(1.0, size=(K, N)), rng.gamma(1.0, size=(K, M))
    scale = np.array([[3.0], [0.1], [7.0]])
    one, other = recipe.factors(theta, beta), recipe.factors(theta * scale, beta / scale)
    assert np.allclose(one.images, other.images)
    assert np.allclose(one.images.sum(0), (theta.T @ beta).mean(0))
    assert one.share.sum() == pytest.approx(1.0)
    assert (np.diff(one.share) <= 0).all()
    assert np.allclose(one.images, (theta.mean(1)[:, None] * beta)[one.order])
    drawn = recipe.factors(np.stack([theta, theta]), np.stack([beta, beta]))
    assert np.allclose(drawn.images, one.images)


def test_log_predictive_is_the_mixture_of_poissons():
    """One factor, theta at 1: a Poisson mixed over a Gamma is negative binomial. 40,000 draws, 4 standard errors are below 0.03."""
    draws = np.random.default_rng(0).gamma(3.0, 1 / 1.5, size=(40_000, 1, 1))
    found = recipe.log_predictive(np.array([[4.0]]), np.ones_like(draws), draws)
    assert found[0, 0] == pytest.approx(stats.nbinom(3.0, 1.5 / 2.5).logpmf(4), abs=0.03)


def test_an_automatic_guide_fits_it_too():
    fit = svi(TOY)
    auto = pyrovi.fit(model, "normal", {"x": TOY, "K": K}, particles=4, **{**FAST, "lr": 0.05})
    assert auto.settings["vectorized"]
    assert auto.estimate_elbo(500).value == pytest.approx(fit.estimate_elbo(500).value, rel=0.1)


def test_the_recipe_runs_at_a_small_size():
    fit = pyrovi.recipe("poisson_factorization").fit({**recipe.load(3), "K": 4}, steps=60)
    assert fit.recipe == "poisson_factorization"
    assert fit.parameters["theta_shape"].shape == (4, 183)
    assert recipe.load()["x"].shape == (1_797, 64)
