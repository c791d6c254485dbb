"""What the peers' variational inference gives on the same posteriors with their defaults: writes results/peers.json.

    python benchmarks/posteriors/peers.py [NAME …]      needs numpyro, pymc and arviz

NumPyro: `AutoNormal` and `AutoMultivariateNormal` as they start, Adam at 0.01, 10,000 steps, the last iterate. PyMC: `pm.fit` with
`advi` and `fullrank_advi`, 10,000 iterations, all its defaults; its model is NumPyro's log density on the unconstrained
scale, by a `Potential`, started at 0. Both in float64. k-hat is of 4,000 draws of the guide, seconds are the processor's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pymc as pm
import pytensor.tensor as pt
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO, init_to_feasible
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.util import initialize_model
from pytensor.graph import Apply, Op

from posteriors import FILES, MODELS, Posterior
from posteriors.score import score
from posteriors.twins import TWINS

numpyro.enable_x64()
numpyro.enable_validation(False)

STEPS, RATE, DRAWS = 10_000, 0.01, 4_000
PAGE = FILES.parent / "results" / "peers.json"


class Flat:
    """A twin's log density over one unconstrained vector, and its sites from rows of such vectors."""

    def __init__(self, m: Posterior) -> None:
        self.model, self.data = TWINS[m.name], m.data()
        options = {"model_kwargs": self.data, "dynamic_args": False, "init_strategy": init_to_feasible()}
        info = initialize_model(jax.random.PRNGKey(0), self.model, **options)
        zero, unravel = ravel_pytree(info.param_info.z)
        self.dimension = len(zero)
        self.log_density = lambda u: -info.potential_fn(unravel(u))
        self.rows = jax.jit(jax.vmap(self.log_density))
        self.sites = jax.jit(jax.vmap(lambda u: info.postprocess_fn(unravel(u))))


def judged(m: Posterior, flat: Flat, mean: np.ndarray, covariance: np.ndarray, seconds: float) -> dict[str, object]:
    """A Gaussian's draws scored, with their k-hat."""
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return {"failed": "parameters are not finite", "seconds": seconds}
    root = np.linalg.cholesky(covariance)
    e = np.random.default_rng(1).standard_normal((DRAWS, len(mean)))
    u = mean + e @ root.T
    log_q = -0.5 * np.sum(e**2, 1) - np.log(np.diag(root)).sum()
    ratio = np.array(flat.rows(jnp.asarray(u))) - log_q
    khat = float(az.psislw(np.where(np.isfinite(ratio), ratio, -1e300))[1])
    found = score({name: np.array(x) for name, x in flat.sites(jnp.asarray(u)).items()}, m.reference())
    return {**{key: x if isinstance(x, str) else float(x) for key, x in found._asdict().items()}, "khat": khat, "seconds": seconds}


def numpyro_svi(guide: type) -> Callable[[Posterior, Flat], dict[str, object]]:
    def run(m: Posterior, flat: Flat) -> dict[str, object]:
        began = time.process_time()
        q = guide(flat.model)
        svi = SVI(flat.model, q, numpyro.optim.Adam(RATE), Trace_ELBO())
        params = svi.run(jax.random.PRNGKey(0), STEPS, progress_bar=False, **flat.data).params
        seconds = time.process_time() - began
        if guide is AutoNormal:
            loc = {n.removesuffix("_auto_loc"): v for n, v in params.items() if n.endswith("_loc")}
            sd = {n.removesuffix("_auto_scale"): v for n, v in params.items() if n.endswith("_scale")}
            return judged(m, flat, np.array(ravel_pytree(loc)[0]), np.diag(np.array(ravel_pytree(sd)[0]) ** 2), seconds)
        # The guide's vector is in the model's order, a dictionary's ravelled values are in that of their names.
        order = np.array(ravel_pytree(dict(q._unpack_latent(jnp.arange(float(flat.dimension)))))[0], int)
        root = np.array(params["auto_scale_tril"])
        return judged(m, flat, np.array(params["auto_loc"])[order], (root @ root.T)[np.ix_(order, order)], seconds)

    return run


class LogDensity(Op):
    """A function of JAX as an operation of PyTensor, with its gradient."""

    itypes, otypes = [pt.dvector], [pt.dscalar]

    def __init__(self, f: Callable) -> None:
        self.f, self.gradient = jax.jit(f), Gradient(jax.jit(jax.grad(f)))

    def perform(self, node: Apply, inputs: list, outputs: list) -> None:
        outputs[0][0] = np.asarray(self.f(inputs[0]))

    def grad(self, inputs: list, output_grads: list) -> list:
        return [output_grads[0] * self.gradient(inputs[0])]


class Gradient(Op):
    itypes, otypes = [pt.dvector], [pt.dvector]

    def __init__(self, f: Callable) -> None:
        self.f = f

    def perform(self, node: Apply, inputs: list, outputs: list) -> None:
        outputs[0][0] = np.array(self.f(inputs[0]))


def pymc_fit(method: str) -> Callable[[Posterior, Flat], dict[str, object]]:
    def run(m: Posterior, flat: Flat) -> dict[str, object]:
        began = time.process_time()
        with pm.Model():
            u = pm.Flat("u", shape=flat.dimension)
            pm.Potential("log_density", LogDensity(flat.log_density)(u))
            q = pm.fit(n=STEPS, method=method, progressbar=False, random_seed=0)
        return judged(m, flat, q.mean.eval(), q.cov.eval(), time.process_time() - began)

    return run


PEERS = {
    "NumPyro AutoNormal": numpyro_svi(AutoNormal),
    "NumPyro AutoMultivariateNormal": numpyro_svi(AutoMultivariateNormal),
    "PyMC ADVI": pymc_fit("advi"),
    "PyMC full-rank ADVI": pymc_fit("fullrank_advi"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--peers", default="", help="those whose name begins so")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in options.names or MODELS:
        m, row = MODELS[name], {}
        flat = Flat(m)
        for peer, run in PEERS.items():
            if not peer.startswith(options.peers):
                continue
            try:
                row[peer] = run(m, flat)
            except Exception as error:  # a peer that cannot start, or does not end, is a result
                row[peer] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"}
            print(f"{name:<22} {peer:<32} {row[peer]}", flush=True)
        PAGE.parent.mkdir(exist_ok=True)
        known = json.loads(PAGE.read_text()) if PAGE.exists() else {}
        PAGE.write_text(json.dumps({**known, name: {**known.get(name, {}), **row}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
