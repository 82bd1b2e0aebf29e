"""The graph for networkx: analysis, plotting, isomorphism oracles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graph import Graph, Value

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: Graph) -> networkx.MultiDiGraph:
    """A MultiDiGraph whose nodes are integers: first the inputs, then the nodes in order, the outputs and the aux outputs.

    Node data: `kind` (input, node, output, aux), `op` (the kind itself where there is no op), `name` (of an input or
    output), `path`, `frames`, `backend`, `attrs` (dict), `weights` (role -> name), `types` (of what the node gives, as
    text). Edge data: `type`, `source` (which result it leaves from), `target` (which input it enters). Graph data: `name`.
    """
    import networkx

    out = networkx.MultiDiGraph(name=graph.name)
    made: dict[Value, tuple[int, int]] = {}

    def add(kind: str, op: str, name: str = "", path: str = "", frames=(), backend=None, attrs=None, weights=(), values=()) -> int:
        number = len(out)
        out.add_node(
            number, kind=kind, op=op, name=name, path=path, frames=frames, backend=backend, attrs=dict(attrs or {}), weights=dict(weights),
            types=[str(v.type) for v in values],
        )
        made.update({value: (number, port) for port, value in enumerate(values)})
        return number

    def connect(value: Value, target: int, port: int) -> None:
        source, result = made[value]
        out.add_edge(source, target, type=str(value.type), source=result, target=port)

    for name, value in graph.inputs:
        add("input", "input", name, values=(value,))
    for node in graph.nodes:
        path, frames, _, backend = node.where
        number = add("node", node.op, "", path, frames, backend, node.attrs, node.weights, node.outputs)
        for port, value in enumerate(node.inputs):
            connect(value, number, port)
    for kind, results in (("output", graph.outputs), ("aux", graph.aux)):
        for name, value in results:
            connect(value, add(kind, kind, name), 0)
    return out
