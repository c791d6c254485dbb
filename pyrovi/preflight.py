"""Mistakes in model, guide and data, found before the first step, and what the fit needs to know about them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoLaplaceApproximation
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape, get_rng_state, set_rng_state

from pyrovi._isolation import Parameters
from pyrovi._typing import Data, Guide, Model, Transform
from pyrovi.arguments import check_arguments, columns_taken
from pyrovi.batching import find_batches, find_plate
from pyrovi.errors import DataError, DiscreteLatent, GuideError, ModelError, first_line, nearest
from pyrovi.guides.auto import make_guide
from pyrovi.inputs import clone, matching_arguments, to_tensors, transformed
from pyrovi.minibatch import Batched, Minibatches
from pyrovi.structure import Site, Structure, is_deterministic, per_draw
from pyrovi.tracing import check_observed, family, feasible, in_words, is_real, outside_support, run

__all__ = ["Problem", "check_outcomes", "on", "prepare", "with_laplace"]


@dataclass(frozen=True)
class Problem:
    """A model and a guide that are known to run together on their data.

    `model` and `guide` are private copies where the originals are modules. Run them inside `isolated`, with
    `parameters.loaded(...)`.
    """

    model: Model
    guide: Guide
    guide_name: str
    data: dict[str, Any]
    structure: Structure
    parameters: Parameters
    vectorize: bool
    dtype: torch.dtype
    device: torch.device
    nesting: int
    guide_order: tuple[str, ...] = ()
    """The guide's sites in the order in which it draws them."""
    transform: Transform | None = None
    batches: Minibatches | None = None
    outcomes: tuple[torch.Tensor, ...] = ()
    """The observed values, to tell which data are outcomes and which are not."""

    @property
    def point_estimate(self) -> bool:
        """Whether the guide is a point, or empty: there is then no posterior, only an estimate."""
        return isinstance(self.guide, (AutoDelta, AutoLaplaceApproximation)) or not self.structure.latent

    def seen(self) -> dict[str, Any]:
        """All the data as a step sees them; a transform may be random, and then they differ from call to call."""
        return transformed(self.transform, self.data) if self.transform is not None else self.data

    def settled(self) -> Problem:
        """The same with the transform done once, so that everything that is asked of it is asked of the same data."""
        if self.transform is None:
            return self
        return replace(self, data=self.seen(), transform=None).traced()

    def traced(self) -> Problem:
        """The same with structure and outcomes read anew off a run of the model on its data."""
        trace = _look(self.model, self.data)
        structure = check_observed(trace)
        return replace(
            self,
            structure=structure.whole(),
            outcomes=tuple(trace.nodes[name]["value"] for name in structure.observed),
        )

    def batched(self, *, estimate_full: bool = True) -> Batched | None:
        if self.batches is None:
            return None
        return Batched(self.batches, self.model, self.guide, self.data, transform=self.transform, estimate_full=estimate_full)

    def step_programs(self, block: int) -> tuple[Guide, Model, dict[str, Any]]:
        """Guide, model and their arguments, as one step runs them: on all data, or on one block of the rows in order."""
        batched = self.batched()
        if batched is None:
            return self.guide, self.model, self.seen()
        batched.take(batched.rows(block))
        return batched.guide, batched.model, {}


