"""Mini-batches: one pass has the full batch's expected ELBO, for plain and self-subsampling models and every kind of guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal, AutoStructured
from torch.distributions import constraints

import pyrovi
from pyrovi._isolation import isolated
from pyrovi.preflight import prepare

N, B = 23, 5  # the last batch has three data
X = torch.linspace(-2, 3, N) + torch.sin(torch.arange(N))
DATA = {"x": X}


def plain(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def plain_with_local_latents(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(m, 1.0))  # constrained: the guide's Jacobian must be scaled too
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampling(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), subsample_size=B) as i:
        pyro.sample("x", dist.Normal(m, 1.0), obs=x[i])


def subsampling_with_local_latents(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), subsample_size=B) as i:
        z = pyro.sample("z", dist.LogNormal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])


def indexing_a_plain_plate(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)) as i:
        z = pyro.sample("z", dist.LogNormal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])


def subsampled_data(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=pyro.subsample(x, event_dim=0))


def sequential(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(m, 1.0), obs=x[i])


def by_hand(x, n=N):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", n, subsample_size=len(x)):
        z = pyro.sample("z", dist.LogNormal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def loc_scale():
    return pyro.param("m_loc", torch.tensor(0.3)), pyro.param("m_scale", torch.tensor(0.5), constraint=constraints.positive)


def global_guide():
    pyro.sample("m", dist.Normal(*loc_scale()))


def a_row_a_datum(x):
    """As one writes it with no thought of mini-batches: parameters as long as the data, a plate as long as the data."""
    pyro.sample("m", dist.Normal(*loc_scale()))
    loc = pyro.param("z_loc", lambda: torch.linspace(-1, 1, len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(loc, 0.5))


def amortised(x):
    pyro.sample("m", dist.Normal(*loc_scale()))
    a = pyro.param("a", torch.tensor(0.2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(a * x, 0.5))


def indexing_guide():
    """Parameters of a fixed length, picked by the plate's own indices."""
    pyro.sample("m", dist.Normal(*loc_scale()))
    loc = pyro.param("z_loc", lambda: torch.linspace(-1, 1, N))
    with pyro.plate("data", N) as i:
        pyro.sample("z", dist.LogNormal(loc[i], 0.5))


def subsampling_guide():
    pyro.sample("m", dist.Normal(*loc_scale()))
    loc = pyro.param("z_loc", lambda: torch.linspace(-1, 1, N))
    with pyro.plate("data", N, subsample_size=B) as i:
        pyro.sample("z", dist.LogNormal(loc[i], 0.5))


def event_dim_guide(x):
    pyro.sample("m", dist.Normal(*loc_scale()))
    with pyro.plate("data", len(x)):
        loc = pyro.param("z_loc", lambda: torch.linspace(-1, 1, N), event_dim=0)
        pyro.sample("z", dist.LogNormal(loc, 0.5))


GLOBAL = [
    (plain, global_guide),
    (plain, AutoNormal),
    (plain, AutoMultivariateNormal),
    (subsampling, global_guide),
    (subsampling, AutoNormal),
    (subsampling, AutoMultivariateNormal),
    (sequential, global_guide),
]
LOCAL = [
    (plain_with_local_latents, a_row_a_datum),
    (plain_with_local_latents, amortised),
    (plain_with_local_latents, indexing_guide),
    (plain_with_local_latents, subsampling_guide),
    (plain_with_local_latents, event_dim_guide),
    (plain_with_local_latents, AutoNormal),
    (plain_with_local_latents, AutoMultivariateNormal),
    (plain_with_local_latents, AutoLowRankMultivariateNormal),
    (plain_with_local_latents, AutoStructured),
    (plain_with_local_latents, AutoDelta),
    (subsampling_with_local_latents, amortised),
    (subsampling_with_local_latents, indexing_guide),
    (subsampling_with_local_latents, subsampling_guide),
    (subsampling_with_local_latents, AutoNormal),
    (subsampling_with_local_latents, AutoDelta),
    (indexing_a_plain_plate, a_row_a_datum),
    (indexing_a_plain_plate, AutoMultivariateNormal),
    (subsampled_data, AutoNormal),
    (by_hand, amortised),
    (by_hand, AutoNormal),
]


def name(value):
    return getattr(value, "__name__", str(value))


WHOLE = {subsampling: plain, subsampling_with_local_latents: plain_with_local_latents, subsampling_guide: indexing_guide}
"""The same without subsampling."""

HANDWRITTEN = [pair for pair in GLOBAL + LOCAL if not isinstance(pair[1], type)]
AUTOMATIC = [pair for pair in GLOBAL + LOCAL if isinstance(pair[1], type)]


def prepared(model, guide, batch_size=B):
    return prepare(model, guide, DATA, dtype=torch.float32, device=torch.device("cpu"), batch_size=batch_size)


