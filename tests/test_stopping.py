"""The stopping rules: flat is flat, rising is rising, noise is no evidence, and what still moves has not converged."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyrovi
from pyrovi.phases import SMALL, Phases, r_hat
from pyrovi.phases import tolerance as allowed
from pyrovi.stopping import looks, plateau, tolerance

SEEDS = range(20)


def ar1(rng, n, sd, correlation=0.9):
    noise = rng.normal(size=n) * sd * (1 - correlation**2) ** 0.5
    out = np.empty(n)
    out[0] = rng.normal() * sd
    for i in range(1, n):
        out[i] = correlation * out[i - 1] + noise[i]
    return out


def test_a_flat_trace_of_little_noise_has_converged():
    assert all(plateau(-100 + 0.1 * np.random.default_rng(s).normal(size=1_000), 1).reached for s in SEEDS)


def test_a_rising_trace_has_not():
    rise = np.linspace(0, 1, 1_000)
    assert not any(plateau(-100 + rise + 0.1 * np.random.default_rng(s).normal(size=1_000), 1).reached for s in SEEDS)


def test_noise_is_no_evidence_of_convergence():
    assert not any(plateau(5 * np.random.default_rng(s).normal(size=1_000), 1).reached for s in SEEDS)


def test_a_falling_trace_has_not_converged():
    assert not plateau(np.linspace(0, -1, 500), 1).reached


def test_the_standard_error_holds_for_autocorrelated_noise():
    """Over 200 traces, the gain divided by its standard error has an sd near 1; ignoring the correlation gives 4."""
    z = []
    for seed in range(200):
        judged = plateau(ar1(np.random.default_rng(seed), 2_000, 1.0), 1)
        z.append(judged.gain / judged.se)
    assert 0.8 < np.std(z) < 1.5


def test_a_steady_rise_does_not_count_as_noise():
    judged = plateau(np.linspace(0, 1, 300), 1)
    assert judged.gain > 5 * judged.se


def test_a_short_window_says_nothing():
    assert not plateau(np.zeros(50), 1).reached


def test_the_tolerance_grows_with_the_latents():
    assert tolerance(1) == tolerance(20) == 0.1
    assert tolerance(1_000) == pytest.approx(5.0)


@pytest.mark.parametrize("steps", [1, 99, 200, 399, 400, 5_000, 10_001])
def test_looks_end_at_the_last_step_and_double(steps):
    at = looks(steps)
    assert at[-1] == steps
    assert all(100 <= a <= b <= 2 * a for a, b in zip(at, at[1:], strict=False))


class Walk:
    """An engine's stand-in: gradient descent on `|λ − centre|² / 2` with noisy gradients, many at once, each with its own noise."""

    def __init__(self, centre=lambda step: 0.0, start=5.0, rate=0.1, noise=1.0, parameters=4, fits=20, bend=0.0):
        self.centre, self.first, self.noise, self.bend = centre, rate, noise, bend
        self.fits, self.done, self.died, self.now = fits, 0, [False] * fits, rate
        self.at = np.full((fits, parameters), start)
        self.rng = np.random.default_rng(0)
        self.restart_average()

    def gradient(self, at, noise):
        off = at - self.centre(self.done)
        return (np.expm1(self.bend * off) / self.bend if self.bend else off) + noise

    def run(self, elbo):
        for i in range(elbo.shape[1]):
            noise = self.noise * self.rng.normal(size=self.at.shape)
            elbo[:, i] = -0.5 * ((self.at - self.centre(self.done) + noise) ** 2).sum(1)
            self.at = self.at - self.now * self.gradient(self.at, noise)
            self.done += 1
            self.total += self.at

    def rate(self, factor):
        self.now = self.first * factor

    def restart_average(self):
        self.total = np.zeros_like(self.at)

    def sums(self):
        return torch.from_numpy(self.total.copy())

    def watched(self):
        return self.total.copy()

    def pulls(self, points, draws):
        rng, points = np.random.default_rng(1), points.numpy()
        towards = points - points[:4].mean(0)
        out = []
        for _ in range(draws):
            noise = self.noise * rng.normal(size=self.at.shape)
            out.append([[(self.gradient(point, noise) * to).sum(1) for to in towards] for point in points])
        return np.moveaxis(np.array(out), -1, 0)


def walked(steps=20_000, dimension=2, **settings):
    """The engine and the rule after the rule has ended the run, or the steps ran out."""
    engine = Walk(**settings)
    rule, elbo = Phases(engine, dimension), np.full((engine.fits, steps), np.nan)
    while engine.done < steps:
        engine.run(elbo[:, engine.done : min(rule.next, steps)])
        if engine.done == rule.next and rule.take(elbo):
            break
    return engine, rule


