"""The tree of scopes that node paths spell, with repeats folded: `layers.0` to `layers.11`, all alike, are one part x12.

Two siblings are alike when they hold the same ops, attributes, types and backends, wired and sharing weights the same way;
names never count. Alike is an integer: every part is interned bottom-up under what it is made of, so comparing two scopes
costs nothing. Runs are periodic too: `([m] * 7 + [s]) * 6` folds to `(m x7, s) x6`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, Union

from ..ir.graph import Graph, Node, Value

LONGEST_PERIOD = 64
_PLACE = re.compile(r"(?:.*_)?(\d+)\Z")


@dataclass(eq=False)
class Part:
    """A node or a scope as its siblings see it. `reads` and `gives` are the values that cross its border."""

    path: str
    frame: str
    node: Node | None = None
    children: list[Part] = field(default_factory=list)
    kind: int = -1
    nodes: list[Node] = field(default_factory=list)
    reads: dict[Value, int] = field(default_factory=dict)
    gives: tuple[Value, ...] = ()
    weights: tuple[str, ...] = ()
    folded: tuple[Part | Fold, ...] = ()

    @property
    def name(self) -> str:
        """The last segment of the path."""
        return self.path.rpartition(".")[2]

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        return tuple(self.reads)


@dataclass(frozen=True, eq=False)
class Fold:
    """`len(copies)` alike stretches of siblings; `unit` is the first, itself folded."""

    copies: tuple[tuple[Part, ...], ...]
    unit: tuple[Part | Fold, ...]

    @property
    def count(self) -> int:
        return len(self.copies)

    @property
    def path(self) -> str:
        """`layers.0-11`: the first and the last place."""
        first, last = self.copies[0][0], self.copies[-1][-1]
        ends = _PLACE.match(first.name), _PLACE.match(last.name)
        if ends[0] and ends[1] and first.name.isdigit():
            return f"{first.path}-{ends[1][1]}"
        return f"{first.path}..{last.name}"

    @property
    def chained(self) -> bool:
        """Whether each copy feeds the next; otherwise they stand side by side."""
        made = {v for part in self.copies[0] for v in part.gives}
        return any(v in made for part in self.copies[1] for v in part.reads)


Piece: TypeAlias = Union[Part, Fold]


def segments(node: Node) -> tuple[list[str], list[str]]:
    """The segments of a node's path and the frame of each; a node without a path stands at the top under its op."""
    names = node.where.path.split(".") if node.where.path else [node.op]
    frames = list(node.where.frames[: len(names)])
    return names, [""] * (len(names) - 1 - len(frames)) + frames[: len(names) - 1] + [node.op]


def tree(graph: Graph, fold: bool = True) -> Part:
    """The root scope of a graph; `folded` of every scope is filled in (with its children as they are if not `fold`)."""
    root = _grow(graph)
    _Interner(graph, fold).settle(root)
    return root


def _grow(graph: Graph) -> Part:
    root = Part("", graph.name)
    scopes: dict[str, Part] = {"": root}
    for node in graph.nodes:
        names, frames = segments(node)
        parent, path = root, ""
        for name, frame in zip(names[:-1], frames):
            path = f"{path}.{name}" if path else name
            scope = scopes.get(path)
            if scope is None:
                scope = scopes[path] = Part(path, frame)
                parent.children.append(scope)
            parent = scope
        parent.children.append(Part(node.where.path or node.op, node.op, node))
    return root


def postorder(root: Part) -> Iterator[Part]:
    """Every part after its children."""
    stack = [(root, False)]
    while stack:
        part, done = stack.pop()
        if done or not part.children:
            yield part
            continue
        stack.append((part, True))
        stack.extend((child, False) for child in reversed(part.children))


class _Interner:
    """Gives alike parts the same small integer, and folds the children of each scope on the way up."""

    def __init__(self, graph: Graph, fold: bool):
        self.graph, self.fold = graph, fold
        self.known: dict[object, int] = {}

    def settle(self, root: Part) -> None:
        for part in postorder(root):
            key = self._leaf(part, part.node) if part.node is not None else self._scope(part)
            part.kind = self.known.setdefault(key, len(self.known))

    def _leaf(self, part: Part, node: Node) -> object:
        part.nodes = [node]
        for value in node.inputs:
            part.reads[value] = part.reads.get(value, 0) + 1
        part.gives = node.outputs
        part.weights = tuple(dict.fromkeys(name for _, name in node.weights))
        place = {value: i for i, value in enumerate(part.reads)}
        weights = self.graph.weights
        return (
            node.op, node.attrs, node.where.backend, tuple([v.type for v in node.outputs]),
            tuple([(place[v], v.type) for v in node.inputs]),
            tuple([(role, part.weights.index(name), weights.get(name)) for role, name in node.weights]),
        )

    def _scope(self, part: Part) -> object:
        reads: dict[Value, int] = {}
        made: dict[Value, tuple[int, int]] = {}
        for i, child in enumerate(part.children):
            part.nodes.extend(child.nodes)
            for j, value in enumerate(child.gives):
                made[value] = (i, j)
            for value, times in child.reads.items():
                reads[value] = reads.get(value, 0) + times
        part.reads = {v: times for v, times in reads.items() if v not in made}
        part.gives = tuple([v for v in made if self.graph.uses[v] > reads.get(v, 0)])
        part.weights = tuple(dict.fromkeys(name for child in part.children for name in child.weights))
        part.folded = tuple(part.children)
        if self.fold:
            part.folded = tuple(_Folder(part.children, made).fold(0, len(part.children)))
        outside = {value: i for i, value in enumerate(part.reads)}
        local = {name: i for i, name in enumerate(part.weights)}
        return (
            tuple([
                (child.kind, tuple([made.get(v, outside.get(v)) for v in child.reads]), tuple([local[w] for w in child.weights]))
                for child in part.children
            ]),
            tuple([made[v] for v in part.gives]),
        )


