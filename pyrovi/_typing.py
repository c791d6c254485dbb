"""The shapes of the things that users hand over."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

Model: TypeAlias = Callable[..., Any]
"""A Pyro program: a function, a `PyroModule` or an `nn.Module`, called with the data as keyword arguments."""

Guide: TypeAlias = Callable[..., Any]
"""A Pyro program that samples every latent site of a model, called with the same keyword arguments."""


@runtime_checkable
class Table(Protocol):
    """A DataFrame, of pandas' or another library's."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


Data: TypeAlias = Mapping[str, Any] | Table
"""Argument name to NumPy array, tensor, DataFrame, xarray array or plain Python value; or a table with such columns."""

Transform: TypeAlias = Callable[[dict[str, Any]], Mapping[str, Any]]
"""From the data of one step, as tensors by argument name, to what model and guide are to see of them."""

Tensors: TypeAlias = dict[str, torch.Tensor]

Path: TypeAlias = str | os.PathLike[str]
