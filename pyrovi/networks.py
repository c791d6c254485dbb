"""Networks of any depth and width as plain functions: their weights are Pyro parameters, made on the first call.

A function has no state, so a model stays a function of its data, its layer sizes among them, and a fit leaves nothing behind.
Weights are stored as `(inputs, outputs)`: a layer is `h @ weight + bias`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import torch

from pyrovi.errors import SettingsError, nearest

__all__ = ["ACTIVATIONS", "affine", "perceptron"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "elu": torch.nn.functional.elu,
    "sigmoid": torch.sigmoid,
}


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of that name in `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise SettingsError(f"unknown activation {name!r}; {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def perceptron(x: torch.Tensor, name: str, widths: Sequence[int], *, nonlinearity: str = "relu") -> torch.Tensor:
    """A multilayer perceptron with Pyro parameters `{name}.{i}.weight` and `{name}.{i}.bias`.

    Args:
        x: Inputs, shape `(…, d)`.
        name: What its parameters are called.
        widths: The width of every layer after the input, the last of them the output's; `(k,)` is a linear map to k outputs.
        nonlinearity: Between layers; none follows the last.

    Returns:
        Outputs, shape `(…, widths[-1])`.

    Weights and biases start uniform on ±1/√fan_in, as those of `torch.nn.Linear` do.
    """
    act = activation(nonlinearity)
    for i, width in enumerate(widths):
        fan_in = x.shape[-1]
        bound = 1 / math.sqrt(fan_in)
        weight = pyro.param(f"{name}.{i}.weight", lambda: torch.empty(fan_in, width).uniform_(-bound, bound))  # noqa: B023
        bias = pyro.param(f"{name}.{i}.bias", lambda: torch.empty(width).uniform_(-bound, bound))  # noqa: B023
        x = affine(x, weight, bias)
        if i < len(widths) - 1:
            x = act(x)
    return x


def affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`x @ weight + bias`, also where weight and bias are draws: sites outside the data's plate, with an axis of particles in front.

    Args:
        x: Shape `(rows, inputs)` or `(particles, rows, inputs)`.
        weight: Shape `(inputs, outputs)`, or `(particles, 1, inputs, outputs)` with the 1 in the place of the data's plate.
        bias: Shape `(outputs,)` or `(particles, 1, outputs)`.
    """
    if weight.dim() > 3:
        weight = weight.squeeze(-3)
    if weight.dim() == 2 and x.dim() == 2:
        return torch.addmm(bias, x, weight)
    return x @ weight + bias
