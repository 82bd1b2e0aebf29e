"""The meaning of expressions: config arithmetic, bricks as values, pipes and tensor arithmetic as nodes."""

from __future__ import annotations

from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.dims import Poly, free_names
from ..ir.graph import Value
from ..ir.scalar import FUNCTIONS, MAX_ITEMS, ScalarError, show
from ..ir.scalar import call as call_function
from ..lang import syntax as s
from ..lang.diagnostic import Diagnostic, GraphirError, nearest
from ..lang.source import Span
from .apply import At, apply, free_ports
from .arithmetic import emit, scalar, tensor, tensor_arithmetic, tensors
from .forms import FORM_OF, arguments, check_initial, graft, segment_of, tap_place
from .names import FORMS, known_names
from .project import Module, library
from .run import Run
from .scope import Env, Tap
from .values import (
    POISON,
    BlockBrick,
    Brick,
    Builtin,
    Filter,
    Fork,
    Frozen,
    Function,
    Named,
    Pipeline,
    Placed,
    Poison,
    Poisoned,
    Primitive,
    Shared,
    Stage,
    Transposed,
    describe,
)

BACKENDS = ("mlx", "inductor", "interpreter", "fx")


def evaluate(run: Run, expr: s.Expr, env: Env, name: str | None = None) -> Any:
    """The value of an expression. `name` is what it is being bound to, if it is bound at once."""
    run.step(expr.span)
    handler = _HANDLERS.get(type(expr))
    assert handler is not None, type(expr)
    return handler(run, expr, env) if name is None else settle(run, handler(run, expr, env), expr, env, name)


def settle(run: Run, value: Any, expr: s.Expr, env: Env, name: str | None = None) -> Any:
    """A brick that needs no input is applied where it stands; anything else is itself."""
    brick = value.brick if isinstance(value, Named) else value
    if not isinstance(brick, Primitive | BlockBrick) or env.scope is None or free_ports(brick):
        return value
    if isinstance(brick, BlockBrick) and brick.block.header.ports:
        return value
    segment = value.name if isinstance(value, Named) else name or brick.name
    return apply(run, brick, (), At(env.scope, segment, expr.span))


# names


def _name(run: Run, expr: s.Name, env: Env) -> Any:
    found, value = env.find(expr.id)
    if not found:
        value = resolve(run, env.module, expr.id, expr.span, env)
    if isinstance(value, Poison):
        raise Poisoned
    return value


def resolve(run: Run, module: Module, name: str, span: Span, env: Env | None = None) -> Any:
    """The value of a name at the top of a file: its items and imports, the standard library, the primitives, the built-ins."""
    item = module.find(name)
    if item is not None:
        return module_value(run, module, name, item)
    if name in module.imports:
        return module.imports[name]
    if not module.library and (item := library().find(name)) is not None:
        return module_value(run, library(), name, item)
    if name in FORMS:
        return Builtin(name)
    if (declaration := REGISTRY.get(name)) is not None:
        return Primitive(declaration)
    if name in FUNCTIONS:
        return Builtin(name)
    known = [*(env.visible() if env else ()), *known_names(module)]
    raise run.fail("E0301", f"`{name}` is not known", span, scope=env.scope if env else None, help=nearest(name, known))


def module_value(run: Run, module: Module, name: str, item: s.Param | s.Let | s.Block) -> Any:
    """A block as a brick, a `let` with formals as a function, a `param` or plain `let` as its value (computed once)."""
    if isinstance(item, s.Block):
        return BlockBrick(item, module)
    if isinstance(item, s.Let) and item.formals is not None:
        return Function(item, module)
    if name not in module.values:
        module.values[name] = _constant(run, module, name, item)
    value = module.values[name]
    if isinstance(value, Poison):
        raise Poisoned
    return value