def test_a_walk_about_its_optimum_converges_and_its_mean_is_worth_the_tolerance():
    """Twenty walks at once: the gap of each mean, |λ|² / 2, is below the tolerance, of the last iterates it is not."""
    engine, rule = walked(start=20.0)
    assert rule.converged
    assert engine.done < 20_000
    mean, count = rule.mean()
    assert count >= 512
    assert all(np.mean([fit.mc_error for fit in phase]) <= 0.25 * allowed(2) for phase in rule.phases)
    assert (0.5 * mean.numpy() ** 2).sum(1).max() < allowed(2)
    assert (0.5 * engine.at**2).sum(1).max() > allowed(2)


def test_the_rate_is_lowered_while_that_pays():
    """With a bent gradient the walk's mean lies off its optimum by about the rate; a straight one's does not."""
    settings = {"rate": 0.4, "parameters": 20, "start": 0.5, "steps": 200_000}
    straight, bent = walked(**settings), walked(**settings, bend=0.7)
    assert straight[1].converged
    assert bent[1].converged
    assert len(straight[1].phases) <= 3
    assert len(bent[1].phases) > len(straight[1].phases)
    # The optimum is at nought; at the first rate the mean is off by more than three tolerances' worth.
    off = [float(0.5 * phase[0].gap) for phase in bent[1].phases]
    assert off[1] > off[-1]
    assert (0.5 * bent[1].mean()[0].numpy() ** 2).sum(1).max() < 2 * allowed(2)


@pytest.mark.parametrize(
    "moving",
    [
        {"start": 30.0, "rate": 1e-4},
        {"start": 1.0, "rate": 1e-5},
        {"centre": lambda step: 0.002 * step, "rate": 0.05},
        {"centre": lambda step: 3 * np.sin(step / 3_000), "rate": 0.01},
    ],
    ids=["a tiny rate", "a tinier one", "an optimum that runs away", "one that swings"],
)
def test_a_walk_that_is_still_moving_never_converges(moving):
    """Twenty walks each, on their own: none of them is ever called settled for good."""
    for seed in SEEDS:
        engine = Walk(fits=1, **moving)
        engine.rng = np.random.default_rng(seed)
        rule, elbo = Phases(engine, 2), np.full((1, 8_000), np.nan)
        while engine.done < 8_000:
            engine.run(elbo[:, engine.done : min(rule.next, 8_000)])
            if engine.done == rule.next:
                assert not rule.take(elbo)


def test_a_walk_without_noise_converges_once_what_is_left_of_it_is_worth_nothing():
    """R-hat of a path that creeps to its end is large for ever; what going on would gain is not."""
    engine, rule = walked(noise=0.0, rate=0.01, fits=1)
    assert rule.converged
    assert (0.5 * engine.at**2).sum() < 0.01 * allowed(2)


def test_nothing_is_judged_while_the_objective_moves():
    engine = Walk(fits=1)
    rule, elbo = Phases(engine, 2, begin=3_000), np.full((1, 20_000), np.nan)
    while not rule.converged:
        engine.run(elbo[:, engine.done : rule.next])
        rule.take(elbo)
    assert rule.phases[0][0].first == 3_000
    assert all(phase[0].last - phase[0].averaged >= 3_000 for phase in rule.phases)


def test_r_hat_of_noise_is_small_once_the_window_is_twenty_correlation_times_long():
    rng = np.random.default_rng(0)
    path = np.stack([ar1(rng, 6_400, 1.0, correlation=np.exp(-1 / 320)) for _ in range(200)], -1)
    found = r_hat(path.reshape(4, 16, 100, 200).mean(2))
    assert (found < SMALL).mean() > 0.95
    assert (r_hat(rng.normal(size=(4, 16, 20_000))) < 1.25).all()


def test_r_hat_of_a_steady_drift_is_far_above():
    drift = np.linspace(0, 1, 64).reshape(4, 16, 1)
    assert r_hat(drift) == pytest.approx([4.5], abs=0.3)
    assert r_hat(np.ones((4, 16, 1))) == 1


CONJUGATE = ["normal_mean", "gamma_poisson", "linear_regression", "latent_outcome", "local_level"]
QUICK = ["normal_mean", "linear_regression", "latent_outcome"]
"""128 particles of rejected Gamma draws take half a minute, 256 of a path ten seconds."""


def ends_at_the_optimum(name, seed, **settings):
    recipe = pyrovi.recipe(name)
    data = recipe.load()
    fit = recipe.fit(data, **{"stop": "auto", "schedule": None, "steps": 50_000, "seed": seed, **settings})
    best = recipe.optimum(**data) if recipe.optimum else recipe.exact(**data).log_evidence
    found, start = fit.estimate_elbo(20_000), fit.elbo[0, :3].mean()
    dimension = sum(site.shape.numel() for site in fit.problem.structure.latent.values())
    assert fit.status is pyrovi.Status.converged, fit.advice
    assert best - found.value <= 0.05 * (best - start)
    assert best - found.value <= allowed(dimension) + 3 * found.se
    assert len(fit.settings["phases"]) >= 2
    assert fit.settings["phases"][-1]["last"] == fit.elbo.shape[1]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONJUGATE])
def test_stop_auto_ends_at_the_optimum_of_every_conjugate_recipe(name):
    """Of the gap between the start's ELBO and the family's best 5% may be left, and 0.005 nats a latent; far less is."""
    ends_at_the_optimum(name, 0, engine="traced")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CONJUGATE)
