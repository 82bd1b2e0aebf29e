"""One elaboration under way: nodes, weights, facts, diagnostics; and the replaying of applications that were made before.

Applying an equal brick to equal types makes equal nodes, except for their paths, weight names and inputs. So the first
application is recorded and later ones are replayed by renaming: a repeat of a hundred layers costs one elaboration and
ninety-nine copies. Past `COUNT_ONLY` nodes a replay only counts, so that a program that would expand without measure is
refused before it does; one that turns out to be merely large is elaborated again with copies made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..ir.dims import Facts
from ..ir.graph import Attrs, Graph, Node, Precondition, Value, Weight, Where
from ..ir.types import Type
from ..lang.diagnostic import Diagnostic, GraphirError, Label
from ..lang.limits import Limits
from ..lang.source import Span
from .project import is_library
from .scope import Call, Scope
from .values import (
    BlockBrick, Brick, Filter, Fork, Frozen, Grafted, Named, Pipeline, Placed, Primitive, Shared, Site, Stage, Stitched, Transposed,
)

COUNT_ONLY = 100_000
MAX_STEPS = 1_000_000
MAX_CALLS = 60


class TooManyNodes(Exception):
    """The program is large but within limits: elaborate again with every node made."""


@dataclass(eq=False)
class Recording:
    """What one application made: nodes, weights, aux outputs, and where it stood."""

    path: str
    weights_path: str
    depth: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: list[Node]
    weights: list[tuple[str, Weight]]
    aux: list[tuple[str, Value]]
    count: int


@dataclass(eq=False)
class Run:
    """The state of one elaboration. `evaluate` and `apply_filter` are set by `model.py`: they stand above this module."""

    limits: Limits
    stitch_all: bool = False
    count_only: int = COUNT_ONLY
    facts: Facts = field(default_factory=Facts)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    weight_spans: dict[str, Span | None] = field(default_factory=dict)
    aux: list[tuple[str, Value]] = field(default_factory=list)
    requires: list[Precondition] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    given: dict[int, tuple[str, Span]] = field(default_factory=dict)
    total: int = 0
    parameters: int = 0
    steps: int = 0
    memo: dict[Any, Recording] = field(default_factory=dict)
    tokens: dict[Any, int] = field(default_factory=dict)
    token_of: dict[int, tuple[Any, int, frozenset[int]]] = field(default_factory=dict)
    inferred: dict[Any, Any] = field(default_factory=dict)
    graph: Graph | None = None
    evaluate: Callable[..., Any] = None  # type: ignore[assignment]
    apply_filter: Callable[..., Any] = None  # type: ignore[assignment]

    # diagnostics

    def fail(
        self, code: str, message: str, span: Span, label: str = "", *, scope: Scope | None = None, labels: Sequence[Label] = (),
        notes: Sequence[str] = (), help: Sequence[str] = (),
    ) -> GraphirError:
        """An error at a span; inside the standard library the user's line comes first and the library's second."""
        calls = scope.calls if scope else ()
        labels = list(labels)
        if is_library(span.source):
            outer = next((c for c in reversed(calls) if not is_library(c.span.source)), None)
            if outer is not None:
                labels.insert(0, Label(span, label or f"in `{calls[-1].name}`, here"))
                span, label = outer.span, f"in this use of `{outer.name}`"
        notes = [*notes, *(f"in `{c.name}`, used at {c.span}" for c in reversed(calls) if c.span != span and not is_library(c.span.source))]
        return GraphirError(Diagnostic(code, message, span, label, tuple(labels), tuple(notes), tuple(help)))

    def report(self, error: GraphirError) -> None:
        seen = {(d.code, str(d.span), d.message) for d in self.problems}
        self.problems += [d for d in error.diagnostics if (d.code, str(d.span), d.message) not in seen]

    def step(self, span: Span) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise self.fail("E0606", f"evaluating this program takes more than {MAX_STEPS:,} steps", span)

    # nodes and weights

    def charge(self, count: int, span: Span, scope: Scope) -> None:
        self.total += count
        if self.total > self.limits.nodes:
            raise self.fail("E0606", f"the program expands to more than {self.limits.nodes:,} nodes", span, scope=scope, help=("repeat less, or pass `limits=` from Python",))

    def emit(
        self, op: str, inputs: tuple[Value, ...], attrs: Attrs, weights: tuple[tuple[str, str], ...], path: str, scope: Scope, span: Span,
        types: Sequence[Type],
    ) -> Node:
        self.charge(1, span, scope)
        for type in types:
            self.check_type(type, span, scope)
        node = Node(op, inputs, attrs, weights, Where(path, (*scope.frames, op), span, scope.backend), types)
        self.nodes.append(node)
        return node

    def check_type(self, type: Type, span: Span, scope: Scope) -> None:
        if len(type.shape) > self.limits.rank:
            raise self.fail("E0609", f"{type} has more than {self.limits.rank} axes", span, scope=scope)
        for dim in type.shape:
            if isinstance(dim, int) and dim > self.limits.dim:
                raise self.fail("E0608", f"an axis of {dim:,} is longer than the limit of {self.limits.dim:,}", span, scope=scope)

    def add_weight(self, name: str, weight: Weight, span: Span, scope: Scope) -> None:
        old = self.weights.get(name)
        if old is None:
            for d in weight.shape:
                if d > self.limits.dim:
                    raise self.fail("E0608", f"an axis of {d:,} is longer than the limit of {self.limits.dim:,}", span, scope=scope)
            self.parameters += weight.numel
            if self.parameters > self.limits.parameters:
                raise self.fail("E0610", f"more than {self.limits.parameters:,} parameters", span, scope=scope)
            self.weights[name] = weight
            self.weight_spans[name] = span
            return
        first = self.weight_spans.get(name)
        labels = (Label(first, f"gave it {list(old.shape)}"),) if first is not None and first != span else ()
        if not scope.shared:
            raise self.fail("E0308", f"two weights would be called `{name}`", span, scope=scope, labels=labels, help=("name one of the bricks with `as`",))
        if old.shape != weight.shape:
            raise self.fail(
                "E0211", f"the shared weight `{name}` is {list(old.shape)} at one use and {list(weight.shape)} at another", span,
                f"needs {list(weight.shape)}", scope=scope, labels=labels, help=("`shared` makes one set of weights: feed it equal widths, or use `=` for fresh weights",),
            )
        if weight.frozen and not old.frozen:
            self.weights[name] = replace(old, frozen=True)

    def call(self, scope: Scope, name: str, span: Span) -> tuple[Call, ...]:
        if len(scope.calls) >= MAX_CALLS:
            raise self.fail("E0606", f"bricks are nested more than {MAX_CALLS} deep", span, scope=scope)
        return (*scope.calls, Call(name, span))

    # structural identity of bricks

    def token(self, value: Any) -> tuple[int, frozenset[int]]:
        """A number that equal config, tensors and bricks share, and the tensors (by id) that the value holds."""
        kept = self.token_of.get(id(value))
        if kept is not None and kept[0] is value:
            return kept[1], kept[2]
        parts = _structure(value)
        held: frozenset[int] = frozenset()
        if isinstance(value, Value):
            held = frozenset((id(value),))
            key: Any = ("tensor", id(value))
        elif parts is None:
            key = (type(value).__name__, value) if isinstance(value, int | float | str | bool | type(None)) else ("object", id(value))
        else:
            pairs = [self.token(p) for p in parts[1]]
            key = (parts[0], tuple(p[0] for p in pairs))
            held = held.union(*(p[1] for p in pairs)) if pairs else held
        number = self.tokens.setdefault(key, len(self.tokens))
        self.token_of[id(value)] = (value, number, held)
        return number, held

    def replayable(self, brick: Any, inputs: tuple[Value, ...], scope: Scope) -> Any:
        """The key under which this application may be recorded and replayed, or None."""
        if scope.grafting:
            return None
        number, held = self.token(brick)
        if held and any(id(v) in held for v in inputs):
            return None
        return number, tuple([v.type for v in inputs]), scope.backend, scope.frozen, scope.shared, len({id(v) for v in inputs})

    def record(self, key: Any, scope: Scope, inputs: tuple[Value, ...], outputs: tuple[Value, ...], nodes: int, aux: int, before: int) -> None:
        made = self.nodes[nodes:]
        prefix = scope.weights + "."
        names = dict.fromkeys(name for node in made for _, name in node.weights if name.startswith(prefix))
        self.memo[key] = Recording(
            scope.path, scope.weights, len(scope.frames), inputs, outputs, made, [(n, self.weights[n]) for n in names], self.aux[aux:],
            self.total - before,
        )

    def replay(self, recording: Recording, scope: Scope, inputs: tuple[Value, ...], span: Span) -> tuple[Value, ...]:
        """Copy a recorded application to another place."""
        self.charge(recording.count, span, scope)
        cut = len(recording.weights_path)
        if scope.weights != recording.weights_path:
            for name, weight in recording.weights:
                self.add_weight(scope.weights + name[cut:], weight, span, scope)
        if self.total > self.count_only:
            return tuple([Value(v.type) for v in recording.outputs])
        values: dict[Value, Value] = dict(zip(recording.inputs, inputs))
        frames: dict[tuple[str, ...], tuple[str, ...]] = {}
        weights_prefix, path, start = recording.weights_path + ".", scope.path, len(recording.path)
        for node in recording.nodes:
            where = node.where
            new_frames = frames.get(where.frames)
            if new_frames is None:
                new_frames = frames[where.frames] = scope.frames + where.frames[recording.depth :]
            weights = node.weights
            if weights:
                weights = tuple([(r, scope.weights + n[cut:] if n.startswith(weights_prefix) else n) for r, n in weights])
            copy = Node(
                node.op, tuple([values.get(v, v) for v in node.inputs]), node.attrs, weights,
                Where(path + where.path[start:], new_frames, where.span, where.backend), [v.type for v in node.outputs],
            )
            self.nodes.append(copy)
            for old, new in zip(node.outputs, copy.outputs):
                values[old] = new
        for name, value in recording.aux:
            self.aux.append((path + name[start:], values.get(value, value)))
        return tuple([values.get(v, v) for v in recording.outputs])


def _structure(value: Any) -> tuple[str, list[Any]] | None:
    """The parts that make two compound values equal; None for what is equal only as itself or as a scalar."""
    match value:
        case list() | tuple():
            return type(value).__name__, list(value)
        case Stage():
            return "stage", [value.value, value.segment, value.arrow]
        case Primitive():
            return "primitive", [value.name, *_pairs(value.args), "|", *_pairs(value.bound)]
        case BlockBrick():
            return "block", [value.block, *_pairs(value.args), "|", *_pairs(value.bound)]
        case Pipeline():
            return "pipeline", list(value.stages)
        case Fork():
            return "fork", [x for pair in value.branches for x in pair]
        case Filter():
            return "filter", [value.router, *[x for pair in value.branches for x in pair], "|", *_pairs(value.options), value.listed]
        case Named():
            return "named", [value.brick, value.name]
        case Placed():
            return "placed", [value.brick, value.backend]
        case Frozen():
            return "frozen", [value.brick]
        case Stitched():
            return "stitched", [value.brick, value.width, *_pairs(value.options)]
        case Transposed():
            return "transposed", [value.shared]
        case Shared() | Grafted() | Site() | Brick():
            return None
    return None


def _pairs(mapping: Any) -> list[Any]:
    return [x for name in sorted(mapping) for x in (name, mapping[name])]