class _Folder:
    """Folds the children of one scope. `made` says which child gives a value: (child, which of its results)."""

    def __init__(self, parts: Sequence[Part], made: Mapping[Value, tuple[int, int]]):
        self.parts, self.made = parts, made
        self.stems = [_stem(part) for part in parts]
        self._runs: dict[int, list[int]] = {}
        self._users: dict[str, list[int]] = {}
        for i, part in enumerate(parts):
            for name in part.weights:
                self._users.setdefault(name, []).append(i)

    def fold(self, start: int, stop: int) -> list[Piece]:
        """The siblings with repeats folded: at each place the stretch that covers most, the shortest period first."""
        out: list[Piece] = []
        at = start
        while at < stop:
            period, times = self._best(at, stop)
            if times < 2:
                out.append(self.parts[at])
                at += 1
                continue
            copies = tuple(tuple(self.parts[at + k * period : at + (k + 1) * period]) for k in range(times))
            out.append(Fold(copies, tuple(self.fold(at, at + period)) if period > 1 else copies[0]))
            at += period * times
        return out

    def _best(self, at: int, stop: int) -> tuple[int, int]:
        best, covered = (1, 1), 1
        for period in range(1, min(LONGEST_PERIOD, (stop - at) // 2) + 1):
            if covered == stop - at:
                break
            times = min(self._run(period)[at] // period + 1, (stop - at) // period)
            if times < 2 or period * times <= covered:
                continue
            times = self._steady(at, period, times)
            if times > 1 and period * times > covered:
                best, covered = (period, times), period * times
        return best

    def _run(self, period: int) -> list[int]:
        """For each place, how many places from there on are like the one `period` further."""
        if period not in self._runs:
            runs = [0] * (len(self.parts) + 1)
            for i in range(len(self.parts) - period - 1, -1, -1):
                runs[i] = runs[i + 1] + 1 if self._alike(i, i + period) else 0
            self._runs[period] = runs
        return self._runs[period]

    def _alike(self, i: int, j: int) -> bool:
        return self.parts[i].kind == self.parts[j].kind and self.stems[i] is not None and self.stems[i] == self.stems[j]

    def _steady(self, at: int, period: int, times: int) -> int:
        """How many of the repeats read and share alike from one to the next."""
        first: list[str] = []
        for k in range(1, times):
            here = range(at + (k - 1) * period, at + k * period)
            steps = [step for i in here for step in self._steps(i, i + period, at, period)]
            pairs = {pair for i in here for pair in zip(self.parts[i].weights, self.parts[i + period].weights)}
            one_to_one = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
            if not one_to_one or "stray" in steps or (k > 1 and not all(map(_continues, first, steps))):
                return k
            first = steps
        return times

    def _steps(self, old: int, new: int, at: int, period: int) -> Iterator[str]:
        """How each input and weight of one repeat relates to that of the repeat before."""
        for a, b in zip(self.parts[old].inputs, self.parts[new].inputs):
            before, now = self._maker(a, at), self._maker(b, at)
            if a is b:
                yield "stray" if before else "same"
            elif before and now and now == (before[0] + period, before[1]):
                yield "shift"
            elif before is None and now and now[0] < at + period:
                yield "enter"
            else:
                yield "stray"
        for a, b in zip(self.parts[old].weights, self.parts[new].weights):
            if a == b:
                yield "shared"
            else:
                yield "stray" if self._used(b, at, new - (new - at) % period) else "fresh"

    def _used(self, name: str, start: int, stop: int) -> bool:
        """Whether a child from `start` to before `stop` uses this weight."""
        users = self._users[name]
        place = bisect_left(users, start)
        return place < len(users) and users[place] < stop

    def _maker(self, value: Value, at: int) -> tuple[int, int] | None:
        """Which child gives a value, None where that is outside the run that starts at `at`."""
        found = self.made.get(value)
        return found if found and found[0] >= at else None


def _stem(part: Part) -> str | None:
    """What siblings must have in common to be places of one list; None where a part never folds."""
    if part.name.isdigit():
        return ""
    if part.node is not None:
        return None
    place = _PLACE.match(part.name)
    return part.name[: place.start(1) - 1] if place else part.name


def _continues(old: str, new: str) -> bool:
    return new == old or (old == "enter" and new == "shift")


def contents(part: Part) -> Iterator[Piece]:
    """What stands inside a scope. Lists and pipes are ways to write: their parts stand there themselves.

    A pipe keeps its box where it is a branch of a fork or filter, a place in a list, or named by the model itself.
    """
    for piece in part.folded:
        if isinstance(piece, Part) and piece.node is None and (piece.frame == "[]" or (piece.frame == "pipe" and _inlines(part))):
            yield from contents(piece)
        else:
            yield piece


def _inlines(part: Part) -> bool:
    return bool(part.path) and part.frame not in ("", "[]", "fork", "filter")


def relative(path: str, base: str) -> str:
    """A path as read from inside the scope `base`."""
    return path[len(base) + 1 :] if base and path.startswith(f"{base}.") else path
