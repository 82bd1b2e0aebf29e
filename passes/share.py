"""Computing equal things once and keeping equal weights once.

Equal calls (same brick, inputs, attributes, weights and backend) become one node. Bricks that draw random numbers, carry
state or update buffers are left alone: two calls of those are two events. When the calls stood in different branches of a
fork or filter, the node that is left moves up to their common scope, since a backend may skip a branch.

Given the tensors of a checkpoint, weights that are frozen and equal bit by bit become one name (`share_equal_weights`). A
weight that trains keeps its own name: equal today is not tied tomorrow. Buffers are never merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..ir.graph import Graph, Node
from .pipeline import NoOptions
from .report import Report
from .rewrite import Rewriter, rewrite

if TYPE_CHECKING:
    import torch


def share(graph: Graph, options: NoOptions, report: Report) -> Graph:
    """Equal calls are computed once; nothing random, stateful or buffered is merged."""
    after = rewrite(graph, merge=True, report=report)
    report.figures["parameters before"] = graph.parameters
    report.figures["parameters after"] = after.parameters
    return after


def share_equal_weights(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The graph in which frozen weights that hold equal tensors have one name, and the tensors it needs.

    The first name in the graph's inventory is kept. Shapes, dtypes and every bit must agree, so 0.0 and -0.0 differ.
    """
    import torch

    alike: dict[Any, list[tuple[str, torch.Tensor]]] = {}
    renamed: dict[str, str] = {}
    for name, weight in graph.weights.items():
        if not weight.frozen or weight.buffer or name not in tensors:
            continue
        bits = _bits(tensors[name])
        others = alike.setdefault((tensors[name].dtype, weight.shape, int(bits.sum(dtype=torch.int64))), [])
        kept = next((other for other, other_bits in others if torch.equal(bits, other_bits)), None)
        if kept is None:
            others.append((name, bits))
        else:
            renamed[name] = kept
    after = rename_weights(graph, renamed)
    return after, {name: tensor for name, tensor in tensors.items() if name not in renamed}


def rename_weights(graph: Graph, renamed: Mapping[str, str]) -> Graph:
    """The graph with weights going by other names; those that nothing names any more are gone from the inventory."""
    if not renamed:
        return graph
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        carried = rewriter.carried(node)
        if any(name in renamed for _, name in node.weights):
            weights = tuple((role, renamed.get(name, name)) for role, name in carried.weights)
            carried = Node(carried.op, carried.inputs, carried.attrs, weights, carried.where, [v.type for v in carried.outputs])
        rewriter.replace(node.outputs, rewriter.offer(carried))
    for name in renamed:
        rewriter.weights.pop(name, None)
    return rewriter.finish()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, uint8 [bytes]."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
