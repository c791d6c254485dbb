"""Bayesian neural networks on the UCI regression sets, beside published numbers, one setting for all.

    python benchmarks/uci.py --folder FOLDER [--sets yacht,energy] [--splits 20] [--validate]

FOLDER holds NAME.npz with `x`, `y`, `n` and `test_mask`, whose bits say what each of the 20 standard splits keeps for testing.
One setting for all sets, chosen on validation sets: with `--validate` a fit sees 8/9 of a training set and the rest is scored.
"""

import argparse
import functools
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import pyrovi
from pyrovi.guides import bayesian_neural_network as guides
from pyrovi.models import bayesian_neural_network as bnn

PUBLISHED = {  # RMSE and test log-likelihood: VI (Graves), PBP, MC-dropout
    "bostonHousing": ((4.32, -2.90), (3.01, -2.57), (2.97, -2.46)),
    "concrete": ((7.19, -3.39), (5.67, -3.16), (5.23, -3.04)),
    "energy": ((2.65, -2.39), (1.80, -2.04), (1.66, -1.99)),
    "power-plant": ((4.33, -2.89), (4.12, -2.84), (4.02, -2.80)),
    "wine-quality-red": ((0.65, -0.98), (0.64, -0.97), (0.62, -0.93)),
    "yacht": ((6.89, -3.43), (1.02, -1.63), (1.11, -1.55)),
}
"""As in "Dropout as a Bayesian approximation" (Gal & Ghahramani, 2016), Table 1 | https://arxiv.org/abs/1506.02142"""

NETWORK = {"widths": (50,), "prior_scale": 1.0, "noise": None}
GUIDE = functools.partial(guides.guide, loc_sd=None, scale=0.05, bias_loc_sd=0.0, local_reparameterization=True)
SETTINGS = {
    "objective": "mean_field",
    "steps": 4_000,
    "kl_annealing": 3_000,
    "lr": 0.01,
    "schedule": "cosine",
    "batch_size": 100,
    "stop": None,
}


class Split(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    sd: float


class Score(NamedTuple):
    rmse: float
    log_likelihood: float
    seconds: float


def split(folder: Path, name: str, number: int, validate: bool = False) -> Split:
    """One split, standardised by its training part; `sd` is the outcome's, to go back to its own units."""
    with np.load(folder / f"{name}.npz") as file:
        x, y, n = file["x"].astype(float), file["y"].astype(float).ravel(), int(file["n"])
        test = np.unpackbits(file["test_mask"], axis=1)[number, :n].astype(bool)
    train, test = np.flatnonzero(~test), np.flatnonzero(test)
    if validate:
        train = np.random.default_rng(number).permutation(train)
        test, train = np.split(train, [len(train) // 9])
    mean, sd = x[train].mean(0), x[train].std(0)
    x = (x - mean) / np.where(sd > 0, sd, 1.0)
    y_mean, y_sd = y[train].mean(), y[train].std()
    y = (y - y_mean) / y_sd
    return Split(x[train], y[train], x[test], y[test], float(y_sd))


def score(part: Split, seed: int = 0, draws: int = 1_000, **settings: object) -> Score:
    """Fit one split and score its test part, in the outcome's own units."""
    began = time.perf_counter()
    fit = pyrovi.fit(bnn.model, GUIDE, {"x": part.x, "y": part.y, **NETWORK}, seed=seed, **{**SETTINGS, **settings})
    test = fit.on({"x": part.x_test, "y": part.y_test}).draws(draws, pointwise=True)
    each = torch.logsumexp(test.log_likelihood["y"].double(), 0) - math.log(draws)
    residual = test.posterior["mean"].double().mean(0).numpy() - part.y_test
    return Score(
        rmse=float(np.sqrt(np.square(residual).mean()) * part.sd),
        log_likelihood=float(each.mean()) - math.log(part.sd),
        seconds=time.perf_counter() - began,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(PUBLISHED))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--validate", action="store_true", help="score a ninth of each training set; leave the test sets alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("test log-likelihood and RMSE, mean ± standard error over splits; published: VI (Graves), PBP, MC-dropout\n")
    columns = ["set", "log-likelihood", "VI", "PBP", "dropout", "RMSE", "VI", "PBP", "dropout", "s a fit"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.sets.split(","):
        scores = [score(split(options.folder, name, i, options.validate)) for i in range(options.splits)]
        rmse, ll, seconds = np.array(scores).T
        (vi_rmse, vi), (pbp_rmse, pbp), (dropout_rmse, dropout) = PUBLISHED[name]

        def shown(values: np.ndarray) -> str:
            se = f" ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
            return f"{values.mean():.3f}{se}"

        print(
            f"| {name} | {shown(ll)} | {vi} | {pbp} | {dropout} | {shown(rmse)} | {vi_rmse} | {pbp_rmse} | {dropout_rmse} "
            f"| {np.median(seconds):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
