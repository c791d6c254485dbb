"""`exact` on a user's own model: the closed form to rounding where there is one, the site and the reason where there is none."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from scipy.special import betaln, gammaln

import pyrovi

RNG = np.random.default_rng(0)
SCHOOLS = {"y": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), "s": np.array([15.0, 10, 16, 11, 9, 11, 10, 18])}


def agree(found, expected):
    assert found.log_evidence == pytest.approx(expected.log_evidence, rel=1e-8, abs=1e-8)
    assert set(found.marginals) == set(expected.marginals)
    for name, marginal in expected.marginals.items():
        mine, sd = found.marginals[name], np.asarray(marginal.std())
        assert np.shape(mine.mean()) == np.shape(marginal.mean())
        for value, reference in [(mine.mean(), marginal.mean())] + [(mine.ppf(p), marginal.ppf(p)) for p in (0.05, 0.5, 0.95)]:
            assert np.all(np.abs(value - reference) <= 1e-8 * (sd + np.abs(reference)))
        assert np.allclose(mine.std(), sd, rtol=1e-8)
    for name, covariance in expected.covariance.items():
        assert np.allclose(found.covariance[name], covariance, rtol=1e-7, atol=1e-9 * np.abs(covariance).max())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("normal_mean", {}),
        ("normal_mean", {"prior_mean": 3.0, "prior_sd": 0.1, "noise": 4.0}),
        ("linear_regression", {}),
        ("linear_regression", {"noise": None}),
        ("gamma_poisson", {}),
        ("local_level", {"level_sd": 38.33, "noise_sd": 122.9}),
        ("latent_outcome", {}),
        ("bayesian_neural_network", {"widths": ()}),
    ],
)
def test_recipes_have_the_posterior_that_was_worked_out_by_hand(name, settings):
    recipe = pyrovi.recipe(name)
    data = {**recipe.load(), **settings}
    agree(pyrovi.exact(recipe.model, data), recipe.exact(**data))


def test_a_hierarchy_with_known_scales_is_one_gaussian():
    """Against the dense route: condition the joint Normal of (mu, theta, y) on y."""

    def model(y, s):
        mu = pyro.sample("mu", dist.Normal(1.0, 5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 6.0))
            pyro.sample("y", dist.Normal(theta, s), obs=y)

    found, (y, s) = pyrovi.exact(model, SCHOOLS), SCHOOLS.values()
    prior = 25.0 * np.ones((9, 9)) + np.diag([0.0] + [36.0] * 8)
    marginal = prior[1:, 1:] + np.diag(s**2)
    gain = prior[:, 1:] @ np.linalg.inv(marginal)
    mean, covariance = 1 + gain @ (y - 1), prior - gain @ prior[1:]
    assert found.log_evidence == pytest.approx(stats.multivariate_normal(np.ones(8), marginal).logpdf(y), rel=1e-10)
    assert np.allclose([found.mean()["mu"], *found.mean()["theta"]], mean, rtol=1e-10)
    assert np.allclose([found.sd()["mu"], *found.sd()["theta"]], np.sqrt(np.diag(covariance)), rtol=1e-10)
    assert np.allclose(found.covariance["theta"], covariance[1:, 1:], rtol=1e-9)
    assert np.allclose(found.cross_covariance["mu", "theta"], covariance[:1, 1:], rtol=1e-9)
    draws = found.draws(100_000)
    drawn = np.cov(np.c_[draws["mu"], draws["theta"]].T)
    assert np.allclose(drawn, covariance, atol=5 * np.sqrt(2 / 100_000) * covariance.max())


def test_a_non_centred_hierarchy_has_the_same_evidence_as_the_centred_one():
    def model(y, s, centred):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("schools", len(y)):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, 6.0))
            else:
                theta = pyro.deterministic("theta", mu + 6.0 * pyro.sample("z", dist.Normal(0.0, 1.0)))
            pyro.sample("y", dist.Normal(theta, s), obs=y)

    centred, other = (pyrovi.exact(model, {**SCHOOLS, "centred": c}) for c in (True, False))
    assert centred.log_evidence == pytest.approx(other.log_evidence, rel=1e-11)
    assert centred.mean()["mu"] == pytest.approx(other.mean()["mu"], rel=1e-9)
    assert centred.mean()["theta"] == pytest.approx(other.mean()["mu"] + 6 * other.mean()["z"], rel=1e-9)


def test_predictors_in_raw_units_keep_their_digits():
    """Scales from 1e-3 to 1e6, an intercept far from 0; against least squares on the scaled problem."""
    X = RNG.normal(size=(200, 4)) * [1e-3, 1.0, 1e3, 1e6] + [0.0, 50.0, 0.0, 3e6]
    y = 1e5 + X @ [2e4, 1.0, 3e-2, 1e-5] + RNG.normal(size=200)

    def model(X, y):
        a = pyro.sample("a", dist.Normal(0.0, 1e6))
        b = pyro.sample("b", dist.Normal(0.0, torch.tensor([1e5, 1e2, 1.0, 1e-3])).to_event(1))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(a + X @ b, 1.0), obs=y)

    found, unit = pyrovi.exact(model, {"X": X, "y": y}), np.array([1e6, 1e5, 1e2, 1.0, 1e-3])
    design = np.c_[np.ones(200), X] * unit
    stacked = np.linalg.lstsq(np.r_[design, np.eye(5)], np.r_[y, np.zeros(5)], rcond=None)[0]
    sd = unit * np.sqrt(np.diag(np.linalg.inv(design.T @ design + np.eye(5))))
    assert np.allclose(np.r_[found.sd()["a"], found.sd()["b"]], sd, rtol=1e-6)
    assert np.all(np.abs(np.r_[found.mean()["a"], found.mean()["b"]] - unit * stacked) < 1e-6 * sd)
    rotation = np.linalg.qr(np.r_[design, np.eye(5)], mode="r")
    residual = np.r_[y, np.zeros(5)] - np.r_[design, np.eye(5)] @ stacked
    evidence = -100 * np.log(2 * np.pi) - np.log(np.abs(np.diag(rotation))).sum() - residual @ residual / 2
    assert found.log_evidence == pytest.approx(evidence, abs=1e-6)


def test_a_random_walk_written_site_by_site_is_the_local_level_model():
    recipe = pyrovi.recipe("local_level")
    data = recipe.load(learned=False)

    def model(y):
        level = pyro.sample("level0", dist.Normal(0.0, 1e7**0.5))
        for t in range(len(y)):
            if t:
                level = pyro.sample(f"level{t}", dist.Normal(level, data["level_sd"]))
            pyro.sample(f"y{t}", dist.Normal(level, data["noise_sd"]), obs=y[t])

    found = pyrovi.exact(model, {"y": data["y"][:20]})
    expected = recipe.exact(**{**data, "time": data["time"][:20], "y": data["y"][:20]})
    assert found.log_evidence == pytest.approx(expected.log_evidence, rel=1e-9)
    assert [float(found.mean()[f"level{t}"]) for t in range(20)] == pytest.approx(expected.mean()["level"], rel=1e-9)


def test_a_multivariate_normal_latent_and_a_multivariate_outcome():
    A, y = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, -1.0]]), np.array([1.0, 2.0, 3.0])
    S, R = np.array([[1.0, 0.9], [0.9, 1.0]]), np.diag([0.5, 1.0, 2.0]) + 0.1

    def model(A, S, R, y):
        z = pyro.sample("z", dist.MultivariateNormal(torch.ones(2), S))
        pyro.sample("y", dist.MultivariateNormal(A @ z - 1, R), obs=y)

    found = pyrovi.exact(model, {"A": A, "S": S, "R": R, "y": y})
    marginal = A @ S @ A.T + R
    assert found.log_evidence == pytest.approx(stats.multivariate_normal(A @ np.ones(2) - 1, marginal).logpdf(y), rel=1e-10)
    gain = S @ A.T @ np.linalg.inv(marginal)
    assert np.allclose(found.mean()["z"], 1 + gain @ (y - A @ np.ones(2) + 1), rtol=1e-10)
    assert np.allclose(found.covariance["z"], S - gain @ A @ S, rtol=1e-9)


COUNTS = np.array([0.0, 3.0, 7.0, 10.0])
CHOICES = (gammaln(11) - gammaln(COUNTS + 1) - gammaln(11 - COUNTS)).sum()
ORDERS = (gammaln(COUNTS + 3) - gammaln(3) - gammaln(COUNTS + 1)).sum()


@pytest.mark.parametrize(
    ("prior", "outcome", "expected", "log_likelihood"),
    [
        (lambda: dist.Beta(2.0, 3.0), lambda p: dist.Binomial(10, p), (2 + 20, 3 + 20), CHOICES),
        (lambda: dist.Uniform(0.0, 1.0), lambda p: dist.Binomial(10, logits=p.log() - (-p).log1p()), (21, 21), CHOICES),
        (lambda: dist.Beta(2.0, 3.0), lambda p: dist.Geometric(p), (2 + 4, 3 + 20), 0.0),
        (lambda: dist.Beta(0.5, 0.5), lambda p: dist.NegativeBinomial(3.0, p), (0.5 + 20, 0.5 + 12), ORDERS),
    ],
)
def test_a_probability_is_beta(prior, outcome, expected, log_likelihood):
    def model(y):
        p = pyro.sample("p", prior())
        with pyro.plate("n", len(y)):
            pyro.sample("y", outcome(p), obs=y)

    found = pyrovi.exact(model, {"y": COUNTS})
    assert found.marginals["p"].args == pytest.approx(expected, rel=1e-9)
    before = (1.0, 1.0) if isinstance(prior(), dist.Uniform) else (float(prior().concentration1), float(prior().concentration0))
    assert found.log_evidence == pytest.approx(betaln(*expected) - betaln(*before) + log_likelihood, rel=1e-9)


def test_probabilities_in_two_plates_have_the_sites_shape():
    y = np.array([[1.0, 0, 1], [0, 0, 1]])

    def model(y):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("y", dist.Bernoulli(pyro.sample("p", dist.Beta(2.0, 1.0))), obs=y)

    found = pyrovi.exact(model, {"y": y})
    assert np.allclose(found.mean()["p"], (2 + y) / 4, rtol=1e-9)
    assert found.draws(5)["p"].shape == (5, 2, 3)


def dirichlet_evidence(alpha, counts):
    after = alpha + counts
    return gammaln(alpha.sum()) - gammaln(after.sum()) + (gammaln(after) - gammaln(alpha)).sum()


def test_shares_are_dirichlet():
    alpha, y = np.array([1.0, 2.0, 0.3]), np.array([0, 1, 2, 2, 1, 2])
    counts = np.array([[0.0, 8.0, 2.0], [5.0, 5.0, 0.0]])

    def categories(y):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor(alpha)))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Categorical(p), obs=y)

    def tables(y):
        with pyro.plate("tables", len(y)):
            p = pyro.sample("p", dist.Dirichlet(torch.tensor(alpha)))
            pyro.sample("y", dist.Multinomial(10, p), obs=y)

    found, after = pyrovi.exact(categories, {"y": y}), alpha + [1, 2, 3]
    assert np.allclose(found.mean()["p"], after / after.sum(), rtol=1e-9)
    assert np.allclose(found.sd()["p"], stats.dirichlet(after).var() ** 0.5, rtol=1e-9)
    assert found.log_evidence == pytest.approx(dirichlet_evidence(alpha, np.array([1, 2, 3])), rel=1e-9)
    draws = found.draws(50_000)["p"]
    assert np.allclose(draws.sum(1), 1)
    assert np.allclose(np.cov(draws.T), stats.dirichlet(after).cov(), atol=5e-4)

    found = pyrovi.exact(tables, {"y": counts})
    assert np.allclose(found.mean()["p"], (alpha + counts) / (alpha.sum() + 10), rtol=1e-9)
    choices = (gammaln(11) - gammaln(counts + 1).sum(1)).sum()
    assert found.log_evidence == pytest.approx(sum(dirichlet_evidence(alpha, c) for c in counts) + choices, rel=1e-9)


def test_the_rows_of_a_markov_chain_are_dirichlet():
    chain = [0, 1, 1, 0, 2, 2, 1, 1]

    def model():
        with pyro.plate("from", 3):
            P = pyro.sample("P", dist.Dirichlet(torch.ones(3)))
        for t in range(1, len(chain)):
            pyro.sample(f"state{t}", dist.Categorical(P[chain[t - 1]]), obs=torch.tensor(chain[t]))

    moves = np.zeros((3, 3))
    np.add.at(moves, (chain[:-1], chain[1:]), 1)
    found = pyrovi.exact(model)
    assert np.allclose(found.mean()["P"], (1 + moves) / (3 + moves.sum(1, keepdims=True)), rtol=1e-9)
    assert found.log_evidence == pytest.approx(sum(dirichlet_evidence(np.ones(3), m) for m in moves), rel=1e-9)


WAITS = np.array([0.2, 0.4, 5.0])


@pytest.mark.parametrize(
    ("prior", "outcome", "a", "b"),
    [
        (lambda: dist.Gamma(2.0, 3.0), dist.Exponential, 2 + 3, 3 + WAITS.sum()),
        (lambda: dist.Exponential(3.0), lambda rate: dist.Gamma(2.5, rate), 1 + 7.5, 3 + WAITS.sum()),
        (lambda: dist.Gamma(2.0, 3.0), lambda shape: dist.Pareto(0.1, shape), 2 + 3, 3 + np.log(WAITS / 0.1).sum()),
        (lambda: dist.Gamma(2.0, 3.0), lambda tau: dist.Normal(1.0, tau.rsqrt()), 2 + 1.5, 3 + ((WAITS - 1) ** 2).sum() / 2),
    ],
)
def test_a_rate_is_gamma(prior, outcome, a, b):
    def model(y):
        rate = pyro.sample("rate", prior())
        with pyro.plate("n", len(y)):
            pyro.sample("y", outcome(rate), obs=y)

    found = pyrovi.exact(model, {"y": WAITS})
    agree(found, pyrovi.ExactPosterior({"rate": stats.gamma(a, scale=1 / b)}, _integral(prior, outcome)))


@pytest.mark.parametrize(
    ("outcome", "a", "b"),
    [
        (lambda v: dist.Normal(1.0, v.sqrt()), 2.5 + 1.5, 3 + ((WAITS - 1) ** 2).sum() / 2),
        (lambda v: dist.Laplace(1.0, v), 2.5 + 3, 3 + np.abs(WAITS - 1).sum()),
        (lambda v: dist.Exponential(1 / v), 2.5 + 3, 3 + WAITS.sum()),
    ],
)
def test_a_variance_is_inverse_gamma(outcome, a, b):
    def model(y):
        v = pyro.sample("v", dist.InverseGamma(2.5, 3.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", outcome(v), obs=y)

    found = pyrovi.exact(model, {"y": WAITS})
    agree(found, pyrovi.ExactPosterior({"v": stats.invgamma(a, scale=b)}, _integral(lambda: dist.InverseGamma(2.5, 3.0), outcome)))


def _integral(prior, outcome):
    """The log evidence of the waits, by quadrature over the latent's logarithm."""

    def joint(u):
        x = torch.tensor(u, dtype=torch.float64).exp()
        return float((prior().log_prob(x) + outcome(x).log_prob(torch.tensor(WAITS)).sum() + u).exp())

    torch.set_default_dtype(torch.float64)
    try:
        return float(np.log(integrate.quad(joint, -12, 8, epsabs=0, epsrel=1e-10, limit=200)[0]))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_scale_of_a_million_is_found_as_well_as_one_of_one():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1e-9))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = np.array([1.2e9, 1.3e9])
    shape, rate = 2 + y.sum(), 1e-9 + 2
    found = pyrovi.exact(model, {"y": y}).marginals["rate"]
    assert found.mean() == pytest.approx(shape / rate, rel=1e-10)
    assert found.std() == pytest.approx(shape**0.5 / rate, rel=1e-8)


