"""The typed dataflow graph: a flat, immutable list of nodes in topological order.

Four nouns. A `Value` is an edge and is identified by being itself. A `Node` applies an op to values, with attributes and
named weights; two nodes share weights exactly when they name the same ones. `Where` says which line of text, which call
path and which backend a node belongs to. A `Graph` is inputs, nodes, outputs and the inventory of weights. Every other
fact (users, costs, keys, scopes) is derived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from ..lang.source import Place, Span
from .dims import Dim, Facts
from .types import Type

if TYPE_CHECKING:
    from ..view.summary import Summary


class Attrs(dict[str, Any]):
    """The config of a node: str -> int, float, bool, str, None, Dim or tuples of those. Never changed once made."""

    __slots__ = ("_hash",)

    def __hash__(self) -> int:  # type: ignore[override]
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(tuple(sorted([(k, _typed(v)) for k, v in self.items()], key=_first)) if self else ())
            return self._hash


def _typed(value: Any) -> Any:
    """What tells 1, 1.0 and True apart, in tuples too."""
    return tuple(map(_typed, value)) if isinstance(value, tuple) else (value.__class__.__name__, value)


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


NO_ATTRS = Attrs()


class Where(NamedTuple):
    """Where a node comes from.

    `path` is unique to the node: `layers.3.mixer.q`. `frames` names, for each segment of the path, the block, list
    (`[]`), `fork`, `filter` or brick that the segment stands for; the last is the node's own op. Neither they nor
    `span` take part in identity; `backend` does (None: wherever the target puts it).
    """

    path: str
    frames: tuple[str, ...] = ()
    span: Span | Place | None = None
    backend: str | None = None


class Value:
    """An edge of the graph: one result of a node, or an input (`node` is None)."""

    __slots__ = ("node", "type")

    def __init__(self, type: Type, node: Node | None = None):
        self.type = type
        self.node = node

    def __repr__(self) -> str:
        return f"<{self.node.op if self.node else 'input'}: {self.type}>"


class Node:
    """One application of an op. `weights` are (role, name) pairs; `outputs` are made here, one value per type."""

    __slots__ = ("attrs", "inputs", "op", "outputs", "weights", "where")

    def __init__(
        self,
        op: str,
        inputs: tuple[Value, ...],
        attrs: Attrs,
        weights: tuple[tuple[str, str], ...],
        where: Where,
        types: Sequence[Type],
    ):
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.weights = weights
        self.where = where
        if types.__class__ is tuple and len(types) == 1:  # nearly all nodes: half the time of the general form
            self.outputs: tuple[Value, ...] = (Value(types[0], self),)
        else:
            self.outputs = tuple([Value(t, self) for t in types])

    def over(self, inputs: tuple[Value, ...]) -> Node:
        """The same call of other inputs, whose types are those of the old ones."""
        node = Node.__new__(Node)  # a third faster than `Node(...)`, and rewriting does little else
        node.op = self.op
        node.inputs = inputs
        node.attrs = self.attrs
        node.weights = self.weights
        node.where = self.where
        old = self.outputs
        node.outputs = (Value(old[0].type, node),) if len(old) == 1 else tuple([Value(v.type, node) for v in old])
        return node

    def __repr__(self) -> str:
        return f"<{self.op} @{self.where.path}>"


@dataclass(frozen=True, slots=True)
class Weight:
    """A named tensor that belongs to the model. `init` is a spec such as `he`, `zeros`, `normal(0.02)`.

    `frozen`: never trained. `buffer`: state that training updates outside the gradient (running statistics, balance biases).
    """

    shape: tuple[int, ...]
    init: str = "zeros"
    frozen: bool = False
    buffer: bool = False

    @property
    def numel(self) -> int:
        total = 1
        for d in self.shape:
            total *= d
        return total


@dataclass(frozen=True, slots=True)
class Precondition:
    """A fact about runtime dims that the caller of the model must meet: `left op right`, or `left % divisor == 0`."""

    left: Dim
    op: str
    right: Dim
    divisor: int | None = None
    message: str = ""

    def __str__(self) -> str:
        if not self.divisor:
            return f"{self.left} {self.op} {self.right}"
        left = str(self.left)
        return f"{left if left.isidentifier() else f'({left})'} % {self.divisor} {self.op} {self.right}"


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole model. `aux` are named side outputs (routing losses, loads): not returned unless asked for."""

    name: str
    inputs: tuple[tuple[str, Value], ...]
    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, Value], ...]
    weights: Mapping[str, Weight]
    aux: tuple[tuple[str, Value], ...] = ()
    requires: tuple[Precondition, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def uses(self) -> Counter[Value]:
        """How often each value is read, outputs included."""
        counts: Counter[Value] = Counter()
        for node in self.nodes:
            counts.update(node.inputs)
        counts.update(v for _, v in self.results)
        return counts

    @property
    def results(self) -> tuple[tuple[str, Value], ...]:
        """Outputs and auxiliary outputs."""
        return self.outputs + self.aux

    @cached_property
    def ops(self) -> Counter[str]:
        """How many nodes of each op there are."""
        return Counter([node.op for node in self.nodes])

    @cached_property
    def live(self) -> tuple[Node, ...]:
        """The nodes that some result depends on, in order."""
        wanted = {value for _, value in self.results}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        return self.nodes if len(kept) == len(self.nodes) else tuple(reversed(kept))

    @cached_property
    def named(self) -> frozenset[str]:
        """The weights that nodes name."""
        return frozenset([name for node in self.nodes for _, name in node.weights])

    @cached_property
    def has_no_twins(self) -> bool:
        """Whether no two nodes apply one op to the same inputs (seen through forks) with the same weights: no two calls are equal then."""
        nodes = [node for node in self.nodes if node.op != "fork"] if "fork" in self.ops else self.nodes
        if len(nodes) == len(self.nodes):
            return len({(n.op, n.inputs) for n in nodes}) == len(nodes) or len({(n.op, n.inputs, n.weights) for n in nodes}) == len(nodes)
        source: dict[Value, Value] = {}
        for node in self.nodes:
            if node.op == "fork":
                source |= dict.fromkeys(node.outputs, source.get(node.inputs[0], node.inputs[0]))
        calls = {(node.op, tuple([source.get(v, v) for v in node.inputs]), node.weights) for node in nodes}
        return len(calls) == len(nodes)

    @cached_property
    def facts(self) -> Facts:
        """What the preconditions let one assume of the runtime dims."""
        facts = Facts()
        for r in self.requires:
            if r.op == "==" and r.divisor:
                facts.add_divisible(r.left - r.right, r.divisor)
            elif r.op == "==":
                facts.add_equal(r.left, r.right)
        return facts

    @cached_property
    def parameters(self) -> int:
        """How many numbers the weights hold, shared ones once, buffers not counted."""
        return sum(w.numel for w in self.weights.values() if not w.buffer)

    def with_(self, **changes: Any) -> Graph:
        """The graph with fields replaced; weights that nothing names any more are dropped."""
        graph = replace(self, **changes)
        if "nodes" not in changes or "weights" in changes:
            return graph
        if len(graph.named) == len(graph.weights):
            return graph
        return replace(graph, weights={n: w for n, w in graph.weights.items() if n in graph.named})

    @cached_property
    def key(self) -> str:
        """A canonical digest: equal for equal architectures, whatever their names, spans and order of statements."""
        from .key import key

        return key(self)

    def __str__(self) -> str:
        from .text import dump

        return dump(self)

    def __reduce__(self) -> tuple[Any, ...]:
        from .text import read

        return read, (str(self),)

    def summary(self, **sizes: int) -> Summary:
        """The table of layers: path, output shape, parameters, FLOPs, state bytes. `sizes` give runtime names integers."""
        from ..view.summary import summary

        return summary(self, sizes)

    def svg(self, **options: Any) -> str:
        """The picture as SVG text; see `graphir.view.svg.svg` for the options."""
        from ..view.svg import svg

        return svg(self, **options)

    def _repr_svg_(self) -> str:
        return self.svg()

    def to_networkx(self) -> Any:
        """A `networkx.MultiDiGraph` of nodes with op, path, attrs, weights, type; edges carry type, source and target port."""
        from .bridge import to_networkx

        return to_networkx(self)
