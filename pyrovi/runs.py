"""Run folders: a fit on disk, in JSON, safetensors and netCDF; never pickle."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from pyrovi import _arviz
from pyrovi._isolation import isolated
from pyrovi._typing import Data, Path, Transform
from pyrovi.enumeration import prepared
from pyrovi.errors import GuideError, ModelError, RunFolderError
from pyrovi.guides.auto import GUIDES, PROPOSALS
from pyrovi.inputs import as_dtype
from pyrovi.preflight import Problem, prepare, with_laplace
from pyrovi.result import Fit, Status
from pyrovi.sample import Sample
from pyrovi.verdict import Verdict

__all__ = ["check_folder", "keep_verdict", "load", "save"]

FORMAT = 1
STATE, PARAMETERS, DATA, SAMPLE, POSTERIOR, REPORT = (
    "fit.json",
    "parameters.safetensors",
    "data.safetensors",
    "sample.safetensors",
    "posterior.nc",
    "report.html",
)


WEIGHTS = "(weights)"
"""What the sample's weights are called beside its sites, of which none can be called so."""


def check_folder(folder: Path, *, overwrite: bool = False) -> FilePath:
    """Raise now if a run could not be saved there later."""
    path = FilePath(folder)
    if path.exists() and not (overwrite and (path / STATE).is_file()):
        if overwrite:
            raise RunFolderError(f"{path} exists and is not a run folder, so it is not overwritten; name another")
        raise RunFolderError(f"run folder {path} exists already; name another, or remove it first")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        tempfile.TemporaryDirectory(prefix=".pyrovi-", dir=parent).cleanup()  # permissions alone do not tell
    except OSError as error:
        raise RunFolderError(f"run folder {path} cannot be made: {parent} is not a folder that can be written to") from error
    return path