def test_vague_priors_and_rare_events_are_no_harder():
    def vague(y):
        v = pyro.sample("v", dist.InverseGamma(0.001, 0.001))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(0.0, v.sqrt()), obs=y)

    def rare(y):
        with pyro.plate("n", len(y)):
            p = pyro.sample("p", dist.Beta(0.5, 0.5))
            pyro.sample("y", dist.Binomial(1_000_000, p), obs=y)

    y = 1e-6 * np.arange(1.0, 6.0)
    assert pyrovi.exact(vague, {"y": y}).marginals["v"].args[0] == pytest.approx(2.501, rel=1e-9)
    counts = np.array([0.0, 1.0, 1e6])
    assert np.allclose(pyrovi.exact(rare, {"y": counts}).mean()["p"], (0.5 + counts) / 1_000_001, rtol=1e-6, atol=0)

    def nothing():
        pyro.sample("y", dist.Poisson(pyro.sample("r", dist.Gamma(0.001, 1.0))), obs=torch.tensor(0.0))

    with np.errstate(all="raise"):  # most of these draws are 10 to the minus hundreds
        draws = pyrovi.exact(nothing).draws(2_000)["r"]
    assert np.median(draws) < 1e-100
    assert draws.mean() == pytest.approx(0.0005, abs=5 * (0.001 / 4 / 2_000) ** 0.5)


