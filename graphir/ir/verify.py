"""The checks that every graph must pass, at any stage of the pipeline: one list of all that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from ..lang.diagnostic import Diagnostic, GraphirError
from .dims import Facts
from .graph import Attrs, Graph, Node, Value
from .literals import is_name, is_path, write
from .text import node_lines
from .types import DTYPES, Type

BACKENDS = ("interpreter", "fx", "inductor", "mlx")
WINDOW = 5  # nodes shown before and after the one at fault

Problem = tuple[int | None, str]  # the place of the node at fault, and what is wrong


class Declarations(Protocol):
    """What verify needs of a registry: `get(op)` gives a declaration (`graphir.bricks.declare.Declaration`) or None."""

    def get(self, name: str) -> Any: ...


def verify(graph: Graph, registry: Declarations, backends: Collection[str] = BACKENDS) -> None:
    """Check order, names, wiring, ops, shapes, weights, branches and backends. GraphirError (E0903) lists every problem.

    Shape rules are run again on the inputs' types with the graph's facts, and must give the types that the nodes hold. The
    registry (`graphir.bricks.declare.REGISTRY`) says which ops there are.
    """
    problems = [*_names(graph), *_wiring(graph, backends), *_calls(graph, registry), *_inventory(graph)]
    if problems:
        raise GraphirError(_diagnostics(graph, problems))


def _diagnostics(graph: Graph, problems: list[Problem]) -> Iterable[Diagnostic]:
    lines = node_lines(graph, _show)
    for place, message in problems:
        if place is None:
            yield Diagnostic("E0903", f"graph `{graph.name}`: {message}")
            continue
        start = max(0, place - WINDOW)
        window = [f"{'>' if i == place else ' '} {line}" for i, line in enumerate(lines[start : place + WINDOW + 1], start)]
        node = graph.nodes[place]
        where = f"node {place} (`{node.op}` at `{node.where.path}`)"
        yield Diagnostic("E0903", f"{where}: {message}", node.where.span, notes=("\n".join(window),))


def _show(attrs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in attrs.items())


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})


def _names(graph: Graph) -> Iterable[Problem]:
    if not is_path(graph.name):
        yield None, f"the name {graph.name!r} is not well formed"
    for what, names, is_good in (
        ("input", [n for n, _ in graph.inputs], is_name),
        ("output", [n for n, _ in graph.outputs if n or len(graph.outputs) > 1], is_name),
        ("aux output", [n for n, _ in graph.aux], is_path),
        ("param", list(graph.params), is_name),
        ("weight", list(graph.weights), is_path),
    ):
        yield from ((None, f"the {what} name {name!r} is not well formed") for name in names if not is_good(name))
        yield from ((None, f"there are two {what}s `{name}`") for name in _repeated(names))
    if not graph.outputs:
        yield None, "there is no output"


def _wiring(graph: Graph, backends: Collection[str]) -> Iterable[Problem]:
    known: set[Value] = {value for _, value in graph.inputs}
    if len(known) < len(graph.inputs):
        yield None, "two inputs are one value"
    paths: set[str] = set()
    attrs: dict[int, list[str]] = {}
    for place, node in enumerate(graph.nodes):
        for port, value in enumerate(node.inputs):
            if value not in known:
                yield place, f"input {port} is not defined before this node"
        for value in node.outputs:
            if value in known:
                yield place, "a result is defined already"
            if value.node is not node:
                yield place, "a result does not know this node as its own"
            known.add(value)
        if not node.outputs:
            yield place, "there is no result"
        path, _, _, backend = node.where
        if not is_path(path):
            yield place, f"the path {path!r} is not well formed"
        if path in paths:
            yield place, f"another node has the path `{path}`"
        paths.add(path)
        if backend is not None and backend not in backends:
            yield place, f"the backend {backend!r} is not known"
        if id(node.attrs) not in attrs:
            attrs[id(node.attrs)] = list(_attrs(node.attrs))
        yield from ((place, message) for message in attrs[id(node.attrs)])
    for what, results in (("output", graph.outputs), ("aux output", graph.aux)):
        yield from ((None, f"the {what} `{name}` is not defined") for name, value in results if value not in known)


def _attrs(attrs: Attrs) -> Iterable[str]:
    for name, value in attrs.items():
        if not is_name(name):
            yield f"the attribute name {name!r} is not well formed"
        try:
            write(value)
        except ValueError:
            yield f"the attribute `{name}` is {value!r}, which a graph may not hold"


def _calls(graph: Graph, registry: Declarations) -> Iterable[Problem]:
    facts = graph.facts
    seen: dict[Any, Any] = {}
    for place, node in enumerate(graph.nodes):
        declaration = registry.get(node.op)
        if declaration is None:
            yield place, f"the op `{node.op}` is not known"
            continue
        key = (node.op, tuple([v.type for v in node.inputs]), node.attrs, tuple([v.type for v in node.outputs]), len(node.weights))
        found = seen.get(key)
        if found is None:
            found = seen[key] = _call(declaration, node, facts)
        messages, weights = found
        for message in messages:
            yield place, message
        if weights or node.weights:
            yield from ((place, message) for message in _weights(node, weights, graph))


def _call(declaration: Any, node: Node, facts: Facts) -> tuple[list[str], dict[str, tuple[int, ...]] | None]:
    """What is wrong with a call by its declaration, and the weights that it should have (None where that is not known)."""
    types = tuple([v.type for v in node.inputs])
    wrong = [f"{v.type} is no type" for v in (*node.inputs, *node.outputs) if v.type.dtype not in DTYPES]
    wrong += _branches(declaration, node)
    try:
        names = declaration.names(types, node.attrs, facts)
        weights = {rule.role: tuple(shape) for rule, shape in declaration.weight_shapes(names, facts)}
        given = declaration.infer(types, node.attrs, facts)
    except Exception as e:  # a rule may meet attributes of any kind, since a dump is text from anywhere
        return [*wrong, f"the rule of `{node.op}` refuses it: {e or type(e).__name__}"], None
    held = tuple([v.type for v in node.outputs])
    if given != held and not _agree(given, held, facts.same):
        shown = [", ".join(map(str, types)) for types in (given, held)]
        wrong.append(f"the rule of `{node.op}` gives {shown[0]}, but the node holds {shown[1]}")
    return wrong, weights


def _agree(given: tuple[Type, ...], held: tuple[Type, ...], same: Callable[[Any, Any], bool | None]) -> bool:
    if len(given) != len(held):
        return False
    pairs = list(zip(given, held))
    if any(a.dtype != b.dtype or len(a.shape) != len(b.shape) for a, b in pairs):
        return False
    return all(same(x, y) for a, b in pairs for x, y in zip(a.shape, b.shape))


def _branches(declaration: Any, node: Node) -> list[str]:
    branches = node.attrs.get("branches")
    kind = getattr(declaration, "kind", "brick")
    if kind not in ("fork", "filter", "join") or (branches is None and kind == "join"):
        return []
    named = isinstance(branches, tuple) and all(isinstance(b, str) and is_path(b) and "." not in b for b in branches)
    if not isinstance(branches, tuple) or not named or len(set(branches)) != len(branches):
        return [f"`branches` of a {kind} are distinct names, not {branches!r}"]
    counts = {
        "fork": (len(node.inputs) == 1 and len(node.outputs) == len(branches), f"one input and {len(branches)} results"),
        "filter": (len(node.inputs) == len(branches) + 1, f"{len(branches) + 1} inputs"),
        "join": (len(node.inputs) == len(branches) + len(node.attrs.get("given") or ()), f"{len(branches)} inputs"),
    }
    fits, wanted = counts[kind]
    held = f"{len(node.inputs)} inputs and {len(node.outputs)} results"
    return [] if fits else [f"a {kind} of {len(branches)} branches has {wanted}, not {held}"]


def _weights(node: Node, wanted: Mapping[str, tuple[int, ...]] | None, graph: Graph) -> Iterable[str]:
    roles = [role for role, _ in node.weights]
    yield from (f"two weights are called `{role}`" for role in _repeated(roles))
    yield from (f"the role {role!r} of a weight is not well formed" for role in roles if not is_name(role))
    if wanted is not None and set(roles) != set(wanted):
        yield f"`{node.op}` has the weights {', '.join(wanted) or 'none'}, not {', '.join(roles) or 'none'}"
    for role, name in node.weights:
        weight = graph.weights.get(name)
        if weight is None:
            yield f"the weight `{name}` is not in the inventory"
        elif wanted is not None and wanted.get(role, weight.shape) != weight.shape:
            yield f"`{role}` has the shape {list(wanted[role])}, but `{name}` has {list(weight.shape)}"


def _inventory(graph: Graph) -> Iterable[Problem]:
    used = {name for node in graph.nodes for _, name in node.weights}
    yield from ((None, f"no node uses the weight `{name}`") for name in graph.weights if name not in used)
    for name, weight in graph.weights.items():
        if any(size < 0 for size in weight.shape):
            yield None, f"the weight `{name}` has the shape {list(weight.shape)}"
