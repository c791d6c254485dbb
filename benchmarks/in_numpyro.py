"""NumPyro: the same models, `svi.run` as users call it, and the step scanned by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import problems
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from timing import clock

Data = dict[str, Any]


def eight_schools(y: jax.Array, s: jax.Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(s)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def radon(y: jax.Array, floor: jax.Array, county: jax.Array, counties: int) -> None:
    mu_a, mu_b = numpyro.sample("mu_a", dist.Normal(0.0, 5.0)), numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_a, sigma_b = numpyro.sample("sigma_a", dist.HalfNormal(5.0)), numpyro.sample("sigma_b", dist.HalfNormal(5.0))
    noise = numpyro.sample("noise", dist.HalfCauchy(5.0))
    with numpyro.plate("counties", counties):
        a, b = numpyro.sample("a", dist.Normal(mu_a, sigma_a)), numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("houses", len(y)):
        numpyro.sample("y", dist.Normal(a[county] + b[county] * floor, noise), obs=y)


def gamma_poisson(x: jax.Array, prior_image: jax.Array, weight: float = 2.0) -> None:
    with numpyro.plate("pixel", x.shape[-1], dim=-1):
        theta = numpyro.sample("theta", dist.Gamma(weight * prior_image, weight))
        with numpyro.plate("image", len(x), dim=-2):
            numpyro.sample("x", dist.Poisson(theta), obs=x)


def gamma_guide(x: jax.Array, prior_image: jax.Array, weight: float = 2.0) -> None:
    alpha = numpyro.param("alpha", weight * prior_image, constraint=dist.constraints.positive)
    beta = numpyro.param("beta", jnp.full(prior_image.shape, weight), constraint=dist.constraints.positive)
    with numpyro.plate("pixel", len(prior_image), dim=-1):
        numpyro.sample("theta", dist.Gamma(alpha, beta))


class Program(NamedTuple):
    model: Callable[..., None]
    guide: Callable[..., None] | None
    """None for AutoNormal."""
    data: Data
    particles: int = 1

    def svi(self, lr: float | Callable[[Any], Any] = 0.01) -> SVI:
        guide = AutoNormal(self.model) if self.guide is None else self.guide
        return SVI(self.model, guide, numpyro.optim.Adam(lr), Trace_ELBO(num_particles=self.particles))


def schools() -> Program:
    return Program(eight_schools, None, problems.eight_schools())


def radon_like(**sizes: int) -> Program:
    return Program(radon, None, problems.radon_like(**sizes))


def digits(particles: int) -> Program:
    from pyrovi.models import gamma_poisson as ours

    return Program(gamma_poisson, gamma_guide, ours.load(), particles)


def arrays(data: Data) -> Data:
    return {name: jnp.asarray(value) if hasattr(value, "shape") else value for name, value in data.items()}


def run(program: Program, steps: int, lr: float | Callable[[Any], Any] = 0.01, seed: int = 0) -> dict[str, jax.Array]:
    """`svi.run` as users call it, without its bar, which would only slow it: it traces and compiles at every call."""
    result = program.svi(lr).run(jax.random.PRNGKey(seed), steps, **arrays(program.data), progress_bar=False)
    return jax.block_until_ready(result.params)


class Scanned:
    """`lax.scan` of the step, jitted by hand once and called again: XLA's best. With `restarts`, vmapped over them."""

    def __init__(self, program: Program, restarts: int | None = None) -> None:
        svi, data = program.svi(), arrays(program.data)
        keys = jax.random.PRNGKey(0) if restarts is None else jax.random.split(jax.random.PRNGKey(0), restarts)

        def start(key: jax.Array) -> Any:
            return svi.init(key, **data)

        def step(state: Any, _: None) -> Any:
            return svi.update(state, **data)

        def steps(state: Any, n: int) -> Any:
            return jax.lax.scan(step, state, None, length=n)

        self.state = start(keys) if restarts is None else jax.vmap(start)(keys)
        self.scan = jax.jit(
            steps if restarts is None else lambda state, n: jax.vmap(lambda one: steps(one, n))(state), static_argnums=1
        )

    def __call__(self, n: int) -> None:
        jax.block_until_ready(self.scan(self.state, n))


def cosine(lr: float, steps: int) -> Callable[[Any], Any]:
    return lambda step: lr * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))


BEST = {"steps": 4_000, "lr": 0.02, "particles": 1}
"""Of the grid of `tune`, what gets there from every seed in the least time, most of which is compilation: one particle compiles
faster than several. The rate falls by a cosine."""


def accurately(steps: int, lr: float, particles: int, seed: int = 0) -> dict[str, jax.Array]:
    return run(schools()._replace(particles=particles), steps, cosine(lr, steps), seed)


def posterior(params: dict[str, jax.Array]) -> problems.Gaussians:
    parts = [[np.atleast_1d(params[f"{site}_auto_{what}"]) for site in ("mu", "tau", "z")] for what in ("loc", "scale")]
    return problems.Gaussians(*(np.concatenate(part).astype(float) for part in parts))


def tune(seeds: int) -> None:
    """Print which runs of a grid get near the optimum from every seed; the seeds are one vmapped loop, compiled once."""
    optimum, keys, data = problems.optimum(), jax.random.split(jax.random.PRNGKey(0), seeds), arrays(problems.eight_schools())
    for particles in (1, 4, 16, 64):
        program = schools()._replace(particles=particles)

        @jax.jit
        def ends(steps: Any, lr: Any, program: Program = program) -> dict[str, jax.Array]:
            svi = program.svi(cosine(lr, steps))
            start = jax.vmap(lambda key: svi.init(key, **data))(keys)
            step = jax.vmap(lambda state: svi.update(state, **data)[0])
            return jax.vmap(svi.get_params)(jax.lax.fori_loop(0, steps, lambda _, states: step(states), start))

        for steps in (125, 250, 500, 1_000, 2_000, 4_000, 8_000):
            for lr in (0.02, 0.05, 0.1, 0.2):
                found = ends(steps, lr)
                near = [posterior({name: value[i] for name, value in found.items()}).near(optimum) for i in range(seeds)]
                if all(near):
                    print(f"{particles:3d} particles {steps:5d} steps lr {lr:4}: all {seeds}", flush=True)


def log_joint(program: Program, values: Data) -> float:
    with jax.enable_x64(True):
        return float(log_density(program.model, (), arrays(program.data), arrays(values))[0])


def elbo(program: Program, params: Data) -> tuple[float, float]:
    """Its estimate at a guide's parameters, and the standard error, from 50 means of 400 draws."""
    svi, data = program._replace(particles=400).svi(), arrays(program.data)
    guide = svi.guide
    svi.init(jax.random.PRNGKey(0), **data)  # sets the autoguide up

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        return -svi.loss.loss(key, arrays(params), program.model, guide, **data)

    found = np.array([float(one(key)) for key in jax.random.split(jax.random.PRNGKey(1), 50)])
    return float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", type=int, metavar="SEEDS")
    seeds = parser.parse_args().tune
    if seeds:
        tune(seeds)
    else:  # a process that is timed from its start
        params = accurately(**BEST)
        took = clock()
        loc, sd = posterior(params)
        print(json.dumps({"seconds": took, "loc": loc.tolist(), "sd": sd.tolist()}))