@pytest.mark.parametrize("precision", [True, False])
def test_a_mean_and_its_unknown_scale_by_group_are_normal_gamma(precision):
    """Evidence and marginals against quadrature over the scale, given which the mean is Normal."""
    y = RNG.normal([0.0, 5.0], 2.0, size=(6, 2))

    def model(y):
        with pyro.plate("groups", 2, dim=-1):
            if precision:
                s = pyro.sample("t", dist.Gamma(2.0, 3.0)).rsqrt()
            else:
                s = pyro.sample("v", dist.InverseGamma(2.0, 3.0)).sqrt()
            mu = pyro.sample("mu", dist.Normal(1.0, 2 * s))
            with pyro.plate("n", 6, dim=-2):
                pyro.sample("y", dist.Normal(mu, s), obs=y)

    found, name = pyrovi.exact(model, {"y": y}), "t" if precision else "v"
    prior = stats.gamma(2, scale=1 / 3) if precision else stats.invgamma(2, scale=3)
    cov, total = np.eye(6) + 4.0, 0.0
    for j in range(2):

        def weight(x, j=j):
            return prior.pdf(x) * stats.multivariate_normal(np.ones(6), cov * (1 / x if precision else x)).pdf(y[:, j])

        top = 30 if precision else 400
        evidence = integrate.quad(weight, 0, top, points=[0.1, 1, 5], epsabs=0, epsrel=1e-9, limit=400)[0]
        mean = (
            integrate.quad(lambda x, w=weight: x * w(x), 0, top, points=[0.1, 1, 5], epsabs=0, epsrel=1e-9, limit=400)[0] / evidence
        )
        assert found.mean()[name][j] == pytest.approx(mean, rel=1e-4)  # a heavy tail is cut at 400
        at = (1 + 4 * y[:, j].sum()) / 25
        below = integrate.quad(
            lambda x, w=weight: w(x) * stats.norm(0, (0.16 * (1 / x if precision else x)) ** 0.5).cdf(1), 0, top,
            points=[0.1, 1, 5], epsabs=0, epsrel=1e-9, limit=400,
        )[0]  # fmt: skip
        assert found.marginals["mu"].cdf(at + 1)[j] == pytest.approx(below / evidence, rel=1e-6)
        total += np.log(evidence)
    assert found.log_evidence == pytest.approx(total, rel=1e-6)
    draws = found.draws(40_000)
    e = (draws["mu"] - found.mean()["mu"]) / found.sd()["mu"]
    assert np.all(np.abs((e**2).mean(0) - 1) < 0.15)  # the scale of mu moves with the scale drawn
    assert np.all(np.abs(np.corrcoef(np.abs(e[:, 0]), draws[name][:, 0])[0, 1]) > 0.1)


