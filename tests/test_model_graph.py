"""`model_graph`: what the model says, laid out so that nothing overlaps, and Pyro left as it was."""

import itertools
import xml.etree.ElementTree as ET

import pyro
import pyro.distributions as dist
import pyro.nn
import pytest
import torch

import pyrovi
from pyrovi.graph_layout import HEIGHT, lay_out

HOSTILE = "<script>alert(1)</script>"


def schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.deterministic("theta", mu + tau * pyro.sample("z", dist.Normal(0.0, 1.0)))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


DATA = {"y": [28.0, 8.0, -3.0], "s": [15.0, 10.0, 16.0]}


def named(graph, program="model"):
    return {node.name: node for node in graph.nodes[program]}


def test_graph_has_the_models_sites_parents_and_plates():
    graph = pyrovi.model_graph(schools, DATA)
    nodes = named(graph)
    assert list(nodes) == ["mu", "tau", "z", "theta", "y"]
    assert set(nodes["theta"].parents) == {"mu", "tau", "z"}
    assert nodes["y"].parents == ("theta",)
    assert nodes["y"].plates == ("school",)
    assert graph.plates == {"school": 3}
    assert (nodes["y"].kind, nodes["theta"].kind, nodes["mu"].kind) == ("observed", "deterministic", "latent")
    assert "y ~ Normal | theta  [school 3], observed" in repr(graph)


def test_picture_has_a_shape_a_site_and_the_observed_one_is_shaded():
    svg = ET.fromstring(pyrovi.model_graph(schools, DATA).svg)
    ellipses = list(svg.iter("ellipse"))
    assert len(ellipses) == 4
    assert [e.get("fill") for e in ellipses].count("currentColor") == 1
    dashed = [r for r in svg.iter("rect") if r.get("stroke-dasharray")]
    assert len(dashed) == 1
    assert len([p for p in svg.iter("path") if p.get("marker-end")]) == 4
    assert "school  3" in [t.text for t in svg.iter("text")]


def test_guide_is_drawn_beside_the_model_with_its_parameters():
    recipe = pyrovi.recipe("gamma_poisson")
    graph = pyrovi.model_graph(recipe.model, recipe.load(), recipe.guide, parameters=True)
    assert set(named(graph, "guide")["theta"].parents) == {"alpha", "beta"}
    texts = [t.text for t in ET.fromstring(graph.svg).iter("text")]
    assert {"model", "guide", "alpha", "beta"} <= set(texts)
    with pytest.raises(pyrovi.SettingsError, match="must be a function"):
        pyrovi.model_graph(recipe.model, recipe.load(), "normal")


def test_pyro_and_the_users_modules_are_left_as_they_were():
    net = torch.nn.Linear(1, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loose = torch.tensor(1.0)

    def model(x, y):
        pyro.module("net", net)
        w = pyro.sample("w", dist.Normal(pyro.param("loc", loose), 1.0))
        pyro.sample("y", dist.Normal(net(x[:, None])[:, 0] * w, 1.0).to_event(1), obs=y)

    state = torch.get_rng_state()
    pyrovi.model_graph(model, {"x": [1.0, 2.0], "y": [0.0, 1.0]})
    assert not list(pyro.get_param_store().keys())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not loose.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_a_module_given_as_the_model_is_not_run_itself():
    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1)

        def forward(self, x, y):
            mean = self.norm(x[:, None])[:, 0] + pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    model = Model()
    pyrovi.model_graph(model, {"x": [1.0, 2.0], "y": [0.0, 1.0]})
    assert model.norm.num_batches_tracked == 0


def test_hostile_names_stay_text():
    def model(x):
        w = pyro.sample(HOSTILE, dist.Normal(0.0, 1.0))
        with pyro.plate(f"{HOSTILE} plate", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    graph = pyrovi.model_graph(model, {"x": [1.0, 2.0]})
    assert HOSTILE not in graph._repr_html_()
    assert f"{HOSTILE} ~ Normal" in [t.text for t in ET.fromstring(graph.svg).iter("title")]


def test_save_writes_svg_and_nothing_else(tmp_path):
    graph = pyrovi.model_graph(schools, DATA)
    graph.save(tmp_path / "graph.svg")
    assert ET.parse(tmp_path / "graph.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    with pytest.raises(pyrovi.SettingsError, match=r"name the file 'graph\.svg'"):
        graph.save(tmp_path / "graph.png")


def test_mistakes_are_one_sentence():
    with pytest.raises(pyrovi.DataError, match="needs data named 's'"):
        pyrovi.model_graph(schools, {"y": [1.0]})

    def broken(y):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        raise RuntimeError("no such thing")

    with pytest.raises(pyrovi.ModelError, match="at or after site 'a'"):
        pyrovi.model_graph(broken, {"y": [1.0]})


GRAPHS = {
    "chain": ({"a": (), "b": ("a",), "c": ("b",)}, {}),
    "fan": ({**{c: () for c in "abcdefg"}, "y": tuple("abcdefg")}, {"y": ("data",)}),
    "nested": ({"m": (), "a": ("m",), "b": ("a",), "y": ("b", "m")}, {"a": ("g",), "b": ("g", "i"), "y": ("g", "i")}),
    "crossed": ({"a": (), "b": (), "y": ("a", "b")}, {"a": ("r",), "b": ("c",), "y": ("r", "c")}),
    "two plates": ({"m": (), "a": ("m",), "b": ("m",), "y": ("a",), "z": ("b",)}, dict(a="p", y="p", b="q", z="q")),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_no_two_nodes_overlap_and_no_stranger_is_in_a_plate(name):
    parents, plates = GRAPHS[name]
    plates = {node: tuple(plates.get(node, ())) for node in parents}
    widths = dict.fromkeys(parents, 80.0)
    layout = lay_out(widths, parents, plates, {p: f"{p} 3" for inside in plates.values() for p in inside})
    for (x, y), (u, v) in itertools.combinations(layout.nodes.values(), 2):
        assert abs(x - u) >= 80 or abs(y - v) >= HEIGHT
    for child, above in parents.items():
        assert all(layout.nodes[parent][1] < layout.nodes[child][1] for parent in above)
    for box in layout.boxes:
        plate = box.label.split()[0]
        for node, (x, y) in layout.nodes.items():
            if box.x < x < box.x + box.width and box.y < y < box.y + box.height:
                assert plate in plates[node]
    for node, inside in plates.items():
        x, y = layout.nodes[node]
        around = {b.label.split()[0] for b in layout.boxes if b.x < x < b.x + b.width and b.y < y < b.y + b.height}
        assert around == set(inside)
