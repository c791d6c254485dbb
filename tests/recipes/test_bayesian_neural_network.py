"""`bayesian_neural_network`: Bayes by Backprop against exact answers, mini-batches, and what makes a prediction uncertain."""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

import pyrovi
from pyrovi.guides.bayesian_neural_network import STARTS, guide
from pyrovi.models.bayesian_neural_network import DOCUMENTS, exact, load, model, uncertainty
from pyrovi.objective import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
UCI = ROOT.parent / "shared" / "data" / "uci"
local = functools.partial(guide, local_reparameterization=True)
STILL = {"optimizer": "sgd", "lr": 1e-300, "dtype": "float64", "stop": None}
"""Settings of a fit whose parameters stay where they start, so that its ELBO by step is of one and the same q."""


def line(n=40, noise=0.5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    return {"x": x, "y": x @ [1.0, -0.5] + 0.3 + noise * rng.normal(size=n), "widths": (), "noise": noise}


def test_without_hidden_layers_it_reaches_the_exact_posterior():
    data = line()
    right = exact(**data)
    fit = pyrovi.fit(model, "multivariate_normal", data, steps=1_500, lr=0.03, particles=8, schedule="cosine", stop=None)
    table = pyrovi.compare(fit, right)
    assert table["error"].abs().max() < 0.1  # seeds 0 to 9: 0.016 to 0.076
    assert (table["sd_ratio"] - 1).abs().max() < 0.06
    assert abs(table.attrs["kl"].value) < 0.05
    assert exact(**{**data, "widths": (20,)}) is None
    assert exact(**{**data, "noise": None}) is None


def test_its_exact_posterior_is_that_of_the_line_and_its_intercept():
    data = line(n=7)
    right = exact(**data)
    draws = right.draws(50_000)
    X = np.column_stack([data["x"], np.ones(7)])
    precision = X.T @ X / data["noise"] ** 2 + np.eye(3)
    beta = np.concatenate([draws["net.0.weight"][..., 0], draws["net.0.bias"]], axis=1)
    assert np.allclose(np.cov(beta.T), np.linalg.inv(precision), atol=0.03 * np.linalg.inv(precision).max())
    assert right.marginals["net.0.bias"].mean() == pytest.approx(np.linalg.solve(precision, X.T @ data["y"] / 0.25)[-1:])


@pytest.mark.parametrize("chosen", [guide, local], ids=["weights", "local"])
def test_epistemic_and_aleatoric_uncertainty_of_a_line_are_those_of_mean_field(chosen):
    """Mean field has the variances 1/diag(precision), so its f(x) has variance Σ x_j²/precision_jj."""
    data = line()
    fit = pyrovi.fit(model, chosen, data, steps=1_500, lr=0.03, particles=4, schedule="cosine", objective="mean_field", stop=None)
    new = np.array([[0.0, 0.0], [3.0, 0.0], [-2.0, 4.0]])
    found = uncertainty(fit, new, 20_000)
    X = np.column_stack([data["x"], np.ones(40)])
    precision = X.T @ X / 0.25 + np.eye(3)
    rows = np.column_stack([new, np.ones(3)])
    assert np.allclose(found.mean, rows @ np.linalg.solve(precision, X.T @ data["y"] / 0.25), atol=0.02)
    assert np.allclose(found.epistemic, np.sqrt(rows**2 @ (1 / np.diag(precision))), rtol=0.05)
    assert np.allclose(found.aleatoric, 0.5)
    assert np.allclose(found.total**2, found.epistemic**2 + 0.25)


def test_uncertainty_grows_away_from_the_data_and_the_noise_is_learned():
    """D0's data have noise 0.3 on [−3, 3]. From 100 points an sd is known to 7%."""
    data = {**load(), "noise": None}
    fit = pyrovi.fit(model, local, data, steps=1_500, lr=0.02, schedule="cosine", objective="mean_field", stop=None)
    inside, outside = uncertainty(fit, np.linspace(-2, 2, 20)), uncertainty(fit, np.array([-6.0, 6.0]))
    assert outside.epistemic.min() > 2 * inside.epistemic.max()
    assert np.all(inside.aleatoric == outside.aleatoric[0])
    assert 0.24 < outside.aleatoric[0] < 0.36
    assert np.abs(inside.mean - np.sin(np.linspace(-2, 2, 20))).max() < 0.3


@pytest.mark.parametrize("document", ["D0", "D4"])
def test_the_documents_start_where_they_say(document):
    data = load(document)
    start = functools.partial(guide, **STARTS[document])
    fit = pyrovi.fit(model, start, data, steps=1, **STILL)
    rho = {name: torch.special.expm1(v).log() for name, v in fit.parameters.items() if name.endswith("scale")}
    expected = {"D0": (-3.0, -3.0, 0.1, 0.1), "D4": (-2.5, 0.0, 0.001, 0.0)}[document]
    assert torch.allclose(rho["net.0.weight.scale"], torch.tensor(expected[0], dtype=torch.float64))
    assert torch.allclose(rho["net.1.bias.scale"], torch.tensor(expected[1], dtype=torch.float64))
    assert fit.parameters["net.0.weight.loc"].std().item() == pytest.approx(expected[2], rel=0.5)
    assert fit.parameters["net.0.bias.loc"].std().item() == pytest.approx(expected[3], rel=0.5, abs=1e-12)
    widths = DOCUMENTS[document]["widths"]
    assert fit.parameters[f"net.{len(widths)}.weight.loc"].shape == (widths[-1], 1)
    with pytest.raises(pyrovi.SettingsError, match="D0, D4"):
        load("D5")


def test_the_documents_kl_weight_is_a_tenth_of_the_noise():
    """KL/100 beside a likelihood of noise 1 is a hundredth of the ELBO at noise 0.1: with the same draws, so is its gradient."""
    data, seen = load(), {}
    for noise, weight in ((1.0, 0.01), (0.1, 1.0)):
        parameters = []
        pyrovi.fit(
            model,
            guide,
            {**data, "noise": noise},
            steps=2,
            kl_weight=weight,
            optimizer="sgd",
            lr=1e-6 if noise == 1 else 1e-8,
            dtype="float64",
            stop=None,
            callbacks=lambda step, kept=parameters: kept.append(step.parameters()),
        )
        seen[noise] = {name: parameters[1][name] - parameters[0][name] for name in parameters[0]}
    for name, change in seen[1.0].items():
        assert torch.allclose(change, seen[0.1][name], rtol=1e-5, atol=1e-6 * float(change.abs().max())), name


def elbo_by_draw(fit, seeds):
    """The ELBO of all data, and the mean over one pass of the batches weighted by B/n, with the same weights drawn: by seed."""
    whole, passes = [], []
    with fit.loaded() as problem, torch.no_grad():
        batched = problem.batched()
        blocks = problem.batches.blocks(problem.device)

        def elbo(seed, guide, model, data):
            pyro.set_rng_seed(seed)
            drawn = poutine.trace(guide).get_trace(**data)
            return float(poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**data).log_prob_sum() - drawn.log_prob_sum())

        for seed in seeds:
            whole.append(elbo(seed, problem.guide, problem.model, problem.data))
            total = 0.0
            for block in blocks:
                batched.take(block)
                total += len(block) / problem.batches.size * elbo(seed, batched.guide, batched.model, {})
            passes.append(total)
    return np.array(whole), np.array(passes), [len(block) for block in blocks]


