"""What a step maximises: the ELBO and its kin, by name, and a weight on the KL part.

Pyro's `Trace_ELBO` is used as it is. The others are written anew: Pyro's analytic KL forgets the Jacobian of autoguides, and its
Rényi bound knows nothing of the weights that mini-batches put on a datum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch.distributions import kl_divergence

from pyrovi._typing import Guide, Model
from pyrovi.errors import SettingsError, nearest
from pyrovi.gradients import GRADIENTS, Run, hold, independent, is_drawn, score, sites, total_loss
from pyrovi.preflight import Problem
from pyrovi.structure import is_deterministic
from pyrovi.tracing import family

__all__ = [
    "OBJECTIVES",
    "ImportanceWeighted",
    "KLWeight",
    "MeanField",
    "Renyi",
    "StickingTheLanding",
    "check_objective",
    "make_objective",
    "surrogate_loss",
]


Pair = tuple[Trace, Trace]
"""The traces of one run: the model's and the guide's."""


class _Differentiable(Trace_ELBO):
    """An objective as one scalar that has its value and, as its derivative, the gradient that is wanted.

    Every draw has to be a differentiable function of the parameters. What must be read off values is read in the first
    evaluation; after it a tracer can record `differentiable_loss`.
    """

    checked: bool

    gradient = "total"
    checked = False

    def bound(self, pairs: Iterable[Pair]) -> torch.Tensor:
        raise NotImplementedError

    def surrogate(self, runs: list[Run]) -> torch.Tensor:
        """The same value with another gradient than its own."""
        raise NotImplementedError

    def check(self, model: Trace, guide: Trace) -> None:
        """Look at values, before the first gradient."""
        for name, site in sites(guide):
            if not is_identically_zero(site["score_parts"].score_function):
                raise SettingsError(
                    f"the guide draws site {name!r} from {family(site['fn'])}, and such a draw has no derivative, which this "
                    "objective or gradient needs; use objective='trace_elbo' and gradient='total'"
                )

    def check_run(self, run: Run) -> None:
        run.check()

    def _pairs(self, model: Model, guide: Guide, args: Any, kwargs: Any) -> Iterator[Pair]:
        for pair in self._get_traces(model, guide, args, kwargs):
            if not self.checked:
                self.check(*pair)
            yield pair

    def _runs(self, model: Model, guide: Guide, args: Any, kwargs: Any) -> list[Run]:
        whole = poutine.trace(guide)  # the plates' subsamples, which Pyro leaves out of its traces and a second run needs, included
        together = self._vectorized_num_particles if self.vectorize_particles else _as_it_is
        runs = []
        for pair in self._pairs(model, whole, args, kwargs):
            runs.append(Run(*pair, (together(model), together(guide)), (args, kwargs), hold(whole.trace)))
            if not self.checked:
                if not score(runs[-1].guide).requires_grad:
                    raise SettingsError(
                        "the guide is a point, or computes its sites from noise without parameters, as guide='structured' does: "
                        f"gradient={self.gradient!r} finds no score to leave out; use gradient='total'"
                    )
                self.check_run(runs[-1])
        return runs

    @torch.no_grad()
    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        return -float(self.bound(self._pairs(model, guide, args, kwargs)))

    def differentiable_loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.gradient == "total":
            value = self.bound(self._pairs(model, guide, args, kwargs))
        else:
            value = self.surrogate(self._runs(model, guide, args, kwargs))
        self.checked = True
        return -value

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


class StickingTheLanding(_Differentiable):
    """The ELBO with the path derivative: the score of the guide's draws, whose mean is zero, is left out of the gradient.

    At the exact posterior that gradient is zero draw by draw, so that a fit whose guide can be exact comes to rest there at any
    rate. Away from it the score may be what cancels other noise, and the gradient may be the noisier.

    A guide that computes a site from its draws *and* its parameters keeps the part of the score that its draws do not have: the
    gradient is unbiased all the same, but not zero at the posterior. One whose draws have no parameters is refused.

    References:
        Sticking the landing (Roeder, Wu & Duvenaud, 2017) | https://arxiv.org/abs/1703.09194
    """

    gradient = "sticking_the_landing"

    def bound(self, pairs: Iterable[Pair]) -> torch.Tensor:
        total = torch.zeros(())
        for model, guide in pairs:
            total = total + model.log_prob_sum() - guide.log_prob_sum()
        return total / self.num_particles

    def check_run(self, run: Run) -> None:
        self._independent = independent(run.guide)
        if not self._independent:
            run.check()

    def surrogate(self, runs: list[Run]) -> torch.Tensor:
        total = torch.stack([score(run.guide if self._independent else run.guide_again()) for run in runs]).sum()
        return self.bound((run.model, run.guide) for run in runs) + (total - total.detach()) / self.num_particles


class MeanField(_Differentiable):
    """The ELBO with KL(q‖p) of a site in closed form where torch knows one, by a draw elsewhere.

    It has the expectation of `Trace_ELBO`; a site that model and guide scale or mask otherwise is scored at its draw. Which is
    quieter depends: at the exact posterior the sampled form has no variance at all, while far from it, or where the likelihood says
    little, the analytic form has less.

    References:
        Auto-encoding variational Bayes, section 2.3 (Kingma & Welling, 2014) | https://arxiv.org/abs/1312.6114
    """

    def check(self, model: Trace, guide: Trace) -> None:
        super().check(model, guide)
        # An autoguide's Delta stands for another site; a site weighed otherwise in model and guide has only draws.
        self._closed = {
            name
            for name, site in sites(model)
            if not site["is_observed"]
            and name in guide.nodes
            and is_drawn(guide.nodes[name])
            and _weighed_alike(guide.nodes[name], site)
        }

    def bound(self, pairs: Iterable[Pair]) -> torch.Tensor:
        total = torch.zeros(())
        for model, guide in pairs:
            for name, site in sites(model):
                q = guide.nodes.get(name)
                if site["is_observed"] or q is None:
                    total = total + site["log_prob_sum"]
                    continue
                try:
                    if name not in self._closed:
                        raise NotImplementedError
                    kl = scale_and_mask(kl_divergence(q["fn"], site["fn"]), scale=q["scale"], mask=q["mask"])
                    total = total - kl.sum()
                except NotImplementedError:
                    total = total + site["log_prob_sum"] - q["log_prob_sum"]
            for name, q in sites(guide):
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

    alpha: float
    gradient: str

    def __init__(self, *, alpha: float = 0.5, gradient: str = "total", **options: Any) -> None:
        if alpha == 1:
            raise SettingsError("at alpha = 1 the Rényi bound is the ELBO: use objective='trace_elbo'")
        super().__init__(**options)
        self.alpha, self.gradient = alpha, gradient

    def bound(self, pairs: Iterable[Pair]) -> torch.Tensor:
        weights = [self.log_weights(model, guide) for model, guide in pairs]
        scale = weights[0][1]
        return (scale * self._log_mean(torch.cat([w for w, _ in weights]))).sum()

    def surrogate(self, runs: list[Run]) -> torch.Tensor:
        parts = []
        for run in runs:
            again = run.guide_again()
            again.compute_log_prob()
            drawn = [site for _, site in sites(again) if is_drawn(site)]
            computed = [site for _, site in sites(again) if not is_drawn(site)]
            layout = self._layout(run.model, run.guide)
            (log_w, scale), log_q = self.log_weights(run.model, run.guide), _by_datum(layout, drawn)
            # Nothing but the guide's draws may depend on parameters; then the model need not be run again.
            direct = _has_parameters(run.model) or any(s["value"].requires_grad or s["log_prob"].requires_grad for s in computed)
            if direct:
                model = [site for _, site in sites(run.model_again(again))]
                rest = _by_datum(layout, model) - _by_datum(layout, computed)
            else:
                rest = torch.zeros_like(log_w)
            parts.append((log_w, log_w - (rest - log_q), rest))
        log_w, path, rest = (torch.cat(part) for part in zip(*parts, strict=True))
        normed = torch.softmax((1 - self.alpha) * log_w.detach(), 0)
        moving = ((self.alpha * normed + (1 - self.alpha) * normed**2) * path + normed * rest).sum(0)
        return (scale * (self._log_mean(log_w).detach() + moving - moving.detach())).sum()

    def check(self, model: Trace, guide: Trace) -> None:
        super().check(model, guide)
        scale, kept = self._layout(model, guide)[:2]
        for name, site in (*_weighed(model), *_weighed(guide)):
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

    def log_weights(self, model: Trace, guide: Trace) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p − log q by particle and datum, shape `(particles, …)`, and what each datum counts for in a mini-batch."""
        layout = self._layout(model, guide)
        log_p, log_q = (_by_datum(layout, [site for _, site in sites(trace)]) for trace in (model, guide))
        return log_p - log_q, _sum_to(layout.scale, layout.kept) if layout.kept and layout.scale.dim() else layout.scale

    def _layout(self, model: Trace, guide: Trace) -> _Layout:
        vectorized = self.vectorize_particles and self.num_particles > 1
        axis = -int(self.max_plate_nesting) if vectorized else None
        # Two plates may share an axis, one inside each of two sites; a guide's plates may have other names.
        plates = [{(f.name, f.dim) for f in _frames(s)} for _, s in _weighed(model)]
        axes = [{f.dim for f in _frames(s)} for _, s in _weighed(guide)]
        shared = {dim for _, dim in set.intersection(*plates)} if plates else set()
        kept = sorted(shared.intersection(*axes) - {axis})
        scale = next((site["scale"] for _, site in sites(model) if site["is_observed"]), 1.0)
        return _Layout(torch.as_tensor(scale), kept, axis)

    def _log_mean(self, log_w: torch.Tensor) -> torch.Tensor:
        power = 1 - self.alpha
        return (torch.logsumexp(power * log_w, 0) - math.log(len(log_w))) / power


