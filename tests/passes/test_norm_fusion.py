"""Norms fuse with sums and share statistics, keep the meaning, and say why they do not."""

from __future__ import annotations

import pytest
from hand import Hand, ops, run

from oracle import assert_keeps_meaning

NORMS = [("rmsnorm", {}), ("rmsnorm", {"offset": 1.0}), ("rmsnorm", {"scale": False}), ("layernorm", {}), ("layernorm", {"bias": False})]


@pytest.mark.parametrize(("op", "attrs"), NORMS)
def test_a_residual_sum_and_its_norm_become_one_node(op, attrs):
    h = Hand()
    total = h.call("add", h.x, h.call("linear", h.x, out=8))
    y = h.call("linear", h.call(op, total, **attrs), out=8)
    graph = h.graph(h.call("add", total, y))
    after, report = run(graph, "norm-fusion")
    assert ops(after) == ["linear", f"add_{op}", "linear", "add"]
    assert report.fired["norm_of_a_sum_is_one_node_with_it"] == 1
    assert_keeps_meaning(graph, after)
    assert run(after, "norm-fusion")[0] is after
    assert after.parameters == graph.parameters


def test_the_fused_node_stands_where_the_sum_stood_if_the_sum_is_read_before():
    h = Hand()
    total = h.call("add", h.x, h.call("linear", h.x, out=8))
    early = h.call("gelu", total)
    graph = h.graph(h.call("add", early, h.call("rmsnorm", total)))
    after, _ = run(graph, "norm-fusion")
    assert ops(after) == ["linear", "add_rmsnorm", "gelu", "add"]
    assert_keeps_meaning(graph, after)


@pytest.mark.parametrize("op", ["rmsnorm", "layernorm"])
def test_norms_of_one_value_share_one_statistic(op):
    h = Hand()
    graph = h.graph(*(h.call(op, h.x, at=f"layers.{i}.norm") for i in range(3)))
    after, report = run(graph, "norm-fusion")
    statistic = {"rmsnorm": "rms_statistic", "layernorm": "moments"}[op]
    assert ops(after) == [statistic, f"{op}_with", f"{op}_with", f"{op}_with"]
    assert after.nodes[0].where.path == f"layers.{statistic}"
    assert report.fired["norms_of_one_value_share_its_statistic"] == 1
    assert_keeps_meaning(graph, after)
    assert run(after, "norm-fusion")[0] is after


def test_statistics_are_shared_across_the_branches_of_a_fork():
    h = Hand()
    left, right = h.node("fork", h.x, branches=("a", "b"), at="fork.fork").outputs
    a = h.call("rmsnorm", left, at="fork.a.rmsnorm")
    b = h.call("rmsnorm", right, at="fork.b.rmsnorm")
    graph = h.graph(h.call("add", a, b))
    after, _ = run(graph, "norm-fusion")
    assert after.ops["rms_statistic"] == 1
    assert_keeps_meaning(graph, after)


def test_norms_with_another_epsilon_keep_their_own_statistic():
    h = Hand()
    graph = h.graph(h.call("rmsnorm", h.x, eps=1e-6), h.call("rmsnorm", h.x, eps=1e-5))
    assert run(graph, "norm-fusion")[0] is graph


def _input(h):
    return h.call("rmsnorm", h.x)


def _not_a_sum(h):
    return h.call("rmsnorm", h.call("gelu", h.x))


def _three_terms(h):
    return h.call("rmsnorm", h.call("add", h.x, h.x, h.call("gelu", h.x)))


def _weighed(h):
    return h.call("rmsnorm", h.call("add", h.x, h.call("gelu", h.x), alpha=0.5))


def _extended(h):
    return h.call("rmsnorm", h.call("add", h.x, h.call("weight", shape=(8,))))


def _elsewhere(h):
    return h.call("rmsnorm", h.call("add", h.x, h.call("gelu", h.x)), on="mlx")


def _another_branch(h):
    return h.call("rmsnorm", h.call("add", h.x, h.call("gelu", h.x)), at="filter.a.norm")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_input, "it reads an input of the model, not a sum"),
        (_not_a_sum, "it reads `gelu`, not a sum"),
        (_three_terms, "the sum has 3 terms, not two"),
        (_weighed, "the sum weighs its second term by 0.5"),
        (_extended, "the sum extends one of its terms"),
        (_elsewhere, "the sum is on the default backend, the norm on mlx"),
        (_another_branch, "the sum and the norm are not in the same branch"),
    ],
)
def test_it_says_why_it_does_not_fire(make, reason):
    h = Hand()
    graph = h.graph(make(h))
    after, report = run(graph, "norm-fusion", explain=True)
    assert after is graph
    (refusal,) = report.refusals
    assert refusal.reason == reason
    assert refusal.node.op == "rmsnorm"
    assert not run(graph, "norm-fusion")[1].refusals


def test_two_kinds_of_norm_of_one_sum():
    h = Hand()
    total = h.call("add", h.x, h.call("gelu", h.x))
    graph = h.graph(h.call("rmsnorm", total), h.call("layernorm", total))
    after, report = run(graph, "norm-fusion", explain=True)
    assert ops(after) == ["gelu", "add_rmsnorm", "layernorm"]
    assert [r.reason for r in report.refusals] == ["the sum is fused with an earlier norm"]
    assert_keeps_meaning(graph, after)
