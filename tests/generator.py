"""Random valid graphs out of the brick declarations (after NNSmith): pick a value, pick a brick whose header fits, go on.

`random_graph(seed)` builds with every brick that has an example, with forks, joins, filters, open stitches, shared weights and
repeated calls, over symbolic B and T. It also sows what passes look for: norms of sums, several norms of one value, linears of
one input, chains of scales, split and concat. `random_program(seed)` writes the same kind of thing as `.arch` text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from graphir.bricks import catalogue  # noqa: F401
from graphir.bricks.build import Builder
from graphir.bricks.call import read_example
from graphir.bricks.declare import REGISTRY, Declaration, Misfit
from graphir.ir.dims import symbol
from graphir.ir.graph import Graph, Node, Value, Where
from graphir.ir.types import Type
from graphir.passes.lower import filled

WIDTHS = (4, 6, 8)
# bricks whose numbers are too wild to compare (poles, jumps at ties) or whose draws are random
AVOID = frozenset(
    "log rsqrt sqrt reciprocal power exp einsum int round sign stitch fork filter weight hardmax topk argsort".split()
)


def fitting_bricks() -> list[Declaration]:
    """The declared bricks that random programs may use, in name order."""
    # the bricks of `dispatch` take counts that must add up, which no header says
    found = (d for d in REGISTRY if d.examples and not d.random and d.name not in AVOID and not d.file.endswith(".dispatch"))
    return sorted(found, key=lambda d: d.name)


class Sower:
    """One random graph in the making."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.builder = Builder()
        self.x = Value(Type("float", (symbol("B"), symbol("T"), self.random.choice(WIDTHS))))
        self.inputs: list[tuple[str, Value]] = [("x", self.x)]
        self.pool: list[Value] = [self.x]
        self.weighted: list[Node] = []
        self.scope: tuple[tuple[str, str], ...] = ()
        self.counts: dict[str, int] = {}
        self.bricks = fitting_bricks()

    def where(self, op: str) -> Where:
        segments = [s for s, _ in self.scope]
        base = ".".join([*segments, op])
        self.counts[base] = self.counts.get(base, -1) + 1
        count = self.counts[base]
        return Where(f"{base}_{count}" if count else base, (*(f for _, f in self.scope), op))

    def new(self, op: str, /, *inputs: Value, **attrs: Any) -> Node:
        """A node with fresh weights and every default filled in. Raises Misfit."""
        complete = filled(op, inputs, attrs, _NO_FACTS)
        extra = REGISTRY[op].extra
        if extra and extra in attrs:
            complete[extra] = attrs[extra]
        node = self.builder.new(op, inputs, complete, self.where(op))
        if node.weights:
            self.weighted.append(node)
        return node

    def call(self, op: str, /, *inputs: Value, **attrs: Any) -> Value:
        return self.new(op, *inputs, **attrs).outputs[0]

    def pick(self, *, last: int | None = None, rank: int | None = None) -> Value:
        fits = [v for v in self.pool if (last is None or v.type.shape[-1] == last) and (rank is None or len(v.type.shape) == rank)]
        return self.random.choice(fits or [self.x])

    def wide(self) -> Value:
        """A [B, T, d] value."""
        fits = [v for v in self.pool if _is_sequence(v.type)]
        return self.random.choice(fits[-6:])

    def like(self, value: Value) -> Value:
        """Another value of the same type, made if need be."""
        fits = [v for v in self.pool if v.type == value.type]
        if fits and self.random.random() < 0.7:
            return self.random.choice(fits)
        return self.call("linear", self.wide(), out=value.type.shape[-1])

    # what to sow

    def any_brick(self) -> Sequence[Value]:
        """A declared brick with the config of one of its examples, on values that fit, or on new inputs of the example's types."""
        declaration = self.random.choice(self.bricks)
        attrs, types = read_example(declaration, self.random.choice(declaration.examples))
        if len(types) == 1 and types[0].dtype == "float" and self.random.random() < 0.7:
            try:
                return self.new(declaration.name, self.pick(), **attrs).outputs
            except Misfit:
                pass  # the header takes another shape: the example's own will do
        return self.new(declaration.name, *map(self.of_type, types), **attrs).outputs

    def of_type(self, type: Type) -> Value:
        """A value of exactly this type: one that is there, or a new input of the model."""
        fits = [v for v in self.pool if v.type == type]
        if fits and self.random.random() < 0.5:
            return self.random.choice(fits)
        value = Value(type)
        self.inputs.append((f"x{len(self.inputs)}", value))
        return value

    def projection(self) -> Sequence[Value]:
        return [self.call("linear", self.wide(), out=self.random.choice(WIDTHS), bias=self.random.random() < 0.5)]

    def projections(self) -> Sequence[Value]:
        x, bias = self.wide(), self.random.random() < 0.5
        return [self.call("linear", x, out=self.random.choice(WIDTHS), bias=bias) for _ in range(self.random.randint(2, 3))]

    def residual(self) -> Sequence[Value]:
        x = self.wide()
        total = self.call("add", x, self.like(x))
        return [total, self.norm(total)]

    def norm(self, x: Value) -> Value:
        if self.random.random() < 0.5:
            return self.call("rmsnorm", x, offset=self.random.choice((0.0, 0.0, 1.0)), scale=self.random.random() < 0.8)
        return self.call("layernorm", x, scale=self.random.random() < 0.8, bias=self.random.random() < 0.5)

    def norms(self) -> Sequence[Value]:
        x = self.wide()
        return [self.norm(x) for _ in range(self.random.randint(2, 3))]

    def normed_projections(self) -> Sequence[Value]:
        y, count = self.norm(self.wide()), self.random.randint(1, 2)
        return [self.call("linear", y, out=self.random.choice(WIDTHS), bias=self.random.random() < 0.5) for _ in range(count)]

    def arithmetic(self) -> Sequence[Value]:
        x = self.wide()
        op = self.random.choice(("add", "sub", "mul"))
        return [self.call(op, x, self.like(x))]

    def nothings(self) -> Sequence[Value]:
        x = self.wide()
        kind = self.random.randrange(6)
        if kind == 0:
            return [self.call("id", x)]
        if kind == 1:
            return [self.call("scale", self.call("scale", x, factor=self.random.choice((1.0, 0.5))), factor=2.0)]
        if kind == 2:
            return [self.call("shift", self.call("shift", x, by=self.random.choice((0, 0.25))), by=-0.25)]
        if kind == 3:
            return [self.call("concat", *self.new("split", x, parts=2).outputs)]
        if kind == 4:
            return [self.call("concat", x)]
        turned = self.call("rearrange", x, pattern="b t d -> b d t")
        return [self.call("rearrange", turned, pattern="b d t -> b t d")]

    def repeated(self) -> Sequence[Value]:
        """The same call once more, or the same weights on another value."""
        if not self.weighted:
            return ()
        old = self.random.choice(self.weighted)
        inputs = old.inputs if self.random.random() < 0.4 else tuple(self.like(v) if _is_sequence(v.type) else v for v in old.inputs)
        if any(a.type != b.type for a, b in zip(inputs, old.inputs)):
            return ()
        return self.builder.emit(old.op, inputs, old.attrs, old.weights, self.where(old.op)).outputs

    def branch(self, x: Value, width: int) -> Value:
        """A short chain from x to a value of the width."""
        made = [x]
        for _ in range(self.random.randint(0, 2)):
            made.append(self.random.choice((self.norm, self.activated))(made[-1]))
        y = made[-1]
        if self.random.random() < 0.3:
            y = self.call("linear", y, out=self.random.choice(WIDTHS))
        return y if y.type.shape[-1] == width else self.call("stitch", y, out=width, open=True)

    def activated(self, x: Value) -> Value:
        return self.call(self.random.choice(("gelu", "silu", "tanh", "sigmoid")), x)

    def fork(self) -> Sequence[Value]:
        x, width = self.wide(), self.random.choice(WIDTHS)
        names = tuple("abc"[: self.random.randint(1, 3)])
        outer = self.scope
        segment = self.where("fork").path.rsplit(".", 1)[-1]
        self.scope = (*outer, (segment, "fork"))
        fork = self.builder.emit("fork", (x,), {"branches": names}, (), self.where("fork"))
        ends = [self.inside(name, lambda v=v: self.branch(v, width)) for name, v in zip(names, fork.outputs)]
        joined = self.join(ends)
        self.scope = outer
        return [joined]

    def inside(self, name: str, make: Callable[[], Value]) -> Value:
        outer = self.scope
        self.scope = (*outer, (name, "pipe"))
        made = make()
        self.scope = outer
        return made

    def join(self, values: Sequence[Value]) -> Value:
        ways = ["add", "mean", "mul", "concat", "blend", "blend_learned", "max", "alpha"] + ["gate"] * (len(values) == 2)
        way = self.random.choice(ways)
        if way == "blend":
            return self.call("blend", *values, weights=tuple(0.5 + i for i in range(len(values))))
        if way == "blend_learned":
            return self.call("blend", *values, learnable=True)
        if way == "alpha":
            return self.call("add", *values, alpha=0.5)
        return self.call(way, *values)

    def filter(self) -> Sequence[Value]:
        x, width, count = self.wide(), self.random.choice(WIDTHS), self.random.randint(2, 3)
        names = tuple("abc"[:count])
        outer = self.scope
        segment = self.where("filter").path.rsplit(".", 1)[-1]
        self.scope = (*outer, (segment, "filter"))
        weights = self.inside("router", lambda: self.call("softmax", self.call("linear", x, out=count)))
        if self.random.random() < 0.5:
            weights = self.call("keep_top", weights, k=self.random.randint(1, count))
        fork = self.builder.emit("fork", (x,), {"branches": names}, (), self.where("fork"))
        ends = [self.inside(name, lambda v=v: self.branch(v, width)) for name, v in zip(names, fork.outputs)]
        mixed = self.call("filter", weights, *ends, branches=names)
        self.scope = outer
        return [mixed]

    def grow(self, size: int) -> Graph:
        ways = [
            *[self.any_brick] * 8, self.projection, self.projections, self.residual, self.norms,
            self.normed_projections, self.arithmetic, self.nothings, self.repeated, self.repeated, self.fork, self.filter,
        ]
        while len(self.builder.nodes) < size:
            before = len(self.builder.nodes)
            try:
                made = self.random.choice(ways)()
            except Misfit:
                del self.builder.nodes[before:]
                self.scope = ()
                self.weighted = [n for n in self.weighted if n in set(self.builder.nodes)]
                continue
            self.pool += [v for v in made if v.type.dtype == "float"]
        results = [self.pool[-1], *self.random.sample(self.pool, min(2, len(self.pool)))]
        outputs = tuple((f"y{i}", v) for i, v in enumerate(dict.fromkeys(results)))
        used = {name for node in self.builder.nodes for _, name in node.weights}
        weights = {n: w for n, w in self.builder.weights.items() if n in used}
        return Graph(f"Random{size}", tuple(self.inputs), tuple(self.builder.nodes), outputs, weights)


