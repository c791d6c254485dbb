"""Run a model or guide once and say in a sentence what is wrong with it, or with its data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.poutine.trace_struct import Trace

from pyrovi.errors import DataError, ModelError, PyroviError, first_line
from pyrovi.inputs import describe
from pyrovi.structure import WRAPPERS, Structure

__all__ = ["check_observed", "family", "feasible", "in_words", "is_real", "outside_support", "run"]


class _Position(poutine.messenger.Messenger):
    """Remembers the last site met, to name it when the program raises there."""

    site: str | None = None

    def _process_message(self, msg: Any) -> None:
        if msg["type"] in ("sample", "param"):
            self.site = msg["name"]


def run(program: Callable[..., Any], data: Mapping[str, Any], error: type[PyroviError]) -> Trace:
    """Trace a program; what it raises becomes a sentence with the site and the data's shapes."""
    position = _Position()
    try:
        with position:
            trace = poutine.trace(program).get_trace(**data)
        _check_tensors(trace)
        return trace
    except PyroviError:
        raise
    except Exception as exception:
        what = "model" if error is ModelError else "guide"
        at = f" at or after site {position.site!r}" if position.site else ""
        raise error(
            f"the {what} raised {type(exception).__name__}{at}: {first_line(exception)}{_cure(exception, data)}"
            f" (data: {describe(data)})"
        ) from exception


def _check_tensors(trace: Trace) -> None:
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or not node["is_observed"] or node["infer"].get("_deterministic"):
            continue
        if isinstance(node["value"], (bool, int, float)):
            raise DataError(
                f"the observed value of site {name!r} is the number {node['value']!r}, which has no shape; give it as an array, "
                f"np.array({node['value']!r}), or write obs=torch.tensor(…) in the model"
            )


def _cure(exception: Exception, data: Mapping[str, Any]) -> str:
    """What to do about it, where that can be told."""
    if "ImproperUniform does not support sampling" in str(exception):
        return "; give the latent a proper prior, a wide Normal for instance: an improper one has no draws and no evidence"
    empty = [name for name, value in data.items() if isinstance(value, torch.Tensor) and value.numel() == 0]
    if empty and isinstance(exception, ZeroDivisionError):
        return f"; the data {empty[0]!r} are empty: give at least one row"
    return _of_index(exception, data)


def _of_index(exception: Exception, data: Mapping[str, Any]) -> str:
    """Which of the data was no good as an index, and what to do, where that is what was raised."""
    text, arrays = str(exception), {n: v for n, v in data.items() if isinstance(v, torch.Tensor) and v.numel()}
    if "used as indices must be" in text:
        whole = [n for n, v in arrays.items() if v.is_floating_point() and v.ndim and bool((v == v.round()).all())]
        if whole:
            return f"; an index has to be whole numbers: give {whole[0]!r} as integers, by .astype(int), or .long() of a tensor"
    found = re.search(r"index (\d+) is out of bounds for dimension \d+ with size (\d+)", text)
    if found is None:
        return ""
    index, size = int(found[1]), int(found[2])
    integers = {n: v for n, v in arrays.items() if not v.is_floating_point() and v.dtype is not torch.bool}
    guilty = [n for n, v in integers.items() if bool((v == index).any())]
    if index == size:  # the last of the groups, which an outcome may be larger than
        guilty = [n for n in guilty if int(integers[n].max()) == size] or guilty
    runs = [f"{n!r} runs from {int(integers[n].min())} to {int(integers[n].max())}" for n in guilty]
    cure = "" if index == size else ", and pandas.factorize gives such numbers"
    return f"; indices count from 0{cure}: {', '.join(runs)}" if runs else ""


def feasible(site: Any) -> torch.Tensor:
    """A moderate value for a site: the image of 0 for a continuous one, a draw for a discrete one."""
    if getattr(site["fn"].support, "is_discrete", False):
        return site["fn"].sample().detach()
    return init_to_feasible(site)


def check_observed(trace: Trace) -> Structure:
    """The structure of a model's trace, after a look at its observed values: shapes against plates, and supports."""
    structure = Structure.of(trace)
    for name, site in structure.observed.items():
        fn, value = trace.nodes[name]["fn"], trace.nodes[name]["value"]
        expected = fn.shape()
        plates = ", ".join(f"{p.name!r} of size {p.size}" for p in site.plates) or "no plate"
        try:
            joint = math.prod(np.broadcast_shapes(value.shape, expected))  # torch's own imports sympy, for a second
        except ValueError:
            joint = None
        if joint is None or joint != value.numel() or joint != math.prod(expected):
            raise DataError(
                f"site {name!r} ({plates}) has shape {tuple(expected)} but its observed value has shape {tuple(value.shape)}; "
                "give them the same shape, with a pyro.plate or .to_event(1) for every axis of the data"
            )
        outside = outside_support(fn.support, value)
        if outside is not None:
            index = tuple(torch.nonzero(outside)[0].tolist())
            count = int(outside.sum())
            raise DataError(
                f"site {name!r} is {family(fn)}, whose values are {in_words(fn.support)}; {count} observed value"
                f"{'s are' if count > 1 else ' is'} not, the first {_show(value[index])} at {index}"
            )
    return structure


def outside_support(support: Any, value: torch.Tensor) -> torch.Tensor | None:
    """Where a value is outside a support, a boolean tensor; None if nowhere, or if the support's own bounds may move."""
    c = torch.distributions.constraints
    base = support
    while isinstance(base, c.independent):
        base = base.base_constraint
    if isinstance(base, (c.interval, c.greater_than, c.greater_than_eq, c.less_than)) and base not in FIXED:
        return None  # bounds that depend on a latent may exclude the value now and admit it later
    outside = ~support.check(value)
    return outside if outside.any() else None


FIXED = tuple(getattr(torch.distributions.constraints, name) for name in ("positive", "nonnegative", "unit_interval"))


def is_real(support: Any) -> bool:
    """Whether a support is the whole real line, or a product of them."""
    c = torch.distributions.constraints
    while hasattr(support, "base_constraint"):  # of independent ones, and of a mixture's
        support = support.base_constraint
    return isinstance(support, type(c.real))


def family(fn: Any) -> str:
    """A distribution's name, without what `.to_event`, `.expand` and `.mask` put around it."""
    while type(fn).__name__ in WRAPPERS:
        fn = fn.base_dist
    return type(fn).__name__


def in_words(support: Any) -> str:
    """What the values of a support are."""
    constraint = getattr(support, "base_constraint", support)
    words = {
        "nonnegative_integer": "counts, 0, 1, 2, …",
        "boolean": "0 or 1",
        "positive": "greater than 0",
        "nonnegative": "at least 0",
        "unit_interval": "between 0 and 1",
        "simplex": "positive and sum to 1",
        "real": "real numbers",
    }
    return next(
        (text for name, text in words.items() if constraint is getattr(torch.distributions.constraints, name)), str(support)
    )


def _show(value: torch.Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else str(value.tolist())
