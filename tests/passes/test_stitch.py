"""Open stitches are settled once; written ones are left alone."""

from __future__ import annotations

import pytest
import torch
from hand import Hand, ops, run

from graphir.lang.diagnostic import GraphirError
from graphir.passes import show_stitches

from oracle import assert_keeps_meaning, outputs, weights


def _open(width=8, out=6):
    h = Hand(width)
    return h.graph(h.call("stitch", h.x, out=out, open=True, at="join.stitch"))


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("stitch", {"weight": (6, 8), "bias": (6,)}),
        ("stitch{form=mlp}", {"weight": (6, 7), "bias": (6,), "weight_in": (7, 8), "bias_in": (7,)}),
        ("stitch{form=low-rank}", {"weight": (6, 1), "bias": (6,), "weight_in": (1, 8)}),
        ("stitch{form=low-rank,rank=3}", {"weight": (6, 3), "bias": (6,), "weight_in": (3, 8)}),
    ],
)
def test_an_open_stitch_takes_its_form_and_weights(text, shapes):
    graph = _open()
    after, report = run(graph, text)
    (node,) = after.nodes
    assert not node.attrs["open"]
    assert {n.removeprefix("join.stitch."): w.shape for n, w in after.weights.items()} == shapes
    assert outputs(after)["y0"].shape == (2, 5, 6)
    assert report.fired["an_open_stitch_takes_its_form"] == 1
    assert run(after, "stitch{form=mlp}")[0] is after


@pytest.mark.parametrize(
    ("text", "inits"),
    [
        ("stitch{init=zero}", {"weight": "zeros", "bias": "zeros"}),
        ("stitch{form=mlp,init=zero}", {"weight": "zeros", "bias": "zeros", "weight_in": "he", "bias_in": "zeros"}),
        ("stitch{form=low-rank,init=zero}", {"weight": "zeros", "bias": "zeros", "weight_in": "he"}),
        ("stitch{init=identity}", {"weight": "eye", "bias": "zeros"}),
        ("stitch{form=low-rank,init=identity}", {"weight": "eye", "bias": "zeros", "weight_in": "eye"}),
        ("stitch{form=mlp,init=orthogonal}", {"weight": "orthogonal", "bias": "zeros", "weight_in": "orthogonal", "bias_in": "zeros"}),
    ],
)
def test_and_its_start(text, inits):
    after, _ = run(_open(), text)
    assert {n.removeprefix("join.stitch."): w.init for n, w in after.weights.items()} == inits


def test_the_start_means_what_it_says():
    from graphir.backends.weights import initialise

    x = torch.randn(2, 5, 8, dtype=torch.float64)
    from graphir.backends.interpreter import Interpreter

    for text, wanted in (("stitch{form=mlp,init=zero}", torch.zeros(2, 5, 6)), ("stitch{init=identity}", x[..., :6])):
        graph, _ = run(_open(), text)
        y = Interpreter(graph, initialise(graph, 0), dtype=torch.float64).run({"x": x})["y0"]
        assert torch.equal(y, wanted.double())


def test_an_mlp_cannot_start_as_the_identity():
    with pytest.raises(GraphirError) as caught:
        run(_open(), "stitch{form=mlp,init=identity}")
    assert [d.code for d in caught.value.diagnostics] == ["E0902"]


def test_the_linear_form_is_what_an_open_stitch_computes():
    graph = _open()
    assert_keeps_meaning(graph, run(graph, "stitch")[0])


def test_between_equal_widths_it_goes():
    after, report = run(_open(8, 8), "stitch")
    assert after.nodes == ()
    assert after.weights == {}
    assert report.fired["an_open_stitch_of_equal_widths_is_nothing"] == 1


def test_a_stitch_that_an_author_wrote_is_left_alone():
    h = Hand()
    graph = h.graph(h.call("stitch", h.call("stitch", h.x, out=8, form="mlp"), out=6, form="low-rank", rank=2))
    assert run(graph, "stitch")[0] is graph


def test_shared_stitches_stay_shared():
    h = Hand()
    one = h.node("stitch", h.x, out=6, open=True, at="a.stitch")
    two = h.node("stitch", h.call("gelu", h.x), out=6, open=True, at="b.stitch", like=one)
    graph = h.graph(h.call("add", one.outputs[0], two.outputs[0]))
    after, _ = run(graph, "stitch{form=low-rank,rank=2}")
    assert sorted(after.weights) == ["a.stitch.bias", "a.stitch.weight", "a.stitch.weight_in"]
    assert outputs(after, tensors=weights(after))["y0"].shape == (2, 5, 6)


def test_frozen_stitches_stay_frozen():
    from dataclasses import replace

    graph = _open()
    graph = replace(graph, weights={n: replace(w, frozen=True) for n, w in graph.weights.items()})
    after, _ = run(graph, "stitch{form=mlp}")
    assert all(w.frozen for w in after.weights.values())


def test_the_table_of_stitches():
    graph = _open()
    assert [tuple(row) for row in show_stitches(graph)] == [("join.stitch", "", 8, 6, "linear", 54, True)]
    assert [str(row) for row in show_stitches(graph)] == ["join.stitch: 8 -> 6, linear, open, 54 parameters"]
    after, _ = run(graph, "stitch{form=mlp}")
    assert [tuple(row) for row in show_stitches(after)] == [("join.stitch", "", 8, 6, "mlp", 111, False)]
    assert ops(after) == ["stitch"]