@pytest.mark.parametrize("noise", [0.3, None])
def test_one_pass_over_mini_batches_has_the_full_elbo_draw_by_draw(noise):
    """With the same weights drawn in every batch the two agree to the last digits, and so do their expectations."""
    fit = pyrovi.fit(model, guide, {**load(), "noise": noise}, steps=1, batch_size=30, **STILL)
    whole, passes, sizes = elbo_by_draw(fit, range(5))
    assert sizes == [30, 30, 30, 10]
    assert np.allclose(whole, passes, rtol=1e-12)
    assert np.ptp(whole) > 1


@pytest.mark.parametrize("objective", ["trace_elbo", "mean_field"])
def test_one_pass_has_the_full_expected_elbo_with_local_reparameterization(objective):
    """300 passes over batches of 30, 30, 30 and 10 against 300 estimates on all data, within 5 standard errors."""
    fit = pyrovi.fit(model, local, load(), steps=1, batch_size=30, **STILL)
    with fit.loaded() as problem:
        elbo, batched = OBJECTIVES[objective](), problem.batched()
        blocks = problem.batches.blocks(problem.device)

        def on(block):
            batched.take(block)
            return -elbo.differentiable_loss(batched.model, batched.guide).item()

        full = np.array([-elbo.differentiable_loss(problem.model, problem.guide, **problem.data).item() for _ in range(300)])
        passes = np.array([sum(len(block) / 100 * on(block) for block in blocks) for _ in range(300)])
    se = math.sqrt((full.var(ddof=1) + passes.var(ddof=1)) / 300)
    assert abs(full.mean() - passes.mean()) < 5 * se


