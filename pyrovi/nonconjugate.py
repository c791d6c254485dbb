"""Why a model has no closed form: which sites are at fault, found by running it along lines through its latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine

from pyrovi._typing import Model
from pyrovi.centering import Part
from pyrovi.closed_form import MOST_DENSE, kind
from pyrovi.conjugate import NoClosedForm
from pyrovi.density import Density
from pyrovi.structure import WRAPPERS
from pyrovi.tracing import family, in_words

__all__ = ["why_not"]

CONJUGATE = {"real": "Normal", "positive": "Gamma or InverseGamma", "unit": "Beta", "simplex": "Dirichlet"}
"""The priors that have closed forms, by what a latent lives on."""

UNUSUAL = ("Mixture", "StudentT", "Cauchy", "LogNormal", "HalfNormal", "HalfCauchy", "Laplace", "Weibull", "Logistic")
"""Those that have none."""

LINE = np.linspace(-1.5, 1.5, 7)

WRONG = 1e-7
"""What the known terms leave unexplained, as a share of how much a site's log density varies, that is more than rounding."""

Array = NDArray[np.float64]
Terms = Callable[[torch.Tensor], dict[str, Array]]


class _Fault(NamedTuple):
    """A site whose log density has not the form that it must have along a latent."""

    site: str
    latents: tuple[str, ...]
    constant: bool = False
    """Its scale does not grow with that of the sites whose latents it shares."""


def why_not(model: Model, data: Mapping[str, Any], density: Density, error: NoClosedForm) -> str:
    """What to tell the user, in a clause; to be called where the model can be run."""
    parts = {part.name: part for part in density.parts}
    names = error.names or tuple(parts)
    nodes = _nodes(model, data, density, torch.zeros(1, density.dimension, dtype=torch.float64))
    if str(error) == "support":
        fn = nodes[names[0]]["fn"]
        return f"site {names[0]!r} is {family(fn)}, whose values are {in_words(fn.support)}: no family known here lives there"
    if str(error) == "size":
        return f"its {density.dimension:,} latent scalars depend on each other, and so many are looked at only up to {MOST_DENSE:,}"
    for name, node in nodes.items():
        if any(isinstance(x, torch.Tensor) and x.dtype is torch.float32 for x in vars(_bare(node["fn"])).values()):
            return (
                f"site {name!r} has a distribution in float32, too rounded to tell; make it inside the model, where numbers are "
                "float64, or of data"
            )
    faults = _faults(model, data, density, [parts[name] for name in names])
    told = list(dict.fromkeys(_in_words(model, data, density, nodes, fault) for fault in faults))
    if told:
        return "; ".join(told[:3])
    for name in names:  # of which the lines may have seen one mode only
        if family(nodes[name]["fn"]).startswith(UNUSUAL):
            return _in_words(model, data, density, nodes, _Fault(name, (name,)))
    quoted = ", ".join(repr(name) for name in names)
    if str(error) == "improper":
        return f"the posterior of {quoted} is not proper: neither the prior nor the data hold it in"
    if str(error) == "together":
        return f"the latents {quoted} depend on each other, and no family known here has them together"
    return f"the log joint of {quoted} is not that of a family known here, to the accuracy of float64"


def _nodes(model: Model, data: Mapping[str, Any], density: Density, u: torch.Tensor) -> dict[str, Any]:
    values = {name: value[0] for name, value in density.sites(u).items()}
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(**data)
    return {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}


def _bare(fn: Any) -> Any:
    while type(fn).__name__ in WRAPPERS:
        fn = fn.base_dist
    return fn


def _faults(model: Model, data: Mapping[str, Any], density: Density, parts: list[Part]) -> list[_Fault]:
    def terms(u: torch.Tensor) -> dict[str, Array]:
        """By site its log density at every row of `u`."""
        rows = []
        for row in u:
            values = {name: value[0] for name, value in density.sites(row[None]).items()}
            trace = poutine.trace(poutine.condition(model, data=values)).get_trace(**data)
            trace.compute_log_prob()
            rows.append({n: float(s["log_prob_sum"]) for n, s in trace.nodes.items() if s["type"] == "sample"})
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.normal(size=density.dimension) / 2)
    try:
        found = [fault for part in parts if kind(part) != "real" for fault in _alone(terms, base, part)]
        reals = [part for part in parts if kind(part) == "real"]
        found += _not_quadratic(terms, base, reals, rng)
        if not found:
            found = _coupled(terms, base, parts, rng)
    except (RuntimeError, ValueError):  # at some of these values the model cannot be run
        return []
    return sorted(found, key=lambda fault: fault.site in fault.latents)  # likelihoods first


def _along(base: torch.Tensor, parts: list[Part], direction: Array) -> torch.Tensor:
    rows = base.repeat(len(LINE), 1)
    at = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    rows[:, at] += torch.from_numpy(LINE[:, None] * direction)
    return rows


def _explained(values: Array, *features: Array) -> bool:
    """Whether values along a line are a constant and multiples of the features."""
    if not np.isfinite(values).all():
        return False
    design = np.stack([np.ones(len(values)), *features], 1)
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return bool(np.abs(rest).max() <= WRONG * np.ptp(values) + 1e-12 * np.abs(values).max())


