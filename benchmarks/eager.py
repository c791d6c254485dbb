"""What `pyrovi.fit` adds to a bare `svi.step` loop, and `import pyrovi` to `import pyro`. Ratios of runs taken in turn, one thread.

    python benchmarks/eager.py [--rounds 7]

The bare loop is Pyro's as it comes, validation on. `no validation` is the same with Pyro's checks off, as pyrovi's loop has
them once its own have passed: the fairer peer.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyrovi
from pyrovi.guides import gamma_poisson as gamma_guide
from pyrovi.guides import linear_regression as regression_guide
from pyrovi.guides import normal_mean as normal_guide
from pyrovi.models import gamma_poisson, linear_regression, normal_mean

JOBS = {
    "normal_mean, 1 particle": (normal_mean, lambda x: normal_guide.guide(), normal_guide.guide, 1, 2_000),
    "normal_mean, AutoNormal": (normal_mean, AutoNormal, "normal", 1, 2_000),
    "linear_regression, 16 particles": (
        linear_regression,
        lambda X, y: regression_guide.guide(X),
        regression_guide.guide,
        16,
        1_000,
    ),
    "gamma_poisson, 16 particles": (
        gamma_poisson,
        lambda x, prior_image: gamma_guide.guide(prior_image),
        gamma_guide.guide,
        16,
        300,
    ),
}


def bare(model, guide, data, particles, steps, validate):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = guide(model) if isinstance(guide, type) else guide
    nesting = 2 if "prior_image" in data else 1
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=nesting)
    with pyro.validation_enabled(validate):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        began = time.perf_counter()
        for _ in range(steps):
            svi.step(**data)
        took = time.perf_counter() - began
    pyro.clear_param_store()
    return took


def ours(model, guide, data, particles, steps, **settings):
    began = time.perf_counter()
    pyrovi.fit(model, guide, data, particles=particles, steps=steps, lr=0.01, **settings)
    return time.perf_counter() - began


def imports(module):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - began


def line(name, ratios, base):
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name:<64} {middle:5.3f}  ({low:.3f} to {high:.3f})  {base}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}, pyro-ppl {pyro.__version__}; median ratio of {rounds} pairs\n"
    )
    for name, (module, guide, our_guide, particles, steps) in JOBS.items():
        data = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in module.load().items()}
        job = (module.model, our_guide, data, particles, steps)
        bare(module.model, guide, data, particles, 20, True)
        ours(*job[:4], 20)
        rows = {
            label: [] for label in ("Pyro as it comes", "no validation", "stop='auto', no validation", "progress shown, not shown")
        }
        for _ in range(rounds):
            gc.collect()
            loop = bare(module.model, guide, data, particles, steps, True)
            fast = bare(module.model, guide, data, particles, steps, False)
            fit = ours(*job, stop=None)
            rows["Pyro as it comes"].append(fit / loop)
            rows["no validation"].append(fit / fast)
            result = pyrovi.fit(module.model, our_guide, data, particles=particles, steps=steps, lr=0.01)
            rows["stop='auto', no validation"].append(result.seconds / result.elbo.shape[1] * steps / fast)
            rows["progress shown, not shown"].append(ours(*job, stop=None, progress=True) / fit)
        for label, ratios in rows.items():
            line(f"{name}, against {label}", ratios, f"{1e3 * fast / steps:.2f} ms a bare step" if label == "no validation" else "")
    line("import pyrovi, against import pyro", [imports("pyrovi") / imports("pyro") for _ in range(rounds)], "")


if __name__ == "__main__":
    main()
