"""The noise of a step's gradient: the named gradients beside each objective's own, and the ways to draw a Gamma.

    python benchmarks/gradients.py

The first table is the total variance (over parameters) of single-draw gradients with `sticking_the_landing` as a share of that with
`total`, at each guide's start and after a fit. The second is the signal-to-noise ratio (|mean| / sd) of importance-weighted
gradients for one latent, by the number of weights. The third is for gamma_poisson, at its guide's start and at the exact posterior:
standard deviations as the median over the 64 pixels, by parameter: implicit reparameterization against two score functions.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO
from torch.distributions import constraints

import pyrovi
from pyrovi._isolation import isolated
from pyrovi.models import gamma_poisson
from pyrovi.objective import ImportanceWeighted, StickingTheLanding
from pyrovi.preflight import Problem, prepare

DRAWS = 2_000
SEEDS = (0, 1, 2)

RECIPES = {
    ("normal_mean", None): {},
    ("linear_regression", None): {"steps": 2_000, "schedule": "cosine"},
    ("linear_regression", "multivariate_normal"): {"steps": 4_000, "schedule": "cosine"},
    ("gamma_poisson", None): {"steps": 2_000, "schedule": "cosine", "particles": 16},
    ("local_level", None): {"steps": 1_000, "objective": "trace_elbo"},
}
"""Recipe and guide (None for its own), and what is set for its fit."""


KINDS = ("implicit", "score function", "score function, running baseline")


def gradients(shape: torch.Tensor, rate: torch.Tensor, data: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Single-draw gradients with respect to the guide's unconstrained parameters: by name, `(DRAWS, 64)`."""
    infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.99}} if "baseline" in kind else {}

    def guide(x: torch.Tensor, prior_image: torch.Tensor) -> None:
        a = pyro.param("alpha", shape.clone(), constraint=constraints.positive)
        b = pyro.param("beta", rate.clone(), constraint=constraints.positive)
        with pyro.plate("pixel", 64, dim=-1):
            pyro.sample("theta", dist.Gamma(a, b).has_rsample_(kind == "implicit"), infer=infer)

    # Pyro's score function is Rao-Blackwellised over plates, so that a pixel's gradient has only that pixel's noise.
    elbo = Trace_ELBO() if kind == "implicit" else TraceGraph_ELBO()
    out: dict[str, list[torch.Tensor]] = {"alpha": [], "beta": []}
    for _ in range(DRAWS):
        elbo.loss_and_grads(gamma_poisson.model, guide, **data)
        for name, kept in out.items():
            leaf = pyro.get_param_store().get_state()["params"][name]
            kept.append(leaf.grad.clone())
            leaf.grad = None
    return {name: torch.stack(kept) for name, kept in out.items()}


def noise(problem: Problem, elbo: ELBO, seed: int, draws: int = 400) -> float:
    """The total variance of single-draw gradients at the parameters as they stand."""
    leaves = problem.parameters.leaves.values()
    pyro.set_rng_seed(seed)
    seen = []
    for _ in range(draws):
        elbo.loss_and_grads(problem.model, problem.guide, **problem.data)  # type: ignore[attr-defined]
        seen.append(torch.cat([leaf.grad.reshape(-1).clone() for leaf in leaves]))  # type: ignore[union-attr]
        for leaf in leaves:
            leaf.grad = None
    return torch.stack(seen).var(0).sum().item()


def share(name: str, guide: str | None, settings: dict[str, object], seed: int) -> tuple[float, float]:
    """The variance of `sticking_the_landing` over that of `total`: at the guide's start, and after a fit."""
    recipe = pyrovi.recipe(name)
    fit = recipe.fit(guide=guide, seed=seed, dtype="float64", progress=False, **settings)
    found = []
    with isolated(seed, torch.float64):
        given = recipe.guide if guide is None else guide
        problem = prepare(recipe.model, given, recipe.load(), dtype=torch.float64, device=torch.device("cpu"))
        start = problem.parameters.values()
        for values in (start, fit.unconstrained):
            problem.parameters.assign(values)
            found.append(noise(problem, StickingTheLanding(), seed) / noise(problem, Trace_ELBO(), seed))
        problem.parameters.give_back(start)
    return found[0], found[1]


def signal_to_noise(gradient: str, k: int, seed: int, copies: int = 2_000) -> float:
    """|mean| / sd of the gradient by the mean of q, whose best is 0.75 and which is at 0.3; one latent, one outcome of 1.5."""
    y = torch.full((copies,), 1.5, dtype=torch.float64)

    def model(y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.full_like(y, 0.3)), 0.9))

    with isolated(seed, torch.float64):
        elbo = ImportanceWeighted(num_particles=k, vectorize_particles=True, max_plate_nesting=1, gradient=gradient)
        elbo.loss_and_grads(model, guide, y)
        gradient_by_copy = pyro.get_param_store().get_state()["params"]["loc"].grad
    return (gradient_by_copy.mean().abs() / gradient_by_copy.std()).item()


def named() -> None:
    seeds = ", ".join(map(str, SEEDS))
    print(f"Variance of sticking_the_landing over that of total, seeds {seeds}\n")
    print("| recipe | guide | at the start | after the fit |")
    print("| --- " * 4 + "|")
    for (name, guide), settings in RECIPES.items():
        ratios = [share(name, guide, settings, seed) for seed in SEEDS]
        start, end = (", ".join(f"{pair[i]:.2g}" for pair in ratios) for i in (0, 1))
        print(f"| `{name}` | {guide or 'its own'} | {start} | {end} |")
    print(f"\nSignal-to-noise ratio of importance-weighted gradients, seeds {seeds}\n")
    print("| weights | total | doubly_reparameterized |")
    print("| --- " * 3 + "|")
    for k in (2, 10, 50, 250):
        cells = [", ".join(f"{signal_to_noise(g, k, seed):.2f}" for seed in SEEDS) for g in ("total", "doubly_reparameterized")]
        print(f"| {k} | {' | '.join(cells)} |")


def gammas() -> None:
    loaded = {name: torch.as_tensor(value) for name, value in gamma_poisson.load().items()}
    prior = loaded["prior_image"]
    start = 2.0 * prior, torch.full((64,), 2.0, dtype=torch.float64)
    end = 2.0 * prior + loaded["x"].sum(0), torch.full((64,), 2.0 + len(loaded["x"]), dtype=torch.float64)
    print("| where | parameter |", " | ".join(KINDS), "|")
    print("| --- " * (2 + len(KINDS)) + "|")
    for where, (shape, rate) in {"the start": start, "the posterior": end}.items():
        found = {}
        for kind in KINDS:
            with isolated(0, torch.float64):
                found[kind] = gradients(shape, rate, loaded, kind)
        for name in ("alpha", "beta"):
            # The baseline is zero at first: the second half has it in place.
            noise = [f"{found[kind][name][DRAWS // 2 :].std(0).median().item():,.3g}" for kind in KINDS]
            print(f"| {where} | `{name}` |", " | ".join(noise), "|")


def main() -> None:
    torch.set_num_threads(1)
    named()
    print("\nWays to draw a Gamma: sd of single-draw gradients\n")
    gammas()


if __name__ == "__main__":
    main()
