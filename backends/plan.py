"""The scopes of a graph as nested blocks, ready to be written as code: what each takes, gives and owns, and which are alike.

Passes may leave a scope whose nodes cannot run together (something in between needs a part of it and feeds the rest); such a
scope is dissolved into its parent. Forks are wires. Nodes that nothing reads are left out; their weights are kept.
Linear in nodes times depth.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, Union

from graphir.bricks.declare import REGISTRY, Registry
from graphir.ir.dims import free_names, substitute, symbol
from graphir.ir.graph import Graph, Node, Value, Weight
from graphir.ir.scalar import runtime_names
from graphir.ir.types import Type
from graphir.lang.diagnostic import Diagnostic, GraphirError
from graphir.passes.partition import HOME, Piece, partition
from graphir.passes.rewrite import common_scope

from .base import axis_that_gives, declaration_of, providers, untold

CONTAINERS = ("[]", "fork", "filter", "pipe")
DEPTH = 128
_SEGMENT = re.compile(r"[A-Za-z0-9_]{1,64}\Z", re.ASCII)


@dataclass(eq=False)
class Part:
    """A block: a scope with code of its own, or (`backend` is not empty) what another backend runs at a time, which owns no weights."""

    path: str
    frame: str
    parent: Part | None
    depth: int
    nodes: list[Node] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    inputs: dict[Value, None] = field(default_factory=dict)
    outputs: dict[Value, None] = field(default_factory=dict)
    weights: dict[str, None] = field(default_factory=dict)
    owned: list[tuple[str, Weight]] = field(default_factory=list)
    contents: list[Part | tuple[str, Weight]] = field(default_factory=list)
    kind: int = -1
    backend: str = ""

    @property
    def prefix(self) -> str:
        return f"{self.path}." if self.path else ""

    @property
    def above(self) -> Part:
        """The part around this one, which is not the root."""
        assert self.parent is not None
        return self.parent

    def local(self, path: str) -> str:
        """A path below this part, as seen from here."""
        return path[len(self.prefix) :]


Item: TypeAlias = Union[Node, Part]


@dataclass(eq=False)
class Plan:
    """`root` and, for each kind of alike blocks, the first (innermost kinds come first)."""

    graph: Graph
    root: Part
    kinds: list[Part]
    origin: dict[Value, Value]
    sizes: dict[Node, dict[str, Value]]
    registry: Registry

    @cached_property
    def paths(self) -> frozenset[str]:
        """The scopes that are blocks."""
        return frozenset(part.path for part in _top_down(self.root))

    def source(self, value: Value) -> Value:
        """The value itself, or what it is a copy of."""
        return self.origin.get(value, value)

    def inputs_of(self, node: Node) -> tuple[Value, ...]:
        return tuple([self.origin.get(v, v) for v in node.inputs])


def plan(graph: Graph, registry: Registry = REGISTRY, cut: bool = False) -> Plan:
    """Arrange a graph in blocks; with `cut`, what other backends than fx run becomes blocks of its own.

    Raises GraphirError E0805 for names that cannot be those of modules.
    """
    check_names(graph)
    origin = _wires(graph, registry)
    result = Plan(graph, Part("", graph.name, None, 0), [], origin, {}, registry)
    told = providers(graph)
    waiting = _waiting(graph, registry)
    _check_told(graph, waiting, told)
    live = _live(graph, origin, {told[n] for names in waiting.values() for n in names})
    waiting = {node: waiting[node] for node in live if node in waiting}
    pieces = _pieces(graph, waiting, told) if cut else ()
    homes = _grow(result, live, pieces)
    order = {node: place for place, node in enumerate(live)}
    extra = {node: [told[n] for n in names] for node, names in waiting.items()}
    for part in _top_down(result.root):
        _arrange(part, result, order, extra)
    for part in _top_down(result.root):
        for node in part.nodes:
            homes[node] = part
    _connect(result, live, homes, order, waiting, told)
    _own(result, live, homes)
    _intern(result)
    return result


def check_names(graph: Graph) -> None:
    """Every path and weight name is made of plain words. Raises GraphirError E0805."""
    names = [*graph.weights, *(node.where.path for node in graph.nodes if node.where.path)]
    bad = [n for n in names if n.count(".") >= DEPTH or not all(map(_SEGMENT.match, n.split(".")))]
    bad += [n for n, _ in graph.inputs if not _SEGMENT.match(n) or n[0].isdigit()]
    bad += [n for n, _ in graph.results if n and not all(map(_SEGMENT.match, n.split(".")))]
    scopes = {n[:at] for n in graph.weights for at, c in enumerate(n) if c == "."}
    problems = [Diagnostic("E0805", f"`{n[:80]!r}` cannot name a part of a module") for n in bad]
    problems += [Diagnostic("E0805", f"`{n}` is both a weight and a part that has weights") for n in graph.weights if n in scopes]
    if problems:
        raise GraphirError(problems)


def _wires(graph: Graph, registry: Registry) -> dict[Value, Value]:
    """For each result of a fork, the value that it is."""
    origin: dict[Value, Value] = {}
    for node in graph.nodes:
        if declaration_of(node, registry).kind == "fork":
            source = origin.get(node.inputs[0], node.inputs[0])
            origin.update((v, source) for v in node.outputs)
    return origin


def _live(graph: Graph, origin: dict[Value, Value], told: set[Value]) -> list[Node]:
    """The nodes that results depend on, and those whose shape tells a size; without forks."""
    wanted = told | {origin.get(v, v) for _, v in graph.results}
    live: list[Node] = []
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.outputs) and node.outputs[0] not in origin:
            live.append(node)
            wanted.update(origin.get(v, v) for v in node.inputs)
    live.reverse()
    return live


def _waiting(graph: Graph, registry: Registry) -> dict[Node, list[str]]:
    """The runtime names that the attributes of nodes wait for."""
    found: dict[Node, list[str]] = {}
    for node in graph.nodes:
        names = runtime_names(tuple(declaration_of(node, registry).static_arguments(node.attrs).values()))
        if names:
            found[node] = sorted(names)
    return found


def _check_told(graph: Graph, waiting: dict[Node, list[str]], told: dict[str, Value]) -> None:
    """Every size that a node waits for is told by an earlier value. Raises GraphirError E0804."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node, names in waiting.items():
        for name in names:
            maker = told[name].node if name in told else node
            if maker is not None and places[maker] >= places[node]:
                raise untold(node, name)


