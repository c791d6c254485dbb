"""Bare Pyro: the models, and a loop around `svi.step`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import problems
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from timing import clock, peak

Data = dict[str, Any]


def eight_schools(y: torch.Tensor, s: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(s)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def radon(y: torch.Tensor, floor: torch.Tensor, county: torch.Tensor, counties: int) -> None:
    mu_a, mu_b = pyro.sample("mu_a", dist.Normal(0.0, 5.0)), pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_a, sigma_b = pyro.sample("sigma_a", dist.HalfNormal(5.0)), pyro.sample("sigma_b", dist.HalfNormal(5.0))
    noise = pyro.sample("noise", dist.HalfCauchy(5.0))
    with pyro.plate("counties", counties):
        a, b = pyro.sample("a", dist.Normal(mu_a, sigma_a)), pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(a[county] + b[county] * floor, noise), obs=y)


def tensors(data: Data) -> Data:
    """Floats in single precision, as `fit` makes them; whole numbers as they are."""
    arrays = {name: torch.as_tensor(value) if hasattr(value, "shape") else value for name, value in data.items()}
    return {n: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in arrays.items()}


class Program(NamedTuple):
    """A model with its guide, data and settings, as both a bare loop and `fit` take them."""

    model: Callable[..., None]
    guide: Any
    data: Data
    particles: int = 1
    nesting: int = 1
    lr: float = 0.01


def schools() -> Program:
    return Program(eight_schools, AutoNormal, problems.eight_schools())


def radon_like(**sizes: int) -> Program:
    return Program(radon, AutoNormal, problems.radon_like(**sizes))


def recipe(name: str, guide: Any = None, particles: int = 1) -> Program:
    """One of the package's models, with the guide of that name beside it where none is given."""
    import importlib

    model, own = (importlib.import_module(f"pyrovi.{kind}.{name}") for kind in ("models", "guides"))
    return Program(model.model, guide or own.guide, model.load(), particles, 2 if name == "gamma_poisson" else 1)


def digits(particles: int) -> Program:
    return recipe("gamma_poisson", particles=particles)


def autoencoder() -> Program:
    from pyrovi.guides import vae as guides
    from pyrovi.models import vae as models

    _, hidden, latent = problems.LAYERS
    data = {"images": problems.images(), "latent": latent, "widths": (hidden,), "nonlinearity": "softplus"}
    return Program(models.model, guides.guide, data, lr=1e-3)


def loop(program: Program, steps: int, validate: bool = True) -> float:
    """Seconds of a bare loop, Pyro's checks on as they come, or off as in `fit` once its own have passed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = tensors(program.data)
    guide = program.guide(program.model) if isinstance(program.guide, type) else _matching(program.guide, data)
    many = {"num_particles": program.particles, "vectorize_particles": program.particles > 1, "max_plate_nesting": program.nesting}
    with pyro.validation_enabled(validate):
        svi = SVI(program.model, guide, pyro.optim.Adam({"lr": program.lr}), Trace_ELBO(**many))
        began = clock()
        for _ in range(steps):
            svi.step(**data)
        took = clock() - began
    pyro.clear_param_store()
    return took


def image_loop(program: Program, steps: int) -> float:
    """Seconds of a bare loop over mini-batches of images, with the closed form of KL(q‖prior)."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = tensors(program.data)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": program.lr}), TraceMeanField_ELBO())
    began = clock()
    for _ in range(steps):
        rows = torch.randint(len(data["images"]), (problems.BATCH,))
        svi.step(**{**data, "images": data["images"][rows]})
    took = clock() - began
    pyro.clear_param_store()
    return took


def _matching(guide: Callable[..., None], data: Data) -> Callable[..., None]:
    """A handwritten guide that is called with all the data and takes what it knows."""
    takes = guide.__code__.co_varnames[: guide.__code__.co_argcount]
    return lambda **given: guide(**{name: value for name, value in given.items() if name in takes})


def log_joint(program: Program, values: Data) -> float:
    data = tensors(program.data)
    given = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    data = {n: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in data.items()}
    return float(pyro.poutine.trace(pyro.condition(program.model, data=given)).get_trace(**data).log_prob_sum())


if __name__ == "__main__":  # a process whose memory is looked at
    torch.set_num_threads(1)
    name, steps = sys.argv[1], int(sys.argv[2])
    if name == "autoencoder":
        image_loop(autoencoder(), steps)
    else:
        loop(recipe(name, particles=int(sys.argv[3])), steps)
    print(json.dumps({"peak": peak()}))
