"""Tensor operations written down as they are carried out, and what one can say of an operation that was."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "Friendly",
    "NotTraceable",
    "Recorder",
    "in_place",
    "is_random",
    "is_view",
    "merge",
    "outline",
    "placeholder",
    "rerecord",
    "supersede",
]

aten = torch.ops.aten


class NotTraceable(Exception):
    """A function that cannot be one graph; the text says why."""


class Recorder(TorchDispatchMode):
    """Writes down every tensor operation as it is carried out.

    `make_fx` of torch does as much, but imports a compiler first, for some seconds, and takes ten times as long.
    """

    def __init__(
        self, root: torch.nn.Module, graph: Graph, nodes: Iterable[tuple[torch.Tensor, Node]], varying: Sequence[Node]
    ) -> None:
        super().__init__()
        self._root, self._graph = root, graph
        self._nodes = WeakTensorKeyDictionary()
        for tensor, node in nodes:
            self._nodes[tensor] = node
        self._varies = set(varying)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler in order to keep it out of here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._efficientzerotensor.default:  # of which backward passes make use, and nothing else knows
            func = aten.zeros.default
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        varies = torch.Tag.nondeterministic_seeded in func.tags or any(self.node(x) in self._varies for x in tensors)
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            # An index of whole numbers has the shape that it has; a mask's depends on its values.
            if varies if func is not aten.index.Tensor else any(self.node(x) in self._varies for x in tensors if x.dtype in MASKS):
                raise NotTraceable(
                    f"its course depends on the value of a parameter, a draw, a batch or one fit's own data ({func})"
                )
            if func in LOOKS:
                return func(*args, **kwargs)
        if func in CHECKS:
            return None
        if func is aten._is_all_true.default:  # how a distribution that validates asks, whatever Pyro's settings
            return torch.tensor(True)
        out = func(*args, **kwargs)
        source = self.node(args[0]) if tensors and args[0] is tensors[0] else None
        if source is not None and (func in IDENTITIES or (func in SAME and out.shape == args[0].shape)):
            self._nodes[out] = source
            return out
        node = self._graph.call_function(func, *tree_map(self._argument, (args, kwargs)))
        if varies:
            self._varies.add(node)
        if isinstance(out, torch.Tensor):
            node.meta["val"], self._nodes[out] = outline(out), node
        elif isinstance(out, (tuple, list)):
            node.meta["val"] = tree_map(lambda x: outline(x) if isinstance(x, torch.Tensor) else x, tuple(out))
            for i, part in enumerate(out):
                if isinstance(part, torch.Tensor):
                    item = self._graph.call_function(operator.getitem, (node, i))
                    self._varies |= {item} if varies else set()
                    item.meta["val"], self._nodes[part] = outline(part), item
        return out

    def varies(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's values are not the same in every step of every fit."""
        return self._nodes.get(tensor) in self._varies

    def _argument(self, value: Any) -> Any:
        return self.node(value) if isinstance(value, torch.Tensor) else value

    def node(self, tensor: torch.Tensor) -> Node:
        known: Node | None = self._nodes.get(tensor)
        if known is None:
            name = f"constant_{len(list(self._root.buffers()))}"
            self._root.register_buffer(name, tensor.detach())
            known = self._nodes[tensor] = self._graph.get_attr(name)
            known.meta["val"] = outline(tensor)
        return known


def outline(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's shape, strides and dtype without its memory."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


class Friendly(TorchFunctionMode):
    """Functions that look at values needlessly, in other words; those that take them out of torch, refused."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LEAVES_TORCH and self._recorder.varies(args[0]):
            raise NotTraceable(
                f"it takes the values of a parameter, a draw, a batch or one fit's own data out of torch ({func.__name__})"
            )
        if func is torch.nn.functional.one_hot and args:  # torch's looks whether all classes are below their number
            classes = args[1] if len(args) == 2 else (kwargs or {}).get("num_classes", -1)
            if classes > 0:
                return (args[0].unsqueeze(-1) == torch.arange(classes, device=args[0].device)).long()
        return func(*args, **(kwargs or {}))


LEAVES_TORCH = {getattr(torch.Tensor, name) for name in ("numpy", "tolist", "__array__", "__dlpack__", "data_ptr")}
MASKS = {torch.bool, torch.uint8}
LOOKS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
IDENTITIES = {aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten.lift.default}
CHECKS = {aten._assert_async.default, aten._assert_async.msg, aten._assert_tensor_metadata.default}


SAME = {aten.expand.default, aten.view.default}
"""Views that, where they keep the shape, are the tensor that they were given."""

NEUTRAL = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1}
"""Arithmetic that changes nothing with this for its second argument. It makes a copy, which may be written into."""


def rerecord(function: Callable[..., Any], examples: Sequence[torch.Tensor], names: Sequence[str] | None = None) -> GraphModule:
    """A pure function as one graph: of a graph that has been vectorised by `torch.func`, for instance."""
    root, graph = torch.nn.Module(), Graph()
    nodes = [
        placeholder(graph, name, x) for name, x in zip(names or [f"x{i}" for i in range(len(examples))], examples, strict=True)
    ]
    with torch.no_grad(), Recorder(root, graph, zip(examples, nodes, strict=True), nodes) as recorder:
        out = function(*examples)
    graph.output(tuple(recorder.node(value) for value in out))
    graph.eliminate_dead_code()
    merge(graph)
    return GraphModule(root, graph)


def placeholder(graph: Graph, name: str, example: torch.Tensor) -> Node:
    node = graph.placeholder(name)
    node.meta["val"] = outline(example)
    return node


def in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def is_view(node: Node) -> bool:
    if node.target is operator.getitem and isinstance(node.args[0], Node):  # one of several views, as `unbind` gives
        return is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and not schema.is_mutable and any(r.alias_info is not None for r in schema.returns))


def supersede(graph: Graph, node: Node, value: Node) -> None:
    """Let what comes after an in-place operation read the new value instead of the tensor that was written into."""
    target = node.args[0]
    if not isinstance(target, Node) or target.op != "call_function":
        raise NotTraceable(f"{node.target} changes a tensor that outlives the step")
    later, seen = False, []
    for other in graph.nodes:
        if other is node:
            later = True
        elif later and other in target.users and other is not value:
            seen.append(other)
    for other in seen:
        other.replace_input_with(target, value)


def merge(graph: Graph) -> None:
    """Compute once what is computed twice, and not at all what changes nothing."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if node.op == "get_attr":
            key: Any = ("get_attr", node.target)
        elif node.op == "call_function" and not is_random(node):
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        else:
            continue
        try:
            known = seen.setdefault(key, node)
        except TypeError:
            continue
        if known is not node:
            node.replace_all_uses_with(known)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _changes_nothing(node: Node) -> bool:
    if node.target not in NEUTRAL or len(node.args) != 2 or node.kwargs or isinstance(node.args[1], Node):
        return False
    x: Any = node.args[0]
    a, b = (n.meta.get("val") if isinstance(n, Node) else None for n in (x, node))
    same = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
    return same and bool(node.args[1] == NEUTRAL[node.target])


def is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    return value if isinstance(value, Node) else (type(value), value)