def _pieces(graph: Graph, waiting: dict[Node, list[str]], told: dict[str, Value]) -> tuple[Piece, ...]:
    """What other backends than fx run."""
    if all(node.where.backend in (None, HOME) for node in graph.nodes):
        return ()
    needs = {node: [told[n] for n in names] for node, names in waiting.items()}
    return tuple([piece for piece in partition(graph, needs) if piece.backend != HOME])


def _grow(result: Plan, live: Sequence[Node], pieces: Sequence[Piece] = ()) -> dict[Node, Part]:
    homes: dict[Node, Part] = {}
    scopes: dict[str, Part] = {"": result.root}
    _grow_pieces(result, live, pieces, scopes, homes)
    for node in live:
        if node in homes:
            continue
        scope = node.where.path.rpartition(".")[0]
        part = scopes.get(scope)
        if part is None:
            part = _scope(result.root, scopes, scope, node.where.frames)
        part.nodes.append(node)
        homes[node] = part
    return homes


def _grow_pieces(result: Plan, live: Sequence[Node], pieces: Sequence[Piece], scopes: dict[str, Part], homes: dict[Node, Part]) -> None:
    """A part for each piece, in the innermost scope that holds all of it."""
    if not pieces:
        return
    alive = set(live)
    taken = {*result.graph.weights, *(node.where.path for node in live)}
    taken |= {name[:at] for name in taken for at, c in enumerate(name) if c == "."}
    for piece in pieces:
        nodes = [node for node in piece.nodes if node in alive]
        if not nodes:
            continue
        scope, frames = _shared_scope(nodes)
        above = scopes.get(scope) or _scope(result.root, scopes, scope, frames)
        path = base = f"{above.prefix}{piece.backend}"
        count = 0
        while path in taken:
            count += 1
            path = f"{base}_{count}"
        taken.add(path)
        part = Part(path, piece.backend, above, above.depth + 1, nodes=nodes, backend=piece.backend)
        above.parts.append(part)
        homes.update(dict.fromkeys(nodes, part))


def _shared_scope(nodes: Sequence[Node]) -> tuple[str, tuple[str, ...]]:
    scope = tuple(nodes[0].where.path.split(".")[:-1])
    for node in nodes[1:]:
        scope = common_scope(".".join((*scope, "")), node.where.path)
    return ".".join(scope), nodes[0].where.frames[: len(scope)]


