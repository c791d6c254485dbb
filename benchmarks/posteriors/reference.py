"""References by NUTS, or exact where there is an exact answer: writes files/NAME.json. Needs numpyro, pyro-ppl, arviz.

    python benchmarks/posteriors/reference.py [NAME …] [--check] [--draws 5000]

NUTS is NumPyro's in float64, four chains, on the model's twin, whose log density is first shown to be the Pyro model's at random
points. It starts at the mode, whitened by the Hessian there, where there is a mode; sites named `not_centred` are sampled so and
reported as written. A run is kept only when r_hat < 1.01, no transition diverges, every scalar has bulk and tail ess > 2,000, and
the Monte Carlo errors of all means and sds are under 0.03 sd.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC, NUTS, init_to_feasible
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import constrain_fn, initialize_model, log_density
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy.optimize import minimize

from posteriors import ALL, FILES, Posterior
from posteriors.twins import AS_SAMPLED, TWINS

numpyro.enable_x64()
numpyro.enable_validation(False)
pyro.enable_validation(False)
torch.set_default_dtype(torch.float64)

NO_MODE = ("cancer", "star98_districts", "elnino", "fertility")
"""Centred hierarchies whose data speak for the centred form: their joint density has its maximum where a scale is 0."""

LEAST_ESS, MOST_ERROR = 2_000, 0.03


def agreement(m: Posterior, points: list[dict[str, np.ndarray]]) -> float:
    """The largest difference between the two log densities' changes from point to point, relative to their size."""
    data, rows = m.data(), []
    for values in points:
        theirs, _ = log_density(TWINS[m.name], (), data, values)
        rows.append((pyro_log_density(m, data, values), float(theirs)))
    ours, theirs = np.diff(np.array(rows), axis=0).T
    return float(np.max(np.abs(ours - theirs) / (1 + np.abs(theirs))))


def near_zero(m: Posterior, points: int = 5, radius: float = 1e-3) -> list[dict[str, np.ndarray]]:
    """Values of the sites at points near 0 on the unconstrained scale, where every model's density is a number."""
    data = m.data()
    info = initialize_model(
        jax.random.PRNGKey(0), TWINS[m.name], model_kwargs=data, dynamic_args=False, init_strategy=init_to_feasible()
    )
    flat, unravel = ravel_pytree(info.param_info.z)
    us = np.random.default_rng(0).uniform(-radius, radius, (points, len(flat)))
    found = [constrain_fn(TWINS[m.name], (), data, unravel(jnp.asarray(u))) for u in us]
    return [{name: np.array(value) for name, value in values.items()} for values in found]


def pyro_log_density(m: Posterior, data: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> float:
    model = poutine.condition(m.model, data={name: torch.from_numpy(value) for name, value in values.items()})
    tensors = {name: torch.from_numpy(value) for name, value in data.items()}
    pyro.clear_param_store()
    guide = lambda **_: None  # noqa: E731
    return -TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False).loss(model, guide, **tensors)


def longley(m: Posterior) -> dict[str, dict[str, list[float]]]:
    """Normal and Gamma: precision ~ Gamma(a, b), coefficients Student-t with 2 a degrees of freedom."""
    data, prior, a, b = m.data(), 1e5, 0.01, 0.01
    x = np.column_stack([np.ones(len(data["y"])), data["x"]])
    unit = np.abs(x).max(0)
    q, r = np.linalg.qr(np.vstack([x / unit, np.diag(1 / (prior * unit))]))
    y = np.r_[data["y"], np.zeros(x.shape[1])]
    mean = np.linalg.solve(r, q.T @ y)
    a, b = a + len(data["y"]) / 2, b + np.sum((y - q @ (q.T @ y)) ** 2) / 2
    variance = np.sum(np.linalg.inv(r) ** 2, 1) * b / (a - 1)
    mean, sd = mean / unit, np.sqrt(variance) / unit
    return {
        "precision": {"mean": a / b, "sd": math.sqrt(a) / b},
        "intercept": {"mean": mean[0], "sd": sd[0]},
        "coef": {"mean": mean[1:].tolist(), "sd": sd[1:].tolist()},
    }


