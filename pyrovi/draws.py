"""Draws from a fitted guide, scored under guide and model, and predictions from them.

Values are kept as `(draws, *batch_shape, *event_shape)`. A vectorised run wants ones between the draws and the batch, up to the
deepest plate nesting; `_Runner` lays them out and takes them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state

from pyrovi._typing import Data, Tensors
from pyrovi.arguments import check_arguments, columns_taken
from pyrovi.errors import DataError, ModelError, SettingsError, first_line, nearest
from pyrovi.guides.coordinates import AutoCoordinates
from pyrovi.inputs import describe, to_tensors
from pyrovi.minibatch import Batched
from pyrovi.preflight import Problem
from pyrovi.structure import Site, Structure, is_deterministic, per_draw

__all__ = ["Draws", "draw", "given", "latents_alone", "observed", "predict", "prior"]

CHUNK_SCALARS = 10_000_000
"""Observed and latent scalars handled at once: 80 MB in float64, a few times that with temporaries."""


@dataclass(frozen=True)
class Draws:
    """Draws from q. Every tensor has the draws as its first axis; log densities are in nats, the two joint ones in float64."""

    posterior: Tensors
    """Latent and deterministic sites."""
    log_q: torch.Tensor
    """NaN of draws that were not drawn by the guide as they stand."""
    log_p: torch.Tensor
    """log p(data, latents)."""
    log_prior: Tensors
    log_likelihood: Tensors
    """By observed site, a value a datum."""

    @property
    def elbo(self) -> torch.Tensor:
        """One estimate of the ELBO a draw; their mean is the ELBO."""
        return self.log_p - self.log_q


def draw(problem: Problem, n: int, *, pointwise: bool = False) -> Draws:
    """Draw from the guide and score under both programs, inside `isolated` with the fit's parameters loaded.

    Args:
        problem: What was fitted.
        n: The number of draws.
        pointwise: Also keep the log likelihood of every datum: `n` times the data in memory.
    """
    with torch.no_grad():
        parts = [_score(problem, runner, pointwise, *_from_guide(problem, runner)) for runner in _runners(problem, n)]
    return _together(parts)


def given(problem: Problem, latents: Tensors, *, pointwise: bool = False) -> Draws:
    """The same for draws of the latents from elsewhere, by site, `(n, *site_shape)`: scored under the model alone."""
    done, parts = 0, []
    n = len(next(iter(latents.values())))
    with torch.no_grad():
        for runner in _runners(problem, n):
            values = {
                name: latents[name][done : done + runner.size].reshape(runner.size, *site.shape)
                for name, site in problem.structure.latent.items()
            }
            parts.append(_score(problem, runner, pointwise, values, torch.full((runner.size,), torch.nan, dtype=torch.float64)))
            done += runner.size
    return _together(parts)


def latents_alone(problem: Problem, n: int, latents: Tensors | None) -> Tensors | None:
    """The draws' values without a run of the model, `draw`'s or `given`'s; None where the model computes sites of its own.

    Scoring `n` draws against all data takes most of the time and memory, and values alone do not need it.

    Args:
        problem: What was fitted.
        n: The number of draws.
        latents: Those to take, as for `given`; drawn from the guide when None.
    """
    sites = problem.structure.latent
    if problem.batches is not None or len(problem.structure.of_kind("deterministic")):
        return None
    if latents is None and isinstance(problem.guide, AutoCoordinates) and not problem.vectorize and not problem.guide.centered:
        latents = problem.guide.many(n, **problem.data)
    elif latents is None:
        with torch.no_grad():
            latents = _cat(_from_guide(problem, runner)[0] for runner in _runners(problem, n))
    return {name: _tidy(latents[name].reshape(n, *site.shape), site) for name, site in sites.items()}


def _together(parts: list[Draws]) -> Draws:
    return Draws(
        _cat(part.posterior for part in parts),
        torch.cat([part.log_q for part in parts]),
        torch.cat([part.log_p for part in parts]),
        _cat(part.log_prior for part in parts),
        _cat(part.log_likelihood for part in parts),
    )


def predict(
    problem: Problem, n: int, posterior: Mapping[str, torch.Tensor], data: Data | None, redraw: Sequence[str] = ()
) -> Tensors:
    """The model's observed sites (and deterministic ones, with new data) drawn anew for each of `n` posterior draws."""
    unknown = [name for name in redraw if name not in problem.structure.latent]
    if unknown:
        raise SettingsError(
            f"redraw names {unknown[0]!r}, which is not a latent site; {nearest(unknown[0], problem.structure.latent)}"
        )
    if data is None:
        structure, inputs = problem.structure, None
    else:
        if problem.batches is not None and problem.batches.pad_to is not None:
            raise ModelError(
                f"the model subsamples plate {problem.batches.plate!r} itself and would predict for a random part of the new data; "
                f"write the plate plainly, as pyro.plate({problem.batches.plate!r}, len(x))"
            )
        inputs = _new_data(problem, data)
        structure = _structure(problem, inputs)
    moved: set[str] = set()
    if inputs is not None and not isinstance(problem.guide, AutoGuide):
        moved = _moved(problem, inputs, structure, set(redraw))
    kept = {}
    for name, site in problem.structure.latent.items():
        if name in redraw or name in moved or name not in structure.sites:
            continue
        shape = structure.sites[name].shape
        if shape != site.shape:
            raise DataError(
                f"site {name!r} has shape {tuple(site.shape)} in the fit and {tuple(shape)} with the new data; pass "
                f"redraw=[{name!r}] to draw it from the model given the rest, or give data that leave its shape alone"
            )
        kept[name] = posterior[name]
    wanted = {
        name
        for name, s in structure.sites.items()
        if s.kind == "observed" or (data is not None and (s.kind == "deterministic" or name not in problem.structure.sites))
    }
    out, done = [], 0
    with torch.no_grad():
        for runner in _runners(problem, n):
            given = {m: v[done : done + runner.size].reshape(runner.size, *structure.sites[m].shape) for m, v in kept.items()}
            if moved - set(redraw):
                guided = runner.trace(problem.guide, inputs or {}, given, structure)
                for name in moved - set(redraw):
                    site = structure.sites[name]
                    given[name] = runner.value(guided.nodes[name], tuple(site.shape), site)
            blocks = _blocks(problem, "model") if inputs is None else [_Block(problem.model, inputs)]
            out.append(_simulated(runner, blocks, structure, given, wanted))
            done += runner.size
    return _cat(iter(out))


