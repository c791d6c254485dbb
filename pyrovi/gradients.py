"""How a step's gradient is estimated: what the surrogates need beside one run of guide and model.

With z = z(ε, φ) a draw's gradient falls into a path through z and the score of q at z held still, whose mean is zero:

    ∇ log q(z; φ) = ∂ log q/∂z · dz/dφ + ∂ log q/∂φ

A guide's later sites depend on its earlier draws, and its parameters may hide in modules, so the two parts are told apart by
running the guide again with its draws held: there the score is all that is left. What a program computes from its draws, as
an autoguide computes its Delta sites, it computes again; the density of such a site is no score. Where no draw moves the
distribution of another, the distributions of the one run do.

References:
    Sticking the landing (Roeder, Wu & Duvenaud, 2017) | https://arxiv.org/abs/1703.09194
    Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker et al., 2019) | https://arxiv.org/abs/1810.04152
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyrovi._typing import Guide, Model
from pyrovi.errors import SettingsError
from pyrovi.structure import WRAPPERS

__all__ = ["GRADIENTS", "Run", "hold", "independent", "is_drawn", "score", "sites", "total_loss"]

GRADIENTS = ("total", "sticking_the_landing", "doubly_reparameterized")


def sites(trace: Trace) -> list[tuple[str, Any]]:
    """A trace's sample sites but for plates' own, in order."""
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)  # type: ignore[arg-type]
    ]


def is_drawn(node: Any) -> bool:
    """Whether a guide's site is random given those before it, so that its score has mean zero."""
    fn = node["fn"]
    while type(fn).__name__ in WRAPPERS:
        fn = fn.base_dist
    return not node["is_observed"] and type(fn).__name__ != "Delta"


def score(guide: Trace) -> torch.Tensor:
    """The log density of a guide's draws, held where they are: its derivative is the score where the draws are independent."""
    total = torch.zeros(())
    for name, site in sites(guide):
        if is_drawn(site):
            try:
                held = site["fn"].log_prob(site["value"].detach(), *site["args"], **site["kwargs"])
            except (NotImplementedError, KeyError) as error:  # KeyError: Pyro's flows look for a draw of their own
                raise SettingsError(
                    f"the guide cannot score a draw of site {name!r} that is handed to it (a transform of its has no inverse), as "
                    "this gradient wants; use gradient='total'"
                ) from error
            total = total + scale_and_mask(held, site["scale"], site["mask"]).sum()
    return total


def independent(guide: Trace) -> bool:
    """Whether no draw of a guide's moves the distribution of another, as in mean-field and amortised guides."""
    draws = [site["value"] for _, site in sites(guide) if is_drawn(site) and site["value"].requires_grad]
    total = score(guide)
    if not (draws and total.requires_grad):
        return True
    return all(g is None for g in torch.autograd.grad(total, draws, allow_unused=True, retain_graph=True))


@dataclass(frozen=True)
class Run:
    """One run of guide and model, scored, and what it takes to run them again with the guide's draws held."""

    model: Trace
    guide: Trace
    programs: tuple[Model, Guide]
    given: tuple[Any, Mapping[str, Any]]
    held: Trace
    """What the guide drew, plates' subsamples included, as constants."""

    def guide_again(self) -> Trace:
        """The guide's trace with its draws held."""
        args, kwargs = self.given
        return poutine.trace(poutine.replay(self.programs[1], trace=self.held)).get_trace(*args, **kwargs)

    def model_again(self, guide: Trace) -> Trace:
        """The model's trace at the values of such a trace of the guide, scored."""
        args, kwargs = self.given
        trace = poutine.trace(poutine.replay(self.programs[0], trace=guide)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return trace

    def check(self) -> None:
        """Raise unless the guide, run again, scores its draws as it did."""
        again = self.guide_again()
        score(again)
        again.compute_log_prob()
        for name, site in sites(self.guide):
            twin = again.nodes.get(name)
            if twin is None or not torch.allclose(twin["log_prob"], site["log_prob"], rtol=1e-2, atol=1e-2, equal_nan=True):
                raise SettingsError(
                    f"the guide, run again with the same draws, scores site {name!r} otherwise (by dropout, or other randomness of "
                    "its own), and this gradient wants the same score; use gradient='total'"
                )


def hold(guide: Trace) -> Trace:
    """A guide's draws as constants, for `poutine.replay`."""
    held = Trace()
    for name, node in guide.nodes.items():
        if node["type"] == "sample" and is_drawn(node):
            held.add_node(name, **{**node, "value": node["value"].detach()})
    return held


def total_loss(model: Trace, guide: Trace) -> torch.Tensor:
    """Minus the ELBO of one run, a scalar in nats, with `Trace_ELBO`'s gradient, score functions and all; no value is looked at."""
    scored = [site for _, site in sites(guide)]
    log_p = sum((site["log_prob_sum"] for _, site in sites(model)), torch.zeros(()))
    elbo = log_p - sum(site["log_prob_sum"] for site in scored)
    if all(is_identically_zero(site["score_parts"].score_function) for site in scored):
        return -elbo
    surrogate, log_r = log_p, _compute_log_r(model, guide)
    for site in scored:
        _, score, entropy = site["score_parts"]
        if not is_identically_zero(entropy):
            surrogate = surrogate - entropy.sum()
        if not is_identically_zero(score):
            surrogate = surrogate + (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
    return -(elbo.detach() + surrogate - surrogate.detach())
