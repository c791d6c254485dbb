"""How far each recipe lands from its exact posterior, over seeds: the figures of docs/accuracy.md.

python benchmarks/accuracy.py [--seeds 20] [--only NAME]
"""

import argparse
import functools

import numpy as np
import torch

import pyrovi
from pyrovi.guides import gamma_poisson as gamma_guide
from pyrovi.guides import normal_mean as normal_guide
from pyrovi.models import gamma_poisson, linear_regression, normal_mean

SHORT_MEMORY = functools.partial(torch.optim.Adam, betas=(0.9, 0.99))
LARGE = {"steps": 6_000, "lr": 0.02, "particles": 4, "optimizer": SHORT_MEMORY}
COSINE = {"steps": 6_000, "lr": 0.02, "particles": 16, "schedule": "cosine"}

JOBS = {
    "normal_mean, document": (normal_mean, normal_guide.guide, {}, {"steps": 1_000, "lr": 0.1}),
    "normal_mean, n = 1": (normal_mean, normal_guide.guide, {"n": 1}, {"steps": 2_000, "lr": 0.05, "particles": 16}),
    "normal_mean, n = 100": (normal_mean, normal_guide.guide, {}, {"steps": 2_000, "lr": 0.05, "particles": 16}),
    "normal_mean, n = 100,000": (normal_mean, normal_guide.guide, {"n": 100_000}, LARGE),
    "gamma_poisson, 32 particles": (gamma_poisson, gamma_guide.guide, {}, {"steps": 5_000, "lr": 0.3, "particles": 32}),
    "gamma_poisson, document": (gamma_poisson, gamma_guide.guide, {}, {"steps": 5_000, "lr": 0.2, "particles": 128}),
    "linear_regression, full": (linear_regression, "multivariate_normal", {}, COSINE),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="run the jobs whose name ends so")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "largest |error| in posterior sds, range of sd ratio, largest KL in nats, over all variables and seeds; 20,000 draws each"
    )
    for name, (module, guide, load, settings) in JOBS.items():
        if not name.endswith(options.only):
            continue
        data = module.load(**load)
        exact = module.exact(**data)
        rows = []
        for seed in range(options.seeds):
            fit = pyrovi.fit(module.model, guide, data, stop=None, seed=seed, dtype=options.dtype, **settings)
            table = pyrovi.compare(fit, exact, draws=2_000 if load.get("n", 0) > 10_000 else 20_000)
            kl = table.attrs["kl"].value
            rows.append((table["error"].abs().max(), table["sd_ratio"].min(), table["sd_ratio"].max(), kl, fit.seconds))
        error, low, high, kl, seconds = np.array(rows).T
        print(
            f"{name:<30} {options.dtype} {error.max():.3f}  {low.min():.3f} to {high.max():.3f}  {kl.max():.4f}  "
            f"{np.median(seconds):.1f} s a fit, seeds 0 to {options.seeds - 1}",
            flush=True,
        )


if __name__ == "__main__":
    main()
