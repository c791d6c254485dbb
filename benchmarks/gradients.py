"""The noise of one gradient of the ELBO through Gamma draws: implicit reparameterization against two score functions.

    python benchmarks/gradients.py

The model is gamma_poisson, at its guide's start and at the exact posterior; the numbers are standard deviations of single-draw
gradients, as the median over the 64 pixels, by parameter.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch.distributions import constraints

from pyrovi._isolation import isolated
from pyrovi.models import gamma_poisson

DRAWS = 2_000


KINDS = ("implicit", "score function", "score function, running baseline")


def gradients(shape: torch.Tensor, rate: torch.Tensor, data: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Single-draw gradients with respect to the guide's unconstrained parameters: by name, `(DRAWS, 64)`."""
    infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.99}} if "baseline" in kind else {}

    def guide(x: torch.Tensor, prior_image: torch.Tensor) -> None:
        a = pyro.param("alpha", shape.clone(), constraint=constraints.positive)
        b = pyro.param("beta", rate.clone(), constraint=constraints.positive)
        with pyro.plate("pixel", 64, dim=-1):
            pyro.sample("theta", dist.Gamma(a, b).has_rsample_(kind == "implicit"), infer=infer)

    # Pyro's score function is Rao-Blackwellised over plates, so that a pixel's gradient has only that pixel's noise.
    elbo = Trace_ELBO() if kind == "implicit" else TraceGraph_ELBO()
    out: dict[str, list[torch.Tensor]] = {"alpha": [], "beta": []}
    for _ in range(DRAWS):
        elbo.loss_and_grads(gamma_poisson.model, guide, **data)
        for name, kept in out.items():
            leaf = pyro.get_param_store().get_state()["params"][name]
            kept.append(leaf.grad.clone())
            leaf.grad = None
    return {name: torch.stack(kept) for name, kept in out.items()}


def main() -> None:
    torch.set_num_threads(1)
    loaded = {name: torch.as_tensor(value) for name, value in gamma_poisson.load().items()}
    prior = loaded["prior_image"]
    start = 2.0 * prior, torch.full((64,), 2.0, dtype=torch.float64)
    end = 2.0 * prior + loaded["x"].sum(0), torch.full((64,), 2.0 + len(loaded["x"]), dtype=torch.float64)
    print("| where | parameter |", " | ".join(KINDS), "|")
    print("| --- " * (2 + len(KINDS)) + "|")
    for where, (shape, rate) in {"the start": start, "the posterior": end}.items():
        found = {}
        for kind in KINDS:
            with isolated(0, torch.float64):
                found[kind] = gradients(shape, rate, loaded, kind)
        for name in ("alpha", "beta"):
            # The baseline is zero at first: the second half has it in place.
            noise = [f"{found[kind][name][DRAWS // 2 :].std(0).median().item():,.3g}" for kind in KINDS]
            print(f"| {where} | `{name}` |", " | ".join(noise), "|")


if __name__ == "__main__":
    main()
