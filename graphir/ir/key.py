"""A canonical digest of a graph.

**Equal for equal architectures.** The key does not see names (of the model, its inputs, outputs, weights, scopes, branches
and runtime dims), spans, params, preconditions, dead nodes, the order of nodes that do not depend on each other, or the order of
the operands of `add`, `mul`, `max` and `mean` (where all operands count alike). It sees ops, attributes, types, wiring,
backends, the order of inputs and outputs, the shape, init and flags of each weight, and which nodes share one.

**Different for different ones, with this proviso.** Nodes and shared weights are told apart by what lies above and below
them, round after round until nothing more can be told (colour refinement, the one-dimensional Weisfeiler-Leman method).
Where that tells all live nodes apart, as in all networks without interchangeable parts, equal keys mean isomorphic graphs,
but for a collision of 128-bit BLAKE2b. Where parts stay alike (equal branches of a commutative join), each of a few alike parts
is singled out in turn and refinement runs again; very regular wirings beyond that can still collide, and whoever must be
sure compares the graphs as well. Two runtime names that first occur together inside one compound dim of an input, in
symmetric positions, are ordered by their spelling.

Two nodes that compute the same from the same are two nodes here: merging them is a pass, not a matter of names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from .dims import Dim, Poly, free_names, substitute, symbol
from .graph import Attrs, Graph, Node, Value, Weight
from .literals import write
from .types import Type

COMMUTATIVE = frozenset(("add", "mul", "max", "mean"))
SINGLED_OUT = 8  # at most so many alike parts are singled out, and
WORK = 4096  # so many nodes looked at again for it

_SIZE = 16
_PORTS = tuple([port.to_bytes(4, "big") for port in range(64)])
_RESULT = b"result".ljust(_SIZE, b"\x00")
_EITHER = b"\xff\xff\xff\xff"  # the port of an operand whose order does not matter


def key(graph: Graph) -> str:
    """32 hexadecimal characters; see the module's text for what equal keys mean."""
    renaming = _Renaming(graph)
    found = _from_above(graph, renaming)
    if found is not None:
        return found.hex()
    structure = _Structure(graph, renaming)
    colours, classes = _refine(structure, structure.labels, structure.weight_labels)
    certificate = _certificate(structure, colours)
    alike = _alike(structure, colours) if classes < len(structure.nodes) else ()
    singled = sorted([_single_out(structure, colours, index) for index in alike])
    return _digest(certificate + b"".join(singled)).hex()


def _digest(data: bytes) -> bytes:
    return blake2b(data).digest()[:_SIZE]  # half the time of asking for so few bytes


def _port(port: int) -> bytes:
    return _PORTS[port] if port < 64 else port.to_bytes(4, "big")


def _from_above(graph: Graph, renaming: _Renaming) -> bytes | None:
    """The digest of a graph whose nodes are all told apart by what they are computed from; None for others.

    A colour says all that a node is computed from. Where no two nodes have one colour, the colours of the results hold the
    whole wiring, and what is left to say is which nodes share a weight: one walk instead of three.
    """
    labels = _Labels(graph, renaming)
    inputs = [_digest(b"input" + _port(i) + renaming.type(v.type)) for i, (_, v) in enumerate(graph.inputs)]
    tokens: dict[Value, bytes] = {value: token for (_, value), token in zip(graph.inputs, inputs)}
    seen: set[bytes] = set()
    shared = _shared(graph)
    users: dict[str, list[bytes]] = {name: [] for name in shared}
    inventory, by_identity = graph.weights, labels.by_identity
    for node in graph.live:
        operands, outputs = node.inputs, node.outputs
        known: Any = [node.op, id(node.attrs), len(operands), node.where[3], len(outputs)]
        for value in outputs:
            known.append(id(value.type))
        for role, name in node.weights:
            known.append(role)
            known.append(id(inventory[name]))
        known = tuple(known)
        label, commutes = by_identity.get(known) or labels.add(known, node)
        if len(operands) == 1:
            data = label + tokens[operands[0]]
        else:
            above = [tokens[v] for v in operands]
            if commutes:
                above.sort()
            data = label + b"".join(above)
        colour = blake2b(data).digest()[:_SIZE]
        if colour in seen:
            return None
        seen.add(colour)
        tokens[outputs[0]] = colour
        if len(outputs) > 1:
            for port in range(1, len(outputs)):
                tokens[outputs[port]] = _digest(colour + _port(port))
        if shared and not shared.isdisjoint([name for _, name in node.weights]):
            for role, name in node.weights:
                if name in shared:
                    users[name].append(colour + role.encode())
    sharing = sorted([_digest(b"\x00".join(sorted(uses))) for uses in users.values()])
    results = [tokens[v] for _, v in graph.results]
    counts = _port(len(graph.outputs)) + _port(len(graph.aux)) + _port(len(seen)) + _port(len(sharing))
    return _digest(b"".join([b"from above", counts, *results, *inputs, *sharing]))


