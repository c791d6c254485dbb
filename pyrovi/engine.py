"""Which engine takes a fit's steps: Pyro's SVI as it is, or the recorded step, interpreted or compiled."""

from __future__ import annotations

from pyrovi.errors import first_line
from pyrovi.program import Program, program
from pyrovi.recording import NotTraceable
from pyrovi.task import Task
from pyrovi.traced import Traced
from pyrovi.updates import FlatOptimizer, flat_optimizer

__all__ = ["ENGINES", "make_engine"]

ENGINES = ("auto", "pyro", "traced", "compiled")


COMPILE_SECONDS = 0.015
"""What compiling takes for each operation of the program, one core."""

OPERATION_SECONDS = 2.5e-6
"""What the interpreter adds to each operation, and the compiler saves."""

SHORT = 200
"""Steps below which a fit runs on plain Pyro: recording a step takes about as long as thirty of Pyro's."""


def _ready(task: Task, recorded: Program, optimizer: FlatOptimizer) -> Traced:
    """The recorded step of all fits, once tried: not every operation can be batched."""
    try:
        traced = Traced(task, recorded, optimizer)
        for size in recorded.steps:
            traced.try_step(size)
    except RuntimeError as error:
        many = f" for {len(task.seeds)} fits at once" if len(task.seeds) > 1 else ""
        raise NotTraceable(f"what was recorded cannot be run{many}: {first_line(error)}") from error
    return traced


def _worth_compiling(traced: Traced, steps: int) -> bool:
    """Whether the compiler would save more time than it takes, by what a few interpreted steps take."""
    operations, seconds, compiled = traced.timing()
    idle = operations * OPERATION_SECONDS
    saved = idle + 0.4 * max(0.0, seconds - idle)  # of the arithmetic itself, fusing saves about so much
    return compiled or steps * saved > operations * COMPILE_SECONDS


def make_engine(kind: str, task: Task) -> tuple[Traced | None, str]:
    """The engine for a task, and why it is not the one that was asked for; no engine where only plain Pyro can run it.

    `"auto"` records all but the shortest fits, and compiles where the time that this saves, measured on a few interpreted steps,
    exceeds what the compiler is known to take. Noise is the same in both, so that the choice changes a fit by rounding alone.
    """
    if kind == "pyro":
        return None, ""
    if kind == "auto" and task.steps * len(task.seeds) < SHORT:
        return None, f"fewer than {SHORT} steps"
    try:
        optimizer = flat_optimizer(task.optimizer)
        if optimizer is None:
            raise NotTraceable(f"optimizer {task.settings['optimizer']} has no pure form")
        recorded = program(task.problem, task.objective, task.kl, task.stacked)
        traced = _ready(task, recorded, optimizer)
    except NotTraceable as reason:
        return None, str(reason)
    if kind == "compiled" or (kind == "auto" and _worth_compiling(traced, task.steps)):
        try:
            traced.compile()
        except NotTraceable as reason:
            return traced, str(reason)
    return traced, ""
