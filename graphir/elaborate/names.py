"""Checks that need no instance: every name in every block is known, and no block or config function leads back to itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from ..bricks.declare import REGISTRY
from ..ir.scalar import FUNCTIONS
from ..lang import syntax as s
from ..lang.diagnostic import Diagnostic, Label, nearest
from ..lang.source import Span
from .project import Module, library

FORMS = ("fork", "filter", "frozen", "with_init", "stitch", "choose", "pattern")


def known_names(module: Module) -> list[str]:
    """Everything that an expression at the top of a file may name."""
    return [*module.names(), *library().names(), *REGISTRY.declarations, *FUNCTIONS, *FORMS]


@lru_cache(maxsize=4)
def _everywhere(bricks: tuple[str, ...]) -> frozenset[str]:
    """The names that every file knows, `bricks` among them."""
    return frozenset([*library().names(), *bricks, *FUNCTIONS, *FORMS])


def check_names(module: Module) -> list[Diagnostic]:
    """E0301 for unknown names, E0312 for recursion, over all items of a file, instantiated or not."""
    known = _everywhere(tuple(REGISTRY.declarations)).union(module.names())
    problems: list[Diagnostic] = []
    references: dict[str, dict[str, Span]] = {}
    for name, item in module.items.items():
        used: dict[str, Span] = {}
        for reference in _free(item):
            if reference.id in module.items:
                used.setdefault(reference.id, reference.span)
            if reference.id not in known:
                local = [*_bound(item), *known]
                problems.append(Diagnostic("E0301", f"`{reference.id}` is not known", reference.span, help=nearest(reference.id, local)))
        problems += _early(item)
        references[name] = used
    problems += _cycles(module, references)
    return problems


def _early(item: s.Param | s.Let | s.Block) -> Iterator[Diagnostic]:
    """Defaults that use a parameter which stands behind them: it has no value yet."""
    formals = item.header.formals if isinstance(item, s.Block) else (item.formals or ()) if isinstance(item, s.Let) else ()
    later = {f.name for f in formals}
    for formal in formals:
        for name in free_names(formal.default, frozenset()):
            if name.id in later:
                yield Diagnostic(
                    "E0301",
                    f"`{name.id}` has no value yet: a default sees the parameters before it",
                    name.span,
                    help=(f"move `{name.id}` in front of `{formal.name}`",),
                )
        later.discard(formal.name)


def _cycles(module: Module, references: dict[str, dict[str, Span]]) -> Iterator[Diagnostic]:
    """One diagnostic per loop of references, found by an iterative depth-first walk."""
    done: set[str] = set()
    for start in references:
        if start in done:
            continue
        path: list[str] = [start]
        todo = [iter(references[start].items())]
        while todo:
            step = next(todo[-1], None)
            if step is None:
                done.add(path.pop())
                todo.pop()
                continue
            name, span = step
            if name in path:
                loop = " -> ".join([*path[path.index(name) :], name])
                yield Diagnostic(
                    "E0312",
                    f"`{name}` leads back to itself",
                    span,
                    "used here",
                    (Label(module.items[name].span, "while it is being defined"),),
                    notes=(loop,),
                    help=("nesting is written with parameters: pass the inner brick to the outer one",),
                )
            elif name not in done:
                path.append(name)
                todo.append(iter(references[name].items()))


def _bound(item: s.Param | s.Let | s.Block) -> list[str]:
    if not isinstance(item, s.Block):
        return []
    names = [f.name for f in item.header.formals] + [p.name for p in item.header.ports]
    for statement in item.body:
        if isinstance(statement, s.Bind):
            names += statement.names
        elif isinstance(statement, s.Shared):
            names.append(statement.name)
    return names


def _free(item: s.Param | s.Let | s.Block) -> Iterator[s.Name]:
    """Names that an item uses and does not bind itself."""
    match item:
        case s.Param(default=default):
            yield from free_names(default, frozenset())
        case s.Let(formals=formals, value=value):
            yield from free_names(value, frozenset(f.name for f in formals or ()))
        case s.Block(header=header, body=body):
            yield from _block(header, body)


def _block(header: s.Header, body: tuple[s.Statement, ...]) -> Iterator[s.Name]:
    dims = {d.id for p in header.ports for dim in p.type.dims for d in dim_names(dim)}
    results = {d.id for p in header.results for dim in p.type.dims for d in dim_names(dim) if d.id[0].isupper()}
    bound = {f.name for f in header.formals} | dims
    for formal in header.formals:
        yield from free_names(formal.default, frozenset(bound))
    bound |= {p.name for p in header.ports}
    for port in header.results:
        for dim in port.type.dims:
            yield from (n for n in dim_names(dim) if n.id not in bound | results and n.id[0].islower())
    for statement in body:
        here = frozenset(bound | results)
        match statement:
            case s.Bind(names=names, type=type, value=value):
                yield from free_names(value, here)
                bound |= set(names)
                if type is not None:
                    bound |= {d.id for dim in type.dims for d in dim_names(dim)}
            case s.Shared(name=name, value=value):
                yield from free_names(value, here)
                bound.add(name)
            case s.Return(values=values):
                for value in values:
                    yield from free_names(value, here)
            case s.Require(condition=condition):
                yield from free_names(condition, here)


def dim_names(dim: s.Expr | s.Rest) -> Iterator[s.Name]:
    if isinstance(dim, s.Rest):
        yield s.Name(dim.span, dim.name)
    else:
        yield from free_names(dim, frozenset())


def free_names(expr: s.Expr | None, bound: frozenset[str]) -> Iterator[s.Name]:
    """Free names of an expression, in the order of the text."""
    match expr:
        case None | s.Literal() | s.Everything():
            return
        case s.Name(id=id):
            if id not in bound:
                yield expr
        case s.Comprehension(item=item, names=names, source=source, condition=condition):
            yield from free_names(source, bound)
            inner = bound | set(names)
            yield from free_names(item, inner)
            yield from free_names(condition, inner)
        case s.Graft(host=host, edits=edits):
            yield from free_names(host, bound)
            for edit in edits:
                yield from free_names(edit.value, bound | {"site", "tap"})
                yield from _index_names(edit.path, bound)
        case s.Call(callee=s.Name(id="tap"), arguments=arguments) if "tap" in bound:
            for argument in arguments:
                yield from _index_names(argument.value, bound)
        case _:
            for child in children(expr):
                yield from free_names(child, bound)


def _index_names(path: s.Expr, bound: frozenset[str]) -> Iterator[s.Name]:
    while isinstance(path, s.Index | s.Attribute):
        if isinstance(path, s.Index):
            yield from free_names(path.index, bound)
        path = path.value  # type: ignore[union-attr]


def children(expr: s.Expr) -> tuple[s.Expr, ...]:
    match expr:
        case s.Unary(operand=a):
            return (a,)
        case s.Binary(left=a, right=b) | s.Range(start=a, stop=b) | s.Index(value=a, index=b):
            return (a, b)
        case s.IfElse(then=a, condition=b, other=c):
            return (a, b, c)
        case s.Pipe(stages=stages):
            return stages
        case s.Call(callee=callee, arguments=arguments):
            return (callee, *(a.value for a in arguments))
        case s.Branches(callee=callee, branches=branches):
            return (callee, *(b.value for b in branches))
        case s.TupleOf(items=items) | s.ListOf(items=items):
            return items
        case s.Attribute(value=a) | s.On(value=a) | s.As(value=a):
            return (a,)
    return ()
