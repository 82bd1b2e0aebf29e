"""Graphs made by hand for the tests of tables and pictures: nodes with paths, frames and weights, no elaboration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphir.bricks import activation, basic, norm  # noqa: F401  (declare what the sketches use)
from graphir.ir.dims import Dim, symbol
from graphir.ir.graph import Attrs, Graph, Node, Value, Weight, Where
from graphir.ir.types import Type

B, T = symbol("B"), symbol("T")


def tensor(*shape: Dim, dtype: str = "float") -> Value:
    return Value(Type(dtype, shape))


class Sketch:
    """Collects nodes and weights; every method gives the new node's result."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = {}

    def node(
        self, path: str, op: str, inputs: Sequence[Value], types: Sequence[Type] = (),
        weights: dict[str, tuple[str, tuple[int, ...]]] | None = None, frames: Sequence[str] = (),
        backend: str | None = None, frozen: bool = False, **attrs: Any,
    ) -> tuple[Value, ...]:
        """A node; without types its results are like its first input. `weights`: role -> (name, shape)."""
        for name, shape in (weights or {}).values():
            self.weights.setdefault(name, Weight(shape, "he", frozen))
        roles = tuple((role, name) for role, (name, _) in (weights or {}).items())
        where = Where(path, (*frames, op), None, backend)
        made = Node(op, tuple(inputs), Attrs(attrs), roles, where, types or (inputs[0].type,))
        self.nodes.append(made)
        return made.outputs

    def one(self, path: str, op: str, *inputs: Value, **options: Any) -> Value:
        return self.node(path, op, inputs, **options)[0]

    def linear(self, path: str, x: Value, out: int, owner: str | None = None, bias: bool = False, **options: Any) -> Value:
        """A linear layer whose weights live under `owner` (its own path if not given)."""
        owner = owner or path
        weights = {"weight": (f"{owner}.weight", (out, x.type.shape[-1]))} | ({"bias": (f"{owner}.bias", (out,))} if bias else {})
        return self.node(path, "linear", (x,), (Type("float", (*x.type.shape[:-1], out)),), weights, out=out, bias=bias, **options)[0]

    def norm(self, path: str, x: Value, **options: Any) -> Value:
        return self.one(path, "rmsnorm", x, weights={"weight": (f"{path}.weight", (x.type.shape[-1],))}, **options)

    def graph(self, name: str, inputs: dict[str, Value], outputs: dict[str, Value], **more: Any) -> Graph:
        return Graph(name, tuple(inputs.items()), tuple(self.nodes), tuple(outputs.items()), self.weights, **more)


def layer(sketch: Sketch, path: str, x: Value, kind: str, width: int, owner: str | None = None) -> Value:
    """A pre-norm residual block: an activation named `kind` between two linears, whose weights may live elsewhere."""
    frames = ["[]", "Layer"]
    h = sketch.norm(f"{path}.norm", x, frames=frames)
    h = sketch.linear(f"{path}.mlp.up", h, 4 * width, owner and f"{owner}.up", frames=[*frames, "MLP"])
    h = sketch.one(f"{path}.mlp.{kind}", kind, h, frames=[*frames, "MLP"])
    h = sketch.linear(f"{path}.mlp.down", h, width, owner and f"{owner}.down", frames=[*frames, "MLP"])
    return sketch.one(f"{path}.add", "add", x, h, frames=frames)


def stack(kinds: Sequence[str], width: int = 8, owners: Sequence[str | None] = (), name: str = "Stack") -> Graph:
    """A residual stack between two places of one embedding table."""
    sketch = Sketch()
    tokens = tensor(B, T, dtype="int")
    table = {"weight": ("emb.weight", (100, width))}
    x = sketch.node("emb", "embedding", (tokens,), (Type("float", (B, T, width)),), table, count=100, width=width)[0]
    for i, kind in enumerate(kinds):
        x = layer(sketch, f"layers.{i}", x, kind, width, owners[i] if owners else None)
    y = sketch.node("head", "linear", (x,), (Type("float", (B, T, 100)),), table, out=100, bias=False)[0]
    return sketch.graph(name, {"tokens": tokens}, {"logits": y})


def odds() -> Graph:
    """Two experts of unequal width, stitched to one, behind a filter."""
    sketch = Sketch()
    x = tensor(B, 8)
    scores = sketch.one("router.softmax", "softmax", sketch.linear("router.linear", x, 2, bias=True), temperature=0.5)
    a, b = sketch.node("filter.fork", "fork", (x,), (x.type, x.type), frames=["filter"], branches=("high", "low"))
    outs = []
    for branch, value, width in (("high", a, 3), ("low", b, 5)):
        inside = f"filter.{branch}"
        h = sketch.linear(f"{inside}.linear", value, width, bias=True, frames=["filter", "pipe"])
        h = sketch.one(f"{inside}.sigmoid", "sigmoid", h, frames=["filter", "pipe"])
        weights = {"weight": (f"{inside}_stitch.weight", (4, width))}
        outs += sketch.node(f"{inside}_stitch", "stitch", (h,), (Type("float", (B, 4)),), weights, ["filter"], out=4, form="linear")
    y = sketch.node("filter.filter", "filter", (scores, *outs), (Type("float", (B, 4)),), None, ["filter"], branches=("high", "low"))[0]
    return sketch.graph("Odds", {"x": x}, {"out": sketch.linear("linear", y, 1, bias=True)})
