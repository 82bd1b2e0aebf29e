"""Equal calls are computed once, equal frozen weights are kept once, and what must stay apart does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hand import Hand, ops, run

from graphir.passes import share_equal_weights

from oracle import assert_keeps_meaning, assert_same, outputs, weights


def test_equal_calls_become_one():
    h = Hand()
    one = h.node("linear", h.x, out=8, at="a.linear")
    two = h.node("linear", h.x, out=8, at="b.linear", like=one)
    graph = h.graph(h.call("add", h.call("gelu", one.outputs[0]), h.call("gelu", two.outputs[0])))
    after, report = run(graph, "share")
    assert ops(after) == ["linear", "gelu", "add"]
    assert report.fired["equal_calls_are_one"] == 2
    assert report.figures["parameters before"] == report.figures["parameters after"] == 72
    assert_keeps_meaning(graph, after)
    assert run(after, "share")[0] is after


def _other_weights(h):
    return [h.call("linear", h.x, out=8) for _ in range(2)]


def _other_backend(h):
    return [h.call("gelu", h.x, on=on) for on in ("mlx", "fx")]


def _random(h):
    return [h.call("dropout", h.x) for _ in range(2)]


def _stateful(h):
    one = h.node("depthwise_conv1d", h.x, kernel=3)
    return [one.outputs[0], h.call("depthwise_conv1d", h.x, kernel=3, like=one)]


def _buffers(h):
    y = h.call("rearrange", h.x, pattern="b t d -> b d t")
    one = h.node("batchnorm", y)
    return [one.outputs[0], h.call("batchnorm", y, like=one)]


def _another_kind_of_number(h):
    return [h.call("scale", h.x, factor=2), h.call("scale", h.x, factor=2.0)]


@pytest.mark.parametrize("make", [_other_weights, _other_backend, _random, _stateful, _buffers, _another_kind_of_number])
def test_what_is_not_the_same_event_stays_apart(make):
    h = Hand()
    graph = h.graph(*make(h))
    assert run(graph, "share")[0] is graph


def test_equal_calls_in_two_branches_move_to_their_common_scope_and_read_the_forked_value():
    h = Hand()
    left, right = h.node("fork", h.x, branches=("a", "b"), at="outer.filter.fork").outputs
    one = h.node("linear", left, out=8, at="outer.filter.a.linear")
    two = h.node("linear", right, out=8, at="outer.filter.b.linear", like=one)
    ends = [h.call("gelu", one.outputs[0], at="outer.filter.a.gelu"), h.call("silu", two.outputs[0], at="outer.filter.b.silu")]
    graph = h.graph(h.call("add", *ends, at="outer.filter.add"))
    after, _ = run(graph, "share")
    (kept,) = (n for n in after.nodes if n.op == "linear")
    assert kept.where.path == "outer.filter.linear"
    assert kept.where.frames == ("Block", "filter", "linear")
    assert kept.inputs == (after.inputs[0][1],)
    assert_keeps_meaning(graph, after)
    assert run(after, "share")[0] is after


def test_an_equal_call_outside_of_the_branch_moves_the_kept_one_out():
    h = Hand()
    inside = h.call("gelu", h.x, at="filter.a.gelu")
    taken = h.call("silu", h.x, at="gelu")
    outside = h.call("gelu", h.x, at="gelu_outside")
    graph = h.graph(h.call("add", inside, outside), taken)
    after, _ = run(graph, "share")
    assert [n.where.path for n in after.nodes if n.op == "gelu"] == ["gelu_1"]
    assert len({n.where.path for n in after.nodes}) == len(after.nodes)


def test_a_call_of_its_own_scope_stays_where_it_is():
    h = Hand()
    outside = h.call("gelu", h.x, at="gelu")
    inside = h.call("gelu", h.x, at="filter.a.gelu")
    after, _ = run(h.graph(h.call("add", outside, inside)), "share")
    assert after.nodes[0].where.path == "gelu"


def _frozen_pair():
    h = Hand()
    y = h.call("add", h.call("linear", h.x, out=8, at="a"), h.call("linear", h.x, out=8, at="b"))
    graph = h.graph(y)
    return replace(graph, weights={n: replace(w, frozen=True) for n, w in graph.weights.items()})


def test_equal_frozen_weights_become_one_name():
    graph = _frozen_pair()
    tensors = weights(graph)
    tensors["b.weight"] = tensors["a.weight"].clone()
    after, kept = share_equal_weights(graph, tensors)
    assert set(after.weights) == set(kept) == {"a.weight", "a.bias", "b.bias"}
    assert (graph.parameters, after.parameters) == (144, 80)
    assert_same(outputs(graph, tensors=tensors), outputs(after, tensors=kept))
    assert share_equal_weights(after, kept)[0] is after


def test_then_their_equal_calls_become_one_too():
    graph = _frozen_pair()
    tensors = {n: torch.ones(w.shape, dtype=torch.float64) for n, w in graph.weights.items()}
    after, kept = share_equal_weights(graph, tensors)
    assert ops(run(after, "share")[0]) == ["linear", "add"]
    assert set(kept) == {"a.weight", "a.bias"}


@pytest.mark.parametrize("change", [{"frozen": False}, {"buffer": True}])
def test_weights_that_change_keep_their_names(change):
    graph = _frozen_pair()
    graph = replace(graph, weights={n: replace(w, **change) for n, w in graph.weights.items()})
    tensors = {n: torch.ones(w.shape) for n, w in graph.weights.items()}
    assert share_equal_weights(graph, tensors)[0] is graph


def test_every_bit_and_the_dtype_count():
    graph = _frozen_pair()
    zeros = {n: torch.zeros(w.shape) for n, w in graph.weights.items()}
    for other in (-zeros["b.weight"], zeros["b.weight"].half()):
        after, _ = share_equal_weights(graph, {**zeros, "b.weight": other})
        assert after.weights.keys() == {"a.weight", "a.bias", "b.weight"}
