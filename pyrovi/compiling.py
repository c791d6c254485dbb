"""A recorded step compiled by Inductor, and its kernels called again and again without the code around them.

Inductor's own wrapper allocates every buffer anew and checks every shape: some twenty microseconds a call, where the kernels of a
small model take less than one. So one call is overheard, kernels and buffers, and what was overheard is repeated. That is tried
against the wrapper first; where it does not give the same, or a step calls for more than kernels, the wrapper runs every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovi.errors import first_line
from pyrovi.graphs import NotTraceable

__all__ = ["compiled", "is_compiled", "repeated"]

Step = Callable[[list[torch.Tensor]], Any]

_COMPILED: dict[str, Step] = {}
"""Compiled steps of this process, by what they do; Inductor keeps its own cache between processes."""


def key(*parts: object) -> str:
    """One name for a step that has this code, these shapes and these settings."""
    return hashlib.sha256("\n".join(map(str, (torch.__version__, torch.get_num_threads(), *parts))).encode()).hexdigest()


def is_compiled(name: str) -> bool:
    """Whether this process has compiled that step."""
    return name in _COMPILED


def compiled(name: str, step: Callable[..., Any], examples: Sequence[torch.Tensor]) -> Step:
    """The step, which works on its arguments in place, as machine code that takes a list of them.

    Raises:
        NotTraceable: Inductor cannot compile it, or there is no C++ compiler.
    """
    if name not in _COMPILED:
        try:
            _COMPILED[name] = _inductor(step, examples)
        except Exception as error:
            raise NotTraceable(f"Inductor could not compile it ({type(error).__name__}: {first_line(error)})") from error
    return _COMPILED[name]


def _inductor(step: Callable[..., Any], examples: Sequence[torch.Tensor]) -> Step:
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with mode, torch.no_grad():
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in examples]
        graph: GraphModule = make_fx(step, decomposition_table=select_decomp_table())(*fakes)
    with torch.no_grad():
        code: Any = compile_fx_inner(graph, fakes)
    return code


def repeated(code: Step, arguments: list[torch.Tensor], changing: int) -> Callable[[], Any]:
    """The step on these tensors as a function of nothing; now as later it changes the first `changing` of them in place."""

    def wrapped() -> Any:
        return code(list(arguments))

    def again() -> None:
        for kernel, args, kwargs in calls:
            kernel(*args, **kwargs)

    def after(function: Callable[[], Any]) -> list[torch.Tensor]:
        function()
        now = [tensor.clone() for tensor in arguments[:changing]]
        for tensor, value in zip(arguments, before, strict=False):
            tensor.copy_(value)
        return now

    before = [tensor.clone() for tensor in arguments[:changing]]
    calls = _overheard(code, arguments)
    after(lambda: None)
    if not calls:
        return wrapped
    wanted, got = after(wrapped), after(again)
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(wanted, got, strict=True))
    return again if same else wrapped


def _overheard(code: Any, arguments: list[torch.Tensor]) -> list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """The kernels that one call runs, with their arguments; none where the call does anything else."""
    module = getattr(getattr(code, "current_callable", None), "__globals__", {})
    source = str(getattr(code, "source_code", ""))
    kernels = {name: f for name, f in module.items() if name.startswith("cpp_fused")}
    if not kernels or "torch.ops." in source.split("def call", 1)[-1].split("runner =", 1)[0]:
        code(list(arguments))
        return []
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def listening(function: Callable[..., Any]) -> Callable[..., Any]:
        def heard(*args: Any, **kwargs: Any) -> Any:
            calls.append((function, args, kwargs))
            return function(*args, **kwargs)

        return heard

    class Extern:
        """Inductor's matrix products and the like, which write into buffers too."""

        def __getattr__(self, name: str) -> Callable[..., Any]:
            return listening(getattr(extern, name))

    extern = module.get("extern_kernels")
    try:
        module.update({name: listening(f) for name, f in kernels.items()})
        module["extern_kernels"] = Extern()
        code(list(arguments))
    finally:
        module.update(kernels)
        module["extern_kernels"] = extern
    return calls
