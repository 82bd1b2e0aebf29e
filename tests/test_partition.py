"""Cutting graphs by backend: parts are convex, run in order, and hold what they can."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphir
from graphir.bricks.build import Builder
from graphir.bricks.declare import REGISTRY
from graphir.ir.dims import Facts
from graphir.ir.graph import Attrs, Graph, Value, Where
from graphir.ir.types import Type
from graphir.ir.verify import verify
from graphir.lang.diagnostic import GraphirError
from graphir.passes import run_pipeline
from graphir.passes.partition import partition

BACKENDS = (None, "fx", "mlx", "inductor", "interpreter")


@st.composite
def placed_graphs(draw) -> Graph:
    """Random graphs of additions, each on a backend of its own."""
    builder = Builder(Facts())
    x = Value(Type("float", (4,)))
    values = [x]
    for place in range(draw(st.integers(1, 24))):
        inputs = [draw(st.sampled_from(values)) for _ in range(draw(st.integers(1, 3)))]
        where = Where(f"a{place}", ("add",), None, draw(st.sampled_from(BACKENDS)))
        values += builder.emit("add", inputs, Attrs(alpha=0.5 + place), (), where).outputs
    return Graph("G", (("x", x),), tuple(builder.nodes), (("y", values[-1]),), {})


@settings(max_examples=150, deadline=None)
@given(placed_graphs())
def test_parts_are_convex_and_run_in_order(graph):
    pieces = partition(graph)
    home = {node: place for place, piece in enumerate(pieces) for node in piece.nodes}
    assert sorted(map(id, home)) == sorted(map(id, graph.nodes))
    assert all({n.where.backend or "fx" for n in piece.nodes} == {piece.backend} for piece in pieces)
    edges = networkx.DiGraph([(v.node, n) for n in graph.nodes for v in n.inputs if v.node is not None])
    for before, after in edges.edges:
        assert home[before] <= home[after]
    between = networkx.DiGraph([(home[a], home[b]) for a, b in edges.edges if home[a] != home[b]])
    assert networkx.is_directed_acyclic_graph(between)
    for place, piece in enumerate(pieces):
        below = {n for p in piece.nodes if p in edges for n in networkx.descendants(edges, p)}
        above = {n for p in piece.nodes if p in edges for n in networkx.ancestors(edges, p)}
        assert all(home[n] == place for n in below & above)


@settings(max_examples=50, deadline=None)
@given(placed_graphs())
def test_the_pass_orders_nodes_by_part_and_means_the_same(graph):
    after = run_pipeline(graph, "partition")
    verify(after, REGISTRY)
    assert after.key == graph.key
    home = {node: place for place, piece in enumerate(partition(after)) for node in piece.nodes}
    order = [home[node] for node in after.nodes]
    assert order == sorted(order)
    assert run_pipeline(after, "partition") is after


def kinds(text: str) -> list[tuple[str, int]]:
    return [(piece.backend, len(piece.nodes)) for piece in partition(graphir.load(text))]


def test_a_chain_is_cut_where_the_backend_changes():
    text = "model M(x: [B, 4]) -> [B, 4] { return x -> relu -> [silu, tanh] on mlx -> gelu -> sigmoid on inductor }"
    assert kinds(text) == [("fx", 1), ("mlx", 2), ("fx", 1), ("inductor", 1)]


def test_neighbouring_layers_on_mlx_are_one_part_and_on_inductor_one_each():
    text = "model M(x: [B, 4]) -> [B, 4] { return x -> ([SwiGLU on WHERE] * 3) }"
    assert len(kinds(text.replace("WHERE", "mlx"))) == 1
    assert len(kinds(text.replace("WHERE", "inductor"))) == 3


def test_a_skip_around_a_part_does_not_make_a_circle():
    text = """model M(x: [B, 4]) -> [B, 4] {
      a = x -> silu on mlx
      b = a -> tanh
      c = b -> silu on mlx
      return (a, c) -> add on mlx
    }"""
    assert kinds(text) == [("mlx", 1), ("fx", 1), ("mlx", 2)]


def test_branches_on_one_backend_are_one_part():
    text = "model M(x: [B, 4]) -> [B, 4] { return x -> fork { a: silu on mlx  b: tanh on mlx } -> add }"
    assert kinds(text) == [("mlx", 2), ("fx", 1)]


def test_place_puts_what_has_no_place():
    graph = graphir.load("model M(x: [B, 4]) -> [B, 4] { return x -> relu -> silu on inductor }")
    after = run_pipeline(graph, "place{default=mlx}")
    assert [n.where.backend for n in after.nodes] == ["mlx", "inductor"]
    assert [n.where.backend for n in run_pipeline(graph, "place{default=mlx,override=true}").nodes] == ["mlx", "mlx"]
    assert run_pipeline(graph, "place") is graph
    assert run_pipeline(after, "place{default=mlx}") is after
    with pytest.raises(GraphirError, match="`default` is one of fx, inductor, mlx, interpreter"):
        run_pipeline(graph, "place{default=metal}")


def test_the_picture_and_the_dump_say_where():
    graph = run_pipeline(graphir.load("model M(x: [B, 4]) -> [B, 4] { return x -> SwiGLU }"), "place{default=mlx}")
    assert "!mlx" in str(graph)
    assert "mlx" in graph.svg()
