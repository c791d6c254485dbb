"""log p(data, latents) as one function of a flat unconstrained vector: the model run once, recorded, and then run without Pyro.

    log p(u) = log p(data, T(u)) + log |det T'(u)|,   T the bijection from real vectors to the latents' supports

A recording is a graph of tensor operations. It can be differentiated and run on thousands of rows at once, which Pyro's handlers
cannot; whatever depends on the data alone has become a constant in it. What cannot be recorded is a model whose course depends on
the values of its latents (`if z > 0:`), or one that draws random numbers outside its sample sites.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace

from pyrovi._typing import Model, Tensors
from pyrovi.centering import Centering, Part, Placing, parts_of
from pyrovi.compiling import in_place, key
from pyrovi.differentiable import record
from pyrovi.errors import ModelError, first_line
from pyrovi.recording import NotTraceable
from pyrovi.tracing import feasible

if TYPE_CHECKING:
    from pyrovi.preflight import Problem

__all__ = ["Density", "log_density", "recorded"]

MOST_ROWS = 512
"""Rows of a recording that runs on many: past this the tensors of a small model leave the cache, and no time a row is saved."""

FEW_ROWS = (8, 64)
"""Smaller numbers of rows that have recordings of their own, where these take less than half the time."""

CALLED, COMPILED = 4_000, 100
"""Numbers that are computed in the time that an operation takes to be called from Python and to start, and once it is compiled."""

MOST_SCALARS = 4_000_000
"""Numbers that a recording computes in one run, all its intermediate results together: 32 MB, of which few are kept at a time."""

PATIENCE = 5e9
"""Numbers computed by a recording before it is compiled: the interpreter takes some five seconds for them, as the compiler does."""


class Density:
    """log p(data, latents) and its derivatives at rows of unconstrained vectors, each `dimension` long; float64, in nats.

    A row where the model is NaN, or cannot be run for a Cholesky decomposition that fails, counts as minus infinity.

    Args:
        parts: The latents' places in a row.
        row: The recording of one row.
        unconstrained: That of the latents' unconstrained values at a row, where that holds other coordinates (`pyrovi.centering`),
            and that of the way back.
        centered: The sites that hold them.
        dtype: What the model was recorded in.
        device: Where.
        patience: How many numbers a recording computes before it is compiled; 0 to compile at once, infinity for never.
    """

    parts: tuple[Part, ...]
    dimension: int
    rows: int
    device: Any
    operations: int

    def __init__(
        self,
        parts: tuple[Part, ...],
        row: torch.fx.GraphModule,
        dtype: torch.dtype,
        device: Any,
        patience: float,
        unconstrained: tuple[torch.fx.GraphModule, torch.fx.GraphModule] | None = None,
        centered: Collection[str] = (),
    ) -> None:
        self.parts, self.dimension = parts, parts[-1].stop
        self.rows = min(MOST_ROWS, 2 ** max(0, int(math.log2(MOST_SCALARS / row.meta["scalars"]))))
        self.device, self._dtype, self._row, self._unconstrained = device, dtype, row, unconstrained
        self._centered = frozenset(centered)
        self.work: int = row.meta["work"]
        self.operations = len(row.graph.nodes)
        self._origin = torch.zeros(self.dimension, dtype=dtype, device=device)
        self._single: dict[str, Callable[..., Any]] = {}
        self._many: dict[tuple[str, int], Callable[..., Any]] = {}
        self._work: dict[tuple[str, int], float] = {}
        self._alone: set[str] = set()
        self._patience = patience if self._origin.device.type == "cpu" else math.inf

    def __call__(self, u: torch.Tensor) -> torch.Tensor:
        """Shape `(n, dimension)` to `(n,)`."""
        return _or_never(self._run("value", u)[0])

    def gradient(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, shape `(n,)`, and gradients, shape `(n, dimension)`."""
        value, gradient = self._run("gradient", u)
        return _or_never(value), gradient

    def curvature(self, u: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        """The Hessian at each row of `u` times the same row of `along`, shape `(n, dimension)`."""
        return self._run("curvature", u, along)[0]

    def hessian(self, u: torch.Tensor) -> torch.Tensor:
        """Shape `(n, dimension)` to `(n, dimension, dimension)`."""
        n, d = u.shape
        basis = torch.eye(d, dtype=u.dtype, device=u.device).repeat(n, 1)
        return self.curvature(u.repeat_interleave(d, 0), basis).reshape(n, d, d)

    def centered(self, site: str) -> bool:
        """Whether a site has other coordinates than its unconstrained value."""
        return site in self._centered

    def unconstrained(self, u: torch.Tensor) -> torch.Tensor:
        """The latents' unconstrained values at rows of coordinates: the rows themselves, unless latents are centred otherwise."""
        return u if self._unconstrained is None else self._run("unconstrained", u)[0]

    def coordinates(self, u: torch.Tensor) -> torch.Tensor:
        """The way back: rows of coordinates from rows of unconstrained values."""
        return u if self._unconstrained is None else self._run("coordinates", u)[0]

    def sites(self, u: torch.Tensor) -> Tensors:
        """The latents' values, by name, `(n, *site_shape)`."""
        u = self.unconstrained(u)
        return {part.name: part.transform(u[:, part.start : part.stop].reshape(-1, *part.shape)) for part in self.parts}

    @torch.no_grad()
    def _run(self, what: str, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if what not in self._single:
            self._single[what] = self._derive(what)
        if len(inputs[0]) == 1:
            return tuple(y.double() for y in self._one_by_one(what, [x.to(self._dtype) for x in inputs]))
        pieces, i, n = [], 0, len(inputs[0])
        while i < n:
            rows = self._block(n - i)
            block = [x[i : i + rows].to(self._dtype) for x in inputs]
            count, i = len(block[0]), i + rows
            if count < rows:  # a recording is of one number of rows
                block = [torch.cat([x, x[-1:].expand(rows - count, -1)]) for x in block]
            try:
                out = self._together(what, block)
            except (RuntimeError, _NotTogether):  # in some row: find out in which
                out = self._one_by_one(what, block)
            pieces.append([y[:count].double() for y in out])
        return tuple(torch.cat(column) for column in zip(*pieces, strict=True))

    def _block(self, left: int) -> int:
        """How many rows to run next.

        A recording of few rather than one of many half empty, unless its operations are so small that calling them takes the time.
        """
        called = CALLED if self._patience == math.inf else COMPILED

        def price(rows: int) -> float:
            return math.ceil(left / rows) * (called * self.operations + rows * self.work)

        few = min((few for few in FEW_ROWS if few < self.rows), key=price, default=self.rows)
        return few if 2 * price(few) < price(self.rows) else self.rows

    def _together(self, what: str, block: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        kind = what, len(block[0])
        if what in self._alone:
            raise _NotTogether
        if kind not in self._many:
            try:
                self._many[kind] = record(torch.func.vmap(self._single[what]), *block)
            except Exception as error:  # whatever an operation raises that torch.func.vmap has no right rule for
                self._alone.add(what)
                raise _NotTogether from error
            self._work[kind] = 0
        program = self._many[kind]
        if isinstance(program, torch.fx.GraphModule):
            self._work[kind] += program.meta["scalars"]
            if self._work[kind] > self._patience:
                # By what has been done, not by the clock: the same fit is to give the same bits.
                with suppress(NotTraceable):
                    program = self._many[kind] = _compiled(program, block)
                self._work[kind] = -math.inf
        return program(*block)

    def _one_by_one(self, what: str, block: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        one, vector = self._single[what], torch.full_like(self._origin, torch.nan)
        never = {"value": (vector[0],), "gradient": (vector[0], vector)}.get(what, (vector,))
        rows = []
        for row in zip(*block, strict=True):
            try:
                rows.append(one(*row))
            except RuntimeError:
                rows.append(never)
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    @torch.enable_grad()
    def _derive(self, what: str) -> Callable[..., Any]:
        """The recording of one row's value; value and gradient; or product of its Hessian with a vector."""

        def gradient(u: torch.Tensor) -> tuple[torch.Tensor, ...]:
            value = self._row(u) + 0 * u.sum()  # a likelihood need not depend on the latents,
            return value.detach(), torch.autograd.grad(value, u)[0]

        def curvature(u: torch.Tensor, along: torch.Tensor) -> tuple[torch.Tensor]:
            slope = torch.autograd.grad(self._row(u) + 0 * u.square().sum(), u, create_graph=True)[0]  # or may be linear in them
            return (torch.autograd.grad(slope @ along, u)[0],)

        # torch.func.grad would import torch's compiler first, for three seconds.
        u = self._origin.clone().requires_grad_()
        if what in ("unconstrained", "coordinates"):
            assert self._unconstrained is not None
            there, back = self._unconstrained
            return lambda u: (there(u) if what == "unconstrained" else back(u),)
        if what == "value":
            return lambda u: (self._row(u),)
        return record(gradient, u) if what == "gradient" else record(curvature, u, self._origin)


class _NotTogether(Exception):
    """A recording cannot be run on many rows at once."""


def _or_never(value: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(value), -torch.inf, value)


def _compiled(program: torch.fx.GraphModule, block: list[torch.Tensor]) -> Callable[..., list[torch.Tensor]]:
    """A recording compiled by Inductor, its constants made arguments, so that other data of these shapes find it compiled.

    Raises:
        NotTraceable: It cannot be compiled, or there is no C++ compiler.
    """
    constants = dict(program.named_buffers())
    results, inputs = [torch.empty_like(y) for y in program(*block)], [x.clone() for x in block]
    arguments = [*results, *inputs, *constants.values()]

    def step(*given: torch.Tensor) -> tuple[()]:
        out, x, held = (given[i:j] for i, j in itertools.pairwise((0, len(results), len(results) + len(inputs), None)))
        values = torch.func.functional_call(program, dict(zip(constants, held, strict=True)), x)
        for tensor, value in zip(out, values, strict=True):
            tensor.copy_(value)
        return ()

    call = in_place(key(program.code, [(tuple(x.shape), x.dtype) for x in arguments]), step, arguments, len(results))

    def run(*block: torch.Tensor) -> list[torch.Tensor]:
        for tensor, value in zip(inputs, block, strict=True):
            tensor.copy_(value)
        call()
        return [tensor.clone() for tensor in results]

    return run


def log_density(
    model: Model,
    data: Mapping[str, Any],
    prototype: Trace,
    patience: float = PATIENCE,
    centering: Mapping[str, Centering] | None = None,
    likelihood: bool = False,
) -> Density:
    """Record a model's log joint density, given its data, in torch's default dtype.

    Args:
        model: A model whose latents are continuous, all of them in `prototype`.
        data: What it is called with.
        prototype: A trace of its latent sites, from which their order, shapes and supports are taken.
        patience: How many numbers a recording computes before Inductor compiles it.
        centering: The sites whose coordinates are not their own unconstrained values; the density is then that of the coordinates.
        likelihood: Whether to leave out the latents' own densities, and all Jacobians.

    Raises:
        ModelError: It cannot be recorded.
    """
    parts, centering = parts_of(prototype), centering or {}

    def run(z: torch.Tensor, inverse: bool = False) -> tuple[Placing, Trace]:
        placing = Placing(parts, z, centering, inverse=inverse)
        return placing, poutine.trace(placing(model)).get_trace(**data)

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        placing, trace = run(z)
        if likelihood:
            return z.new_zeros(()) + trace.log_prob_sum(lambda name, node: name not in placing.placed)
        total = trace.log_prob_sum()
        for part in parts:
            name = part.name
            u = placing.placed[name]
            total = total + part.transform.log_abs_det_jacobian(u, trace.nodes[name]["value"]).sum()
            if name in centering:
                total = total + placing.log_det[name].sum()
        return total

    def placed(z: torch.Tensor, inverse: bool) -> torch.Tensor:
        values = run(z, inverse)[0].placed
        return torch.cat([values[part.name].flatten() for part in parts])

    dtype, device = torch.get_default_dtype(), prototype.nodes[parts[0].name]["value"].device
    origin = torch.zeros(parts[-1].stop, dtype=dtype, device=device)
    try:
        with poutine.block(), pyro.validation_enabled(False), torch.no_grad():
            row = record(log_joint, origin)
            ways = (record(lambda z: placed(z, False), origin), record(lambda z: placed(z, True), origin)) if centering else None
    except Exception as error:  # whatever a model raises when its latents are not numbers yet
        raise ModelError(
            f"the model cannot be recorded as a graph of tensor operations: {first_line(error)}; fit it by method='svi'"
        ) from error
    return Density(parts, row, dtype, device, patience, ways, centering)


def recorded(problem: Problem, patience: float = PATIENCE, **options: Any) -> Density:
    """The log density of a problem in float64, or in the problem's own dtype where the model holds tensors of that.

    To be called inside `isolated`, with the fit's parameters loaded where model or guide have some; `options` are `log_density`'s.

    Raises:
        ModelError: It cannot be recorded.
    """
    error: ModelError | None = None
    prototype = getattr(problem.guide, "prototype_trace", None)
    if prototype is None:
        with poutine.block():
            prototype = poutine.trace(InitMessenger(feasible)(problem.model)).get_trace(**problem.data)
        prototype = poutine.util.prune_subsample_sites(prototype)
    for dtype in dict.fromkeys((torch.float64, problem.dtype)):
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            data = {n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in problem.data.items()}
            return log_density(problem.model, data, prototype, patience, **options)
        except ModelError as raised:
            error = error or raised
        finally:
            torch.set_default_dtype(before)
    assert error is not None
    raise error
