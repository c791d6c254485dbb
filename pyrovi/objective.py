"""What a step maximises: the ELBO and its kin, by name, and a weight on the KL part.

Pyro's `Trace_ELBO` is used as it is. The others are written anew: Pyro's analytic KL forgets the Jacobian of autoguides, and its
Rényi bound knows nothing of the weights that mini-batches put on a datum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch.distributions import kl_divergence

from pyrovi._typing import Guide, Model
from pyrovi.errors import SettingsError, nearest
from pyrovi.preflight import Problem
from pyrovi.structure import is_deterministic
from pyrovi.tracing import family

__all__ = ["OBJECTIVES", "ImportanceWeighted", "KLWeight", "MeanField", "Renyi", "check_objective", "make_objective"]


class _Differentiable(Trace_ELBO):
    """An objective whose gradient is that of the value itself; every draw has to be a differentiable function of the parameters."""

    def bound(self, traces: Iterator[tuple[Trace, Trace]]) -> torch.Tensor:
        raise NotImplementedError

    def _value(self, model: Model, guide: Guide, args: Any, kwargs: Any) -> torch.Tensor:
        return self.bound(map(_differentiable, self._get_traces(model, guide, args, kwargs)))

    @torch.no_grad()
    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        return -float(self._value(model, guide, args, kwargs))

    def differentiable_loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> torch.Tensor:
        return -self._value(model, guide, args, kwargs)

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


class MeanField(_Differentiable):
    """The ELBO with KL(q‖p) of a site in closed form where torch knows one, by a draw elsewhere.

    It has the expectation of `Trace_ELBO`; a site that model and guide scale or mask otherwise is scored at its draw. Which is
    quieter depends: at the exact posterior the sampled form has no variance at all, while far from it, or where the likelihood says
    little, the analytic form has less.

    References:
        Auto-encoding variational Bayes, section 2.3 (Kingma & Welling, 2014) | https://arxiv.org/abs/1312.6114
    """

    def bound(self, traces: Iterator[tuple[Trace, Trace]]) -> torch.Tensor:
        total = torch.zeros(())
        for model, guide in traces:
            for name, site in _sites(model):
                q = guide.nodes.get(name)
                if site["is_observed"] or q is None:
                    total = total + site["log_prob_sum"]
                    continue
                try:
                    # An autoguide's Delta stands for another site; a site weighed otherwise in model and guide has only draws.
                    if type(q["fn"]).__name__ == "Delta" or not _weighed_alike(q, site):
                        raise NotImplementedError
                    kl = scale_and_mask(kl_divergence(q["fn"], site["fn"]), scale=q["scale"], mask=q["mask"])
                    total = total - kl.sum()
                except NotImplementedError:
                    total = total + site["log_prob_sum"] - q["log_prob_sum"]
            for name, q in _sites(guide):
                if name not in model.nodes:
                    total = total - q["log_prob_sum"]
        return total / self.num_particles


class Renyi(_Differentiable):
    """The variational Rényi bound, log(mean of w^(1 − alpha)) / (1 − alpha) over k = `particles` importance weights w = p/q.

    Where every site lies in the same plates, as in a model with a latent a datum, each datum has its own weights and the bound is
    their sum; elsewhere there is one weight a particle.

    Args:
        alpha: 0 is the importance-weighted bound; towards 1 the bound is the ELBO. Not 1.

    References:
        Rényi divergence variational inference (Li & Turner, 2016) | https://arxiv.org/abs/1602.02311
    """

    def __init__(self, *, alpha: float = 0.5, **options: Any) -> None:
        if alpha == 1:
            raise SettingsError("at alpha = 1 the Rényi bound is the ELBO: use objective='trace_elbo'")
        super().__init__(**options)
        self.alpha = alpha

    def bound(self, traces: Iterator[tuple[Trace, Trace]]) -> torch.Tensor:
        weights = [self.log_weights(model, guide) for model, guide in traces]
        scale = weights[0][1]
        log_w = torch.cat([w for w, _ in weights])
        power = 1 - self.alpha
        each = (torch.logsumexp(power * log_w, 0) - math.log(len(log_w))) / power
        return (scale * each).sum()

    def log_weights(self, model: Trace, guide: Trace) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p − log q by particle and datum, shape `(particles, …)`, and what each datum counts for in a mini-batch."""
        vectorized = self.vectorize_particles and self.num_particles > 1
        axis = -int(self.max_plate_nesting) if vectorized else None
        everywhere = [s for s in (*_sites(model), *_sites(guide)) if not is_deterministic(s[1])]
        frames = [{f.dim for f in site["cond_indep_stack"] if f.vectorized} - {axis} for _, site in everywhere]
        kept = sorted(set.intersection(*frames)) if frames else []
        scale = next((site["scale"] for _, site in _sites(model) if site["is_observed"]), 1.0)
        scale = torch.as_tensor(scale)
        for name, site in everywhere:
            # A mini-batch weighs all its sites alike; with anything else the weights are not those of p/q.
            if not torch.equal(*torch.broadcast_tensors(torch.as_tensor(site["scale"]), scale)):
                raise SettingsError(
                    f"site {name!r} is scaled otherwise than the outcomes (poutine.scale, a kl_weight, or it lies outside the "
                    "batched plate), and importance weights have no place for that; use objective='trace_elbo'"
                )
        if not kept and not torch.equal(scale, torch.ones_like(scale)):
            raise SettingsError(
                "importance weights on mini-batches want every site inside the batched plate; drop batch_size, or use "
                "objective='trace_elbo'"
            )
        dims = ([axis] if axis is not None else []) + kept
        divide = torch.where(scale == 0, 1.0, scale)  # the padding of a last batch counts for nothing
        total = torch.zeros(())
        for sign, trace in ((1.0, model), (-1.0, guide)):
            for _, site in _sites(trace):
                total = total + sign * _sum_to(site["log_prob"] / divide if kept else site["log_prob"], dims)
        if axis is None:
            total = total[None]
        return total, _sum_to(scale, kept) if kept and scale.dim() else scale


