"""Calls that do nothing go. Each case: what is written, what is left, and why a near miss stays."""

from __future__ import annotations

import pytest
from hand import Hand, ops, run

from oracle import assert_keeps_meaning

TURN, BACK = "b t d -> b d t", "b d t -> b t d"
HEADS, WHOLE = "b t (h k) -> b h t k", "b h t k -> b t (h k)"


def _parts(h, back=(0, 1), axis=-1):
    parts = h.node("split", h.x, parts=2).outputs
    return h.call("concat", *(parts[i] for i in back), axis=axis)


def _split_again(h):
    y = h.call("gelu", h.x)
    a, b = h.node("split", h.call("concat", h.x, y), parts=2).outputs
    return h.call("sub", a, b)


FIRES = {
    "id": (lambda h: h.call("id", h.x), []),
    "scale by one": (lambda h: h.call("scale", h.x, factor=1.0), []),
    "shift by zero": (lambda h: h.call("shift", h.x, by=0.0), []),
    "scale of a scale": (lambda h: h.call("scale", h.call("scale", h.x, factor=0.5), factor=3.0), ["scale"]),
    "scale and back": (lambda h: h.call("scale", h.call("scale", h.x, factor=0.5), factor=2.0), []),
    "shift and back": (lambda h: h.call("shift", h.call("shift", h.x, by=0.5), by=-0.5), []),
    "add of one": (lambda h: h.call("add", h.x), []),
    "mean of one": (lambda h: h.call("mean", h.x), []),
    "concat of one": (lambda h: h.call("concat", h.x), []),
    "fork of one": (lambda h: h.node("fork", h.x, branches=("a",)).outputs[0], []),
    "split in one": (lambda h: h.call("split", h.x, parts=1), []),
    "concat of a split": (_parts, []),
    "split of a concat": (_split_again, ["gelu", "sub"]),
    "rearranged back": (lambda h: h.call("rearrange", h.call("rearrange", h.x, pattern=TURN), pattern=BACK), []),
    "heads and back": (
        lambda h: h.call("rearrange", h.call("rearrange", h.x, pattern=HEADS, sizes=(("h", 2),)), pattern=WHOLE),
        [],
    ),
    "dropout of nothing": (lambda h: h.call("dropout", h.x, p=0.0), []),
    "float of floats": (lambda h: h.call("float", h.x), []),
    "all at once": (lambda h: h.call("gelu", h.call("id", h.call("scale", h.call("id", h.call("add", h.x)), factor=1))), ["gelu"]),
}


@pytest.mark.parametrize("name", FIRES)
def test_it_goes(name):
    make, left = FIRES[name]
    h = Hand()
    graph = h.graph(make(h))
    after, _ = run(graph, "simplify")
    assert ops(after) == left
    assert_keeps_meaning(graph, after)
    assert run(after, "simplify")[0] is after


STAYS = {
    "scale": (lambda h: h.call("scale", h.x, factor=2.0), "the factor is 2.0"),
    "shift": (lambda h: h.call("shift", h.x, by=1.0), "it adds 1.0"),
    "other backend": (
        lambda h: h.call("scale", h.call("scale", h.x, factor=2.0, on="mlx"), factor=2.0),
        "the inner one is on another backend",
    ),
    "add of two": (lambda h: h.call("add", h.x, h.x), "it joins 2 values"),
    "fork": (lambda h: h.node("fork", h.x, branches=("a", "b")).outputs[0], "it has 2 branches"),
    "turned parts": (lambda h: _parts(h, (1, 0)), "its inputs are not all parts of one split, in order"),
    "other axis": (lambda h: _parts(h, axis=1), "the split was along another axis"),
    "split": (lambda h: h.node("split", h.x, parts=2).outputs[0], "it does not split a concatenation of as many parts"),
    "not the inverse": (
        lambda h: h.call("rearrange", h.call("rearrange", h.x, pattern=TURN), pattern=TURN),
        "the patterns are not each other's inverse",
    ),
    "other group": (
        lambda h: h.call(
            "rearrange",
            h.call("rearrange", h.input("z", 2, 3), pattern="a b -> (a b)"), pattern="(a b) -> a b", sizes=(("b", 3),),
        ),
        "the group in between is taken apart by other sizes",
    ),
    "dropout": (lambda h: h.call("dropout", h.x), "it drops 0.1 of its input"),
    "ints to floats": (lambda h: h.call("float", h.input("n", 3, dtype="int")), "it changes the type"),
}


@pytest.mark.parametrize("name", STAYS)
def test_it_says_why_it_stays(name):
    make, reason = STAYS[name]
    h = Hand()
    graph = h.graph(make(h))
    after, report = run(graph, "simplify", explain=True)
    assert after is graph
    assert reason in [r.reason for r in report.refusals]


def test_dropout_goes_in_inference():
    h = Hand()
    graph = h.graph(h.call("gelu", h.call("dropout", h.x, p=0.5)))
    after, _ = run(graph, "simplify{mode=infer}")
    assert ops(after) == ["gelu"]
    assert_keeps_meaning(graph, after)


def test_dead_code_and_its_weights_go():
    h = Hand()
    h.call("linear", h.x, out=8, at="unused")
    graph = h.graph(h.call("gelu", h.x))
    after, _ = run(graph, "dead-code")
    assert ops(after) == ["gelu"]
    assert after.weights == {}
    assert run(after, "dead-code")[0] is after


def test_a_graph_without_anything_to_simplify_is_returned_as_it_is():
    h = Hand()
    graph = h.graph(h.call("gelu", h.x))
    assert run(graph, "simplify")[0] is graph
