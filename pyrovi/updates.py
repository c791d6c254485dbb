"""Optimisers as pure functions of a flat vector: what torch.optim does in place, written so that a tracer can record it.

    params, state = update(params, gradient, state, t, lr)

Every tensor has the shape `(…, P)`: leading axes hold replicates. `t`, the step counted from 1, and `lr` are scalars, or have one
value a replicate, shape `(…, 1)`. The arithmetic is torch.optim's own, defaults included, so that both agree to rounding.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.optim.clipped_adam import ClippedAdam

__all__ = ["FLAT", "FlatOptimizer", "clip_by_norm", "flat_optimizer"]

State = tuple[torch.Tensor, ...]
Betas = tuple[float, float]
BETAS = (0.9, 0.999)


Moved = tuple[torch.Tensor, State]


class FlatOptimizer(NamedTuple):
    """`init(params)` is the state before the first step; `update` is one step."""

    init: Callable[[torch.Tensor], State]
    update: Callable[[torch.Tensor, torch.Tensor, State, torch.Tensor, torch.Tensor], Moved]


def clip_by_norm(gradient: torch.Tensor, sizes: Sequence[int], clip_norm: float) -> torch.Tensor:
    """Each parameter's part of the gradient, shrunk to a norm of at most `clip_norm`, replicate by replicate.

    Args:
        gradient: Shape `(…, P)`.
        sizes: How many scalars each parameter has; they sum to P.
        clip_norm: The largest norm.
    """
    parts = gradient.split(list(sizes), -1)
    norms = [torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in parts]
    return torch.cat([part * (clip_norm / (norm + 1e-6)).clamp(max=1.0) for part, norm in zip(parts, norms, strict=True)], -1)


class _At(NamedTuple):
    """Where a step begins: parameters, gradient, state, step and rate."""

    p: torch.Tensor
    g: torch.Tensor
    state: State
    t: torch.Tensor
    lr: torch.Tensor


def _adam(at: _At, betas: Betas = BETAS, eps: float = 1e-8, weight_decay: float = 0.0) -> Moved:
    p, g, state, t, lr = at
    m, v = _moments(_decayed(g, p, weight_decay), state, betas)
    one, two = _corrections(t, betas)
    return p - _as(lr / one, p) * m / (v.sqrt() / _as(two.sqrt(), p) + eps), (m, v)


def _adamw(at: _At, betas: Betas = BETAS, eps: float = 1e-8, weight_decay: float = 1e-2) -> Moved:
    return _adam(at._replace(p=at.p * _as(1 - at.lr * weight_decay, at.p)), betas, eps)


def _clipped_adam(
    at: _At, betas: Betas = BETAS, eps: float = 1e-8, weight_decay: float = 0.0, clip_norm: float = 10.0, lrd: float = 1.0
) -> Moved:
    """Pyro's: it clips every element, not the norm, and its eps is not divided by the bias correction."""
    p, g, state, t, lr = at
    m, v = _moments(_decayed(g.clamp(-clip_norm, clip_norm), p, weight_decay), state, betas)
    one, two = _corrections(t, betas)
    return p - _as(lr * _power(lrd, t) * two.sqrt() / one, p) * m / (v.sqrt() + eps), (m, v)


