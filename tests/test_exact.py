"""Exact posteriors, against numbers published or integrated by other means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from pyrovi.models import gamma_poisson, linear_regression, normal_mean

RNG = np.random.default_rng(0)


def test_normal_mean_of_the_document():
    exact = normal_mean.exact(**normal_mean.load())
    assert exact.marginals["w"].mean() == pytest.approx(1.87738, abs=5e-6)
    assert exact.log_evidence == pytest.approx(-136.80742, abs=5e-6)


@settings(max_examples=30, deadline=None)
@given(m0=st.floats(-5, 5), s0=st.floats(0.1, 10), noise=st.floats(0.1, 5), n=st.integers(1, 12))
def test_normal_mean_for_any_prior_noise_and_n(m0, s0, noise, n):
    x = np.random.default_rng(n).normal(1.0, 2.0, n)
    exact = normal_mean.exact(x, m0, s0, noise)
    evidence = stats.multivariate_normal(np.full(n, m0), noise**2 * np.eye(n) + s0**2).logpdf(x)
    assert exact.log_evidence == pytest.approx(evidence, rel=1e-8, abs=1e-8)
    precision = 1 / s0**2 + n / noise**2
    assert exact.marginals["w"].mean() == pytest.approx((m0 / s0**2 + x.sum() / noise**2) / precision, rel=1e-9, abs=1e-9)
    assert exact.marginals["w"].std() == pytest.approx(precision**-0.5)
    assert exact.predictive["x"].std() == pytest.approx((1 / precision + noise**2) ** 0.5)


def test_normal_mean_of_a_hundred_thousand_data_keeps_its_digits():
    x = normal_mean.load(100_000)["x"]
    n, mean = len(x), x.mean()
    by_parts = -0.5 * n * np.log(2 * np.pi) - 0.5 * ((x - mean) ** 2).sum()
    marginal = by_parts + 0.5 * np.log(2 * np.pi / n) + stats.norm(0, np.sqrt(1 + 1 / n)).logpdf(mean)
    assert normal_mean.exact(x).log_evidence == pytest.approx(marginal, abs=1e-6)


@pytest.mark.parametrize("weight", [2.0, 0.7])
def test_gamma_poisson_evidence_is_the_integral(weight):
    x, prior_image = np.array([[3.0, 0.0], [5.0, 0.0], [2.0, 1.0]]), np.array([1.5, 0.4])
    exact = gamma_poisson.exact(x, prior_image, weight)
    total = 0.0
    for j in range(2):
        prior = stats.gamma(weight * prior_image[j], scale=1 / weight)
        total += np.log(
            integrate.quad(lambda t, j=j, p=prior: p.pdf(t) * stats.poisson(t).pmf(x[:, j]).prod(), 0, 60, points=[0.1, 3])[0]
        )
    assert exact.log_evidence == pytest.approx(total, rel=1e-6)


def test_gamma_poisson_predictive_is_a_poisson_mixed_over_the_posterior():
    data = gamma_poisson.load(m=5)
    exact = gamma_poisson.exact(**data)
    draws = RNG.poisson(exact.draws(200_000)["theta"])
    mean, sd = exact.predictive["x"].mean(), exact.predictive["x"].std()
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * sd / 200_000**0.5)


def test_the_prior_image_is_a_ring_above_its_floor():
    image = gamma_poisson.ring().reshape(8, 8)
    assert image.min() >= gamma_poisson.FLOOR > 0
    assert image[3:5, 3:5].max() < 3 < 12 < image.max() < 13.1
    assert np.allclose(image, image[::-1, ::-1])


@pytest.mark.parametrize(("prior_scale", "noise"), [(1.0, 0.7), (3.0, 0.2)])
def test_linear_regression_with_known_noise(prior_scale, noise):
    X, y = RNG.normal(size=(9, 3)), RNG.normal(size=9)
    exact = linear_regression.exact(X, y, prior_scale, noise)
    cov = noise**2 * np.eye(9) + prior_scale**2 * X @ X.T
    assert exact.log_evidence == pytest.approx(stats.multivariate_normal(np.zeros(9), cov).logpdf(y))
    gain = prior_scale**2 * X.T @ np.linalg.inv(cov)  # the other route: condition the joint Normal of beta and y
    assert np.allclose(exact.marginals["beta"].mean(), gain @ y)
    assert np.allclose(exact.covariance["beta"], prior_scale**2 * (np.eye(3) - gain @ X))
    draws = exact.draws(100_000)["beta"]
    assert np.allclose(np.cov(draws.T), exact.covariance["beta"], atol=0.03 * exact.covariance["beta"].max())
    assert np.allclose(exact.predictive["y"].var(), noise**2 + np.einsum("nd,de,ne->n", X, exact.covariance["beta"], X))


def test_linear_regression_with_unknown_noise_is_the_known_one_averaged_over_the_variance():
    X, y = RNG.normal(size=(7, 2)), RNG.normal(size=7)
    a, b, scale = 2.5, 0.8, 1.4
    exact = linear_regression.exact(X, y, scale, None, a, b)
    prior = stats.invgamma(a, scale=b)

    def joint(v):
        return np.exp(linear_regression.exact(X, y, scale * v**0.5, v**0.5).log_evidence) * prior.pdf(v)

    evidence = integrate.quad(joint, 0, np.inf)[0]
    assert exact.log_evidence == pytest.approx(np.log(evidence), rel=1e-6)
    for v in (0.3, 1.0):
        assert exact.marginals["variance"].pdf(v) == pytest.approx(joint(v) / evidence, rel=1e-5)
    at_zero = integrate.quad(
        lambda v: joint(v) / evidence * linear_regression.exact(X, y, scale * v**0.5, v**0.5).marginals["beta"].pdf(0.0)[0],
        0,
        np.inf,
    )[0]
    assert exact.marginals["beta"].pdf(0.0)[0] == pytest.approx(at_zero, rel=1e-5)
    draws = exact.draws(200_000)
    assert np.allclose(np.cov(draws["beta"].T), exact.covariance["beta"], atol=0.05 * exact.covariance["beta"].max())
    assert draws["variance"].mean() == pytest.approx(exact.marginals["variance"].mean(), rel=0.02)


def test_collinear_columns_show_what_mean_field_loses():
    """The figures of the design: 1/precision is 0.0047 where the posterior variance is 0.0637."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    X = np.column_stack([x, x + 0.2 * rng.normal(size=200)])
    exact = linear_regression.exact(X, x, 1.0, 1.0)
    precision = np.linalg.inv(exact.covariance["beta"])
    assert np.all(exact.marginals["beta"].var() > 10 / np.diag(precision))


def test_embedded_data_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    from pyrovi import data

    theirs = datasets.load_digits()
    assert np.array_equal(data.digits().images, theirs.images)
    assert np.array_equal(data.digits().labels, theirs.target)
    assert np.array_equal(data.diabetes(standardised=False).X, datasets.load_diabetes(scaled=False).data)
    X, y, features = data.diabetes()
    assert features == datasets.load_diabetes().feature_names
    assert np.allclose(X.std(0), 1)
    assert 1 - ((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2).mean() == pytest.approx(0.52, abs=0.005)
