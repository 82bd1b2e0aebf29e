"""Graphs made by hand over a few bricks of their own: what the tests of the graph's text, verifier and key stand on."""

from __future__ import annotations

from collections.abc import Sequence

from graphir.bricks.build import Builder
from graphir.bricks.declare import Registry, brick
from graphir.ir.dims import symbol
from graphir.ir.graph import Attrs, Graph, Node, Precondition, Value, Weight, Where
from graphir.ir.types import Type
from graphir.lang.source import Place, Source, Span

BRICKS = Registry()
B, T = symbol("B"), symbol("T")


def _declare(header: str, **options) -> None:
    def body(*inputs, **rest):
        raise AssertionError("these graphs are never run")

    brick(header, registry=BRICKS, **options)(body)


_declare("embedding(size, out)(tokens: int[*S]) -> [*S, out]", weights="weight: [size, out] = normal(0.02)")
_declare("linear(out, bias = true)(x: [*S, i]) -> [*S, out]", weights="weight: [out, i] = he; bias: [out] = zeros if bias")
_declare("relu(x: [*S]) -> [*S]")
_declare("dropout(rate = 0.5)(x: [*S]) -> [*S]", random=True)
_declare("halve(x: [B, T, d]) -> [B, T // 2, d]")
_declare("double(x: [B, T, d]) -> [B, T * 2, d]")
_declare("add(alpha = 1.0)(x: [*S]) -> [*S]", kind="join", variadic=True)
_declare("mul(x: [*S]) -> [*S]", kind="join", variadic=True)
_declare("sub(x: [*S], y: [*S]) -> [*S]")
_declare("fork(branches)(x: [*S]) -> [*S]", kind="fork", shape=lambda types, names, facts: types * len(names["branches"]))
_declare(
    "filter(branches)(w: [*S]) -> [*S]", kind="filter", variadic=True, shape=lambda types, names, facts: types[1:2],
)
_declare("batchnorm(x: [*S, d]) -> [*S, d]", weights="scale: [d] = ones; buffer mean: [d] = zeros")
_declare("odd(value = none)(x: [*S]) -> [*S]")

SOURCE = Source("odd place.arch", "model M\n  return x -> relu\n")


class Maker:
    """Builds a graph step by step: `m.linear(x, out=4)`; every node gets a path of its own and a place."""

    def __init__(self, *inputs: tuple[str, Type]):
        self.inputs = [(name, Value(type)) for name, type in inputs]
        self.builder = Builder(registry=BRICKS)
        self.count = 0

    def __getitem__(self, name: str) -> Value:
        return dict(self.inputs)[name]

    def apply(self, op: str, *inputs: Value, shares: Node | None = None, backend: str | None = None, **attrs) -> Node:
        self.count += 1
        where = Where(f"part.{op}_{self.count}", ("Part", op), Place("hand.arch", self.count, 3), backend)
        if shares is None:
            return self.builder.new(op, inputs, attrs, where)
        return self.builder.emit(op, inputs, attrs, shares.weights, where)

    def __getattr__(self, op: str):
        def call(*inputs: Value, **options) -> Value:
            return self.apply(op, *inputs, **options).outputs[0]

        return call

    def graph(self, *outputs: Value, name: str = "Hand", aux: Sequence[tuple[str, Value]] = (), **options) -> Graph:
        named = [("" if len(outputs) == 1 else f"y{i}", value) for i, value in enumerate(outputs)]
        return Graph(name, tuple(self.inputs), tuple(self.builder.nodes), tuple(named), dict(self.builder.weights), tuple(aux), **options)


def rich() -> Graph:
    """Something of everything that a graph can hold."""
    m = Maker(("tokens", Type("int", (B, T))), ("x", Type("float", (B, T, 8))), ("mask", Type("bool", ())))
    x = m.embedding(m["tokens"], size=10, out=8)
    a, b = m.apply("fork", x, branches=("a", "b")).outputs
    a = m.linear(a, out=8, bias=True)
    shared = m.apply("linear", b, out=8, bias=False, backend="mlx")
    again = m.apply("linear", m["x"], shares=shared, out=8, bias=False)
    y = m.add(a, shared.outputs[0], again.outputs[0], alpha=0.1)
    h = m.double(m.halve(y))
    text = 'a "b"\\\n}é\ud800, {'
    values = (1, -2, True, False, None, 0.1, -0.0, 1e300, text, (), (1, (2.0, ("x", T // 3))), 4 * (T // 4) * B - T + 1, -(T // 2))
    for value in values:
        h = m.odd(h, value=value)
    g = m.batchnorm(h)
    spanned = Node("relu", (g,), Attrs(), (), Where("last", ("relu",), Span(SOURCE, 17, 21)), (g.type,))
    bare = Node("relu", spanned.outputs, Attrs(), (), Where("barest"), (g.type,))
    m.builder.nodes += [spanned, bare]
    m.builder.weights["part.batchnorm_22.scale"] = Weight((8,), 'constant(0.5) of "him"', True)
    return m.graph(
        bare.outputs[0], y, aux=(("layers.0.balance", a),),
        requires=(
            Precondition(T, "==", 0, 2, 'an "even" length'), Precondition(T + 1, "==", 1, 2),
            Precondition(B, "<=", 4 * T), Precondition(B, ">", 0),
        ),
        params={"d": 8, "rate": 0.1, "kinds": ["m", "s"], "flag": True, "nothing": None, "pairs": ((1, "a"), (2, "b"))},
    )
