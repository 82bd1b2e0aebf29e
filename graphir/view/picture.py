"""What a picture of a graph shows: boxes, clusters and edges, with their texts and sizes, before any layout.

Scopes to a depth become clusters, deeper ones single boxes; repeats are drawn once and bear how often they stand. Nothing
here depends on the layout engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.graph import Graph, Node, Value
from ..ir.types import Type
from ..lang import syntax as s
from . import format as f
from .boxes import Box, Cluster, Edge, Picture
from .scopes import Fold, Part, Piece, contents, relative, tree
from .shared import Mark, Sharing
from .style import FAMILIES

MOST_BOXES = 150
SYMBOLS = {"add": "+", "sub": "−", "mul": "×", "concat": "‖", "mean": "μ", "max": "max", "stack": "≡", "gate": "σ"}


def picture(graph: Graph, depth: int | str | None = None, fold: bool = True, title: str | None = None) -> Picture:
    """What to draw. `depth`: levels of scopes shown, `"all"`, or None for as many as stay within `MOST_BOXES` boxes."""
    graph = _seen(graph)
    root = tree(graph, fold)
    levels = _deepest(root) if depth is None else 10**9 if depth == "all" else int(depth)
    return _Painter(graph, root, max(levels, 1), title).paint()


def _seen(graph: Graph) -> Graph:
    """The graph without auxiliary outputs and the nodes that serve them alone: losses and loads are not the architecture."""
    if not graph.aux:
        return graph
    ways = {name: _above(graph, results) for name, results in (("main", graph.outputs), ("aux", graph.aux))}
    hidden = ways["aux"] - ways["main"]
    return graph.with_(nodes=tuple(node for node in graph.nodes if node not in hidden), aux=())


def _above(graph: Graph, results: Iterable[tuple[str, Value]]) -> set[Node]:
    """All nodes that these results depend on."""
    found = {value.node for _, value in results if value.node is not None}
    for node in reversed(graph.nodes):
        if node in found:
            found.update(value.node for value in node.inputs if value.node is not None)
    return found


def _inside(piece: Piece) -> list[Piece]:
    """What an open scope holds; nothing where it stays one box whatever the depth."""
    part = _sole(piece)
    return list(contents(part)) if part is not None and len(part.nodes) > 1 else []


def _level(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of one level: repeated stretches of several siblings are open always."""
    for piece in pieces:
        if isinstance(piece, Fold) and _sole(piece) is None:
            yield from _level(piece.unit)
        else:
            yield piece


def _deepest(root: Part) -> int:
    """The largest depth that draws at most `MOST_BOXES` boxes, at least 1."""
    level, depth = list(_level(contents(root))), 1
    while True:
        below = [inner for piece in level for inner in _level(_inside(piece) or [piece])]
        if len(below) > MOST_BOXES or not any(_inside(piece) for piece in level):
            return depth
        level, depth = below, depth + 1


