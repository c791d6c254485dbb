"""PyMC: ADVI on the eight schools."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import problems
import pymc as pm
from timing import clock

logging.getLogger("pymc").setLevel(logging.ERROR)  # it tells the loss of every run
BEST = {"steps": 2_000, "lr": 0.015, "particles": 64}


def eight_schools() -> pm.Model:
    data = problems.eight_schools()
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        z = pm.Normal("z", 0.0, 1.0, shape=8)
        pm.Normal("y", mu + tau * z, data["s"], observed=data["y"])
    return model


def accurately(steps: int, lr: float, particles: int, seed: int = 0) -> Any:
    with eight_schools():
        return pm.fit(
            steps, "advi", obj_n_mc=particles, obj_optimizer=pm.adam(learning_rate=lr), random_seed=seed, progressbar=False
        )


def posterior(approximation: Any) -> problems.Gaussians:
    """In PyMC's order, which is that of the sites."""
    return problems.Gaussians(approximation.mean.eval(), approximation.std.eval())


def log_joint(values: dict[str, Any]) -> float:
    model = eight_schools()
    point = {"mu": values["mu"], "tau_log__": np.log(values["tau"]), "z": values["z"]}
    return float(model.compile_logp(jacobian=False)(point))


if __name__ == "__main__":  # a process that is timed from its start
    approximation = accurately(**BEST)
    took = clock()
    loc, sd = posterior(approximation)
    print(json.dumps({"seconds": took, "loc": loc.tolist(), "sd": sd.tolist()}))
