"""A recorded graph without operations in place: what is written into a tensor, as a new tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map

from pyrovi.errors import first_line
from pyrovi.recording import NotTraceable, in_place, is_view, outline, rerecord, supersede

__all__ = ["functional"]

aten = torch.ops.aten


def functional(module: GraphModule) -> GraphModule:
    """The same without in-place operations."""
    graph = module.graph
    for node in [n for n in graph.nodes if n.op == "call_function" and in_place(n)]:
        target, packet = node.args[0], str(node.target._schema.name).split("::")[1]
        pure = getattr(getattr(aten, packet.removesuffix("_"), None), node.target._overloadname or "default", None)
        viewed = isinstance(target, Node) and (is_view(target) or any(is_view(u) for u in target.users))
        if pure is None or viewed or not packet.endswith("_"):
            return _functionalized(module)
        with graph.inserting_before(node):
            value = graph.call_function(pure, node.args, node.kwargs)
        value.meta["val"] = node.meta["val"]
        supersede(graph, node, value)
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _functionalized(module: GraphModule) -> GraphModule:
    """The same by torch's own means, which run it anew."""
    module.graph.eliminate_dead_code()
    module.recompile()
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    try:
        examples = [_example(n.meta["val"]) for n in inputs]
        again = rerecord(torch.func.functionalize(module), examples, [n.name for n in inputs])
    except Exception as error:
        raise NotTraceable(f"an in-place operation has no pure form ({first_line(error)})") from error
    if any(in_place(n) for n in again.graph.nodes if n.op == "call_function"):
        raise NotTraceable("it changes a tensor that outlives the step")
    _batchable(again.graph)
    return again


def _example(shape: torch.Tensor) -> torch.Tensor:
    values = torch.linspace(0.1, 0.9, shape.numel()) if shape.is_floating_point() else torch.zeros(shape.numel())
    return values.to(shape.dtype).reshape(shape.shape)


def _strided(node: Node) -> bool:
    return node.target in (aten.as_strided.default, aten.as_strided_scatter.default)


def _batchable(graph: Graph) -> None:
    """What in-place writes have become, in operations that vmap has rules for."""

    def call(op: Any, *args: Any, **options: Any) -> Node:
        node = graph.call_function(op, args, options)
        node.meta["val"] = outline(op(*tree_map(lambda x: x.meta["val"] if isinstance(x, Node) else x, args), **options))
        return node

    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta["val"], torch.Tensor):
            continue
        new, shape = None, list(node.meta["val"].shape)
        with graph.inserting_before(node):
            if node.target is aten.slice_scatter.default and len(node.args) > 4:  # an end that stands for infinity is added to
                node.update_arg(4, min(node.args[4], node.args[0].meta["val"].shape[node.args[2]]))
            elif node.target is aten.copy.default and (node.meta["val"].is_contiguous() or not any(map(_strided, node.users))):
                new = call(aten.expand.default, call(aten.to.dtype, node.args[1], node.meta["val"].dtype), shape)
                new = call(aten.clone.default, new, memory_format=torch.contiguous_format)
            elif node.target is aten.view.default:  # what is written need not lie in memory as it did
                node.target = aten.reshape.default
            elif node.target is aten.fill.Scalar:
                new = call(aten.full_like.default, *node.args)
            elif _strided(node):
                base, where = node.args[0], node.args[-3:] if isinstance(node.args[-1], int) else node.args[-2:]
                scatters = node.target is aten.as_strided_scatter.default
                strides = [stride for size, stride in zip(*where[:2], strict=True) if size > 1]
                if scatters and list(where[0]) == shape and strides == sorted(strides, reverse=True):
                    new = node.args[1]  # all of it is written
                elif base.meta["val"].is_contiguous():
                    places = call(aten.as_strided.default, call(aten.arange.default, base.meta["val"].numel()), *where)
                    flat = call(aten.reshape.default, base, [-1])
                    if scatters:
                        parts = [call(aten.reshape.default, x, [-1]) for x in (places, node.args[1])]
                        new = call(aten.view.default, call(aten.index_put.default, flat, parts[:1], parts[1]), shape)
                    else:
                        new = call(aten.index.Tensor, flat, [places])
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