def _scope(root: Part, scopes: dict[str, Part], scope: str, frames: tuple[str, ...]) -> Part:
    """The part for a scope path; lists, forks, filters and pipes belong to the part around them, but places of lists do not."""
    part, path = root, ""
    for place, segment in enumerate(scope.split(".")):
        path = f"{path}.{segment}" if path else segment
        known = scopes.get(path)
        frame = frames[place] if place < len(frames) else ""
        if known is None and frame in CONTAINERS and not (frame == "pipe" and segment.isdigit()):
            known = part
        elif known is None:
            known = Part(path, frame, part, part.depth + 1)
            part.parts.append(known)
        part = scopes[path] = known
    return part


def _top_down(root: Part) -> Iterator[Part]:
    stack = [root]
    while stack:
        part = stack.pop()
        yield part
        stack.extend(reversed(part.parts))


def _all_nodes(part: Part) -> list[Node]:
    return [node for p in _top_down(part) for node in p.nodes]


def _arrange(part: Part, result: Plan, order: dict[Node, int], extra: dict[Node, list[Value]]) -> None:
    """Set `items` to an order in which nodes and whole child parts can run, dissolving child parts until there is one."""
    while True:
        item_of: dict[Node, Item] = {node: node for node in part.nodes}
        first: dict[Item, int] = {node: order[node] for node in part.nodes}
        for child in part.parts:
            inner = _all_nodes(child)
            item_of.update(dict.fromkeys(inner, child))
            first[child] = min(order[node] for node in inner)
        before: dict[Item, dict[Item, None]] = {item: {} for item in first}
        for node, item in item_of.items():
            for value in (*result.inputs_of(node), *extra.get(node, ())):
                source = item_of.get(value.node) if value.node else None
                if source is not None and source is not item:
                    before[item][source] = None
        part.items, stuck = _ordered(before, first)
        if not stuck:
            return
        _dissolve(part, stuck)


def _ordered(before: dict[Item, dict[Item, None]], first: dict[Item, int]) -> tuple[list[Item], list[Item]]:
    """Topological order, earliest first, and the items that loops leave over."""
    after: dict[Item, list[Item]] = {item: [] for item in before}
    missing = {item: len(sources) for item, sources in before.items()}
    for item, sources in before.items():
        for source in sources:
            after[source].append(item)
    by_place = {place: item for item, place in first.items()}
    ready = [first[item] for item, count in missing.items() if not count]
    heapq.heapify(ready)
    done: list[Item] = []
    while ready:
        item = by_place[heapq.heappop(ready)]
        done.append(item)
        for follower in after[item]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(ready, first[follower])
    finished = set(done)
    return done, [item for item in before if item not in finished]