def prior(problem: Problem, n: int) -> tuple[Tensors, Tensors]:
    """Draws of the model alone: its latent and deterministic sites, and its observed ones."""
    structure = problem.structure
    wanted = {name for name, s in structure.sites.items() if s.kind != "factor"}
    with torch.no_grad():
        out = [_simulated(runner, _blocks(problem, "model"), structure, {}, wanted) for runner in _runners(problem, n)]
    drawn = _cat(iter(out))
    return {m: v for m, v in drawn.items() if m not in structure.observed}, {m: drawn[m] for m in structure.observed}


def observed(problem: Problem) -> Tensors:
    """The observed values, whole, also of a model that subsamples itself; no axis of draws."""
    if problem.batches is None or problem.batches.pad_to is None:
        sites = problem.structure.observed
        return {
            m: _tidy(v.detach().reshape(sites[m].shape)[None], sites[m])[0] for m, v in zip(sites, problem.outcomes, strict=True)
        }
    pieces: dict[str, list[torch.Tensor]] = {}
    for block in _blocks(problem, "model"):
        trace = poutine.trace(block.program).get_trace(**block.data)
        for name, site in problem.structure.observed.items():
            if name in trace.nodes and block.counts(trace.nodes[name]):
                value = trace.nodes[name]["value"].detach().expand(block.shape(site))[None]
                pieces.setdefault(name, []).append(block.drop_padding(value, site))
    return {
        name: _tidy(_join(block, v, problem.structure.sites[name]), problem.structure.sites[name])[0] for name, v in pieces.items()
    }