def test_blocks_of_different_families_stand_side_by_side():
    def model(y, heads):
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Poisson(pyro.sample("rate", dist.Gamma(3.0, 1.0))), obs=y)
        pyro.sample("heads", dist.Binomial(10, pyro.sample("p", dist.Beta(1.0, 1.0))), obs=heads)
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        pyro.sample("kind", dist.Categorical(shares), obs=torch.tensor(1))
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0), obs=torch.tensor(2.0))

    y = np.array([3.0, 4.0, 5.0])
    found = pyrovi.exact(model, {"y": y, "heads": np.array(7.0)})
    rates = stats.nbinom(3, 0.5).logpmf(y).sum()
    rest = -np.log(11) - np.log(3) + stats.norm(0, 2**0.5).logpdf(2.0)
    assert found.log_evidence == pytest.approx(rates + rest, rel=1e-10)
    assert {name: np.shape(m.mean()) for name, m in found.marginals.items()} == {"rate": (3,), "p": (), "shares": (3,), "m": ()}
    draws = found.draws(20_000, seed=3)
    for name, marginal in found.marginals.items():
        z = (draws[name].mean(0) - marginal.mean()) / (marginal.std() / 20_000**0.5)
        assert np.all(np.abs(z) < 5)


def test_masks_factors_and_missing_data_are_part_of_the_log_joint():
    def masked(y, there):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)), pyro.poutine.mask(mask=there):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def factor():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("pull", -0.5 * 3 * (z - 2) ** 2)

    found = pyrovi.exact(masked, {"y": np.array([1.0, 2.0, 9.0]), "there": np.array([True, True, False])})
    assert found.mean()["z"] == pytest.approx(1.0)
    assert pyrovi.exact(factor).mean()["z"] == pytest.approx(1.5)