def prepare(
    model: Model,
    guide: Any,
    data: Data | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int | Mapping[str, int] | None = None,
    batch_data: tuple[str, ...] | None = None,
    transform: Transform | None = None,
    guide_options: Mapping[str, Any] | None = None,
) -> Problem:
    """Check everything that can be checked without a step, inside `isolated(..., validate=True)`.

    Raises:
        DataError, ModelError, GuideError, SettingsError: One sentence each; see `pyrovi.errors`.
    """
    raw = to_tensors(columns_taken(model, data)[0], dtype, device)
    check_arguments(model, raw)
    tensors = transformed(transform, raw) if transform is not None else raw
    model, guide = clone(model, guide, dtype, device)
    guide, guide_name = make_guide(guide, model, guide_options)
    if not isinstance(guide, AutoGuide):
        guide = matching_arguments(guide, tensors, model)

    # Only names and shapes are read off this run: its latent values are not the model's choice, so they are not validated. It has a
    # store of its own, so that the guide meets an empty one, as under `svi.step`.
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        trace = _look(model, tensors)
        if integers := _integers_to_cast(trace, tensors):
            raw |= {name: raw[name].to(dtype) for name in integers}
            tensors = transformed(transform, raw) if transform is not None else raw
            trace = _look(model, tensors)
    forgotten = [name for name in Structure.of(trace).latent if isinstance(tensors.get(name), torch.Tensor)]
    if forgotten:
        raise ModelError(
            f"site {forgotten[0]!r} has the name of the data {forgotten[0]!r} but no obs=; did you forget obs={forgotten[0]}? "
            "If the site is a latent, give the one or the other another name"
        )
    structure = check_observed(trace)
    discrete = [name for name, site in structure.latent.items() if getattr(site.support, "is_discrete", False)]
    if discrete and isinstance(guide, AutoGuide):
        raise DiscreteLatent(
            f"site {discrete[0]!r} is discrete, which autoguides cannot draw; fit without settings, which sums it out where it has "
            "few values, or sum it out of the model (see pyro.distributions.MixtureSameFamily), or write a guide that samples it",
            structure.max_plate_nesting,
            raw,
        )
    plate, size = find_plate(structure, tensors, batch_size)
    batches = None
    if plate is not None:
        batches = find_batches(model, guide, tensors, structure, plate, size, batch_data)
        run(guide, tensors, GuideError)  # registers the guide's parameters at their full size
    problem = Problem(
        model=model,
        guide=guide,
        guide_name=guide_name,
        data=raw,
        transform=transform,
        structure=structure.whole(),
        parameters=Parameters(),
        vectorize=False,
        dtype=dtype,
        device=device,
        nesting=structure.max_plate_nesting,
        batches=batches,
        outcomes=tuple(trace.nodes[name]["value"] for name in structure.observed),
    )
    guide_trace, model_trace = _first_run(problem)
    if batches is not None and batches.size % batches.batch_size:
        _first_run(problem, -1)  # the last, smaller batch may make parameters of its own
    guide_structure = Structure.of(guide_trace)
    _check_match(Structure.of(model_trace), guide_structure, is_auto=isinstance(guide, AutoGuide))
    _check_finite(model_trace, guide_trace)
    problem = replace(
        problem,
        parameters=Parameters.registered(),
        guide_order=tuple(guide_structure.sites),
        nesting=max(structure.max_plate_nesting, guide_structure.max_plate_nesting),
    )
    return replace(problem, vectorize=_vectorizes(problem, Structure.of(model_trace)))


def check_outcomes(problem: Problem, stacked: Mapping[str, torch.Tensor]) -> None:
    """Raise where data sets of which the problem holds the first have outcomes that the model cannot."""
    for site, value in zip(problem.structure.observed.values(), problem.outcomes, strict=True):
        for name, rows in stacked.items():
            outside = outside_support(site.support, rows) if problem.data[name] is value else None
            if outside is not None:
                row = int(torch.nonzero(outside)[0][0])
                raise DataError(
                    f"data set {row} of {name!r} has values of site {site.name!r} that are not {in_words(site.support)}"
                )