def _constant(run: Run, module: Module, name: str, item: s.Param | s.Let) -> Any:
    if isinstance(item, s.Param):
        if name in module.overrides:
            return module.overrides[name]
        if item.default is None:
            run.report(
                run.fail("E0406", f"`{name}` has no value", item.span, help=(f"give it one: `param {name} = 8`, or `--set {name}=8`",))
            )
            return POISON
        expr = item.default
    else:
        expr = item.value
    module.values[name] = POISON
    return evaluate(run, expr, Env({}, module))


# config and arithmetic


def _literal(run: Run, expr: s.Literal, env: Env) -> Any:
    return expr.value


def _unary(run: Run, expr: s.Unary, env: Env) -> Any:
    if expr.op == "not":
        return not condition(run, expr.operand, env)
    value = settle(run, evaluate(run, expr.operand, env), expr.operand, env)
    if tensor(value):
        return emit(run, "scale", {"factor": -1}, (value,), expr, env)
    return scalar(run, "-", 0, value, expr, env)


def condition(run: Run, expr: s.Expr, env: Env) -> bool:
    """A condition that config alone decides."""
    value = evaluate(run, expr, env)
    if value is None and isinstance(expr, s.Binary):
        raise run.fail("E0204", f"`{expr.span.text}` depends on sizes known only at run time", expr.span, scope=env.scope)
    if isinstance(value, bool) or value is None:
        return bool(value)
    raise run.fail("E0404", f"a condition is true or false, not {describe(value)}", expr.span, scope=env.scope)


def _binary(run: Run, expr: s.Binary, env: Env) -> Any:
    if expr.op in ("and", "or"):
        left = condition(run, expr.left, env)
        return condition(run, expr.right, env) if left == (expr.op == "and") else left
    left = settle(run, evaluate(run, expr.left, env), expr.left, env)
    right = settle(run, evaluate(run, expr.right, env), expr.right, env)
    if expr.op in ("==", "!=") and (left is None or right is None):
        return ((left is None) == (right is None)) == (expr.op == "==")
    if tensor(left) or tensor(right):
        return tensor_arithmetic(run, expr, left, right, env)
    return scalar(run, expr.op, left, right, expr, env)


def _if_else(run: Run, expr: s.IfElse, env: Env) -> Any:
    return evaluate(run, expr.then if condition(run, expr.condition, env) else expr.other, env)


# collections


def _tuple(run: Run, expr: s.TupleOf, env: Env) -> tuple[Any, ...]:
    return tuple(settle(run, evaluate(run, item, env), item, env) for item in expr.items)


def _list(run: Run, expr: s.ListOf, env: Env) -> list[Any]:
    return [_element(run, item, env) for item in expr.items]


def _element(run: Run, item: s.Expr, env: Env) -> Any:
    return evaluate(run, item, env)