def test_twenty_thousand_independent_latents_are_no_matrix():
    def model(y):
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    y = RNG.normal(size=20_000)
    found = pyrovi.exact(model, {"y": y})
    assert np.allclose(found.mean()["z"], y / 2, rtol=1e-9)
    assert found.log_evidence == pytest.approx(stats.norm(0, 2**0.5).logpdf(y).sum(), rel=1e-10)


def scale_of(prior, how=lambda s: s):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        sigma = pyro.sample("sigma", prior())
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, how(sigma)), obs=y)

    return model


def hierarchy(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), s), obs=y)


def of(outcome, **latents):
    def model(y):
        values = [pyro.sample(name, prior()) for name, prior in latents.items()]
        with pyro.plate("n", len(y)):
            pyro.sample("y", outcome(*values), obs=y)

    return model


def normal():
    return dist.Normal(0.0, 1.0)


def gamma():
    return dist.Gamma(2.0, 1.0)


BITS, REALS = {"y": np.array([1.0, 0.0, 1.0, 1.0])}, {"y": np.array([0.5, 1.5, 2.5])}


@pytest.mark.parametrize(
    ("model", "data", "reason"),
    [
        (scale_of(lambda: dist.HalfNormal(1.0)), REALS, "'y' is Normal with a scale that depends on the latent 'sigma'"),
        (scale_of(lambda: dist.InverseGamma(2.0, 2.0)), REALS, "'y' is Normal with a scale that depends on the latent 'sigma'"),
        (scale_of(lambda: dist.InverseGamma(2.0, 2.0), torch.sqrt), REALS, "'mu' is Normal with a scale that does not grow with"),
        (hierarchy, SCHOOLS, "'theta' is Normal with a scale that depends on the latent 'tau'; site 'tau' is HalfCauchy"),
        (of(lambda b: dist.Bernoulli(logits=b), b=normal), BITS, "'y' is Bernoulli with logits that depend on the latent 'b'"),
        (of(lambda b: dist.Poisson(b.exp()), b=normal), BITS, "'y' is Poisson with a rate that depends on the latent 'b'"),
        (of(lambda a, b: dist.Normal(a * b, 1.0), a=normal, b=normal), REALS, "loc that is not affine in the latents 'a' and 'b'"),
        (of(lambda a: dist.Normal(a.sin(), 1.0), a=normal), REALS, "'y' is Normal with a loc that is not affine in the latent 'a'"),
        (of(lambda a: dist.StudentT(3.0, a, 1.0), a=normal), REALS, "'y' is StudentT with a loc that depends on the latent 'a'"),
        (of(lambda a: dist.Normal(a, 1.0), a=lambda: dist.StudentT(3.0)), REALS, "site 'a' is StudentT, and not Normal"),
        (of(dist.Poisson, r=lambda: dist.LogNormal(0.0, 1.0)), BITS, "site 'r' is LogNormal, and not Gamma or InverseGamma"),
        (of(lambda a, b: dist.Poisson(a * b), a=gamma, b=gamma), BITS, "rate that depends on the latents 'a' and 'b'"),
        (of(lambda v: dist.Normal(0.0, v.sqrt()), v=gamma), REALS, "'y' is Normal with a scale that depends on the latent 'v'"),
        (of(lambda a: dist.Gamma(a, 1.0), a=gamma), REALS, "'y' is Gamma with a concentration that depends on the latent 'a'"),
        (of(lambda p: dist.Bernoulli(p**2), p=lambda: dist.Beta(2.0, 2.0)), BITS, "'y' is Bernoulli with probs that depend on"),
        (of(lambda L: dist.Normal(L[1, 0], 1.0), L=lambda: dist.LKJCholesky(2)), REALS, "site 'L' is LKJCholesky"),
        (of(lambda k: dist.Normal(k, 1.0), k=lambda: dist.Poisson(3.0)), REALS, "site 'k' is discrete"),
        (of(lambda u: dist.Poisson(u), u=lambda: dist.Uniform(0.0, 5.0)), BITS, "site 'u' is Uniform"),
        (of(normal), REALS, "no latent site"),
    ],
)
def test_what_has_no_closed_form_is_refused_with_the_site_and_the_reason(model, data, reason):
    with pytest.raises(pyrovi.ModelError) as caught:
        pyrovi.exact(model, data)
    assert reason in str(caught.value)


