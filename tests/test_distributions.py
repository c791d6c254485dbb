"""The Gaussian Markov chain, against torch's multivariate Normal, and the constraint that carries a scale."""

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, biject_to, kl_divergence, transform_to

from pyrovi.distributions import MarkovNormal, Scaled, natural_scale


def chain(length, seed, batch=()):
    generator = torch.Generator().manual_seed(seed)
    loc, coupling = (torch.randn(*batch, n, generator=generator, dtype=torch.float64) for n in (length, length - 1))
    scale = torch.rand(*batch, length, generator=generator, dtype=torch.float64) + 0.2
    return MarkovNormal(loc, scale, coupling)


def dense(q):
    """The same as a multivariate Normal: innovations are a lower bidiagonal matrix times the deviations."""
    length = q.event_shape[0]
    coupling = torch.ones(length - 1, dtype=q.loc.dtype) if q.coupling is None else q.coupling
    bidiagonal = torch.eye(length, dtype=q.loc.dtype) - torch.diag(coupling, -1)
    return MultivariateNormal(q.loc, scale_tril=torch.linalg.solve(bidiagonal, torch.diag(q.scale)).tril())


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 17), seed=st.integers(0, 10_000), walk=st.booleans())
def test_density_moments_and_kl_are_those_of_the_same_multivariate_normal(length, seed, walk):
    q, p = chain(length, seed), chain(length, seed + 1)
    if walk:
        p = MarkovNormal(p.loc, p.scale)
    x = dense(p).sample((3,))
    for d in (q, p):
        assert torch.allclose(d.log_prob(x), dense(d).log_prob(x))
        assert torch.allclose(d.mean, dense(d).mean)
        assert torch.allclose(d.variance, dense(d).variance)
    assert torch.allclose(kl_divergence(q, p), kl_divergence(dense(q), dense(p)))
    assert torch.allclose(kl_divergence(p, q), kl_divergence(dense(p), dense(q)))


@pytest.mark.parametrize("walk", [False, True])
def test_draws_have_the_covariance_of_the_chain(walk):
    """Each entry of the covariance of 100,000 draws is within 5 standard errors."""
    pyro.set_rng_seed(0)
    q = chain(9, 3)
    if walk:
        q = MarkovNormal(q.loc, q.scale)
    n, expected = 100_000, dense(q).covariance_matrix
    x = q.sample((n,))
    sd = expected.diagonal().sqrt()
    se = ((expected.square() + torch.outer(sd, sd).square()) / n).sqrt()
    assert ((torch.cov(x.T) - expected).abs() < 5 * se).all()
    assert ((x.mean(0) - q.loc).abs() < 5 * sd / n**0.5).all()


def test_a_batch_of_chains_is_each_of_them():
    q = chain(5, 0, (3, 1))
    wide = q.expand((3, 2))
    assert wide.batch_shape == (3, 2)
    assert wide.rsample((7,)).shape == (7, 3, 2, 5)
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    for i in range(3):
        one = MarkovNormal(q.loc[i, 0], q.scale[i, 0], q.coupling[i, 0])
        assert torch.allclose(wide.log_prob(x)[i], one.log_prob(x[i]))
        assert torch.allclose(wide.variance[i, 0], one.variance)


def test_gradients_reach_every_parameter():
    q = chain(6, 1)
    parameters = [v.requires_grad_() for v in (q.loc, q.scale, q.coupling)]
    value = MarkovNormal(*parameters).rsample((4,)).square().sum()
    for gradient in torch.autograd.grad(value, parameters):
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).all()


def test_scaled_numbers_are_learned_in_their_own_unit():
    center, unit = torch.tensor([900.0, -3.0]), torch.tensor(50.0)
    for transforms in (transform_to, biject_to):
        value = transforms(Scaled(center, unit))(torch.tensor([1.0, 0.1]))
        assert torch.allclose(value, torch.tensor([950.0, 2.0]))
    assert Scaled(0.0, 1.0).check(torch.tensor([1.0, float("nan")])).tolist() == [True, False]


def test_natural_scale_of_noise_is_its_sd_and_gaps_are_filled_from_before():
    y = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 7 + 1e3
    assert natural_scale(y)[1].item() == pytest.approx(7, rel=0.03)
    there = torch.tensor([False, True, True, False, True])
    center, unit = natural_scale(torch.tensor([99.0, 1.0, 3.0, -99.0, 5.0]), there)
    assert center.tolist() == [1.0, 1.0, 3.0, 3.0, 5.0]
    assert unit.item() == pytest.approx(2**0.5)
    for constant in (torch.ones(1), torch.ones(4)):
        assert natural_scale(constant)[1].item() == 1
