"""One step of a fit as a program: the loss and its gradient, a pure function of one flat vector of parameters.

Model, guide and objective are run once, with Pyro's handlers, and recorded (`pyrovi.graphs`). After that no Python of theirs runs:
the program is called with parameters, noise and, of mini-batches, rows; over a leading axis it serves many fits at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import ELBO

from pyrovi._typing import Tensors
from pyrovi.errors import first_line
from pyrovi.graphs import Recorded, record, size_of
from pyrovi.objective import KLWeight, surrogate_loss
from pyrovi.preflight import Problem
from pyrovi.recording import NotTraceable

__all__ = ["Layout", "Program", "program"]


@dataclass(frozen=True)
class Layout:
    """Where each parameter that is fitted lies in the flat vector."""

    shapes: dict[str, torch.Size]

    @property
    def sizes(self) -> list[int]:
        return [size_of(shape) for shape in self.shapes.values()]

    def flat(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One vector of all values, shape `(P,)`."""
        return torch.cat([values[name].detach().reshape(-1) for name in self.shapes])

    def named(self, vector: torch.Tensor) -> Tensors:
        """The values by name, cut from a vector of shape `(P,)`."""
        parts = vector.split(self.sizes)
        return {name: part.reshape(shape).clone() for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


@dataclass(frozen=True)
class Program:
    """The recorded step of a problem.

    `steps[rows]` is the step on a batch of so many rows, `steps[None]` that on all the data. Called as
    `body(flat, [rows], [kl weight], normal, uniform, *fixed)` it gives the gradient, shape `(P,)`, and the loss.
    """

    layout: Layout
    steps: dict[int | None, Recorded]
    tensors: tuple[torch.Tensor, ...]
    """The data, in the order in which the prologue takes them."""
    data: tuple[str, ...]
    """Their names."""
    weighted: bool
    """Whether there is a KL weight among the inputs."""


def program(problem: Problem, objective: ELBO, kl: KLWeight | None, own: Collection[str] = ()) -> Program:
    """Record the step of a problem, inside `isolated` with its parameters in the store and validation off.

    Data named in `own` differ from fit to fit, so that the step's course may not depend on their values.

    Raises:
        NotTraceable: The text says what stands against it.
    """
    leaves = problem.parameters.leaves
    if not leaves:
        raise NotTraceable("there are no parameters")
    if problem.device.type != "cpu":
        raise NotTraceable("it is for the CPU so far")
    data = {name: value for name, value in problem.data.items() if isinstance(value, torch.Tensor)}
    sizes: set[int | None] = {None}
    if problem.batches is not None:
        plan = problem.batches
        sizes = {plan.batch_size, plan.size % plan.batch_size or plan.batch_size}
    differing = [i for i, name in enumerate(data) if name in own]
    losses = {size: _loss(problem, objective, kl, size) for size in sizes}
    used = _used(losses.values(), leaves)
    steps = {
        size: record(_with_gradient(loss, used), examples, tuple(data.values()), used, differing=differing)
        for size, (loss, examples) in losses.items()
    }
    if set(pyro.get_param_store().keys()) != set(leaves):
        raise NotTraceable("it makes a parameter that only some of its batches have")
    layout = Layout({name: leaf.shape for name, leaf in used.items()})
    return Program(layout, steps, tuple(data.values()), tuple(data), kl is not None)


Loss = Callable[..., torch.Tensor]


def _loss(problem: Problem, objective: ELBO, kl: KLWeight | None, size: int | None) -> tuple[Loss, list[torch.Tensor]]:
    """A step's loss as a function of the rows and the KL weight, where there are such, and examples of them."""
    batched = problem.batched()
    model, guide = (problem.model, problem.guide) if batched is None else (batched.model, batched.guide)
    if kl is not None:
        model, guide = kl(model), kl(guide)

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        given, data = list(inputs), {}
        if batched is not None:
            batched.take(given.pop(0))
        else:
            data = problem.seen()
        if kl is None:
            return surrogate_loss(objective, model, guide, data)
        before, kl.weight = kl.weight, given.pop(0)  # type: ignore[assignment]
        try:
            return surrogate_loss(objective, model, guide, data)
        finally:
            kl.weight = before

    examples = []
    if size is not None:
        assert problem.batches is not None
        examples.append(torch.arange(problem.batches.size - size, problem.batches.size))
    if kl is not None:
        examples.append(torch.tensor(kl.weight))
    return loss, examples


def _used(losses: Iterable[tuple[Loss, list[torch.Tensor]]], leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters that a loss depends on; optimisers pass the others by. These runs are also those that look at values."""
    found: set[str] = set()
    for loss, examples in losses:
        with torch.random.fork_rng(devices=[]):
            try:
                gradients = torch.autograd.grad(loss(*examples), list(leaves.values()), allow_unused=True)
            except Exception as error:
                raise NotTraceable(first_line(error)) from error
        found |= {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}
    return {name: leaf for name, leaf in leaves.items() if name in found}


def _with_gradient(loss: Loss, leaves: Mapping[str, torch.Tensor]) -> Callable[..., list[torch.Tensor]]:
    """The gradient as one vector, and the loss."""

    def step(*inputs: torch.Tensor) -> list[torch.Tensor]:
        value = loss(*inputs)
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        parts = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves.values(), strict=True)]
        return [torch.cat([g.reshape(-1) for g in parts]), value.detach()]

    return step
