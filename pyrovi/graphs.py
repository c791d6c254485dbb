"""A function recorded once as a graph of tensor operations that is pure: everything that varies, noise included, is an input.

The function is run once, Pyro's handlers and the backward pass included, and its ATen operations are written down. The passes below
make a function in the mathematical sense of that graph, which can be batched, compiled and repeated.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Graph, GraphModule, Node

from pyrovi.errors import first_line
from pyrovi.noise import draw_outside
from pyrovi.recording import Friendly, NotTraceable, Recorder, in_place, is_random, merge, outline, placeholder
from pyrovi.writes import functional

__all__ = ["Recorded", "record", "size_of"]

aten = torch.ops.aten


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
    lifted = {i: placeholder(graph, f"tensor_{i}", tensor) for i, tensor in enumerate(tensors)}
    vector = placeholder(graph, "flat", torch.empty(sum(leaf.numel() for leaf in flat.values()), dtype=dtype))
    given = [placeholder(graph, f"input_{i}", tensor) for i, tensor in enumerate(inputs)]
    leaves, start = [], 0
    for leaf in flat.values():
        part = graph.call_function(aten.slice.Tensor, (vector, 0, start, start + leaf.numel()))
        leaves.append(graph.call_function(aten.view.default, (part, list(leaf.shape))))
        leaves[-1].meta["val"] = outline(leaf)
        start += leaf.numel()
    known = [
        *zip(tensors, lifted.values(), strict=True),
        *zip(inputs, given, strict=True),
        *zip(flat.values(), leaves, strict=True),
    ]
    values = torch.cat([leaf.detach().reshape(-1) for leaf in flat.values()]) if flat else torch.empty(0, dtype=dtype)
    recorder = Recorder(root, graph, known, [vector, *given, *leaves, *(lifted[i] for i in differing)])
    try:
        with torch.random.fork_rng(devices=[]):
            elsewhere = random.getstate(), str(np.random.get_state())
            with Friendly(recorder), recorder:
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
            normals, uniforms = draw_outside(module, vector)
            _checks_as_nan(module)
            module.recompile()
            noise = [torch.randn(normals, dtype=dtype), torch.rand(uniforms, dtype=dtype)]
            state = torch.get_rng_state()
            wanted = _played(module, *tensors, values, *inputs, *noise)
            module = functional(module)
            merge(module.graph)
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


def _played(module: GraphModule, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """A graph's outputs; what it would write into is a copy, and must come back unchanged."""
    writes = any(in_place(node) for node in module.graph.nodes if node.op == "call_function")
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


def size_of(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


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


def _split(
    module: GraphModule, lifted: Mapping[int, Node], tensors: int, normals: int, uniforms: int, dtype: torch.dtype
) -> Recorded:
    """Part what depends on the tensors and constants alone from what depends on the inputs, parameters and noise."""
    graph = module.graph
    origin: dict[Node, frozenset[int]] = {node: frozenset([i]) for i, node in lifted.items()}
    for node in graph.nodes:
        if node.op == "get_attr":
            origin[node] = frozenset()
        elif node.op == "call_function" and not is_random(node) and all(a in origin for a in node.all_input_nodes):
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
