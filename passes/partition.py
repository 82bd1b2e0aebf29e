"""Cutting a graph into parts by backend.

One walk: `stage(n) = max(stage(i) + (label(i) != label(n)))` over the inputs i of n; a part is the nodes of one stage and label.
An edge between parts goes to a higher stage, so parts never wait for each other in a circle: each can run at once. A path that
leaves a part comes back, if at all, at a higher stage, so parts are convex.

The label of a node is its backend. On `inductor` it is also the place in the outermost list that the node stands in, so that
layers that are alike stay parts that are alike, which are compiled once; other backends take neighbouring layers as one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value
from .pipeline import NoOptions
from .report import Report

HOME = "fx"
BY_LAYER = ("inductor",)
Label = tuple[str, str]


@dataclass(frozen=True)
class Piece:
    """A part: its place in the order of parts, its backend (`fx`, where nothing else is said), and its nodes in order."""

    stage: int
    backend: str
    nodes: tuple[Node, ...]


def partition(graph: Graph, needs: Mapping[Node, Iterable[Value]] | None = None) -> tuple[Piece, ...]:
    """The parts of a graph, in an order in which they can run. `needs`: values that nodes wait for besides their inputs.

    Forks are wires: they belong to whatever reads them, and to no part.
    """
    stages: dict[Node, int] = {}
    labels: dict[Node, Label] = {}
    source: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op == "fork":
            source |= dict.fromkeys(node.outputs, source.get(node.inputs[0], node.inputs[0]))
            continue
        label = labels[node] = _label(node)
        stage = 0
        for value in (*node.inputs, *(needs.get(node, ()) if needs else ())):
            maker = source.get(value, value).node
            if maker is not None:
                stage = max(stage, stages[maker] + (labels[maker] != label))
        stages[node] = stage
    parts: dict[tuple[int, Label], list[Node]] = {}
    for node, stage in stages.items():
        parts.setdefault((stage, labels[node]), []).append(node)
    return tuple([Piece(stage, label[0], tuple(nodes)) for (stage, label), nodes in sorted(parts.items(), key=_place)])


def _place(part: tuple[tuple[int, Label], list[Node]]) -> tuple[int, Label]:
    return part[0]


def _label(node: Node) -> Label:
    backend = node.where.backend or HOME
    if backend not in BY_LAYER or "[]" not in node.where.frames:
        return backend, ""
    place = node.where.frames.index("[]") + 2
    return backend, ".".join(node.where.path.split(".")[:place])


def in_parts(graph: Graph, options: NoOptions, report: Report) -> Graph:
    """Nodes in the order of their parts: what one backend runs at a time stands together."""
    pieces = partition(graph)
    for piece in pieces:
        report.fired[f"part_on_{piece.backend}"] += 1
    forks = [node for node in graph.nodes if node.op == "fork"]
    order = {node: place for place, node in enumerate([n for piece in pieces for n in piece.nodes])}
    made: dict[Value, int] = {value: at for node, at in order.items() for value in node.outputs}
    keys: dict[Node, tuple[int, int]] = {node: (at, 0) for node, at in order.items()}
    for count, fork in enumerate(forks, 1):
        # right behind what it forks
        at = made.get(fork.inputs[0], -1)
        keys[fork] = (at, count)
        made |= dict.fromkeys(fork.outputs, at)
    nodes = tuple(sorted(graph.nodes, key=keys.__getitem__))
    return graph if nodes == graph.nodes else graph.with_(nodes=nodes)
