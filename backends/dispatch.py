"""Not computing what was not chosen: filters whose branches act per token run each branch on the tokens that chose it.

What stands at the end of a branch and acts on every token alike (linear maps, norms, activations, whole inner filters) is run on
the chosen rows alone; what mixes tokens before it (attention, recurrences, convolutions) is computed for all tokens. The graph
that comes out has `routes` and `send` (or, with shapes known beforehand, `seats` and `deal`) and `collect` in the place of the
filter; weights, paths and results are the same, gradients too.

A filter is eligible if a weight of zero has no gradient: its weights come from a choice (`keep = k`, `capacity`, expert choice,
a hard or sparse normaliser) over scores whose normaliser gives exact zeros only where it is flat. One choice per sample, and a
straight-through choice (its gradient reads all branches), stay dense; so do filters that the program puts on other backends than fx.

Two forms. `sorted`: rows of each branch by a count known at run time; does no more work than was chosen. `static`: as many seats
for each branch as its capacity, shapes that follow from those of the inputs, nothing read back from the device; only where a
capacity or expert choice bounds the load, dense elsewhere. `auto` takes `sorted`, and leaves a filter dense where that costs less:

    saved = N (1 - k / n) F / RATE      against      STEP (STEPS + n) + 8 N k (in + out) / BANDWIDTH

with N tokens, k of n branches per token, F the floating-point operations of all branches for one token, in and out the widths
moved. Measured on one CPU core (tests/bench/dispatch.py).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphir.bricks.build import Builder
from graphir.bricks.declare import REGISTRY, Declaration
from graphir.ir.dims import Dim, evaluate, free_names, symbol
from graphir.ir.graph import Attrs, Graph, Node, Value, Where
from graphir.ir.scalar import runtime_names
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest
from graphir.passes.rewrite import dead_code

FORMS = ("auto", "dense", "sorted", "static")

RATE = 3e10  # floating-point operations a second
BANDWIDTH = 5e9  # bytes a second, gathered and scattered
STEP = 4e-6  # seconds for one small call
STEPS = 12  # calls that routing, sending and collecting add, besides one a branch
TOKENS = 1024  # where the sizes are not known

KEEPS = ("keep_top", "keep_biased", "capacity", "expert_choice")  # what is not chosen has no gradient
FLAT = (  # a score of exactly zero has a derivative of zero
    "softmax", "sparsemax", "entmax", "sigmoid", "gumbel", "softmax_masked", "grid_softmax", "hierarchical_softmax", "mixture_softmax",
    "softmax_mad", "relu", "hardmax",
)
SPARSE = ("sparsemax", "entmax", "hardmax")  # give zeros by themselves
LAST_AXIS = ("split", "concat", "slice")  # act per token where their axis is -1


def dispatch(graph: Graph, form: str = "auto", tokens: int = TOKENS) -> Graph:
    """The graph with its eligible filters run sparsely; the same object where there are none.

    `form`: auto, dense, sorted or static (see the module's text). `tokens`: how many to expect where the types do not say.
    Raises GraphirError E0806 for another form.
    """
    if form not in FORMS:
        help = nearest(form, FORMS) or (f"there are {', '.join(FORMS)}",)
        raise GraphirError(Diagnostic("E0806", f"there is no dispatch `{form}`", help=help))
    if form == "dense" or "filter" not in graph.ops:
        return graph
    found = _eligible(graph, form, tokens)
    return _Walk(graph, found).run() if found else graph


# which filters, and what of their branches


@dataclass(eq=False)
class Branch:
    """What of a branch is run on rows: `nodes` in order, from the tensors in `feeds` to `out`. Without nodes, `out` is all it feeds on."""

    out: Value
    nodes: list[Node] = field(default_factory=list)
    feeds: list[Value] = field(default_factory=list)


@dataclass(eq=False)
class Sparse:
    """A filter that is run sparsely; `limit` is None for the sorted form, else the attributes of `seats`."""

    node: Node
    branches: list[Branch]
    limit: Mapping[str, Any] | None


def _eligible(graph: Graph, form: str, tokens: int) -> dict[Node, Sparse]:
    place = {node: i for i, node in enumerate(graph.nodes)}
    users: dict[Value, list[Node | None]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            users.setdefault(value, []).append(node)
    for _, value in graph.results:
        users.setdefault(value, []).append(None)
    found: dict[Node, Sparse] = {}
    for node in graph.nodes:
        if node.op != "filter" or node.where.backend not in (None, "fx"):
            continue
        choice = _choice(node)
        if choice is None:
            continue
        branches = [_branch(node, port, users, place) for port in range(1, len(node.inputs))]
        limit = choice.limit if form == "static" else None
        if (form == "static" and limit is None) or (form == "auto" and not _pays(node, branches, choice, tokens, graph)):
            continue
        if any(branch.nodes for branch in branches):
            found[node] = Sparse(node, branches, limit)
    return found


@dataclass(frozen=True)
class Choice:
    """How many branches a token takes at most (a guess where the data decides), and what bounds the load of a branch, if anything."""

    kept: float
    limit: Mapping[str, Any] | None


def _choice(filter: Node) -> Choice | None:
    """How the weights of a filter were chosen; None where a weight of zero may have a gradient."""
    value, kept, limit = filter.inputs[0], None, None
    branches = len(filter.inputs) - 1
    tokens = filter.outputs[0].type.shape[:-1]
    if not tokens or value.type.shape[:-1] != tokens:
        return None
    while value.node is not None:
        node = value.node
        if node.op in KEEPS:
            limit = limit or _limit(node)
            kept = kept or node.attrs.get("k") or (node.attrs["factor"] if node.op == "expert_choice" else None)
        elif node.op in FLAT:
            return _ended(node, kept, limit, branches)
        elif node.op not in ("scale", "group_keep", "id"):
            return None
        value = node.inputs[0]
    return None


def _ended(node: Node, kept: float | None, limit: Mapping[str, Any] | None, branches: int) -> Choice | None:
    if node.attrs.get("straight_through"):
        return None
    before = node.inputs[0].node
    if kept is None and before is not None and before.op == "keep_logits":
        kept = before.attrs["k"]
    if kept is None and node.op in SPARSE and node.attrs.get("alpha", 2.0) > 1:
        kept = 1 if node.op == "hardmax" else max(1.0, branches / 2)
    return Choice(float(min(kept, branches)), limit) if kept is not None else None


def _limit(node: Node) -> Mapping[str, Any] | None:
    if node.op == "capacity":
        return {"limit": node.attrs["limit"]}
    return {"factor": node.attrs["factor"]} if node.op == "expert_choice" else None


def _branch(filter: Node, port: int, users: Mapping[Value, list[Node | None]], place: Mapping[Node, int]) -> Branch:
    """The nodes that serve this branch alone and act per token, from its end upwards."""
    out = filter.inputs[port]
    tokens = out.type.shape[:-1]
    inside: set[Node] = set()
    feeds: dict[Value, None] = {}
    waiting: list[tuple[int, Value]] = []

    def ask(value: Value) -> None:
        heapq.heappush(waiting, (-place[value.node] if value.node else 1, len(order), value))  # type: ignore[misc]
        order.append(value)

    order: list[Value] = []
    ask(out)
    once = list(filter.inputs).count(out) == 1
    while waiting:
        value = heapq.heappop(waiting)[-1]
        node = value.node
        if node is None or node in inside:
            if node is None:
                feeds[value] = None
            continue
        alone = all(user in inside or (user is filter and v is out and once) for v in node.outputs for user in users.get(v, ()))
        if not alone or not _per_token(node, tokens):
            feeds[value] = None
            continue
        inside.add(node)
        for source in node.inputs:
            ask(source)
    nodes = sorted(inside, key=place.__getitem__)
    return Branch(out, nodes, [v for v in feeds if _aligned(v, tokens)] if nodes else [out])


def _aligned(value: Value, tokens: tuple[Dim, ...]) -> bool:
    return value.type.shape[:-1] == tokens and len(value.type.shape) == len(tokens) + 1


def _per_token(node: Node, tokens: tuple[Dim, ...]) -> bool:
    """Whether a node does to each token what it would do to it alone, and can be told rows in the place of `tokens`."""
    declaration = REGISTRY[node.op]
    if declaration.random or declaration.state or any(rule.buffer for rule in declaration.weights):
        return False
    if not (declaration.per_token or _on_last_axis(node)) or runtime_names(tuple(node.attrs.values())):
        return False
    fits = all(_aligned(v, tokens) or len(v.type.shape) <= 1 for v in node.inputs)
    return fits and any(_aligned(v, tokens) for v in node.inputs) and all(_aligned(v, tokens) for v in node.outputs)


def _on_last_axis(node: Node) -> bool:
    return node.op == "blend" or (node.op in LAST_AXIS and node.attrs.get("axis") == -1)


def _pays(filter: Node, branches: list[Branch], choice: Choice, tokens: int, graph: Graph) -> bool:
    """The cost model."""
    shape = filter.outputs[0].type.shape[:-1]
    sizes = {name: 8 for d in shape for name in free_names(d)}
    count = math.prod([evaluate(dim, sizes) for dim in shape])
    total = sum([_operations(REGISTRY[n.op], n, sizes, graph) for b in branches for n in b.nodes])
    moved = sum([evaluate(v.type.shape[-1], sizes) for v in (filter.outputs[0], branches[0].feeds[0])])
    number = tokens if sizes else count
    saved = number * (1 - choice.kept / len(branches)) * total / max(count, 1) / RATE
    return saved > STEP * (STEPS + len(branches)) + 8 * number * choice.kept * moved / BANDWIDTH


def _operations(declaration: Declaration, node: Node, sizes: Mapping[str, int], graph: Graph) -> int:
    flops = declaration.flops(tuple([v.type for v in node.inputs]), node.attrs, graph.facts)
    names = {n: sizes.get(n, 8) for n in free_names(flops)}
    return evaluate(flops, names)


def _forked(value: Value) -> Value:
    """What a fork's result is a copy of: all branches read the same rows."""
    while value.node is not None and value.node.op == "fork":
        value = value.node.inputs[0]
    return value


# the graph that runs them


class _Walk:
    """One forward walk; a branch's nodes wait until its filter comes, and are then made again over rows."""

    def __init__(self, graph: Graph, found: Mapping[Node, Sparse]):
        self.graph, self.found = graph, found
        self.inner = {node for sparse in found.values() for branch in sparse.branches for node in branch.nodes}
        self.builder = Builder(graph.facts, weights=graph.weights)
        self.paths = {node.where.path for node in graph.nodes}
        self.names = {n for node in graph.nodes for v in (*node.inputs, *node.outputs) for d in v.type.shape for n in free_names(d)}
        self.count = 0

    def run(self) -> Graph:
        moved: dict[Value, Value] = {}
        self.emit((n for n in self.graph.nodes if n not in self.inner), moved)
        outputs, aux = (tuple((name, moved.get(v, v)) for name, v in pairs) for pairs in (self.graph.outputs, self.graph.aux))
        return dead_code(self.graph.with_(nodes=tuple(self.builder.nodes), outputs=outputs, aux=aux))

    def emit(self, nodes: Iterable[Node], moved: dict[Value, Value]) -> None:
        for node in nodes:
            if node in self.found:
                moved[node.outputs[0]] = self.sparse(self.found[node], moved)
            elif any(v in moved for v in node.inputs):
                inputs = [moved.get(v, v) for v in node.inputs]
                made = self.builder.emit(node.op, inputs, node.attrs, node.weights, node.where)
                moved.update(zip(node.outputs, made.outputs))
            else:
                self.builder.add(node)

    def sparse(self, sparse: Sparse, moved: dict[Value, Value]) -> Value:
        """The nodes in the place of a filter: who goes where, rows of what the branches read, the branches, the way back."""
        where = sparse.node.where
        weights = moved.get(sparse.node.inputs[0], sparse.node.inputs[0])
        tokens, cells, send = self._routes(sparse, weights, where)
        rows: dict[Value, tuple[Value, ...]] = {}
        outs = []
        for place, branch in enumerate(sparse.branches):
            inside = dict(moved)
            for value in branch.feeds:
                source = _forked(moved.get(value, value))
                if source not in rows:
                    rows[source] = send(source)
                inside[value] = rows[source][place]
            inner = {n for other in branch.nodes if other in self.found for b in self.found[other].branches for n in b.nodes}
            self.emit((n for n in branch.nodes if n not in inner), inside)
            outs.append(inside[branch.out])
        return self._node("collect", (weights, tokens, cells, *outs), {}, where)[0]

    def _routes(self, sparse: Sparse, weights: Value, where: Where) -> tuple[Value, Value, Any]:
        parts = len(sparse.branches)
        if sparse.limit is None:
            total, lengths = self._name(), tuple([self._name() for _ in range(parts)])
            tokens, cells, counts = self._node("routes", (weights,), {"total": total}, where)
            return tokens, cells, lambda x: self._node("send", (x, tokens, counts), {"rows": lengths}, where)
        length = self._name()
        options = {"total": parts * length, "limit": None, "factor": None, **sparse.limit}
        tokens, cells = self._node("seats", (weights,), options, where)
        return tokens, cells, lambda x: self._node("deal", (x, tokens), {"rows": length, "parts": parts}, where)

    def _node(self, op: str, inputs: tuple[Value, ...], attrs: Mapping[str, Any], where: Where) -> tuple[Value, ...]:
        scope = where.path.rpartition(".")[0]
        path = base = f"{scope}.{op}" if scope else op
        while path in self.paths:
            self.count += 1
            path = f"{base}_{self.count}"
        self.paths.add(path)
        place = where._replace(path=path, frames=(*where.frames[:-1], op))
        return self.builder.emit(op, inputs, Attrs(attrs), (), place).outputs

    def _name(self) -> Dim:
        """A runtime name that nothing has yet: how many rows go somewhere."""
        number = len(self.names)
        while f"R{number}" in self.names:
            number += 1
        self.names.add(f"R{number}")
        return symbol(f"R{number}")