@contextmanager
def _whole(path: FilePath) -> Iterator[FilePath]:
    """A folder that appears at `path` only when complete."""
    draft = None
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        draft = FilePath(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.absolute().parent))
        yield draft
        draft.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
    except OSError as error:
        raise RunFolderError(f"run folder {path} could not be written: {error}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def save(fit: Fit, folder: Path, *, overwrite: bool = False, draws: int | None = None) -> None:
    """Write a run folder; see `Fit.save`."""
    from safetensors.torch import save_file

    path = check_folder(folder, overwrite=overwrite)
    container = fit.to_arviz(draws)
    data = fit.problem.data if fit.problem is not None else {}
    tensors = {name: value.contiguous().cpu() for name, value in data.items() if isinstance(value, torch.Tensor)}
    state = {
        "format": FORMAT,
        "recipe": fit.recipe,
        "status": fit.status,
        "advice": fit.advice,
        "settings": fit.settings,
        "versions": fit.versions,
        "seconds": fit.seconds,
        "seed": fit.seed,
        "sample": fit.sample.how if fit.sample is not None else None,
        "data": {name: value for name, value in data.items() if not isinstance(value, torch.Tensor)},
        "verdict": fit.verdict.to_dict() if fit.verdict is not None else None,
    }
    with _whole(path) as draft:
        (draft / STATE).write_text(_json(state))
        save_file({n: v.contiguous().cpu() for n, v in fit.unconstrained.items()}, draft / PARAMETERS)
        save_file(tensors, draft / DATA)
        if fit.sample is not None:
            weights = {} if fit.sample.weights is None else {WEIGHTS: torch.from_numpy(fit.sample.weights)}
            save_file({n: v.contiguous().cpu() for n, v in (fit.sample.latents | weights).items()}, draft / SAMPLE)
        _arviz.write(container, str(draft / POSTERIOR))


def keep_verdict(folder: Path, verdict: Verdict) -> None:
    """Write a verdict into a run folder that is there, over an older one."""
    path = FilePath(folder) / STATE
    try:
        draft = path.with_name(f".{STATE}-new")
        draft.write_text(_json(json.loads(path.read_text()) | {"verdict": verdict.to_dict()}))
        draft.replace(path)
    except OSError as error:
        raise RunFolderError(f"run folder {folder} could not be written: {error.strerror or error}") from error


def _json(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=2, default=lambda value: value.item() if hasattr(value, "item") else str(value)) + "\n"


def load(
    folder: Path, *, model: Any = None, guide: Any = None, data: Data | None = None, transform: Transform | None = None
) -> Fit:
    """Read a run folder.

    A recipe's fit comes back whole. Any other comes back with its parameters, ELBO and stored draws (`to_arviz`,
    `summary`, `compare`); pass its model, and its guide unless that was an autoguide's name, to draw from it again.
    Code is never read from the folder.

    Args:
        folder: Where `Fit.save` put it.
        model: The model that was fitted.
        guide: The guide; the stored name when None.
        data: Other data than the stored.
        transform: That of the fit, if it had one; a recipe has its own.

    Raises:
        RunFolderError: There is no run, or it is damaged.
        GuideError: The model was given without its handwritten guide.
        ModelError: The model and guide do not have the stored parameters.

    Example:
        >>> import tempfile, pyrovi
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pyrovi.recipe("normal_mean").fit(steps=300).save(f"{folder}/run")
        ...     pyrovi.load(f"{folder}/run").recipe
        'normal_mean'
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = FilePath(folder)
    if not (path / STATE).is_file():
        raise RunFolderError(f"{path} is not a run folder: it has no {STATE}")
    try:
        state = json.loads((path / STATE).read_text())
        if state["format"] != FORMAT:
            raise RunFolderError(f"run folder {path} has format {state['format']}; this pyrovi reads format {FORMAT}")
        values = load_file(path / PARAMETERS)
        stored_data = {**load_file(path / DATA), **state["data"]}
        sample = None
        if state.get("sample"):
            latents = load_file(path / SAMPLE)
            weights = latents.pop(WEIGHTS, None)
            sample = Sample(latents, state["sample"], None if weights is None else weights.numpy())
        container = _arviz.read(str(path / POSTERIOR))
        fit = Fit(
            parameters={},
            unconstrained=values,
            elbo=np.asarray(_arviz.group(container, "optimization")["elbo"]),
            status=Status(state["status"]),
            stored=container,
            sample=sample,
            verdict=Verdict.from_dict(state["verdict"]) if state.get("verdict") else None,
            **{name: state[name] for name in ("advice", "settings", "versions", "seconds", "seed", "recipe")},
        )
    except RunFolderError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunFolderError(f"run folder {path} is damaged: {error}") from error
    if model is None and fit.recipe is not None:
        from pyrovi.catalog import recipes

        if fit.recipe in recipes:
            model = recipes[fit.recipe].model
            own = recipes[fit.recipe].settings.get("transform")
            if transform is None and own is not None and own.__name__ == fit.settings.get("transform"):
                transform = own
            if guide is None and fit.settings["guide"] not in GUIDES | PROPOSALS:
                guide = recipes[fit.recipe].guide
    if model is None:
        return fit
    if guide is None and fit.settings["guide"] not in GUIDES | PROPOSALS:
        raise GuideError(f"the run was made with a guide of your own ({fit.settings['guide']}); pass it too, as guide=")
    problem = _problem(
        fit, model, guide if guide is not None else fit.settings["guide"], stored_data if data is None else data, transform
    )
    return replace(fit, problem=problem, parameters=problem.parameters.constrained(values))


def _problem(fit: Fit, model: Any, guide: Any, data: Data, transform: Transform | None) -> Problem:
    if fit.settings.get("transform") and transform is None:
        raise ModelError(
            f"the run's data went through {fit.settings['transform']!r}, a function of yours; pass it too, as transform="
        )
    dtype, plate = as_dtype(fit.settings["dtype"]), fit.settings["batch_plate"]
    batch_size = {plate: fit.settings["batch_size"]} if plate else None
    batch_data = tuple(fit.settings["batch_data"]) if plate else None
    with isolated(fit.seed, dtype, validate=True):
        problem = (prepared if fit.settings.get("method") == "auto" else prepare)(
            model,
            guide,
            data,
            dtype=dtype,
            device=torch.device("cpu"),
            batch_size=batch_size,
            batch_data=batch_data,
            transform=transform if fit.settings.get("transform") else None,
            guide_options=fit.settings.get("guide_options") if isinstance(guide, str | type) else None,
        )
        have = {name: leaf.shape for name, leaf in problem.parameters.leaves.items()}
        stored = {name: value.shape for name, value in fit.unconstrained.items()}
        if have != stored:
            odd = sorted(set(have.items()) ^ set(stored.items()))[0][0]
            raise ModelError(f"the run's parameters are not those of this model and guide; parameter {odd!r} differs")
        problem.parameters.give_back(problem.parameters.values())
        return with_laplace(problem, fit.unconstrained)
