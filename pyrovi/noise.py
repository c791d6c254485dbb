"""Random draws of a recorded graph, made from numbers that are drawn outside of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pyrovi.recording import in_place, is_view, supersede

__all__ = ["DRAWS", "draw_outside"]

aten = torch.ops.aten


def draw_outside(module: GraphModule, after: Node) -> tuple[int, int]:
    """Replace the draws by slices of two inputs, one of standard Normal and one of uniform numbers."""
    graph = module.graph
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    noise = {}
    last = inputs[-1]
    for kind in ("normal", "uniform"):
        with graph.inserting_after(last):
            last = noise[kind] = graph.placeholder(kind)
    used = {"normal": 0, "uniform": 0}

    def take(kind: str, node: Node) -> Node:
        value = node.meta["val"]
        start, n = used[kind], value.numel()
        used[kind] += n
        part = graph.call_function(aten.slice.Tensor, (noise[kind], 0, start, start + n))
        part = graph.call_function(aten.view.default, (part, list(value.shape)))
        if value.dtype == after.meta["val"].dtype or not value.is_floating_point():  # a class is found from a number in [0, 1)
            return part
        return graph.call_function(aten.to.dtype, (part, value.dtype))

    def call(op: Any, *args: Any) -> Node:
        node = graph.call_function(op, args)
        examples = [a.meta.get("val") if isinstance(a, Node) else a for a in args]
        if not any(example is None and isinstance(a, Node) for example, a in zip(examples, args, strict=True)):
            node.meta["val"] = op(*examples)  # what depends on constants alone is to be known by its value
        return node

    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in DRAWS:
            continue
        with graph.inserting_before(node):
            drawn = DRAWS[node.target](node, take, call)
        if drawn is None:
            continue
        drawn.meta["val"] = node.meta["val"]
        target = node.args[0] if node.args else None
        if in_place(node) and isinstance(target, Node) and (is_view(target) or any(is_view(u) and u < node for u in target.users)):
            with graph.inserting_before(node):
                graph.call_function(aten.copy_.default, (target, drawn)).meta["val"] = node.meta["val"]
            drawn = target  # the write itself is `functional`'s
        elif in_place(node):
            supersede(graph, node, drawn)
        node.replace_all_uses_with(drawn)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    for kind, placeholder in noise.items():
        placeholder.meta["val"] = torch.empty(used[kind], dtype=after.meta["val"].dtype)
    return used["normal"], used["uniform"]


def _scaled(kind: str, first: float, second: float, names: tuple[str, str]) -> Callable[..., Node]:
    """A draw written into a tensor, x.normal_(mean, std) and its kin, whose two arguments have these defaults."""

    def build(node: Node, take: Any, call: Any) -> Node:
        a, b = (_argument(node, i, name, default) for i, (name, default) in enumerate(zip(names, (first, second), strict=True), 1))
        drawn = take(kind, node)
        scale = b - a if kind == "uniform" else b
        drawn = drawn if scale == 1 else call(aten.mul.Tensor, drawn, scale)
        return drawn if a == 0 else call(aten.add.Tensor, drawn, a)

    return build


def _argument(node: Node, i: int, name: str, default: Any) -> Any:
    return node.args[i] if len(node.args) > i else node.kwargs.get(name, default)


def _normal_about(node: Node, take: Any, call: Any) -> Node:
    mean, std = node.args[:2]
    return call(aten.add.Tensor, call(aten.mul.Tensor, take("normal", node), std), mean)


def _bernoulli(node: Node, take: Any, call: Any) -> Node:
    probability: Any = _argument(node, 1, "p", 0.5) if in_place(node) else node.args[0]
    return call(aten.to.dtype, call(_compare_op(probability), take("uniform", node), probability), node.meta["val"].dtype)


def _compare_op(probability: Any) -> Any:
    return aten.lt.Tensor if isinstance(probability, Node) else aten.lt.Scalar


def _exponential(node: Node, take: Any, call: Any) -> Node:
    rate = _argument(node, 1, "lambd", 1.0)
    drawn = call(aten.neg.default, call(aten.log1p.default, call(aten.neg.default, take("uniform", node))))
    return drawn if rate == 1 else call(aten.div.Tensor, drawn, rate)


def _cauchy(node: Node, take: Any, call: Any) -> Node:
    median, sigma = _argument(node, 1, "median", 0.0), _argument(node, 2, "sigma", 1.0)
    turn = call(aten.mul.Tensor, call(aten.sub.Tensor, take("uniform", node), 0.5), torch.pi)
    return call(aten.add.Tensor, call(aten.mul.Tensor, call(aten.tan.default, turn), sigma), median)


def _categorical(node: Node, take: Any, call: Any) -> Node | None:
    weights: Any = node.args[0]
    if node.args[1] != 1:
        return None
    below = call(aten.cumsum.default, weights, -1)
    total = call(aten.slice.Tensor, below, -1, -1)
    drawn = take("uniform", node)
    past = call(aten.ge.Tensor, call(aten.mul.Tensor, call(aten.to.dtype, drawn, weights.meta["val"].dtype), total), below)
    # In float32 the product may round up to the total.
    return call(aten.clamp.default, call(aten.sum.dim_IntList, past, [-1], True), None, weights.meta["val"].shape[-1] - 1)


DRAWS: dict[Any, Callable[..., Node | None]] = {
    aten.normal_.default: _scaled("normal", 0, 1, ("mean", "std")),
    aten.randn.default: lambda node, take, call: take("normal", node),
    aten.randn_like.default: lambda node, take, call: take("normal", node),
    aten.normal.Tensor_Tensor: _normal_about,
    aten.normal.Tensor_float: _normal_about,
    aten.normal.float_Tensor: _normal_about,
    aten.uniform_.default: _scaled("uniform", 0, 1, ("from", "to")),
    aten.rand.default: lambda node, take, call: take("uniform", node),
    aten.rand_like.default: lambda node, take, call: take("uniform", node),
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli_.Tensor: _bernoulli,
    aten.bernoulli_.float: _bernoulli,
    aten.exponential_.default: _exponential,
    aten.cauchy_.default: _cauchy,
    aten.multinomial.default: _categorical,
    aten._standard_gamma.default: lambda node, take, call: call(torch.ops.pyrovi.standard_gamma.default, node.args[0]),
    aten._standard_gamma_grad.default: lambda node, take, call: call(torch.ops.pyrovi.standard_gamma_grad.default, *node.args),
}
"""How each draw of torch is made from outside noise. Gamma draws reject, and so cannot be; what is not here draws in its place."""

_library = torch.library.Library("pyrovi", "DEF")
_library.define("standard_gamma(Tensor concentration) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.define("standard_gamma_grad(Tensor concentration, Tensor value) -> Tensor")
_library.impl("standard_gamma", lambda a: torch._standard_gamma(a.contiguous()), "CompositeExplicitAutograd")
_library.impl(
    "standard_gamma_grad", lambda a, x: torch._standard_gamma_grad(a.contiguous(), x), "CompositeExplicitAutograd"
)  # torch's own have no rule for vmap
torch.library.register_fake("pyrovi::standard_gamma", lambda a: torch.empty_like(a, memory_format=torch.contiguous_format))
torch.library.register_fake("pyrovi::standard_gamma_grad", lambda a, x: torch.empty_like(x))


def _gamma_vmap(info: Any, dims: Any, a: torch.Tensor) -> tuple[torch.Tensor, int]:
    a = a.movedim(dims[0], 0) if dims[0] is not None else a.expand(info.batch_size, *a.shape)
    return torch.ops.pyrovi.standard_gamma(a), 0


def _gamma_grad_vmap(info: Any, dims: Any, *args: torch.Tensor) -> tuple[torch.Tensor, int]:
    a, x = (v.movedim(d, 0) if d is not None else v.expand(info.batch_size, *v.shape) for v, d in zip(args, dims, strict=True))
    return torch.ops.pyrovi.standard_gamma_grad(a, x), 0


torch.library.register_vmap("pyrovi::standard_gamma", _gamma_vmap)
torch.library.register_vmap("pyrovi::standard_gamma_grad", _gamma_grad_vmap)
