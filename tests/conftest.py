"""One thread a process: two workers share two cores, and small models gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def untouched_pyro():
    """Every test finds Pyro clean, and must leave it so."""
    pyro.clear_param_store()
    yield
    assert not dict(pyro.get_param_store().items()), "a test left parameters in Pyro's store"
    assert torch.get_default_dtype() == torch.float32
