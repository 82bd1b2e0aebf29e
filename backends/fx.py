"""Lowering to torch.fx: nested GraphModules by scope, one generated class per distinct block, state-dict names that are the paths.

torch.fx pastes names of inputs and attributes into source that it executes: `plan` checks them against a strict pattern, and
`modules` renames what Python or a Module already means something by (in the code, never in the state dict).
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from graphir.bricks.call import arguments
from graphir.bricks.declare import REGISTRY, Registry
from graphir.ir.dims import Dim, Extremum, Poly, Quotient
from graphir.ir.graph import Graph, Node, Value
from graphir.lang.diagnostic import Diagnostic, GraphirError

from .base import axis_that_gives, declaration_of, demand, gives, gives_tuple, telling_attrs
from .fetch import Fetching
from .modules import LIKE, Named, argument, attach, attribute, parameter
from .parts import module_of, own_module
from .plan import Part, Plan, plan
from .settle import Replaced, settle
from .slots import Slot, fill, slots


def result(outputs: Any, extra: dict[str, torch.Tensor], aux: bool) -> Any:
    """What a model returns: its outputs, with `aux` also the auxiliary ones."""
    return (outputs, extra) if aux else outputs


fx.has_side_effect(demand)


class Block(Named, fx.GraphModule):
    """A scope of a model. Blocks that do the same share one class, so what is traced or compiled once serves them all."""

    def __init__(self, graph: fx.Graph, name: str):
        super().__init__(nn.Module(), fx.Graph(), name)
        graph.set_codegen(Fetching())
        self.graph = graph

    def recompile(self) -> Any:
        codegen = self._graph._codegen
        if isinstance(codegen, Fetching):
            codegen.quick = True
        code = super().recompile()
        if isinstance(codegen, Fetching):
            codegen.quick = False
            self._code = self._graph.python_code(root_module="self").src
        # fx wraps __call__ for nicer errors; two Python frames per block are too dear for small tensors.
        del type(self).__call__
        return code

    def twin(self) -> Block:
        """Another instance of the same class, without parameters yet."""
        other = object.__new__(type(self))
        nn.Module.__init__(other)
        own = other.__dict__.keys() | {"_compiled_call_impl"}
        other.__dict__.update((k, v) for k, v in self.__dict__.items() if k not in own and not isinstance(v, nn.Module))
        other.training = self.training
        return other

    def __deepcopy__(self, memo: dict[Any, Any]) -> Block:
        pattern = memo.get((Block, type(self)))
        other = pattern.twin() if pattern else self._fresh()
        memo.setdefault((Block, type(self)), other)
        memo[id(self)] = other
        own = nn.Module().__dict__.keys() - {"_compiled_call_impl"}
        for name, value in self.__dict__.items():
            if name in own or isinstance(value, nn.Module):
                other.__dict__[name] = copy.deepcopy(value, memo)
        return other

    def _fresh(self) -> Block:
        """The same code under a class of its own, so that editing a copy leaves the original alone."""
        other = self.__class__.__new__(self.__class__)
        Block.__init__(other, copy.deepcopy(self.graph), type(self).__name__)
        return other


class CompiledBlock(Block):
    """A block that torch.compile compiles at its first run, wherever it is copied to."""

    def __deepcopy__(self, memo: dict[Any, Any]) -> Block:
        other = super().__deepcopy__(memo)
        other.compile()
        return other


class Network(Block):
    """A whole model as an fx GraphModule.

    `forward` takes the model's inputs in order or by name (`input_names` tells where a name had to change: `lambda` is
    `lambda_`) and returns its output, or a tuple of several in order; with `aux=True` a pair of that and a dict of the
    auxiliary outputs. `graphir` is the graph it was made of.
    """

    graphir: Graph
    input_names: dict[str, str]
    output_names: tuple[str, ...]
    mode: str

    def __deepcopy__(self, memo: dict[Any, Any]) -> Network:
        other = super().__deepcopy__(memo)
        assert isinstance(other, Network)
        other._about(self.graphir, self.mode)
        return other

    def _about(self, graph: Graph, mode: str) -> None:
        names = {name: argument(name) for name, _ in graph.inputs}
        self.__dict__.update(graphir=graph, mode=mode, input_names=names, output_names=tuple(name for name, _ in graph.outputs))

    def set_slot(self, path: str, module: nn.Module | None) -> None:
        """Fill the slot at a path (None empties it); nothing else changes. Raises GraphirError E0812 where there is no such slot."""
        fill(self, self.graphir, path, module)

    def __reduce__(self) -> tuple[Any, ...]:
        trained = {name: p.requires_grad for name, p in self.named_parameters()}
        filled = {path: slot.module for path, slot in slots(self, self.graphir).items() if slot.module is not None}
        return _restore, (self.graphir, self.mode, self.state_dict(), trained, self.training, filled)


def _restore(
    graph: Graph, mode: str, state: Mapping[str, torch.Tensor], trained: Mapping[str, bool], training: bool, filled: Mapping[str, nn.Module]
) -> Network:
    network = lower(graph, state, mode=mode)
    for path, module in filled.items():
        network.set_slot(path, module)
    for name, trained_one in network.named_parameters():
        trained_one.requires_grad_(trained[name])
    return network.train(training)


def lower(
    graph: Graph,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    mode: str = "train",
    registry: Registry = REGISTRY,
    strict: bool = False,
) -> Network:
    """The graph as nested fx GraphModules; parts that it puts on other backends are modules that those run.

    `weights` are tensors by name (else `initialise(graph, seed)`), cast to `dtype` and moved to `device`. `mode="infer"` gives a
    module in eval mode. Raises GraphirError E0801 for missing or misshapen weights, E0805 for names that cannot be a module's.
    Bricks that their backend cannot run go to fx with a `Replaced` warning, or with `strict` are refused: E0830.
    """
    graph = _settled(graph, strict, mode)
    planned = plan(graph, registry, cut=True)
    tensors = _tensors(graph, weights, seed, dtype, device)
    blocks = [None if own_module(part) else Writer(part, planned).write() for part in planned.kinds]
    network = _build(planned, blocks, tensors)
    network._about(graph, mode)
    first = next(iter(tensors.values()), torch.empty(0, dtype=dtype, device=device))
    network.to(device=first.device, dtype=first.dtype)
    return network.train(mode == "train")


def _settled(graph: Graph, strict: bool, mode: str) -> Graph:
    graph, notes = settle(graph, strict, decode=mode == "decode")
    for note in notes:
        warnings.warn(str(note), Replaced, stacklevel=3)
    return graph


def _tensors(
    graph: Graph, weights: Mapping[str, torch.Tensor] | None, seed: int, dtype: torch.dtype | None, device: torch.device | str
) -> dict[str, torch.Tensor]:
    if weights is None:
        from .weights import initialise

        return initialise(graph, seed, dtype or torch.float32, device)
    problems = []
    for name, weight in graph.weights.items():
        if name not in weights:
            problems.append(Diagnostic("E0801", f"weight `{name}` {list(weight.shape)} is missing"))
        elif tuple(weights[name].shape) != weight.shape:
            problems.append(Diagnostic("E0801", f"weight `{name}` is {list(weights[name].shape)}, not {list(weight.shape)}"))
    if problems:
        raise GraphirError(problems)
    return {name: weights[name].detach().to(device=device, dtype=dtype, copy=True) for name in graph.weights}


def _build(planned: Plan, graphs: list[fx.Graph | None], tensors: Mapping[str, torch.Tensor], whole: type[Network] = Network) -> Network:
    """Modules for all parts, one class per kind, with their parameters; `whole` is the class of the model."""
    made: dict[int, Any] = {}
    names: dict[str, int] = {}

    def build(part: Part) -> nn.Module:
        graph = graphs[part.kind]
        block = made[part.kind].twin() if part.kind in made else module_of(part, planned) if graph is None else _first(part, graph)
        made.setdefault(part.kind, block)
        if graph is None:
            return block
        if part.backend == "inductor":
            block.compile()
        if any(node.target == f"{LIKE}.{what}" for node in graph.nodes for what in ("dtype", "device")):
            block.register_buffer(LIKE, torch.empty(0), persistent=False)
        for item in part.items:
            if isinstance(item, Node) and item.op == "slot":
                attach(block, part.local(item.where.path), Slot(item.where.path, item.attrs["width"]))
        for entry in part.contents:
            if isinstance(entry, Part):
                attach(block, part.local(entry.path), build(entry))
            else:
                attach(block, entry[0], parameter(entry[1], tensors[part.prefix + entry[0]]))
        return block

    def _first(part: Part, graph: fx.Graph) -> Block:
        name = re.sub(r"\W", "", part.frame) or "Block"
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}_{names[name]}"
        kind = whole if part.parent is None else CompiledBlock if part.backend == "inductor" else Block
        return kind(graph, name)

    network = build(planned.root)
    assert isinstance(network, Network)
    return network


class Writer:
    """Writes the fx graph of one part."""

    def __init__(self, part: Part, planned: Plan):
        self.part, self.plan = part, planned
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.values: dict[Value, fx.Node] = {}
        self.weights: dict[str, fx.Node] = {}
        self.fetched: dict[str, fx.Node] = {}
        self.lengths: dict[tuple[Value, str], fx.Proxy] = {}

    def write(self) -> fx.Graph:
        """Placeholders, one or more calls per node, one call per child part, the output."""
        self._placeholders()
        if self.part.parent is None:
            self._preconditions()
        for item in self.part.items:
            made = self._node(item) if isinstance(item, Node) else self._part(item)
            self.values.update(made)
        if self.part.parent is None:
            self._results()
        else:
            outputs = tuple(self.values[v] for v in self.part.outputs)
            self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        return self.graph

    def _placeholders(self) -> None:
        if self.part.parent is None:
            for name, value in self.plan.graph.inputs:
                self.values[value] = self.graph.placeholder(argument(name))
            self.aux = self.graph.placeholder("aux", default_value=False)
            return
        named = {v: argument(n) for n, v in self.plan.graph.inputs}
        taken: set[str] = set()
        for value in self.part.inputs:
            self.values[value] = self.graph.placeholder(_unused(named.get(value, "x"), taken))
        for name in self.part.weights:
            self.weights[name] = self.graph.placeholder(_unused(argument(name.replace(".", "_")), taken))

    def _preconditions(self) -> None:
        """Calls that check what the model requires of runtime sizes, where the inputs tell them."""
        told = {n: v for _, v in reversed(self.plan.graph.inputs) for d in v.type.shape if (known := gives(d)) for n in [known[0]]}
        for r in self.plan.graph.requires:
            try:
                left, right = (self._dim(d, told) for d in (r.left, r.right))
            except KeyError:
                continue
            left = left % r.divisor if r.divisor else left
            self.graph.call_function(demand, tuple(map(_plain, (left, r.op, right, str(r)))))

    def _results(self) -> None:
        graph = self.plan.graph
        outputs = tuple(self.values[self.plan.source(v)] for _, v in graph.outputs)
        extra = {name: self.values[self.plan.source(v)] for name, v in graph.aux}
        shown = outputs[0] if len(outputs) == 1 else outputs
        self.graph.output(self.graph.call_function(result, (shown, extra, self.aux)))

    def _part(self, part: Part) -> dict[Value, fx.Node]:
        target = _path(self.part.local(part.path))
        inputs = [self.values[v] for v in part.inputs] + [self._weight(n) for n in part.weights]
        call = self.graph.call_module(target, tuple(inputs))
        return self._several(call, tuple(part.outputs))

    def _several(self, call: fx.Node, outputs: tuple[Value, ...]) -> dict[Value, fx.Node]:
        if len(outputs) == 1:
            return {outputs[0]: call}
        proxy = fx.Proxy(call, self.tracer)
        return {value: proxy[place].node for place, value in enumerate(outputs)}

    def _node(self, node: Node) -> dict[Value, fx.Node]:
        if node.op == "slot":
            target = _path(self.part.local(node.where.path))
            return {node.outputs[0]: self.graph.call_module(target, tuple(self.values[v] for v in self.plan.inputs_of(node)))}
        declaration = declaration_of(node, self.plan.registry)
        inputs = [self._proxy(self.values[v]) for v in self.plan.inputs_of(node)]
        weights = {role: self._proxy(self._weight(name)) for role, name in node.weights}
        sizes = self.plan.sizes.get(node, {})
        attrs = {k: self._config(v, sizes) for k, v in telling_attrs(declaration, node.attrs).items()}
        context = {what: self._context(what) for what in ("training", "device", "dtype") if what in declaration.accepts}
        positional, keywords = arguments(declaration, inputs, weights, attrs, **context)
        assert all(map(str.isidentifier, keywords)), declaration.name
        if declaration.inline and (inputs or weights):
            made = declaration.body(*positional, **keywords)
        else:
            made = self._leaf(declaration.body, positional, keywords)
        if not isinstance(made, tuple | list) and not gives_tuple(declaration, node):
            return {node.outputs[0]: made.node}
        return {value: made[place].node for place, value in enumerate(node.outputs)}

    def _leaf(self, body: Callable[..., Any], positional: list[Any], keywords: dict[str, Any]) -> Any:
        args = tuple(_plain(p) for p in positional)
        return self._proxy(self.graph.call_function(body, args, {k: _plain(v) for k, v in keywords.items()}))

    def _proxy(self, node: fx.Node) -> fx.Proxy:
        return fx.Proxy(node, self.tracer)

    def _weight(self, name: str) -> fx.Node:
        known = self.weights.get(name)
        if known is None:
            known = self.weights[name] = self._fetch(_path(self.part.local(name)))
        return known

    def _fetch(self, target: str) -> fx.Node:
        found = self.fetched.get(target)
        if found is None:
            found = self.fetched[target] = self.graph.create_node("get_attr", target, name=target.replace(".", "_"))
        return found

    def _context(self, what: str) -> fx.Proxy:
        return self._proxy(self._fetch("training" if what == "training" else f"{LIKE}.{what}"))

    def _config(self, value: Any, told: Mapping[str, Value]) -> Any:
        if isinstance(value, Poly):
            return self._dim(value, told)
        if isinstance(value, tuple | list):
            return tuple(self._config(v, told) for v in value)
        return value

    def _dim(self, dim: Dim, told: Mapping[str, Value]) -> Any:
        """A dim as an integer or as a proxy that computes it. KeyError where no value tells a name."""
        if not isinstance(dim, Poly):
            return dim
        total: Any = 0
        for monomial, factor in dim.terms:
            product: Any = factor
            for atom in monomial:
                size = self._atom(atom, told)
                product = size if isinstance(product, int) and product == 1 else product * size
            total = product if isinstance(total, int) and total == 0 else total + product
        return total

    def _atom(self, atom: Any, told: Mapping[str, Value]) -> Any:
        if isinstance(atom, Quotient):
            return self._dim(atom.poly, told) // atom.divisor
        if isinstance(atom, Extremum):
            # torch's own, which torch.export reads as a size and not as a question to answer now
            choose = torch.sym_min if atom.op == "min" else torch.sym_max
            parts = [_plain(self._dim(d, told)) for d in atom.of]
            return self._proxy(reduce(lambda a, b: self.graph.call_function(choose, (a, b)), parts))
        value = told[atom]
        known = self.lengths.get((value, atom))
        if known is None:
            axis, factor, constant = axis_that_gives(value.type, atom)  # type: ignore[misc]
            known = self._proxy(self.values[value]).size(axis)
            known = known - constant if constant else known
            known = known // factor if factor != 1 else known
            self.lengths[value, atom] = known
        return known


def _plain(value: Any) -> Any:
    """fx arguments hold nodes, not proxies."""
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value


def _path(path: str) -> str:
    return ".".join(map(attribute, path.split(".")))


def _unused(name: str, taken: set[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
