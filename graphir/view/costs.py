"""What a graph costs: FLOPs and state of each node, from the declarations. Calls that are equal are computed once, ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

from ..bricks.declare import REGISTRY
from ..bricks.decoding import decoding
from ..ir.dims import Dim, extremum
from ..ir.graph import Attrs, Graph, Node, Precondition
from ..ir.types import Type
from ..lang.diagnostic import GraphirError
from .format import partial

BYTES = {"float": 4, "int": 8, "bool": 1}
REMEMBERED = 65_536
Call = tuple[str, tuple[Type, ...], Attrs, tuple[Precondition, ...]]
_flops: dict[Call, Dim] = {}
_state: dict[Call, Dim] = {}


def call_of(node: Node, graph: Graph) -> Call:
    """All that the cost of a node depends on."""
    return node.op, tuple([v.type for v in node.inputs]), node.attrs, graph.requires


def flops_of(call: Call, graph: Graph) -> Dim:
    """Floating-point operations of a call, a multiply-add being two; symbolic in runtime dims. Unregistered ops cost 0."""
    found = _flops.get(call)
    if found is None:
        op, types, attrs, _ = call
        declaration = REGISTRY.get(op)
        found = declaration.flops(types, attrs, graph.facts) if declaration else 0
        _keep(_flops, call, found)
    return found


def state_of(call: Call, graph: Graph) -> Dim:
    """Bytes that a call keeps between tokens after decoding a whole sequence, in float32; symbolic in runtime dims."""
    found = _state.get(call)
    if found is None:
        op, types, attrs, _ = call
        declaration = REGISTRY.get(op)
        found = 0
        if declaration is not None and declaration.state is not None:
            names = declaration.names(types, attrs, graph.facts)
            for name, (shape, dtype) in declaration.state.init(types, names).items():
                if shape:
                    full = _grown(shape, types, names) if name == "past" else prod(shape, start=1)
                    found = found + full * BYTES[dtype]
        _keep(_state, call, found)
    return found


def _grown(shape: tuple[Dim, ...], types: tuple[Type, ...], names: Mapping[str, Any]) -> Dim:
    """Elements of a state tensor: an axis that starts empty is as long as the input's in the end, or as its window."""
    like = next((t.shape for t in types if len(t.shape) == len(shape)), shape)
    dims: list[Dim] = []
    for dim, whole in zip(shape, like):
        window = names.get("size")
        full = extremum("min", (window - 1, whole)) if isinstance(window, int) else whole
        dims.append(full if isinstance(dim, int) and dim == 0 else dim)
    return prod(dims, start=1)


def _keep(memory: dict[Call, Dim], call: Call, value: Dim) -> None:
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[call] = value


def kept_by(graph: Graph) -> dict[str, Dim]:
    """Bytes that decoding keeps after a whole sequence, by node path; empty for a model that does not decode.

    What is computed once and kept (the memory of an encoder) counts where it is made, the cache of a mask where it is first read.
    """
    try:
        how = decoding(graph)
    except GraphirError:
        return {}
    own = {node.where.path for node in graph.nodes}
    found: dict[str, Dim] = {}
    readers = {value: node for node in reversed(how.graph.nodes) for value in node.inputs}
    for node in how.grown:
        place = node if node.where.path in own else readers[node.outputs[0]]
        found[place.where.path] = found.get(place.where.path, 0) + state_of(call_of(node, how.graph), how.graph)
    for value in how.kept.values():
        if value.node is not None:
            path = value.node.where.path
            found[path] = found.get(path, 0) + prod(value.type.shape, start=1) * BYTES[value.type.dtype]
    return {path: bytes for path, bytes in found.items() if bytes != 0}


def total(graph: Graph, cost: Any, sizes: Mapping[str, int]) -> Dim:
    """The sum of `flops_of` or `state_of` over all nodes."""
    out: Dim = 0
    for call, times in Counter([call_of(node, graph) for node in graph.nodes]).items():
        out = out + times * partial(cost(call, graph), sizes)
    return out
