"""Forks, joins, stitches and filters as primitives: the same numbers, and nothing of them left."""

from __future__ import annotations

import pytest
from hand import Hand, ops, run

from oracle import assert_keeps_meaning, outputs, weights


def _forked(h, count=3):
    names = tuple("abc"[:count])
    outs = h.node("fork", h.x, branches=names, at="fork.fork").outputs
    return [h.call("linear", v, out=6, at=f"fork.{n}") for n, v in zip(names, outs)]


def _filter(h, keep=None):
    scores = h.call("softmax", h.call("linear", h.x, out=3, at="filter.router"), at="filter.softmax")
    if keep:
        scores = h.call("keep_top", scores, k=keep, at="filter.keep_top")
    outs = h.node("fork", h.x, branches=("a", "b", "c"), at="filter.fork").outputs
    ends = [h.call("linear", v, out=6, at=f"filter.{n}") for n, v in zip("abc", outs)]
    return h.call("filter", scores, *ends, branches=("a", "b", "c"), at="filter.filter")


CASES = {
    "add": (lambda h: h.call("add", *_forked(h)), {"linear": 3, "add": 2}),
    "add of two": (lambda h: h.call("add", *_forked(h, 2)), {"linear": 2, "add": 1}),
    "weighed add": (lambda h: h.call("add", *_forked(h), alpha=0.5), {"linear": 3, "add": 2, "scale": 1}),
    "weighed add of two": (lambda h: h.call("add", *_forked(h, 2), alpha=0.5), {"linear": 2, "add": 1, "scale": 1}),
    "add of integers": (lambda h: h.call("add", *[h.input(f"n{i}", 3, dtype="int") for i in range(3)], alpha=2), {"add": 2, "scale": 1}),
    "mean": (lambda h: h.call("mean", *_forked(h)), {"linear": 3, "add": 2, "scale": 1}),
    "mul": (lambda h: h.call("mul", *_forked(h)), {"linear": 3, "mul": 2}),
    "max": (lambda h: h.call("max", *_forked(h)), {"linear": 3, "max": 2}),
    "gate": (lambda h: h.call("gate", *_forked(h, 2)), {"linear": 2, "sigmoid": 1, "mul": 1}),
    "fixed blend": (lambda h: h.call("blend", *_forked(h), weights=(0.2, 0.3, 1.0)), {"linear": 3, "scale": 2, "add": 2}),
    "learned blend": (
        lambda h: h.call("blend", *_forked(h), learnable=True),
        {"linear": 3, "weight": 1, "softmax": 1, "split": 1, "mul": 3, "add": 2},
    ),
    "attend": (
        lambda h: h.call("attend", h.x, *_forked(h)),
        {"linear": 7, "rearrange": 8, "mul": 6, "reduce": 3, "stack": 1, "softmax": 1, "scale": 1, "split": 1, "add": 2},
    ),
    "attend of heads": (
        lambda h: h.call("attend", h.x, *_forked(h), heads=2, hidden=4),
        {"linear": 7, "rearrange": 8, "mul": 6, "reduce": 3, "stack": 1, "softmax": 1, "scale": 1, "split": 1, "add": 2},
    ),
    "filter": (_filter, {"linear": 4, "softmax": 1, "split": 1, "mul": 3, "add": 2}),
    "keeping filter": (lambda h: _filter(h, 2), {"linear": 4, "softmax": 1, "keep_top": 1, "split": 1, "mul": 3, "add": 2}),
    "stitch": (lambda h: h.call("stitch", h.x, out=6), {"linear": 1}),
    "mlp stitch": (lambda h: h.call("stitch", h.x, out=6, form="mlp"), {"linear": 2, "gelu": 1}),
    "low-rank stitch": (lambda h: h.call("stitch", h.x, out=6, form="low-rank", rank=2), {"linear": 2}),
    "concat": (lambda h: h.call("concat", *_forked(h)), {"linear": 3, "concat": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_becomes_primitives(name):
    make, left = CASES[name]
    h = Hand()
    graph = h.graph(make(h))
    after, _ = run(graph, "lower")
    assert dict(after.ops) == left
    assert after.weights == graph.weights
    assert len({n.where.path for n in after.nodes}) == len(after.nodes)
    assert_keeps_meaning(graph, after)
    assert run(after, "lower")[0] is after


def test_gradients_stay_too():
    h = Hand()
    graph = h.graph(h.call("add", _filter(h, 2), h.call("blend", *_forked(h), learnable=True)))
    after, _ = run(graph, "lower")
    grads = []
    for g in (graph, after):
        tensors = {n: t.requires_grad_() for n, t in weights(g).items()}
        outputs(g, tensors=tensors)["y0"].square().sum().backward()
        grads.append({n: t.grad for n, t in tensors.items()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert grad is not None
        assert (grad - grads[1][name]).abs().max() <= 1e-10 * max(1.0, grad.abs().max())


def test_what_takes_the_place_of_a_node_lies_under_its_path_on_its_backend():
    h = Hand()
    graph = h.graph(h.call("gate", h.x, h.call("gelu", h.x), at="deep.gate", on="mlx"))
    after, _ = run(graph, "lower")
    places = [(n.where.path, n.where.backend) for n in after.nodes]
    assert places == [("gelu_0", None), ("deep.gate.sigmoid", "mlx"), ("deep.gate.mul", "mlx")]
    assert after.nodes[1].where.frames == ("Block", "gate", "sigmoid")


def test_a_graph_of_primitives_is_returned_as_it_is():
    h = Hand()
    graph = h.graph(h.call("gelu", h.x))
    assert run(graph, "lower")[0] is graph
    assert ops(graph) == ["gelu"]
