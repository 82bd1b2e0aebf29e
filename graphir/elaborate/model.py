"""From a module to a graph: choose the model, set its parameters, make its inputs, run its body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..ir.collector import collector_paused
from ..ir.dims import symbol
from ..ir.graph import Graph, Value
from ..ir.scalar import ScalarError, show
from ..ir.types import DTYPES, Type
from ..lang import syntax as s
from ..lang.diagnostic import Diagnostic, GraphirError, Label, nearest
from ..lang.limits import DEFAULT, Limits
from ..lang.parser import parse_expression
from ..lang.source import Source
from .blocks import check_result, constants, execute, late_defaults
from .expressions import evaluate
from .names import check_names
from .project import Module
from .route import apply_filter
from .run import Run
from .scope import Env, Scope
from .values import POISON, Poisoned


def elaborate(
    module: Module, model: str | None = None, params: Mapping[str, Any] | None = None, *, limits: Limits = DEFAULT, stitch: bool = False
) -> Graph:
    """The graph of a model (the last one of the file, if none is named). Raises GraphirError with all that is wrong."""
    problems = check_names(module)
    try:
        block = choose_model(module, model)
        params = {name: constant(value, limits) for name, value in (params or {}).items()}
        _check_params(module, block, params)
    except GraphirError as e:
        raise GraphirError([*problems, *e.diagnostics]) from None
    with collector_paused():
        run = _attempt(module, block, params, limits, stitch, True, problems)
        if run.counted:
            run = _attempt(module, block, params, limits, stitch, False, [])
    assert run.graph is not None
    return run.graph


def choose_model(module: Module, name: str | None) -> s.Block:
    models = module.models
    if not models:
        raise GraphirError(
            Diagnostic(
                "E0108",
                f"{module.source.name} holds no `model`",
                help=("a model is `model Name(...)(x: float[B, 8]) -> float[B, 1] { return ... }`",),
            )
        )
    if name is None:
        return list(models.values())[-1]
    if name not in models:
        raise GraphirError(
            Diagnostic(
                "E0409", f"{module.source.name} has no model `{name}`", help=nearest(name, models) or (f"it has {', '.join(models)}",)
            )
        )
    return models[name]


def constant(value: Any, limits: Limits = DEFAULT) -> Any:
    """A parameter from outside: text is read as an expression (`"6"`, `"[1, 2]"`, `"true"`), Python values are themselves."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [constant(v, limits) for v in value]
    if not isinstance(value, str):
        raise GraphirError(
            Diagnostic("E0404", f"a parameter is a number, a truth value, a word or a list of those, not {type(value).__name__}")
        )
    from ..ir.scalar import evaluate as evaluate_plain

    try:
        return evaluate_plain(parse_expression(Source("--set", value)), {})
    except (GraphirError, ScalarError):
        return value


def _check_params(module: Module, block: s.Block, params: Mapping[str, Any]) -> None:
    formals = [f.name for f in block.header.formals]
    outer = [n for n, item in module.items.items() if isinstance(item, s.Param)]
    for name in params:
        if name not in formals and name not in outer:
            known = [*formals, *outer]
            help = nearest(name, known) or ((f"it has {', '.join(known)}",) if known else ("it has none",))
            raise GraphirError(Diagnostic("E0408", f"`{block.header.name}` has no parameter `{name}`", block.header.span, help=help))


def _attempt(
    module: Module, block: s.Block, params: Mapping[str, Any], limits: Limits, stitch: bool, may_count: bool, problems: list[Diagnostic]
) -> Run:
    run = Run(limits, stitch, may_count)
    run.evaluate, run.apply_filter = evaluate, apply_filter
    run.problems += problems
    for each in _modules(module):
        each.values.clear()
    module.overrides = dict(params)
    try:
        run.graph = _instantiate(run, module, block, params)
    except GraphirError as e:
        run.report(e)
    except Poisoned:
        assert run.problems
    except RecursionError:
        run.report(GraphirError(Diagnostic("E0603", "the program is nested too deeply to evaluate", block.header.span)))
    if run.problems:
        order = sorted(run.problems, key=lambda d: getattr(d.span, "start", -1))
        raise GraphirError(order)
    return run


def _modules(module: Module) -> list[Module]:
    found, todo = [], [module]
    while todo:
        each = todo.pop()
        if each not in found:
            found.append(each)
            todo += each.imports.values()
    return found


def _instantiate(run: Run, module: Module, block: s.Block, params: Mapping[str, Any]) -> Graph:
    header = block.header
    scope = Scope()
    names: dict[str, Any] = {}
    env = Env(names, module)
    results = _output_names(header)
    for port, name in zip(header.results, results):
        if results.count(name) > 1:
            raise run.fail("E0308", f"two results of `{header.name}` are called `{name}`", port.span, help=("name each of them once",))
    fixed = constants(run, module, block)
    if late := late_defaults(run, block):
        first = next(f for f in header.formals if f.name in late)
        raise run.fail("E0406", f"`{first.name}` depends on the inputs, but a model's parameters come first", first.span)
    for formal in header.formals:
        names[formal.name] = _parameter(run, formal, header, params, env)
    names |= {n: v for n, v in fixed.items() if n not in names}
    inputs = _inputs(run, header, names)
    config = {k: v for k, v in names.items() if k in {f.name for f in header.formals}}
    for name, value in inputs:
        names[name] = value
    body_env = Env(names, module, scope)
    values = execute(run, block, body_env, scope)
    for port, value in zip(header.results, values):
        check_result(run, port, value, names, block, scope)
    outer = {n: module.values.get(n) for n, i in module.items.items() if isinstance(i, s.Param) and n in module.values}
    shown = {k: tuple(v) if isinstance(v, list) else v for k, v in {**outer, **config}.items() if _is_plain(v)}
    outputs = tuple(zip(_output_names(header), values))
    graph = Graph(header.name, inputs, tuple(run.nodes), outputs, run.weights, tuple(run.aux), tuple(run.requires), shown)
    if len(graph.named) == len(graph.weights):
        return graph
    return replace(graph, weights={n: w for n, w in run.weights.items() if n in graph.named})