def test_numbers_in_float32_are_too_rounded_to_prove_anything_by():
    prior, column = dist.Gamma(2.0, 3.0), torch.ones(4, 1)
    with pytest.raises(pyrovi.ModelError, match="'r' has a distribution in float32, too rounded to tell"):
        pyrovi.exact(of(dist.Poisson, r=lambda: prior), BITS)
    with pytest.raises(pyrovi.ModelError, match="same dtype"):
        pyrovi.exact(of(lambda b: dist.Normal(column @ b, 1.0), b=lambda: normal().expand([1]).to_event(1)), BITS)


def test_parameters_subsamples_and_branches_are_refused():
    def learned(y):
        s = pyro.param("s", torch.tensor(1.0))
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), s).expand([4]).to_event(1), obs=y)

    def subsampled(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def branching(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else 2 * z, 1.0).expand([4]).to_event(1), obs=y)

    for model, reason in [
        (learned, "parameter 's'"),
        (subsampled, "subsamples plate 'n'"),
        (branching, "depends on the value of a latent"),
    ]:
        with pytest.raises(pyrovi.ModelError, match=reason):
            pyrovi.exact(model, BITS)


def test_a_posterior_that_is_nearly_gaussian_is_not_taken_for_one():
    """100,000 counts: within three sds the log joint is quadratic to 0.02 nats, and still not quadratic."""
    y = np.random.default_rng(1).poisson(5.0, 100_000).astype(float)
    with pytest.raises(pyrovi.ModelError, match="rate that depends"):
        pyrovi.exact(of(lambda b: dist.Poisson(b.exp()), b=normal), {"y": y})