def test_a_document_weighs_each_batchs_kl_by_the_number_of_batches():
    """D4 divides the KL by M and sums over batches; Pyro's plate makes each batch's ELBO M times that, for M equal batches."""
    data = load("D4")
    fit = pyrovi.fit(model, guide, data, steps=1, batch_size=50, **STILL)
    batches = 3
    with fit.loaded() as problem, torch.no_grad():
        batched = problem.batched()
        batched.take(problem.batches.blocks(problem.device)[0])
        drawn = poutine.trace(batched.guide).get_trace()
        trace = poutine.trace(poutine.replay(batched.model, trace=drawn)).get_trace()
        ours = float(trace.log_prob_sum() - drawn.log_prob_sum())
        kl = float(drawn.log_prob_sum() - trace.log_prob_sum(lambda name, _: name.startswith("net")))
        y = trace.nodes["y"]
        theirs = float(y["fn"].log_prob(y["value"]).sum()) - kl / batches
    assert ours == pytest.approx(batches * theirs, rel=1e-9)


def test_particles_are_run_together_and_any_depth_predicts_new_data():
    data = {**load("D4"), "widths": (8, 6, 4), "nonlinearity": "tanh"}
    fit = pyrovi.fit(model, local, data, steps=30, particles=5, batch_size=64, stop=None)
    assert fit.settings["vectorized"]
    predicted = fit.predictive(40, data={"x": np.linspace(-30, 70, 11)})
    assert predicted["mean"].shape == predicted["y"].shape == (40, 11)
    assert fit.posterior(3)["net.3.weight"].shape == (3, 4, 1)


def test_a_table_of_many_columns_and_an_automatic_guide():
    X, y, _ = pyrovi.data.diabetes()
    data = {"x": X[:300], "y": y[:300], "widths": (10, 10), "noise": None}
    fit = pyrovi.fit(model, local, data, steps=1_500, lr=0.01, schedule="cosine", objective="mean_field", batch_size=100, stop=None)
    found = uncertainty(fit, X[300:])
    assert np.mean((found.mean - y[300:]) ** 2) < 0.6 * np.var(y[300:])
    assert 0.6 < found.aleatoric[0] < 0.9  # what an R² of about a half leaves
    named = pyrovi.fit(model, "low_rank", data, steps=20, particles=4, stop=None)
    assert named.settings["vectorized"]
    assert uncertainty(named, X[300:], 20).mean.shape == (142,)