def _simulated(runner: _Runner, blocks: Iterable[_Block], structure: Structure, given: Tensors, wanted: set[str]) -> Tensors:
    """Run the model forwards with some latents given; block by block, with the same global latents in each."""
    pieces: dict[str, list[torch.Tensor]] = {}
    held = dict(given)
    for block in blocks:
        values = {name: block.narrow(value, structure.sites[name]) for name, value in held.items()}
        trace = runner.trace(_Simulate()(block.program), block.data, values, structure)
        for name, site in structure.sites.items():
            if site.kind == "factor" or name not in trace.nodes or not block.counts(trace.nodes[name]):
                continue
            value = runner.value(trace.nodes[name], block.shape(site), site)
            if name in wanted:
                pieces.setdefault(name, []).append(block.drop_padding(value, site))
            if site.kind == "latent" and block.plate is not None and not site.inside(block.plate):
                held[name] = value
    return {name: _tidy(_join(block, v, structure.sites[name]), structure.sites[name]) for name, v in pieces.items()}


class _Simulate(UnconditionMessenger):
    """Draws what was observed. A deterministic site is observed too, in Pyro's way of writing it, and stays as computed."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_deterministic(msg):
            super()._pyro_sample(msg)


class _Runner:
    """Runs programs `size` draws at a time."""

    def __init__(self, problem: Problem, size: int) -> None:
        self.size, self._vectorize, self._nesting = size, problem.vectorize, problem.nesting
        self._plate = pyro.plate("pyrovi_draws", size, dim=-(problem.nesting + 1))

    def trace(
        self,
        program: Callable[..., Any],
        data: Mapping[str, Any],
        values: Mapping[str, torch.Tensor] | None = None,
        structure: Structure | None = None,
    ) -> Trace:
        """Run a program, some of its sites held at given values, and score it."""
        if values:
            assert structure is not None
            laid_out = {n: self._lay_out(v, len(structure.sites[n].batch_shape)) for n, v in values.items()}
            program = poutine.condition(program, data=laid_out)
        trace = poutine.trace(self._plate(program) if self._vectorize else program).get_trace(**data)
        trace.compute_log_prob()
        return trace

    def _pad(self, shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
        return (self.size, *(1,) * (self._nesting - batch), *shape)

    def _lay_out(self, value: torch.Tensor, batch: int) -> torch.Tensor:
        return value.reshape(self._pad(tuple(value.shape[1:]), batch)) if self._vectorize else value[0]

    def _take_back(self, value: torch.Tensor, shape: tuple[int, ...], batch: int) -> torch.Tensor:
        if not self._vectorize:
            return value.expand(shape)[None]
        if value.dim() and len(value) == self.size and value.numel() == self.size * torch.Size(shape).numel():
            return value.reshape(self.size, *shape)  # a deterministic site may know nothing of its plates
        return value.expand(self._pad(shape, batch)).reshape(self.size, *shape)

    def value(self, node: Any, shape: tuple[int, ...], site: Site) -> torch.Tensor:
        return self._take_back(node["value"].detach(), shape, len(site.batch_shape))

    def log_prob(self, node: Any, shape: tuple[int, ...], site: Site) -> torch.Tensor:
        batch = len(site.batch_shape)
        # Each datum's own density: not scaled as the ELBO may be.
        log_prob = scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])
        return self._take_back(torch.as_tensor(log_prob).detach(), shape[:batch], batch)

    def total(self, trace: Trace, wanted: Callable[[Any], bool] = lambda node: True) -> torch.Tensor:
        """The log density of a trace's sites by draw, scaled and masked as in the ELBO."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for node in trace.nodes.values():
            if node["type"] == "sample" and not site_is_subsample(node) and wanted(node):
                log_prob = torch.as_tensor(node["log_prob"]).detach().cpu()
                total = total + per_draw(log_prob, self.size, self._nesting if self._vectorize else log_prob.dim())
        return total