_NO_FACTS = Graph("none", (), (), (), {})


def _is_sequence(type: Type) -> bool:
    shape = type.shape
    return len(shape) == 3 and shape[:2] == (symbol("B"), symbol("T")) and isinstance(shape[2], int) and shape[2] in WIDTHS


def random_graph(seed: int, size: int = 16) -> Graph:
    """A valid graph of about `size` nodes, the same for the same seed and catalogue of bricks."""
    return Sower(seed).grow(size)


class Writer:
    """One random program in the making: statements that bind tensors, and what type each has."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.width = self.random.choice(WIDTHS)
        self.types: dict[str, Type] = {"x": Type("float", (symbol("B"), symbol("T"), self.width))}
        self.lines: list[str] = []
        self.shared: list[tuple[str, int, int]] = []
        self.bricks = [d for d in fitting_bricks() if d.kind == "brick" and len(d.ports) == 1 and not d.variadic]

    def any(self) -> str:
        return self.random.choice(list(self.types)[-8:])

    def sequence(self) -> str:
        return self.random.choice([n for n, t in self.types.items() if _is_sequence(t)][-6:])

    def bind(self, text: str, type: Type, name: str | None = None) -> None:
        name = name or f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        self.types[name] = type

    def like(self, name: str, width: int) -> Type:
        return Type("float", (*self.types[name].shape[:-1], width))

    def any_brick(self) -> None:
        """A declared brick as one of its examples writes it, where its header takes the value."""
        name, declaration = self.any(), self.random.choice(self.bricks)
        example = self.random.choice(declaration.examples)
        attrs, _ = read_example(declaration, example)
        types = declaration.infer((self.types[name],), attrs, _NO_FACTS.facts)
        if len(types) == 1 and types[0].dtype == "float":
            self.bind(f"{name} -> {example.partition(' : ')[0]}", types[0])

    def chain(self, source: int, target: int) -> str:
        """A brick from one width to the other, as a pipe."""
        bricks = ("gelu", "silu", "rmsnorm", "layernorm", "id", "scale(0.5)", "dropout(0.0)")
        middle = [self.random.choice(bricks) for _ in range(self.random.randint(0, 2))]
        ends = [f"linear({target})"] if target != source or not middle or self.random.random() < 0.3 else []
        return " -> ".join([*middle, *ends])

    def residual(self) -> None:
        name = self.sequence()
        width = self.types[name].shape[-1]
        self.bind(f"{name} + ({name} -> rmsnorm -> {self.chain(width, width)})", self.types[name])

    def repeats(self) -> None:
        name = self.sequence()
        width = self.types[name].shape[-1]
        layer = f"residual({self.random.choice(('rmsnorm', 'layernorm'))} -> linear({width}) -> gelu)"
        self.bind(f"{name} -> ([{layer}] * {self.random.randint(1, 3)})", self.types[name])

    def fork(self) -> None:
        name, width = self.sequence(), self.random.choice(WIDTHS)
        source, names = self.types[name].shape[-1], "abc"[: self.random.randint(2, 3)]
        branches = "  ".join(f"{n}: {self.chain(source, self.random.choice(WIDTHS))}" for n in names)
        join = self.random.choice(("add", "mean", "mul", "max", "blend(learnable = true, ", "add(alpha = 0.5, "))
        self.bind(f"{name} -> fork {{ {branches} }} -> {join if '(' in join else join + '('}width = {width})", self.like(name, width))

    def filter(self) -> None:
        name, width = self.sequence(), self.random.choice(WIDTHS)
        source, count = self.types[name].shape[-1], self.random.randint(2, 3)
        keep = f", keep = {self.random.randint(1, count)}" if self.random.random() < 0.5 else ""
        branches = "  ".join(f"{n}: {self.chain(source, self.random.choice(WIDTHS))}" for n in "abc"[:count])
        self.bind(f"{name} -> filter(linear({count}) -> softmax, width = {width}{keep}) {{ {branches} }}", self.like(name, width))

    def share(self) -> None:
        if not self.shared or self.random.random() < 0.4:
            source, target = self.random.choice(WIDTHS), self.random.choice(WIDTHS)
            self.shared.append((f"s{len(self.lines)}", source, target))
            self.lines.append(f"shared {self.shared[-1][0]} = {self.chain(source, target)}")
        brick, source, target = self.random.choice(self.shared)
        fits = [n for n, t in self.types.items() if _is_sequence(t) and t.shape[-1] == source]
        if fits:
            name = self.random.choice(fits)
            self.bind(f"{name} -> {brick}", self.like(name, target))

    def write(self, size: int) -> str:
        ways = [*[self.any_brick] * 6, self.residual, self.repeats, self.fork, self.filter, self.share, self.share]
        while len(self.lines) < size:
            try:
                self.random.choice(ways)()
            except Misfit:
                continue
        results = [n for n, t in self.types.items() if _is_sequence(t)][-2:]
        ports = ", ".join(f"y{i}: {self.types[n]}" for i, n in enumerate(results))
        body = "\n".join(f"  {line}" for line in self.lines)
        return f"model Random(x: {self.types['x']}) -> ({ports}) {{\n{body}\n  return {', '.join(results)}\n}}\n"


def random_program(seed: int, size: int = 10) -> str:
    """A valid `.arch` text of about `size` statements, the same for the same seed and catalogue of bricks."""
    return Writer(seed).write(size)


__all__ = ["fitting_bricks", "random_graph", "random_program"]
