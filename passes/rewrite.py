"""Rewriting by one forward walk.

Nodes are offered in topological order, so the inputs of an offered node are final. A rule is a function keyed by the op
that it is offered; it looks up (`node.inputs[0].node`), returns the values that replace the node's outputs, or None. What
it emits is offered again, so one walk reaches the fixpoint of upward-looking rules. Nodes whose inputs did not change are
kept as they are, and a graph in which nothing changed is returned as the same object. With `merge`, equal calls become one
node: common subexpressions are found by construction. Every step is linear in the number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..bricks import catalogue  # noqa: F401 - rewriting looks bricks up, so they must be there
from ..bricks.build import Builder
from ..bricks.declare import REGISTRY
from ..ir.graph import NO_ATTRS, Attrs, Graph, Node, Value, Weight, Where
from .report import Report

DEPTH = 16
NOWHERE = Where("")
BRANCHING = ("fork", "filter")

Rule = Callable[[Node, "Rewriter"], "Sequence[Value] | None"]
Rules = Mapping[str, Sequence[Rule]]


class RuleLoop(RuntimeError):
    """Rules that undo each other: a fault of ours, never of the program."""


class Rewriter:
    """The state of one walk: nodes made so far, what became of each old value, and the inventory of weights."""

    def __init__(self, graph: Graph, rules: Rules | None = None, merge: bool = False, report: Report | None = None):
        self.graph = graph
        self.report = report or Report()
        self.merge = merge
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = dict(graph.weights)
        self.moved: dict[Value, Value] = {}
        self.merged = 0
        self._rules = rules or {}
        self._builder = Builder(graph.facts)
        self._seen: dict[Any, tuple[Value, ...]] = {}
        self._mergeable: dict[str, bool] = {}
        self._forked: dict[Value, Value] = {}
        self._lifted: dict[Node, tuple[str, ...]] = {}
        self._underway: list[str] = []
        self._skipped: int | None = None
        self._as_is = not rules and not merge
        self._paths: set[str] | None = None

    def final(self, value: Value) -> Value:
        """What an old value has become."""
        return self.moved.get(value, value)

    def replace(self, old: Iterable[Value], new: Iterable[Value]) -> None:
        """From now on, readers of the old values read the new ones."""
        for before, after in zip(old, new, strict=True):
            if before is not after:
                self.moved[before] = after

    def emit(
        self,
        op: str,
        inputs: Iterable[Value],
        attrs: Mapping[str, Any] = NO_ATTRS,
        weights: tuple[tuple[str, str], ...] = (),
        where: Where = NOWHERE,
    ) -> tuple[Value, ...]:
        """The values of a call: a new node's, an equal older node's, or what a rule makes of it."""
        inputs = tuple(inputs)
        attrs = attrs if isinstance(attrs, Attrs) else Attrs(attrs)
        types = self._builder.infer(op, tuple([v.type for v in inputs]), attrs)
        frames = where.frames
        if frames and frames[-1] != op:
            where = Where(where.path, (*frames[:-1], op), where.span, where.backend)
        return self.offer(Node(op, inputs, attrs, weights, where, types))

    def weight(self, name: str, weight: Weight) -> str:
        """Add a weight to the inventory (the same one again is fine)."""
        assert self.weights.get(name, weight).shape == weight.shape, name
        self.weights[name] = weight
        return name

    def below(self, where: Where, segment: str) -> Where:
        """A place under that of a node which is being replaced by several: unique, and in its scope."""
        if self._paths is None:
            self._paths = {node.where.path for node in self.graph.nodes}
        path, count = f"{where.path}.{segment}" if where.path else segment, 0
        unique = path
        while unique in self._paths:
            count += 1
            unique = f"{path}_{count}"
        self._paths.add(unique)
        return where._replace(path=unique, frames=(*where.frames, segment))

    def no(self, reason: str, node: Node) -> None:
        """Say why the rule under way does not apply: `return rewriter.no("...", node)`."""
        self.report.refuse(self._underway[-1], node, reason)

    def keep(self, node: Node) -> None:
        """Take a node of the old graph over, on the final inputs."""
        old = node.outputs
        if not self._as_is:
            new = self.offer(self.carried(node))
        else:
            carried = node if self.moved.keys().isdisjoint(node.inputs) else self.carried(node)
            self.nodes.append(carried)
            new = carried.outputs
        if new is old:
            return
        if len(old) == len(new) == 1:
            if old[0] is not new[0]:
                self.moved[old[0]] = new[0]
            return
        self.replace(old, new)

    def carried(self, node: Node) -> Node:
        """The node over the final inputs: itself where they did not change."""
        moved = self.moved
        if not moved:
            return node
        old = node.inputs
        if len(old) == 1:
            new = moved.get(old[0])
            if new is None:
                return node
            if new.type is old[0].type:
                return node.over((new,))
        inputs = tuple([moved.get(v, v) for v in old])
        if inputs == old:
            return node
        for a, b in zip(inputs, old):
            if a.type is not b.type and a.type != b.type:
                types = self._builder.infer(node.op, tuple([v.type for v in inputs]), node.attrs)
                return Node(node.op, inputs, node.attrs, node.weights, node.where, types)
        return node.over(inputs)

    def offer(self, node: Node) -> tuple[Value, ...]:
        """Take a finished node: merge it, rewrite it, or keep it."""
        if self._skipped is not None:
            self._catch_up()
        key = self._key(node) if self.merge else None
        if key is not None:
            old = self._seen.get(key)
            if old is not None:
                self._merge(old[0].node, node)
                return old
        new = self._first(node) if node.op in self._rules else None
        if new is None:
            self.nodes.append(node)
            new = node.outputs
        if not self.merge:
            return new
        if key is not None:
            self._seen[key] = new
        elif node.op == "fork":
            self._remember_fork(node)
        return new

    def skip(self) -> int:
        """Pass over nodes, no two of them equal calls, until a rule changes one: the index of the node after it, or how many there are."""
        nodes, rules = self.graph.nodes, self._rules
        for at, node in enumerate(nodes):
            if node.op not in rules:
                continue
            self._skipped = at
            new = self._first(node)
            if new is None:
                continue
            if self._skipped is not None:
                self._catch_up()
            key = self._key(node) if self.merge else None
            if key is not None:
                self._seen[key] = new
            self.replace(node.outputs, new)
            return at + 1
        self._skipped = len(nodes)
        return len(nodes)

    def _catch_up(self) -> None:
        """Take the nodes that were passed over, as they are."""
        self.nodes = list(self.graph.nodes[: self._skipped])
        self._skipped = None
        for node in self.nodes if self.merge else ():
            key = self._key(node)
            if key is not None:
                self._seen[key] = node.outputs
            elif node.op == "fork":
                self._remember_fork(node)

    def _key(self, node: Node) -> Any:
        """What equal calls have in common; None for a call that is never merged."""
        if not self._may_merge(node.op):
            return None
        inputs = node.inputs
        if self._forked:
            inputs = tuple([self._forked.get(v, v) for v in inputs])
        return node.op, inputs, node.attrs, node.weights, node.where.backend

    def _first(self, node: Node) -> tuple[Value, ...] | None:
        """What the first rule that applies makes of a node."""
        for rule in self._rules.get(node.op, ()):
            new = self._apply(rule, node)
            if new is not None:
                return new
        return None

    def _apply(self, rule: Rule, node: Node) -> tuple[Value, ...] | None:
        name = rule.__name__
        if len(self._underway) >= DEPTH:
            raise RuleLoop(f"rules loop at {node!r}: {', '.join(self._underway)}")
        self._underway.append(name)
        try:
            new = rule(node, self)
        finally:
            self._underway.pop()
        if new is None:
            return None
        self.report.fired[name] += 1
        return tuple(new)

    def _remember_fork(self, fork: Node) -> None:
        """A branch's input is the forked value: equal calls in different branches are equal."""
        source = self._forked.get(fork.inputs[0], fork.inputs[0])
        self._forked.update(dict.fromkeys(fork.outputs, source))

    def _may_merge(self, op: str) -> bool:
        known = self._mergeable.get(op)
        if known is None:
            d = REGISTRY[op]
            # state and running statistics belong to the call: two calls advance them twice; a fork is a mark, not work
            known = not d.random and d.state is None and d.kind != "fork" and not any(rule.buffer for rule in d.weights)
            self._mergeable[op] = known
        return known

    def _merge(self, kept: Node | None, dropped: Node) -> None:
        self.merged += 1
        if kept is None:
            return
        scope = common_scope(self._scope(kept), dropped.where.path)
        if leaves_branch(kept.where, len(scope)):
            self._lifted[kept] = scope

    def _scope(self, node: Node) -> str:
        return ".".join((*self._lifted[node], "")) if node in self._lifted else node.where.path

    def finish(self, all_live: bool = False) -> Graph:
        """The rewritten graph without dead code, or the graph itself where nothing changed. `all_live`: there is no dead code, nor a dead weight."""
        graph = self.graph
        if self._skipped == len(graph.nodes):
            return dead_code(graph)
        if self._lifted:
            self._lift()
        same_nodes = len(self.nodes) == len(graph.nodes) and all(a is b for a, b in zip(self.nodes, graph.nodes))
        if same_nodes and not self.moved and self.weights.keys() == graph.weights.keys():
            return dead_code(graph)
        moved = self.moved
        changed = graph.with_(
            nodes=tuple(self.nodes),
            outputs=tuple((name, moved.get(v, v)) for name, v in graph.outputs),
            aux=tuple((name, moved.get(v, v)) for name, v in graph.aux),
            weights=self.weights,
        )
        if all_live:
            vars(changed).update(live=changed.nodes, named=graph.named)  # what the graph would find out by itself
            return changed
        return dead_code(changed)

    def _lift(self) -> None:
        """Move merged nodes out of branches that only some of their readers are in."""
        taken = {node.where.path for node in self.nodes}
        lifted, nodes = self._lifted, self.nodes
        moved: dict[Value, Value] = {}
        for at, node in enumerate(nodes):
            where, inputs = node.where, tuple([moved.get(v, v) for v in node.inputs])
            if node in lifted:
                inputs = tuple([self._forked.get(v, v) for v in inputs])
                where = _lifted_where(where, lifted[node], taken)
            elif inputs == node.inputs:
                continue
            nodes[at] = Node(node.op, inputs, node.attrs, node.weights, where, [v.type for v in node.outputs])
            moved.update(zip(node.outputs, nodes[at].outputs))
        for old, new in self.moved.items():
            self.moved[old] = moved.get(new, new)
        for old, new in moved.items():
            self.moved.setdefault(old, new)


