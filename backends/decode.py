"""`mode="decode"`: an fx module `(inputs..., state) -> (outputs, state)` for prefill of any length, then steps.

State is a flat mapping from `call-site path.state name` to tensors, so parallel branches never merge states and each call of a
shared brick has its own. Inside, every block takes its slice of it as arguments and returns the new one, so blocks that do the same
still share one class, and nothing is hidden from torch.compile.

Inputs that must be seen whole (the source of an encoder-decoder) are given at the first step; what follows from them is
computed there by a second network over the same parameters, and kept in the state as `path.memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from graphir.bricks.call import arguments
from graphir.bricks.declare import REGISTRY, Declaration, Registry
from graphir.bricks.decoding import CACHES, Decoding, cached_from, decoding
from graphir.ir.dims import Dim, Poly, evaluate, free_names
from graphir.ir.graph import Graph, Node, Value
from graphir.ir.types import Type
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

from .base import bind_inputs, declaration_of, element_kind, gives_tuple
from .decode_rules import FIXED
from .fx import Network, Writer, _build, _plain, _tensors, _unused, lower
from .modules import DECODING, LIKE, argument
from .plan import Part, Plan, plan
from .slots import slots

State = dict[str, torch.Tensor]
KINDS = {"int": torch.int64, "bool": torch.bool}
FILLED = "filled"


@dataclass(frozen=True)
class Entry:
    """One state tensor. `grows`: the axis along which it holds tokens, which starts empty; `fixed`: only in state of a fixed size."""

    key: str
    node: Node | None
    name: str
    dims: tuple[Dim, ...]
    dtype: str
    fill: float = 0
    grows: int | None = None
    fixed: bool = False


def entries_of(node: Node, graph: Graph, registry: Registry = REGISTRY) -> tuple[Entry, ...]:
    """The state of one call, in the order in which its block takes it; none where it has no state."""
    declaration = declaration_of(node, registry)
    path, found = node.where.path, []
    if declaration.state is not None:
        names = declaration.names(tuple([v.type for v in node.inputs]), node.attrs, graph.facts)
        for name, (dims, dtype) in declaration.state.init(tuple([v.type for v in node.inputs]), names).items():
            grows = next((axis for axis, dim in enumerate(dims) if isinstance(dim, int) and dim == 0), None)
            found.append(Entry(f"{path}.{name}", node, name, tuple(dims), dtype, declaration.state.fill.get(name, 0), grows))
    if node.op in CACHES or _reads_cache(node):
        found.append(Entry(f"{path}.{FILLED}", node, FILLED, (), "int", fixed=True))
    return tuple(found)


def _reads_cache(node: Node) -> bool:
    return node.op == "sdpa" and node.attrs.get("causal") is True and cached_from(node.inputs[1]) is not None


@dataclass(frozen=True)
class Halves:
    """A graph cut in two: `first` computes from inputs seen whole what `step` takes as further inputs, under the names in `inner`."""

    decoding: Decoding
    first: Graph | None
    step: Graph
    inner: Mapping[str, str]


def halves(graph: Graph, registry: Registry = REGISTRY) -> Halves:
    """Cut a graph for decoding. Raises GraphirError E0810."""
    how = decoding(graph, registry)
    graph = how.graph
    if not how.kept:
        return Halves(how, None, graph, {})
    inner = {key: f"memory_{place}" for place, key in enumerate(how.kept)}
    given = {value: Value(value.type) for value in how.kept.values()}
    fresh = dict(given)
    nodes = []
    fixed = {value for name, value in graph.inputs if name in how.whole} | given.keys()
    for node in graph.nodes:
        if node not in how.grown and (not fixed.isdisjoint(node.inputs) or not given.keys().isdisjoint(node.outputs)):
            fixed.update(node.outputs)
            continue
        inputs = tuple([fresh.get(v, v) for v in node.inputs])
        made = node if inputs == node.inputs else node.over(inputs)
        if made is not node:
            fresh.update(zip(node.outputs, made.outputs))
        nodes.append(made)
    inputs = tuple([(n, v) for n, v in graph.inputs if n in how.steps])
    inputs += tuple([(inner[key], given[value]) for key, value in how.kept.items()])
    outputs = tuple([(n, fresh.get(v, v)) for n, v in graph.outputs])
    step = graph.with_(inputs=inputs, nodes=tuple(nodes), outputs=outputs, weights=graph.weights)
    early = graph.with_(
        inputs=tuple([(n, v) for n, v in graph.inputs if n in how.whole]), outputs=tuple([(inner[k], v) for k, v in how.kept.items()])
    )
    return Halves(how, early.with_(nodes=early.live), step, inner)


def lower_decoder(
    graph: Graph, weights: Mapping[str, torch.Tensor] | None = None, *, seed: int = 0, dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu", dispatch: str = "auto", registry: Registry = REGISTRY,
) -> Decoder:
    """The graph as a network that decodes. Raises GraphirError as `lower` does, and E0810 where a brick sees later tokens."""
    from .dispatch import dispatch as sparse

    cut = halves(graph, registry)
    planned = plan(sparse(cut.step, dispatch), registry)
    tensors = _tensors(graph, weights, seed, dtype, device)
    layout = Layout(planned)
    blocks = [StepWriter(part, planned, layout, cut).write() for part in planned.kinds]
    network = _build(planned, blocks, tensors, Decoder)
    assert isinstance(network, Decoder)
    network._about(graph, "decode")
    first = next(iter(tensors.values()), torch.empty(0, dtype=dtype, device=device))
    network.to(device=first.device, dtype=first.dtype)
    early = None if cut.first is None else lower(cut.first, {n: tensors[n].to("meta") for n in cut.first.weights}, mode="infer", registry=registry)
    network._modules[DECODING] = Start(network, cut, layout.of(planned.root), early, dispatch)
    return network.train(False)


class Layout:
    """Which state each block takes, in order."""

    def __init__(self, planned: Plan):
        self.plan = planned
        self.known: dict[Part, tuple[Entry, ...]] = {}

    def of(self, part: Part) -> tuple[Entry, ...]:
        if part not in self.known:
            self.known[part] = tuple(self._entries(part))
        return self.known[part]

    def _entries(self, part: Part) -> Iterator[Entry]:
        for item in part.items:
            yield from entries_of(item, self.plan.graph, self.plan.registry) if isinstance(item, Node) else self.of(item)


def collect(state: Mapping[str, torch.Tensor | None]) -> State:
    """A state without what is only there when sizes are fixed."""
    return {key: tensor for key, tensor in state.items() if tensor is not None}


class StepWriter(Writer):
    """Writes the fx graph of one part for decoding: blocks take and return their slice of the state."""

    def __init__(self, part: Part, planned: Plan, layout: Layout, cut: Halves):
        super().__init__(part, planned)
        self.layout, self.cut = layout, cut
        self.entries = layout.of(part)
        self.old: dict[str, fx.Node] = {}
        self.new: dict[str, Any] = {}

    def write(self) -> fx.Graph:
        self._placeholders()
        for item in self.part.items:
            self.values.update(self._node(item) if isinstance(item, Node) else self._part(item))
        if self.part.parent is None:
            self._results()
        else:
            made = tuple(self.values[v] for v in self.part.outputs) + tuple(self.new[e.key] for e in self.entries)
            self.graph.output(made[0] if len(made) == 1 else made)
        return self.graph

    def _placeholders(self) -> None:
        if self.part.parent is not None:
            super()._placeholders()
            taken = {node.target for node in self.graph.nodes}
            for entry in self.entries:
                name = _unused(argument("s_" + self.part.local(entry.key).replace(".", "_")), taken)  # type: ignore[arg-type]
                self.old[entry.key] = self.graph.placeholder(name)
            return
        how = self.cut.decoding
        names = [name for name, _ in how.graph.inputs]
        late = {} if not how.whole else {"default_value": None}
        given = {name: self.graph.placeholder(argument(name), **late) for name in names}
        state = self.graph.placeholder("state", default_value=None)
        begun = self._proxy(self.graph.call_module(DECODING, (state, *given.values())))
        for place, entry in enumerate(self.entries):
            self.old[entry.key] = begun[place].node
        values = dict(self.plan.graph.inputs)
        self.values.update({values[name]: given[name] for name in how.steps})
        for place, (key, name) in enumerate(self.cut.inner.items(), len(self.entries)):
            self.new[key] = self.values[values[name]] = begun[place].node

    def _results(self) -> None:
        outputs = tuple(self.values[self.plan.source(v)] for _, v in self.plan.graph.outputs)
        keys = [*(e.key for e in self.entries), *self.cut.inner]
        state = self.graph.call_function(collect, ({key: self.new[key] for key in keys},))
        self.graph.output((outputs[0] if len(outputs) == 1 else outputs, state))

    def _part(self, part: Part) -> dict[Value, fx.Node]:
        entries = self.layout.of(part)
        if not entries:
            return super()._part(part)
        made = super()._part(part) if False else self._call(part, entries)
        outputs = tuple(part.outputs)
        self.new.update({entry.key: made[place] for place, entry in enumerate(entries, len(outputs))})
        return dict(zip(outputs, made))

    def _call(self, part: Part, entries: tuple[Entry, ...]) -> list[fx.Node]:
        inputs = [self.values[v] for v in part.inputs] + [self._weight(n) for n in part.weights] + [self.old[e.key] for e in entries]
        call = self.graph.call_module(_module_path(self.part.local(part.path)), tuple(inputs))
        count = len(part.outputs) + len(entries)
        return [call] if count == 1 else [self._proxy(call)[place].node for place in range(count)]

    def _node(self, node: Node) -> dict[Value, fx.Node]:
        entries = entries_of(node, self.plan.graph, self.plan.registry)
        if not entries:
            return super()._node(node)
        declaration = declaration_of(node, self.plan.registry)
        inputs = [self.values[v] for v in self.plan.inputs_of(node)]
        weights = {role: self._weight(name) for role, name in node.weights}
        sizes = self.plan.sizes.get(node, {})
        attrs = {k: self._config(v, sizes) for k, v in node.attrs.items()}
        context = {what: _plain(self._context(what)) for what in ("training", "device", "dtype") if what in declaration.accepts}
        positional, keywords = arguments(declaration, inputs, weights, attrs, **context)
        if node.op == "sdpa":
            cache = cached_from(node.inputs[1])
            assert cache is not None
            keywords["behind"] = cache.attrs["size"] - 1 if cache.op == "window_cache" else None
        state = {e.name: self.old[e.key] for e in entries}
        called = {name: _plain(value) for name, value in keywords.items()}
        made = self._proxy(self.graph.call_function(_step(node, declaration), (state, *positional), called))
        y, after = made[0], made[1]
        self.new.update({e.key: after[e.name].node for e in entries})
        if gives_tuple(declaration, node):
            return {value: y[place].node for place, value in enumerate(node.outputs)}
        return {node.outputs[0]: y.node}


def _step(node: Node, declaration: Declaration) -> Callable[..., Any]:
    if node.op in FIXED:
        return FIXED[node.op]
    assert declaration.state is not None
    return declaration.state.step


def _module_path(path: str) -> str:
    from .fx import _path

    return _path(path)


class Start(nn.Module):
    """The beginning of each step: checks inputs and state, makes the first state, runs what is computed once."""

    def __init__(self, network: Decoder, cut: Halves, entries: tuple[Entry, ...], early: Network | None, dispatch: str):
        super().__init__()
        how = cut.decoding
        self.entries, self.how, self.inner, self.dispatch = entries, how, cut.inner, dispatch
        # The network owns this module, and the parameters of the other: neither is a child of this one.
        self.__dict__.update(network=network, early=early)
        self.names = [name for name, _ in how.graph.inputs]
        self.full = _of_any_length(how.graph, how.steps)
        self.stepped = self.full.with_(inputs=tuple([(n, v) for n, v in self.full.inputs if n in how.steps]))
        self.grown = {e.key for e in entries if not e.fixed}
        self.still = {e.key for e in entries}
        first = next(v for n, v in how.graph.inputs if n in how.steps)
        names = free_names(first.type.shape[0]) if first.type.shape else frozenset()
        self.batch = next(iter(names)) if len(names) == 1 else None

    def forward(self, state: State | None, *inputs: torch.Tensor | None) -> list[torch.Tensor | None]:
        given = {name: tensor for name, tensor in zip(self.names, inputs) if tensor is not None}
        if torch.compiler.is_compiling():
            assert state is not None, "torch.compile is given a state: see init_state"
            return [state.get(e.key) for e in self.entries] + [state[key] for key in self.inner]
        whole = any(name in given for name in self.how.whole) or not (state is not None and state.keys() >= self.inner.keys())
        sizes = _bound(self.full if whole else self.stepped, given, self.how)
        if state is None:
            state = self.first(sizes)
        else:
            self.check(state, sizes)
        memory = self.remember(given) if whole and self.inner else state
        return [state.get(e.key) for e in self.entries] + [memory[key] for key in self.inner]

    def remember(self, given: Mapping[str, torch.Tensor]) -> State:
        """What is computed once, by the network's present parameters."""
        early: Network = self.__dict__["early"]
        network: Decoder = self.__dict__["network"]
        like = network.like
        for module in early.modules():
            if LIKE in module._buffers:
                module._buffers[LIKE] = like
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        own = {name: tensors[name] for name in early.state_dict()}
        named = {early.input_names[name]: given[name] for name in self.how.whole}
        made = torch.func.functional_call(early, own, kwargs=named)
        made = made if isinstance(made, tuple) else (made,)
        return dict(zip(self.inner, made))

    def first(self, sizes: Mapping[str, int], length: int | None = None) -> State:
        """The state before the first token; with `length`, tensors that never change their shape."""
        like: torch.Tensor = self.__dict__["network"].like
        made = {}
        for entry in self.entries:
            if entry.fixed and length is None:
                continue
            shape = [evaluate(d, sizes) for d in entry.dims]
            if entry.grows is not None and length is not None:
                assert entry.node is not None
                shape[entry.grows] = entry.node.attrs["size"] - 1 if entry.node.op == "window_cache" else length
            made[entry.key] = torch.full(shape, entry.fill, dtype=KINDS.get(entry.dtype, like.dtype), device=like.device)
        return made

    def check(self, state: Mapping[str, torch.Tensor], sizes: Mapping[str, int] | None = None) -> None:
        """Raise GraphirError E0811 where this is no state of this model, or not of this batch."""
        own = state.keys() - self.inner.keys()
        wanted = self.still if self.is_fixed(state) else self.grown
        if own != wanted:
            raise GraphirError(self._stranger(own, wanted))
        names = {self.batch: sizes[self.batch]} if sizes is not None and self.batch in sizes else {}
        for entry in self.entries:
            if entry.key in state:
                self._fits(entry, state[entry.key], names)
        if sizes is not None and self.is_fixed(state) and not _capturing(self.__dict__["network"].like):
            self._has_room(state, sizes)

    def _stranger(self, own: Any, wanted: Any) -> Diagnostic:
        name = self.how.graph.name
        more, less = sorted(own - wanted), sorted(wanted - own)
        if more:
            return Diagnostic("E0811", f"the state has an entry `{more[0]}`, but nothing in `{name}` keeps that", help=nearest(more[0], wanted))
        return Diagnostic("E0811", f"the state lacks `{less[0]}`, which `{name}` keeps", help=("`net.init_state(...)` makes one",))

    def _fits(self, entry: Entry, tensor: torch.Tensor, names: Mapping[str, int]) -> None:
        fits = element_kind(tensor) == entry.dtype and tensor.dim() == len(entry.dims)
        if fits:
            for axis, dim in enumerate(entry.dims):
                known = isinstance(dim, int) or free_names(dim) <= names.keys()
                if axis != entry.grows and known and evaluate(dim, names) != tensor.shape[axis]:
                    fits = False
        if not fits:
            shape = ", ".join("..." if axis == entry.grows else str(d) for axis, d in enumerate(entry.dims))
            kind = str(tensor.dtype).removeprefix("torch.")
            with_ = "".join(f", with {n} = {size}" for n, size in names.items())
            message = f"state `{entry.key}` is {kind}{list(tensor.shape)}, but the model keeps {entry.dtype}[{shape}]{with_}"
            raise GraphirError(Diagnostic("E0811", message))

    def is_fixed(self, state: Mapping[str, torch.Tensor]) -> bool:
        return not self.still.isdisjoint(state.keys() - self.grown - self.inner.keys())

    def _has_room(self, state: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
        for entry in self.entries:
            if entry.node is None or entry.node.op != "cache" or entry.fixed or entry.grows is None:
                continue
            room, filled = state[entry.key].shape[entry.grows], int(state[f"{entry.node.where.path}.{FILLED}"])
            dim = entry.node.inputs[0].type.shape[entry.grows]
            more = evaluate(dim, sizes) if free_names(dim) <= sizes.keys() else 1
            if filled + more > room:
                message = f"the state has room for {room} tokens: {filled} are in it, {more} more do not fit"
                raise GraphirError(Diagnostic("E0814", message, help=("give `init_state` a greater length",)))
            return


def _capturing(like: torch.Tensor) -> bool:
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def _of_any_length(graph: Graph, steps: tuple[str, ...]) -> Graph:
    """The graph without the preconditions on how many tokens there are, which a step does not tell."""
    lengths = {n for name, v in graph.inputs if name in steps for d in v.type.shape[1:] for n in free_names(d)}
    kept = tuple([r for r in graph.requires if lengths.isdisjoint(free_names(r.left) | free_names(r.right))])
    return graph.with_(requires=kept)


def _bound(graph: Graph, given: Mapping[str, torch.Tensor], how: Decoding) -> dict[str, int]:
    try:
        return bind_inputs(graph, given)
    except GraphirError as e:
        masks = {f"`{n}`" for n, v in graph.inputs if v.type.dtype == "bool" and n in how.steps}
        advice = "a step takes the mask of its own tokens alone: those before are remembered"
        found = [
            Diagnostic(d.code, d.message, d.span, d.notes, (advice,)) if any(m in d.message for m in masks) else d for d in e.diagnostics
        ]
        raise GraphirError(found) from None


class Decoder(Network):
    """A model that decodes: `outputs, state = net(tokens)`, then `outputs, state = net(more, state=state)`.

    Any number of tokens at a time, from one up. Inputs that are seen whole (`net.whole`) are given with the first tokens, and may be
    left out after. A state is never written into: keep one to go on from it again.
    """

    @property
    def start(self) -> Start:
        found = self._modules[DECODING]
        assert isinstance(found, Start)
        return found

    @property
    def like(self) -> torch.Tensor:
        """An empty tensor of the precision and on the device of the weights."""
        found = next((t for t in [*self.parameters(), *self.buffers()] if t.is_floating_point()), torch.empty(0))
        return torch.empty(0, dtype=found.dtype, device=found.device)

    @property
    def steps(self) -> tuple[str, ...]:
        """The inputs that come token by token."""
        return self.start.how.steps

    @property
    def whole(self) -> tuple[str, ...]:
        """The inputs that are given once."""
        return self.start.how.whole

    def init_state(self, batch: int | None = None, *, length: int | None = None, **sizes: int) -> State:
        """The state before the first token. `sizes` give runtime names their lengths, `batch` that of the batch.

        `length` is the number of tokens that there will be room for: no tensor then ever changes its shape, as CUDA graphs want.
        Raises GraphirError E0814 for a model that has no such state, E0803 where a size is missing.
        """
        start = self.start
        if length is not None:
            self._check_fixed()
        known = self._sizes(batch, sizes)
        return start.first(known, length)

    def reset(self, state: Mapping[str, torch.Tensor]) -> State:
        """The state before the first token, for the same batch and of the same kind. What was computed once is forgotten too."""
        self.start.check(state)
        return {e.key: self._begun(e, state[e.key]) for e in self.start.entries if e.key in state}

    def _begun(self, entry: Entry, tensor: torch.Tensor, fixed: bool = False) -> torch.Tensor:
        if entry.grows is not None and not self._fixed_entry(entry, tensor):
            tensor = tensor.narrow(entry.grows, 0, 0)
        return torch.full_like(tensor, entry.fill)

    def _fixed_entry(self, entry: Entry, tensor: torch.Tensor) -> bool:
        return getattr(self, "_fixed_now", False)

    def crop(self, state: Mapping[str, torch.Tensor], length: int) -> State:
        """The state after the first `length` tokens only. Raises GraphirError E0813 where a brick has no way back."""
        return crop(self.start, state, length)

    def reorder(self, state: Mapping[str, torch.Tensor], index: torch.Tensor) -> State:
        """The state of other rows: row i of the new batch goes on from row `index[i]` (beam search). Raises GraphirError E0811."""
        start = self.start
        start.check(state)
        dims = {e.key: e.dims for e in start.entries} | {key: value.type.shape for key, value in start.how.kept.items()}
        return {key: _rows(key, tensor, dims[key], index, start.batch) for key, tensor in state.items()}

    def state_bytes(self, batch: int | None = None, *, length: int | None = None, **sizes: int) -> int:
        """Bytes of the state after decoding whole sequences of these sizes (`batch=1, T=4096`), or of one of fixed size with `length`."""
        known = self._sizes(batch, sizes, all_of_them=length is None)
        start, like = self.start, self.like
        total = 0
        for entry in start.entries:
            if entry.fixed and length is None:
                continue
            shape = list(_full(entry, length))
            item = torch.empty(0, dtype=KINDS.get(entry.dtype, like.dtype)).element_size()
            total += item * _product(evaluate(d, known) for d in shape)
        for value in start.how.kept.values():
            if all(free_names(d) <= known.keys() for d in value.type.shape):
                item = torch.empty(0, dtype=KINDS.get(value.type.dtype, like.dtype)).element_size()
                total += item * _product(value.type.sizes(known))
        return total

    def __reduce__(self) -> tuple[Any, ...]:
        trained = {name: p.requires_grad for name, p in self.named_parameters()}
        filled = {path: slot.module for path, slot in slots(self, self.graphir).items() if slot.module is not None}
        return _restore, (self.graphir, self.state_dict(), trained, self.training, filled, self.start.dispatch)
