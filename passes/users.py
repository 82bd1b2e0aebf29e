"""Facts about a graph that several passes ask for: who reads a value, where it truly comes from, how often weights are named."""

from __future__ import annotations

from collections import Counter

from ..ir.graph import Graph, Node, Value


def readers(graph: Graph) -> dict[Value, list[Node]]:
    """The nodes that read each value, in order, once per reading."""
    found: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            found.setdefault(value, []).append(node)
    return found


def weight_uses(graph: Graph) -> Counter[str]:
    """How many nodes name each weight."""
    return Counter([name for node in graph.nodes for _, name in node.weights])


def through_forks(value: Value) -> Value:
    """The value that a branch of a fork is a copy of; the value itself where it is none."""
    while value.node is not None and value.node.op == "fork":
        value = value.node.inputs[0]
    return value