def _lifted_where(where: Where, scope: tuple[str, ...], taken: set[str]) -> Where:
    last = where.path.rsplit(".", 1)[-1]
    path = base = ".".join((*scope, last))
    count = 0
    while path in taken:
        count += 1
        path = f"{base}_{count}"
    taken.add(path)
    return where._replace(path=path, frames=(*where.frames[: len(scope)], *where.frames[-1:]))


def common_scope(one: str, other: str) -> tuple[str, ...]:
    """The segments of the scopes of two paths that agree, from the left."""
    shared = []
    for a, b in zip(one.split(".")[:-1], other.split(".")[:-1]):
        if a != b:
            break
        shared.append(a)
    return tuple(shared)


def leaves_branch(where: Where, depth: int) -> bool:
    """Whether going up from a node to the scope of `depth` segments leaves a branch of a fork or filter."""
    return any(frame in BRANCHING for frame in where.frames[max(depth - 1, 0) : -1])


def branch_of(where: Where) -> tuple[str, ...]:
    """The path of the innermost branch of a fork or filter that a node is in; empty where it is in none."""
    if "fork" not in where.frames and "filter" not in where.frames:
        return ()
    inner = max((i for i, frame in enumerate(where.frames[:-1]) if frame in BRANCHING), default=None)
    if inner is None:
        return ()
    segments = where.path.split(".")
    listed = segments[inner + 1 : inner + 2] == ["branches"] and where.frames[inner + 1] == "[]"
    return tuple(segments[: inner + 2 + listed])


def rewrite(graph: Graph, rules: Rules | None = None, merge: bool = False, report: Report | None = None) -> Graph:
    """The graph after one walk of the rules (and of merging), without dead code; the same object where nothing changed."""
    if not merge and not any(op in graph.ops for op in rules or ()):
        return dead_code(graph)
    rewriter = Rewriter(graph, rules, merge, report)
    start = rewriter.skip() if not merge or graph.has_no_twins else 0
    for node in graph.nodes[start:]:
        rewriter.keep(node)
    if report is not None and merge:
        report.fired["equal_calls_are_one"] += rewriter.merged
    return rewriter.finish()


def dead_code(graph: Graph) -> Graph:
    """The graph without nodes that no result needs: one walk from the end; the same object where all are needed."""
    if len(graph.live) == len(graph.nodes) and len(graph.named) == len(graph.weights):
        return graph
    return graph.with_(nodes=graph.live)
