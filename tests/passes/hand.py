"""Graphs made by hand for tests of passes."""

from __future__ import annotations

from typing import Any

from graphir.bricks.build import Builder
from graphir.ir.dims import symbol
from graphir.ir.graph import Graph, Node, Value, Where
from graphir.ir.types import Type
from graphir.passes import Report, parse
from graphir.passes.lower import filled

EMPTY = Graph("none", (), (), (), {})
FRAMES = {"fork": "fork", "filter": "filter", "branches": "[]"}


class Hand:
    """Collects nodes; `x` is a float[B, T, width] input. `at`: a node's path, `on`: its backend, `like`: a node whose weights it takes."""

    def __init__(self, width: int = 8):
        self.builder = Builder()
        self.inputs: list[tuple[str, Value]] = []
        self.x = self.input("x", symbol("B"), symbol("T"), width)
        self.count = 0

    def input(self, name: str, *shape: Any, dtype: str = "float") -> Value:
        value = Value(Type(dtype, shape))
        self.inputs.append((name, value))
        return value

    def node(
        self, op: str, /, *inputs: Value, at: str | None = None, on: str | None = None, like: Node | None = None, **attrs: Any
    ) -> Node:
        if at is None:
            at, self.count = f"{op}_{self.count}", self.count + 1
        segments = at.split(".")
        frames = (*(FRAMES.get(s.rstrip("0123456789"), "Block") for s in segments[:-1]), op)
        where = Where(at, frames, None, on)
        given = {"given": attrs.pop("given")} if "given" in attrs else {}
        complete = {**filled(op, inputs, attrs, EMPTY), **given} if op != "fork" else attrs
        if like is not None:
            return self.builder.emit(op, inputs, complete, like.weights, where)
        return self.builder.new(op, inputs, complete, where)

    def call(self, op: str, /, *inputs: Value, **attrs: Any) -> Value:
        return self.node(op, *inputs, **attrs).outputs[0]

    def graph(self, *results: Value, **named: Value) -> Graph:
        outputs = {**{f"y{i}": v for i, v in enumerate(results)}, **named}
        return Graph("Hand", tuple(self.inputs), tuple(self.builder.nodes), tuple(outputs.items()), dict(self.builder.weights))


def run(graph: Graph, text: str, explain: bool = False, recipes: list | None = None) -> tuple[Graph, Report]:
    """One pass of a pipeline's text, with its report."""
    (step,) = parse(text).steps
    report = Report(frozenset("*") if explain else frozenset(), recipes)
    return step(graph, report), report


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]