def whitening(potential, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mode, and a root of the inverse Hessian there, its negative curvatures turned round."""
    value = jax.jit(jax.value_and_grad(potential))
    hessian = jax.jit(jax.hessian(potential))

    def f(u):
        p, g = value(u)
        return (float(p), np.array(g)) if np.isfinite(p) and np.isfinite(g).all() else (1e300, np.zeros(len(u)))

    def root(h):
        d = 1 / np.sqrt(np.maximum(np.abs(np.diag(h)), 1e-30))
        w, v = np.linalg.eigh(d[:, None] * h * d)
        return d[:, None] * v / np.sqrt(np.maximum(np.abs(w), 1e-12))

    x = minimize(f, start, jac=True, method="L-BFGS-B", options={"maxiter": 3_000}).x
    for _ in range(200):
        p, g = f(x)
        s = root(np.array(hessian(x)))
        step, length = -s @ (s.T @ g), 1.0
        while f(x + length * step)[0] > p and length > 1e-6:
            length /= 2
        if length <= 1e-6 or p - f(x + length * step)[0] < 1e-9:
            break
        x = x + length * step
    return x, root(np.array(hessian(x)))


def nuts(m: Posterior, draws: int, warmup: int, chains: int, target: float, seed: int):
    """Draws by site, shape (chains, draws, …), as the model is written; the run's dimension and divergences."""
    data, twin = m.data(), AS_SAMPLED.get(m.name, TWINS[m.name])
    if m.not_centred and m.name not in AS_SAMPLED:
        twin = numpyro.handlers.reparam(twin, config={name: LocScaleReparam(0.0) for name in m.not_centred})
    info = initialize_model(jax.random.PRNGKey(seed), twin, model_kwargs=data, dynamic_args=False, init_strategy=init_to_feasible())
    flat, unravel = ravel_pytree(info.param_info.z)
    potential = lambda u: info.potential_fn(unravel(u))  # noqa: E731
    if m.name in NO_MODE:
        centre, root = np.array(flat), np.eye(len(flat))
    else:
        centre, root = whitening(potential, np.array(flat))
    kernel = NUTS(
        potential_fn=lambda e: potential(centre + root @ e),
        dense_mass=len(flat) <= 120,
        target_accept_prob=target,
    )
    run = MCMC(kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="sequential", progress_bar=False)
    starts = 0.5 * np.random.default_rng(seed).standard_normal((chains, len(flat)))
    run.run(jax.random.PRNGKey(seed + 1), init_params=jnp.asarray(starts), extra_fields=("diverging", "num_steps"))
    e = run.get_samples(group_by_chain=True)
    sites = jax.jit(jax.vmap(jax.vmap(lambda e: info.postprocess_fn(unravel(centre + root @ e)))))(e)
    extra = run.get_extra_fields(group_by_chain=True)
    return sites, len(flat), int(extra["diverging"].sum()), float(extra["num_steps"].mean())


def reference(m: Posterior, draws: int, warmup: int = 2_000, chains: int = 4, target: float = 0.9, seed: int = 0) -> bool:
    """Run and write; whether the run is clean."""
    began = time.process_time()
    if m.name == "longley":
        write(m, longley(m), {"method": "exact", "dimension": 8})
        return True
    names = site_names(m)
    draws_by_site, dimension, divergences, steps = nuts(m, draws, warmup, chains, target, seed)
    sites, r_hat, bulk, tail, of_mean, of_sd = {}, 0.0, np.inf, np.inf, 0.0, 0.0
    for name in names:
        x = np.array(draws_by_site[name])
        mean, sd = x.mean((0, 1)), x.std((0, 1))
        sd = np.where(sd > 1e-12 * (1 + np.abs(mean)), sd, 0.0)
        sites[name] = {"mean": mean.tolist(), "sd": sd.tolist()}
        for scalar in x.reshape(*x.shape[:2], -1).transpose(2, 0, 1)[sd.ravel() > 0]:
            r_hat = max(r_hat, float(az.rhat(scalar)))
            bulk, tail = min(bulk, float(az.ess(scalar, method="bulk"))), min(tail, float(az.ess(scalar, method="tail")))
            of_mean = max(of_mean, float(az.ess(scalar, method="mean")) ** -0.5)
            of_sd = max(of_sd, error_of_sd(scalar))
    diagnostics = {
        "method": f"NumPyro {numpyro.__version__} NUTS, float64, {chains} chains of {draws:,} draws after {warmup:,}, seed {seed}",
        "sampled": form(m),
        "dimension": dimension,
        "r_hat": round(r_hat, 5),
        "ess_bulk": round(bulk),
        "ess_tail": round(tail),
        "mcse_mean": round(of_mean, 4),
        "mcse_sd": round(of_sd, 4),
        "divergences": divergences,
        "agreement": agreement(
            m, [{name: np.array(draws_by_site[name][0, i]) for name in names} for i in range(0, draws, draws // 10)]
        ),
    }
    clean = (
        r_hat < 1.01
        and min(bulk, tail) > LEAST_ESS
        and divergences == 0
        and diagnostics["agreement"] < 1e-8
        and max(of_mean, of_sd) < MOST_ERROR
    )
    seconds = time.process_time() - began
    print(f"{m.name:<24} {'clean' if clean else 'NOT CLEAN'} {seconds:.0f} s, {steps:.0f} leapfrogs", diagnostics, flush=True)
    if clean:
        write(m, sites, diagnostics)
    return clean


def form(m: Posterior) -> str:
    if m.name in AS_SAMPLED:
        return (AS_SAMPLED[m.name].__doc__ or "").strip()
    return f"{', '.join(m.not_centred)} not centred" if m.not_centred else "as written"


def error_of_sd(x: np.ndarray) -> float:
    """The Monte Carlo standard error of an sd, relative, by the delta method."""
    square = (x - x.mean()) ** 2
    return float(square.std() / (2 * square.mean()) / az.ess(square, method="mean") ** 0.5)


def site_names(m: Posterior) -> list[str]:
    """The continuous latent sites of the Pyro model."""
    tensors = {name: torch.from_numpy(value) for name, value in m.data().items()}
    trace = poutine.util.prune_subsample_sites(poutine.trace(m.model).get_trace(**tensors))
    return [name for name, node in trace.iter_stochastic_nodes() if not node["fn"].has_enumerate_support]


def write(m: Posterior, sites, diagnostics) -> None:
    text = json.dumps({"diagnostics": diagnostics, "sites": sites}, indent=1)
    (FILES / f"{m.name}.json").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="only that the two log densities agree")
    parser.add_argument("--draws", type=int, default=5_000)
    parser.add_argument("--warmup", type=int, default=2_000)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.names or ALL:
        m = ALL[name]
        if options.check:
            print(f"{name:<24} {agreement(m, near_zero(m)):.1e}", flush=True)
        else:
            jax.clear_caches()
            reference(m, options.draws, options.warmup, target=options.target, seed=options.seed)


if __name__ == "__main__":
    main()
