"""The oracle: runs any graph at any stage on the CPU, node by node, by calling the bodies of the declarations.

Construction turns the graph into a list of closures over slots. A slot is given to the next value as soon as its value is
dead, and emptied where nobody takes it, so no tensor lives longer than it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from graphir.bricks.call import arguments, concrete
from graphir.bricks.declare import REGISTRY, Declaration, Registry
from graphir.bricks.decoding import for_steps, grown_nodes, of_any_length
from graphir.ir.dims import evaluate
from graphir.ir.graph import Graph, Node, Value
from graphir.ir.scalar import runtime_names
from graphir.lang.diagnostic import Diagnostic, GraphirError

from .base import axis_that_gives, bind_inputs, declaration_of, providers, split_attrs, untold
from .modules import Named, argument, attach, parameter
from .plan import check_names
from .slots import Slot, fill, slots

Step = Callable[[list[Any]], None]
State = dict[str, dict[str, torch.Tensor]]
SIZES = 0


class Record(NamedTuple):
    """What a trace tells of one result of one node. Statistics are None for tensors that are empty or not float."""

    path: str
    op: str
    place: str
    shape: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    deviation: float | None
    not_finite: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Bound:
    """A node with its slots and its body, ready to be called. `drops` are the slots whose values die here."""

    node: Node
    declaration: Declaration
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    drops: tuple[int, ...]
    waiting: Mapping[str, Any]
    tells: tuple[tuple[str, int, int, int, int], ...]


class Interpreter:
    """A graph with its weights, ready to run.

    `dtype` (float64, say) casts weights and float inputs; None leaves them. `training` is what bodies are told. Weights that
    require gradients get them, so the interpreter can be trained and differentiated like any module.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None = None,
        training: bool = False,
        registry: Registry = REGISTRY,
        slots: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ):
        missing = [Diagnostic("E0801", f"weight `{n}` {list(w.shape)} is missing") for n, w in graph.weights.items() if n not in weights]
        if missing:
            raise GraphirError(missing)
        self.graph = graph
        self.slots = slots or {}
        self.dtype = dtype
        self.training = training
        self.registry = registry
        self.weights = {n: weights[n] if dtype is None else weights[n].to(dtype) for n in graph.weights}
        self._decoders: dict[frozenset[str], tuple[Interpreter, Graph, Collection[Node]]] = {}
        self._told = providers(graph)
        self._bound, self._inputs, self._results, self._slots = _assign(graph, registry, self._told)
        self._plan = tuple(self._step(bound) for bound in self._bound)

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        aux: bool = False,
        trace: Callable[[Record], None] | None = None,
        check_finite: bool = False,
    ) -> Any:
        """The model's outputs by name; with `aux` also a dict of the auxiliary ones, as a pair.

        `trace` is told of each node's results in order. `check_finite` raises GraphirError E0807 at the first node that makes a
        NaN or an infinity out of finite numbers. Raises GraphirError E0803, E0804 for inputs that do not fit.
        """
        sizes = bind_inputs(self.graph, inputs)
        slots: list[Any] = [None] * self._slots
        slots[SIZES] = sizes
        self._place(slots, inputs)
        if trace is None and not check_finite:
            for step in self._plan:
                step(slots)
        else:
            self._run_watched(slots, trace, check_finite)
        outputs = {name: slots[slot] for (name, _), slot in zip(self.graph.outputs, self._results)}
        if not aux:
            return outputs
        rest = self._results[len(self.graph.outputs) :]
        return outputs, {name: slots[slot] for (name, _), slot in zip(self.graph.aux, rest)}

    def run_step(
        self, inputs: Mapping[str, torch.Tensor], state: State | None = None, whole: Collection[str] = ()
    ) -> tuple[dict[str, torch.Tensor], State]:
        """One or more new tokens: outputs and the state after them. `state` is None before the first token.

        `whole` names inputs that are given in full at every step (the source of an encoder-decoder): what follows from them
        alone is computed as in `run` and keeps no state.

        State belongs to call sites: it maps the path of each stateful node to its tensors. Raises GraphirError E0810 where a node
        sees later tokens, E0811 where the state is not one of this model.
        """
        runner, checked, grown = self._decoding(frozenset(whole))
        return runner._run_step(inputs, state or {}, bind_inputs(checked, inputs), grown)

    def _run_step(
        self, inputs: Mapping[str, torch.Tensor], old: State, sizes: dict[str, int], grown: Collection[Node]
    ) -> tuple[dict[str, torch.Tensor], State]:
        strangers = sorted(old.keys() - {b.node.where.path for b in self._bound if b.declaration.state})
        if strangers:
            message = f"the state has an entry `{strangers[0]}`, but no such node of `{self.graph.name}` keeps state"
            raise GraphirError(Diagnostic("E0811", message))
        slots: list[Any] = [None] * self._slots
        slots[SIZES] = sizes
        self._place(slots, inputs)
        new: State = {}
        for bound, step in zip(self._bound, self._plan):
            if bound.declaration.state is None or bound.node not in grown:
                step(slots)
            else:
                new[bound.node.where.path] = self._stateful(bound, slots, old.get(bound.node.where.path))
        return {name: slots[slot] for (name, _), slot in zip(self.graph.outputs, self._results)}, new

    def _decoding(self, whole: frozenset[str]) -> tuple[Interpreter, Graph, Collection[Node]]:
        """What runs steps, the graph that checks their inputs, the nodes that new tokens reach. Raises GraphirError E0810."""
        if whole not in self._decoders:
            graph = for_steps(self.graph, self.registry)
            grown = grown_nodes(graph, whole, self.registry)
            steps = tuple([name for name, _ in graph.inputs if name not in whole])
            same = graph is self.graph
            runner = self if same else Interpreter(graph, self.weights, self.dtype, self.training, self.registry, self.slots)
            self._decoders[whole] = runner, of_any_length(graph, steps), grown
        return self._decoders[whole]

    def _place(self, slots: list[Any], inputs: Mapping[str, torch.Tensor]) -> None:
        for (name, value), slot in zip(self.graph.inputs, self._inputs):
            tensor = inputs[name]
            slots[slot] = tensor.to(self.dtype) if self.dtype is not None and value.type.dtype == "float" else tensor

    def _call(self, bound: Bound) -> tuple[Callable[..., Any], int]:
        """The body with all but its positional inputs filled in, and how many inputs that leaves positional; optional ones follow."""
        node, declaration = bound.node, bound.declaration
        if node.where.path in self.slots:
            return self.slots[node.where.path], 1
        static = split_attrs(declaration, node.attrs)[0]
        weights = {role: self.weights[name] for role, name in node.weights}
        positional, keyword = arguments(
            declaration, list(range(len(node.inputs))), weights, static, training=self.training, device=None, dtype=self.dtype,
        )
        ports = {k: v for k, v in keyword.items() if k in declaration.optional and k not in weights}
        fixed = {k: v for k, v in keyword.items() if k not in ports}
        body = partial(declaration.body, **fixed) if fixed else declaration.body
        if ports:
            names = [k for k, _ in sorted(ports.items(), key=lambda p: p[1])]
            body = _by_keyword(body, positional, ports, names)
        return body, len(positional)

    def _step(self, bound: Bound) -> Step:
        body, _ = self._call(bound)
        step = _closure(body, bound)
        return step if not bound.tells else _telling(step, bound.tells)

    def _run_watched(self, slots: list[Any], trace: Callable[[Record], None] | None, check_finite: bool) -> None:
        for bound, step in zip(self._bound, self._plan):
            fed = check_finite and all(_finite(slots[r]) for r in bound.reads)
            started = time.perf_counter()
            step(slots)
            seconds = time.perf_counter() - started
            made = [slots[w] for w in bound.writes]
            for tensor in made:
                record = _record(bound.node, tensor, seconds)
                if trace is not None:
                    trace(record)
                if fed and record.not_finite:
                    raise GraphirError(_not_finite(bound.node, record))

    def _stateful(self, bound: Bound, slots: list[Any], state: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        node, rule, sizes = bound.node, bound.declaration.state, slots[SIZES]
        assert rule is not None
        if state is None:
            state = self._first_state(bound, sizes)
        attrs = {k: concrete(v, sizes) for k, v in node.attrs.items()}
        weights = {role: self.weights[name] for role, name in node.weights}
        positional, keyword = arguments(
            bound.declaration, [slots[r] for r in bound.reads], weights, attrs, training=self.training, device=None, dtype=self.dtype
        )
        result, state = rule.step(state, *positional, **keyword)
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        for slot in bound.drops:
            slots[slot] = None
        for slot, tensor in zip(bound.writes, results):
            slots[slot] = tensor
        return dict(state)

    def _first_state(self, bound: Bound, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        rule, node = bound.declaration.state, bound.node
        assert rule is not None
        types = tuple([v.type for v in node.inputs])
        names = bound.declaration.names(types, node.attrs, self.graph.facts)
        floats = self.dtype or next((w.dtype for w in self.weights.values()), torch.get_default_dtype())
        kinds = {"float": floats, "int": torch.int64, "bool": torch.bool}
        shapes = rule.init(types, names)
        return {
            name: torch.full([evaluate(d, sizes) for d in shape], rule.fill.get(name, 0), dtype=kinds[dtype])
            for name, (shape, dtype) in shapes.items()
        }


class InterpretedNetwork(Named, nn.Module):
    """A graph as a module that the interpreter runs: parameters by path, forward and `input_names` as those of the fx network."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None, registry: Registry = REGISTRY
    ):
        super().__init__()
        check_names(graph)
        self.graphir, self.registry = graph, registry
        self.input_names = {name: argument(name) for name, _ in graph.inputs}
        for name, weight in graph.weights.items():
            attach(self, name, parameter(weight, weights[name].detach().to(dtype=dtype, copy=True)))
        for node in graph.nodes:
            if node.op == "slot":
                attach(self, node.where.path, Slot(node.where.path, node.attrs["width"]))
        self._ready: tuple[bool, Interpreter] | None = None

    def interpreter(self) -> Interpreter:
        """The interpreter of the present parameters and mode."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        ready = self._ready
        if ready and ready[0] == self.training and all(ready[1].weights[n] is tensors[n] for n in self.graphir.weights):
            return ready[1]
        made = Interpreter(self.graphir, tensors, training=self.training, registry=self.registry, slots=slots(self, self.graphir))
        self._ready = self.training, made
        return made

    def set_slot(self, path: str, module: nn.Module | None) -> None:
        """Fill the slot at a path (None empties it); nothing else changes. Raises GraphirError E0812 where there is no such slot."""
        fill(self, self.graphir, path, module)

    def forward(self, *inputs: torch.Tensor, aux: bool = False, **named: torch.Tensor) -> Any:
        """The model's output, or a tuple of several; with `aux` a pair of that and a dict of the auxiliary outputs."""
        given = dict(zip(self.input_names, inputs))
        back = {alias: name for name, alias in self.input_names.items()}
        given.update({back.get(n, n): t for n, t in named.items()})
        outputs, extra = self.interpreter().run(given, aux=True)
        shown = tuple(outputs.values())
        shown = shown[0] if len(shown) == 1 else shown
        return (shown, extra) if aux else shown


def _assign(
    graph: Graph, registry: Registry, told: Mapping[str, Value]
) -> tuple[list[Bound], list[int], list[int], int]:
    """Slots for all values: bound nodes, the slots of inputs, the slots of results, how many slots there are (0 holds sizes)."""
    uses = dict(graph.uses)
    slot_of: dict[Value, int] = {}
    free: list[int] = []
    count = 1

    def take() -> int:
        nonlocal count
        if free:
            return free.pop()
        count += 1
        return count - 1

    inputs = []
    for _, value in graph.inputs:
        slot_of[value] = take()
        inputs.append(slot_of[value])
    by_value: dict[Value, list[str]] = {}
    for name, value in told.items():
        if value.node is not None:
            by_value.setdefault(value, []).append(name)
    unused = [v for _, v in graph.inputs if not uses.get(v)]
    bound: list[Bound] = []
    done: set[Node | None] = {None}
    for node in graph.nodes:
        declaration = declaration_of(node, registry)
        reads = tuple([slot_of[v] for v in node.inputs])
        dying: dict[int, None] = {}
        for value in node.inputs:
            uses[value] -= 1
            if not uses[value]:
                dying[slot_of.pop(value)] = None
        for value in unused:
            dying[slot_of.pop(value)] = None
        unused = []
        free.extend(reversed(dying))
        writes = tuple([take() for _ in node.outputs])
        slot_of.update(zip(node.outputs, writes))
        for value in node.outputs:
            if not uses.get(value):
                unused.append(value)
        drops = tuple([s for s in dying if s not in writes])
        waiting = split_attrs(declaration, node.attrs)[1]
        for name in sorted(runtime_names(tuple(waiting.values()))):
            if name not in told or told[name].node not in done:
                raise untold(node, name)
        done.add(node)
        tells = tuple(
            [
                (name, slot_of[v], *axis_that_gives(v.type, name))  # type: ignore[misc]
                for v in node.outputs
                for name in by_value.get(v, ())
            ]
        )
        bound.append(Bound(node, declaration, reads, writes, drops, waiting, tells))
    return bound, inputs, [slot_of[v] for _, v in graph.results], count


def _by_keyword(body: Callable[..., Any], positional: Sequence[int], ports: Mapping[str, int], names: Sequence[str]) -> Callable[..., Any]:
    """A body whose optional ports are keywords, as one that takes all inputs in port order."""
    places = tuple(positional)

    def call(*inputs: Any, **more: Any) -> Any:
        return body(*[inputs[p] for p in places], **{n: inputs[ports[n]] for n in names}, **more)

    return call


def _closure(body: Callable[..., Any], bound: Bound) -> Step:
    """One step of the plan, with the common cases (few inputs, one result, nothing to wait for) free of loops."""
    reads, writes, drops, waiting = bound.reads, bound.writes, bound.drops, bound.waiting
    if bound.declaration.kind == "fork":
        return _wire(reads[0], writes, drops)
    if len(writes) == 1 and not waiting and len(drops) <= 1 and 1 <= len(reads) <= 2 and bound.declaration.shape is None:
        return _one(body, reads, writes[0], drops)

    def step(slots: list[Any]) -> None:
        more = {k: concrete(v, slots[SIZES]) for k, v in waiting.items()} if waiting else waiting
        made = body(*[slots[r] for r in reads], **more)
        for slot in drops:
            slots[slot] = None
        if not isinstance(made, tuple | list):
            slots[writes[0]] = made
            return
        for slot, tensor in zip(writes, made):
            slots[slot] = tensor

    return step


def _wire(read: int, writes: tuple[int, ...], drops: tuple[int, ...]) -> Step:
    def step(slots: list[Any]) -> None:
        tensor = slots[read]
        for slot in drops:
            slots[slot] = None
        for slot in writes:
            slots[slot] = tensor

    return step


def _one(body: Callable[..., Any], reads: tuple[int, ...], write: int, drops: tuple[int, ...]) -> Step:
    first, second = reads[0], reads[-1]
    unary, drop = len(reads) == 1, drops[0] if drops else None

    def unary_step(slots: list[Any]) -> None:
        slots[write] = body(slots[first])

    def unary_drop(slots: list[Any]) -> None:
        slots[write] = body(slots[first])
        slots[drop] = None  # type: ignore[call-overload]

    def binary_step(slots: list[Any]) -> None:
        slots[write] = body(slots[first], slots[second])

    def binary_drop(slots: list[Any]) -> None:
        slots[write] = body(slots[first], slots[second])
        slots[drop] = None  # type: ignore[call-overload]

    if unary:
        return unary_step if drop is None else unary_drop
    return binary_step if drop is None else binary_drop


def _telling(step: Step, tells: tuple[tuple[str, int, int, int, int], ...]) -> Step:
    """The step, followed by noting sizes that only its results tell."""

    def noting(slots: list[Any]) -> None:
        step(slots)
        for name, slot, axis, factor, constant in tells:
            slots[SIZES][name] = (slots[slot].shape[axis] - constant) // factor

    return noting


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _record(node: Node, tensor: torch.Tensor, seconds: float) -> Record:
    where, shape = node.where, tuple(tensor.shape)
    place = str(where.span) if where.span else ""
    if not tensor.numel() or not tensor.is_floating_point():
        return Record(where.path, node.op, place, shape, None, None, None, None, 0, seconds)
    x = tensor.detach().double()
    bad = int((~torch.isfinite(x)).sum())
    return Record(
        where.path, node.op, place, shape, float(x.min()), float(x.max()), float(x.mean()), float(x.std(correction=0)), bad, seconds
    )


def _not_finite(node: Node, record: Record) -> Diagnostic:
    total = 1
    for d in record.shape:
        total *= d
    message = f"`{node.where.path}` ({node.op}) makes {record.not_finite} of {total} numbers NaN or infinite out of finite ones"
    return Diagnostic("E0807", message, node.where.span)
