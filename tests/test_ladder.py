"""The rungs of a fit without settings, each against what it must give."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyrovi._isolation import isolated
from pyrovi.centering import Centering, Placing, dependent, parts_of
from pyrovi.density import log_density
from pyrovi.guides.student import Student, matched
from pyrovi.natural_gradient import best_gaussian
from pyrovi.pathfinder import Start
from pyrovi.tempering import RARELY, Moments, settle, temper

FLOAT = torch.float64


@pytest.fixture(autouse=True)
def in_float64():
    with isolated(0, FLOAT):
        yield


def traced(model):
    return pyro.poutine.util.prune_subsample_sites(pyro.poutine.trace(model).get_trace())


def recorded(model, **options):
    return log_density(model, {}, traced(model), **options)


def hierarchy():
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("group", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.tensor([1.0, 2.0, -1.0]))


def process():
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    t = torch.arange(4.0)
    covariance = (-0.5 * (t[:, None] - t) ** 2 / length**2).exp() + 0.1 * torch.eye(4)
    pyro.sample("f", dist.MultivariateNormal(torch.zeros(4), scale_tril=torch.linalg.cholesky(covariance)))


CENTERINGS = {
    "prior alone": (torch.zeros(4), torch.zeros(4)),
    "with data": (torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.tensor([1.0, -1.0, 0.3, 2.0])),
}


@pytest.mark.parametrize("what", CENTERINGS)
@pytest.mark.parametrize(("model", "site"), [(hierarchy, "theta"), (process, "f")])
def test_coordinates_go_there_and_back_and_their_jacobian_is_autograds(model, site, what):
    parts = parts_of(traced(model))
    shape = next(part.shape for part in parts if part.name == site)
    centering = {site: Centering(*(x[: shape[0]] for x in CENTERINGS[what]))}
    z = torch.randn(parts[-1].stop)

    def run(x, inverse):
        placing = Placing(parts, x, centering, inverse=inverse)
        with pyro.poutine.block():
            placing(model)()
        return torch.cat([placing.placed[part.name].reshape(-1) for part in parts]), placing.log_det[site].sum()

    u, log_det = run(z, False)
    back, same = run(u, True)
    jacobian = torch.autograd.functional.jacobian(lambda z: run(z, False)[0], z)
    assert back.numpy() == pytest.approx(z.numpy(), abs=1e-10)
    assert log_det.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-10)
    assert same.item() == pytest.approx(log_det.item(), abs=1e-10)


def test_with_a_normal_likelihood_coordinates_are_standard_normal_whatever_the_scale():
    """Seen from prior and data, the conditional density of z given mu and tau is Normal(0, 1) exactly."""
    informed = recorded(hierarchy, centering={"theta": Centering(torch.ones(3), torch.tensor([1.0, 2.0, -1.0]))})
    for _ in range(5):
        z = torch.cat([torch.randn(2), torch.zeros(3)]).repeat(4, 1)
        z[:, 2:] = torch.randn(4, 3)
        rest = informed(z) + 0.5 * z[:, 2:].square().sum(1)
        assert rest.numpy() == pytest.approx(rest[0].item(), abs=1e-9)


def test_sites_that_depend_on_others_are_found():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.StudentT(4.0, a, 1.0))
        pyro.sample("d", dist.Gamma(2.0, a.exp()))
        pyro.sample("e", dist.Normal(0.0, a.exp()).expand([2]).to_event(1))

    parts = parts_of(traced(model))
    assert dependent(model, {}, parts, torch.zeros(parts[-1].stop)) == ["c", "e"]


def test_natural_gradients_find_a_gaussian_exactly():
    root = torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.5, 0.0], [-1e3, 20.0, 1e2]])

    def model():
        pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0, 1e4]), scale_tril=root))

    found = best_gaussian(recorded(model), Start(torch.tensor([0.0, 0.0, 9e3]), torch.tensor([1.0, 1.0, 100.0]), -math.inf), seed=0)
    assert (found.scale @ found.scale.mT).numpy() == pytest.approx((root @ root.mT).numpy(), rel=0.05)
    assert ((found.loc - torch.tensor([1.0, -2.0, 1e4])) / (root @ root.mT).diagonal().sqrt()).abs().max() < 0.05
    assert found.elbo == pytest.approx(0.0, abs=0.05)


def test_natural_gradients_reach_the_optimum_where_the_posterior_is_not_gaussian():
    """x ~ Gamma(3, 1): for a Normal of log x the best mean m and sd s have exp(m + s²/2) = 3 and s² = 1/3."""

    def model():
        pyro.sample("x", dist.Gamma(3.0, 1.0))

    found = best_gaussian(recorded(model), Start(torch.zeros(1), torch.ones(1), -math.inf), seed=0)
    assert found.scale.item() == pytest.approx(math.sqrt(1 / 3), rel=0.03)
    assert found.loc.item() == pytest.approx(math.log(3) - 1 / 6, abs=0.03)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_tempered_draws_are_the_posteriors_and_their_evidence_is_right(seed):
    """From Normal(0, I) to one with other means and sds, whose evidence is 3 nats."""
    mean, sd = torch.tensor([1.0, -0.5, 0.0, 0.5]), torch.tensor([0.5, 1.1, 1.0, 0.8])
    target = dist.Normal(mean, sd)

    def ratio(e):
        e = e.detach().requires_grad_()
        with torch.enable_grad():
            r = (target.log_prob(e) - dist.Normal(torch.zeros(4), 1.0).log_prob(e)).sum(1) + 3.0
            (slope,) = torch.autograd.grad(r.sum(), e)
        return r.detach(), slope

    e = torch.randn(2_048, 4, generator=torch.Generator().manual_seed(seed))
    found = temper(ratio, e, seed=seed)
    assert found.log_evidence == pytest.approx(3.0, abs=5 * found.log_evidence_se)
    # Effective are a third of the draws at least: half are kept at each of three temperatures, and each is followed by moves.
    assert ((found.e.mean(0) - mean) / sd).abs().max() < 5 / math.sqrt(600)
    assert (found.e.std(0) / sd - 1).abs().max() < 5 / math.sqrt(1_200)


def normal_ratio(mean, sd):
    def ratio(e):
        return (
            (-0.5 * ((e - mean) / sd).square() + 0.5 * e.square()).sum(1),
            e - (e - mean) / sd**2,
        )

    return ratio


@pytest.mark.parametrize("seed", range(20))
def test_draws_of_the_posterior_stand_still(seed):
    e = torch.randn(1_024, 5, generator=torch.Generator().manual_seed(seed))
    before = Moments.weighted(e, torch.full((1_024,), 1 / 1_024))
    found = settle(normal_ratio(0.0, torch.ones(5)), e, before, lambda e: e, 100, 1, seed=seed)
    assert found.still
    assert found.blocks <= 3  # chance may ask for two more
    assert found.rhat < 1.02


def test_draws_that_stand_still_seldom_seem_to_move_though_hundreds_of_columns_are_looked_at():
    """Pairs of sets of independent draws, in eight groups, at a false alarm in forty: 2 of 20 at most. A shift of 0.14 sd shows."""
    chance = float(stats.norm.isf(RARELY / 300))
    rng = torch.Generator().manual_seed(0)
    sets = [torch.randn(4_096, 150, generator=rng, dtype=torch.float64) for _ in range(20)]
    before = [Moments.grouped(x) for x in sets]
    assert sum(one.shift(other, chance)[1] for one, other in itertools.pairwise(before)) <= 2
    assert all(Moments.grouped(x + 0.14).shift(other, chance)[1] for x, other in zip(sets[1:], before, strict=False))


def test_draws_that_are_not_the_posteriors_move_until_they_are():
    mean, sd = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 1.3])
    e = torch.randn(1_024, 2, generator=torch.Generator().manual_seed(0))
    before = Moments.weighted(e, torch.full((1_024,), 1 / 1_024))
    found = settle(normal_ratio(mean, sd), e, before, lambda e: e, 200, 1, seed=0)
    assert found.still
    assert found.blocks > 1
    assert found.e.mean(0).numpy() == pytest.approx(mean.numpy(), abs=5 * 1.3 / math.sqrt(1_024))
    assert found.e.std(0).numpy() == pytest.approx(sd.numpy(), rel=5 / math.sqrt(2_048))


def test_groups_that_disagree_have_a_large_rhat():
    """Two modes ten sds apart: each draw stays in its own, and which one was luck."""

    def ratio(e):
        near = torch.where(e > 0, e - 3, e + 3)
        return (-5 * near.square() + 0.5 * e.square()).sum(1), -10 * near + e

    e = 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).sign()
    before = Moments.weighted(e, torch.full((64,), 1 / 64))
    assert settle(ratio, e, before, lambda e: e, 50, 1, seed=0).rhat > 1.02


def test_students_density_is_torchs():
    scales = torch.linalg.cholesky(torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 3.0]]]))
    q = Student(torch.tensor([0.3, -0.2]), torch.tensor([[0.0, 1.0], [2.0, -1.0]]), scales, torch.tensor(5.0))
    z = torch.randn(50, 2)
    assert torch.logsumexp(q.log_density(z), 1).numpy() == pytest.approx(q.distribution().log_prob(z).numpy(), abs=1e-10)


def test_students_draws_have_the_mixtures_moments():
    scales = torch.eye(2).expand(2, 2, 2)
    q = Student(torch.tensor([0.25, 0.75]).log(), torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), scales, torch.tensor(30.0))
    z = q.draw(20_000, 0)
    assert z.mean(0).numpy() == pytest.approx([1.0, 0.0], abs=4 * 2 / math.sqrt(20_000))
    assert z[:, 1].std().item() == pytest.approx(math.sqrt(30 / 28), rel=0.03)


def test_matching_weighted_draws_gives_their_moments():
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(0, 2, (20_000, 2)))
    log_w = dist.Normal(torch.tensor([1.0, -0.5]), torch.tensor([1.0, 0.7])).log_prob(z).sum(1) - dist.Normal(0.0, 2.0).log_prob(
        z
    ).sum(1)
    found = matched(z, torch.softmax(log_w, 0), 30.0)
    assert found.locs[0].numpy() == pytest.approx([1.0, -0.5], abs=0.05)
    assert found.scales[0].diagonal().numpy() == pytest.approx([1.0, 0.7], rel=0.05)


@pytest.mark.parametrize(("columns", "steps", "rows"), [(200, 3, 8), (1, 600, 512)])
def test_few_rows_have_a_recording_of_their_own_where_that_is_faster(columns, steps, rows):
    """Of a loop over single numbers nearly all time goes into calling the operations, however many rows there are."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([columns]).to_event(1))
        for _ in range(steps):
            x = 0.5 * x.cos()
        pyro.factor("end", x.sum(-1))

    prototype = poutine.trace(model).get_trace()
    density = log_density(model, {}, prototype, math.inf)
    u = torch.randn(3, columns)
    expected = [float(density(row[None])[0]) for row in u]
    assert density(u).numpy() == pytest.approx(expected)
    assert [n for _, n in density._many] == [rows]
