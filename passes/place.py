"""Putting nodes on backends: those that the program does not place go where the option says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ir.graph import Graph, Node, Value
from .report import Report


@dataclass(frozen=True, slots=True)
class Place:
    """`default`: the backend of nodes that the program puts on none. `override`: of all nodes, whatever the program says."""

    default: Literal["fx", "inductor", "mlx", "interpreter"] = "fx"
    override: bool = False


def place(graph: Graph, options: Place, report: Report) -> Graph:
    """Nodes without a backend go to the default one; backends stand in the picture and decide where parts run."""
    wanted = {n: options.default for n in graph.nodes if options.override or n.where.backend is None}
    return moved(graph, {n: b for n, b in wanted.items() if (n.where.backend or "fx") != b}, report)


def moved(graph: Graph, backends: dict[Node, str], report: Report | None = None) -> Graph:
    """The graph with these nodes on these backends; the same object where there are none."""
    if not backends:
        return graph
    if report is not None:
        report.fired["nodes_are_placed"] += len(backends)
    new: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple([new.get(v, v) for v in node.inputs])
        if inputs != node.inputs or node in backends:
            where = node.where._replace(backend=backends.get(node, node.where.backend))
            made = Node(node.op, inputs, node.attrs, node.weights, where, [v.type for v in node.outputs])
            new.update(zip(node.outputs, made.outputs))
            node = made
        nodes.append(node)
    outputs, aux = (tuple([(name, new.get(v, v)) for name, v in pairs]) for pairs in (graph.outputs, graph.aux))
    return graph.with_(nodes=tuple(nodes), outputs=outputs, aux=aux)
