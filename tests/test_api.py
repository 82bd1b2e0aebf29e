"""The Python interface: what `import graphir` promises."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import networkx
import pytest
import torch

import graphir
from graphir.ir.same import same

EXAMPLES = Path(__file__).parent.parent / "examples"
ODDS = EXAMPLES / "odds.arch"
TEXT = """
param width = 6
model Small(depth = 2)(x: float[B, T, 4]) -> float[B, T, 4] {
  shared mix = linear(width)
  return x -> ([residual(mix -> silu -> linear(4))] * depth)
}
model Other(x: float[B, 4]) -> (left: float[B, 2], right: float[B, 3]) {
  return x -> fork { l: linear(2)  r: linear(3) }
}
"""
SMALL = TEXT[: TEXT.index("model Other")]


def code(failed):
    return [d.code for d in failed.value.diagnostics]


def test_public_names_are_there_and_documented():
    assert graphir.__all__ == sorted(graphir.__all__)
    for name in graphir.__all__:
        assert getattr(graphir, name).__doc__, name
    assert set(graphir.__all__) <= set(dir(graphir))
    with pytest.raises(AttributeError, match="no attribute 'Grpah'"):
        _ = graphir.Grpah


def test_loading_checking_and_drawing_never_import_torch():
    script = f"""
import sys, pickle, graphir
graph = graphir.load({str(ODDS)!r})
graphir.check({str(ODDS)!r}), str(graph), graph.key, graph.summary().to_dict(), pickle.loads(pickle.dumps(graph)), graph.svg(), graph.to_networkx()
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


@pytest.mark.parametrize("name", ["odds", "lfm2", "hetero_moe", "t5"])
def test_graphs_pickle_as_their_text(name):
    graph = graphir.load(EXAMPLES / f"{name}.arch")
    again = pickle.loads(pickle.dumps(graph))
    assert same(again, graph)
    assert (str(again), again.key, again.parameters) == (str(graph), graph.key, graph.parameters)
    assert again.weights == graph.weights
    assert str(graph).splitlines()[0].encode() in pickle.dumps(graph, protocol=5)


def test_pictures_for_notebooks():
    graph = graphir.load(SMALL)
    root = xml.fromstring(graph._repr_svg_())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "linear" in "".join(root.itertext())
    assert graph._repr_svg_() == graph.svg()
    assert "linear" in graph.summary()._repr_html_()


def test_to_networkx_is_the_graph():
    graph = graphir.load(SMALL)
    bridge = graph.to_networkx()
    assert isinstance(bridge, networkx.MultiDiGraph)
    assert networkx.is_directed_acyclic_graph(bridge)
    ops = sorted(data["op"] for _, data in bridge.nodes(data=True) if data["op"] not in ("input", "output"))
    assert ops == sorted(node.op for node in graph.nodes)
    assert networkx.has_path(
        bridge, *(next(n for n, data in bridge.nodes(data=True) if data["op"] == kind) for kind in ("input", "output"))
    )
    named = [name for _, data in bridge.nodes(data=True) for name in data["weights"].values()]
    assert named.count("mix.weight") == 2, "a shared brick's two calls name one weight"


def test_summary_is_a_dict_of_plain_data():
    graph = graphir.load(SMALL)
    found = graph.summary(B=2, T=3).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert (found["model"], found["parameters"], found["trainable"], found["frozen"]) == ("Small", 6 * 5 + 2 * 4 * 7, 6 * 5 + 2 * 4 * 7, 0)
    assert found["inputs"] == {"x": "float[B, T, 4]"}
    assert isinstance(found["flops"], int)
    assert "B*T" in graph.summary().to_dict()["flops"].replace(" ", "")
    assert found["nodes"] == len(graph.nodes)


def test_check_gives_diagnostics():
    assert graphir.check(TEXT) == []
    wrong = TEXT.replace("-> silu", "-> silo").replace("linear(3)", "linear(2)")
    found = graphir.check(wrong)
    assert all(isinstance(d, graphir.Diagnostic) for d in found)
    assert {d.code for d in found} >= {"E0301"}
    misspelt = next(d for d in found if d.code == "E0301")
    assert (misspelt.span.line, misspelt.span.text, misspelt.severity) == (5, "silo", "error")
    assert any("silu" in line for line in misspelt.help)
    with pytest.raises(graphir.GraphirError) as failed:
        graphir.load(wrong)
    assert "E0301" in code(failed)
    assert "silo" in str(failed.value)


def test_load_and_compile_take_a_path_a_text_a_graph_and_parameters():
    assert graphir.load(ODDS, width=6).key == graphir.load(str(ODDS), width=6).key != graphir.load(ODDS).key
    assert graphir.load(TEXT).name == "Other"
    graph = graphir.load(TEXT, "Small", depth=3, width=5)
    assert graph.weights["mix.weight"].shape == (5, 4)
    x = torch.randn(2, 3, 4)
    nets = [graphir.compile(SMALL, depth=3, width=5, seed=1), graphir.compile(graph, seed=1)]
    assert torch.equal(nets[0](x), nets[1](x=x))
    assert isinstance(nets[0], torch.fx.GraphModule)
    assert not torch.equal(nets[0](x), graphir.compile(graph, seed=2)(x))
    moved = graphir.compile(graph, weights=nets[0].state_dict())
    assert torch.equal(moved(x), nets[0](x))
    outputs = graphir.interpret(graph, {"x": x}, nets[0].state_dict())
    torch.testing.assert_close(outputs["output"], nets[0](x))


def test_outputs_by_name_and_auxiliary_ones():
    x = torch.randn(2, 4)
    left, right = graphir.compile(TEXT)(x)
    assert (left.shape, right.shape) == ((2, 2), (2, 3))
    balanced = """
    model M(x: float[B, T, 4]) -> float[B, T, 4] { return x -> filter(linear(2) -> softmax, keep = 1, balance = 0.01) { a: linear(4)  b: id } }
    """
    y, aux = graphir.compile(balanced)(torch.randn(2, 3, 4), aux=True)
    assert y.shape == (2, 3, 4)
    total = graphir.total_loss(aux)
    assert total.shape == ()
    assert total.requires_grad
    assert graphir.total_loss({}) == 0.0


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"mode": "inference"}, "did you mean `infer`?"),
        ({"target": "gpu"}, "did you mean `cpu`?"),
        ({"widht": 5}, "did you mean `width`?"),
        ({"passes": "stich"}, "did you mean `stitch`?"),
        ({"dispatch": "quick"}, "there are auto, dense, sorted, static"),
        ({"target": "interpreter", "mode": "decode"}, "`Interpreter.run_step` decodes step by step"),
    ],
    ids=str,
)
def test_wrong_options_are_diagnostics(options, wanted):
    with pytest.raises(graphir.GraphirError) as failed:
        graphir.compile(SMALL, **options)
    (found,) = failed.value.diagnostics
    assert wanted in found.help


def test_a_graph_has_its_parameters_already():
    with pytest.raises(graphir.GraphirError) as failed:
        graphir.compile(graphir.load(SMALL), depth=3)
    assert code(failed) == ["E0408"]