def benchmark():
    spec = importlib.util.spec_from_file_location("uci", ROOT / "benchmarks" / "uci.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not UCI.is_dir(), reason="the UCI regression sets are not there")
def test_the_standard_splits_are_those_of_the_published_tables():
    """They regenerate: NumPy's seed 1, a choice of all rows without replacement a split, the first 90% for training."""
    uci = benchmark()
    with np.load(UCI / "yacht.npz") as file:
        y, n = file["y"].ravel(), int(file["n"])
    generator = np.random.RandomState(1)
    for number in range(3):
        chosen = generator.choice(range(n), n, replace=False)[round(0.9 * n) :]
        part = uci.split(UCI, "yacht", number)
        assert len(part.y) + len(part.y_test) == n
        mean = y[np.setdiff1d(np.arange(n), chosen)].mean()
        assert np.allclose(np.sort(part.y_test * part.sd + mean), np.sort(y[chosen]))
        assert np.allclose(part.x.std(0), 1)
        validation = uci.split(UCI, "yacht", number, validate=True)
        assert len(validation.y) + len(validation.y_test) == len(part.y)


@pytest.mark.slow
@pytest.mark.skipif(not UCI.is_dir(), reason="the UCI regression sets are not there")
@pytest.mark.parametrize("name", ["yacht", "energy", "bostonHousing"])
def test_a_published_table_is_beaten(name):
    """Three of the 20 splits; the benchmark does them all."""
    uci = benchmark()
    scores = [uci.score(uci.split(UCI, name, number)) for number in range(3)]
    (_, graves), _, _ = uci.PUBLISHED[name]
    assert np.mean([score.log_likelihood for score in scores]) > graves


@pytest.mark.slow
def test_predictions_are_those_of_nuts():
    """A network of five hidden units on a third of D0's data, noise 0.3; NUTS's own error in f is about 0.1 of its sd.

    Where the data are, a full covariance is within half a posterior sd of NUTS in the mean of f and has its predictive sd to 10%;
    mean field is within 0.8, and its predictive sd between 0.85 and 1.3 times NUTS's. Beyond the data mean field is too narrow.
    """
    from pyro.infer import MCMC, NUTS

    data = {**load(), "widths": (5,), "noise": 0.3}
    data["x"], data["y"] = data["x"][::3], data["y"][::3]
    grid = np.linspace(-5, 5, 41)
    inside = np.abs(grid) <= 3

    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        mcmc = MCMC(NUTS(model, max_tree_depth=7), num_samples=600, warmup_steps=300, disable_progbar=True)
        mcmc.run(**{**data, "x": torch.as_tensor(data["x"]).float(), "y": torch.as_tensor(data["y"]).float()})
    draws = {name: value.double() for name, value in mcmc.get_samples().items()}
    hidden = torch.relu(torch.as_tensor(grid)[:, None] @ draws["net.0.weight"] + draws["net.0.bias"][:, None])
    f = (hidden @ draws["net.1.weight"] + draws["net.1.bias"][:, None]).squeeze(-1).numpy()
    mean, sd = f.mean(0), f.std(0)

    def best_of_three(chosen, **settings):
        settings = {"steps": 4_000, "lr": 0.01, "schedule": "cosine", "stop": None, **settings}
        fits = [pyrovi.fit(model, chosen, data, seed=seed, **settings) for seed in range(3)]
        found = uncertainty(max(fits, key=lambda fit: fit.estimate_elbo(2_000).value), grid)
        ratio = found.total / np.hypot(sd, 0.3)
        return np.abs((found.mean - mean) / sd)[inside].max(), ratio[inside], found.epistemic / sd

    start = functools.partial(local, loc_sd=None)
    error, ratio, epistemic = best_of_three(start, objective="mean_field", kl_annealing=1_500)
    assert error < 0.8
    assert 0.85 < ratio.min() < ratio.max() < 1.3
    assert np.median(epistemic[~inside]) < 0.9
    error, ratio, _ = best_of_three("multivariate_normal", particles=8)
    assert error < 0.5
    assert 0.9 < ratio.min() < ratio.max() < 1.1