def _alone(terms: Terms, base: torch.Tensor, part: Part) -> list[_Fault]:
    """Sites that are no Gamma, Beta or Dirichlet in a latent."""
    what, width = kind(part), part.shape[-1] if kind(part) == "simplex" else 1
    start = base.clone()
    start[part.start : part.stop] = 0
    direction = np.tile(np.linspace(1, 0.5, width), (part.stop - part.start) // width)
    u = _along(start, [part], direction)
    values, x = terms(u), np.exp(LINE)
    if what == "positive":
        fits = [{n for n, y in values.items() if not _explained(y, LINE, feature)} for feature in (x, 1 / x)]
        wrong = min(fits, key=lambda names: (part.name in names, len(names)))
    else:
        inside = part.transform(u[:, part.start : part.stop].reshape(-1, *part.shape)).reshape(len(u), -1).numpy()
        weights = [np.log(inside[:, 0]), np.log1p(-inside[:, 0])] if what == "unit" else list(np.log(inside[:, : width + 1]).T)
        wrong = {n for n, y in values.items() if not _explained(y, *weights)}
    return [_Fault(name, (part.name,)) for name in values if name in wrong]


def _not_quadratic(terms: Terms, base: torch.Tensor, parts: list[Part], rng: np.random.Generator) -> list[_Fault]:
    """Sites that are not quadratic in the real latents: in one of them, or where it takes several, in those together."""
    found: list[_Fault] = []
    for together in [[part] for part in parts] + [parts] * (len(parts) > 1):
        u = _along(base, together, rng.normal(size=sum(part.stop - part.start for part in together)))
        for name, values in terms(u).items():
            if not _explained(values, LINE, LINE**2) and (len(together) == 1 or name not in {f.site for f in found}):
                found.append(_Fault(name, tuple(part.name for part in together)))
    return found


def _coupled(terms: Terms, base: torch.Tensor, parts: list[Part], rng: np.random.Generator) -> list[_Fault]:
    """Sites that tie two latents other than reals together, or whose curvature in the reals is not in proportion to a scale's."""
    found = []
    for first, second in itertools.combinations([part for part in parts if kind(part) != "real"], 2):
        corners = base.repeat(4, 1)
        corners[[1, 3], first.start : first.stop] += 0.5
        corners[[2, 3], second.start : second.stop] += 0.5
        for name, y in terms(corners).items():
            if abs(y[0] - y[1] - y[2] + y[3]) > WRONG * np.ptp(y) + 1e-12 * np.abs(y).max():
                found.append(_Fault(name, tuple(part.name for part in (first, second) if part.name != name)))
    reals = [part for part in parts if kind(part) == "real"]
    for scale in (part for part in parts if kind(part) == "positive" and reals):
        shifted = base.clone()
        shifted[scale.start : scale.stop] += 0.5
        direction = rng.normal(size=sum(part.stop - part.start for part in reals))
        before, after = terms(_along(base, reals, direction)), terms(_along(shifted, reals, direction))
        curvatures = {n: [np.polyfit(LINE, y[n], 2)[0] for y in (before, after)] for n in before}
        bent = {n: c for n, c in curvatures.items() if abs(c[0]) > 1e-9 * max(abs(before[n]).max(), 1)}
        ratio = {n: c[1] / c[0] for n, c in bent.items()}
        if any(abs(r - 1) > 1e-6 for r in ratio.values()):
            found += [_Fault(n, (scale.name,), constant=True) for n, r in ratio.items() if abs(r - 1) <= 1e-6]
    return found


def _in_words(model: Model, data: Mapping[str, Any], density: Density, nodes: dict[str, Any], fault: _Fault) -> str:
    parts = {part.name: part for part in density.parts}
    names = " and ".join(repr(name) for name in fault.latents)
    what = f"site {fault.site!r} is {family(nodes[fault.site]['fn'])}"
    if fault.constant:
        return f"{what} with a scale that does not grow with the latent {names}, as the scales of the other sites do"
    if fault.latents == (fault.site,):
        return f"{what}, and not {CONJUGATE[str(kind(parts[fault.site]))]}"
    affected = _parameters(model, data, density, fault)
    which = f"the latent{'s' if len(fault.latents) > 1 else ''} {names}"
    if not affected:
        return f"{what}, and depends on {which} as no family known here does"
    parameter, affine = affected[0]
    if parameter == "loc" and not affine and all(kind(parts[name]) == "real" for name in fault.latents):
        return f"{what} with a loc that is not affine in {which}"
    verb = "depends" if parameter not in ("probs", "logits") else "depend"
    article = "a " if verb == "depends" else ""
    return f"{what} with {article}{parameter} that {verb} on {which}"


def _parameters(model: Model, data: Mapping[str, Any], density: Density, fault: _Fault) -> list[tuple[str, bool]]:
    """The parameters of a site's distribution that depend on the fault's latents, those that do so affinely last."""
    at = np.concatenate([np.arange(p.start, p.stop) for p in density.parts if p.name in fault.latents])
    direction = torch.zeros(density.dimension, dtype=torch.float64)
    direction[at] = torch.from_numpy(np.random.default_rng(1).normal(size=at.size))
    values: list[dict[str, torch.Tensor]] = []
    for t in (0.0, 0.5, 1.0):
        fn = _bare(_nodes(model, data, density, (t * direction)[None])[fault.site]["fn"])
        values.append({n: fn.__dict__[n] for n in fn.arg_constraints if isinstance(fn.__dict__.get(n), torch.Tensor)})
    found = []
    for name, (start, middle, end) in ((n, [v[n] for v in values]) for n in values[0]):
        if not torch.equal(start, end):
            found.append((name, bool(torch.allclose(2 * middle, start + end, rtol=1e-9, atol=1e-12))))
    return sorted(found, key=lambda pair: pair[1])