class ImportanceWeighted(Renyi):
    """The importance-weighted bound, log(mean of w) over k = `particles` weights: from the ELBO up to log p(data) as k grows.

    References:
        Importance weighted autoencoders (Burda, Grosse & Salakhutdinov, 2016) | https://arxiv.org/abs/1509.00519
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(alpha=0.0, **options)


OBJECTIVES: dict[str, type[ELBO]] = {
    "trace_elbo": Trace_ELBO,
    "mean_field": MeanField,
    "importance_weighted": ImportanceWeighted,
    "renyi": Renyi,
}
"""Each takes Pyro's `num_particles`, `vectorize_particles` and `max_plate_nesting`."""


def check_objective(objective: str | Callable[..., ELBO], particles: int) -> str:
    """The objective's name, if it and the number of particles make sense."""
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise SettingsError(f"unknown objective {objective!r}; {nearest(objective, OBJECTIVES)}")
        if objective in ("importance_weighted", "renyi") and particles == 1:
            raise SettingsError(f"objective={objective!r} is the ELBO with one particle; say how many weights, as in particles=10")
        return objective
    if isinstance(objective, ELBO) or not callable(objective):
        got = f"{'an instance of ' if isinstance(objective, ELBO) else ''}{type(objective).__name__}"
        raise SettingsError(
            f"objective must be a name ({', '.join(OBJECTIVES)}) or a class of pyro.infer.ELBO, which fit makes; got {got}"
        )
    return str(getattr(getattr(objective, "func", objective), "__name__", "ELBO"))


def make_objective(objective: str | Callable[..., ELBO], problem: Problem, particles: int) -> ELBO:
    """An ELBO of Pyro's kind for a problem.

    Raises:
        SettingsError: It cannot be had of this model, guide and batch.
    """
    made = OBJECTIVES[objective] if isinstance(objective, str) else objective
    elbo = made(num_particles=particles, vectorize_particles=problem.vectorize and particles > 1, max_plate_nesting=problem.nesting)
    if problem.batches is not None and not isinstance(elbo, Renyi) and isinstance(elbo, RenyiELBO):
        raise SettingsError(
            "Pyro's RenyiELBO takes no account of the weight of a mini-batch; use objective='renyi', or drop batch_size"
        )
    if problem.batches is not None and type(elbo).__name__.startswith("Jit"):
        raise SettingsError("Pyro's compiled objectives would meet the first mini-batch only; use objective='trace_elbo'")
    if isinstance(elbo, Renyi) and problem.batches is not None:
        outside = [name for name, site in problem.structure.latent.items() if not site.inside(problem.batches.plate)]
        if outside or problem.batches.guide_mode == "whole":
            why = f"site {outside[0]!r} lies outside it" if outside else "an autoguide draws them for all the data at once"
            raise SettingsError(
                f"importance weights on mini-batches want every latent in plate {problem.batches.plate!r}, drawn with the batch; "
                f"{why}: drop batch_size, or use objective='trace_elbo'"
            )
    if isinstance(elbo, MeanField):
        shared = [name for name in problem.guide_order if name in problem.structure.latent]
        if shared != list(problem.structure.latent):
            raise SettingsError(
                "objective='mean_field' wants the guide's sites in the model's order, so that no closed form depends on a later "
                f"draw; the model's is {', '.join(problem.structure.latent)}, the guide's {', '.join(shared)}"
            )
    return elbo


class KLWeight(Messenger):
    """Weighs log q and log prior, and so the KL part of the ELBO, by `weight`; the likelihood keeps its own.

    Anything but 1 gives another posterior: with weight w, that of the likelihood to the power 1/w.
    """

    def __init__(self, weight: float, annealing: int = 0) -> None:
        super().__init__()
        self.final, self.annealing = weight, annealing
        self.weight = weight

    def at(self, step: int) -> None:
        """Set the weight of a step, counted from 1: it rises linearly over the first `annealing` of them."""
        self.weight = self.final * min(1.0, step / self.annealing) if self.annealing else self.final

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


def _differentiable(traces: tuple[Trace, Trace]) -> tuple[Trace, Trace]:
    for name, site in _sites(traces[1]):
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise SettingsError(
                f"the guide draws site {name!r} from {family(site['fn'])}, and such a draw has no derivative, which this objective "
                "needs; use objective='trace_elbo'"
            )
    return traces


def _sites(trace: Trace) -> list[tuple[str, Any]]:
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)  # type: ignore[arg-type]
    ]


def _weighed_alike(q: Any, p: Any) -> bool:
    """Whether a site has one scale and one mask in guide and model."""
    masks = [torch.as_tensor(True if site["mask"] is None else site["mask"]) for site in (q, p)]
    return all(
        a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())
        for a, b in (masks, [torch.as_tensor(site["scale"]) for site in (q, p)])
    )


def _sum_to(value: torch.Tensor, dims: list[int | Any]) -> torch.Tensor:
    """Sum all axes but `dims`, counted from the right, and leave those in the order given."""
    value = value.reshape((1,) * max(0, max((-d for d in dims), default=0) - value.dim()) + tuple(value.shape))
    keep = [value.dim() + d for d in dims]
    return value.sum([i for i in range(value.dim()) if i not in keep]) if len(keep) < value.dim() else value
