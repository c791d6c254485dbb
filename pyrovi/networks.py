"""Networks of any depth and width as plain functions: their weights are Pyro parameters, or latent sites with a guide beside them.

A function has no state, so a model stays a function of its data, its layer sizes among them, and a fit leaves nothing behind.
Weights are stored as `(inputs, outputs)`: a layer is `h @ weight + bias`.

A Bayesian layer has two sides: `bayesian_layer` samples weights and biases from their prior, in the model, `bayesian_layer_guide`
from a factorised Gaussian, in the guide (Bayes by Backprop). With the local reparameterization trick the guide sends the moments of
its Gaussians along with the draws (Pyro's replay carries a site's `infer`), and the layer draws its outputs for every row anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger

from pyrovi.errors import SettingsError, nearest

__all__ = [
    "ACTIVATIONS",
    "affine",
    "bayesian_layer",
    "bayesian_layer_guide",
    "bayesian_perceptron",
    "bayesian_perceptron_guide",
    "perceptron",
]

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


def perceptron(
    x: torch.Tensor, name: str, widths: Sequence[int], *, nonlinearity: str = "relu", prior_scale: float | None = None
) -> torch.Tensor:
    """A multilayer perceptron with Pyro parameters `{name}.{i}.weight` and `{name}.{i}.bias`.

    Args:
        x: Inputs, shape `(…, d)`.
        name: What its parameters are called.
        widths: The width of every layer after the input, the last of them the output's; `(k,)` is a linear map to k outputs.
        nonlinearity: Between layers; none follows the last.
        prior_scale: Adds the log density of weights and biases under Normal(0, prior_scale) as the factor `{name}.prior`, for a
            model (outside its plates): the parameters found are then the posterior mode. None for maximum likelihood.

    Returns:
        Outputs, shape `(…, widths[-1])`.

    Weights and biases start uniform on ±1/√fan_in, as those of `torch.nn.Linear` do.
    """
    act = activation(nonlinearity)
    log_prior = x.new_zeros(())
    for i, width in enumerate(widths):
        fan_in = x.shape[-1]
        bound = 1 / math.sqrt(fan_in)
        weight = pyro.param(f"{name}.{i}.weight", lambda: torch.empty(fan_in, width).uniform_(-bound, bound))  # noqa: B023
        bias = pyro.param(f"{name}.{i}.bias", lambda: torch.empty(width).uniform_(-bound, bound))  # noqa: B023
        if prior_scale is not None:
            prior = dist.Normal(0.0, prior_scale)
            log_prior = log_prior + prior.log_prob(weight).sum() + prior.log_prob(bias).sum()
        x = affine(x, weight, bias)
        if i < len(widths) - 1:
            x = act(x)
    if prior_scale is not None:
        pyro.factor(f"{name}.prior", log_prior)
    return x


def affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`x @ weight + bias`, also for draws: sites outside the data's plate, whose values have an axis of particles in front.

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


def bayesian_perceptron(
    x: torch.Tensor,
    name: str,
    widths: Sequence[int],
    *,
    prior_scale: float | torch.Tensor | Sequence[float | torch.Tensor] = 1.0,
    latent_bias: bool = True,
    nonlinearity: str = "relu",
) -> torch.Tensor:
    """A multilayer perceptron of `bayesian_layer`s called `{name}.{i}`, for a model.

    Args:
        x: Inputs, shape `(rows, d)`.
        name: What its layers are called.
        widths: The width of every layer after the input, the last of them the output's.
        prior_scale: The prior sd of weights and biases, one for all layers or one a layer.
        latent_bias: Whether biases have a prior; they are parameters otherwise.
        nonlinearity: Between layers; none follows the last.

    Returns:
        Outputs, shape `(rows, widths[-1])`, with an axis of particles in front where the weights have one.
    """
    act = activation(nonlinearity)
    scales = list(prior_scale) if isinstance(prior_scale, Sequence) else [prior_scale] * len(widths)
    if len(scales) != len(widths):
        raise SettingsError(f"prior_scale has {len(scales)} numbers for {len(widths)} layers; give one, or one a layer")
    for i, (width, scale) in enumerate(zip(widths, scales, strict=True)):
        x = bayesian_layer(x, f"{name}.{i}", width, prior_scale=scale, latent_bias=latent_bias)
        if i < len(widths) - 1:
            x = act(x)
    return x


def bayesian_perceptron_guide(inputs: int, name: str, widths: Sequence[int], **options: Any) -> None:
    """The guide of `bayesian_perceptron`: a `bayesian_layer_guide` a layer.

    Args:
        inputs: The number of inputs, d.
        name: What its layers are called.
        widths: As in the model.
        options: For every `bayesian_layer_guide`.
    """
    for i, width in enumerate(widths):
        bayesian_layer_guide(f"{name}.{i}", inputs, width, **options)
        inputs = width


def bayesian_layer(
    x: torch.Tensor, name: str, width: int, *, prior_scale: float | torch.Tensor = 1.0, latent_bias: bool = True
) -> torch.Tensor:
    """A linear layer with latent weights, for a model; call it outside the data's plate.

        {name}.weight ~ Normal(0, prior_scale), shape (inputs, width)
        {name}.bias ~ Normal(0, prior_scale), shape (width,)

    Args:
        x: Inputs, shape `(rows, inputs)`, or `(particles, rows, inputs)` where a layer before it has drawn weights.
        name: What its sites are called.
        width: The number of outputs.
        prior_scale: The prior sd: a number, or a latent one (a tensor of the batch shape that sites have outside the data's plate).
        latent_bias: Whether the bias has the same prior; otherwise it is a parameter that starts at 0.

    Returns:
        `x @ weight + bias`, shape `(rows, width)` or `(particles, rows, width)`.
    """
    inputs = x.shape[-1]
    scale = torch.as_tensor(prior_scale, dtype=x.dtype, device=x.device)
    with _Moments() as moments:
        shape = (*scale.shape, inputs, width)
        weight = pyro.sample(f"{name}.weight", dist.Normal(0.0, scale[..., None, None]).expand(shape).to_event(2))
        if latent_bias:
            bias = pyro.sample(f"{name}.bias", dist.Normal(0.0, scale[..., None]).expand((*scale.shape, width)).to_event(1))
        else:
            bias = pyro.param(f"{name}.bias", lambda: x.new_zeros(width))
    if f"{name}.weight" not in moments.of:
        return affine(x, weight, bias)

    loc, sd = moments.of[f"{name}.weight"]
    bias_loc, bias_sd = moments.of.get(f"{name}.bias", (bias, torch.zeros_like(bias)))
    mean = affine(x, loc, bias_loc)
    # A dead row under a bias without spread has variance 0, where the root has no gradient.
    variance = affine(x.square(), sd.square(), bias_sd.square()).clamp(min=1e-12)
    particles = weight.shape[:-3] if weight.dim() > 3 else weight.shape[:-2]
    shape = torch.broadcast_shapes(mean.shape, (*particles, 1, 1))
    return mean + variance.sqrt() * torch.randn(shape, dtype=x.dtype, device=x.device)


def bayesian_layer_guide(
    name: str,
    inputs: int,
    width: int,
    *,
    loc_sd: float | None = None,
    scale: float = 0.05,
    bias_loc_sd: float = 0.0,
    bias_scale: float | None = None,
    latent_bias: bool = True,
    local_reparameterization: bool = False,
) -> None:
    """The guide of `bayesian_layer`: every weight and bias an independent Normal, its scale the softplus of what is optimised.

    Args:
        name: What the layer is called.
        inputs: The number of its inputs.
        width: The number of its outputs.
        loc_sd: The weights' locations start at draws of N(0, loc_sd); 1/√inputs when None, which keeps the outputs' size.
        scale: The weights' scales at the start. The default is small: a network that starts noisy learns that its weights are
            useless, and their posterior falls back on the prior.
        bias_loc_sd: The same for the biases' locations; they start at 0 when it is.
        bias_scale: The biases' scales at the start; `scale` when None.
        latent_bias: As in the layer.
        local_reparameterization: Draw the layer's outputs, whose Gaussian follows from the weights', instead of the weights: for
            every row anew, so the noise of the gradient averages out over rows. The expected ELBO and its gradient are the same.
            It works for sums over rows (`"trace_elbo"`, `"mean_field"`), not for bounds that weigh whole draws (importance
            weights), and only while gradients are taken: elsewhere, the weights are used as drawn.

    References:
        Weight uncertainty in neural networks (Blundell et al., 2015) | https://arxiv.org/abs/1505.05424
        Variational dropout and the local reparameterization trick (Kingma, Salimans & Welling, 2015) |
        https://arxiv.org/abs/1506.02557
    """
    local = local_reparameterization and torch.is_grad_enabled()
    sd = 1 / math.sqrt(inputs) if loc_sd is None else loc_sd
    _normal(f"{name}.weight", (inputs, width), sd, scale, local)
    if latent_bias:
        _normal(f"{name}.bias", (width,), bias_loc_sd, scale if bias_scale is None else bias_scale, local)


def _normal(name: str, shape: tuple[int, ...], loc_sd: float, scale: float, local: bool) -> None:
    loc = pyro.param(f"{name}.loc", lambda: loc_sd * torch.randn(shape))
    sd = pyro.param(f"{name}.scale", lambda: torch.full(shape, scale), constraint=constraints.softplus_positive)
    pyro.sample(name, dist.Normal(loc, sd).to_event(len(shape)), infer={"moments": (loc, sd)} if local else {})


class _Moments(Messenger):
    """Takes note of the moments that a guide sends along with its draws."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if "moments" in msg["infer"]:
            self.of[msg["name"]] = msg["infer"]["moments"]
