"""Modules for the parts of a model that other backends than fx run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from graphir.ir.graph import Graph, Node, Value

from .interpreter import Interpreter
from .plan import Part, Plan


def own_module(part: Part) -> bool:
    """Whether a part is run by a module of its own and not by generated code."""
    return part.backend in ("mlx", "interpreter")


def module_of(part: Part, planned: Plan) -> nn.Module:
    """The module that runs a part: it takes the part's inputs, then its weights, and gives its output or a tuple of several."""
    graph = part_graph(part, planned)
    if part.backend == "interpreter":
        return InterpretedPart(graph)
    from .mlx import MLXPart, Program

    return MLXPart(Program(graph))


def part_graph(part: Part, planned: Plan) -> Graph:
    """A part as a graph of its own, with inputs `x0`, `x1` ... and outputs `y0`, ... in the part's order."""
    inner: dict[Value, Value] = {value: Value(value.type) for value in part.inputs}
    inputs = tuple([(f"x{place}", value) for place, value in enumerate(inner.values())])
    nodes = []
    for node in part.items:
        assert isinstance(node, Node), "a part holds no parts"
        made = node.over(tuple([inner[v] for v in planned.inputs_of(node)]))
        inner.update(zip(node.outputs, made.outputs))
        nodes.append(made)
    outputs = tuple([(f"y{place}", inner[value]) for place, value in enumerate(part.outputs)])
    weights = {name: planned.graph.weights[name] for name in part.weights}
    return Graph(part.path, inputs, tuple(nodes), outputs, weights)


class InterpretedPart(nn.Module):
    """x_1, ..., w_1, ... -> y_1, ...: a part that the interpreter runs on the CPU, node by node."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def twin(self) -> InterpretedPart:
        """The same part for other weights."""
        return InterpretedPart(self.graph)

    def __deepcopy__(self, memo: dict[Any, Any]) -> InterpretedPart:
        return self.twin().train(self.training)

    @torch.compiler.disable
    def forward(self, *tensors: torch.Tensor) -> Any:
        device = tensors[0].device if tensors else torch.device("cpu")
        tensors = tuple([t.cpu() for t in tensors])
        count = len(self.graph.inputs)
        inputs = dict(zip([name for name, _ in self.graph.inputs], tensors))
        weights = dict(zip(self.graph.weights, tensors[count:]))
        outputs = Interpreter(self.graph, weights, dtype=_floats(tensors), training=self.training).run(inputs)
        made = tuple([t.to(device) for t in outputs.values()])
        return made[0] if len(made) == 1 else made


def _floats(tensors: Sequence[torch.Tensor]) -> torch.dtype | None:
    return next((t.dtype for t in tensors if t.is_floating_point()), None)
