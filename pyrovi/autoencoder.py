"""What a fitted autoencoder has learned: the codes of images, the images of codes, and what amortised inference costs.

For a model whose images are the data `images`, their codes the site `z` and their pixels the site `x`, as in `pyrovi.models.vae`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from pyrovi.errors import GuideError
from pyrovi.inputs import to_tensors
from pyrovi.preflight import Problem
from pyrovi.result import Fit

__all__ = ["Gap", "amortization_gap", "decode", "encode", "neighbours", "samples"]


def encode(fit: Fit, images: Any, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and scales of the codes of images `(m, d)`, each of shape `(m, k)`, by the fitted encoder.

    Args:
        fit: With a guide that computes codes from images, as the handwritten one does.
        images: As the encoder has seen them; grey ones will do where it has seen binarised ones.
        given: Other data of those images, labels for instance.
    """
    with fit.loaded() as problem, torch.no_grad():
        q = _codes(problem, _rows(problem, images), given)
    return q.mean, q.stddev


def decode(fit: Fit, z: Any, **given: Any) -> torch.Tensor:
    """Mean images `(m, d)` of codes `(m, k)`, by the fitted decoder; `given` is other data of those images, labels for instance."""
    with fit.loaded() as problem, torch.no_grad():
        return _decoded(problem, _rows(problem, z), given)


def samples(fit: Fit, n: int = 10, *, seed: int = 0, **given: Any) -> torch.Tensor:
    """Mean images `(n, d)` of codes drawn from the prior, by the fitted decoder."""
    with fit.loaded(seed=seed) as problem, torch.no_grad():
        return _decoded(problem, torch.randn(n, problem.structure.sites["z"].shape[-1], device=problem.device), given)


def neighbours(fit: Fit, images: Any, among: Any, k: int = 5) -> torch.Tensor:
    """Which `k` of the images `among` have mean codes nearest to each of `images` `(m, d)`: indices `(m, k)`, nearest first."""
    return torch.cdist(encode(fit, images)[0], encode(fit, among)[0]).topk(k, largest=False).indices


class Gap(NamedTuple):
    """ELBO by image, `(m,)`, in nats: under the encoder's q, and under the best Normal of each image's own."""

    amortised: torch.Tensor
    own: torch.Tensor


def amortization_gap(fit: Fit, images: Any, *, steps: int = 1_000, draws: int = 2_000, seed: int = 0, **given: Any) -> Gap:
    """What it costs to have one network find the codes of all images, on a few of them.

    The decoder stays as fitted. Each image gets a Normal with independent coordinates, started at the encoder's and improved by
    Adam. Both ELBOs are estimated from the same standard normal draws.

    Args:
        fit: With a guide that computes codes from images.
        images: Shape `(m, d)`, as the likelihood has them (0 or 1 for Bernoulli pixels).
        steps: Of Adam, 16 draws each, at a rate that falls from 0.02 of a unit to 0.
        draws: For the two ELBOs.
        seed: For all draws.
        given: Other data of those images, labels for instance.

    References:
        Inference suboptimality in variational autoencoders (Cremer, Li & Duvenaud, 2018) | https://arxiv.org/abs/1801.03558
    """
    with fit.loaded(seed=seed) as problem:
        x = _rows(problem, images)
        with torch.no_grad():
            start = _codes(problem, x, given)
        loc, raw = start.mean.clone().requires_grad_(), start.stddev.log().requires_grad_()
        inputs = {**problem.data, "images": x, **_tensors(problem, given)}

        def elbo(loc: torch.Tensor, raw: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            z = loc + raw.exp() * noise
            trace = poutine.trace(poutine.condition(problem.model, {"z": z})).get_trace(**inputs)
            log_p = trace.nodes["z"]["fn"].log_prob(z) + trace.nodes["x"]["fn"].log_prob(x)
            return (log_p - dist.Normal(loc, raw.exp()).to_event(1).log_prob(z)).mean(0)

        optimizer = torch.optim.Adam([loc, raw], lr=0.02)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            total = elbo(loc, raw, torch.randn(16, *loc.shape)).sum()
            loc.grad, raw.grad = (-g for g in torch.autograd.grad(total, [loc, raw]))
            optimizer.step()
            schedule.step()
        noise = torch.randn(draws, *loc.shape)
        with torch.no_grad():
            return Gap(elbo(start.mean, start.stddev.log(), noise), elbo(loc, raw, noise))


def _rows(problem: Problem, values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=problem.dtype, device=problem.device)


def _tensors(problem: Problem, given: Mapping[str, Any]) -> dict[str, Any]:
    return to_tensors(given, problem.dtype, problem.device)


def _codes(problem: Problem, images: torch.Tensor, given: Mapping[str, Any]) -> Any:
    """The distribution of the codes of these images; inside `loaded`."""
    if isinstance(problem.guide, AutoGuide):
        raise GuideError("an automatic guide has a code for each of its own images and no encoder; fit the handwritten guide")
    return poutine.trace(problem.guide).get_trace(**{**problem.data, "images": images, **_tensors(problem, given)}).nodes["z"]["fn"]


def _decoded(problem: Problem, z: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    """Mean images of codes; inside `loaded`."""
    blank = z.new_zeros(len(z), problem.structure.sites["x"].shape[-1])
    inputs = {**problem.data, "images": blank, **_tensors(problem, given)}
    trace = poutine.trace(poutine.condition(problem.model, {"z": z})).get_trace(**inputs)
    return trace.nodes["x"]["fn"].mean
