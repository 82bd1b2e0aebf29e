"""`mode="decode"`: an fx module `(inputs..., state) -> (outputs, state)` for prefill of any length, then steps.

State is a flat mapping from `call-site path.state name` to tensors, so parallel branches never merge states and each call of a
shared brick has its own. Inside, every block takes its slice of it as arguments and returns the new one, so blocks that do the same
still share one class, and nothing is hidden from torch.compile.

Inputs that must be seen whole (the source of an encoder-decoder) are given at the first step; what follows from them is
computed there by a second network over the same parameters, and kept in the state as `path.memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from graphir.bricks.call import arguments
from graphir.bricks.declare import REGISTRY, Declaration, Registry
from graphir.bricks.decoding import Decoding, cached_from, decoding, of_any_length
from graphir.ir.graph import Graph, Node, Value
from graphir.lang.diagnostic import GraphirError

from .base import bind_inputs, declaration_of, gives_tuple
from .decode_rules import FIXED
from .decode_state import Entry, Keeper, State, entries_of
from .fx import Network, Writer, _build, _path, _plain, _settled, _tensors, _unused, lower
from .modules import DECODING, LIKE, argument
from .parts import own_module
from .plan import Part, Plan, plan
from .slots import fill


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
    step = _settled(sparse(cut.step, dispatch), False, "decode").with_(weights=graph.weights)
    planned = plan(step, registry, cut=True)
    tensors = _tensors(graph, weights, seed, dtype, device)
    layout = Layout(planned)
    blocks = [None if own_module(part) else StepWriter(part, planned, layout, cut).write() for part in planned.kinds]
    network = _build(planned, blocks, tensors, Decoder)
    assert isinstance(network, Decoder)
    network._about(graph, "decode")
    first = next(iter(tensors.values()), torch.empty(0, dtype=dtype, device=device))
    network.to(device=first.device, dtype=first.dtype)
    early = None
    if cut.first is not None:
        hollow = {n: tensors[n].to("meta") for n in cut.first.weights}
        early = lower(cut.first, hollow, device="meta", mode="infer", registry=registry)
    network._modules[DECODING] = Start(network, cut, Keeper(cut.decoding, layout.of(planned.root)), early, dispatch)
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
        made = self._call(part, entries)
        outputs = tuple(part.outputs)
        self.new.update({entry.key: made[place] for place, entry in enumerate(entries, len(outputs))})
        return dict(zip(outputs, made))

    def _call(self, part: Part, entries: tuple[Entry, ...]) -> list[fx.Node]:
        inputs = [self.values[v] for v in part.inputs] + [self._weight(n) for n in part.weights] + [self.old[e.key] for e in entries]
        call = self.graph.call_module(_path(self.part.local(part.path)), tuple(inputs))
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


class Start(nn.Module):
    """The beginning of each step: checks inputs and state, makes the first state, runs what is computed once."""

    def __init__(self, network: Decoder, cut: Halves, keeper: Keeper, early: Network | None, dispatch: str):
        super().__init__()
        self.keeper, self.inner, self.dispatch = keeper, cut.inner, dispatch
        # The network owns this module, and the parameters of the other one: neither is a child of this.
        self.__dict__.update(network=network, early=early)
        how = cut.decoding
        self.how, self.names = how, [name for name, _ in how.graph.inputs]
        self.full = of_any_length(how.graph, how.steps)
        self.stepped = self.full.with_(inputs=tuple([(n, v) for n, v in self.full.inputs if n in how.steps]))

    def forward(self, state: State | None, *inputs: torch.Tensor | None) -> list[torch.Tensor | None]:
        if state is not None and torch.compiler.is_compiling():
            return self._laid_out(state, state)
        given = {name: tensor for name, tensor in zip(self.names, inputs) if tensor is not None}
        fresh = state is None or not state.keys() >= self.inner.keys() or any(name in given for name in self.how.whole)
        sizes = _bound(self.full if fresh else self.stepped, given, self.how.steps)
        like = self.__dict__["network"].like
        if state is None:
            state = self.keeper.first(sizes, like)
        else:
            self.keeper.check(state, sizes)
            if self.keeper.is_fixed(state) and not _capturing(like):
                self.keeper.check_room(state, sizes)
        return self._laid_out(state, self.remember(given) if fresh and self.inner else state)

    def _laid_out(self, state: Mapping[str, torch.Tensor], memory: Mapping[str, torch.Tensor]) -> list[torch.Tensor | None]:
        return [state.get(e.key) for e in self.keeper.entries] + [memory[key] for key in self.inner]

    def remember(self, given: Mapping[str, torch.Tensor]) -> State:
        """What is computed once, by the network's present parameters."""
        early, network = self.__dict__["early"], self.__dict__["network"]
        like = network.like
        for module in early.modules():
            if LIKE in module._buffers:
                module._buffers[LIKE] = like
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        own = {name: tensors[name] for name in early.state_dict()}
        made = torch.func.functional_call(early, own, kwargs={early.input_names[n]: given[n] for n in early.input_names})
        return dict(zip(self.inner, made if isinstance(made, tuple) else (made,)))


