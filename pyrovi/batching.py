"""Find out how a model and a guide can be run on mini-batches: which plate, which data, in which mode.

Nothing is guessed from names. Each program is tried on the last batch of rows, whose indices are out of range for an array that
has been narrowed to a batch, so that a program that indexes narrowed data fails here and not silently later.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyrovi._typing import Guide, Model
from pyrovi.errors import DataError, GuideError, ModelError, PyroviError, SettingsError, nearest
from pyrovi.minibatch import Batched, Minibatches, Mode
from pyrovi.structure import Plate, Structure
from pyrovi.tracing import check_observed, feasible, run

__all__ = ["find_batches", "find_plate"]

JOINT = (autoguide.AutoContinuous, autoguide.AutoStructured)
"""Autoguides that keep all latents in one vector, whose length they read off the model's first run."""


def find_plate(structure: Structure, data: Mapping[str, Any], batch_size: int | Mapping[str, int] | None) -> tuple[str | None, int]:
    """The plate to batch and the size of a batch; no plate where there is nothing to batch."""
    plates = structure.plates
    own = {name: p for name, p in plates.items() if p.subsample_size < p.size}
    if len(own) > 1:
        raise ModelError(
            f"the model subsamples {len(own)} plates ({', '.join(map(repr, own))}); pyrovi batches one, so run the others whole"
        )
    if batch_size is None:
        return next(((name, p.subsample_size) for name, p in own.items()), (None, 0))
    if isinstance(batch_size, Mapping):
        if len(batch_size) != 1:
            raise SettingsError(f"batch_size names {len(batch_size)} plates; name one, as in batch_size={{'data': 100}}")
        ((name, size),) = batch_size.items()
        if name not in plates:
            raise SettingsError(f"batch_size names plate {name!r}, which the model does not have; {nearest(name, plates)}")
    else:
        name, size = (next(iter(own)) if own else _data_plate(structure, data)), batch_size
    if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
        raise SettingsError(f"batch_size must be a whole number of at least 1; got {size!r}")
    plate = plates[name]
    if name in own and size != plate.subsample_size:
        raise SettingsError(
            f"plate {name!r} has subsample_size={plate.subsample_size} written into the model; pass that as "
            "batch_size, or drop it from the model"
        )
    return (None, 0) if size >= plate.size else (name, int(size))


def _data_plate(structure: Structure, data: Mapping[str, Any]) -> str:
    """The plate whose rows are the data's: it holds every observed site, as the leftmost axis."""
    observed = structure.observed.values()
    holding = [p for p in structure.plates.values() if observed and all(site.inside(p.name) for site in observed)]
    rows = {v.shape[0] for v in data.values() if isinstance(v, torch.Tensor) and v.dim() > 0}
    leftmost = [p for p in holding if p.size in rows and all(_is_leftmost(p, s.plates) for s in observed)]
    if len(leftmost) == 1:
        return leftmost[0].name
    if not structure.plates:
        raise SettingsError("batch_size needs a plate around the data, as in pyro.plate('data', len(x)); the model has none")
    known = ", ".join(repr(p) for p in structure.plates)
    raise SettingsError(
        "batch_size needs one plate that holds every observed site, with a row of data for each; the model's plates are "
        f"{known}, so name one, as in batch_size={{{next(iter(structure.plates))!r}: 100}}"
    )


def _is_leftmost(plate: Plate, around: tuple[Plate, ...]) -> bool:
    return plate.dim is None or all(p.dim is None or p.dim >= plate.dim for p in around)


def find_batches(
    model: Model,
    guide: Guide,
    data: Mapping[str, Any],
    structure: Structure,
    plate: str,
    batch_size: int,
    batch_data: tuple[str, ...] | None,
) -> Minibatches:
    """Try the modes of `minibatch` on model and guide, and keep what works."""
    own = structure.plates[plate]
    size = own.size
    sliced = _sliced(data, size, batch_data)
    pad_to = batch_size if own.subsample_size < size else None
    modes: tuple[Mode, ...] = ("indexed",) if pad_to or not sliced else ("sliced", "indexed")

    def plan(model_mode: Mode, guide_mode: Mode, parameters: dict[str, int] | None = None) -> Minibatches:
        return Minibatches(plate, size, batch_size, sliced, model_mode, guide_mode, pad_to, parameters or {})

    def try_model(mode: Mode) -> Structure:
        batched = Batched(plan(mode, "whole"), InitMessenger(feasible)(model), guide, data)
        trace = _try(batched, batched.model, ModelError)
        found = check_observed(trace)
        for name, p in found.plates.items():
            if name != plate and name in structure.plates and p.size != structure.plates[name].size:
                raise DataError(
                    f"plate {name!r} would shrink from {structure.plates[name].size} to {p.size} along with plate {plate!r}"
                )
        if pad_to is None and batch_data is None:
            _check_same_density(InitMessenger(feasible)(model), data, trace, plate, batched.indices)
        return found

    model_mode, narrow = _first_that_works("model", modes, try_model, sliced, plate)

    if isinstance(guide, AutoGuide):
        if pad_to and isinstance(guide, JOINT) and any(site.inside(plate) for site in structure.latent.values()):
            raise GuideError(
                f"{type(guide).__name__} cannot be batched over plate {plate!r}, which has latents and which the "
                f"model subsamples itself; write the plate plainly, pyro.plate({plate!r}, len(x)) with obs=x, or use guide='normal'"
            )
        if pad_to:
            guide.create_plates = lambda *_, **__: pyro.plate(plate, size, dim=own.dim)
        return plan(model_mode, "whole")

    with pyro.get_param_store().scope() as full:
        guide_plates = Structure.of(run(guide, data, GuideError)).plates
    if plate in guide_plates and guide_plates[plate].subsample_size < size:
        if guide_plates[plate].subsample_size != batch_size:
            raise SettingsError(
                f"plate {plate!r} has subsample_size={guide_plates[plate].subsample_size} in the guide; pass that as batch_size, "
                "or drop it there"
            )
        pad_to, modes = batch_size, ("indexed",)
    else:
        modes = ("sliced", "indexed") if sliced else ("indexed",)

    parameters: dict[str, int] = {}

    def try_guide(mode: Mode) -> Structure:
        batched = Batched(plan(model_mode, mode), model, guide, data)
        with pyro.get_param_store().scope() as small:
            found = Structure.of(_try(batched, batched.guide, GuideError))
        for name, site in narrow.latent.items():
            if name in found.sites and found.sites[name].shape != site.shape:
                raise GuideError(
                    f"site {name!r} has shape {tuple(found.sites[name].shape)} in the guide, {tuple(site.shape)} in the model"
                )
        if mode == "sliced":
            parameters.update(_row_parameters(full["params"], small["params"], size, batch_size))
        return found

    guide_mode, _ = _first_that_works("guide", modes, try_guide, sliced, plate)
    return plan(model_mode, guide_mode, parameters)


