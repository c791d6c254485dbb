"""One step of a fit as a program: the loss and its gradient, a pure function of one flat vector of parameters.

Model, guide and objective are run once, with Pyro's handlers, and recorded (`pyrovi.graphs`). After that no Python of theirs runs:
the program is called with parameters, noise and, of mini-batches, rows; over a leading axis it serves many fits at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO

from pyrovi._typing import Tensors
from pyrovi.graphs import NotTraceable, Recorded, record, size_of
from pyrovi.objective import KLWeight, surrogate_loss
from pyrovi.preflight import Problem

__all__ = ["Layout", "Program", "program"]


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector."""

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
    steps = {}
    for size in sizes:
        step, examples = _step(problem, objective, kl, size)
        state = torch.get_rng_state()
        try:
            step(*examples)  # on values first: an objective looks at some in its first evaluation
        except NotImplementedError as error:
            raise NotTraceable(str(error)) from error
        finally:
            torch.set_rng_state(state)
        steps[size] = record(
            step, examples, tuple(data.values()), leaves, differing=[i for i, name in enumerate(data) if name in own]
        )
    layout = Layout({name: leaf.shape for name, leaf in leaves.items()})
    return Program(layout, steps, tuple(data.values()), tuple(data), kl is not None)


def _step(
    problem: Problem, objective: ELBO, kl: KLWeight | None, size: int | None
) -> tuple[Callable[..., Sequence[torch.Tensor]], list[torch.Tensor]]:
    """A step as a function of the rows and the KL weight, where there are such, and examples of them."""
    batched = problem.batched()
    model, guide = (problem.model, problem.guide) if batched is None else (batched.model, batched.guide)
    if kl is not None:
        model, guide = kl(model), kl(guide)
    leaves = list(problem.parameters.leaves.values())

    def step(*inputs: torch.Tensor) -> list[torch.Tensor]:
        given = list(inputs)
        data: dict[str, Any] = {}
        if batched is not None:
            batched.take(given.pop(0))
        else:
            data = problem.seen()
        before = None
        if kl is not None:
            before, kl.weight = kl.weight, given.pop(0)  # type: ignore[assignment]
        try:
            loss = surrogate_loss(objective, model, guide, data)
        finally:
            if kl is not None:
                kl.weight = before  # type: ignore[assignment]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        parts = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]
        return [torch.cat([g.reshape(-1) for g in parts]), loss.detach()]

    examples = []
    if size is not None:
        assert problem.batches is not None
        examples.append(torch.arange(problem.batches.size - size, problem.batches.size))
    if kl is not None:
        examples.append(torch.tensor(kl.weight))
    return step, examples