class _Painter:
    def __init__(self, graph: Graph, root: Part, depth: int, title: str | None):
        self.graph, self.root, self.depth = graph, root, depth
        self.sharing = Sharing(graph)
        size = f"{f.parameters(graph.parameters)} parameters" if graph.parameters else ""
        self.out = Picture(graph.name if title is None else title, size)
        self.home: dict[Node, Box] = {}
        self.stands_for: dict[Node, Node] = {}
        self.idents: dict[str, int] = {}
        self.sources: dict[Value, Box] = {}

    def paint(self) -> Picture:
        for name, value in self.graph.inputs:
            self.sources[value] = self._pill("input", name, value)
        self._place(list(contents(self.root)), "", None, 1)
        self._wire()
        marks = [mark.name for frame in [*self.out.clusters, *self.out.boxes] for mark in frame.marks]
        self.out.marks = list(dict.fromkeys(marks))
        return self.out

    def _place(self, pieces: list[Piece], base: str, cluster: Cluster | None, level: int, marked: bool = False) -> None:
        for piece in pieces:
            self._alias(piece)
            part = _sole(piece)
            if isinstance(piece, Fold) and part is None:
                self._place(list(piece.unit), base, self._cluster(piece, None, base, cluster, None), level, marked)
                continue
            assert part is not None
            inside = _inside(piece)
            if not inside or level >= self.depth:
                self._box(piece, base, cluster, marked)
                continue
            mark = None if marked else self.sharing.whole(part)
            opened = self._cluster(piece, part, base, cluster, mark)
            self._place(inside, part.path, opened, level + 1, marked or mark is not None)

    def _alias(self, piece: Piece) -> None:
        """Nodes of later repeats are drawn as the first one's."""
        if isinstance(piece, Part):
            return
        first = [node for part in piece.copies[0] for node in part.nodes]
        for copy in piece.copies[1:]:
            self.stands_for.update(zip([node for part in copy for node in part.nodes], first))

    def _drawn(self, node: Node) -> Box:
        while node in self.stands_for:
            node = self.stands_for[node]
        return self.home[node]

    def _ident(self, prefix: str, path: str) -> str:
        """A stable XML id from a path; the second of the same gets `-2`."""
        base = f"{prefix}-{re.sub(r'[^A-Za-z0-9_.-]', '-', path)}"
        seen = self.idents[base] = self.idents.get(base, 0) + 1
        return base if seen == 1 else f"{base}-{seen}"

    def _pill(self, kind: str, name: str, value: Value) -> Box:
        box = Box(
            f"n{len(self.out.boxes)}", self._ident(kind, name), None, kind, f.clip(name, 28), f.clip(self._shape(value), 40), shape="pill",
            tooltip=f"{kind} {name}: {value.type}",
        ).fit()
        self.out.boxes.append(box)
        return box

    def _cluster(self, piece: Piece, part: Part | None, base: str, parent: Cluster | None, mark: Mark | None) -> Cluster:
        title, name = _names(piece, part, base)
        size = self.sharing.owned(self.graph, _first(piece))
        backend = _backend(piece)
        shown = backend if backend != (parent.backend if parent else "") else ""
        cluster = Cluster(
            f"cluster_{len(self.out.clusters)}", self._ident("scope", piece.path), parent, "scope", title, name,
            note=self._params(_first(piece), size), count=piece.count if isinstance(piece, Fold) else 1, backend=shown,
            marks=(mark,) if mark else (), tooltip=_about_scope(piece, size),
        )
        self.out.clusters.append(cluster)
        return cluster

    def _box(self, piece: Piece, base: str, cluster: Cluster | None, marked: bool) -> None:
        part = _sole(piece)
        nodes = _first(piece)
        size = self.sharing.owned(self.graph, _first(piece))
        count = piece.count if isinstance(piece, Fold) else 1
        marks = () if marked or part is None else self.sharing.marks(part)
        backend = _backend(piece)
        shown = backend if backend != _backend_of(cluster) else ""
        params = self._params(nodes, size)
        if len(nodes) == 1:
            box = self._node(nodes[0], piece, part, base, params)
        else:
            title, name = _names(piece, part, base)
            box = Box("", "", None, "scope", title, name, _params_alone(params), tooltip=_about_scope(piece, size))
        box.key, box.ident, box.cluster = f"n{len(self.out.boxes)}", self._ident("node", piece.path), cluster
        box.count, box.marks, box.backend = count, marks, shown
        if box.shape in ("circle", "point") and (count > 1 or shown):
            box.shape = "rect"
        self.out.boxes.append(box.fit())
        for node in nodes:
            self.home[node] = box

    def _params(self, nodes: list[Node], size: int) -> str:
        """`1.2M`, `1.2M frozen` where training leaves all of it alone, nothing where there is none."""
        frozen = all(self.graph.weights[name].frozen for node in nodes for _, name in node.weights)
        return (f.parameters(size) + (" frozen" if frozen else "")) if size else ""

    def _node(self, node: Node, piece: Piece, part: Part | None, base: str, params: str) -> Box:
        declaration = REGISTRY.get(node.op)
        kind = declaration.kind if declaration else node.op if node.op in ("fork", "stitch", "filter") else "brick"
        kind = "join" if node.op in SYMBOLS else kind
        settings = f.config(node, defaults(node.op))
        symbol = SYMBOLS.get(node.op, "")
        tooltip = _about_node(node, self.graph)
        if kind == "fork":
            return Box("", "", None, kind, "", shape="point", tooltip=tooltip)
        if symbol and not node.weights and all(text.startswith("axis=") for text in settings):
            return Box("", "", None, kind, symbol, shape="circle", tooltip=tooltip)
        title, name, note = node.op, _own_name(piece, part, node, base), " ".join(settings[:3])
        if kind == "stitch":
            title, name, note = f"{_last(node.inputs)} → {_last(node.outputs)}", "", str(node.attrs.get("form", ""))
        note = f"{f.clip(note, 34)} · {params}" if note and params else f.clip(note, 34) or _params_alone(params)
        shape = {"filter": "hexagon", "stitch": "stitch"}.get(kind, "rect")
        if kind == "brick":
            family = FAMILIES.get(declaration.file.rpartition(".")[2], "") if declaration else ""
            kind = f"brick {family or ('weighted' if node.weights else 'plain')}"
        return Box("", "", None, kind, f.clip(title, 28), f.clip(name, 24), note, shape=shape, tooltip=tooltip)

    def _wire(self) -> None:
        """Edges between boxes: only those into nodes that are drawn themselves, each value once for each pair of boxes."""
        wires: dict[tuple[Box, Box, Value], tuple[Node | None, int]] = {}
        arriving: dict[Box, set[Type]] = {}
        for node in self.graph.nodes:
            if node in self.stands_for:
                continue
            target = self.home[node]
            for port, value in enumerate(node.inputs):
                source = self._source(value)
                if source is not target:
                    wires.setdefault((source, target, value), (node, port))
                    arriving.setdefault(target, set()).add(value.type)
        pills = [(self._source(value), self._pill("output", name, value), value) for name, value in self.graph.outputs]
        wires.update((key, (None, 0)) for key in pills)
        told = {(source, value.type) for source, _, value in pills} | {(self.sources[v], v.type) for _, v in self.graph.inputs}
        ranks = _ranks(wires)
        for (source, target, value), (node, port) in wires.items():
            label = ""
            if (source, value.type) not in told and value.type not in arriving.get(source, ()):
                label = f.clip(self._shape(value), 30)
                told.add((source, value.type))
            self._edge(source, target, value, node, port, label, self._pull(value, node) if ranks[target] == ranks[source] + 1 else 1)

    def _pull(self, value: Value, node: Node | None) -> int:
        """How much an edge wants to be straight: chains before forks and joins."""
        return 12 if self.graph.uses[value] == 1 and (node is None or len(node.inputs) == 1) else 4

    def _shape(self, value: Value) -> str:
        return f.shape(value.type, None, self.graph.facts)

    def _source(self, value: Value) -> Box:
        return self.sources[value] if value.node is None else self._drawn(value.node)

    def _edge(self, source: Box, target: Box, value: Value, node: Node | None, port: int, label: str, weight: int) -> None:
        kind = "edge"
        if node is not None and node.op == "filter" and target.kind == "filter":
            kind = "edge router" if port == 0 else "edge"
            names = node.attrs.get("branches", ())
            label = f.clip(str(names[port - 1]), 20) if 0 < port <= len(names) else label
        tooltip = f"{value.type}\n{source.ident.partition('-')[2]} → {target.ident.partition('-')[2]}"
        ident = self._ident("edge", f"{source.ident}--{target.ident}")
        self.out.edges.append(Edge(f"e{len(self.out.edges)}", ident, source, target, label, kind, tooltip, weight))


