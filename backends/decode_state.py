"""The state of a model that decodes, as a flat mapping of tensors: made, checked, cropped, reordered, measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from graphir.bricks.declare import REGISTRY, Registry
from graphir.bricks.decoding import CACHES, Decoding, cached_from
from graphir.ir.dims import Dim, evaluate, extremum, free_names
from graphir.ir.graph import Graph, Node
from graphir.lang.diagnostic import Diagnostic, GraphirError, nearest

from .base import declaration_of, element_kind

State = dict[str, torch.Tensor]
KINDS = {"int": torch.int64, "bool": torch.bool}
FILLED = "filled"


@dataclass(frozen=True)
class Entry:
    """One state tensor. `grows`: the axis along which it holds tokens, empty at first; `fixed`: only in state of a fixed size."""

    key: str
    node: Node
    name: str
    dims: tuple[Dim, ...]
    dtype: str
    fill: float = 0
    grows: int | None = None
    fixed: bool = False


def entries_of(node: Node, graph: Graph, registry: Registry = REGISTRY) -> tuple[Entry, ...]:
    """The state of one call, in the order in which its block takes it; none where it has no state."""
    rule, path, found = declaration_of(node, registry).state, node.where.path, []
    if rule is not None:
        types = tuple([v.type for v in node.inputs])
        for name, (dims, dtype) in rule.init(types, registry[node.op].names(types, node.attrs, graph.facts)).items():
            empty = [axis for axis, dim in enumerate(dims) if isinstance(dim, int) and dim == 0]
            grows = empty[0] if empty and name == "past" else None
            dtype = types[0].dtype if node.op in CACHES else dtype
            found.append(Entry(f"{path}.{name}", node, name, tuple(dims), dtype, rule.fill.get(name, 0), grows))
    if node.op in CACHES or reads_cache(node):
        found.append(Entry(f"{path}.{FILLED}", node, FILLED, (), "int", fixed=True))
    return tuple(found)


def reads_cache(node: Node) -> bool:
    """Whether a node is attention over keys that are remembered."""
    return node.op == "sdpa" and node.attrs.get("causal") is True and cached_from(node.inputs[1]) is not None


class Keeper:
    """All that there is to know of the state of one model: its `entries`, and the `kept` values that are computed once."""

    def __init__(self, how: Decoding, entries: tuple[Entry, ...]):
        self.how, self.entries, self.kept = how, entries, how.kept
        self.growing = frozenset(e.key for e in entries if not e.fixed)
        self.fixed = frozenset(e.key for e in entries)
        first = next(v for n, v in how.graph.inputs if n in how.steps)
        names = free_names(first.type.shape[0]) if first.type.shape else frozenset()
        self.batch = next(iter(names)) if len(names) == 1 else None

    def is_fixed(self, state: Mapping[str, Any]) -> bool:
        """Whether the state was made with a length, so that its tensors never change their shape."""
        return any(e.fixed and e.key in state for e in self.entries)

    def first(self, sizes: Mapping[str, int], like: torch.Tensor, length: int | None = None) -> State:
        """The state before the first token, as precise as `like` and where it is."""
        made = {}
        for entry in self.entries:
            if entry.fixed and length is None:
                continue
            shape = [evaluate(d, sizes) for d in entry.dims]
            if entry.grows is not None and length is not None:
                shape[entry.grows] = _room(entry, length)
            made[entry.key] = torch.full(shape, entry.fill, dtype=KINDS.get(entry.dtype, like.dtype), device=like.device)
        return made

    def sizes(self, batch: int | None, given: Mapping[str, int], whole: bool = False) -> dict[str, int]:
        """Sizes by runtime name, all that the first state needs (`whole`: that the last does). Raises GraphirError E0803."""
        known = dict(given) if batch is None or self.batch is None else {**given, self.batch: batch}
        needed = {n for e in self.entries for d in (_whole(e) if whole else e.dims) for n in free_names(d)}
        if whole:
            needed |= {n for v in self.kept.values() for d in v.type.shape for n in free_names(d)}
        names = needed | {n for _, v in self.how.graph.inputs for d in v.type.shape for n in free_names(d)}
        model, missing = self.how.graph.name, sorted(needed - known.keys())
        problems = [Diagnostic("E0803", f"`{model}` has no runtime dim `{n}`", help=nearest(n, names)) for n in known if n not in names]
        problems += [Diagnostic("E0803", f"the state depends on the size of `{n}`", help=(f"give `{n} = ...`",)) for n in missing]
        if problems:
            raise GraphirError(problems)
        return known

    def bytes(self, sizes: Mapping[str, int], like: torch.Tensor, length: int | None = None) -> int:
        """Bytes after the last token of sequences of these sizes, what is computed once included where its sizes are given."""
        total = 0
        for entry in self.entries:
            if entry.fixed and length is None:
                continue
            dims = list(entry.dims if length is not None else _whole(entry))
            if entry.grows is not None and length is not None:
                dims[entry.grows] = _room(entry, length)
            total += _bytes(entry.dtype, like) * prod([evaluate(d, sizes) for d in dims])
        for value in self.kept.values():
            if all(free_names(d) <= sizes.keys() for d in value.type.shape):
                total += _bytes(value.type.dtype, like) * prod(value.type.sizes(sizes))
        return total

    def check(self, state: Mapping[str, torch.Tensor], sizes: Mapping[str, int] | None = None) -> None:
        """Raise GraphirError E0811 where this is no state of this model, or not of this batch."""
        own = state.keys() - self.kept.keys()
        wanted = self.fixed if self.is_fixed(state) else self.growing
        if own != wanted:
            raise GraphirError(self._stranger(own, wanted))
        names = {} if sizes is None or self.batch is None else {self.batch: sizes[self.batch]}
        for entry in self.entries:
            if entry.key in state:
                _fits(entry, state[entry.key], names)

    def _stranger(self, own: Any, wanted: Any) -> Diagnostic:
        name = self.how.graph.name
        more, less = sorted(own - wanted), sorted(wanted - own)
        if more:
            message = f"the state has an entry `{more[0]}`, but nothing in `{name}` keeps that"
            return Diagnostic("E0811", message, help=nearest(more[0], wanted))
        return Diagnostic("E0811", f"the state lacks `{less[0]}`, which `{name}` keeps", help=("`net.init_state(...)` makes one",))

    def check_room(self, state: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
        """Raise GraphirError E0814 where new tokens do not fit into a state of a fixed size."""
        for entry in self.entries:
            if entry.node.op != "cache" or entry.grows is None:
                continue
            room, filled = state[entry.key].shape[entry.grows], int(state[f"{entry.node.where.path}.{FILLED}"])
            more = evaluate(entry.node.inputs[0].type.shape[entry.grows], sizes)
            if filled + more > room:
                message = f"the state has room for {room} tokens: {filled} are in it, {more} more do not fit"
                raise GraphirError(Diagnostic("E0814", message, help=("give `init_state` a greater length",)))
            return

    def check_fixed(self, graph: Graph) -> None:
        """Raise GraphirError E0814 where the model, or the part of it that steps run, cannot have state of a fixed size."""
        found = []
        for entry in self.entries:
            node = entry.node
            biased = node.op == "alibi" or (node.op == "relative_bias" and "memory" not in node.attrs.get("given", ()))
            if biased or (entry.grows is not None and node.op not in CACHES):
                message = f"`{node.where.path}`: what `{node.op}` needs of earlier tokens has no fixed size"
                found.append(Diagnostic("E0814", message, node.where.span))
        for name, value in graph.outputs:
            cache = cached_from(value)
            if cache is not None:
                message = f"the output `{name}` is as long as what `{cache.where.path}` remembers"
                found.append(Diagnostic("E0814", message, cache.where.span))
        if found:
            raise GraphirError(found)

    def reset(self, state: Mapping[str, torch.Tensor]) -> State:
        """The state before the first token, for the same batch; what is computed once is forgotten too."""
        self.check(state)
        fixed = self.is_fixed(state)
        return {e.key: _begun(e, state[e.key], fixed) for e in self.entries if e.key in state}

    def crop(self, state: Mapping[str, torch.Tensor], length: int) -> State:
        """The state after the first `length` tokens alone. Raises GraphirError E0813 where that is gone, E0811."""
        self.check(state)
        if length < 0:
            raise GraphirError(Diagnostic("E0813", f"a state cannot be cropped to {length} tokens"))
        memory = {key: state[key] for key in self.kept if key in state}
        if length == 0:
            return {**self.reset(state), **memory}
        count = self.count(state)
        if count is not None and length >= count:
            return dict(state)
        fixed, gone, made = self.is_fixed(state), [], dict(memory)
        for node, own in self._by_node(state):
            cropped = _crop_fixed(node, own, length) if fixed and FILLED in own else _crop(node, own, length)
            if cropped is None:
                gone.append(node)
            else:
                made.update({f"{node.where.path}.{name}": tensor for name, tensor in cropped.items()})
        if gone:
            message = "`{}` cannot go back to {} tokens: `{}` does not keep what it was then"
            help = ("keep the state of that time, or decode the tokens again from `reset`",)
            raise GraphirError([Diagnostic("E0813", message.format(n.where.path, length, n.op), n.where.span, help=help) for n in gone])
        return made

    def count(self, state: Mapping[str, torch.Tensor]) -> int | None:
        """How many tokens the state has seen; None where nothing in it tells."""
        for entry in self.entries:
            if entry.key not in state:
                continue
            if entry.name in ("offset", FILLED):
                return int(state[entry.key])
            if entry.grows is not None and entry.node.op == "cache" and not self.is_fixed(state):
                return state[entry.key].shape[entry.grows]
        return None

    def _by_node(self, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[Node, State]]:
        own: dict[Node, State] = {}
        for entry in self.entries:
            if entry.key in state:
                own.setdefault(entry.node, {})[entry.name] = state[entry.key]
        yield from own.items()

    def reorder(self, state: Mapping[str, torch.Tensor], index: torch.Tensor) -> State:
        """The state in which row i goes on from row `index[i]`. Raises GraphirError E0811."""
        self.check(state)
        dims = {e.key: e.dims for e in self.entries} | {key: value.type.shape for key, value in self.kept.items()}
        return {key: self._rows(key, tensor, dims[key], index.to(tensor.device)) for key, tensor in state.items()}

    def _rows(self, key: str, tensor: torch.Tensor, dims: tuple[Dim, ...], index: torch.Tensor) -> torch.Tensor:
        if self.batch is None:
            return tensor.index_select(0, index) if tensor.dim() else tensor
        for axis, dim in enumerate(dims):
            if str(dim) == self.batch:
                return tensor.index_select(axis, index)
            if self.batch in free_names(dim):
                raise GraphirError(Diagnostic("E0811", f"the rows of state `{key}` cannot be told apart: one of its axes has length {dim}"))
        return tensor


def _room(entry: Entry, length: int) -> int:
    return entry.node.attrs["size"] - 1 if entry.node.op == "window_cache" else length


def _whole(entry: Entry) -> tuple[Dim, ...]:
    """The dims of a state tensor after the last token."""
    if entry.grows is None:
        return entry.dims
    dim = entry.node.inputs[0].type.shape[entry.grows]
    dim = extremum("min", (entry.node.attrs["size"] - 1, dim)) if entry.node.op == "window_cache" else dim
    return (*entry.dims[: entry.grows], dim, *entry.dims[entry.grows + 1 :])


def _bytes(dtype: str, like: torch.Tensor) -> int:
    return torch.empty(0, dtype=KINDS.get(dtype, like.dtype)).element_size()


def _fits(entry: Entry, tensor: torch.Tensor, names: Mapping[str, int]) -> None:
    fits = element_kind(tensor) == entry.dtype and tensor.dim() == len(entry.dims)
    for axis, dim in enumerate(entry.dims if fits else ()):
        known = axis != entry.grows and free_names(dim) <= names.keys()
        fits = fits and (not known or evaluate(dim, names) == tensor.shape[axis])
    if not fits:
        shape = ", ".join("..." if axis == entry.grows else str(d) for axis, d in enumerate(entry.dims))
        where = "".join(f", with {n} = {size}" for n, size in names.items())
        kind = str(tensor.dtype).removeprefix("torch.")
        message = f"state `{entry.key}` is {kind}{list(tensor.shape)}, but the model keeps {entry.dtype}[{shape}]{where}"
        raise GraphirError(Diagnostic("E0811", message))


def _begun(entry: Entry, tensor: torch.Tensor, fixed: bool) -> torch.Tensor:
    if entry.grows is not None and not fixed:
        tensor = tensor.narrow(entry.grows, 0, 0)
    return torch.full_like(tensor, entry.fill)


def _crop(node: Node, own: State, length: int) -> Mapping[str, torch.Tensor] | None:
    rule = REGISTRY[node.op].state
    return rule.crop(own, length, node.attrs) if rule is not None and rule.crop is not None else None


def _crop_fixed(node: Node, own: State, length: int) -> State | None:
    """Places from `length` on are not looked at any more; a windowed cache moves its tokens back, if it has lost none."""
    filled = own[FILLED]
    if node.op != "window_cache":
        return {**own, FILLED: filled.clamp(max=length)}
    axis, size, past = node.attrs["axis"], node.attrs["size"], own["past"]
    if size > 1 and int(filled) > size - 1:
        return None
    surplus = max(0, int(filled) - length)
    if size == 1 or not surplus:
        return {**own, FILLED: filled.clamp(max=length)}
    kept = past.narrow(axis, 0, size - 1 - surplus)
    return {"past": torch.cat([torch.zeros_like(past.narrow(axis, 0, surplus)), kept], axis), FILLED: filled - surplus}