@pytest.mark.parametrize("weight", [0.7, 0.99])
def test_a_second_mode_far_away_is_not_missed(weight):
    """About either mode the mixture is a Normal to the last bit."""

    def model():
        parts = dist.Categorical(torch.tensor([weight, 1 - weight])), dist.Normal(torch.tensor([-50.0, 60.0]), 1.0)
        pyro.sample("x", dist.MixtureSameFamily(*parts))

    with pytest.raises(pyrovi.ModelError, match="'x' is MixtureSameFamily, and not Normal"):
        pyrovi.exact(model)


def test_data_are_checked_and_nothing_is_left_behind():
    with pytest.raises(pyrovi.DataError, match="needs data named 'y'"):
        pyrovi.exact(hierarchy, {"s": SCHOOLS["s"]})
    state = torch.get_rng_state()
    layer = torch.nn.Linear(2, 1)

    def model(X, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(X @ b, 1.0).to_event(1), obs=y)

    torch.set_rng_state(state)
    pyrovi.exact(model, {"X": np.ones((3, 2)), "y": np.ones(3)})
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() is torch.float32
    assert not list(pyro.get_param_store().keys())
    assert layer.weight.dtype is torch.float32


def test_an_evidence_that_is_known_in_four_dimensions():
    """A regression with unknown noise: the evidence of Normal-inverse-Gamma in closed form, by its multivariate t."""
    X, y = RNG.normal(size=(12, 3)), RNG.normal(size=12)

    def model(X, y):
        v = pyro.sample("v", dist.InverseGamma(2.0, 1.5))
        b = pyro.sample("b", dist.Normal(0.0, 2 * v.sqrt()).expand([3]).to_event(1))
        a = pyro.sample("a", dist.Normal(1.0, v.sqrt()))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(a + X @ b, v.sqrt()), obs=y)

    found = pyrovi.exact(model, {"X": X, "y": y})
    shape = np.eye(12) + 4 * X @ X.T + 1.0
    assert found.log_evidence == pytest.approx(stats.multivariate_t(np.ones(12), 1.5 / 2 * shape, df=4).logpdf(y), rel=1e-10)
    assert found.cross_covariance["b", "a"].shape == (3, 1)
