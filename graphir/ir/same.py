"""Whether two graphs say the same, and if not, where they first part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .graph import Graph, Node, Value
from .literals import write
from .text import value_names


def same(g: Graph, h: Graph) -> bool:
    """Whether the graphs are equal part by part: names, types, nodes in order, attributes, weights, places, preconditions."""
    return difference(g, h) is None


def difference(g: Graph, h: Graph) -> str | None:
    """The first thing that differs, in words, or None. Weights and params are compared as tables, spans as text."""
    return _header(g, h) or _nodes(g, h) or _results(g, h)


def _header(g: Graph, h: Graph) -> str | None:
    if g.name != h.name:
        return f"names: {g.name} and {h.name}"
    if found := _table("param", {n: write(v) for n, v in g.params.items()}, {n: write(v) for n, v in h.params.items()}):
        return found
    if (a := [(str(r), r) for r in g.requires]) != (b := [(str(r), r) for r in h.requires]):
        return f"preconditions: {[t for t, _ in a]} and {[t for t, _ in b]}"
    if (a := [(n, v.type) for n, v in g.inputs]) != (b := [(n, v.type) for n, v in h.inputs]):
        return f"inputs: {_typed(a)} and {_typed(b)}"
    return _table("weight", g.weights, h.weights)


def _typed(inputs: list[tuple[str, Any]]) -> str:
    return ", ".join(f"{name}: {type}" for name, type in inputs)


def _table(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    for name in [*a, *b]:
        if name not in a or name not in b:
            return f"{what} {name} is only in the {'first' if name in a else 'second'}"
        if a[name] != b[name]:
            return f"{what} {name}: {a[name]} and {b[name]}"
    return None


def _nodes(g: Graph, h: Graph) -> str | None:
    twins: dict[Value, Value] = {a: b for (_, a), (_, b) in zip(g.inputs, h.inputs)}
    for place, (a, b) in enumerate(zip(g.nodes, h.nodes)):
        if found := _node(a, b, twins):
            return f"node {place} ({a.op} @{a.where.path}): {found}"
        twins.update(zip(a.outputs, b.outputs))
    return f"{len(g.nodes)} and {len(h.nodes)} nodes" if len(g.nodes) != len(h.nodes) else None


def _node(a: Node, b: Node, twins: Mapping[Value, Value]) -> str | None:
    if a.op != b.op:
        return f"ops {a.op} and {b.op}"
    if len(a.inputs) != len(b.inputs) or any(twins.get(v) is not w for v, w in zip(a.inputs, b.inputs)):
        return "inputs differ"
    if a.attrs is not b.attrs and _written(a.attrs) != _written(b.attrs):
        return f"attributes {dict(a.attrs)} and {dict(b.attrs)}"
    if a.weights != b.weights:
        return f"weights {a.weights} and {b.weights}"
    if (x := [v.type for v in a.outputs]) != (y := [v.type for v in b.outputs]):
        return f"types {', '.join(map(str, x))} and {', '.join(map(str, y))}"
    p, q = a.where, b.where
    if (p.path, p.frames, p.backend) != (q.path, q.frames, q.backend):
        return f"places {p.path} {p.frames} {p.backend} and {q.path} {q.frames} {q.backend}"
    if str(p.span) != str(q.span):
        return f"spans {p.span} and {q.span}"
    return None


def _written(attrs: Mapping[str, Any]) -> dict[str, str]:
    return {name: write(value) for name, value in attrs.items()}


def _results(g: Graph, h: Graph) -> str | None:
    names, others = value_names(g), value_names(h)
    for what, a, b in (("outputs", g.outputs, h.outputs), ("aux outputs", g.aux, h.aux)):
        x, y = [(n, names.get(v)) for n, v in a], [(n, others.get(v)) for n, v in b]
        if x != y:
            return f"{what}: {x} and {y}"
    return None
