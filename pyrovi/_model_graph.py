"""`model_graph`: a picture of a model, as its story is drawn: sites, what depends on what, plates, what is observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch

from pyrovi._isolation import Parameters, isolated
from pyrovi._typing import Data, Guide, Model, Path
from pyrovi.arguments import check_arguments, columns_taken
from pyrovi.errors import GuideError, ModelError, PyroviError, SettingsError, first_line
from pyrovi.graph_layout import HEIGHT, Layout, lay_out
from pyrovi.inputs import as_dtype, clone, matching_arguments, to_tensors
from pyrovi.structure import Structure
from pyrovi.tracing import run

__all__ = ["ModelGraph", "Node", "model_graph"]

LONGEST = 26
"""Letters of a name, or of a distribution with its shape, that have room in a node."""

HEADING = 30.0


@dataclass(frozen=True)
class Node:
    """A site of a program, or a parameter.

    Attributes:
        name: Its name.
        what: Its distribution's name, with the shape of its value where that is more than its plates'; or "parameter".
        kind: `latent`, `observed`, `deterministic`, `factor` or `parameter`.
        parents: What its distribution depends on.
        plates: The plates that it is in, from the outermost.
    """

    name: str
    what: str
    kind: str
    parents: tuple[str, ...]
    plates: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class ModelGraph:
    """The graph of a model, and of a guide where one was given. A notebook shows it; `save` writes it.

    Attributes:
        nodes: By program, `"model"` and `"guide"`, its sites in the order in which it meets them.
        plates: Sizes by name.
        svg: The picture, an SVG element whose lines and letters take the colour of the text around it.
    """

    nodes: Mapping[str, tuple[Node, ...]]
    plates: Mapping[str, int]
    svg: str

    def __repr__(self) -> str:
        lines = []
        for program, nodes in self.nodes.items():
            lines += [f"{program}:"] if len(self.nodes) > 1 else []
            for node in nodes:
                given = f" | {', '.join(node.parents)}" if node.parents else ""
                within = f"  [{', '.join(f'{p} {self.plates[p]:,}' for p in node.plates)}]" if node.plates else ""
                seen = {"latent": "", "parameter": ""}.get(node.kind, f", {node.kind}")
                lines.append(f"{node.name} ~ {node.what}{given}{within}{seen}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<div style='overflow-x:auto'>{self.svg}</div>"

    def save(self, path: Path) -> None:
        """Write the picture as an SVG file.

        Raises:
            SettingsError: The name does not end in `.svg`.
        """
        target = FilePath(path)
        if target.suffix != ".svg":
            raise SettingsError(f"a model's graph is written as SVG; name the file {target.with_suffix('.svg').name!r}")
        target.write_text(self.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1), encoding="utf-8")


def model_graph(
    model: Model,
    data: Data | None = None,
    guide: Guide | None = None,
    *,
    parameters: bool = False,
    dtype: str | torch.dtype | None = None,
) -> ModelGraph:
    """Draw a model: an ellipse a site, shaded where observed, an arrow for what depends on what, a box a plate.

    The model is run once at draws from its prior, and what each site's density depends on is read off that run by Pyro's
    `get_model_relations`: a dependence that this run does not take, behind an `if` for instance, is not seen. No program from
    elsewhere is needed to draw it, and Pyro's parameter store and the random number generators are as they were.

    Args:
        model: The model.
        data: Its arguments by name, as for `fit`.
        guide: A guide function, to be drawn beside it.
        parameters: Whether to draw what `pyro.param` makes, too; networks have many.
        dtype: Of floating data; torch's default when None.

    Returns:
        A `ModelGraph`, which a notebook shows; `.save("model.svg")` writes it, and as text it is a list of the sites.

    Raises:
        DataError, ModelError, GuideError: The program cannot be run on the data.
        SettingsError: The guide is a name: those have a factor for every latent, or one for all.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> pyrovi.model_graph(model, {"y": [1.0, 2.0, 3.0]})
        mu ~ Normal
        y ~ Normal | mu  [data 3], observed
    """
    if guide is not None and (isinstance(guide, (str, type)) or not callable(guide)):
        raise SettingsError(f"the guide to draw must be a function or a module; got {guide!r:.60}, which has nothing to draw")
    kind, device = as_dtype(dtype), torch.device("cpu")
    tensors = to_tensors(columns_taken(model, data)[0], kind, device)
    check_arguments(model, tensors)
    programs: dict[str, Callable[..., Any]] = {"model": model}
    if guide is not None:
        programs["guide"] = matching_arguments(guide, tensors, model)
    found: dict[str, tuple[Node, ...]] = {}
    sizes: dict[str, int] = {}
    for name, program in programs.items():
        with isolated(0, kind, device):
            own, _ = clone(program, None, kind, device)
            try:
                found[name], more = _read(own, tensors, ModelError if name == "model" else GuideError, parameters)
            finally:
                registered = Parameters.registered()
                registered.give_back(registered.values())
        sizes |= more
    return ModelGraph(found, sizes, _drawn(found, sizes))


def _read(
    program: Callable[..., Any], data: Mapping[str, Any], error: type[PyroviError], parameters: bool
) -> tuple[tuple[Node, ...], dict[str, int]]:
    """The nodes of a program, and the sizes of its plates."""
    from pyro.infer.inspect import get_model_relations

    structure = Structure.of(run(program, data, error))
    try:
        relations: dict[str, Any] = get_model_relations(program, model_kwargs=dict(data), include_deterministic=True)
    except Exception as exception:
        raise error(f"what depends on what could not be read off the program: {first_line(exception)}") from exception
    nodes = []
    if parameters:
        nodes = [Node(name, "parameter", "parameter", (), ()) for name in relations["param_constraint"]]
    for name, site in structure.sites.items():
        if name not in relations["sample_dist"]:
            continue
        inside = {plate.dim: plate for plate in site.plates}
        own = [n for i, n in enumerate(site.batch_shape) if i - len(site.batch_shape) not in inside and n != 1]
        shape = (*own, *site.shape[len(site.batch_shape) :])
        what = str(relations["sample_dist"][name]) if site.kind != "deterministic" else "deterministic"
        above = [*relations["sample_sample"][name], *(relations["sample_param"][name] if parameters else [])]
        within = tuple(plate.name for plate in site.plates)
        said = f"{what} {'×'.join(map(str, shape))}" if shape else what
        nodes.append(Node(name, said, site.kind, tuple(n for n in above if n != name), within))
    return tuple(nodes), {plate.name: plate.size for plate in structure.plates.values()}


def _drawn(programs: Mapping[str, tuple[Node, ...]], sizes: Mapping[str, int]) -> str:
    """The programs beside each other."""
    from markupsafe import escape

    parts, across, height = [], 0.0, 0.0
    for program, nodes in programs.items():
        layout = _layout(nodes, sizes)
        top = HEADING if len(programs) > 1 else 0.0
        heading = f"<text x='0' y='14' font-size='13' font-weight='600'>{program}</text>" if top else ""
        parts.append(f"<g transform='translate({across + 4:.1f} 2)'>{heading}<g transform='translate(0 {top})'>")
        parts.append(_body(nodes, layout) + "</g></g>")
        across, height = across + layout.width + 60, max(height, layout.height + top)
    names = "; ".join(f"{program}: {', '.join(node.name for node in nodes)}" for program, nodes in programs.items())
    width, height = max(across - 60, 0) + 8, height + 4
    arrow = (
        "<marker id='pyrovi-arrow' viewBox='0 0 8 8' refX='8' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
        "<path d='M0 0 8 4 0 8z' fill='currentColor'/></marker>"
    )
    return (
        f"<svg role='img' aria-label='{escape('Graph of ' + names)}' width='{width:.0f}' height='{height:.0f}' "
        f"viewBox='0 0 {width:.1f} {height:.1f}' font-family='system-ui, sans-serif' fill='currentColor' "
        f"style='max-width:none'><defs>{arrow}</defs>{''.join(parts)}</svg>"
    )


def _layout(nodes: tuple[Node, ...], sizes: Mapping[str, int]) -> Layout:
    widths = {n.name: 30 + max(8.2 * len(_short(n.name)), 6.4 * len(_short(n.what))) for n in nodes}
    labels = {plate: f"{_short(plate)}  {size:,}" for plate, size in sizes.items()}
    return lay_out(widths, {n.name: n.parents for n in nodes}, {n.name: n.plates for n in nodes}, labels)


def _body(nodes: tuple[Node, ...], layout: Layout) -> str:
    """Plates, arrows and nodes of one program."""
    from markupsafe import escape

    parts = []
    for box in layout.boxes:
        parts.append(
            f"<rect x='{box.x:.1f}' y='{box.y:.1f}' width='{box.width:.1f}' height='{box.height:.1f}' rx='6' fill='none' "
            f"stroke='currentColor' stroke-opacity='.55'/><text x='{box.x + box.width - 8:.1f}' y='{box.y + box.height - 7:.1f}' "
            f"font-size='11' text-anchor='end'>{escape(box.label)}</text>"
        )
    half = {n.name: (15 + max(4.1 * len(_short(n.name)), 3.2 * len(_short(n.what))), HEIGHT / 2) for n in nodes}
    for node in nodes:
        for parent in node.parents:
            if parent in layout.nodes:
                parts.append(_arrow(parent, node.name, layout, half))
    for node in nodes:
        (x, y), (a, b) = layout.nodes[node.name], half[node.name]
        fill = "fill='currentColor' fill-opacity='.18'" if node.kind == "observed" else "fill='none'"
        dashed = " stroke-dasharray='4 3'" if node.kind == "deterministic" else ""
        outline = f"{fill} stroke='currentColor'{dashed}"
        if node.kind == "parameter":
            shape = ""
        elif node.kind in ("deterministic", "factor"):
            shape = f"<rect x='{x - a:.1f}' y='{y - b:.1f}' width='{2 * a:.1f}' height='{2 * b:.1f}' rx='4' {outline}/>"
        else:
            shape = f"<ellipse cx='{x:.1f}' cy='{y:.1f}' rx='{a:.1f}' ry='{b:.1f}' {outline}/>"
        seen = " (observed)" if node.kind == "observed" else ""
        parts.append(
            f"<g><title>{escape(f'{node.name} ~ {node.what}{seen}')}</title>{shape}"
            f"<text x='{x:.1f}' y='{y - 2:.1f}' font-size='13' font-weight='600' text-anchor='middle'>{escape(_short(node.name))}"
            "</text>"
            f"<text x='{x:.1f}' y='{y + 13:.1f}' font-size='11' text-anchor='middle'>{escape(_short(node.what))}</text></g>"
        )
    return "".join(parts)


def _arrow(start: str, end: str, layout: Layout, half: Mapping[str, tuple[float, float]]) -> str:
    """From border to border; bent where the straight way would cross a node."""
    at = layout.nodes
    others = [(at[name], half[name]) for name in at if name not in (start, end)]
    best, fewest = "", math.inf
    for bend in (0.0, 50.0, -50.0, 100.0, -100.0, 160.0, -160.0, 240.0, -240.0):
        (x0, y0), (x1, y1) = at[start], at[end]
        middle = ((x0 + x1) / 2 + bend, (y0 + y1) / 2)
        p, q = _border((x0, y0), half[start], middle), _border((x1, y1), half[end], middle)
        way = [_along(p, middle, q, t / 24) for t in range(1, 24)]
        crossed = sum(_inside(point, other) for other in others for point in way)
        crossed += sum(5 for x, _ in way if not 0 <= x <= layout.width)  # cut off
        if crossed < fewest:
            fewest = crossed
            curve = f"Q{middle[0]:.1f} {middle[1]:.1f} " if bend else "L"
            best = f"M{p[0]:.1f} {p[1]:.1f} {curve}{q[0]:.1f} {q[1]:.1f}"
        if not crossed:
            break
    return f"<path d='{best}' fill='none' stroke='currentColor' stroke-width='1.1' marker-end='url(#pyrovi-arrow)'/>"


def _border(centre: tuple[float, float], half: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line from an ellipse's centre leaves it."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    scale = 1 / math.hypot(dx / half[0], dy / half[1]) if dx or dy else 0.0
    return centre[0] + scale * dx, centre[1] + scale * dy


def _along(p: tuple[float, float], middle: tuple[float, float], q: tuple[float, float], t: float) -> tuple[float, float]:
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return a * p[0] + b * middle[0] + c * q[0], a * p[1] + b * middle[1] + c * q[1]


def _inside(point: tuple[float, float], node: tuple[tuple[float, float], tuple[float, float]]) -> bool:
    (x, y), (a, b) = node
    return ((point[0] - x) / (a + 3)) ** 2 + ((point[1] - y) / (b + 3)) ** 2 < 1


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
