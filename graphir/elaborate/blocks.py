"""Instantiating a block: bind its config and inputs, run its statements, check its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..bricks.signature import Misfit, match, show_type
from ..ir.dims import Poly
from ..ir.graph import Precondition, Value
from ..ir.scalar import show
from ..lang import syntax as s
from ..lang.diagnostic import GraphirError, Label
from ..lang.source import Span
from .errors import misfit
from .names import children, dim_names, free_names
from .project import Module
from .run import Run
from .scope import Env, Scope
from .values import POISON, BlockBrick, Brick, Poisoned, Shared, describe

if TYPE_CHECKING:
    from .apply import At


def instantiate(run: Run, brick: BlockBrick, inputs: tuple[Value, ...], scope: Scope, at: At) -> Value | tuple[Value, ...]:
    """The results of a block applied to tensors, its nodes made in `scope`."""
    header = brick.block.header
    tensors = _ports(run, brick, inputs, at)
    names = bind(run, brick, tensors, scope, at)
    env = Env(names, brick.module, scope)
    values = execute(run, brick.block, env, scope)
    for port, value in zip(header.results, values):
        check_result(run, port, value, names, brick.block, scope)
    return values[0] if len(values) == 1 else values


def _ports(run: Run, brick: BlockBrick, inputs: tuple[Value, ...], at: At) -> dict[str, Value]:
    """Tensors by port: bound ones, and the others in order."""
    free = [p.name for p in brick.block.header.ports if p.name not in brick.bound]
    if len(free) != len(inputs):
        wanted = ", ".join(f"`{n}`" for n in free)
        raise run.fail(
            "E0305",
            f"`{brick.name}` takes {len(free)} tensor{'s' * (len(free) != 1)}{f' ({wanted})' if free else ''}, not {len(inputs)}",
            at.span,
            scope=at.scope,
            labels=(Label(brick.block.header.span, "its header"),),
            help=("feed several tensors as a tuple: `(x, y) -> f`; or bind a port by name",) if len(free) > len(inputs) else (),
        )
    return dict(zip(free, inputs)) | dict(brick.bound)


def bind(run: Run, brick: BlockBrick, tensors: dict[str, Value], scope: Scope, at: At) -> dict[str, Any]:
    """Config (given, or by default) and what the ports bind. A default that needs no port's width is known before matching."""
    block, header = brick.block, brick.block.header
    names: dict[str, Any] = constants(run, brick.module, block) | dict(brick.args)
    late = late_defaults(run, block)
    for formal in header.formals:
        if formal.name not in names and formal.name not in late:
            names[formal.name] = _default(run, formal, brick, Env(names, brick.module, scope), at)
    types = tuple(tensors[p.name].type for p in header.ports)
    try:
        match(header.ports, types, names, run.facts)
    except Misfit as e:
        raise misfit(run, e, header.ports, types, names, at) from None
    names.pop("any", None)
    for formal in header.formals:
        if formal.name not in names:
            names[formal.name] = _default(run, formal, brick, Env(names, brick.module, scope), at)
    for port in header.ports:
        names[port.name] = tensors[port.name]
    return names


def constants(run: Run, module: Module, block: s.Block) -> dict[str, Any]:
    """Values of the file's params and lets, and of imported ones (`host.vocab`), that the widths of a header mention."""
    found: dict[str, Any] = {}
    formals = {f.name for f in block.header.formals}
    for port in (*block.header.ports, *block.header.results):
        for dim in port.type.dims:
            if isinstance(dim, s.Rest):
                continue
            for name in free_names(dim, frozenset(formals)):
                if isinstance(module.items.get(name.id), s.Param | s.Let):
                    found[name.id] = run.evaluate(run, name, Env({}, module))
            for attribute in _attributes(dim):
                found[f"{attribute.value.id}.{attribute.name}"] = run.evaluate(run, attribute, Env({}, module))  # type: ignore[union-attr]
    return found


def _attributes(expr: s.Expr) -> list[s.Attribute]:
    if isinstance(expr, s.Attribute) and isinstance(expr.value, s.Name):
        return [expr]
    return [a for child in children(expr) for a in _attributes(child)]


def _default(run: Run, formal: s.Formal, brick: BlockBrick, env: Env, at: At) -> Any:
    if formal.default is None:
        raise run.fail(
            "E0303", f"`{brick.name}` needs `{formal.name}`", at.span, scope=at.scope, labels=(Label(formal.span, "declared here"),)
        )
    return run.evaluate(run, formal.default, env)