class _Layout(NamedTuple):
    """How log densities make weights: what each datum counts for, the axes of plates that all sites share, the particles' axis."""

    scale: torch.Tensor
    kept: list[int]
    particles: int | None


def _weighed(trace: Trace) -> list[tuple[str, Any]]:
    return [(name, site) for name, site in sites(trace) if not is_deterministic(site)]


def _frames(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _by_datum(layout: _Layout, scored: list[Any]) -> torch.Tensor:
    """The sum of sites' log densities by particle and datum."""
    scale, kept, axis = layout
    divide = torch.where(scale == 0, 1.0, scale)  # the padding of a last batch counts for nothing
    dims = ([axis] if axis is not None else []) + kept
    total = torch.zeros(())
    for site in scored:
        total = total + _sum_to(site["log_prob"] / divide if kept else site["log_prob"], dims)
    return total[None] if axis is None else total


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


def check_objective(objective: str | Callable[..., ELBO], particles: int, gradient: str = "total") -> str:
    """The objective's name, if it, the number of particles and the gradient make sense together."""
    if gradient not in GRADIENTS:
        raise SettingsError(f"unknown gradient {gradient!r}; {nearest(str(gradient), GRADIENTS)}")
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise SettingsError(f"unknown objective {objective!r}; {nearest(objective, OBJECTIVES)}")
        if objective in ("importance_weighted", "renyi") and particles == 1:
            raise SettingsError(f"objective={objective!r} is the ELBO with one particle; say how many weights, as in particles=10")
        _check_gradient(OBJECTIVES[objective], objective, gradient)
        return objective
    if isinstance(objective, ELBO) or not callable(objective):
        got = f"{'an instance of ' if isinstance(objective, ELBO) else ''}{type(objective).__name__}"
        raise SettingsError(
            f"objective must be a name ({', '.join(OBJECTIVES)}) or a class of pyro.infer.ELBO, which fit makes; got {got}"
        )
    made = getattr(objective, "func", objective)
    name = str(getattr(made, "__name__", "ELBO"))
    _check_gradient(made, name, gradient)
    return name


def _check_gradient(objective: object, name: str, gradient: str) -> None:
    weighted = isinstance(objective, type) and issubclass(objective, Renyi)
    if gradient == "sticking_the_landing" and objective is not Trace_ELBO:
        if weighted:
            raise SettingsError(
                f"gradient='sticking_the_landing' is biased for importance weights, as objective={name!r} has; use "
                "gradient='doubly_reparameterized'"
            )
        if objective is MeanField:
            raise SettingsError(
                "objective='mean_field' has its KL in closed form, without noise; gradient='sticking_the_landing' goes with "
                "objective='trace_elbo'"
            )
        raise SettingsError(f"gradient='sticking_the_landing' goes with objective='trace_elbo'; got {name!r}")
    if gradient == "doubly_reparameterized" and not weighted:
        raise SettingsError(
            f"gradient='doubly_reparameterized' is for importance weights (objective='importance_weighted' or 'renyi'); with "
            f"objective={name!r} use {'gradient=' + repr(PATH if objective is Trace_ELBO else 'total')}"
        )


PATH = "sticking_the_landing"


def make_objective(objective: str | Callable[..., ELBO], problem: Problem, particles: int, gradient: str = "total") -> ELBO:
    """An ELBO of Pyro's kind for a problem, with one of the gradients that `check_objective` lets pass.

    Raises:
        SettingsError: It cannot be had of this model, guide and batch.
    """
    made = OBJECTIVES[objective] if isinstance(objective, str) else objective
    if gradient == "sticking_the_landing":
        made = StickingTheLanding
    elbo = made(num_particles=particles, vectorize_particles=problem.vectorize and particles > 1, max_plate_nesting=problem.nesting)
    if gradient == "doubly_reparameterized" and isinstance(elbo, Renyi):
        elbo.gradient = gradient
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


def surrogate_loss(objective: ELBO, model: Model, guide: Guide, data: Mapping[str, Any]) -> torch.Tensor:
    """One step's loss, a scalar in nats whose derivative is the objective's gradient, for a tracer to record.

    Run it once on values before it is recorded, with gradients on: our own objectives look at values in their first evaluation.

    Raises:
        NotImplementedError: The objective is a class of Pyro's or of the user's that has no such form.
    """
    if isinstance(objective, _Differentiable):
        return objective.differentiable_loss(model, guide, **data)
    if type(objective) is not Trace_ELBO:
        raise NotImplementedError(f"objective {type(objective).__name__} cannot be recorded")
    losses = [total_loss(*pair) for pair in objective._get_traces(model, guide, (), data)]
    return torch.stack(losses).sum() / objective.num_particles if len(losses) > 1 else losses[0] / objective.num_particles


class KLWeight(Messenger):
    """Weighs log q and log prior, and so the KL part of the ELBO, by `weight`; the likelihood keeps its own.

    Anything but 1 gives another posterior: with weight w, that of the likelihood to the power 1/w.
    """

    final: float
    annealing: int
    weight: float

    def __init__(self, weight: float, annealing: int = 0) -> None:
        super().__init__()
        self.final, self.annealing = weight, annealing
        self.weight = weight

    def at(self, step: int) -> float:
        """Set the weight to that of a step, counted from 1, and return it: it rises linearly over the first `annealing` of them."""
        self.weight = self.final * min(1.0, step / self.annealing) if self.annealing else self.final
        return self.weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


def _has_parameters(trace: Trace) -> bool:
    return any(node["type"] == "param" for node in trace.nodes.values())


def _as_it_is(program: Any) -> Any:
    return program


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
