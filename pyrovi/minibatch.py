"""Mini-batches for a model written plainly, or with Pyro's own subsampling, and for any guide.

One plate is batched. Every step a `Batch` handler wraps the model and the guide, and one set of indices serves both.
There are three ways to run a program on a batch:

- `sliced`: it is written plainly and gets the rows of the batch; its plate shrinks from n to B with the data.
- `indexed`: it subsamples the plate itself (`with plate as i: … x[i]`) and gets all the data, and our indices.
- `whole`: an autoguide. It draws all n local latents; the batch takes its own. The entropy of q is then exact, and
  guides that tie the latents together (a full covariance) batch as well as those that do not.

Sites inside the plate are scaled by n/B either way, B being the size of the batch at hand: the last one of a pass may be smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyrovi._typing import Guide, Model, Transform
from pyrovi.inputs import transformed

__all__ = ["Batch", "Minibatches", "Mode"]

Mode = Literal["sliced", "indexed", "whole"]


class Batch(Messenger):
    """An effect handler that makes one program see one batch of a plate.

    Args:
        plate: The name of the plate.
        size: n, the plate's full size.
        mode: How the program meets the batch.
        parameters: For a `sliced` guide, the parameters that hold a row a datum, and the axis of those rows.
        estimate_full: Scale up to the full data set (training), or leave each datum its own weight (evaluation).
    """

    plate: str
    size: int
    mode: Mode
    parameters: Mapping[str, int]
    rows: torch.Tensor
    count: int

    def __init__(
        self,
        plate: str,
        size: int,
        mode: Mode,
        *,
        parameters: Mapping[str, int] | None = None,
        estimate_full: bool = True,
    ) -> None:
        super().__init__()
        self.plate, self.size, self.mode = plate, size, mode
        self.parameters = parameters or {}
        self.estimate_full = estimate_full
        self.rows, self.count = torch.arange(0), 0

    def take(self, rows: torch.Tensor, count: int) -> None:
        """Set the batch: a vector of indices below `size`, of which the first `count` are real and the rest padding."""
        self.rows, self.count = rows, count

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["name"] == self.plate and self.mode != "whole":
                msg["value"], msg["done"] = self.rows, True
            elif msg["name"] == self.plate:
                msg["stop"] = True  # keep all n indices of the guide out of its trace, or the model would replay them
            return
        for i, frame in enumerate(msg["cond_indep_stack"]):
            if frame.name == self.plate:
                if self.mode != "whole":
                    self._scale(msg, frame)
                elif isinstance(msg["fn"], dist.Delta):  # not so: an auxiliary site, drawn, and scored, for all n
                    narrowed = frame._replace(size=len(self.rows))
                    self._narrow(msg, i, narrowed)
                    self._scale(msg, narrowed._replace(full_size=len(self.rows)))

    def _scale(self, msg: Any, frame: Any) -> None:
        # Pyro has scaled by full_size / size already; what is wanted is n / (size of this batch), or 1.
        wanted = self.size / self.count if self.estimate_full else 1.0
        scale = wanted * frame.size / (frame.full_size or frame.size)
        if self.count == len(self.rows):
            msg["scale"] = msg["scale"] * scale
        elif frame.vectorized:
            weights = scale * (torch.arange(len(self.rows), device=self.rows.device) < self.count)
            msg["scale"] = msg["scale"] * weights.reshape((-1,) + (1,) * (-frame.dim - 1))
        else:
            msg["scale"] = msg["scale"] * (scale if frame.counter <= self.count else 0.0)

    def _narrow(self, msg: Any, i: int, frame: Any) -> None:
        fn, dim = msg["fn"], frame.dim
        msg["fn"] = dist.Delta(
            fn.v.index_select(dim - fn.event_dim, self.rows),
            fn.log_density.expand(fn.batch_shape).index_select(dim, self.rows),
            fn.event_dim,
        )
        stack = list(msg["cond_indep_stack"])
        stack[i] = frame
        msg["cond_indep_stack"] = tuple(stack)

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"] in self.parameters:
            msg["value"] = msg["value"].index_select(self.parameters[msg["name"]], self.rows)


@dataclass(frozen=True)
class Minibatches:
    """How one model and guide are run on batches of a plate: found out by trying (see `preflight`).

    `pad_to` is the batch size that a program has written into its own plate, if one has. Pyro insists on exactly that
    many indices: a smaller batch is filled up with copies of its last datum, of weight 0.
    """

    plate: str
    size: int
    batch_size: int
    sliced: tuple[str, ...]
    model_mode: Mode
    guide_mode: Mode
    pad_to: int | None = None
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.size // self.batch_size)

    def epochs(self, generator: torch.Generator, device: torch.device) -> Iterator[torch.Tensor]:
        """Batches without end: each pass is a fresh shuffle and meets every datum once."""
        while True:
            yield from torch.randperm(self.size, generator=generator, device="cpu").to(device).split(self.batch_size)

    def blocks(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """All rows in order, a batch at a time."""
        return torch.arange(self.size, device=device).split(self.batch_size)


class Batched:
    """A model and a guide that, called without arguments, run on the batch set by `take`."""

    plan: Minibatches
    device: torch.device

    def __init__(
        self,
        batches: Minibatches,
        model: Model,
        guide: Guide,
        data: Mapping[str, Any],
        *,
        transform: Transform | None = None,
        estimate_full: bool = True,
    ) -> None:
        self.plan, self._model, self._guide, self._data, self._transform = batches, model, guide, data, transform
        self._batches = {
            "model": Batch(batches.plate, batches.size, batches.model_mode, estimate_full=estimate_full),
            "guide": Batch(
                batches.plate,
                batches.size,
                batches.guide_mode,
                parameters=batches.parameters if batches.guide_mode == "sliced" else None,
                estimate_full=estimate_full,
            ),
        }
        self._sliced: dict[str, Any] = {}
        self._whole = dict(data)
        self.device = next((v.device for v in data.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))

    def rows(self, block: int) -> torch.Tensor:
        """One batch of the rows in order."""
        return self.plan.blocks(self.device)[block]

    def take(self, rows: torch.Tensor) -> None:
        count, pad_to = len(rows), self.plan.pad_to
        if pad_to is not None and count < pad_to:
            rows = torch.cat([rows, rows[-1:].expand(pad_to - count)])
        for batch in self._batches.values():
            batch.take(rows, count)
        modes = (self.plan.model_mode, self.plan.guide_mode)
        if self._transform is None:
            if "sliced" in modes:
                self._sliced = self._narrowed(self._data, rows)
        elif set(modes) == {"sliced"}:
            self._sliced = transformed(self._transform, self._narrowed(self._data, rows))
        else:  # a program that takes its rows from all the data has to meet the same ones as one that is given them
            self._whole = transformed(self._transform, self._data)
            self._sliced = self._narrowed(self._whole, rows)

    def _narrowed(self, data: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
        return {name: value.index_select(0, rows) if name in self.plan.sliced else value for name, value in data.items()}

    @property
    def indices(self) -> torch.Tensor:
        """The rows of the batch, padding included."""
        return self._batches["model"].rows

    @property
    def count(self) -> int:
        """How many of them are real."""
        return self._batches["model"].count

    def model(self, *_: Any, **__: Any) -> Any:
        with self._batches["model"]:
            return self._model(**(self._sliced if self.plan.model_mode == "sliced" else self._whole))

    def guide(self, *_: Any, **__: Any) -> Any:
        with self._batches["guide"]:
            return self._guide(**(self._sliced if self.plan.guide_mode == "sliced" else self._whole))
