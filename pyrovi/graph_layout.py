"""Where the nodes and plates of a model's graph go: by generation from the top, plates as boxes that no stranger enters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Box", "Layout", "lay_out"]

HEIGHT, GAP, PAD, LABEL = 46.0, 26.0, 12.0, 18.0
"""Of a node, between nodes, within a plate's border, and of a plate's name, in pixels."""

SWEEPS, MOVES = 8, 12
"""Orders of the nodes that are tried, and rounds in which each moves towards its neighbours."""


@dataclass(frozen=True)
class Box:
    """A plate: its name as it is written, and where."""

    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Centres of nodes, plates from the outermost in, and the size of the whole, in pixels."""

    nodes: dict[str, tuple[float, float]]
    boxes: list[Box]
    width: float
    height: float


@dataclass
class _Item:
    """A node, or a plate with what is in it: `x` are centres from its left edge."""

    low: int
    high: int
    width: float
    x: dict[str, float]
    boxes: list[tuple[str, float, float, int, int, int]] = field(default_factory=list)
    """Label, left, width, first and last generation, plates nested in it and itself."""
    depth: int = 0


def lay_out(
    widths: Mapping[str, float],
    parents: Mapping[str, Sequence[str]],
    plates: Mapping[str, Sequence[str]],
    labels: Mapping[str, str],
) -> Layout:
    """Place a graph.

    Args:
        widths: Of every node, in an order in which parents come first.
        parents: By node.
        plates: By node, the plates that it is in. A plate that crosses another is drawn in parts.
        labels: By plate, what is written under it, in pixels six times as wide as long.
    """
    ranks = _generations(widths, parents)
    sizes = {plate: sum(plate in inside for inside in plates.values()) for plate in labels}
    paths = {name: tuple(sorted(plates[name], key=lambda plate: (-sizes[plate], plate))) for name in widths}
    edges = [(parent, name) for name in widths for parent in parents[name] if parent in widths]
    whole = _pack((), list(widths), paths, ranks, widths, edges, labels)
    row = HEIGHT + GAP + whole.depth * (2 * PAD + LABEL)
    top = whole.depth * PAD + 2
    nodes = {name: (x, top + HEIGHT / 2 + row * ranks[name]) for name, x in whole.x.items()}
    boxes = [
        Box(
            label,
            left,
            top + row * low - depth * PAD,
            width,
            row * (high - low) + HEIGHT + depth * (2 * PAD + LABEL),
        )
        for label, left, width, low, high, depth in whole.boxes
    ]
    bottom = max([y + HEIGHT / 2 for _, y in nodes.values()] + [box.y + box.height for box in boxes], default=0.0)
    return Layout(nodes, sorted(boxes, key=lambda box: -box.width * box.height), whole.width, bottom + 2)


