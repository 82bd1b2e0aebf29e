"""What decoding step by step means for a graph: which inputs come token by token, what that lets grow, what is computed once.

Decoding feeds new tokens only; all that a brick must remember of earlier ones is its state. Inputs that a brick sees whole
(the source of an encoder-decoder) are given at the first step; what follows from them alone is computed then and kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ir.dims import free_names
from ..ir.graph import Attrs, Graph, Node, Value, Where
from ..lang.diagnostic import Diagnostic, GraphirError
from .declare import REGISTRY, Declaration, Registry

CACHES = ("cache", "window_cache")


@dataclass(frozen=True)
class Decoding:
    """`steps` and `whole` are the names of inputs; `kept` maps a state name to each value that is computed once and read by later steps.

    `grown` are the nodes that new tokens reach, with the places of the inputs through which they do, in order.
    """

    graph: Graph
    steps: tuple[str, ...]
    whole: tuple[str, ...]
    grown: Mapping[Node, frozenset[int]]
    kept: Mapping[str, Value]


def decoding(graph: Graph, registry: Registry = REGISTRY) -> Decoding:
    """How a graph is decoded: without auxiliary outputs, its padding masks remembered. Raises GraphirError E0810 where it cannot be."""
    graph = for_steps(graph, registry)
    whole: frozenset[str] = frozenset()
    while True:
        blind = see_later(reached(graph, whole), registry)
        if not blind:
            break
        more = _whole(graph, blind, whole, registry)
        if len(more) == len(graph.inputs):
            raise cannot_decode(blind)
        whole = more
    grown = grown_nodes(graph, whole, registry)
    steps = tuple([name for name, _ in graph.inputs if name not in whole])
    if not steps:
        raise GraphirError(Diagnostic("E0810", f"`{graph.name}` has no inputs to decode"))
    ordered = tuple([name for name, _ in graph.inputs if name in whole])
    return Decoding(graph, steps, ordered, grown, _kept(graph, whole, grown, registry))


def for_steps(graph: Graph, registry: Registry = REGISTRY) -> Graph:
    """The graph without auxiliary outputs and what serves them alone, its padding masks remembered; itself where nothing changes."""
    bare = graph.with_(aux=()) if graph.aux else graph
    if len(bare.live) != len(bare.nodes):
        bare = bare.with_(nodes=bare.live, weights=graph.weights)
    return remember_masks(bare, registry)


def grown_nodes(graph: Graph, whole: Collection[str], registry: Registry = REGISTRY) -> dict[Node, frozenset[int]]:
    """The nodes that new tokens reach, with the places of the inputs through which they do. Raises GraphirError E0810."""
    grown = reached(graph, whole)
    blind = see_later(grown, registry)
    if blind:
        raise cannot_decode(blind)
    wrong = lengths_that_differ(grown, registry)
    if wrong:
        raise GraphirError(wrong)
    return grown


def of_any_length(graph: Graph, steps: Collection[str]) -> Graph:
    """The graph without the preconditions on how many tokens there are, which a step does not tell."""
    lengths = {n for name, v in graph.inputs if name in steps for n in _lengths(v)}
    kept = tuple([r for r in graph.requires if lengths.isdisjoint(free_names(r.left) | free_names(r.right))])
    return graph if len(kept) == len(graph.requires) else graph.with_(requires=kept)


def reached(graph: Graph, whole: Collection[str] = ()) -> dict[Node, frozenset[int]]:
    """The nodes that new tokens reach, with the places of the inputs through which they do; `whole` inputs bring none."""
    values = {value for name, value in graph.inputs if name not in whole}
    found = {}
    for node in graph.nodes:
        places = frozenset([place for place, value in enumerate(node.inputs) if value in values])
        # Without inputs of its own, a node (a free parameter) is the same at every step.
        if places:
            found[node] = places
            values.update(node.outputs)
    return found


def see_later(grown: Mapping[Node, Collection[int]], registry: Registry = REGISTRY) -> list[Node]:
    """The nodes that mix new tokens with later ones."""
    found = []
    for node, places in grown.items():
        declaration = registry.get(node.op)
        if declaration is None or declaration.is_causal(node.attrs):
            continue
        if not declaration.looks_at or _mixed(node, declaration).intersection(places):
            found.append(node)
    return found


def _mixed(node: Node, declaration: Declaration) -> set[int]:
    """The places of the inputs whose tokens a node mixes."""
    ports = [p for p in declaration.port_names if p not in declaration.optional or p in node.attrs.get("given", ())]
    return {place for place, port in enumerate(ports) if port in declaration.looks_at}


def cannot_decode(blind: Iterable[Node]) -> GraphirError:
    """E0810 for nodes that see later tokens, those of one place in the text together."""
    groups: dict[Any, list[Node]] = {}
    for node in blind:
        groups.setdefault((node.op, str(node.where.span) if node.where.span else node.where.path), []).append(node)
    return GraphirError([_sees_later(nodes) for nodes in groups.values()])


def _sees_later(nodes: list[Node]) -> Diagnostic:
    first, more = nodes[0], f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    message = f"`{first.where.path}`{more} cannot decode step by step: `{first.op}` sees later tokens"
    return Diagnostic("E0810", message, first.where.span, help=("set `causal = true`, or run the whole sequence",))


def _whole(graph: Graph, blind: Iterable[Node], whole: frozenset[str], registry: Registry) -> frozenset[str]:
    """`whole` with the inputs that bricks in `blind` see all of, and those that share a length with one of them."""
    wanted = {value for node in blind for value in _seen_whole(node, registry)}
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
    found = set(whole) | {name for name, value in graph.inputs if value in wanted}
    lengths = {n for name, v in graph.inputs if name in found for n in _lengths(v)}
    return frozenset(found | {name for name, v in graph.inputs if not lengths.isdisjoint(_lengths(v))})


def _seen_whole(node: Node, registry: Registry) -> Iterable[Value]:
    places = _mixed(node, registry[node.op]) or range(len(node.inputs))
    return [node.inputs[place] for place in places]


def _lengths(value: Value) -> set[str]:
    """The runtime names of all axes but the first, which is the batch."""
    return {name for dim in value.type.shape[1:] for name in free_names(dim)}


def _kept(graph: Graph, whole: Collection[str], grown: Mapping[Node, Collection[int]], registry: Registry) -> dict[str, Value]:
    fixed = {value: f"{name}.memory" for name, value in graph.inputs if name in whole}
    read: dict[Value, None] = {}
    for node in graph.nodes:
        if node in grown:
            read.update(dict.fromkeys(v for v in node.inputs if v in fixed))
        elif not fixed.keys().isdisjoint(node.inputs) or _has_state(node, registry):
            for place, value in enumerate(node.outputs):
                fixed[value] = f"{node.where.path}.memory" + (f"_{place}" if place else "")
    read.update(dict.fromkeys(v for _, v in graph.outputs if v in fixed))
    return {fixed[value]: value for value in read}


def _has_state(node: Node, registry: Registry) -> bool:
    declaration = registry.get(node.op)
    return declaration is not None and declaration.state is not None


def cached_from(value: Value, registry: Registry = REGISTRY) -> Node | None:
    """The cache that a value comes from token by token, the nearest one; None where it is of the new tokens alone."""
    queue, seen = [value], {value}
    for value in queue:
        node = value.node
        if node is None or (node.op not in CACHES and _new_tokens(node, registry)):
            continue
        if node.op in CACHES:
            return node
        fresh = [v for v in node.inputs if v not in seen]
        queue += fresh
        seen.update(fresh)
    return None


def _new_tokens(node: Node, registry: Registry) -> bool:
    """Whether the results of a node are of the new tokens alone, whatever it reads."""
    declaration = registry.get(node.op)
    return declaration is not None and (declaration.state is not None or bool(declaration.looks_at))


def lengths_that_differ(grown: Mapping[Node, Collection[int]], registry: Registry = REGISTRY) -> list[Diagnostic]:
    """E0810 where remembered tokens meet new ones, or where attention would forget what it is to see."""
    found = []
    remembered: set[Value] = set()
    for node, places in grown.items():
        declaration = registry.get(node.op)
        old = {place for place in places if node.inputs[place] in remembered}
        if node.op in CACHES or (old and not _new_tokens(node, registry)):
            remembered.update(node.outputs)
        if declaration is None or node.op in CACHES:
            continue
        if declaration.looks_at:
            found += _forgetful(node, _mixed(node, declaration).intersection(places) - old, registry)
        elif old and not declaration.state and _meet([node.inputs[p] for p in old], [node.inputs[p] for p in places if p not in old]):
            message = f"`{node.where.path}` cannot decode step by step: `{node.op}` takes remembered tokens together with new ones"
            found.append(Diagnostic("E0810", message, node.where.span, help=("`cache` belongs right before attention",)))
    return found


def _meet(old: Iterable[Value], new: Iterable[Value]) -> bool:
    lengths = {name for value in old for name in _lengths(value)}
    return any(not lengths.isdisjoint(_lengths(value)) for value in new)


def _forgetful(node: Node, bare: Collection[int], registry: Registry) -> list[Diagnostic]:
    if bare:
        message = f"`{node.where.path}` cannot decode step by step: its keys and values are not remembered"
        return [Diagnostic("E0810", message, node.where.span, help=("put `cache(axis = 2)` between them and `sdpa`",))]
    found = []
    for value in node.inputs[1:3]:
        cache, window = cached_from(value, registry), node.attrs.get("window")
        if cache is not None and cache.op == "window_cache" and (window is None or window > cache.attrs["size"]):
            sees = "all tokens" if window is None else f"{window} tokens"
            less = f"`{cache.where.path}` remembers {cache.attrs['size']}"
            message = f"`{node.where.path}` cannot decode step by step: it sees {sees}, but {less}"
            found.append(Diagnostic("E0810", message, node.where.span))
    return found


def remember_masks(graph: Graph, registry: Registry = REGISTRY) -> Graph:
    """The graph with a cache behind each padding mask [B, S] of attention that caches its keys: a step brings that of its own tokens."""
    found: dict[tuple[Value, str, int | None], Node] = {}
    nodes: list[Node] = []
    moved: dict[Value, Value] = {}
    paths = {node.where.path for node in graph.nodes}
    for node in graph.nodes:
        inputs = [moved.get(v, v) for v in node.inputs]
        place = _padding(node)
        keys = None if place is None else cached_from(inputs[1], registry)
        if place is not None and keys is not None and cached_from(inputs[place], registry) is None:
            call = inputs[place], keys.op, keys.attrs.get("size")
            if call not in found:
                found[call] = _cache_of(inputs[place], keys, graph, node, paths)
                nodes.append(found[call])
            inputs[place] = found[call].outputs[0]
        if tuple(inputs) != node.inputs:
            fresh = node.over(tuple(inputs))
            moved.update(zip(node.outputs, fresh.outputs))
            node = fresh
        nodes.append(node)
    if not found:
        return graph
    results = {kind: tuple([(n, moved.get(v, v)) for n, v in getattr(graph, kind)]) for kind in ("outputs", "aux")}
    return graph.with_(nodes=tuple(nodes), weights=graph.weights, **results)


def _padding(node: Node) -> int | None:
    """The place of the padding mask of causal attention."""
    if node.op != "sdpa" or "mask" not in node.attrs.get("given", ()) or node.attrs.get("causal") is not True:
        return None
    return 3 if len(node.inputs[3].type.shape) == 2 else None


def _cache_of(mask: Value, keys: Node, graph: Graph, user: Node, paths: set[str]) -> Node:
    """A cache of a mask that is like that of the keys."""
    name = next((n for n, v in graph.inputs if v is mask), None)
    base = path = f"{name or (mask.node or user).where.path}_cache"
    number = 0
    while path in paths:
        number += 1
        path = f"{base}_{number}"
    paths.add(path)
    frames = (*(mask.node.where.frames[:-1] if mask.node else ()), keys.op)
    attrs = Attrs({**keys.attrs, "axis": 1})
    return Node(keys.op, (mask,), attrs, (), Where(path, frames, user.where.span), [mask.type])