def on(problem: Problem, data: Data) -> Problem:
    """The problem with other data, checked like the first, inside `isolated` with the fit's parameters loaded.

    Raises:
        DataError, ModelError: The model cannot be run on them.
        GuideError: The guide cannot: it has parameters for each of the old data, say.
    """
    if problem.batches is not None and problem.batches.pad_to is not None:
        raise ModelError(
            f"the model subsamples plate {problem.batches.plate!r} itself and would see a random part of these data; write the "
            f"plate plainly, as pyro.plate({problem.batches.plate!r}, len(x))"
        )
    new = to_tensors(columns_taken(problem.model, data, problem.data)[0], problem.dtype, problem.device)
    merged = {**{name: value for name, value in problem.data.items() if name not in new}, **new}
    check_arguments(problem.model, new, problem.data)
    moved = replace(problem, data=merged, transform=None, batches=None)
    seen = transformed(problem.transform, merged)
    with pyro.validation_enabled(True):
        trace = _look(problem.model, seen)
        if integers := _integers_to_cast(trace, seen):
            merged |= {name: merged[name].to(problem.dtype) for name in integers}
        moved = replace(moved, data=merged)
        settled = replace(moved, data=transformed(problem.transform, merged)).traced()
        for name, site in settled.structure.latent.items():
            old = problem.structure.latent.get(name)
            own = name in problem.structure.local
            if isinstance(problem.guide, AutoGuide) and (own or old is None or old.shape != site.shape):
                raise GuideError(
                    f"site {name!r} belongs to the data that were fitted, and an autoguide has a factor for each of its elements; "
                    "write a guide that computes them from the data, or use predictive(data=…, redraw=[…])"
                )
        guide_trace, model_trace = _first_run(settled)
        sizes = {p.size for name in settled.structure.local for p in settled.structure.latent[name].plates}
        rows = [name for name, leaf in problem.parameters.leaves.items() if sizes & set(leaf.shape)]
        if rows and not isinstance(problem.guide, AutoGuide) and any(name in new for name in problem.data):
            state = get_rng_state()
            old = poutine.trace(problem.guide).get_trace(**problem.data)
            set_rng_state(state)
            again = poutine.trace(settled.guide).get_trace(**settled.data)
            stuck = [n for n in settled.structure.local if torch.equal(old.nodes[n]["value"], again.nodes[n]["value"])]
            if stuck:
                raise GuideError(
                    f"site {stuck[0]!r} belongs to the data that were fitted: the guide draws it from {rows[0]!r}, a row a "
                    "datum, and not from the new data; use predictive(data=…, redraw=[…])"
                )
        _check_match(Structure.of(model_trace), Structure.of(guide_trace), is_auto=isinstance(problem.guide, AutoGuide))
    if set(pyro.get_param_store().keys()) != set(problem.parameters.leaves):
        raise GuideError("model or guide would make new parameters for these data; let none depend on the data's shape")
    return replace(settled, data=merged, transform=problem.transform)


def _look(model: Model, data: Mapping[str, Any]) -> Trace:
    """A run with moderate latent values, or with prior draws where the model cannot be run at those."""
    try:
        return run(InitMessenger(feasible)(model), data, ModelError)
    except ModelError as error:
        try:
            return run(model, data, ModelError)
        except ModelError:
            raise error from error.__cause__


def _integers_to_cast(trace: Trace, data: Mapping[str, Any]) -> list[str]:
    """Outcomes given as integers or booleans, as 0 and 1 usually are, where the distribution scores only floats."""
    found = []
    for name in Structure.of(trace).observed:
        value, fn = trace.nodes[name]["value"], trace.nodes[name]["fn"]
        if value.is_floating_point():
            continue
        try:
            fn.log_prob(value)
        except RuntimeError:
            found += [argument for argument, given in data.items() if given is value]
    return found


def _first_run(problem: Problem, block: int = 0) -> tuple[Trace, Trace]:
    """Guide and model together as a step will run them, in the order of `Trace_ELBO`."""
    guide, model, data = problem.step_programs(block)
    guide_trace = run(guide, data, GuideError)
    for name, site in problem.structure.latent.items():
        node = guide_trace.nodes.get(name)
        if node is None:
            continue
        # A Normal around 0.5 may take a thousand draws to leave (0, 1), so the family is looked at too.
        too_wide = is_real(node["fn"].support) and not is_real(site.support) and family(node["fn"]) != "Delta"
        if too_wide or outside_support(site.support, node["value"]) is not None:
            raise GuideError(
                f"the guide draws site {name!r} from {family(node['fn'])}, whose values are {in_words(node['fn'].support)}; in the "
                f"model they are {in_words(site.support)}: give the guide a distribution with that support"
            )
    return guide_trace, run(poutine.replay(model, trace=guide_trace), data, ModelError)


def _check_match(model: Structure, guide: Structure, *, is_auto: bool) -> None:
    """The guide must sample the model's latents, all of them, nothing else, in the same shapes."""
    observed = [name for name in guide.sites if name in model.observed]
    if observed:
        raise GuideError(f"the guide samples {observed[0]!r}, which the model observes; drop it from the guide")
    extra = [name for name in guide.latent if name not in model.latent]
    missing = [name for name in model.latent if name not in guide.sites]
    if extra:
        raise GuideError(
            f"the guide samples {extra[0]!r}, which the model does not; {nearest(extra[0], model.latent)}"
            " (a helper of the guide's own wants infer={'is_auxiliary': True})"
        )
    if missing:
        raise GuideError(f"the guide does not sample the model's site {missing[0]!r}; {nearest(missing[0], guide.sites)}")
    for name, site in model.latent.items():
        mine = guide.sites[name]
        if not is_auto and (mine.shape != site.shape or mine.event_dim != site.event_dim):
            raise GuideError(
                f"site {name!r} has {_shape(mine)} in the guide and {_shape(site)} in the model; use the same plates "
                "and .to_event in both"
            )