def _is_plain(value: Any) -> bool:
    """Numbers, words and lists of them; no bricks."""
    scalar = int | float | str | bool | None
    return isinstance(value, scalar) or (isinstance(value, list | tuple) and all(isinstance(v, scalar) for v in value))


def _output_names(header: s.Header) -> list[str]:
    return [p.name or "output" for p in header.results]


def _parameter(run: Run, formal: s.Formal, header: s.Header, params: Mapping[str, Any], env: Env) -> Any:
    if formal.name in params:
        value = params[formal.name]
    elif formal.default is None:
        run.report(
            run.fail(
                "E0406",
                f"model `{header.name}` needs `{formal.name}`",
                formal.span,
                help=(f"give it a default, or pass `--set {formal.name}=...`",),
            )
        )
        return POISON
    else:
        try:
            value = evaluate(run, formal.default, env)
        except GraphirError as e:
            run.report(e)
            return POISON
        except Poisoned:
            return POISON
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        run.given.setdefault(value, (f"`{formal.name}` is {show(value)} from `model {header.name}({formal.span.text})`", formal.span))
    return value


def _inputs(run: Run, header: s.Header, names: dict[str, Any]) -> tuple[tuple[str, Value], ...]:
    """The model's inputs. Capitalized dims are runtime names; lower-case ones are parameters."""
    from ..ir.scalar import evaluate as evaluate_dim
    from ..ir.scalar import is_dim

    known = dict(names)
    inputs: list[tuple[str, Value]] = []
    for port in header.ports:
        shape: list[Any] = []
        for dim in port.type.dims:
            if isinstance(dim, s.Rest):
                raise run.fail("E0202", "a model's input has a fixed number of axes", dim.span, help=("write the axes out: `[B, T, d]`",))
            if isinstance(dim, s.Name) and dim.id not in known:
                if not dim.id[0].isupper():
                    raise run.fail(
                        "E0406",
                        f"the width `{dim.id}` has no value",
                        dim.span,
                        help=(f"make it a parameter, `model {header.name}({dim.id} = 64)`, or a runtime dim, `{dim.id.capitalize()}`",),
                    )
                known[dim.id] = symbol(dim.id)
            if isinstance(dim, s.Name) and known[dim.id] is POISON:
                raise Poisoned
            try:
                size = evaluate_dim(dim, known, run.facts)
            except ScalarError as e:
                raise run.fail(e.code, e.message, dim.span, help=e.help) from None
            if not is_dim(size) or (isinstance(size, int) and size < 0):
                raise run.fail("E0404", f"a width is a whole number from 0 up, not {show(size)}", dim.span)
            shape.append(size)
        dtype = port.type.dtype or "float"
        if dtype not in DTYPES:
            raise run.fail(
                "E0201", f"`{dtype}` is no element type", port.type.span, help=nearest(dtype, DTYPES) or (f"there are {', '.join(DTYPES)}",)
            )
        if port.name in names or any(port.name == n for n, _ in inputs):
            raise run.fail("E0308", f"`{port.name}` names two things", port.span)
        type = Type(dtype, tuple(shape))
        run.check_type(type, port.span, Scope())
        inputs.append((port.name, Value(type)))
    # runtime names can be used in the body, as dims
    for name, value in known.items():
        if name not in names:
            names[name] = value
    return tuple(inputs)


def parameters(module: Module, block: s.Block | None = None) -> set[str]:
    """The parameters that a model takes from outside, the file's among them; without `block`, those of all models."""
    blocks = module.models.values() if block is None else [block]
    own = {formal.name for each in blocks for formal in each.header.formals}
    return own | {n for n, item in module.items.items() if isinstance(item, s.Param)}


def check(module: Module, *, limits: Limits = DEFAULT, params: Mapping[str, Any] | None = None) -> list[Diagnostic]:
    """All that is wrong with a file: names everywhere, and every model, instantiated with its defaults."""
    found: dict[tuple[str, str, str], Diagnostic] = {}

    def add(diagnostics: Any) -> None:
        for d in diagnostics:
            found.setdefault((d.code, str(d.span), d.message), d)

    add(check_names(module))
    if not found and not module.models and not any(isinstance(i, s.Block) for i in module.items.values()):
        add([Diagnostic("E0108", f"{module.source.name} holds no `model` and no `block`")])
    known = parameters(module)
    for name, block in module.models.items():
        mine = parameters(module, block)
        try:
            elaborate(module, name, {k: v for k, v in (params or {}).items() if k in mine or k not in known}, limits=limits)
        except GraphirError as e:
            add(e.diagnostics)
    return list(found.values())


__all__ = ["Label", "check", "choose_model", "constant", "elaborate", "parameters"]