def _capturing(like: torch.Tensor) -> bool:
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def _bound(graph: Graph, given: Mapping[str, torch.Tensor], steps: tuple[str, ...]) -> dict[str, int]:
    try:
        return bind_inputs(graph, given)
    except GraphirError as e:
        masks = [f"`{n}`" for n, v in graph.inputs if v.type.dtype == "bool" and n in steps]
        advice = "a step takes the mask of its own tokens alone: those of earlier ones are remembered"
        found = [replace(d, help=(*d.help, advice)) if any(m in d.message for m in masks) else d for d in e.diagnostics]
        raise GraphirError(found) from None


class Decoder(Network):
    """A model that decodes: `outputs, state = net(tokens)`, then `outputs, state = net(more, state=state)`.

    Any number of tokens at a time, from one up. Inputs that are seen whole (`net.whole`) are given with the first tokens and may be
    left out after that. A state is never written into: keep one to go on from it once more.
    """

    @property
    def start(self) -> Start:
        found = self._modules[DECODING]
        assert isinstance(found, Start)
        return found

    @property
    def like(self) -> torch.Tensor:
        """An empty tensor as precise as the weights, and where they are."""
        found = next((t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.empty(0))
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

        `length` is how many tokens there will be room for: no tensor then ever changes its shape, as CUDA graphs want.
        Raises GraphirError E0814 for a model that has no such state, E0803 where a size is missing.
        """
        keeper = self.start.keeper
        if length is not None:
            keeper.check_fixed(self.start.how.graph)
        return keeper.first(keeper.sizes(batch, sizes), self.like, length)

    def reset(self, state: Mapping[str, torch.Tensor]) -> State:
        """The state before the first token, for the same batch; what was computed once is forgotten too. Raises GraphirError E0811."""
        return self.start.keeper.reset(state)

    def crop(self, state: Mapping[str, torch.Tensor], length: int) -> State:
        """The state after the first `length` tokens alone. Raises GraphirError E0813 where a brick has no way back, E0811."""
        return self.start.keeper.crop(state, length)

    def reorder(self, state: Mapping[str, torch.Tensor], index: torch.Tensor) -> State:
        """The state of other rows: row i goes on from row `index[i]`, int[n] (beam search). Raises GraphirError E0811."""
        return self.start.keeper.reorder(state, index)

    def state_bytes(self, batch: int | None = None, *, length: int | None = None, **sizes: int) -> int:
        """Bytes of the state after sequences of these sizes (`batch=1, T=4096`), or with room for `length` tokens.

        Raises GraphirError E0803 where a size is missing.
        """
        keeper = self.start.keeper
        return keeper.bytes(keeper.sizes(batch, sizes, whole=length is None), self.like, length)

    def set_slot(self, path: str, module: nn.Module | None) -> None:
        """As on any network; a slot in what is computed once is filled there."""
        early = self.start.__dict__["early"]
        inner = {n.where.path for n in early.graphir.nodes if n.op == "slot"} if early is not None else ()
        if path in inner:
            early.set_slot(path, module)
        else:
            fill(self, self.start.how.graph.with_(nodes=tuple([n for n in self.graphir.nodes if n.where.path not in inner])), path, module)

    def compiled(self) -> Decoder:
        """This network with its blocks compiled by torch.compile at their first run."""
        from .inductor import compile_blocks

        self.start.forward = torch.compiler.disable(self.start.forward)  # type: ignore[method-assign]
        compile_blocks(self)
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> Decoder:
        made, arguments = self.__reduce__()
        memo[id(self)] = other = made(*arguments)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        trained = {name: p.requires_grad for name, p in self.named_parameters()}
        return _restore, (self.graphir, self.state_dict(), trained, self.training, self.start.dispatch)


def _restore(graph: Graph, state: Mapping[str, torch.Tensor], trained: Mapping[str, bool], training: bool, dispatch: str) -> Decoder:
    network = lower_decoder(graph, state, dispatch=dispatch)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained[name])
    return network.train(training)
