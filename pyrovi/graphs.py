"""A function recorded once as a graph of tensor operations that is pure: everything that varies, noise included, is an input.

The function is run once, Pyro's handlers and the backward pass included, and its ATen operations are written down. The passes below
make a function in the mathematical sense of that graph, which can be batched, compiled and repeated.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pyrovi.errors import first_line

__all__ = ["NotTraceable", "Recorded", "record", "rerecord", "size_of"]

aten = torch.ops.aten


class NotTraceable(Exception):
    """A function that cannot be one graph; the text says why."""


@dataclass(frozen=True)
class Recorded:
    """A pure function, in two parts: what depends on the constants alone, and the rest.

    `prologue(*tensors)` gives the values that stay the same while the tensors do; `body(*inputs, normal, uniform, *fixed)` the
    function's own outputs. `normal` and `uniform` are vectors of as many random numbers as the two counts say.
    """

    body: GraphModule
    prologue: GraphModule
    normals: int
    uniforms: int
    tensor_of: tuple[tuple[int, ...], ...]
    """For every fixed value, which of the tensors it was computed from."""
    dtype: torch.dtype


class _Recorder(TorchDispatchMode):
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
            node.meta["val"], self._nodes[out] = _outline(out), node
        elif isinstance(out, (tuple, list)):
            node.meta["val"] = tree_map(lambda x: _outline(x) if isinstance(x, torch.Tensor) else x, tuple(out))
            for i, part in enumerate(out):
                if isinstance(part, torch.Tensor):
                    item = self._graph.call_function(operator.getitem, (node, i))
                    self._varies |= {item} if varies else set()
                    item.meta["val"], self._nodes[part] = _outline(part), item
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
            known.meta["val"] = _outline(tensor)
        return known


def _outline(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's shape, strides and dtype without its memory."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


class _Friendly(TorchFunctionMode):
    """Functions that look at values needlessly, in other words; those that take them out of torch, refused."""

    def __init__(self, recorder: _Recorder) -> None:
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


def _played(module: GraphModule, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """A graph's outputs; what it would write into is a copy, and must come back unchanged."""
    writes = any(_in_place(node) for node in module.graph.nodes if node.op == "call_function")
    held = {name: buffer.clone() if writes else buffer for name, buffer in module.named_buffers()}
    given = tuple(x.clone() if writes else x for x in arguments)
    with torch.no_grad():
        out = list(torch.func.functional_call(module, held, given))
    if writes and any(x._version for x in (*held.values(), *given)):
        raise NotTraceable("it changes a tensor that outlives the step")
    return out


def _close(a: torch.Tensor, b: torch.Tensor, ulps: float) -> bool:
    close = ulps * torch.finfo(a.dtype).eps
    return torch.allclose(a, b, rtol=close, atol=close * float(a.nan_to_num().abs().max()), equal_nan=True)