def _shared(graph: Graph) -> set[str]:
    """The weights that live nodes name more than once."""
    live = graph.live
    if live is graph.nodes and sum([len(node.weights) for node in live]) == len(graph.named):
        return set()
    counts = Counter([name for node in live for _, name in node.weights])
    return {name for name, count in counts.items() if count > 1}


class _Labels:
    """What each node is without its place: op, attributes, types, backend and weights. Looked up by identity, then by content."""

    def __init__(self, graph: Graph, renaming: _Renaming):
        self.inventory = graph.weights
        self.renaming = renaming
        self.by_identity: dict[Any, tuple[bytes, bool]] = {}
        self.by_content: dict[Any, tuple[bytes, bool]] = {}

    def add(self, identity: Any, node: Node) -> tuple[bytes, bool]:
        """The label of a node met for the first time, and whether the order of its operands means nothing."""
        held = [(role, self.inventory[name]) for role, name in node.weights]
        own = tuple([(role, w.shape, w.init, w.frozen, w.buffer) for role, w in held])
        known = (node.op, node.attrs, node.where.backend, len(node.inputs), own, *[v.type for v in node.outputs])
        found = self.by_content.get(known)
        if found is None:
            found = self.by_content[known] = (self.renaming.label(node, own), _is_commutative(node))
        self.by_identity[identity] = found
        return found


class _Structure:
    """The live part of a graph in numbers: per node a label, its operands and its shared weights.

    Values are numbered: the inputs, then what the nodes give, in order; `first` is the number of each node's first result.
    A weight that only one node uses is part of that node's label; one of several uses is a thing of its own.
    """

    def __init__(self, graph: Graph, renaming: _Renaming):
        self.nodes = graph.live
        self.rename = renaming
        self.inputs = [_digest(b"input" + _port(i) + self.rename.type(v.type)) for i, (_, v) in enumerate(graph.inputs)]
        numbers: dict[Value, int] = {value: i for i, (_, value) in enumerate(graph.inputs)}
        uses: dict[str, int] = {}
        self.first: list[int] = []
        self.operands: list[tuple[int, ...]] = []
        for node in self.nodes:
            self.operands.append(tuple([numbers[v] for v in node.inputs]))
            self.first.append(len(numbers))
            for value in node.outputs:
                numbers[value] = len(numbers)
            for _, name in node.weights:
                uses[name] = uses.get(name, 0) + 1
        self.first.append(len(numbers))
        self.results = [numbers[v] for _, v in graph.results]
        self.counts = _port(len(graph.outputs)) + _port(len(graph.aux))
        shared = {name: i for i, name in enumerate([name for name, n in uses.items() if n > 1])}
        self.weight_labels = [_digest(_weight_text(graph.weights[name]) + _port(uses[name])) for name in shared]
        self.commutes: list[bool] = []
        self.weights: list[list[tuple[bytes, int]]] = []
        self.labels = self._label(graph.weights, shared)

    def _label(self, inventory: Mapping[str, Weight], shared: Mapping[str, int]) -> list[bytes]:
        seen: dict[Any, tuple[bytes, bool]] = {}
        kinds: dict[int, Type] = {}  # by identity, so that most types are never hashed
        unique: dict[Type, Type] = {}
        out: list[bytes] = []
        none: list[tuple[bytes, int]] = []
        for node, operands in zip(self.nodes, self.operands):
            own: tuple[Any, ...] = ()
            joint = none
            if node.weights:
                held = [(role, inventory[name], shared.get(name)) for role, name in node.weights]
                own = tuple([role if at is not None else (role, w.shape, w.init, w.frozen, w.buffer) for role, w, at in held])
                if shared:
                    joint = sorted([(role.encode(), at) for role, _, at in held if at is not None])
            types = []
            for value in node.outputs:
                kind = kinds.get(id(value.type))
                if kind is None:
                    kind = kinds[id(value.type)] = unique.setdefault(value.type, value.type)
                types.append(id(kind))
            known = (node.op, node.attrs, node.where.backend, len(operands), own, *types)
            found = seen.get(known)
            if found is None:
                found = seen[known] = (self.rename.label(node, own), _is_commutative(node))
            label, commutes = found
            if len(operands) > 1 and len(set(operands)) < len(operands):
                label = _digest(label + _repeats(operands, commutes))
            out.append(label)
            self.commutes.append(commutes)
            self.weights.append(joint)
        return out

    def tokens(self, colours: list[bytes]) -> list[bytes]:
        """The colour of each value: that of its node, with the port where it is not the first."""
        out = list(self.inputs)
        for i, colour in enumerate(colours):
            out.append(colour)
            for port in range(1, self.first[i + 1] - self.first[i]):
                out.append(_digest(colour + _port(port)))
        return out