def _generations(widths: Mapping[str, float], parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Each node below all of its parents, and those without any just above their children."""
    ranks: dict[str, int] = {}
    for name in widths:
        ranks[name] = max((ranks[p] + 1 for p in parents[name] if p in ranks), default=0)
    for name in widths:
        children = [ranks[child] for child in widths if name in parents[child]]
        if children and not any(p in ranks for p in parents[name]):
            ranks[name] = min(children) - 1
    return ranks


def _pack(
    path: tuple[str, ...],
    names: Sequence[str],
    paths: Mapping[str, tuple[str, ...]],
    ranks: Mapping[str, int],
    widths: Mapping[str, float],
    edges: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
) -> _Item:
    """What lies within the plates of a path, as one item."""
    items: list[_Item] = []
    done: set[str] = set()
    for name in names:
        if name in done:
            continue
        inner = paths[name][len(path) :]
        if inner:
            together = [other for other in names if paths[other][: len(path) + 1] == (*path, inner[0])]
            done.update(together)
            items.append(_bordered(_pack((*path, inner[0]), together, paths, ranks, widths, edges, labels), labels[inner[0]]))
        else:
            items.append(_Item(ranks[name], ranks[name], widths[name], {name: widths[name] / 2}))
    owner = {name: i for i, item in enumerate(items) for name in item.x}
    between = [(a, b) for a, b in edges if a in owner and b in owner and owner[a] != owner[b]]
    left = _places(items, owner, between)
    whole = _Item(
        min(item.low for item in items),
        max(item.high for item in items),
        max(left[i] + item.width for i, item in enumerate(items)),
        {name: left[i] + x for i, item in enumerate(items) for name, x in item.x.items()},
        depth=max(item.depth for item in items),
    )
    for i, item in enumerate(items):
        whole.boxes += [(label, left[i] + x, *rest) for label, x, *rest in item.boxes]  # type: ignore[misc]
    return whole


def _bordered(inside: _Item, label: str) -> _Item:
    width = max(inside.width + 2 * PAD, 2 * (6.2 * len(label) + 10))  # so that no arrow from the middle crosses the name
    shift = (width - inside.width) / 2
    depth = inside.depth + 1
    boxes = [(label, 0.0, width, inside.low, inside.high, depth)]
    boxes += [(name, x + shift, *rest) for name, x, *rest in inside.boxes]  # type: ignore[misc]
    return _Item(inside.low, inside.high, width, {name: x + shift for name, x in inside.x.items()}, boxes, depth)


def _places(items: Sequence[_Item], owner: Mapping[str, int], edges: Sequence[tuple[str, str]]) -> list[float]:
    """The left edge of each item: none beside another of the same generations overlaps it, and edges are short."""
    order, best, least = list(range(len(items))), [0.0] * len(items), float("inf")
    for _ in range(SWEEPS):
        left, front = [0.0] * len(items), dict[int, float]()
        for i in order:
            span = range(items[i].low, items[i].high + 1)
            left[i] = max(front.get(r, 0.0) for r in span)
            front |= dict.fromkeys(span, left[i] + items[i].width + GAP)
        for turn in range(MOVES):
            for i in order if turn % 2 else reversed(order):
                _move(i, left, order, items, owner, edges)
        length = sum(abs(_at(a, left, items, owner) - _at(b, left, items, owner)) for a, b in edges)
        if length < least - 1e-6:
            best, least = list(left), length
        wish = {i: _wish(i, left, items, owner, edges) for i in order}
        order = sorted(order, key=lambda i: left[i] + items[i].width / 2 + wish[i])
    start = min(best)
    return [x - start for x in best]


def _at(name: str, left: Sequence[float], items: Sequence[_Item], owner: Mapping[str, int]) -> float:
    return left[owner[name]] + items[owner[name]].x[name]


def _wish(
    i: int, left: Sequence[float], items: Sequence[_Item], owner: Mapping[str, int], edges: Sequence[tuple[str, str]]
) -> float:
    """How far to the right an item's neighbours would have it."""
    pulls = [
        (1 if owner[a] == i else -1) * (_at(b, left, items, owner) - _at(a, left, items, owner))
        for a, b in edges
        if i in (owner[a], owner[b])
    ]
    return sum(pulls) / len(pulls) if pulls else 0.0


def _move(
    i: int,
    left: list[float],
    order: Sequence[int],
    items: Sequence[_Item],
    owner: Mapping[str, int],
    edges: Sequence[tuple[str, str]],
) -> None:
    """Towards its neighbours, as far as those beside it leave room."""
    place = order.index(i)

    def beside(j: int) -> bool:
        return items[j].low <= items[i].high and items[i].low <= items[j].high

    low = max((left[j] + items[j].width + GAP for j in order[:place] if beside(j)), default=float("-inf"))
    high = min((left[j] - GAP - items[i].width for j in order[place + 1 :] if beside(j)), default=float("inf"))
    left[i] = min(max(left[i] + _wish(i, left, items, owner, edges), low), high) if low <= high else left[i]
