"""Which scopes and nodes use weights that are used elsewhere too, and what to call those weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..ir.graph import Graph, Node
from .scopes import Part


@dataclass(frozen=True, slots=True)
class Mark:
    """A set of weights with several users. `first`: this is the first of them."""

    name: str
    first: bool


class Sharing:
    """Answers, for any part of a graph, which marks it bears."""

    def __init__(self, graph: Graph):
        self.uses = Counter([name for node in graph.nodes for _, name in node.weights])
        self.first = {name: node for node in reversed(graph.nodes) for _, name in node.weights}
        self.any = any(times > 1 for times in self.uses.values())

    def owned(self, graph: Graph, nodes: Iterable[Node]) -> int:
        """Parameters that these nodes are the first to use; buffers are none."""
        names = {name: None for node in nodes for _, name in node.weights if self.first[name] is node}
        return sum(graph.weights[name].numel for name in names if not graph.weights[name].buffer)

    def whole(self, part: Part) -> Mark | None:
        """The mark of a part all of whose weights live on elsewhere: one name for them all."""
        if not self.any or not part.weights:
            return None
        inside = Counter([name for node in part.nodes for _, name in node.weights])
        name = _stem(part.weights)
        if not name or any(self.uses[w] == times for w, times in inside.items()):
            return None
        owner = self.first[part.weights[0]]
        return Mark(name, any(node is owner for node in part.nodes))

    def marks(self, part: Part) -> tuple[Mark, ...]:
        """The marks inside a part that is drawn as one box: its own, or those of the parts in it."""
        if not self.any:
            return ()
        found: dict[str, Mark] = {}
        stack = [part]
        while stack:
            inner = stack.pop()
            mark = self.whole(inner)
            if mark:
                found.setdefault(mark.name, mark)
            else:
                stack.extend(reversed(inner.children))
        return tuple(mark for mark in found.values() if self._leaves(part, mark.name))

    def _leaves(self, part: Part, stem: str) -> bool:
        inside = Counter([name for node in part.nodes for _, name in node.weights])
        mine = [w for w in inside if w == stem or w.startswith(f"{stem}.")]
        return any(self.uses[w] > inside[w] for w in mine)


def _stem(names: Iterable[str]) -> str:
    """The path that the names of some weights have in common, their roles left out."""
    owners = [name.split(".")[:-1] or [name] for name in names]
    first = owners[0]
    length = min(map(len, owners))
    agree = next((i for i in range(length) if any(o[i] != first[i] for o in owners)), length)
    return ".".join(first[:agree])