def _runners(problem: Problem, n: int) -> Iterator[_Runner]:
    scalars = sum(site.shape.numel() for site in problem.structure.sites.values())
    chunk = max(1, min(n, CHUNK_SCALARS // max(1, scalars))) if problem.vectorize else 1
    for done in range(0, n, chunk):
        yield _Runner(problem, min(chunk, n - done))


def _score(problem: Problem, runner: _Runner, pointwise: bool, values: Tensors, log_q: torch.Tensor) -> Draws:
    log_p = torch.zeros(runner.size, dtype=torch.float64)
    posterior: dict[str, list[torch.Tensor]] = {}
    log_prior: dict[str, list[torch.Tensor]] = {}
    log_likelihood: dict[str, list[torch.Tensor]] = {}
    for block in _blocks(problem, "model"):
        given = {name: block.narrow(value, problem.structure.sites[name]) for name, value in values.items()}
        trace = runner.trace(block.program, block.data, given, problem.structure)
        log_p += runner.total(trace, block.counts)
        for name, site in problem.structure.sites.items():
            if name not in trace.nodes:  # a sequential plate has only this block's sites
                continue
            node = trace.nodes[name]
            if not block.counts(node) or site.kind == "factor":
                continue
            shape = block.shape(site)
            if site.kind != "observed":
                posterior.setdefault(name, []).append(block.drop_padding(runner.value(node, shape, site), site))
            if site.kind == "latent":
                log_prior.setdefault(name, []).append(block.drop_padding(runner.log_prob(node, shape, site), site))
            if site.kind == "observed" and pointwise:
                log_likelihood.setdefault(name, []).append(block.drop_padding(runner.log_prob(node, shape, site), site))
    return Draws(
        {n: _tidy(_join(block, v, problem.structure.sites[n]), problem.structure.sites[n]) for n, v in posterior.items()},
        log_q,
        log_p,
        {
            n: _tidy(_join(block, v, problem.structure.sites[n]), problem.structure.sites[n], event=False)
            for n, v in log_prior.items()
        },
        {
            n: _tidy(_join(block, v, problem.structure.sites[n]), problem.structure.sites[n], event=False)
            for n, v in log_likelihood.items()
        },
    )


def _from_guide(problem: Problem, runner: _Runner) -> tuple[Tensors, torch.Tensor]:
    """Values of the latent sites and log q. A guide that subsamples is run block by block, with the same global latents in each."""
    sites = problem.structure.latent
    log_q = torch.zeros(runner.size, dtype=torch.float64)
    pieces: dict[str, list[torch.Tensor]] = {}
    shared: Tensors = {}
    for block in _blocks(problem, "guide"):
        trace = runner.trace(block.program, block.data, shared, problem.structure)
        log_q += runner.total(trace, block.counts)
        for name, site in sites.items():
            if name in trace.nodes and block.counts(trace.nodes[name]):
                pieces.setdefault(name, []).append(
                    block.drop_padding(runner.value(trace.nodes[name], block.shape(site), site), site)
                )
        shared = {name: pieces[name][0] for name, site in sites.items() if block.plate is not None and not site.inside(block.plate)}
    return {name: _join(block, pieces[name], site) for name, site in sites.items()}, log_q


@dataclass(frozen=True)
class _Block:
    """All of a program's data, or, for one that subsamples itself, the next rows of them."""

    program: Callable[..., Any]
    data: dict[str, Any]
    plate: str | None = None
    batched: Batched | None = None
    first: bool = True

    def counts(self, node: Any) -> bool:
        """Whether a site is to be counted in this block: every one in the first, then only those inside the plate."""
        return self.first or any(frame.name == self.plate for frame in node["cond_indep_stack"])

    def axis(self, site: Site) -> int | None:
        """Where the batched plate is among the axes of a site's value."""
        if self.plate is None:
            return None
        return next((len(site.batch_shape) + p.dim for p in site.plates if p.name == self.plate and p.dim is not None), None)

    def shape(self, site: Site) -> tuple[int, ...]:
        axis, shape = self.axis(site), list(site.shape)
        if axis is not None and self.batched is not None:
            shape[axis] = len(self.batched.indices)
        return tuple(shape)

    def narrow(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        axis = self.axis(site)
        return value if axis is None or self.batched is None else value.index_select(1 + axis, self.batched.indices)

    def drop_padding(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        axis = self.axis(site)
        return value if axis is None or self.batched is None else value.narrow(1 + axis, 0, self.batched.count)


def _blocks(problem: Problem, which: str) -> Iterator[_Block]:
    program = problem.model if which == "model" else problem.guide
    batches = problem.batches
    if batches is None or (batches.model_mode if which == "model" else batches.guide_mode) != "indexed":
        yield _Block(program, problem.data)
        return
    batched = problem.batched(estimate_full=False)
    assert batched is not None
    for i, rows in enumerate(batches.blocks(problem.device)):
        batched.take(rows)
        yield _Block(batched.model if which == "model" else batched.guide, {}, batches.plate, batched, first=i == 0)


def _join(block: _Block, pieces: list[torch.Tensor], site: Site) -> torch.Tensor:
    """The blocks' pieces of a site's value along the batched plate."""
    axis = block.axis(site)
    return pieces[0] if axis is None or len(pieces) == 1 else torch.cat(pieces, dim=1 + axis)


def _tidy(value: torch.Tensor, site: Site, *, event: bool = True) -> torch.Tensor:
    """Drop the axes of length one that belong to no plate."""
    axes, _ = site.axes()
    return value.reshape(len(value), *(value.shape[1 + i] for i in axes if event or i < len(site.batch_shape)))


def _cat(parts: Iterator[Tensors]) -> Tensors:
    whole = list(parts)
    return {name: torch.cat([part[name] for part in whole]) for name in whole[0]}


def _new_data(problem: Problem, data: Data) -> dict[str, Any]:
    """Arguments for a prediction: new ones over the old. Old outcomes are None, unless the model has to have them."""
    new = to_tensors(columns_taken(problem.model, data, problem.data)[0], problem.dtype, problem.device)
    check_arguments(problem.model, new, problem.data)
    return {**{n: None if _is_outcome(problem, v) else v for n, v in problem.data.items()}, **new}


def _moved(problem: Problem, inputs: Mapping[str, Any], structure: Structure, redraw: set[str]) -> set[str]:
    """The latents in plates that a handwritten guide draws otherwise on the new data: tried on both, from the same random numbers.

    Raises:
        DataError: The guide cannot be run on them, for it takes the outcomes or has parameters for each of the old data, and
            latents that belong to a datum are not to be redrawn.
    """
    state, drawn = get_rng_state(), []
    try:
        for data in (problem.data, inputs):
            set_rng_state(state)
            with torch.no_grad(), poutine.block():
                drawn.append(poutine.trace(problem.guide).get_trace(**data))
    except Exception as error:  # whatever a guide raises on data that it was not made for
        if stuck := sorted(problem.structure.local - redraw):
            raise DataError(
                f"the guide cannot be run on the new data ({first_line(error)}), and site {stuck[0]!r} belongs to a datum: pass "
                f"redraw=[{stuck[0]!r}] to draw it from the model given the rest, or write a guide that reads only what is given"
            ) from error
        return set()
    finally:
        set_rng_state(state)
    old, new = ({n: t.nodes[n]["value"] for n in problem.structure.latent if n in t.nodes} for t in drawn)
    return {
        n
        for n in old
        if problem.structure.latent[n].plates and n in structure.sites and n in new and not torch.equal(old[n], new[n])
    }


def _is_outcome(problem: Problem, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and any(value is observed for observed in problem.outcomes)


def _structure(problem: Problem, data: Mapping[str, Any]) -> Structure:
    try:
        with poutine.block():
            trace = poutine.trace(_Simulate()(problem.model)).get_trace(**data)
    except Exception as error:
        raise DataError(
            f"the model cannot be run on the new data ({describe(data)}): {type(error).__name__}: {str(error).splitlines()[0]}; "
            "outcomes that are not given are passed as None, so let the model take them as None and read sizes off the other data"
        ) from error
    found = Structure.of(trace)
    outcomes = problem.structure.observed
    return Structure({n: s if n not in outcomes else _as_observed(s) for n, s in found.sites.items()})


def _as_observed(site: Site) -> Site:
    return Site(site.name, site.shape, site.event_dim, site.plates, site.support, "observed")
