"""pyrovi's side: the same programs by `fit`, on either engine."""

from __future__ import annotations

import json
import sys
from typing import Any

import problems
import torch
from in_pyro import Program, autoencoder, recipe, schools, tensors
from timing import clock, peak

import pyrovi

BEST: dict[str, dict[str, Any]] = {
    "cold": {"method": "deterministic"},
    "warm": {"engine": "compiled", "steps": 10_000, "lr": 0.02, "stop": None},
}
"""How pyrovi gets a posterior fastest: by the defaults of a method with nothing to compile, and by a step compiled before."""


def one_thread() -> None:
    torch.set_num_threads(1)


def fit(program: Program, engine: str = "compiled", **settings: Any) -> pyrovi.Fit:
    settings = {"particles": program.particles, "lr": program.lr, "stop": None, "progress": False, **settings}
    fitted = pyrovi.fit(program.model, program.guide, tensors(program.data), engine=engine, **settings)
    if engine not in ("auto", fitted.settings["engine"]):
        raise RuntimeError(f"engine {engine!r} cannot run this fit: {fitted.settings['engine_reason']}")
    return fitted


def images(program: Program, engine: str = "auto", **settings: Any) -> pyrovi.Fit:
    return fit(program, engine, objective="mean_field", batch_size=problems.BATCH, **settings)


def replicates(n: int, **settings: Any) -> Any:
    program = schools()
    data = tensors({**program.data, "y": problems.many_schools(n)})
    over = {"y": data.pop("y")}
    return pyrovi.fit_many(program.model, program.guide, data, over=over, lr=program.lr, stop=None, progress=False, **settings)


def accurately(program: Program, way: str, seed: int = 0) -> pyrovi.Fit:
    """The eight schools' posterior by the shortest way."""
    return pyrovi.fit(program.model, "normal", tensors(program.data), seed=seed, progress=False, **BEST[way])


def posterior(fitted: pyrovi.Fit) -> problems.Gaussians:
    """Means and sds of q in unconstrained space, from 40,000 draws: to 0.005 sd and 0.4%."""
    draws = fitted.posterior(40_000)
    flat = torch.cat([draws["mu"][:, None], draws["tau"].log()[:, None], draws["z"]], 1).double().numpy()
    return problems.Gaussians(flat.mean(0), flat.std(0))


if __name__ == "__main__":  # a process that is timed from its start, or whose memory is looked at
    one_thread()
    match sys.argv[1:]:
        case ["accurately"]:
            fitted = accurately(schools(), "cold")
            took = clock()
            loc, sd = posterior(fitted)
            print(json.dumps({"seconds": took, "loc": loc.tolist(), "sd": sd.tolist()}))
        case ["autoencoder", steps, engine]:
            images(autoencoder(), engine, steps=int(steps))
            print(json.dumps({"peak": peak()}))
        case [name, steps, particles, engine]:
            fit(recipe(name, particles=int(particles)), engine, steps=int(steps))
            print(json.dumps({"peak": peak()}))