def _sliced(data: Mapping[str, Any], size: int, batch_data: tuple[str, ...] | None) -> tuple[str, ...]:
    """The arguments with a row a datum."""
    rows = {name: value.shape[0] for name, value in data.items() if isinstance(value, torch.Tensor) and value.dim() > 0}
    if batch_data is None:
        return tuple(name for name, n in rows.items() if n == size)
    for name in batch_data:
        if rows.get(name) != size:
            known = [n for n, count in rows.items() if count == size]
            raise SettingsError(f"batch_data names {name!r}, which is not an array of {size} rows; {nearest(name, known)}")
    return tuple(batch_data)


def _try(batched: Batched, program: Callable[..., Any], error: type[PyroviError]) -> Trace:
    """Run a program on the last `batch_size` rows."""
    plan = batched.plan
    batched.take(torch.arange(plan.size - plan.batch_size, plan.size, device=batched.device))
    with pyro.validation_enabled(False):  # the latent values are not the model's choice
        return run(program, {}, error)


def _check_same_density(model: Model, data: Mapping[str, Any], batch: Trace, plate: str, rows: torch.Tensor) -> None:
    """Raise where a site scores otherwise on the batch than with all the data, at the same latents.

    Such a model reads the data outside the plate (a mean of them, a factor over them), and its batches do not add up to the whole.
    """
    store = pyro.get_param_store()
    # The batch's parameters: a network that starts at random must be the same one in both.
    with store.scope(store.get_state()), pyro.validation_enabled(False), torch.no_grad():
        whole, again = (run(model, data, ModelError) for _ in range(2))
    for name, node in batch.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node) or name not in whole.nodes:
            continue
        full, repeated, part = (_density(t.nodes[name]) for t in (whole, again, batch))
        if not torch.equal(full, repeated):
            return  # dropout, or a discrete latent: it is never twice the same
        dim = next((f.dim for f in node["cond_indep_stack"] if f.name == plate), None)
        if dim is not None and full.dim() >= -dim and full.shape[dim] != part.shape[dim]:
            full = full.index_select(dim, rows)
        if full.shape != part.shape or not torch.allclose(full, part, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ModelError(
                f"site {name!r} has another density on a batch of plate {plate!r} than with all the data: the model reads "
                "rows outside that plate, as in x.mean() or a factor over x; compute such things beforehand, or say with "
                "batch_data= which data to narrow if that is as it should be"
            )


def _density(node: Any) -> torch.Tensor:
    """A site's own log density, unscaled."""
    return torch.as_tensor(node["fn"].log_prob(node["value"])).detach()


def _first_that_works(
    what: str, modes: tuple[Mode, ...], attempt: Callable[[Mode], Structure], sliced: tuple[str, ...], plate: str
) -> tuple[Mode, Structure]:
    reasons: list[PyroviError] = []
    for mode in modes:
        try:
            return mode, attempt(mode)
        except PyroviError as reason:
            reasons.append(reason)
    error = ModelError if what == "model" else GuideError
    narrowed = f"with {', '.join(sliced)} narrowed to it" if modes[0] == "sliced" else "with its indices"
    raise error(
        f"the {what} cannot be run on a batch of plate {plate!r} {narrowed} (batch_data= says which have a row a datum): "
        f"{reasons[0]}"
    ) from reasons[0]


def _row_parameters(full: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor], size: int, batch: int) -> dict[str, int]:
    """Parameters that a guide makes as long as its data, and the axis of the rows: they differ between n data and B."""
    found = {}
    for name in full.keys() & small.keys():
        a, b = full[name].shape, small[name].shape
        if a == b:
            continue
        axes = [i for i, pair in enumerate(zip(a, b, strict=False)) if pair == (size, batch)]
        if len(a) != len(b) or len(axes) != 1 or sum(x != y for x, y in zip(a, b, strict=True)) != 1:
            raise GuideError(
                f"parameter {name!r} has shape {tuple(a)} for all data and {tuple(b)} for a batch; give it one row a datum, or a "
                "shape that does not depend on the data"
            )
        found[name] = axes[0]
    return found
