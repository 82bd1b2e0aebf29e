"""One elaboration under way: nodes, weights, facts, diagnostics; and the replaying of applications that were made before.

Applying an equal brick to equal types makes equal nodes, except for their paths, weight names and inputs. So the first
application is recorded and later ones are replayed by renaming: a repeat of a hundred layers costs one elaboration and
ninety-nine copies. In a graph of `LARGE` nodes a replay of `LARGE_REPLAY` or more only counts, so that a program that would
expand without measure is refused before it does; one that turns out to be merely large is elaborated again with copies made.
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
    BlockBrick,
    Brick,
    Filter,
    Fork,
    Frozen,
    Grafted,
    Initialised,
    Named,
    Pipeline,
    Placed,
    Primitive,
    Shared,
    Site,
    Stage,
    Stitched,
    Transposed,
)

LARGE, LARGE_REPLAY = 4_000, 500
MAX_STEPS = 200_000
MAX_GRAFTED = 20_000
MAX_CALLS = 60


@dataclass(eq=False)
class Recording:
    """What one application made, relative to where it stood: rows of nodes whose inputs are places in one table of values.

    The table holds the application's inputs, then values from outside (captured tensors), then each node's outputs in order.
    `roles` are the (role, name) pairs of all rows, one after the other; a name is a place in `weights` and then `others`, which
    are names that stay as they are.
    """

    weights_path: str
    outputs: tuple[Value, ...]
    outputs_at: tuple[int, ...]
    outside: tuple[Value, ...]
    rows: tuple[tuple[Any, ...], ...]
    frames: tuple[tuple[str, ...], ...]
    weights: tuple[tuple[str, Weight], ...]
    others: tuple[str, ...]
    roles: tuple[tuple[str, int], ...]
    aux: tuple[tuple[str, int], ...]
    count: int
    parameters: int
    known_frames: dict[tuple[str, ...], list[tuple[str, ...]]] = field(default_factory=dict)

    def frames_at(self, base: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = self.known_frames.get(base)
        if found is None:
            found = self.known_frames[base] = [base + frame for frame in self.frames]
        return found


def recording(
    scope: Scope,
    inputs: tuple[Value, ...],
    outputs: tuple[Value, ...],
    nodes: list[Node],
    weights: dict[str, Weight],
    aux: list[tuple[str, Value]],
    count: int,
) -> Recording:
    """Make what an application did relative to its scope."""
    start, depth, cut, prefix = len(scope.path), len(scope.frames), len(scope.weights), scope.weights + "."
    made = {v for node in nodes for v in node.outputs}
    read = [v for node in nodes for v in node.inputs] + list(outputs) + [v for _, v in aux]
    outside = tuple(dict.fromkeys(v for v in read if v not in made and v not in inputs))
    place = {v: i for i, v in enumerate([*inputs, *outside, *(v for node in nodes for v in node.outputs)])}
    for i, v in enumerate(inputs):
        place[v] = i
    names = dict.fromkeys(name for node in nodes for _, name in node.weights)
    own = [name for name in names if name.startswith(prefix)]
    others = [name for name in names if not name.startswith(prefix)]
    number = {name: i for i, name in enumerate([*own, *others])}
    roles = [(role, number[name]) for node in nodes for role, name in node.weights]
    frames: dict[tuple[str, ...], int] = {}
    rows: list[tuple[Any, ...]] = []
    last = 0
    for node in nodes:
        where, first, last = node.where, last, last + len(node.weights)
        frame = frames.setdefault(where.frames[depth:], len(frames))
        types = tuple(v.type for v in node.outputs)
        reads = tuple(place[v] for v in node.inputs)
        rows.append((node.op, reads, node.attrs, first, last, where.path[start:], frame, where.span, where.backend, types))
    return Recording(
        scope.weights,
        outputs,
        tuple(place[v] for v in outputs),
        outside,
        tuple(rows),
        tuple(frames),
        tuple((n[cut:], weights[n]) for n in own),
        tuple(others),
        tuple(roles),
        tuple((name[start:], place[v]) for name, v in aux),
        count,
        sum(weights[n].numel for n in own),
    )


NEVER = frozenset((0,))  # held by what is never replayed; no object has the id 0


@dataclass(eq=False)
class Run:
    """The state of one elaboration. `evaluate` and `apply_filter` are set by `model.py`: they stand above this module."""

    limits: Limits
    stitch_all: bool = False
    may_count: bool = True
    counted: bool = False
    facts: Facts = field(default_factory=Facts)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    weight_spans: dict[str, Span | None] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)  # weights that are no shared brick's
    aux: list[tuple[str, Value]] = field(default_factory=list)
    requires: list[Precondition] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    given: dict[int, tuple[str, Span]] = field(default_factory=dict)
    total: int = 0
    parameters: int = 0
    steps: int = 0
    grafted: int = 0
    settled: dict[int, Weight] = field(default_factory=dict)
    memo: dict[Any, Recording | Callable[[], Recording] | None] = field(default_factory=dict)
    tokens: dict[Any, int] = field(default_factory=dict)
    token_of: dict[int, tuple[Any, int, frozenset[int]]] = field(default_factory=dict)
    inferred: dict[Any, Any] = field(default_factory=dict)
    graph: Graph | None = None
    evaluate: Callable[..., Any] = None  # type: ignore[assignment]
    apply_filter: Callable[..., Any] = None  # type: ignore[assignment]

    # diagnostics

    def fail(
        self,
        code: str,
        message: str,
        span: Span,
        label: str = "",
        *,
        scope: Scope | None = None,
        labels: Sequence[Label] = (),
        notes: Sequence[str] = (),
        help: Sequence[str] = (),
    ) -> GraphirError:
        """An error at a span; inside the standard library the user's line comes first and the library's second."""
        calls = scope.calls if scope else ()
        labels = list(labels)
        if is_library(span.source):
            outer = next((c for c in reversed(calls) if not is_library(c.span.source)), None)
            if outer is not None and calls:
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

    def steps_for(self, count: int, span: Span) -> None:
        """Count the work on a list of so many places, before it is done."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise self.fail("E0606", f"evaluating this program takes more than {MAX_STEPS:,} steps", span)

    def apply_in_graft(self, span: Span, scope: Scope) -> None:
        """Count an application inside a graft, where none is replayed."""
        self.grafted += 1
        if self.grafted > MAX_GRAFTED:
            raise self.fail(
                "E0606",
                f"grafts apply more than {MAX_GRAFTED:,} bricks",
                span,
                scope=scope,
                help=("graft on less: on the block that changes, not on all around it",),
            )

    # nodes and weights

    def charge(self, count: int, span: Span, scope: Scope) -> None:
        self.total += count
        if self.total > self.limits.nodes:
            raise self.fail(
                "E0606",
                f"the program expands to more than {self.limits.nodes:,} nodes",
                span,
                scope=scope,
                help=("repeat less, or pass `limits=` from Python",),
            )

    def emit(
        self,
        op: str,
        inputs: tuple[Value, ...],
        attrs: Attrs,
        weights: tuple[tuple[str, str], ...],
        path: str,
        scope: Scope,
        span: Span,
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
            if not scope.shared:
                self.fresh.add(name)
            return
        first = self.weight_spans.get(name)
        labels = (Label(first, f"gave it {list(old.shape)}"),) if first is not None and first != span else ()
        if not scope.shared or name in self.fresh:
            raise self.fail(
                "E0308",
                f"two weights would be called `{name}`",
                span,
                scope=scope,
                labels=labels,
                help=("name one of the bricks with `as`",),
            )
        if old.shape != weight.shape:
            raise self.fail(
                "E0211",
                f"the shared weight `{name}` is {list(old.shape)} at one use and {list(weight.shape)} at another",
                span,
                f"needs {list(weight.shape)}",
                scope=scope,
                labels=labels,
                help=("`shared` makes one set of weights: feed it equal widths, or use `=` for fresh weights",),
            )
        if weight.frozen and not old.frozen:
            self.settle()
            self.weights[name] = replace(old, frozen=True)

    def add_weights(self, recording: Recording, names: list[str], span: Span, scope: Scope) -> None:
        """The weights of a replay: all at once where every name is new, as it nearly always is."""
        fits = self.parameters + recording.parameters <= self.limits.parameters
        if fits and self.weights.keys().isdisjoint(names):
            self.parameters += recording.parameters
            self.weights.update(zip(names, [weight for _, weight in recording.weights]))
            if not scope.shared:
                self.fresh.update(names)
            return
        for name, (_, weight) in zip(names, recording.weights):
            self.add_weight(name, weight, span, scope)

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
        if isinstance(value, Grafted):
            held = NEVER  # what it makes depends on where it stands
        elif isinstance(value, Shared | Transposed | Site):
            held = self.token(value.shared if isinstance(value, Transposed) else value.brick)[1]
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

    def replayable(self, brick: Any, inputs: tuple[Value, ...], scope: Scope, entry: Any = None) -> Any:
        """The key under which this application may be recorded and replayed, or None.

        `entry` is what else the first step depends on: the arrow that leads in, and whether anything stands before it.
        """
        if scope.grafting:
            return None
        number, held = self.token(brick)
        if held and (held is NEVER or NEVER <= held or any(id(v) in held for v in inputs)):
            return None
        same = 0 if len(inputs) == 1 else tuple([inputs.index(v) for v in inputs])  # which inputs are one value
        return number, tuple([v.type for v in inputs]), scope.backend, scope.frozen, scope.shared, scope.start, same, entry

    def record(
        self, key: Any, scope: Scope, inputs: tuple[Value, ...], outputs: tuple[Value, ...], nodes: int, aux: int, before: int
    ) -> None:
        """Remember what an application made. The table to replay it from is made when it is first needed: most never are."""
        ends, auxes, count = len(self.nodes), len(self.aux), self.total - before
        self.memo[key] = lambda: recording(scope, inputs, outputs, self.nodes[nodes:ends], self.weights, self.aux[aux:auxes], count)

    def settle(self) -> None:
        """Make every pending recording now: a weight that they name is about to change."""
        for key in [k for k, found in self.memo.items() if callable(found)]:
            self.recorded(key)

    def recorded(self, key: Any) -> Recording | None:
        """The recording under a key; None for an application that failed or was not made."""
        found = self.memo.get(key)
        if callable(found):
            found = self.memo[key] = found()
        return found

    def replay(self, recording: Recording, scope: Scope, inputs: tuple[Value, ...], span: Span) -> tuple[Value, ...]:
        """Copy a recorded application to another place."""
        self.charge(recording.count, span, scope)
        names = [scope.weights + name for name, _ in recording.weights]
        if scope.weights != recording.weights_path:
            self.add_weights(recording, names, span, scope)
        if self.counted or (self.may_count and self.total > LARGE and recording.count >= LARGE_REPLAY):
            self.counted = True
            return tuple([Value(v.type) for v in recording.outputs])
        table: list[Value] = [*inputs, *recording.outside]
        frames, nodes = recording.frames_at(scope.frames), self.nodes
        names += recording.others
        weights = [(role, names[i]) for role, i in recording.roles]
        path, new_tuple, new_node = scope.path, tuple.__new__, Node.__new__
        for op, reads, attrs, first, last, suffix, frame, span, backend, types in recording.rows:
            # the innermost loop of all: what `Node(...)` and `Where(...)` do, in half their time
            node = new_node(Node)
            node.op = op
            node.inputs = (table[reads[0]],) if len(reads) == 1 else tuple([table[i] for i in reads])
            node.attrs = attrs
            node.weights = tuple(weights[first:last]) if first != last else ()
            node.where = new_tuple(Where, (path + suffix, frames[frame], span, backend))
            if len(types) == 1:
                value = Value(types[0], node)
                node.outputs = (value,)
                table.append(value)
            else:
                node.outputs = tuple([Value(t, node) for t in types])
                table += node.outputs
            nodes.append(node)
        for suffix, index in recording.aux:
            self.aux.append((path + suffix, table[index]))
        return tuple([table[i] for i in recording.outputs_at])


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
        case Initialised(brick=inner, start=start):
            return "initialised", [inner, start.spec, start.factor, start.which, *(start.names or ()), start.names is None]
        case Stitched():
            return "stitched", [value.brick, value.width, *_pairs(value.options)]
        case Transposed():
            return "transposed", [value.shared]
        case Shared() | Grafted() | Site() | Brick():
            return None
    return None


def _pairs(mapping: Any) -> list[Any]:
    return [x for name in sorted(mapping) for x in (name, mapping[name])]