def _dissolve(part: Part, stuck: list[Item]) -> None:
    """Merge the smallest half of the child parts that a loop runs through into their parent."""
    assert any(isinstance(i, Part) and not i.backend for i in stuck), "the nodes and the pieces of a graph are in topological order"
    children = sorted((i for i in stuck if isinstance(i, Part) and not i.backend), key=lambda p: (len(_all_nodes(p)), p.path))
    for child in children[: (len(children) + 1) // 2]:
        part.parts.remove(child)
        part.nodes += child.nodes
        part.parts += child.parts
        for grandchild in child.parts:
            grandchild.parent = part
    for lower in _top_down(part):
        for child in lower.parts:
            child.depth = lower.depth + 1


def _connect(
    result: Plan,
    live: Sequence[Node],
    homes: dict[Node, Part],
    order: dict[Node, int],
    waiting: dict[Node, list[str]],
    told: dict[str, Value],
) -> None:
    """Fill in what crosses the borders of parts, and where each runtime size is read."""

    def use(value: Value, part: Part) -> None:
        home = homes[value.node] if value.node else result.root
        while part.depth > home.depth:
            part.inputs[value] = None
            part = part.above
        while home is not part:
            home.outputs[value] = None
            home = home.above
            if part.depth > home.depth:
                part.inputs[value] = None
                part = part.above

    result.root.inputs = dict.fromkeys(value for _, value in result.graph.inputs)
    for node in live:
        part = homes[node]
        for value in result.inputs_of(node):
            use(value, part)
        for _, name in node.weights:
            reader = part
            while not name.startswith(reader.prefix):
                reader.weights[name] = None
                reader = reader.above
    for _, value in result.graph.results:
        use(result.source(value), result.root)
    for node, names in waiting.items():
        result.sizes[node] = {name: _telling(name, node, homes[node], result, order, told) for name in names}
        for value in result.sizes[node].values():
            use(value, homes[node])
    for part in _top_down(result.root):
        part.outputs = dict.fromkeys(sorted(part.outputs, key=lambda v: (order[v.node], v.node.outputs.index(v))))  # type: ignore


def _telling(name: str, node: Node, part: Part, result: Plan, order: dict[Node, int], told: dict[str, Value]) -> Value:
    """The nearest value whose shape tells a runtime name: the node's own inputs, then those of the parts around it."""
    for value in result.inputs_of(node):
        if axis_that_gives(value.type, name):
            return value
    around: Part | None = part
    while around is not None:
        for value in around.inputs:
            early = value.node is None or order[value.node] < order[node]
            if early and axis_that_gives(value.type, name):
                return value
        around = around.parent
    return told[name]


def _own(result: Plan, live: Sequence[Node], homes: dict[Node, Part]) -> None:
    """Give each weight to the innermost part above its name; list parts and weights in order of first use."""
    parts = {p.path: p for p in _top_down(result.root)}
    seen: set[Part] = {result.root}
    placed: dict[str, None] = {}

    def visit(part: Part) -> None:
        chain = []
        while part not in seen:
            chain.append(part)
            seen.add(part)
            part = part.above
        for inner in reversed(chain):
            inner.above.contents.append(inner)

    def place(name: str) -> None:
        placed[name] = None
        scope = name.rpartition(".")[0]
        while scope not in parts:
            scope = scope.rpartition(".")[0]
        owner = parts[scope]
        entry = (owner.local(name), result.graph.weights[name])
        owner.owned.append(entry)
        owner.contents.append(entry)

    for node in live:
        visit(homes[node])
        for _, name in node.weights:
            if name not in placed:
                place(name)
    for name in result.graph.weights:
        if name not in placed:
            place(name)


def _intern(result: Plan) -> None:
    """Number the kinds of parts: same number, same code."""
    known: dict[Any, int] = {}
    for part in reversed(list(_top_down(result.root))):
        key = _structure(part, result)
        part.kind = known.setdefault(key, len(known))
        if part.kind == len(result.kinds):
            result.kinds.append(part)


def _structure(part: Part, result: Plan) -> Any:
    numbers: dict[Value, int] = {value: place for place, value in enumerate(part.inputs)}
    arguments = {name: place for place, name in enumerate(part.weights)}
    items = []
    for item in part.items:
        if isinstance(item, Node):
            shape: Any = _node_structure(item, part, result, numbers, arguments)
        else:
            reads = tuple([numbers[v] for v in item.inputs])
            shape = (item.kind, part.local(item.path), reads, tuple([_weight(n, part, arguments) for n in item.weights]))
        items.append(shape)
        for value in item.outputs:
            numbers[value] = len(numbers)
    types = tuple([v.type for v in part.inputs])
    if not any(item in result.sizes for item in part.items):
        types = _unnamed(types)
    owned = tuple([(n, w.shape, w.frozen, w.buffer) for n, w in part.owned])
    return part.parent is None, part.frame, part.backend, types, tuple(items), tuple([numbers[v] for v in part.outputs]), owned


def _unnamed(types: tuple[Type, ...]) -> tuple[Any, ...]:
    """Types up to the names of sizes, which code that reads no size does not depend on (branches of a filter have rows of their own)."""
    names = dict.fromkeys(n for t in types for d in t.shape for n in sorted(free_names(d)))
    plain = {name: symbol(f"S{place}") for place, name in enumerate(names)}
    return tuple([(t.dtype, *[substitute(d, plain.get) for d in t.shape]) for t in types])


def _weight(name: str, part: Part, arguments: dict[str, int]) -> Any:
    return arguments[name] if name in arguments else part.local(name)


def _node_structure(node: Node, part: Part, result: Plan, numbers: dict[Value, int], arguments: dict[str, int]) -> Any:
    attrs = tuple(sorted((k, repr(v)) for k, v in node.attrs.items()))
    weights = tuple([(role, _weight(name, part, arguments)) for role, name in node.weights])
    reads = tuple([numbers[v] for v in result.inputs_of(node)])
    sizes = tuple([(n, numbers[v]) for n, v in result.sizes.get(node, {}).items()])
    return node.op, attrs, weights, reads, sizes, len(node.outputs), node.where.backend