def _ranks(wires: Iterable[tuple[Box, Box, Value]]) -> dict[Box, int]:
    """How many boxes stand above each on its longest path. An edge that spans more than one rank goes round others."""
    below: dict[Box, list[Box]] = {}
    above: Counter[Box] = Counter()
    for source, target, _ in wires:
        below.setdefault(source, []).append(target)
        below.setdefault(target, [])
        above[target] += 1
    ranks = dict.fromkeys(below, 0)
    ready = [box for box in below if not above[box]]
    for box in ready:
        for target in below[box]:
            ranks[target] = max(ranks[target], ranks[box] + 1)
            above[target] -= 1
            if not above[target]:
                ready.append(target)
    return ranks


def _params_alone(params: str) -> str:
    return params if not params or params.endswith("frozen") else f"{params} params"


def _sole(piece: Piece) -> Part | None:
    """The one part that a piece repeats or is; None for a stretch of several."""
    if isinstance(piece, Part):
        return piece
    return piece.copies[0][0] if len(piece.copies[0]) == 1 else None


def _first(piece: Piece) -> list[Node]:
    """The nodes of a piece, of a repeated one those of its first copy."""
    return piece.nodes if isinstance(piece, Part) else [node for part in piece.copies[0] for node in part.nodes]


def _names(piece: Piece, part: Part | None, base: str) -> tuple[str, str]:
    """Title and name of a scope: what it stands for, and how its parent calls it."""
    if part is None:
        return f.clip(relative(piece.path, base), 28), ""
    name = _called(piece, part, base)
    if not part.frame or part.frame == "pipe":
        return f.clip(name, 28), ""
    if re.fullmatch(rf"{re.escape(part.frame)}(_\d+)?", name):
        return f.clip(part.frame, 28), ""
    return f.clip(part.frame, 28), f.clip(name, 24)