def record(
    function: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    flat: Mapping[str, torch.Tensor] | None = None,
    *,
    differing: Sequence[int] = (),
) -> Recorded:
    """Record a function of `inputs` that also reads `tensors` and the parameters `flat` from wherever it keeps them.

    The recording is played beside the function, from the same random numbers, and what the passes make of it beside the recording.

    Args:
        function: Of the inputs, which may be none; it returns tensors.
        inputs: Examples; their shapes are kept, their values are not.
        tensors: Tensors that the function knows by name or closure and that may be exchanged for others of their shape. Any
            other tensor that it reads is a constant of the graph.
        flat: Leaves that become slices of one vector, the body's first input, in this order.
        differing: Which of the tensors will not be the same for all that are served at once, so that no value of theirs may be
            looked at.

    Raises:
        NotTraceable: It looks at values while it runs, changes a tensor that outlives it, or gives another answer the second time.
    """
    flat = flat or {}
    dtypes = {leaf.dtype for leaf in flat.values()}
    if len(dtypes) > 1:
        raise NotTraceable(f"parameters of {len(dtypes)} dtypes do not make one vector")
    dtype = dtypes.pop() if dtypes else torch.get_default_dtype()
    root, graph = torch.nn.Module(), Graph()
    lifted = {i: _placeholder(graph, f"tensor_{i}", tensor) for i, tensor in enumerate(tensors)}
    vector = _placeholder(graph, "flat", torch.empty(sum(leaf.numel() for leaf in flat.values()), dtype=dtype))
    given = [_placeholder(graph, f"input_{i}", tensor) for i, tensor in enumerate(inputs)]
    leaves, start = [], 0
    for leaf in flat.values():
        part = graph.call_function(aten.slice.Tensor, (vector, 0, start, start + leaf.numel()))
        leaves.append(graph.call_function(aten.view.default, (part, list(leaf.shape))))
        leaves[-1].meta["val"] = _outline(leaf)
        start += leaf.numel()
    known = [
        *zip(tensors, lifted.values(), strict=True),
        *zip(inputs, given, strict=True),
        *zip(flat.values(), leaves, strict=True),
    ]
    values = torch.cat([leaf.detach().reshape(-1) for leaf in flat.values()]) if flat else torch.empty(0, dtype=dtype)
    recorder = _Recorder(root, graph, known, [vector, *given, *leaves, *(lifted[i] for i in differing)])
    try:
        with torch.random.fork_rng(devices=[]):
            elsewhere = random.getstate(), str(np.random.get_state())
            with _Friendly(recorder), recorder:
                out = function(*inputs)
            graph.output(tuple(recorder.node(value) for value in out))
            module = GraphModule(root, graph)
            state = torch.get_rng_state()
            wanted = [value.detach() for value in function(*inputs)]
            if (random.getstate(), str(np.random.get_state())) != elsewhere:
                raise NotTraceable("it draws random numbers outside of torch")
            torch.set_rng_state(state)
            # The same operations in the same order: a counter that moves a little must show.
            if not all(_close(a, b, 16) for a, b in zip(wanted, _played(module, *tensors, values, *inputs), strict=True)):
                raise NotTraceable("run twice it does not do the same: it keeps a state of its own")
            module.graph.eliminate_dead_code()
            normals, uniforms = _draw_outside(module, vector)
            _checks_as_nan(module)
            module.recompile()
            noise = [torch.randn(normals, dtype=dtype), torch.rand(uniforms, dtype=dtype)]
            state = torch.get_rng_state()
            wanted = _played(module, *tensors, values, *inputs, *noise)
            module = _functional(module)
            _merge(module.graph)
            by_name = {n.name: n for n in module.graph.nodes if n.op == "placeholder"}  # it may have been recorded anew
            lifted = {i: by_name[node.name] for i, node in lifted.items()}
            recorded = _split(module, lifted, len(tensors), normals, uniforms, dtype)
            torch.set_rng_state(state)
            got = _played(recorded.body, values, *inputs, *noise, *_played(recorded.prologue, *tensors))
            if not all(_close(a, b, 2**12) for a, b in zip(wanted, got, strict=True)):
                raise NotTraceable("what it writes in place has no pure form")
            return recorded
    except NotTraceable:
        raise
    except Exception as error:
        raise NotTraceable(f"{type(error).__name__}: {first_line(error)}") from error


def rerecord(function: Callable[..., Any], examples: Sequence[torch.Tensor], names: Sequence[str] | None = None) -> GraphModule:
    """A pure function as one graph: of a graph that has been vectorised by `torch.func`, for instance."""
    root, graph = torch.nn.Module(), Graph()
    nodes = [
        _placeholder(graph, name, x) for name, x in zip(names or [f"x{i}" for i in range(len(examples))], examples, strict=True)
    ]
    with torch.no_grad(), _Recorder(root, graph, zip(examples, nodes, strict=True), nodes) as recorder:
        out = function(*examples)
    graph.output(tuple(recorder.node(value) for value in out))
    graph.eliminate_dead_code()
    _merge(graph)
    return GraphModule(root, graph)


def _placeholder(graph: Graph, name: str, example: torch.Tensor) -> Node:
    node = graph.placeholder(name)
    node.meta["val"] = _outline(example)
    return node


def size_of(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem and isinstance(node.args[0], Node):  # one of several views, as `unbind` gives
        return _is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and not schema.is_mutable and any(r.alias_info is not None for r in schema.returns))


def _draw_outside(module: GraphModule, after: Node) -> tuple[int, int]:
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
        if (
            _in_place(node)
            and isinstance(target, Node)
            and (_is_view(target) or any(_is_view(u) and u < node for u in target.users))
        ):
            with graph.inserting_before(node):
                graph.call_function(aten.copy_.default, (target, drawn)).meta["val"] = node.meta["val"]
            drawn = target  # the write itself is `_functional`'s
        elif _in_place(node):
            _supersede(graph, node, drawn)
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
    probability: Any = _argument(node, 1, "p", 0.5) if _in_place(node) else node.args[0]
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


def _supersede(graph: Graph, node: Node, value: Node) -> None:
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


