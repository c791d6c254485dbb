"""`nuts`: Pyro's NUTS on the recorded log density, started and whitened by a fit; the long way to a posterior, for comparison."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import MCMC, NUTS

from pyrovi import _arviz
from pyrovi._exact import settled_problem
from pyrovi._isolation import isolated
from pyrovi._typing import Data, Model, Path, Tensors
from pyrovi.chains import convergence
from pyrovi.closed_form import log_volume
from pyrovi.density import Density, _compiled, recorded
from pyrovi.differentiable import record
from pyrovi.draws import predict
from pyrovi.errors import ModelError, RunFolderError, SettingsError, first_line
from pyrovi.export import dataset
from pyrovi.pathfinder import along_paths
from pyrovi.preflight import Problem
from pyrovi.recording import NotTraceable
from pyrovi.result import Fit

__all__ = ["nuts"]

FILE = "nuts.nc"

MOST_DENSE = 200
"""Latent scalars that are whitened by their whole covariance; more by their sds, and NUTS adapts to sds only."""

PATIENCE = 20_000
"""Gradients before they are compiled: about ten seconds of them, as compiling takes."""


def nuts(
    model: Model | Fit,
    data: Data | None = None,
    *,
    fit: Fit | None = None,
    draws: int = 1_000,
    chains: int = 4,
    warmup: int = 1_000,
    target_accept: float = 0.9,
    seed: int = 0,
    folder: Path | None = None,
) -> Any:
    """Draws of the posterior by the no-U-turn sampler, as a reference for `compare`: right where its diagnostics are clean.

    It is Pyro's sampler, on the log density as pyrovi records it, in float64 and in coordinates in which the posterior has about
    unit covariance: a fit's draws give them, or where there is no fit the best Gaussian of several Pathfinder paths. A step of
    a trajectory takes a fifth of a millisecond beside the gradient, which is Pyro's own time, and a draw some ten steps: half a
    minute for a small model, the gradient compiled on the way.

    Args:
        model: A Pyro program, as for `pyrovi.fit`; or a `Fit`, which brings its model, data and learned parameters.
        data: As for `pyrovi.fit`; not with a `Fit`.
        fit: A fit of the same model: the chains start at draws from it, in coordinates whitened by its draws. It is no part of
            the answer. Without it each chain starts on a Pathfinder path of its own.
        draws: Kept of each chain; 4 times 1,000 give the mean of a well-behaved posterior to 2% of its sd.
        chains: Run one after the other; R-hat needs more than one.
        warmup: Steps for the step size and the scales, not kept.
        target_accept: The step size is set for this mean acceptance; 0.9 is stricter than the usual 0.8, for fewer divergences.
        seed: For everything random; the same seed gives the same chains.
        folder: A folder, such as the fit's run folder, where the draws are kept as `nuts.nc`. Draws found there are returned at
            once if they are of the same log density and settings; others are replaced.

    Returns:
        An ArviZ container: `posterior`, deterministic sites included, and `sample_stats` with `diverging`, `lp` (log p(data,
        latents) in nats), `acceptance_rate` and `n_steps`. Its attributes hold `r_hat`, `ess_bulk` and `ess_tail`, the worst of
        any variable, `divergences`, `step_size` by chain, and `seconds`. `compare` refuses it as a reference where these are bad.

    Raises:
        ModelError: The model has discrete latents or cannot be recorded.
        SettingsError: The fit is of another model, or a number is out of range.

    References:
        The No-U-Turn sampler (Hoffman & Gelman, 2014) | https://jmlr.org/papers/v15/hoffman14a.html

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> chains = pyrovi.nuts(model, {"x": [1.0, 2.0, 3.0]}, draws=200, warmup=200, chains=2)
        >>> chains.posterior["w"].shape
        (2, 200)
    """
    settings = {"draws": draws, "chains": chains, "warmup": warmup, "target_accept": target_accept, "seed": seed}
    _check(settings)
    if isinstance(model, Fit):
        if data is not None or fit is not None:
            raise SettingsError("nuts(fit) takes model and data from the fit; give them, or the fit alone")
        with model.loaded() as problem:
            return _run(problem, model, settings, folder)
    with isolated(seed, torch.float64, validate=True):
        return _run(settled_problem(model, data), fit, settings, folder)


def _check(settings: dict[str, Any]) -> None:
    for name in ("draws", "chains", "warmup", "seed"):
        least = 0 if name == "seed" else 1
        if not isinstance(settings[name], int) or settings[name] < least:
            raise SettingsError(f"{name} must be a whole number of at least {least}; got {settings[name]!r}")
    if not 0 < settings["target_accept"] < 1:
        raise SettingsError(f"target_accept must lie between 0 and 1; got {settings['target_accept']!r}")


def _run(problem: Problem, fit: Fit | None, settings: dict[str, Any], folder: Path | None) -> Any:
    began = time.perf_counter()
    with pyro.validation_enabled(False):
        density = recorded(problem)
        if torch.device(density.device).type != "cpu":
            raise SettingsError("nuts runs on the CPU; fit there, or load the fit's run folder, which does")
        mark = _fingerprint(density)
        cached = _found(folder, mark, settings)
        if cached is not None:
            return cached
        if folder is not None:
            _check_writable(FilePath(folder))
        space = _whitened(density, fit, settings["chains"], settings["seed"])
        potential = _Potential(density, space)
        runs = [_chain(potential, z, settings, settings["seed"] + i) for i, z in enumerate(space.starts)]
        u = [space.place(run.z) for run in runs]
        container = _container(problem, density, runs, u, {**settings, "fingerprint": mark, "gradients": potential.count}, began)
    if folder is not None:
        _arviz.write(container, str(FilePath(folder) / FILE))
    return container


def _check_writable(folder: FilePath) -> None:
    """Now, and not after minutes of sampling."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written to: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Space:
    """Coordinates z in which the posterior is about standard: u = loc + scale z, scale a lower triangle or a vector."""

    loc: torch.Tensor
    scale: torch.Tensor
    starts: list[torch.Tensor]

    def place(self, z: torch.Tensor) -> torch.Tensor:
        return self.loc + (z * self.scale if self.scale.dim() == 1 else z @ self.scale.mT)

    def pull(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.scale if self.scale.dim() == 1 else self.scale.mT @ gradient

    def find(self, u: torch.Tensor) -> torch.Tensor:
        """The z of rows of u."""
        if self.scale.dim() == 1:
            return (u - self.loc) / self.scale
        return torch.linalg.solve_triangular(self.scale, (u - self.loc).mT, upper=False).mT


def _whitened(density: Density, fit: Fit | None, chains: int, seed: int) -> _Space:
    d = density.dimension
    u = _rows(density, fit) if fit is not None and not fit.point_estimate else None
    if u is not None:
        centred = u - u.mean(0)
        sd = centred.std(0)
        finite = torch.isfinite(density(u))
        if (sd > 0).all() and int(finite.sum()) >= chains:
            scale = sd
            shrink = d / len(u.unique(dim=0))  # weighted draws may be few different ones, of a covariance that is all but singular
            if d <= MOST_DENSE and shrink < 0.5:
                correlation = (1 - shrink) * (centred / sd).mT.cov() + shrink * torch.eye(d, dtype=u.dtype)
                scale = sd[:, None] * torch.linalg.cholesky(correlation)
            space = _Space(u.mean(0), scale, [])
            rows = torch.nonzero(finite)[:, 0]
            space.starts.extend(space.find(u[rows[torch.linspace(0, len(rows) - 1, chains).long()]]))
            return space
    found = sorted(
        along_paths(density, torch.zeros(d, dtype=torch.float64), full=d <= MOST_DENSE, seed=seed), key=lambda s: -s.elbo
    )
    if not found:
        raise ModelError("NUTS found nowhere to start: the model's density is zero or NaN wherever four optimisers went")
    space = _Space(found[0].loc, found[0].scale, [])
    generator = torch.Generator().manual_seed(seed)
    for i in range(chains):
        start = found[i % len(found)]
        noise = torch.randn(64, d, dtype=torch.float64, generator=generator)
        u = start.loc + (noise * start.scale if start.scale.dim() == 1 else noise @ start.scale.mT)
        u = torch.cat([u[torch.isfinite(density(u))], start.loc[None]])
        space.starts.append(space.find(u[:1])[0])
    return space


def _rows(density: Density, fit: Fit) -> torch.Tensor:
    """A fit's draws as rows of the flat vector."""
    posterior, columns = fit.posterior_arrays(max(1_000, 8 * min(density.dimension, MOST_DENSE))), []
    for part in density.parts:
        shape = part.transform(torch.zeros(part.shape)).shape
        draws = posterior.get(part.name, posterior.get(part.name.replace("/", ".")))  # as they are stored
        if draws is None or draws[0].size != shape.numel():
            raise SettingsError(f"the fit has no draws of site {part.name!r} as the model has it; give a fit of the same model")
        values = torch.from_numpy(np.array(draws, dtype=float)).reshape(-1, *shape)
        columns.append(part.transform.inv(values).reshape(len(values), -1))
    return torch.cat(columns, 1)


def _fingerprint(density: Density) -> str:
    """Of a recorded log density and all the data in it."""
    found = hashlib.sha256(density._row.code.encode())
    for name, value in density._row.named_buffers():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    found.update(repr([(part.name, part.start, tuple(part.shape)) for part in density.parts]).encode())
    return found.hexdigest()


def _found(folder: Path | None, mark: str, settings: dict[str, Any]) -> Any:
    """The draws kept in a folder, where they are of this log density and these settings."""
    path = FilePath(folder) / FILE if folder is not None else None
    if path is None or not path.is_file():
        return None
    try:
        kept = _arviz.read(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path} cannot be read: {first_line(error)}; remove it") from error
    attrs = _arviz.group(kept, "posterior").attrs
    same = attrs.get("fingerprint") == mark and all(attrs.get(name) == value for name, value in settings.items())
    return kept if same else None


class _Potential:
    """−log p as a function of z, with its gradient from the recording: interpreted at first, then compiled."""

    def __init__(self, density: Density, space: _Space) -> None:
        self.density, self.space, self.count = density, space, 0
        self._call: Callable[..., Any] = lambda u: [x[0] for x in density.gradient(u[None])]

    def __call__(self, params: Tensors) -> torch.Tensor:
        return _Known.apply(params["z"], self)

    def evaluate(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.space.place(z)
        self.count += 1
        if self.count == PATIENCE:
            with suppress(NotTraceable):
                self._call = _compiled(cast(torch.fx.GraphModule, self.density._derive("gradient")), [u])
        try:
            value, gradient = self._call(u)
        except RuntimeError:  # a Cholesky decomposition that fails
            value, gradient = u.new_tensor(-math.inf), torch.zeros_like(u)
        if not math.isfinite(value.item() + gradient.sum().item()):
            return u.new_tensor(math.inf), torch.zeros_like(z)
        return -value.double(), -self.space.pull(gradient.double())


class _Known(torch.autograd.Function):
    """A function whose gradient comes with its value."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, potential: _Potential) -> torch.Tensor:
        value, gradient = potential.evaluate(z.detach())
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        return outer[0] * ctx.saved_tensors[0], None


@dataclass(frozen=True)
class _Chain:
    z: torch.Tensor
    diverging: NDArray[np.bool_]
    acceptance: NDArray[np.float64]
    steps: NDArray[np.int64]
    step_size: float


class _Kernel(NUTS):
    """Pyro's, which counts the steps of a trajectory and keeps its acceptance."""

    def _build_basetree(self, *args: Any) -> Any:
        tree = super()._build_basetree(*args)
        self.taken.append(float(tree.sum_accept_probs))
        return tree

    def sample(self, params: Tensors) -> Tensors:
        self.taken: list[float] = []
        return super().sample(params)


def _chain(potential: _Potential, start: torch.Tensor, settings: dict[str, Any], seed: int) -> _Chain:
    pyro.set_rng_seed(seed)
    kernel = _Kernel(
        potential_fn=potential, target_accept_prob=settings["target_accept"], full_mass=len(start) <= MOST_DENSE, step_size=0.5
    )
    seen: list[tuple[float, int]] = []

    def note(kernel: _Kernel, _: Any, stage: str, __: int) -> None:
        if stage == "Sample":
            seen.append((float(np.mean(kernel.taken)), len(kernel.taken)))

    mcmc = MCMC(
        kernel,
        num_samples=settings["draws"],
        warmup_steps=settings["warmup"],
        initial_params={"z": start.clone()},
        hook_fn=note,
        disable_progbar=True,
    )
    mcmc.run()
    diverging = np.zeros(settings["draws"], dtype=bool)
    diverging[list(mcmc.diagnostics()["divergences"]["chain 0"])] = True
    acceptance, steps = zip(*seen, strict=True)
    return _Chain(mcmc.get_samples()["z"], diverging, np.array(acceptance), np.array(steps), float(kernel.step_size))


def _computed(problem: Problem, density: Density, rows: torch.Tensor, names: list[str]) -> Tensors:
    """The deterministic sites at rows of the flat vector: recorded like the density, or one row at a time by Pyro."""
    dtype, before = rows.dtype, torch.get_default_dtype()
    data = {n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in problem.data.items()}

    def values(u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        latents = {part.name: part.transform(u[part.start : part.stop].reshape(part.shape)) for part in density.parts}
        trace = poutine.trace(poutine.condition(problem.model, data=latents)).get_trace(**data)
        return tuple(trace.nodes[name]["value"] for name in names)

    try:
        torch.set_default_dtype(dtype)
        with poutine.block(), torch.no_grad():
            program = torch.func.vmap(record(values, rows[0]))
            blocks = [program(block) for block in rows.split(1_000)]
        return {name: torch.cat([block[i] for block in blocks]) for i, name in enumerate(names)}
    except Exception:  # whatever a model raises when its latents are not numbers yet
        torch.set_default_dtype(before)
        given = {name: value.to(problem.dtype) for name, value in density.sites(rows).items()}
        made = predict(problem, len(rows), given, problem.data)
        return {name: made[name] for name in names}
    finally:
        torch.set_default_dtype(before)


def _container(
    problem: Problem, density: Density, runs: list[_Chain], u: list[torch.Tensor], told: dict[str, Any], began: float
) -> Any:
    structure, chains, rows = problem.structure, len(runs), torch.cat(u)
    sites = density.sites(rows)
    log_p = density(rows) - sum(log_volume(part, rows[:, part.start : part.stop]) for part in density.parts)
    values: Tensors = dict(sites)
    if wanted := list(structure.of_kind("deterministic")):
        values |= _computed(problem, density, rows, wanted)
    arrays, dims = {}, {}
    for name, value in values.items():
        axes, owners = structure.sites[name].axes()
        shape = tuple(structure.sites[name].shape[axis] for axis in axes)
        arrays[name] = value.double().cpu().numpy().reshape(chains, -1, *shape)
        dims[name] = [owner or f"{name}_dim_{i}" for i, owner in enumerate(owners)]
    stats = {
        "diverging": np.stack([run.diverging for run in runs]),
        "lp": log_p.reshape(chains, -1).numpy(),
        "acceptance_rate": np.stack([run.acceptance for run in runs]),
        "n_steps": np.stack([run.steps for run in runs]),
    }
    groups = {"posterior": dataset(arrays, dims, {}), "sample_stats": dataset(stats, {}, {})}
    found = convergence(_arviz.container(groups, {}))
    assert found is not None
    attrs = {
        **told,
        "creation_library": "pyrovi",
        "creation_library_version": importlib.metadata.version("pyrovi"),
        "inference_library": "pyro-ppl",
        "inference_library_version": importlib.metadata.version("pyro-ppl"),
        "sampler": "NUTS",
        **{name: getattr(found, name) for name in ("r_hat", "ess_bulk", "ess_tail", "divergences")},
        "step_size": [run.step_size for run in runs],
        "seconds": time.perf_counter() - began,
    }
    for ds in groups.values():
        ds.attrs = dict(attrs)
    return _arviz.container(groups, attrs)