def _called(piece: Piece, part: Part, base: str) -> str:
    """How the author calls a part: the last word of its path, or a place in a list with the list's name."""
    return relative(piece.path, base) if part.name.isdigit() else part.name


def _own_name(piece: Piece, part: Part | None, node: Node, base: str) -> str:
    """What the author calls a node, where that says more than its op."""
    name = _called(piece, part, base) if part else ""
    return "" if re.fullmatch(rf"{re.escape(node.op)}(_\d+)?", name) else name


def _backend(piece: Piece) -> str:
    """The backend of a piece, where all its nodes have the same."""
    found = {node.where.backend for node in _first(piece)}
    return (found.pop() or "") if len(found) == 1 else ""


def _backend_of(cluster: Cluster | None) -> str:
    """The backend that the clusters around a box have said already."""
    while cluster is not None:
        if cluster.backend:
            return cluster.backend
        cluster = cluster.cluster
    return ""


def _last(values: tuple[Value, ...]) -> str:
    return str(values[0].type.shape[-1]) if values and values[0].type.shape else "()"


def defaults(op: str) -> dict[str, Any]:
    """The defaults of a brick that are plain constants."""
    declaration = REGISTRY.get(op)
    if declaration is None:
        return {}
    return {name: expr.value for name, expr in declaration.defaults.items() if isinstance(expr, s.Literal)}


def _about_node(node: Node, graph: Graph) -> str:
    lines = [node.where.path or node.op]
    settings = ", ".join(f.config(node, {}))
    lines.append(f"{node.op}({settings})" if settings else node.op)
    lines.append(f"{', '.join(str(v.type) for v in node.inputs)} -> {', '.join(str(v.type) for v in node.outputs)}")
    lines += [f"{name}: {list(graph.weights[name].shape)}{' frozen' if graph.weights[name].frozen else ''}" for _, name in node.weights]
    if node.where.backend:
        lines.append(f"on {node.where.backend}")
    if node.where.span:
        lines.append(str(node.where.span))
    return "\n".join(f.clip(line, 200) for line in lines)


def _about_scope(piece: Piece, size: int) -> str:
    lines = [piece.path]
    if isinstance(piece, Fold):
        lines.append(f"{piece.count} alike, {'one after the other' if piece.chained else 'side by side'}")
    elif piece.frame:
        lines.append(piece.frame)
    if size:
        lines.append(f"{size:,} parameters{' each' if isinstance(piece, Fold) else ''}")
    return "\n".join(f.clip(line, 200) for line in lines)