def _checks_as_nan(module: GraphModule) -> None:
    """A factorisation that fails gives NaN instead of an exception: for a batch of fits the others go on."""
    graph = module.graph
    for node in [n for n in graph.nodes if n.target is aten._linalg_check_errors.default]:
        info = node.args[0]
        factorised = info.args[0] if info.target is operator.getitem else None
        graph.erase_node(node)
        if factorised is None:
            continue
        for out in [u for u in factorised.users if u.target is operator.getitem and u is not info]:
            shape = out.meta["val"].dim() - info.meta["val"].dim()
            if not out.meta["val"].is_floating_point():
                continue
            users = list(out.users)
            with graph.inserting_after(max(out, info)):
                good = graph.call_function(aten.eq.Scalar, (info, 0))
            with graph.inserting_after(good):
                good_ = graph.call_function(aten.view.default, (good, [*info.meta["val"].shape, *(1,) * shape]))
            with graph.inserting_after(good_):
                nan = graph.call_function(aten.full_like.default, (out, float("nan")))
            with graph.inserting_after(nan):
                masked = graph.call_function(aten.where.self, (good_, out, nan))
            masked.meta["val"] = out.meta["val"]
            for user in users:
                user.replace_input_with(out, masked)


def _functional(module: GraphModule) -> GraphModule:
    """The same without in-place operations."""
    graph = module.graph
    for node in [n for n in graph.nodes if n.op == "call_function" and _in_place(n)]:
        target, packet = node.args[0], str(node.target._schema.name).split("::")[1]
        pure = getattr(getattr(aten, packet.removesuffix("_"), None), node.target._overloadname or "default", None)
        viewed = isinstance(target, Node) and (_is_view(target) or any(_is_view(u) for u in target.users))
        if pure is None or viewed or not packet.endswith("_"):
            return _functionalized(module)
        with graph.inserting_before(node):
            value = graph.call_function(pure, node.args, node.kwargs)
        value.meta["val"] = node.meta["val"]
        _supersede(graph, node, value)
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
    if any(_in_place(n) for n in again.graph.nodes if n.op == "call_function"):
        raise NotTraceable("it changes a tensor that outlives the step")
    _batchable(again.graph)
    return again


def _example(outline: torch.Tensor) -> torch.Tensor:
    values = torch.linspace(0.1, 0.9, outline.numel()) if outline.is_floating_point() else torch.zeros(outline.numel())
    return values.to(outline.dtype).reshape(outline.shape)


def _strided(node: Node) -> bool:
    return node.target in (aten.as_strided.default, aten.as_strided_scatter.default)


def _batchable(graph: Graph) -> None:
    """What in-place writes have become, in operations that vmap has rules for."""

    def call(op: Any, *args: Any, **options: Any) -> Node:
        node = graph.call_function(op, args, options)
        node.meta["val"] = _outline(op(*tree_map(lambda x: x.meta["val"] if isinstance(x, Node) else x, args), **options))
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


def _merge(graph: Graph) -> None:
    """Compute once what is computed twice, and not at all what changes nothing."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if node.op == "get_attr":
            key: Any = ("get_attr", node.target)
        elif node.op == "call_function" and not _random(node):
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


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    return value if isinstance(value, Node) else (type(value), value)


def _split(
    module: GraphModule, lifted: Mapping[int, Node], tensors: int, normals: int, uniforms: int, dtype: torch.dtype
) -> Recorded:
    """Part what depends on the tensors and constants alone from what depends on the inputs, parameters and noise."""
    graph = module.graph
    origin: dict[Node, frozenset[int]] = {node: frozenset([i]) for i, node in lifted.items()}
    for node in graph.nodes:
        if node.op == "get_attr":
            origin[node] = frozenset()
        elif node.op == "call_function" and not _random(node) and all(a in origin for a in node.all_input_nodes):
            origin[node] = frozenset().union(*(origin[a] for a in node.all_input_nodes))
    early = Graph(module)
    copies: dict[Node, Node] = {}
    for i in range(tensors):
        placeholder = early.placeholder(f"tensor_{i}")
        if i in lifted:
            copies[lifted[i]] = placeholder
    for node in graph.nodes:
        if node in origin and node not in copies:
            copies[node] = early.node_copy(node, lambda n: copies[n])
    kept = [n for n in origin if any(user not in origin for user in n.users) and isinstance(n.meta.get("val"), torch.Tensor)]
    tuples = [n for n in origin if not isinstance(n.meta.get("val"), torch.Tensor) and any(u not in origin for u in n.users)]
    if tuples:
        raise NotTraceable(f"{tuples[0].target} of constants gives no tensor")
    early.output(tuple(copies[n] for n in kept))
    early.eliminate_dead_code()
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for i, node in enumerate(kept):
        with graph.inserting_after(last):
            last = graph.placeholder(f"fixed_{i}")
        last.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(last)
    for node in reversed(list(graph.nodes)):
        if node in origin:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    for node in (*graph.nodes, *early.nodes):
        node.meta.clear()  # the values of the one run, which need not be kept
    module.recompile()
    return Recorded(module, GraphModule(module, early), normals, uniforms, tuple(tuple(sorted(origin[n])) for n in kept), dtype)
