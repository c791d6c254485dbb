"""Levels of trust by case and seed: q that are known to be bad, and q that hold the exact posterior.

    python benchmarks/levels.py [--seeds 20] [--case NAME …]

Prints a Markdown table, a row a case: how often each level was given, k-hat's range, and the median seconds of a check.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch

import pyrovi


def correlated() -> None:
    covariance = torch.tensor([[1.0, 0.99], [0.99, 1.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance))


def funnel(dimension: int = 10) -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(dimension - 1), (v / 2).exp()).to_event(1))


def banana() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.3))


def bimodal() -> None:
    components = dist.Normal(torch.tensor([-5.0, 5.0]), 1.0)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components))


def heavy() -> None:
    pyro.sample("x", dist.StudentT(2.0, 0.0, 1.0))


SCHOOLS = {
    "y": torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]),
    "s": torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]),
}


def schools_centred(y: torch.Tensor, s: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("school", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def schools(y: torch.Tensor, s: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("school", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, s), obs=y)


def fixed(fit: pyrovi.Fit, loc: float, scale: float) -> pyrovi.Fit:
    """A mean-field fit with another q."""
    values = {name: torch.full_like(v, 0.0) for name, v in fit.unconstrained.items()}
    prefix = next(iter(values)).split(".")[0]
    values |= {f"{prefix}.{name}": torch.full_like(values[f"{prefix}.{name}"], x) for name, x in (("loc", loc), ("scale", scale))}
    return replace(fit, unconstrained=values, parameters=fit.problem.parameters.constrained(values))


def gaussian(model: Callable[..., None], guide: str = "normal", data: dict | None = None) -> Callable[[int], pyrovi.Fit]:
    return lambda seed: pyrovi.fit(model, guide, data, method="deterministic", seed=seed, progress=False)


def recipe(name: str, guide: object = None, load: dict | None = None, **settings: object) -> Callable[[int], pyrovi.Fit]:
    def run(seed: int) -> pyrovi.Fit:
        of = pyrovi.recipe(name)
        return of.fit(of.load(**(load or {})), guide, seed=seed, progress=False, **settings)

    return run


def exact(fit: pyrovi.Fit) -> pyrovi.ExactPosterior | None:
    of = pyrovi.recipes.get(fit.recipe or "")
    return of.exact(**{k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in fit.problem.data.items()}) if of else None


def stopped(seed: int) -> pyrovi.Fit:
    return pyrovi.recipe("normal_mean").fit(steps=50, lr=0.01, seed=seed, progress=False)


def delta(seed: int) -> pyrovi.Fit:
    return pyrovi.recipe("normal_mean").fit(guide="delta", seed=seed, steps=500, progress=False)


@dataclass(frozen=True)
class Case:
    fit: Callable[[int], pyrovi.Fit]
    exact: bool = False
    """Whether the check is given the exact posterior."""
    trusted: bool = False
    """Whether the level is to be `trust`, else never."""
    slow: bool = False


BAD = {
    "mean-field on a 0.99-correlated Gaussian": Case(gaussian(correlated)),
    "mean-field on Neal's funnel (10-d)": Case(gaussian(funnel)),
    "full rank on Neal's funnel (10-d)": Case(gaussian(funnel, "multivariate_normal"), slow=True),
    "mean-field on a banana": Case(gaussian(banana)),
    "full rank on a banana": Case(gaussian(banana, "multivariate_normal"), slow=True),
    "q wide over two modes at ±5": Case(lambda seed: fixed(gaussian(bimodal)(seed), 0.0, 6.0)),
    "q on one of two modes at ±5": Case(lambda seed: fixed(gaussian(bimodal)(seed), 5.0, 1.0)),
    "Gaussian on a Student-t(2)": Case(gaussian(heavy)),
    "a guide stopped after 50 steps": Case(stopped),
    "a delta guide": Case(delta),
    "mean-field on eight schools, centred": Case(gaussian(schools_centred, "normal", SCHOOLS)),
    "full rank on eight schools, centred": Case(gaussian(schools_centred, "multivariate_normal", SCHOOLS), slow=True),
    "mean-field on eight schools, non-centred": Case(gaussian(schools, "normal", SCHOOLS), slow=True),
    "full rank on eight schools, non-centred": Case(gaussian(schools, "multivariate_normal", SCHOOLS), slow=True),
}

GOOD = {
    "full rank on a 0.99-correlated Gaussian": Case(gaussian(correlated, "multivariate_normal"), trusted=True),
    "normal_mean": Case(recipe("normal_mean"), trusted=True),
    "normal_mean, with the exact posterior": Case(recipe("normal_mean"), exact=True, trusted=True),
    "gamma_poisson, with the exact posterior": Case(recipe("gamma_poisson"), exact=True, trusted=True, slow=True),
    "latent_outcome": Case(recipe("latent_outcome"), trusted=True, slow=True),
    "latent_outcome, with the exact posterior": Case(recipe("latent_outcome"), exact=True, trusted=True, slow=True),
    "local_level": Case(recipe("local_level"), trusted=True, slow=True),
    "local_level, with the exact posterior": Case(recipe("local_level"), exact=True, trusted=True, slow=True),
}

CASES = BAD | GOOD


def check(case: Case, seed: int) -> pyrovi.Verdict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = case.fit(seed)
    return pyrovi.check(fit, exact(fit) if case.exact else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--case", action="append", help="a part of a case's name")
    parser.add_argument("--text", action="store_true", help="print the first verdict of each case too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | seeds | " + " | ".join(pyrovi.Level) + " | k-hat | as it should |")
    print("|---|--:|" + "--:|" * len(pyrovi.Level) + "---|---|")
    for name, case in CASES.items():
        if given.case and not any(part in name for part in given.case):
            continue
        verdicts, seconds = [], []
        for seed in range(given.seeds):
            began = time.perf_counter()
            verdicts.append(check(case, seed))
            seconds.append(time.perf_counter() - began)
        count = collections.Counter(v.level for v in verdicts)
        khat = [v.evidence.khat for v in verdicts if v.evidence.khat is not None]
        span = f"{min(khat):.2f} to {max(khat):.2f}" if khat else "–"
        right = count[pyrovi.Level.trust] == (given.seeds if case.trusted else 0)
        levels = " | ".join(str(count[level] or "") for level in pyrovi.Level)
        print(
            f"| {name} ({statistics.median(seconds):.1f} s) | {given.seeds} | {levels} | {span} | {'yes' if right else '**no**'} |",
            flush=True,
        )
        if given.text:
            print("\n".join(f"    {line}" for line in repr(verdicts[0]).splitlines()), flush=True)


if __name__ == "__main__":
    main()
