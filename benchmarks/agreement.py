"""Whether the peers fit the same problems: a benchmark of another problem is worth nothing."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import in_pyro
import in_pyrovi
import numpy as np


def check() -> None:
    """Print how well the peers' models and ELBOs agree with ours.

    Raises:
        AssertionError: A log joint differs by more than 1e-5 of itself, or an ELBO by more than four standard errors.
    """
    rng = np.random.default_rng(0)
    schools = {"mu": np.array(1.3), "tau": np.array(2.2), "z": rng.normal(size=8)}
    radon = {name: np.array(value) for name, value in (("mu_a", 1.4), ("mu_b", -0.6), ("noise", 0.8))}
    radon |= {"sigma_a": np.array(0.5), "sigma_b": np.array(0.4), "a": rng.normal(size=85), "b": rng.normal(size=85)}
    pixels = {"theta": rng.gamma(2, 2, size=64)}
    digits = in_pyro.recipe("gamma_poisson")
    if importlib.util.find_spec("numpyro"):
        import in_numpyro

        for name, ours, theirs, values in (
            ("eight schools", in_pyro.schools(), in_numpyro.schools(), schools),
            ("radon-like", in_pyro.radon_like(), in_numpyro.radon_like(), radon),
            ("gamma_poisson", digits, in_numpyro.digits(1), pixels),
        ):
            _same(f"{name}, NumPyro: log joint", in_pyro.log_joint(ours, values), in_numpyro.log_joint(theirs, values))
            fitted = in_pyrovi.fit(ours, "pyro", steps=1_000, lr=0.02)
            here, there = fitted.estimate_elbo(), in_numpyro.elbo(theirs, _parameters(fitted))
            apart = abs(here.value - there[0]) / math.hypot(here.se, there[1])
            print(f"{name}, NumPyro: ELBO {there[0]:.2f} and {here.value:.2f}, {apart:.1f} standard errors apart")
            assert apart < 4, f"NumPyro's {name} has another ELBO"
    if importlib.util.find_spec("pymc"):
        import in_pymc

        _same("eight schools, PyMC: log joint", in_pyro.log_joint(in_pyro.schools(), schools), in_pymc.log_joint(schools))
    print(flush=True)


def _same(what: str, ours: float, theirs: float) -> None:
    print(f"{what} {theirs:.4f} and {ours:.4f}")
    assert math.isclose(ours, theirs, rel_tol=1e-5), f"{what} is not ours"


def _parameters(fitted: Any) -> dict[str, np.ndarray]:
    """The guide's parameters by NumPyro's names."""
    named = {}
    for name, value in fitted.parameters.items():
        _, what, site = name.split(".") if "." in name else ("", "", name)
        named[f"{site}_auto_{what.removesuffix('s')}" if what else site] = value.detach().numpy()
    return named