def test_stop_auto_ends_at_the_optimum_of_every_conjugate_recipe_whatever_the_seed(name, seed):
    ends_at_the_optimum(name, seed, **{"particles": 8} if name == "gamma_poisson" else {})


def mean_model(x):
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def mean_guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("w", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)))


ROWS = 3 + np.random.default_rng(0).normal(size=(20, 30))


@pytest.mark.parametrize(
    "settings",
    [{"lr": 1e-4, "steps": 3_000}, {"lr": 1e-4, "steps": 300}, {"lr": 0.01, "steps": 300}, {"lr": 0.05, "steps": 600}],
    ids=str,
)
def test_fits_that_are_still_moving_are_not_called_converged(settings):
    """Twenty data sets and seeds; the start is some 16 posterior sds away."""
    fits = pyrovi.fit_many(mean_model, mean_guide, over={"x": ROWS}, stop="auto", engine="traced", **settings)
    assert {str(status) for status in fits.status} == {"step_limit"}


def test_fits_at_once_go_on_until_the_last_has_converged():
    fits = pyrovi.fit_many(mean_model, mean_guide, over={"x": ROWS}, lr=0.05, particles=4, engine="traced")
    assert {str(status) for status in fits.status} == {"converged"}
    assert fits.elbo.shape[1] < 50_000
    error = (fits.parameters["loc"].numpy() - ROWS.sum(1) / (30 + 0.01)) * 30**0.5
    assert np.abs(error).max() < 0.2


def test_a_model_that_drifts_is_never_called_converged():
    """The outcome that the model sees grows by a posterior sd every hundred steps, which no recording could know."""
    for seed in range(2):
        calls = [0]

        def drifting(x, calls=calls):
            calls[0] += 1
            mean_model(x + 0.0018 * calls[0])

        fit = pyrovi.fit(drifting, mean_guide, {"x": ROWS[0]}, engine="pyro", lr=0.05, steps=1_600, seed=seed)
        assert fit.status is pyrovi.Status.step_limit


@pytest.mark.parametrize("engine", ["pyro", "traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_rule_works_on_every_engine_and_the_seed_gives_the_same_bits(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("PYROVI_CACHE", str(tmp_path))
    settings = {"engine": engine, "lr": 0.1, "particles": 8, "seed": 3}
    first, again = (pyrovi.fit(mean_model, mean_guide, {"x": ROWS[0]}, **settings) for _ in range(2))
    assert first.settings["engine"] == engine
    assert first.status is pyrovi.Status.converged
    assert np.array_equal(first.elbo, again.elbo)
    assert first.settings["phases"] == again.settings["phases"]
    assert [phase["rate"] for phase in first.settings["phases"]] == [0.5**i for i in range(len(first.settings["phases"]))]
    assert abs(float(first.parameters["loc"]) - ROWS[0].sum() / 30.01) * 30**0.5 < 0.15


def test_a_lower_rate_is_a_lower_rate_on_both_engines():
    """From a point on, steps at a tenth of the rate: with plain gradient descent and no noise they are a tenth as long."""
    from pyrovi import svi
    from pyrovi.engine import make_engine
    from pyrovi.plain import Plain

    for kind in ("pyro", "traced"):
        seen = []

        def make(asked, task, kind=kind, seen=seen):
            traced, why = make_engine(kind, task)
            engine = traced or Plain(task.problem, task.objective, task.kl, task.make_optimizer(), task.seeds[0])
            out = np.empty((1, 5))
            engine.run(out)
            a = float(engine.values()[0]["loc"])
            engine.run(out[:, :1])
            b = float(engine.values()[0]["loc"])
            engine.rate(0.1)
            engine.run(out[:, :1])
            seen.append((float(engine.values()[0]["loc"]) - b) / (b - a))
            return traced, why

        def point(x):
            pyro.sample("w", dist.Delta(pyro.param("loc", torch.tensor(0.0))))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(svi, "make_engine", make)
            pyrovi.fit(mean_model, point, {"x": ROWS[0]}, optimizer="sgd", lr=1e-4, steps=20, engine="traced", stop=None)
        assert seen[0] == pytest.approx(0.1, rel=0.02)


def test_a_schedule_is_run_to_its_end():
    fit = pyrovi.fit(mean_model, mean_guide, {"x": ROWS[0]}, schedule="cosine", lr=0.1, steps=4_000, particles=16)
    assert fit.elbo.shape[1] == 4_000
    assert fit.settings["phases"] == []


def test_batches_and_clipping_go_through_the_rule_too():
    x = 3 + np.random.default_rng(1).normal(size=200)
    fit = pyrovi.fit(mean_model, mean_guide, {"x": x}, batch_size=128, clip_norm=50.0, lr=0.1, particles=16, engine="traced")
    assert fit.status is pyrovi.Status.converged
    assert abs(float(fit.parameters["loc"]) - x.mean()) * 200**0.5 < 0.2