def _shape(site: Site) -> str:
    return f"batch shape {tuple(site.batch_shape)} and event shape {tuple(site.shape[len(site.batch_shape) :])}"


def _check_finite(model_trace: Trace, guide_trace: Trace) -> None:
    """The ELBO must exist where the optimisation starts."""
    for what, trace, error in (("guide", guide_trace, GuideError), ("model", model_trace, ModelError)):
        try:
            trace.compute_log_prob()
        except Exception as exception:  # torch's validation, or whatever a distribution raises at values it cannot score
            raise error(f"the {what} cannot be scored at the guide's first draw: {first_line(exception)}") from exception
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and not torch.isfinite(torch.as_tensor(node["log_prob_sum"])).all():
                value = torch.as_tensor(node["log_prob_sum"]).item()
                raise error(
                    f"log_prob of site {name!r} in the {what} is {value} at the guide's first draw; "
                    "start the guide where the model has positive density"
                )


@torch.no_grad()
def _vectorizes(problem: Problem, alone: Structure) -> bool:
    """Whether particles can share one run of guide and model: some try it, and each is scored again on its own, site by site."""
    lengths = {length for site in alone.sites.values() for length in site.shape}
    draws = next(n for n in itertools.count(3) if n not in lengths)  # so that no other axis can be taken for the particles'
    dim = -(problem.nesting + 1)
    guide, model, data = problem.step_programs(0)
    plate = pyro.plate("num_particles_vectorized", draws, dim=dim)
    try:
        guide_trace = poutine.trace(plate(guide)).get_trace(**data)
        model_trace = poutine.trace(poutine.replay(plate(model), trace=guide_trace)).get_trace(**data)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
            for node in _scored(trace):
                check_site_shape(node, max_plate_nesting=-dim)
        for trace, program in ((guide_trace, guide), (model_trace, model)):
            if program is guide and isinstance(problem.guide, AutoGuide):
                continue  # Pyro's own, and written for particles
            shapes = {name: (site.shape, site.event_dim) for name, site in alone.latent.items()}
            if program is guide:  # its helpers' draws too
                own = poutine.trace(program).get_trace(**data)
                shapes = {n["name"]: (n["value"].shape, n["fn"].event_dim) for n in _scored(own) if not n["is_observed"]}
            for i in range(draws):
                values = {
                    name: guide_trace.nodes[name]["value"].select(dim - event_dim, i).reshape(shape)
                    for name, (shape, event_dim) in shapes.items()
                }
                if not _same(
                    trace, poutine.trace(poutine.condition(program, data=values)).get_trace(**data), i, draws, problem.nesting
                ):
                    return False
    except Exception:  # whatever a program raises when it meets an axis that it was not written for
        return False
    return True


def _same(together: Trace, single: Trace, i: int, draws: int, nesting: int) -> bool:
    """Whether particle `i` of a vectorised run has the scores, and the deterministic values, that it has on its own."""
    single.compute_log_prob()
    for node in _scored(single):
        twin = together.nodes[node["name"]]
        score = per_draw(twin["log_prob"], draws, nesting)[i].item()
        if not math.isclose(float(node["log_prob_sum"]), score, rel_tol=1e-3, abs_tol=1e-3):
            return False
        if is_deterministic(node):
            value, all_values = node["value"], twin["value"]
            if all_values.numel() != draws * value.numel() or len(all_values) != draws:
                return False
            if not torch.allclose(all_values[i].reshape(value.shape), value, rtol=1e-3, atol=1e-5, equal_nan=True):
                return False
    return True


def _scored(trace: Trace) -> list[Any]:
    return [node for node in trace.nodes.values() if node["type"] == "sample" and not site_is_subsample(node)]


def with_laplace(problem: Problem, values: Mapping[str, torch.Tensor]) -> Problem:
    """Where the guide is Laplace's and has found the mode, put the Gaussian with the curvature there in its place."""
    if not isinstance(problem.guide, AutoLaplaceApproximation):
        return problem
    with problem.parameters.loaded(values):
        try:
            return replace(problem, guide=problem.guide.laplace_approximation(**problem.seen()))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ModelError(
                "the Laplace approximation does not exist: the log joint does not curve downwards in every direction at the mode "
                "that was found; run more steps, or use guide='normal'"
            ) from error