def late_defaults(run: Run, block: s.Block) -> frozenset[str]:
    """The formals whose defaults depend on what the ports bind, directly or through other formals."""
    key = ("late", id(block))
    if key not in run.inferred:
        formals = {f.name for f in block.header.formals}
        bound = {n.id for p in block.header.ports for d in p.type.dims for n in dim_names(d)} - formals
        bound |= {p.name for p in block.header.ports}
        late: set[str] = set()
        for formal in block.header.formals:
            if formal.default is not None and any(n.id in bound | late for n in free_names(formal.default, frozenset())):
                late.add(formal.name)
        run.inferred[key] = frozenset(late)
    return run.inferred[key]


def check_result(run: Run, port: s.Port, value: Value, names: dict[str, Any], block: s.Block, scope: Scope) -> None:
    """A result has the type of the header; a capitalized name that first appears there takes what came out."""
    try:
        match([s.Port(port.span, port.name or "the result", port.type)], [value.type], names, run.facts)
    except Misfit as e:
        returned = next((r for r in reversed(block.body) if isinstance(r, s.Return)), block)
        raise run.fail(
            "E0208",
            f"`{block.header.name}` promises {show_type(port.type, names)} but gives {value.type}",
            returned.span,
            "gives another type",
            scope=scope,
            labels=(Label(port.span, "promised here"),),
            notes=(str(e),),
            help=e.help,
        ) from None


def execute(run: Run, block: s.Block, env: Env, scope: Scope) -> tuple[Value, ...]:
    """Run the statements of a body. Errors are reported one by one, and what they touch is poisoned, so that all are found."""
    returned: tuple[Value, ...] | None = None
    failed = False
    for statement in block.body:
        try:
            if isinstance(statement, s.Return):
                returned = _return(run, statement, block, env, scope)
            else:
                _statement(run, statement, env, scope)
        except (GraphirError, Poisoned) as e:
            failed = True
            if isinstance(e, GraphirError):
                run.report(e)
            names = statement.names if isinstance(statement, s.Bind) else (statement.name,) if isinstance(statement, s.Shared) else ()
            for name in names:
                env.names[name] = POISON
    if failed:
        raise Poisoned
    if returned is None:
        raise run.fail(
            "E0309", f"`{block.header.name}` returns nothing", block.header.span, scope=scope, help=("end its body with `return ...`",)
        )
    return returned


def _statement(run: Run, statement: s.Bind | s.Shared | s.Require, env: Env, scope: Scope) -> None:
    match statement:
        case s.Bind():
            _bind(run, statement, env, scope)
        case s.Shared(name=name, value=value):
            _new_name(run, name, statement.span, env, scope)
            brick = run.evaluate(run, value, env)
            if not isinstance(brick, Brick | list):
                raise run.fail(
                    "E0306",
                    f"`shared` makes one instance of a brick, not of {describe(brick)}",
                    statement.value.span,
                    scope=scope,
                    help=("a tensor is computed once already: bind it with `=`",),
                )
            env.names[name] = brick if isinstance(brick, Shared) else Shared(brick, _shared_path(scope, name), statement.span)
        case s.Require(condition=condition, message=message):
            require(run, condition, message, env, scope)


def _shared_path(scope: Scope, name: str) -> str:
    segment = scope.segment(name)
    scope.taken.discard(segment)  # the first use may have the same segment; nothing else gets the weight path
    return f"{scope.weights}.{segment}" if scope.weights else segment


def _new_name(run: Run, name: str, span: Span, env: Env, scope: Scope) -> None:
    if name in env.names:
        raise run.fail("E0308", f"`{name}` is bound already", span, scope=scope, help=("names are never rebound: choose another",))


def _bind(run: Run, statement: s.Bind, env: Env, scope: Scope) -> None:
    for name in statement.names:
        _new_name(run, name, statement.span, env, scope)
    single = statement.names[0] if len(statement.names) == 1 else None
    value = run.evaluate(run, statement.value, env, single)
    if single is not None:
        values: tuple[Any, ...] = (value,)
    else:
        if not isinstance(value, tuple | list) or len(value) != len(statement.names):
            count = f"{len(value)} values" if isinstance(value, tuple | list) else "one value"
            raise run.fail(
                "E0311", f"{len(statement.names)} names ({', '.join(statement.names)}) are bound to {count}", statement.span, scope=scope
            )
        values = tuple(value)
    if statement.type is not None:
        _check_annotation(run, statement, values, env, scope)
    for name, v in zip(statement.names, values):
        env.names[name] = v