@pytest.mark.parametrize(("model", "guide"), HANDWRITTEN, ids=name)
def test_one_pass_has_the_elbo_of_the_full_batch(model, guide):
    """Every batch's log densities, weighted by B/n, add up to the full ones.

    Model and guide are scored at given latent values, so the two sides are equal to rounding, whatever the values: no Monte Carlo
    tolerance is needed.
    """
    values = {"m": torch.tensor(0.4), "z": torch.linspace(0.2, 2.0, N)}

    def log_prob(program, rows, data):
        given = {"m": values["m"], "z": values["z"][rows]}
        return poutine.trace(poutine.condition(program, data=given)).get_trace(**data).log_prob_sum().item()

    with isolated(0, torch.float32, validate=True):
        problem = prepared(model, guide)
        batched = problem.batched()
        log_p = log_q = 0.0
        seen = []
        for i in range(problem.batches.steps_per_epoch):
            batched.take(batched.rows(i))
            log_p += batched.count / N * log_prob(batched.model, batched.indices, {})
            log_q += batched.count / N * log_prob(batched.guide, batched.indices, {})
            seen += batched.indices[: batched.count].tolist()
        assert sorted(seen) == list(range(N))
        everything = torch.arange(N)
        assert log_p == pytest.approx(log_prob(WHOLE.get(model, model), everything, DATA), rel=1e-5)
        whole_guide = prepared(WHOLE.get(model, model), WHOLE.get(guide, guide), None).guide
        assert log_q == pytest.approx(log_prob(whole_guide, everything, DATA), rel=1e-5)


@pytest.mark.parametrize(("model", "guide"), AUTOMATIC, ids=name)
def test_one_pass_of_an_autoguide_has_the_expected_elbo_of_the_full_batch(model, guide):
    """Autoguides draw for themselves, so the two sides agree within 4 Monte Carlo standard errors (seed 0)."""
    with isolated(0, torch.float32):
        problem, full = prepared(model, guide), prepared(WHOLE.get(model, model), guide, None)
        full.parameters.assign(problem.parameters.values())
        a = torch.tensor([one_pass(problem) for _ in range(150)])
        b = torch.tensor([one_pass(full) for _ in range(500)])
    se = (a.var() / len(a) + b.var() / len(b)).sqrt()
    assert abs(a.mean() - b.mean()) <= 4 * se + 1e-5 * abs(b.mean())


@pytest.mark.parametrize(("model", "guide"), GLOBAL + LOCAL, ids=name)
def test_a_fit_on_batches_can_be_drawn_from_predicted_with_and_exported(model, guide):
    from pyrovi import _arviz

    fit = pyrovi.fit(model, guide, DATA, batch_size=B, steps=8)
    drawn = fit.draws(3, pointwise=True)
    assert drawn.posterior["m"].shape == drawn.log_p.shape == (3,)
    assert torch.isfinite(drawn.elbo).all()
    if "z" in drawn.posterior:
        assert drawn.posterior["z"].shape == drawn.log_prior["z"].shape == (3, N)
    idata = fit.to_arviz(3)
    if model is sequential:
        assert drawn.log_likelihood["x_7"].shape == (3,)
        return
    assert drawn.log_likelihood["x"].shape == fit.predictive(3)["x"].shape == (3, N)
    assert _arviz.group(idata, "prior_predictive")["x"].shape == (1, 3, N)
    assert torch.tensor(_arviz.group(idata, "observed_data")["x"].values).equal(X)


def test_a_model_that_reads_rows_outside_the_plate_is_refused():
    def factor(x):
        plain(x)
        pyro.factor("pull", -0.5 * (x.sum() - 1) ** 2)

    def centred(x):
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m + x.mean(), 1.0), obs=x)

    for model, site in ((factor, "pull"), (centred, "x")):
        with pytest.raises(pyrovi.ModelError, match=f"site '{site}' has another density on a batch"):
            pyrovi.fit(model, "normal", DATA, batch_size=B, steps=2)
        assert pyrovi.fit(model, "normal", DATA, batch_size=B, batch_data=["x"], steps=2).status


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_argument_that_is_as_long_as_the_data_by_chance_is_not_narrowed_silently(batch_size):
    def model(x, prior):
        with pyro.plate("pixel", x.shape[1], dim=-1):
            theta = pyro.sample("theta", dist.Gamma(prior, 1.0))
            with pyro.plate("image", len(x), dim=-2):
                pyro.sample("x", dist.Poisson(theta), obs=x)

    data = {"x": torch.ones(6, 6), "prior": torch.arange(1.0, 7.0)}
    with pytest.raises(pyrovi.ModelError, match="batch_data"):
        pyrovi.fit(model, "normal", data, batch_size={"image": batch_size}, steps=2)
    fit = pyrovi.fit(model, "normal", data, batch_size={"image": batch_size}, batch_data=["x"], steps=2)
    assert fit.posterior(2)["theta"].shape == (2, 6)


@torch.no_grad()
def one_pass(problem):
    """The average over one pass of the batches' ELBOs, or the full ELBO."""
    total = 0.0
    blocks = [None] if problem.batches is None else range(problem.batches.steps_per_epoch)
    for i in blocks:
        guide, model, data = problem.step_programs(i or 0)
        weight = 1.0 if i is None else len(problem.batches.blocks(problem.device)[i]) / N
        guide_trace = poutine.trace(guide).get_trace(**data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**data)
        total += weight * (model_trace.log_prob_sum() - guide_trace.log_prob_sum()).item()
    return total


def test_a_network_that_starts_at_random_batches():
    """Whole and batch are compared under the same parameters, however the model starts them."""

    def model(x, y):
        slope = pyro.param("slope", lambda: torch.randn(()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    fit = pyrovi.fit(model, lambda: None, {"x": X, "y": 2 * X}, batch_size=B, steps=400, lr=0.05, progress=False)
    assert fit.parameters["slope"].item() == pytest.approx(2.0, abs=0.1)