def _range(run: Run, expr: s.Range, env: Env) -> list[int]:
    bounds = [evaluate(run, e, env) for e in (expr.start, expr.stop)]
    for value, e in zip(bounds, (expr.start, expr.stop)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise run.fail("E0404", f"a range runs between whole numbers, not {describe(value)}", e.span, scope=env.scope)
    if bounds[1] - bounds[0] > MAX_ITEMS:
        raise run.fail(
            "E0606", f"a range of {bounds[1] - bounds[0]:,} places is longer than the limit of {MAX_ITEMS:,}", expr.span, scope=env.scope
        )
    run.steps_for(max(bounds[1] - bounds[0], 0), expr.span)
    return list(range(*bounds))


def _comprehension(run: Run, expr: s.Comprehension, env: Env) -> list[Any]:
    source = _items(run, evaluate(run, expr.source, env), expr.source.span)
    if not isinstance(source, list):
        raise run.fail("E0404", f"a comprehension runs over a list, not over {describe(source)}", expr.source.span, scope=env.scope)
    out = []
    for item in source:
        run.step(expr.span)
        inner = env.child(_unpack(run, expr.names, item, expr.span, env))
        if expr.condition is None or condition(run, expr.condition, inner):
            out.append(_element(run, expr.item, inner))
    return out


def _unpack(run: Run, names: tuple[str, ...], value: Any, span: Span, env: Env) -> dict[str, Any]:
    if len(names) == 1:
        return {names[0]: value}
    if not isinstance(value, tuple | list) or len(value) != len(names):
        count = f"{len(value)} values" if isinstance(value, tuple | list) else "one value"
        raise run.fail("E0311", f"{len(names)} names ({', '.join(names)}) are bound to {count}", span, scope=env.scope)
    return dict(zip(names, value))


def _items(run: Run, value: Any, span: Span) -> Any:
    """The parts of a shared list, each one instance; anything else as it is."""
    if not isinstance(value, Shared) or not isinstance(value.brick, list):
        return value
    run.steps_for(len(value.brick), span)
    items = enumerate(value.brick)
    return [item if isinstance(item, Shared) else Shared(item, f"{value.path}.{place}", value.span) for place, item in items]


def _index(run: Run, expr: s.Index, env: Env) -> Any:
    value = _items(run, evaluate(run, expr.value, env), expr.value.span)
    if not isinstance(value, list | tuple):
        help = ("use the bricks `select`, `slice` or `gather` on tensors",) if tensor(value) else ()
        raise run.fail("E0404", f"lists and tuples are indexed, not {describe(value)}", expr.value.span, scope=env.scope, help=help)
    if isinstance(expr.index, s.Range):
        start, stop = (evaluate(run, e, env) for e in (expr.index.start, expr.index.stop))
        if not all(isinstance(b, int) for b in (start, stop)):
            raise run.fail("E0404", "a slice runs between whole numbers", expr.index.span, scope=env.scope)
        run.steps_for(len(range(*slice(start, stop).indices(len(value)))), expr.span)
        return value[start:stop]
    if isinstance(expr.index, s.Everything):
        return value
    index = evaluate(run, expr.index, env)
    if not isinstance(index, int) or isinstance(index, bool):
        raise run.fail("E0404", f"an index is a whole number, not {describe(index)}", expr.index.span, scope=env.scope)
    if not -len(value) <= index < len(value):
        raise run.fail(
            "E0403", f"index {index} is outside a list of {len(value)}", expr.index.span, scope=env.scope, help=("places count from 0",)
        )
    return value[index]


def _everything(run: Run, expr: s.Everything, env: Env) -> Any:
    raise run.fail("E0403", "`*` as an index belongs in the path of a graft", expr.span, scope=env.scope)


def _attribute(run: Run, expr: s.Attribute, env: Env) -> Any:
    value = evaluate(run, expr.value, env)
    if isinstance(value, Module):
        item = value.find(expr.name)
        if item is None:
            raise run.fail(
                "E0310",
                f"`{expr.name}` is not defined in {value.source.name}",
                expr.span,
                scope=env.scope,
                help=nearest(expr.name, value.names()),
            )
        return module_value(run, value, expr.name, item)
    if expr.name == "T":
        return _transposed(run, value, expr, env)
    raise run.fail(
        "E0310",
        f"{describe(value)} has no `{expr.name}`",
        expr.span,
        scope=env.scope,
        help=("`.T` is the transposed map of a shared brick",),
    )


def _transposed(run: Run, value: Any, expr: s.Attribute, env: Env) -> Transposed:
    inner = value.brick if isinstance(value, Shared) else value
    inner = inner.brick if isinstance(inner, Named | Placed | Frozen) else inner
    if not (isinstance(inner, Primitive) and inner.name in ("embedding", "linear")):
        raise run.fail(
            "E0310",
            f"{describe(value)} has no `.T`",
            expr.span,
            scope=env.scope,
            help=("`.T` belongs to a shared `embedding` or `linear`",),
        )
    if not isinstance(value, Shared):
        raise run.fail(
            "E0313",
            f"{describe(value)} is a template and has no weights of its own",
            expr.span,
            scope=env.scope,
            help=(f"bind it with `shared {expr.value.span.text} = ...`",),
        )
    return Transposed(value, inner)


# calls


def _call(run: Run, expr: s.Call, env: Env) -> Any:
    callee = evaluate(run, expr.callee, env)
    match callee:
        case Builtin(name=name) if name in FUNCTIONS:
            return _function_call(run, name, expr, env)
        case Primitive(called=False) if callee.name in FUNCTIONS and any(a.name is None for a in expr.arguments):
            return _function_call(run, callee.name, expr, env)  # `sqrt(d)` computes; `x -> sqrt` is the brick
        case Builtin(name="filter"):
            return make_filter(run, expr, None, env)
        case Builtin(name=name):
            made = FORM_OF[name](run, expr, env)
            return _configure(run, Primitive(REGISTRY[name]), expr, env) if made is None else made
        case Function():
            return _let_call(run, callee, expr, env)
        case Primitive() | BlockBrick():
            return _configure(run, callee, expr, env)
        case Tap():
            return tap_place(run, callee, expr, env)
    help = ("tensors are fed with `->`: `x -> f`",) if isinstance(callee, Brick | list) else ()
    raise run.fail("E0306", f"{describe(callee)} takes no arguments", expr.callee.span, scope=env.scope, help=help)


def _function_call(run: Run, name: str, expr: s.Call, env: Env) -> Any:
    if any(a.name for a in expr.arguments):
        raise run.fail("E0302", f"`{name}` takes no named arguments", expr.span, scope=env.scope)
    values = [settle(run, evaluate(run, a.value, env), a.value, env) for a in expr.arguments]
    if any(isinstance(v, Value | Brick) for v in values):
        raise run.fail(
            "E0307", f"`{name}` computes with numbers", expr.span, scope=env.scope, help=(f"on tensors it is a brick: `x -> {name}`",)
        )
    run.steps_for(sum(len(v) for v in values if isinstance(v, list | tuple)) if name != "len" else 0, expr.span)
    try:
        return call_function(name, values)
    except ScalarError as e:
        raise run.fail(e.code, e.message, expr.span, scope=env.scope, help=e.help) from None


def _let_call(run: Run, function: Function, expr: s.Call, env: Env) -> Any:
    formals = function.item.formals or ()
    given = arguments(run, function.item.name, [f.name for f in formals], expr, env)
    inner = Env({}, function.module, env.scope)
    for formal in formals:
        if formal.name in given:
            inner.names[formal.name] = given[formal.name]
        elif formal.default is not None:
            inner.names[formal.name] = evaluate(run, formal.default, inner)
        else:
            raise run.fail("E0303", f"`{function.item.name}` needs `{formal.name}`", expr.span, scope=env.scope)
    return evaluate(run, function.item.value, inner)


JOIN_OPTIONS = ("width",)


def _configure(run: Run, brick: Primitive | BlockBrick, expr: s.Call, env: Env) -> Any:
    if brick.called:
        raise run.fail(
            "E0306",
            f"`{brick.name}` has its arguments already",
            expr.span,
            scope=env.scope,
            help=("a template is configured once; give all arguments together",),
        )
    if isinstance(brick, Primitive):
        declaration = brick.declaration
        formals = list(declaration.formals)
        ports = list(declaration.port_names) + (["with"] if declaration.variadic else [])
        options = (["init"] if declaration.weights and "init" not in formals else []) + (
            list(JOIN_OPTIONS) if declaration.kind == "join" else []
        )
        options += ["bias_init"] if any(rule.role == "bias" for rule in declaration.weights[1:]) else []
        extra = bool(getattr(declaration, "extra", ""))
    else:
        formals = [f.name for f in brick.block.header.formals]
        ports = [p.name for p in brick.block.header.ports]
        options, extra = [], False
    given = arguments(run, brick.name, formals, expr, env, (*ports, *options), extra)
    bound: dict[str, Any] = {}
    for port in ports:
        if port in given and port not in formals:
            if given[port] is None and isinstance(brick, Primitive) and port in brick.declaration.optional:
                given.pop(port)
                continue
            if not tensor(given[port]):
                raise run.fail(
                    "E0307",
                    f"`{port}` of `{brick.name}` is an input: it takes a tensor, not {describe(given[port])}",
                    expr.span,
                    scope=env.scope,
                )
            bound[port] = given.pop(port)
    if isinstance(brick, Primitive):
        for name, value in given.items():
            if isinstance(value, Value | Brick):
                raise run.fail("E0307", f"`{name}` of `{brick.name}` takes config, not {describe(value)}", expr.span, scope=env.scope)
        for name in ("init", "bias_init"):
            check_initial(run, given.get(name), expr, env, name)
        return Primitive(brick.declaration, given, bound, True)
    return BlockBrick(brick.block, brick.module, given, bound, True)


def _branches(run: Run, expr: s.Branches, env: Env) -> Any:
    callee, call = expr.callee, None
    if isinstance(callee, s.Call):
        callee, call = callee.callee, callee
    value = evaluate(run, callee, env)
    if not (isinstance(value, Builtin) and value.name in ("fork", "filter")):
        raise run.fail("E0306", "branches in braces follow `fork` or `filter(...)`", expr.callee.span, scope=env.scope)
    branches = _named_branches(run, expr, env)
    if value.name == "fork":
        if call is not None:
            raise run.fail("E0304", "`fork` takes no arguments", call.span, scope=env.scope)
        return Fork(branches)
    if call is None:
        raise run.fail(
            "E0303", "`filter` needs a router", expr.callee.span, scope=env.scope, help=("write `filter(linear(2) -> softmax) { ... }`",)
        )
    return make_filter(run, call, branches, env)


def _named_branches(run: Run, expr: s.Branches, env: Env) -> tuple[tuple[str, Stage], ...]:
    branches: dict[str, Stage] = {}
    for branch in expr.branches:
        if branch.name in branches:
            raise run.fail("E0308", f"two branches are called `{branch.name}`", branch.span, scope=env.scope)
        value = evaluate(run, branch.value, env)
        if not isinstance(value, Brick | list):
            raise run.fail("E0306", f"a branch is a brick, not {describe(value)}", branch.value.span, scope=env.scope)
        branches[branch.name] = Stage(value, branch.name, branch.value.span)
    return tuple(branches.items())


FILTER_OPTIONS = (
    "keep",
    "renormalise",
    "keep_first",
    "width",
    "branches",
    "per_sample",
    "balance",
    "balance_form",
    "importance",
    "z_loss",
    "bias_update",
    "noise",
    "learned_noise",
    "jitter",
    "capacity",
    "cache",
    "scale",
    "groups",
    "keep_groups",
    "report",
)


def make_filter(run: Run, call: s.Call, branches: tuple[tuple[str, Stage], ...] | None, env: Env) -> Filter:
    given = arguments(run, "filter", ["router"], call, env, FILTER_OPTIONS)
    router = given.pop("router", None)
    if not isinstance(router, Brick):
        raise run.fail(
            "E0303",
            "`filter` needs a router: a brick that gives one score per branch",
            call.span,
            scope=env.scope,
            help=("write `filter(linear(2) -> softmax) { ... }`",),
        )
    listed = given.pop("branches", None)
    if (branches is None) == (listed is None):
        raise run.fail("E0410", "`filter` takes branches in braces, or `branches = [...]`", call.span, scope=env.scope)
    if listed is not None:
        if not isinstance(listed, list) or not all(isinstance(b, Brick | list) for b in listed):
            raise run.fail("E0404", f"`branches` is a list of bricks, not {describe(listed)}", call.span, scope=env.scope)
        branches = tuple((str(i), Stage(b, str(i), call.span)) for i, b in enumerate(listed))
    if not branches:
        raise run.fail("E0410", "a filter has at least one branch", call.span, scope=env.scope)
    argument = next((a for a in call.arguments if a.name in (None, "router")), call.arguments[0])
    segment = segment_of(argument.value, router, "router")
    return Filter(Stage(router, segment or "router", argument.value.span), branches, given, listed is not None, call.span)


# pipes, names and places


def _pipe(run: Run, expr: s.Pipe, env: Env) -> Any:
    head_expr = expr.stages[0]
    head = settle(run, evaluate(run, head_expr, env), head_expr, env)
    if isinstance(head, Brick | list):
        return _template(run, expr, head, env)
    if not (tensor(head) or tensors(head)):
        raise run.fail("E0306", f"a pipe starts with a tensor or a brick, not with {describe(head)}", head_expr.span, scope=env.scope)
    if env.scope is None:
        raise run.fail("E0307", "tensors live inside blocks and models", expr.span)
    value, before = head, head_expr.span
    for arrow, stage in zip(expr.arrows, expr.stages[1:]):
        brick = evaluate(run, stage, env)
        if not isinstance(brick, Brick | list):
            help = ("feed two tensors as a tuple: `(x, y) -> f`",) if tensor(brick) else ()
            raise run.fail("E0306", f"`->` leads to a brick, not to {describe(brick)}", stage.span, scope=env.scope, help=help)
        inputs = value if isinstance(value, tuple) else (value,)
        value = apply(run, brick, inputs, At(env.scope, segment_of(stage, brick), stage.span, arrow, before))
        before = stage.span
    return value


def _template(run: Run, expr: s.Pipe, head: Any, env: Env) -> Pipeline:
    stages = [Stage(head, segment_of(expr.stages[0], head), expr.stages[0].span)]
    for arrow, stage in zip(expr.arrows, expr.stages[1:]):
        brick = evaluate(run, stage, env)
        if not isinstance(brick, Brick | list):
            raise run.fail("E0306", f"`->` leads to a brick, not to {describe(brick)}", stage.span, scope=env.scope)
        stages.append(Stage(brick, segment_of(stage, brick), stage.span, arrow))
    return Pipeline(tuple(stages))


def _on(run: Run, expr: s.On, env: Env) -> Any:
    if expr.backend not in BACKENDS:
        raise run.fail(
            "E0702",
            f"there is no backend `{expr.backend}`",
            expr.span,
            scope=env.scope,
            help=nearest(expr.backend, BACKENDS) or (f"there are {', '.join(BACKENDS)}",),
        )
    value = evaluate(run, expr.value, env)
    if not isinstance(value, Brick | list):
        raise run.fail("E0306", f"bricks are placed on backends, not {describe(value)}", expr.value.span, scope=env.scope)
    return Placed(value, expr.backend)


def _as(run: Run, expr: s.As, env: Env) -> Any:
    if not expr.name.isidentifier() or not expr.name.isascii() or len(expr.name) > run.limits.identifier:
        raise run.fail("E0104", f'"{expr.name}" cannot be a name', expr.span, scope=env.scope)
    value = evaluate(run, expr.value, env)
    if not isinstance(value, Brick | list):
        raise run.fail(
            "E0306",
            f"`as` names a brick, not {describe(value)}",
            expr.value.span,
            scope=env.scope,
            help=("name a tensor with `name = ...`",),
        )
    return Named(value, expr.name)


_HANDLERS = {
    s.Name: _name,
    s.Literal: _literal,
    s.Unary: _unary,
    s.Binary: _binary,
    s.IfElse: _if_else,
    s.Pipe: _pipe,
    s.Call: _call,
    s.Attribute: _attribute,
    s.Index: _index,
    s.Branches: _branches,
    s.On: _on,
    s.As: _as,
    s.TupleOf: _tuple,
    s.ListOf: _list,
    s.Comprehension: _comprehension,
    s.Range: _range,
    s.Everything: _everything,
    s.Graft: graft,
}

__all__ = ["Diagnostic", "GraphirError", "Poly", "evaluate", "free_names", "resolve", "settle", "show"]