def _is_commutative(node: Node) -> bool:
    attrs = node.attrs
    return node.op in COMMUTATIVE and attrs.get("alpha", 1) == 1 and not attrs.get("given") and "positions" not in attrs


def _repeats(operands: tuple[int, ...], commutes: bool) -> bytes:
    """Which operands are one value: by position, or as counts where positions mean nothing."""
    if commutes:
        return repr(sorted([operands.count(operand) for operand in set(operands)])).encode()
    return repr([operands.index(operand) for operand in operands]).encode()


def _weight_text(weight: Weight) -> bytes:
    return repr((weight.shape, weight.init, weight.frozen, weight.buffer)).encode()


class _Renaming:
    """Runtime names by first appearance in the inputs: bare ones first, then those inside compound dims."""

    def __init__(self, graph: Graph):
        self.names: dict[str, Poly] = {}
        dims = [dim for _, value in graph.inputs for dim in value.type.shape if isinstance(dim, Poly)]
        for dim in dims:
            if str(dim).isidentifier():
                self.add(str(dim))
        for dim in dims:
            for name in sorted(free_names(dim) - set(self.names), key=lambda name: (self._seen_from(dim, name), name)):
                self.add(name)
        self.texts: dict[int, bytes] = {}
        self.dims: dict[Dim, str] = {}

    def add(self, name: str) -> None:
        self.names.setdefault(name, symbol(f"d{len(self.names)}"))

    def _seen_from(self, dim: Dim, name: str) -> str:
        return str(substitute(dim, lambda n: symbol("self") if n == name else self.names.get(n, symbol("other"))))

    def dim(self, dim: Dim) -> Dim:
        return substitute(dim, lambda name: self.names.get(name, _FRESH))

    def type(self, type: Type) -> bytes:
        found = self.texts.get(id(type))
        if found is None:
            found = self.texts[id(type)] = f"{type.dtype}{[self._dim_text(d) for d in type.shape]}".encode()
        return found

    def _dim_text(self, dim: Dim) -> str:
        found = self.dims.get(dim)
        if found is None:
            found = self.dims[dim] = str(self.dim(dim))
        return found

    def label(self, node: Node, own: tuple[Any, ...]) -> bytes:
        """All that is known of a node apart from its place; `own`: its weights."""
        types = [self.type(v.type) for v in node.outputs]
        text = repr((node.op, self.attrs(node.attrs), node.where.backend, sorted(own, key=repr), len(node.inputs), types))
        return _digest(text.encode())

    def attrs(self, attrs: Attrs) -> list[tuple[str, str]]:
        return sorted([(name, write(self.value(value, name == "branches"))) for name, value in attrs.items()])

    def value(self, value: Any, names_only: bool = False) -> Any:
        if names_only and isinstance(value, tuple):
            return len(value)
        if isinstance(value, Poly):
            return self.dim(value)
        return tuple(map(self.value, value)) if isinstance(value, tuple) else value


_FRESH = symbol("new")  # a runtime name that some op brought up; the op and its attributes tell which


