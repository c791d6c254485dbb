"""A fit's steps by the recorded step, interpreted or compiled, for one fit or for many at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._typing import Tensors
from pyrovi.compiling import in_place, is_compiled, key
from pyrovi.graphs import Recorded
from pyrovi.program import Program
from pyrovi.recording import rerecord
from pyrovi.starts import on_own_data
from pyrovi.task import SCORED, Task, watched
from pyrovi.updates import FlatOptimizer, clip_by_norm

__all__ = ["Traced"]

BLOCK = 1_000
"""The most steps whose noise is drawn at once."""

NOISE = 2**18
"""The most random numbers drawn at once for one fit: 1 MB in float32."""


class _Block(NamedTuple):
    """What some steps in a row need besides the parameters, all drawn beforehand."""

    size: int | None
    """Rows a step; None where all data are seen."""
    shared: list[torch.Tensor]
    """A number a step, the same for every fit, shape `(steps,)`: the step from 1, the rate and, if there is one, the KL weight."""
    own: list[torch.Tensor]
    """Shape `(fits, steps, …)`: normal and uniform numbers and, where there are batches, rows."""


class Traced:
    """The recorded step for many fits at once, each with its own start, noise, batches and, where wished, data.

    Fit r draws what a fit of its own with the seed `seeds[r]` would draw, but for distributions whose draws cannot be made outside
    of the program (Gamma and its kin). Noise is drawn a block of steps at a time, the same blocks however the steps are asked for,
    so that neither the compiler nor the progress bar changes a fit.
    """

    name: str
    fits: int
    done: int
    averaged: int

    def __init__(self, task: Task, program: Program, optimizer: FlatOptimizer) -> None:
        self.name, self.fits, self.done, self.averaged = "traced", len(task.seeds), 0, 0
        self._task, self._program, self._optimizer = task, program, optimizer
        self._kl, self._batches, self._clip_norm = task.kl, task.problem.batches, task.settings["clip_norm"]
        self._own = {i: task.stacked[name] for i, name in enumerate(program.data) if name in task.stacked}
        self._fixed = {size: self._computed_once(step) for size, step in program.steps.items()}
        self._flat = torch.stack([program.layout.flat(start) for start in task.starts])
        self._calls = {size: self._of_all_fits(size) for size in program.steps}
        self._state = tuple(optimizer.init(self._flat))
        self._alive = torch.ones(self.fits, dtype=torch.bool)
        self._total = torch.zeros_like(self._flat)
        starts = np.cumsum([0, *program.layout.sizes])
        self._watched = np.concatenate([at + chosen for at, chosen in zip(starts, watched(program.layout.sizes), strict=False)])
        self._factor = 1.0
        self._index = torch.zeros(1, dtype=torch.int64)
        self._noise = [torch.Generator().manual_seed(seed) for seed in task.seeds]
        self._rows = self._row_feeds()
        self._next_rows = [next(rows) for rows in self._rows]
        self._blocks: dict[int | None, _Block] = {}
        self._block, self._at, self._until = _Block(None, [], []), 0, 0
        self._repeat: Callable[[], Any] | None = None
        self._main_size = self._batches.batch_size if self._batches is not None else None

    @property
    def died(self) -> list[bool]:
        return [not alive for alive in self._alive.tolist()]

    @torch.no_grad()
    def run(self, elbo: NDArray[np.float64]) -> None:
        column, wanted = 0, elbo.shape[1]
        while column < wanted:
            if self._at == self._until:
                self._draw_block()
            asked = min(wanted - column, self._until - self._at)
            losses, interrupted = self._take(asked)
            taken = losses.shape[1]
            elbo[:, column : column + taken] = -losses
            column, self._at, self.done, self.averaged = column + taken, self._at + taken, self.done + taken, self.averaged + taken
            if interrupted:
                raise KeyboardInterrupt
            if taken < asked or not self._alive.any():
                return  # the only fit has died, or all have

    def _take(self, steps: int) -> tuple[NDArray[np.float64], bool]:
        """The losses of the next steps of this block, shape `(fits, steps)`; fewer where the only fit dies, or a key is pressed."""
        taken = None
        if self._repeat is not None and self._block.size == self._main_size:
            taken = self._take_compiled(self._repeat, steps)
        losses, interrupted = taken or self._take_interpreted(steps)
        found = losses[self._at : int(self._index)].double().numpy().T.copy()
        if self.fits == 1 and not self._alive[0]:
            found = found[:, : int(np.isfinite(found[0]).argmin())]
        return found, interrupted

    def _take_interpreted(self, steps: int) -> tuple[torch.Tensor, bool]:
        losses = torch.empty(self._until, self.fits)
        self._index.fill_(self._at)
        try:
            for at in range(self._at, self._at + steps):
                losses[at] = self._step(at)
                self._index += 1
                if self.fits == 1 and not self._alive[0]:
                    break
        except KeyboardInterrupt:
            return losses, True
        return losses, False

    def _take_compiled(self, repeat: Callable[[], Any], steps: int) -> tuple[torch.Tensor, bool] | None:
        """The same in machine code, which does not look at its losses: where a fit dies all is as before, and the answer None."""
        moving = (self._flat, self._total, *self._state)
        before, draws, interrupted = [x.clone() for x in moving], torch.get_rng_state(), False
        self._index.fill_(self._at)
        try:
            for _ in range(steps):
                repeat()
        except KeyboardInterrupt:
            interrupted = True
        losses = self._losses[self._at : int(self._index)]
        if not torch.isfinite(losses[:, self._alive]).all():
            torch.set_rng_state(draws)
            for x, value in zip(moving, before, strict=True):
                x.copy_(value)
            return None
        if not self._alive.all():
            self._flat[~self._alive], losses[:, ~self._alive] = before[0][~self._alive], torch.nan
        return self._losses, interrupted

    def _step(self, at: int) -> torch.Tensor:
        """One interpreted step. A fit whose loss is not finite stays where it is from then on, and has no loss."""
        block = self._block
        t, rate, *weight = (x[at] for x in block.shared)
        inputs = self._arguments([x[:, at] for x in block.own], weight)
        gradient, loss = self._gradients(self._flat, inputs, self._fixed[block.size], block.size)
        alive = self._alive & torch.isfinite(loss)
        flat, state = self._optimizer.update(self._flat, gradient, self._state, t, rate)
        if not alive.all():
            keep = alive[:, None]
            flat = torch.where(keep, flat, self._flat)
            state = tuple(torch.where(keep, new, old) for new, old in zip(state, self._state, strict=True))
        if self._repeat is None:
            self._flat, self._state = flat, state
        else:  # the compiled step knows these tensors by their place in memory
            for tensor, value in zip((self._flat, *self._state), (flat, *state), strict=True):
                tensor.copy_(value)
        self._alive = alive
        self._total += flat
        return torch.where(alive, loss, torch.nan)

    @staticmethod
    def _arguments(own: list[torch.Tensor], weight: list[torch.Tensor]) -> list[torch.Tensor]:
        normal, uniform, *rows = own
        return [*rows, *weight, normal, uniform]

    def _gradients(
        self, flat: torch.Tensor, inputs: list[torch.Tensor], fixed: list[torch.Tensor], size: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every fit's gradient, shape `(fits, P)`, and loss."""
        gradient, loss = self._calls[size](flat, *inputs, *fixed)
        if self._clip_norm is not None:
            gradient = clip_by_norm(gradient, self._program.layout.sizes, self._clip_norm)
        return gradient, loss

    def _axes(self, step: Recorded) -> list[int | None]:
        """Which of the step's fixed values have an axis of fits: those that depend on data of their own."""
        return [0 if set(origin) & set(self._own) else None for origin in step.tensor_of]

    @torch.no_grad()
    def _computed_once(self, step: Recorded) -> list[torch.Tensor]:
        tensors = [self._own.get(i, tensor) for i, tensor in enumerate(self._program.tensors)]
        if self._own:
            dims = tuple(0 if i in self._own else None for i in range(len(tensors)))
            every = torch.func.vmap(step.prologue, in_dims=dims)(*tensors)
            values = [v if axis == 0 else v[0] for v, axis in zip(every, self._axes(step), strict=True)]
        else:
            values = list(step.prologue(*tensors))
        memory: set[int] = set()
        for i, value in enumerate(values):  # each its own, for compiled code knows them by their places in memory
            values[i] = value.contiguous()
            if values[i].untyped_storage().data_ptr() in memory:
                values[i] = values[i].clone()
            memory.add(values[i].untyped_storage().data_ptr())
        return values

    def _of_all_fits(self, size: int | None) -> Callable[..., Any]:
        """The step's gradient `(fits, P)` and loss `(fits,)` as a function of arguments with an axis of fits."""
        step = self._program.steps[size]
        rows = [0] if size is not None else []
        weight = [None] if self._program.weighted else []
        dims = (0, *rows, *weight, 0, 0, *self._axes(step))

        def alone(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            gradient, loss = step.body(*(x[0] if axis == 0 else x for x, axis in zip(arguments, dims, strict=True)))
            return gradient[None], loss[None]

        if self.fits == 1 and not self._own:
            return alone
        many = torch.func.vmap(step.body, in_dims=dims, randomness="different")
        # Recorded in its turn: vmap around every step is slower, and a Ctrl-C at the wrong moment would leave it unusable.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # where torch has no rule of its own
            again = rerecord(many, [self._flat, *self._nought(size), *self._fixed[size]])
        return many if list(again.buffers()) else again

    def _row_feeds(self, salt: int = 0) -> list[Iterator[torch.Tensor]]:
        if self._batches is None:
            return []
        return [self._batches.epochs(self._generator(seed, salt), torch.device("cpu")) for seed in self._task.seeds]

    @staticmethod
    def _generator(seed: int, salt: int) -> torch.Generator:
        return torch.Generator().manual_seed((seed + 1_000_003 * salt) % 2**32)  # torch takes no notice of further bits

    def _capacity(self, size: int | None) -> int:
        step = self._program.steps[size]
        return min(BLOCK, self._task.steps, max(1, NOISE // (1 + step.normals + step.uniforms + (size or 0))))

    def _draw_block(self) -> None:
        """Draw what the next steps need: as many as see batches of one size, up to the block's capacity."""
        size = len(self._next_rows[0]) if self._rows else None
        count = min(self._capacity(size), self._task.steps - self.done)
        rows: list[torch.Tensor] = []
        while self._rows and len(rows) < count and len(self._next_rows[0]) == size:
            rows.append(torch.stack(self._next_rows))
            self._next_rows = [next(feed) for feed in self._rows]
        count = len(rows) if self._rows else count
        block = self._block = self._buffers(size)
        for generator, normal, uniform in zip(self._noise, *block.own[:2], strict=True):
            torch.randn(count, normal.shape[1], generator=generator, out=normal[:count])
            torch.rand(count, uniform.shape[1], generator=generator, out=uniform[:count])
        if rows:
            block.own[2][:, :count] = torch.stack(rows, 1)
        numbers = range(self.done, self.done + count)
        shared = [[n + 1 for n in numbers], [self._rate_at(n) for n in numbers]]
        if self._kl is not None:
            shared.append([self._kl.at(n + 1) for n in numbers])
        for buffer, values in zip(block.shared, shared, strict=True):
            buffer[:count] = torch.tensor(values, dtype=buffer.dtype)
        self._at, self._until = 0, count

    def _rate_at(self, step: int) -> float:
        return float(self._task.settings["lr"] * self._task.factor(step) * self._factor)

    def rate(self, factor: float) -> None:
        self._factor = factor
        rest = range(self.done, self.done + self._until - self._at)
        if rest:  # of a block whose rates are there already
            self._block.shared[1][self._at : self._until] = torch.tensor([self._rate_at(n) for n in rest], dtype=torch.float64)

    def _buffers(self, size: int | None) -> _Block:
        if size in self._blocks:
            return self._blocks[size]
        step, steps = self._program.steps[size], self._capacity(size)
        shared = [torch.zeros(steps, dtype=torch.float64) for _ in range(2)]
        if self._kl is not None:
            shared.append(torch.zeros(steps, dtype=self._task.problem.dtype))  # the step's own dtype, or it would change that
        own = [torch.zeros(self.fits, steps, n, dtype=step.dtype) for n in (step.normals, step.uniforms)]
        rows = [] if size is None else [torch.zeros(self.fits, steps, size, dtype=torch.int64)]
        self._blocks[size] = _Block(size, shared, own + rows)
        return self._blocks[size]

    def compile(self) -> None:
        """Compile the step, in place on these fits' own tensors; that of a last, smaller batch is left to the interpreter.

        Raises:
            NotTraceable: It cannot be compiled here.
        """
        size = self._main_size
        block = self._buffers(size)
        self._losses = torch.zeros(self._capacity(size), self.fits, dtype=self._flat.dtype)
        fixed, states, shared, own = self._fixed[size], len(self._state), len(block.shared), len(block.own)
        changing = [self._index, self._flat, self._total, self._losses, *self._state]
        arguments = [*changing, *block.shared, *block.own, *fixed]

        def step(*given: torch.Tensor) -> tuple[()]:
            index, flat, total, losses, *rest = given
            state, rest = tuple(rest[:states]), rest[states:]
            t, rate, *weight = (x.index_select(0, index).squeeze(0) for x in rest[:shared])
            inputs = self._arguments([x.index_select(1, index).squeeze(1) for x in rest[shared : shared + own]], weight)
            gradient, loss = self._gradients(flat, inputs, rest[shared + own :], size)
            new, new_state = self._optimizer.update(flat, gradient, state, t, rate)
            losses.index_put_((index,), loss[None])
            for tensor, value in zip((flat, *state, total), (new, *new_state, total + new), strict=True):
                tensor.copy_(value)
            index.add_(1)
            return ()

        some = torch.Generator().manual_seed(0)  # what a compiled step is proven on must move the parameters
        for buffer in (*block.shared, *block.own[:2]):
            buffer.uniform_(0.1, 0.9, generator=some)
        block.shared[0].fill_(1.0)
        self._repeat = in_place(self._key(size), step, arguments, len(changing))
        self.name = "compiled"

    def _key(self, size: int | None) -> str:
        step, shapes = self._program.steps[size], [(tuple(x.shape), x.dtype) for x in (self._flat, *self._fixed[size])]
        return key(
            step.body.code,
            self._task.settings["optimizer"],
            self._clip_norm,
            self._capacity(size),
            size,
            self._kl is None,
            shapes,
            self._axes(step),
        )

    @torch.no_grad()
    def try_step(self, size: int | None) -> None:
        """Call the step once and change nothing."""
        self._calls[size](self._flat, *self._nought(size), *self._fixed[size])

    def _nought(self, size: int | None) -> list[torch.Tensor]:
        """A step's inputs, with nought for noise."""
        step, weight = self._program.steps[size], [torch.tensor(1.0)] if self._program.weighted else []
        own = [torch.zeros(self.fits, n, dtype=step.dtype) for n in (step.normals, step.uniforms)]
        rows = [] if size is None else [torch.zeros(self.fits, size, dtype=torch.int64)]
        return self._arguments([*own, *rows], weight)

    def timing(self) -> tuple[int, float, bool]:
        """The operations of the step, the seconds of an interpreted one, and whether it has been compiled before."""
        size, at = self._main_size, [time.perf_counter()]
        for _ in range(4):
            self.try_step(size)
            at.append(time.perf_counter())
        return len(self._program.steps[size].body.graph.nodes), float(np.diff(at).min()), is_compiled(self._key(size))

    def restart_average(self) -> None:
        self.averaged = 0
        self._total.zero_()

    def sums(self) -> torch.Tensor:
        return self._total.clone()

    def watched(self) -> NDArray[np.float64]:
        return self._total.numpy()[:, self._watched].astype(np.float64)

    def named(self, flat: torch.Tensor) -> list[Tensors]:
        # Parameters that no loss depends on are where they started.
        return [{**start, **self._program.layout.named(row)} for start, row in zip(self._task.starts, flat, strict=True)]

    def values(self) -> list[Tensors]:
        return self.named(self._flat)

    def means(self) -> list[Tensors]:
        return self.named(self._total / self.averaged)

    def _held_inputs(self, draws: int, salt: int = 0) -> Iterator[tuple[int | None, list[torch.Tensor]]]:
        """What some steps need besides the parameters, by the seeds and the salt: the rows a step, and the arguments."""
        noise = [self._generator(seed, salt) for seed in self._task.seeds]
        feeds = self._row_feeds(salt)
        weight = [torch.tensor(self._kl.weight)] if self._kl is not None else []
        for _ in range(draws):
            rows = [torch.stack([next(feed) for feed in feeds])] if feeds else []
            size = rows[0].shape[1] if rows else None
            step = self._program.steps[size]
            own = [
                torch.stack([draw(n, generator=generator, dtype=step.dtype) for generator in noise])
                for draw, n in ((torch.randn, step.normals), (torch.rand, step.uniforms))
            ]
            yield size, self._arguments([*own, *rows], weight)

    @torch.no_grad()
    def scores(self, values: Sequence[Tensors]) -> NDArray[np.float64]:
        flat = torch.stack([self._program.layout.flat(value) for value in values])
        torch.manual_seed(self._task.seeds[0])  # for draws that are made inside the program
        losses = [self._calls[size](flat, *inputs, *self._fixed[size])[1] for size, inputs in self._held_inputs(SCORED)]
        return -torch.stack(losses, 1).double().numpy()

    @torch.no_grad()
    def pulls(self, points: torch.Tensor, draws: int) -> NDArray[np.float64]:
        towards = (points - points[:4].mean(0)).double()
        out = np.empty((self.fits, draws, len(points), len(points)))
        state = torch.get_rng_state()
        for i, (size, inputs) in enumerate(self._held_inputs(draws, self.done)):
            for k, point in enumerate(points):
                torch.manual_seed(self._task.seeds[0] + self.done + i)  # for draws that are made inside the program
                gradient, _ = self._calls[size](point, *inputs, *self._fixed[size])
                out[:, i, k] = torch.einsum("fp,kfp->fk", gradient.double(), towards).numpy()
        torch.set_rng_state(state)
        return out

    def stand(self, fit: int) -> tuple[Any, Any, dict[str, Any]]:
        rows = self._block.own[2][fit, min(int(self._index), self._until) - 1] if self._rows else None
        problem, kl = on_own_data(self._task.problem, self._task.stacked, fit), self._kl
        batched = problem.batched()
        if batched is None or rows is None:
            model, guide, data = problem.model, problem.guide, problem.seen()
        else:
            batched.take(rows)
            model, guide, data = batched.model, batched.guide, {}
        return (kl(model), kl(guide), data) if kl is not None else (model, guide, data)
