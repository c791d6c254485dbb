"""What the user hands over, made ready: data as tensors, modules as private copies, a guide that takes what it names."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide

from pyrovi._typing import Guide, Model, Transform
from pyrovi.arguments import signature
from pyrovi.errors import DataError, GuideError, nearest

__all__ = ["as_dtype", "clone", "describe", "matching_arguments", "to_tensors", "transformed"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating dtype from its name; torch's default when None."""
    if dtype is None:
        return torch.get_default_dtype()
    if not isinstance(dtype, (str, torch.dtype)):
        raise DataError(f"dtype must be a name, as in 'float64', or one of torch's; got {dtype!r}")
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise DataError(f"unknown dtype {dtype!r}; {nearest(dtype, DTYPES)}")
        return DTYPES[dtype]
    if not dtype.is_floating_point:
        raise DataError(f"dtype must be a floating one, as in torch.float64; got {dtype}")
    return dtype


def to_tensors(data: Mapping[str, Any] | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arrays, frames and tensors as tensors on `device`; floating values as `dtype`, integers and booleans as they are.

    Plain Python numbers, strings, booleans and None pass through: they are settings of the model, not data.

    Raises:
        DataError: The values are not numbers, or some are NaN or infinite.
    """
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise DataError(f"data must map argument names to arrays, as in {{'x': x}}, or be a table; got {type(data).__name__}")
    return {name: _to_tensor(name, value, dtype, device) for name, value in data.items()}


def _to_tensor(name: str, value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if (
        value is None
        or isinstance(value, (bool, int, str))
        or (isinstance(value, tuple) and all(isinstance(v, int) for v in value))
    ):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            raise DataError(f"data {name!r} is NaN")
        return value
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.layout is not torch.strided:
            raise DataError(f"data {name!r} is a complex or sparse tensor; pass real, dense ones")
        tensor = value.detach()
    else:
        if np.ma.is_masked(value):
            raise DataError(f"data {name!r} has masked values; drop them, or pass the mask as data of its own")
        try:
            array = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
        except ValueError as error:
            raise DataError(f"data {name!r} is not an array: {str(error).splitlines()[0]}") from error
        if array.dtype.kind not in "biuf":
            raise DataError(_not_numbers(name, array))
        if array.dtype.kind == "u":
            array = array.astype(np.int64)  # which does not wrap around
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        tensor = torch.as_tensor(array)
    # A copy: what the caller does to the array later must not change the fit.
    tensor = tensor.to(torch.int64 if tensor.dtype is torch.uint8 else tensor.dtype, copy=True)
    if tensor.is_floating_point():
        _check_finite(name, tensor)
        tensor = tensor.to(dtype)
        _check_finite(name, tensor, f" as {dtype}; rescale them, or pass dtype=torch.float64")
    return tensor.to(device)


def _not_numbers(name: str, array: np.ndarray) -> str:
    """What a column holds that is no number, and how to make numbers of it."""
    words = [value for value in array.reshape(-1)[:10_000].tolist() if isinstance(value, str)]
    odd = list(dict.fromkeys(word for word in words if not _is_number(word)))
    if not odd:
        return f"data {name!r} holds {array.dtype} values, not numbers; encode or drop those columns"
    shown = ", ".join(map(repr, odd[:2]))
    if len(words) < array.size or len(odd) < len(set(words)):
        return f"data {name!r} holds text ({shown}) among the numbers; mend those cells, or drop their rows"
    return (
        f"data {name!r} holds text ({shown}), not numbers; encode it, as in (table[{name!r}] == {odd[-1 if len(odd) < 3 else 1]!r})"
        f".astype(float), or as numbers of groups, pandas.factorize(table[{name!r}])[0]"
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _check_finite(name: str, tensor: torch.Tensor, how: str = "; drop or impute them, or mask them in the model") -> None:
    bad = ~torch.isfinite(tensor)
    if bad.any():
        kind = "NaN" if torch.isnan(tensor).any() else "infinite"
        first = tuple(torch.nonzero(bad)[0].tolist())
        where = f", the first at {first}" if first else ""
        raise DataError(f"data {name!r} has {int(bad.sum())} {kind} value{'s' if bad.sum() > 1 else ''}{where}{how}")


def transformed(transform: Transform | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """The data as model and guide are to see them at one step."""
    if transform is None:
        return dict(data)
    out = transform({name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in data.items()})  # it may work in place
    if not isinstance(out, Mapping) or set(out) != set(data):
        raise DataError(f"transform must return the data under the names that it was given, {', '.join(data)}; got {in_short(out)}")
    for name, value in out.items():
        if isinstance(data[name], torch.Tensor) and not isinstance(value, torch.Tensor):
            raise DataError(f"transform must return tensors where it was given them; {name!r} came back as {type(value).__name__}")
    return dict(out)


def in_short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__


def matching_arguments(guide: Guide, data: Mapping[str, Any], model: Model) -> Guide:
    """The guide as a callable of all the data, where it takes only some of them by name."""
    parameters = signature(guide).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return guide
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    missing = [p.name for p in parameters if p.name in takes and p.default is p.empty and p.name not in data]
    if missing:
        raise GuideError(f"the guide asks for {missing[0]!r}, which is not among the data; {nearest(missing[0], data)}")
    if takes >= {*data, *signature(model).parameters}:  # the model's too: a prediction may give it more than the fit did
        return guide

    @functools.wraps(guide)
    def narrowed(**kwargs: Any) -> Any:
        return guide(**{name: value for name, value in kwargs.items() if name in takes})

    return narrowed


def clone(model: Model, guide: Any, dtype: torch.dtype, device: torch.device) -> tuple[Model, Any]:
    """Private copies of the modules among model and guide, on the device; parts that they share stay shared.

    Functions are not copied: a module inside a closure is lent instead (see `Parameters`).
    """
    modules = [m for m in (model, guide) if isinstance(m, torch.nn.Module)]
    autoguides = [g for m in modules for g in m.modules() if isinstance(g, AutoGuide)]
    models = [g._model for g in autoguides]  # AutoGuide drops its model when copied, from the original too
    masters = [g.master for g in autoguides]
    memo: dict[int, Any] = {}
    try:
        model, guide = copy.deepcopy((model, guide), memo)
    except RuntimeError as error:
        raise GuideError(
            "a module among model and guide cannot be copied because it holds the results of an earlier run; pass a fresh one, "
            "or for an autoguide its name or class"
        ) from error
    finally:
        for original, kept, master in zip(autoguides, models, masters, strict=True):
            original._model, original.master = kept, master
    for original, kept in zip(autoguides, models, strict=True):
        memo[id(original)]._model = tuple(memo.get(id(m), m) for m in kept)
    for module in (model, guide):
        if isinstance(module, torch.nn.Module):
            module.to(device=device, dtype=dtype)
    return model, guide


def describe(data: Mapping[str, Any]) -> str:
    """The data's names and shapes, for an error message.

    >>> describe({"x": torch.zeros(3, 2), "noise": 1.0})
    'x (3, 2), noise = 1.0'
    """
    parts = [f"{n} {tuple(v.shape)}" if isinstance(v, torch.Tensor) else f"{n} = {v!r}" for n, v in data.items()]
    return ", ".join(parts) or "none"
