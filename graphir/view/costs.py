"""What a graph costs: FLOPs and state of each node, from the declarations. Calls that are equal are computed once, ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.dims import Dim, extremum
from ..ir.graph import Attrs, Graph, Node, Precondition
from ..ir.types import Type
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
            for shape, dtype in declaration.state.init(types, names).values():
                if shape:
                    found = found + _grown(shape, types, names) * BYTES[dtype]
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


def total(graph: Graph, cost: Any, sizes: Mapping[str, int]) -> Dim:
    """The sum of `flops_of` or `state_of` over all nodes."""
    out: Dim = 0
    for call, times in Counter([call_of(node, graph) for node in graph.nodes]).items():
        out = out + times * partial(cost(call, graph), sizes)
    return out
