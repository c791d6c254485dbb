"""Run Pyro without a trace: its parameter store, random number generators and settings are as they were afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import am_i_wrapped

from pyrovi._typing import Tensors

__all__ = ["Parameters", "isolated"]


@contextmanager
def isolated(seed: int, dtype: torch.dtype, device: torch.device | None = None, *, validate: bool = False) -> Iterator[None]:
    """A clean room: an empty parameter store, generators seeded by `seed`, `dtype` and `device` as defaults, gradients on.

    Pyro's `module_local_params` is off inside, so that every parameter is found in one place, the store.
    """
    rng, default = pyro.util.get_rng_state(), torch.get_default_dtype()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with (
            pyro.get_param_store().scope(),
            pyro.settings.context(module_local_params=False),
            pyro.validation_enabled(validate),
            torch.inference_mode(False),
            torch.enable_grad(),
            poutine.block() if am_i_wrapped() else nullcontext(),  # a caller's own handlers are not to see inside
            torch.device(device) if device is not None and device.type != "cpu" else nullcontext(),
        ):
            pyro.set_rng_seed(seed)
            torch.set_default_dtype(dtype)
            yield
    finally:
        torch.set_default_dtype(default)
        pyro.util.set_rng_state(rng)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@dataclass
class Parameters:
    """The parameters of one model and guide: the tensors that Pyro optimises and their constraints, by name.

    Pyro registers a module's own parameters, and a real-valued `pyro.param`'s initial tensor, without a copy: the
    optimiser writes into objects that belong to the user. So their values are lent, not given: `loaded` puts them in
    and puts the user's own back.
    """

    leaves: dict[str, torch.Tensor] = field(default_factory=dict)
    constraints: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def registered(cls) -> Parameters:
        """Those in Pyro's store now."""
        state = pyro.get_param_store().get_state()
        return cls(dict(state["params"]), dict(state["constraints"]))

    def values(self) -> Tensors:
        """Copies of the present unconstrained values."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves.items()}

    def assign(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(values[name])

    def constrained(self, values: Mapping[str, torch.Tensor]) -> Tensors:
        """Unconstrained values mapped into each parameter's own space."""
        return {name: torch.distributions.transform_to(self.constraints[name])(value).detach() for name, value in values.items()}

    @contextmanager
    def loaded(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, Pyro's store holds these parameters at these unconstrained values."""
        before = self.values()
        pyro.get_param_store().set_state({"params": self.leaves, "constraints": self.constraints})
        try:
            self.assign(values)
            yield
        finally:
            self.give_back(before)

    def give_back(self, values: Mapping[str, torch.Tensor]) -> None:
        """Leave the tensors as their owner knew them: with these values, without gradients."""
        self.assign(values)
        for leaf in self.leaves.values():
            leaf.grad = None
            if not isinstance(leaf, torch.nn.Parameter):
                leaf.requires_grad_(False)  # Pyro's store has switched it on
