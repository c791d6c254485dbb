"""Tensor operations written down so that the result can be differentiated twice and run on many rows at once.

Where `recording` keeps a step as it was carried out, this keeps a function of its inputs alone: what does not depend on them
becomes a constant, writes become new tensors, a failed decomposition becomes NaN, and operations that torch.func.vmap has no rule
for are put in other words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovi.errors import ModelError

__all__ = ["record"]

aten = torch.ops.aten


class _Recorder(TorchDispatchMode):
    """Writes down every operation that depends on the inputs, as it is carried out."""

    def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.graph, self.root = torch.fx.Graph(), torch.nn.Module()
        self._kept: list[Any] = list(inputs)  # alive, so that no id is used twice
        self._nodes = {id(x): self.graph.placeholder(f"x{i}") for i, x in enumerate(inputs)}
        self._constants: dict[int, torch.fx.Node] = {}
        self._scalars = self._work = 1
        self._derivative = any(x.requires_grad for x in inputs)
        self._failed: list[torch.fx.Node] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, for three seconds, to keep it out of here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._efficientzerotensor.default:  # likewise
            func = aten.zeros.default
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ModelError("it draws random numbers outside its sample sites")
        if not any(id(x) in self._nodes for x in _tensors((args, tuple(kwargs.values())))):
            return func(*args, **kwargs)
        if func is aten._is_all_true.default:  # how a distribution that validates asks, whatever Pyro's settings
            return torch.tensor(True)
        if torch.Tag.data_dependent_output in func.tags:
            raise ModelError("its course depends on the value of a latent")
        if func is aten._linalg_check_errors.default:
            self._failed.append(self._nodes[id(args[0])])  # a failed decomposition is noted in the result, not raised
            return None
        if func._schema.is_mutable:
            return self._written(func, types, args, kwargs)
        if func in REWRITTEN and (rewritten := REWRITTEN[func](*args, **kwargs)) is not None:
            with self:
                return rewritten()
        out = func(*args, **kwargs)
        if func is aten.detach.default and self._derivative:
            self._note(out, self._nodes[id(args[0])])
            return out
        node = self.graph.call_function(func, self._node(args), {name: self._node(value) for name, value in kwargs.items()})
        self._work += _inner(func, args)
        if isinstance(out, torch.Tensor):
            self._note(out, node)
            return out
        for i, part in enumerate(out):
            if isinstance(part, torch.Tensor):
                self._note(part, self.graph.call_function(_item, (node, i)))
        return out

    def _written(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """An operation in place: recorded as its sibling that returns the result."""
        x, name = args[0], func._schema.name.removeprefix("aten::")
        harmless = self._derivative or torch.Tag.inplace_view in func.tags or not self._shared(x)
        if not name.endswith("_") or not harmless:
            raise _Aliased
        out = self.__torch_dispatch__(getattr(getattr(aten, name[:-1]), func._overloadname), types, args, kwargs)
        func(*args, **kwargs)
        self._note(x, self._nodes[id(out)])
        return x

    def _shared(self, x: torch.Tensor) -> bool:
        """Whether other tensors may see what is written to `x`."""
        place = x.untyped_storage().data_ptr()
        return id(x) not in self._nodes or any(y is not x and y.untyped_storage().data_ptr() == place for y in self._kept)

    def _note(self, x: torch.Tensor, node: torch.fx.Node) -> None:
        self._kept.append(x)
        self._nodes[id(x)] = node
        self._scalars += x.numel()

    def _node(self, x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(self._node(y) for y in x)
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in self._nodes:
            return self._nodes[id(x)]
        if id(x) not in self._constants:
            name = f"constant{len(self._constants)}"
            self.root.register_buffer(name, x.detach())
            self._kept.append(x)
            self._constants[id(x)] = self.graph.get_attr(name)
        return self._constants[id(x)]

    def finish(self, out: Any) -> torch.fx.GraphModule:
        result = self._node(out)
        for info in self._failed:
            fine = self.graph.call_function(aten.eq.Scalar, (self.graph.call_function(aten.sum.default, (info,)), 0))
            result = self.graph.call_function(aten.where.ScalarOther, (fine, result, float("nan")))
        self.graph.output(result)
        for node in reversed(self.graph.nodes):
            if not node.users and node.op in ("call_function", "get_attr"):
                self.graph.erase_node(node)
        module = torch.fx.GraphModule(self.root, self.graph)
        module.meta["scalars"], module.meta["work"] = self._scalars, self._scalars + self._work
        return module


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Those among an operation's arguments; torch's own trees are slower."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _inner(func: Any, args: Any) -> int:
    """Multiplications of a matrix product or decomposition, which are many more than the numbers that it gives."""
    matrices = [x for x in _tensors(args) if x.dim() >= 2]
    if not matrices or not any(word in func._schema.name for word in ("linalg", "cholesky", "solve", "mm", "baddbmm")):
        return 0
    return max(x.numel() for x in matrices) * min(matrices[-1].shape[-2:])


def _item(values: Any, i: int) -> Any:
    return values[i]


def _copy(target: torch.Tensor, source: torch.Tensor, *_: Any) -> Callable[[], torch.Tensor]:
    return lambda: torch.zeros_like(target) + source


def _cumprod(x: torch.Tensor, dim: int, **_: Any) -> Callable[[], torch.Tensor]:
    return lambda: x.abs().log().cumsum(dim).exp() * (1 - 2 * ((x < 0).cumsum(dim) % 2))


def _xlogy(x: torch.Tensor, y: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.where(x == 0, 0.0, x * torch.where(x == 0, 1.0, y).log())


def _index_put(x: torch.Tensor, at: Any, value: torch.Tensor, accumulate: bool = False) -> Callable[[], torch.Tensor] | None:
    if accumulate or len(at) != 1 or at[0].dtype is not torch.bool or value.numel() != 1:
        return None
    return lambda: torch.where(at[0].reshape(at[0].shape + (1,) * (x.dim() - at[0].dim())), value.reshape(()), x)


def _slice_scatter(
    x: torch.Tensor, source: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Callable[[], torch.Tensor] | None:
    begin, stop, _ = slice(start, end).indices(x.shape[dim])
    if step != 1 or source.shape[dim] != stop - begin:
        return None
    return lambda: torch.cat([x.narrow(dim, 0, begin), source, x.narrow(dim, stop, x.shape[dim] - stop)], dim)


REWRITTEN: dict[Any, Callable[..., Callable[[], torch.Tensor] | None]] = {
    aten.copy.default: _copy,
    aten.cumprod.default: _cumprod,
    aten.index_put.default: _index_put,
    aten.slice_scatter.default: _slice_scatter,
    aten.xlogy.Tensor: _xlogy,
}
"""Operations that torch.func.vmap has no rule for, or whose derivatives it has none for, in other words."""


def record(f: Callable[..., Any], *inputs: torch.Tensor) -> torch.fx.GraphModule:
    """The tensor operations of `f(*inputs)` that depend on the inputs, as a function of tensors of the same shapes.

    The result is NaN where a matrix decomposition failed.

    >>> cube = record(lambda x: x**3 + torch.ones(2).log(), torch.ones(2))
    >>> cube(torch.tensor([1.0, 2.0]))
    tensor([1., 8.])
    """
    inputs = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
    try:
        with _Recorder(inputs) as recorder:
            out = f(*inputs)
    except _Aliased:  # torch can do without, but must import sympy first, for two seconds
        with _Recorder(inputs) as recorder:
            out = torch.func.functionalize(f)(*inputs)
    return recorder.finish(out)


class _Aliased(Exception):
    """Something was written into a part of a tensor."""
