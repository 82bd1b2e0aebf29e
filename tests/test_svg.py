"""Pictures: what is drawn, that names stay inert, that bytes repeat, that layouts end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from graphir.ir.dims import symbol
from graphir.ir.graph import Graph
from graphir.lang.diagnostic import EnvironmentProblem, GraphirError
from graphir.view import svg as svg_module
from graphir.view.boxes import measure
from graphir.view.dot import dot
from graphir.view.picture import MOST_BOXES, picture
from graphir.view.svg import layout, svg

from sketch import Sketch, odds, stack, tensor

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ['<script>alert("1")</script>', '"]; evil [label="', "a&b<!--", "back\\slash\\n", "<b>html</b>", "nul\x00\x1b\ud800"]
HOSTILE += ["{a|b}", "x" * 500]


def motley(layers: int) -> Graph:
    """A stack of layers in no order that would fold."""
    order = Random(0)
    return stack([order.choice(["relu", "tanh", "silu", "gelu", "sigmoid"]) for _ in range(layers)])


def read(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [item.text or "" for item in root.iter(f"{SVG}text")]


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [g for g in root.iter(f"{SVG}g") if name in g.attrib.get("class", "").split()]


def test_odds() -> None:
    root = read(svg(odds()))
    assert {"Odds", "x", "linear", "filter", "3 → 4", "5 → 4", "high", "low", "B×8"} <= set(texts(root))
    assert [len(of_class(root, kind)) for kind in ("stitch", "filter", "fork", "router", "input", "output")] == [2, 1, 1, 1, 1, 1]
    drawn = [g for g in root.iter(f"{SVG}g") if g.attrib.get("id", "").startswith("node-")]
    assert len(drawn) == len(odds().nodes)


def test_ids_are_unique_and_stable() -> None:
    root = read(svg(stack(["relu"] * 3), fold=False))
    found = [item.attrib["id"] for item in root.iter() if "id" in item.attrib]
    assert len(found) == len(set(found))
    assert "node-layers.1.mlp.up" in found
    assert "scope-layers.2" in found


def test_tooltips_tell_path_op_weights_and_types() -> None:
    root = read(svg(odds()))
    node = next(g for g in root.iter(f"{SVG}g") if g.attrib.get("id") == "node-filter.high.linear")
    tooltip = node.find(f"{SVG}title").text
    for part in ("filter.high.linear", "linear(out=3", "float[B, 8] -> float[B, 3]", "filter.high.linear.weight: [3, 8]"):
        assert part in tooltip


def test_repeats_are_drawn_once() -> None:
    one, many = picture(stack(["relu"])), picture(stack(["relu"] * 40))
    assert len(many.boxes) == len(one.boxes)
    assert [c.count for c in many.clusters if c.count > 1] == [40]
    assert "×40" in texts(read(svg(stack(["relu"] * 40))))
    apart = picture(stack(["relu"] * 4), fold=False, depth="all")
    assert len(apart.boxes) == len(stack(["relu"] * 4).nodes) + 2
    assert all(c.count == 1 for c in apart.clusters)


def test_nested_repeats() -> None:
    counts = [c.count for c in picture(stack((["relu"] * 7 + ["tanh"]) * 6)).clusters if c.count > 1]
    assert counts == [6, 7]


def test_edges_of_a_fold_are_those_of_its_first_copy() -> None:
    drawn = picture(stack(["relu"] * 12), depth=1)
    pairs = {(e.source.title, e.target.title) for e in drawn.edges}
    assert pairs == {("tokens", "embedding"), ("embedding", "Layer"), ("Layer", "linear"), ("linear", "logits")}


def test_default_depth_stays_small() -> None:
    graph = motley(100)
    assert len(graph.nodes) > 3 * MOST_BOXES
    assert len(picture(graph).boxes) <= MOST_BOXES + 2
    assert len(picture(graph, depth="all").boxes) > len(picture(graph, depth=1).boxes)


def test_shared_weights_bear_a_mark_and_later_uses_are_dashed() -> None:
    drawn = picture(stack(["relu", "tanh"], owners=["ffn", "ffn"]))
    marks = {(frame.ident, mark.name, mark.first) for frame in [*drawn.boxes, *drawn.clusters] for mark in frame.marks}
    assert marks == {
        ("node-emb", "emb", True), ("node-head", "emb", False), ("scope-layers.0.mlp", "ffn", True), ("scope-layers.1.mlp", "ffn", False),
    }
    root = read(svg(stack(["relu"])))
    head = next(g for g in root.iter(f"{SVG}g") if g.attrib.get("id") == "node-head")
    assert "again" in head.find(f"{SVG}rect").attrib["class"]


def test_shapes_are_told_where_they_change() -> None:
    labels = [edge.label for edge in picture(stack(["relu"])).edges if edge.label]
    assert labels == ["B×T×8", "B×T×32", "B×T×8"]


def test_backends_are_tagged_once() -> None:
    sketch, x = Sketch(), tensor(symbol("B"), 4)
    h = sketch.linear("a.one", x, 4, frames=["Half"], backend="mlx")
    h = sketch.linear("a.two", h, 5, frames=["Half"], backend="mlx")
    graph = sketch.graph("Mixed", {"x": x}, {"y": sketch.linear("b", h, 4, backend="inductor")})
    drawn = picture(graph)
    tags = [(frame.ident, frame.backend) for frame in [*drawn.clusters, *drawn.boxes] if frame.backend]
    assert tags == [("scope-a", "mlx"), ("node-b", "inductor")]


def test_frozen_weights_say_so() -> None:
    sketch, x = Sketch(), tensor(symbol("B"), 4)
    h = sketch.linear("a", x, 4, frozen=True)
    drawn = picture(sketch.graph("Frozen", {"x": x}, {"y": sketch.linear("b", h, 4)}))
    assert [box.note for box in drawn.boxes if box.title == "linear"] == ["out=4 bias=false · 16 frozen", "out=4 bias=false · 16"]


def test_auxiliary_outputs_are_not_the_architecture() -> None:
    sketch, x = Sketch(), tensor(symbol("B"), 4)
    y, loss = sketch.linear("a", x, 4), sketch.linear("side", x, 1)
    graph = sketch.graph("Aux", {"x": x}, {"y": y}, aux=(("loss", loss),))
    assert [box.title for box in picture(graph).boxes] == ["x", "linear", "y"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_inert(name: str) -> None:
    sketch, x = Sketch(), tensor(symbol("B"), 4)
    y = sketch.linear(f"{name}.{name}", x, 4, owner=name, frames=[name], backend=name)
    y = sketch.one(f"{name}.op", name, y, frames=[name], note=name)
    y = sketch.node("f", "filter", (y, y), (y.type,), branches=(name,))[0]
    y = sketch.linear(f"again.{name}", y, 4, owner=name)
    graph = sketch.graph(name, {name: x}, {name: y})
    for depth in (1, "all"):
        text = svg(graph, depth=depth)
        root = read(text)
        known = {f"{SVG}{tag}" for tag in ("svg", "style", "g", "title", "text", "rect", "path", "polygon", "circle")}
        assert {item.tag for item in root.iter()} <= known
        assert all(key in ("id", "class") or not key.startswith("on") for item in root.iter() for key in item.attrib)
        for item in root.iter():
            if "id" in item.attrib:
                assert re.fullmatch(r"[A-Za-z0-9_.-]+", item.attrib["id"])


def test_words_fit_their_boxes() -> None:
    for box in picture(stack(["relu"] * 3), depth="all", fold=False).boxes:
        if box.shape in ("rect", "pill"):
            assert box.width >= max(box.line(), measure(box.note, 9.0)) + 16
    assert measure("linear", 11) == pytest.approx(11 * (222 + 222 + 556 + 556 + 556 + 333) / 1000)


def test_light_dark_and_reader() -> None:
    auto, light, dark = (svg(odds(), theme=theme) for theme in ("auto", "light", "dark"))
    assert "prefers-color-scheme:dark" in auto
    assert "prefers-color-scheme" not in light + dark
    assert light != dark
    assert "var(" not in auto  # converters to PDF and PNG know no variables


def test_dot_is_dot() -> None:
    text = dot(odds())
    assert text.startswith("digraph {")
    assert "subgraph" in text
    assert "ortho" not in text
    read(layout(text))


def test_same_bytes_whatever_the_hash_seed() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from sketch import odds, stack;"
        "sys.stdout.write(odds().svg() + stack((['relu'] * 3 + ['tanh']) * 4, owners=['a', 'b'] * 8).svg())"
    )
    found = set()
    for seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(found) == 1


def test_a_slow_layout_is_ended() -> None:
    drawn = dot(motley(600), depth="all", fold=False)
    began = time.perf_counter()
    with pytest.raises(GraphirError) as caught:
        layout(drawn, timeout=0.2)
    assert time.perf_counter() - began < 10
    assert caught.value.diagnostics[0].code == "E0801"
    assert any("--depth" in line for line in caught.value.diagnostics[0].help)


def test_no_engine_is_an_environment_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem) as caught:
        layout("digraph {}", engine="dot")
    assert "pip install" in caught.value.help


def test_an_unknown_engine_and_bad_dot_are_diagnostics() -> None:
    for text, engine in (("digraph {}", "crayons"), ("digraph {", "wasi")):
        with pytest.raises(GraphirError) as caught:
            layout(text, engine)
        assert caught.value.diagnostics[0].code == "E0802"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file modes are POSIX")
def test_compiled_engines_are_kept_in_private_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = svg_module._cache()
    assert folder.startswith(str(tmp_path))
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    Path(folder).chmod(0o777)
    assert svg_module._cache() == ""
    Path(folder).chmod(0o700)
    tmp_path.chmod(0o722)
    assert svg_module._cache() == ""
    tmp_path.chmod(0o700)


def test_a_thousand_boxes_in_seconds_and_folded_in_less() -> None:
    graph = motley(200)
    svg(odds())  # the engine is compiled once for each machine

    def seconds(**options) -> float:
        began = time.perf_counter()
        svg(graph, **options)
        return time.perf_counter() - began

    assert len(picture(graph, depth="all", fold=False).boxes) > 1000
    whole, collapsed = seconds(depth="all", fold=False), min(seconds() for _ in range(2))
    assert whole < 10
    assert collapsed < whole