def _check_annotation(run: Run, statement: s.Bind, values: tuple[Any, ...], env: Env, scope: Scope) -> None:
    assert statement.type is not None
    for name, value in zip(statement.names, values):
        if not isinstance(value, Value):
            raise run.fail("E0307", f"`{name}` has a tensor's type but is {describe(value)}", statement.span, scope=scope)
        try:
            match([s.Port(statement.type.span, name, statement.type)], [value.type], env.names, run.facts)
        except Misfit as e:
            raise run.fail(
                "E0208",
                f"`{name}` is {value.type}, not {show_type(statement.type, env.names)}",
                statement.value.span,
                scope=scope,
                labels=(Label(statement.type.span, "written here"),),
                notes=(str(e),),
            ) from None


def _return(run: Run, statement: s.Return, block: s.Block, env: Env, scope: Scope) -> tuple[Value, ...]:
    values: list[Any] = []
    for expr in statement.values:
        value = run.evaluate(run, expr, env, "out")
        values += value if isinstance(value, tuple) and len(statement.values) == 1 else [value]
    wanted = len(block.header.results)
    for value, expr in zip(values, (*statement.values, *([statement.values[-1]] * len(values)))):
        if not isinstance(value, Value):
            help = ("feed it a tensor: `x -> ...`",) if isinstance(value, Brick | list) else ()
            raise run.fail("E0307", f"`return` gives tensors, not {describe(value)}", expr.span, scope=scope, help=help)
    if len(values) != wanted:
        raise run.fail(
            "E0208",
            f"`{block.header.name}` promises {wanted} result{'s' * (wanted != 1)} but returns {len(values)}",
            statement.span,
            scope=scope,
            labels=(Label(block.header.span, "its header"),),
        )
    return tuple(values)


# facts


def require(run: Run, condition: s.Expr, message: str | None, env: Env, scope: Scope) -> None:
    """Check a fact; what the sizes at hand cannot show becomes a precondition of the model."""
    if isinstance(condition, s.Binary) and condition.op == "and":
        require(run, condition.left, message, env, scope)
        require(run, condition.right, message, env, scope)
        return
    divides = isinstance(condition, s.Binary) and condition.op == "==" and isinstance(condition.left, s.Binary) and condition.left.op == "%"
    if divides and _divisible(run, condition, message, env, scope):
        return
    value = run.evaluate(run, condition, env)
    if value is True:
        return
    if value is False:
        raise _unmet(run, condition, message, env, scope)
    if value is not None or not isinstance(condition, s.Binary):
        raise run.fail("E0404", f"`require` takes a condition, not {describe(value)}", condition.span, scope=scope)
    left, right = (run.evaluate(run, e, env) for e in (condition.left, condition.right))
    _assume(run, Precondition(left, condition.op, right, None, message or ""))


def _divisible(run: Run, condition: Any, message: str | None, env: Env, scope: Scope) -> bool:
    """Handle `a % k == 0`, where `a` is a runtime dim."""
    number = run.evaluate(run, condition.left.left, env)
    divisor = run.evaluate(run, condition.left.right, env)
    zero = run.evaluate(run, condition.right, env)
    if not isinstance(number, Poly) or not isinstance(divisor, int) or zero != 0 or divisor <= 0:
        return False
    known = run.facts.is_divisible(number, divisor)
    if known is False:
        raise _unmet(run, condition, message, env, scope)
    if known is None:
        _assume(run, Precondition(number, "==", 0, divisor, message or ""))
    return True


def _assume(run: Run, fact: Precondition) -> None:
    if fact in run.requires:
        return
    run.requires.append(fact)
    if fact.divisor:
        run.facts.add_divisible(fact.left, fact.divisor)
    elif fact.op == "==":
        run.facts.add_equal(fact.left, fact.right)


def _unmet(run: Run, condition: s.Expr, message: str | None, env: Env, scope: Scope) -> GraphirError:
    names = dict.fromkeys(n.id for n in free_names(condition, frozenset()))
    shown = ", ".join(f"{n} = {show(v)}" for n in names for found, v in [env.find(n)] if found and not isinstance(v, Value | Brick))
    text = f"`{condition.span.text}` does not hold" + (f": {message}" if message else "")
    return run.fail("E0210", text, condition.span, scope=scope, notes=(f"with {shown}",) if shown else ())
