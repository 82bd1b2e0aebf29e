"""Linears of one input become one, and only those that may."""

from __future__ import annotations

import pytest
from hand import Hand, ops, run

from oracle import assert_keeps_meaning


def merge(graph, explain=False):
    recipes = []
    after, report = run(graph, "merge-projections", explain, recipes)
    return after, report, recipes


@pytest.mark.parametrize("bias", [True, False])
def test_linears_of_one_input_become_one(bias):
    h = Hand()
    parts = [h.call("linear", h.x, out=out, bias=bias, at=f"attention.{name}") for name, out in (("q", 8), ("k", 4), ("v", 4))]
    graph = h.graph(*parts)
    after, report, recipes = merge(graph)
    assert ops(after) == ["linear", "split"]
    assert after.nodes[0].where.path == "attention.q_k_v"
    assert after.nodes[1].where.path == "attention.q_k_v_split"
    assert after.nodes[0].attrs["out"] == 16
    assert after.nodes[1].attrs["parts"] == (8, 4, 4)
    assert report.fired["linears_of_one_input_are_one_wide_linear"] == 1
    assert after.parameters == graph.parameters
    assert_keeps_meaning(graph, after, recipes)
    assert merge(after)[0] is after


def test_what_stands_between_them_keeps_its_place():
    h = Hand()
    gate = h.call("silu", h.call("linear", h.x, out=6, at="ff.gate"))
    graph = h.graph(h.call("mul", gate, h.call("linear", h.x, out=6, at="ff.up")))
    after, _, recipes = merge(graph)
    assert ops(after) == ["linear", "split", "silu", "mul"]
    assert_keeps_meaning(graph, after, recipes)


ALONE = "no other linear reads its input on the same backend, in the same branch, with the same kind of weights"


def _shared(h):
    one = h.node("linear", h.x, out=8)
    return [one.outputs[0], h.call("linear", h.call("gelu", h.x), out=8, like=one)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda h: [h.call("linear", h.x, out=8), h.call("linear", h.x, out=8, bias=False)], ALONE),
        (lambda h: [h.call("linear", h.x, out=8), h.call("linear", h.call("gelu", h.x), out=8)], ALONE),
        (lambda h: [h.call("linear", h.x, out=8, on="fx"), h.call("linear", h.x, out=8)], ALONE),
        (lambda h: [h.call("linear", h.x, out=8, at=f"filter.{b}.linear") for b in "ab"], ALONE),
        (lambda h: [h.call("linear", h.x, out=8, at=f"filter.branches.{b}.linear") for b in "01"], ALONE),
        (_shared, "another call uses its weights"),
    ],
)
def test_it_says_why_it_does_not_fire(make, reason):
    h = Hand()
    graph = h.graph(*make(h))
    after, report, recipes = merge(graph, explain=True)
    assert after is graph
    assert recipes == []
    assert [r.reason for r in report.refusals] == [reason, reason]