def _sgd(at: _At, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> Moved:
    p, g, state, t, lr = at
    g = _decayed(g, p, weight_decay)
    b = momentum * state[0] + g
    return p - _as(lr, p) * (g + momentum * b if nesterov else b), (b,)


def _rmsprop(at: _At, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0) -> Moved:
    p, g, state, t, lr = at
    g = _decayed(g, p, weight_decay)
    v = alpha * state[0] + (1 - alpha) * g * g
    return p - _as(lr, p) * g / (v.sqrt() + eps), (v,)


def _adagrad(at: _At, lr_decay: float = 0.0, eps: float = 1e-10, weight_decay: float = 0.0) -> Moved:
    p, g, state, t, lr = at
    g = _decayed(g, p, weight_decay)
    total = state[0] + g * g
    return p - _as(lr / (1 + (t - 1) * lr_decay), p) * g / (total.sqrt() + eps), (total,)


def _adamax(at: _At, betas: Betas = BETAS, eps: float = 1e-8, weight_decay: float = 0.0) -> Moved:
    p, g, state, t, lr = at
    g = _decayed(g, p, weight_decay)
    m = state[0] + (1 - betas[0]) * (g - state[0])
    largest = torch.maximum(betas[1] * state[1], g.abs() + eps)
    return p - _as(lr / (1 - _power(betas[0], t)), p) * m / largest, (m, largest)


def _nadam(at: _At, betas: Betas = BETAS, eps: float = 1e-8, weight_decay: float = 0.0, momentum_decay: float = 4e-3) -> Moved:
    p, g, state, t, lr = at
    g = _decayed(g, p, weight_decay)
    m, v = _moments(g, state, betas)
    mu, following = (betas[0] * (1 - 0.5 * _power(0.96, (t + i) * momentum_decay)) for i in (0, 1))
    product = torch.where(_as(t, p) > 1, state[2], 1.0) * _as(mu, p)
    scale = (v / _as(_corrections(t, betas)[1], p)).sqrt() + eps
    step = _as(lr * (1 - mu), p) / (1 - product) * g + _as(lr * following, p) / (1 - product * _as(following, p)) * m
    return p - step / scale, (m, v, product)


def _radam(at: _At, betas: Betas = BETAS, eps: float = 1e-8, weight_decay: float = 0.0) -> Moved:
    p, g, state, t, lr = at
    m, v = _moments(_decayed(g, p, weight_decay), state, betas)
    one, two = _corrections(t, betas)
    most = 2 / (1 - betas[1]) - 1
    rho = most - 2 * t * _power(betas[1], t) / two
    rectified = ((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)).clamp(min=0.0).sqrt() * two.sqrt()
    adaptive = torch.where(rho > 5.0, _as(rectified, p) / (v.sqrt() + eps), torch.ones_like(v))
    return p - _as(lr / one, p) * m * adaptive, (m, v)


def _decayed(g: torch.Tensor, p: torch.Tensor, weight_decay: float) -> torch.Tensor:
    return g + weight_decay * p if weight_decay else g


def _moments(g: torch.Tensor, state: State, betas: Betas) -> State:
    m, v = state[:2]
    return m + (1 - betas[0]) * (g - m), betas[1] * v + (1 - betas[1]) * g * g


def _corrections(t: torch.Tensor, betas: Betas) -> State:
    return 1 - _power(betas[0], t), 1 - _power(betas[1], t)


def _power(base: float, exponent: torch.Tensor) -> torch.Tensor:
    return torch.pow(base, exponent)


def _as(factor: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return factor.to(p.dtype)


Rule = Callable[..., Moved]

RULES: dict[str, tuple[type[torch.optim.Optimizer], Rule, int]] = {
    "adagrad": (torch.optim.Adagrad, _adagrad, 1),
    "adam": (torch.optim.Adam, _adam, 2),
    "adamax": (torch.optim.Adamax, _adamax, 2),
    "adamw": (torch.optim.AdamW, _adamw, 2),
    "clipped_adam": (ClippedAdam, _clipped_adam, 2),
    "nadam": (torch.optim.NAdam, _nadam, 3),
    "radam": (torch.optim.RAdam, _radam, 2),
    "rmsprop": (torch.optim.RMSprop, _rmsprop, 1),
    "sgd": (torch.optim.SGD, _sgd, 1),
}
"""By name: the class that has the same arithmetic, the rule, and how many tensors its state has."""


def _flat(name: str, options: dict[str, Any]) -> FlatOptimizer:
    _, rule, count = RULES[name]

    def init(params: torch.Tensor) -> State:
        return tuple(torch.zeros_like(params) for _ in range(count))

    def update(p: torch.Tensor, g: torch.Tensor, state: State, t: torch.Tensor, lr: torch.Tensor) -> Moved:
        # In float32, 1 - 0.999**t has lost four digits at t = 1; torch.optim has Python floats there.
        return rule(_At(p, g, state, t.to(torch.float64), lr.to(torch.float64)), **options)

    return FlatOptimizer(init, update)


FLAT: dict[str, FlatOptimizer] = {name: _flat(name, {}) for name in RULES}


def flat_optimizer(optimizer: object) -> FlatOptimizer | None:
    """What `fit` takes as `optimizer`, in this form; None where there is none.

    Args:
        optimizer: A name, a class of `torch.optim`, or a `functools.partial` of one, whose options are kept, the rate aside.
    """
    options = dict(optimizer.keywords) if isinstance(optimizer, functools.partial) else {}
    options.pop("lr", None)
    cls = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    name = next((name for name, (same, _, _) in RULES.items() if cls in (name, same)), None)
    if name is None or not set(options) <= set(inspect.signature(RULES[name][1]).parameters) - {"at"}:
        return None
    return _flat(name, options)