def _refine(s: _Structure, labels: list[bytes], weight_labels: list[bytes]) -> tuple[tuple[list[bytes], list[bytes]], int]:
    """Colours of nodes and of shared weights that no further round would split, and how many colours the nodes have."""
    colours, weights, before = labels, weight_labels, 0
    while True:
        colours = _downwards(s, _upwards(s, colours, weights))
        weights = _weight_colours(s, weights, colours)
        classes = len(set(colours))
        if classes == len(colours) or classes + len(set(weights)) == before:
            return (colours, weights), classes
        before = classes + len(set(weights))


def _upwards(s: _Structure, labels: list[bytes], weights: list[bytes]) -> list[bytes]:
    """Each node with all that it is computed from."""
    out: list[bytes] = []
    tokens = list(s.inputs)
    first = s.first
    for label, operands, commutes, joint in zip(labels, s.operands, s.commutes, s.weights):
        above = [tokens[at] for at in operands]
        if commutes:
            above.sort()
        if joint:
            above += [weights[at] for _, at in joint]
        colour = blake2b(label + b"".join(above)).digest()[:_SIZE]
        out.append(colour)
        tokens.append(colour)
        for port in range(1, first[len(out)] - first[len(out) - 1]):
            tokens.append(_digest(colour + _port(port)))
    return out


def _downwards(s: _Structure, labels: list[bytes]) -> list[bytes]:
    """Each node with all that is computed from it."""
    below: list[Any] = [None] * s.first[-1]  # per value: nothing, one user, or a list of users

    def add(at: int, user: bytes) -> None:
        old = below[at]
        if old is None:
            below[at] = user
        elif old.__class__ is list:
            old.append(user)
        else:
            below[at] = [old, user]

    for place, at in enumerate(s.results):
        add(at, _RESULT + _port(place))
    out = list(labels)
    first = s.first
    for i in range(len(labels) - 1, -1, -1):
        data = labels[i]
        for port, users in enumerate(below[first[i] : first[i + 1]]):
            if users is not None:
                data += _port(port) + (users if users.__class__ is bytes else b"".join(sorted(users)))
        colour = out[i] = blake2b(data).digest()[:_SIZE]
        if s.commutes[i]:
            for at in s.operands[i]:
                add(at, colour + _EITHER)
            continue
        for port, at in enumerate(s.operands[i]):
            add(at, colour + _port(port))
    return out


def _weight_colours(s: _Structure, labels: list[bytes], colours: list[bytes]) -> list[bytes]:
    """Each shared weight with all its uses."""
    if not labels:
        return labels
    uses: list[list[bytes]] = [[] for _ in labels]
    for colour, joint in zip(colours, s.weights):
        for role, i in joint:
            uses[i].append(colour + role)
    return [_digest(b"\x00".join([label, *sorted(users)])) for label, users in zip(labels, uses)]


def _certificate(s: _Structure, found: tuple[list[bytes], list[bytes]]) -> bytes:
    """The whole structure in terms of colours: with all colours different, it says everything."""
    colours, weights = found
    tokens = s.tokens(colours)
    rows: list[bytes] = []
    for colour, operands, commutes, joint in zip(colours, s.operands, s.commutes, s.weights):
        above = [tokens[at] for at in operands]
        if commutes:
            above.sort()
        if joint:
            above += [weights[at] for _, at in joint]
        rows.append(colour + b"".join(above))
    rows.sort()
    results = [tokens[at] for at in s.results]
    return _digest(b"".join([s.counts, _port(len(rows)), *rows, *sorted(weights), *results, *s.inputs]))


def _alike(s: _Structure, found: tuple[list[bytes], list[bytes]]) -> Iterable[int]:
    """The nodes of one colour that several share: the smallest such group (by size, then colour), if it is small enough to look into."""
    groups: dict[bytes, list[int]] = {}
    for i, colour in enumerate(found[0]):
        groups.setdefault(colour, []).append(i)
    size, _, group = min([(len(group), colour, group) for colour, group in groups.items() if len(group) > 1])
    return group if size <= SINGLED_OUT and size * len(s.nodes) <= WORK else ()


def _single_out(s: _Structure, found: tuple[list[bytes], list[bytes]], index: int) -> bytes:
    labels = list(found[0])
    labels[index] = _digest(labels[index] + b"this one")
    return _certificate(s, _refine(s, labels, found[1])[0])
