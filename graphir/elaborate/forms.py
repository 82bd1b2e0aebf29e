"""Special forms: `frozen`, `with_init`, `stitch`, `fork([...])`, `pattern`, `graft` and its `tap`; and how calls read their arguments."""

from __future__ import annotations

from typing import Any

from ..bricks.inits import check_init
from ..bricks.signature import Misfit
from ..ir.scalar import ScalarError, is_number, show, weigh
from ..lang import syntax as s
from ..lang.diagnostic import nearest
from .run import MAX_STEPS, Run
from .scope import Env, Tap
from .values import (
    Brick,
    Edit,
    Fork,
    Frozen,
    Grafted,
    Initialised,
    Named,
    Stage,
    Start,
    Stitched,
    describe,
    own_name,
)


def arguments(
    run: Run, what: str, formals: list[str], expr: s.Call, env: Env, named: tuple[str, ...] = (), extra: bool = False, first: Any = None
) -> dict[str, Any]:
    """Arguments by name: positional ones fill `formals` in order; `named` may only be given by name; `extra` allows any name.

    `first`: the first argument, where its value is known already.
    """
    given: dict[str, Any] = {}
    position = 0
    for argument in expr.arguments:
        if argument.name is None:
            if position >= len(formals):
                raise run.fail(
                    "E0304",
                    f"`{what}` takes at most {len(formals)} config argument{'s' * (len(formals) != 1)}",
                    argument.span,
                    scope=env.scope,
                    help=(f"they are {', '.join(f'`{f}`' for f in formals)}",) if formals else ("tensors are fed with `->`",),
                )
            name, position = formals[position], position + 1
        else:
            name = argument.name
        if name not in formals and name not in named and not extra:
            raise run.fail(
                "E0302",
                f"`{what}` has no argument `{name}`",
                argument.span,
                scope=env.scope,
                help=nearest(name, [*formals, *named]) or listed([*formals, *named]),
            )
        if name in given:
            raise run.fail("E0302", f"`{name}` is given twice", argument.span, scope=env.scope)
        known = first is not None and argument is expr.arguments[0]
        given[name] = value = first if known else run.evaluate(run, argument.value, env, name)
        if isinstance(value, list):
            try:
                run.steps_for(weigh(value, 8 * MAX_STEPS) // 8, argument.span)
            except ScalarError as e:
                raise run.fail(e.code, e.message, argument.span, scope=env.scope) from None
    return given


def listed(names: list[str]) -> tuple[str, ...]:
    return (f"it has {', '.join(f'`{n}`' for n in names)}",) if names else ("it takes none",)


def segment_of(expr: s.Expr, value: Any, fallback: str | None = None) -> str | None:
    """The path segment of a brick at a place: its `as` name, the name through which it came, its own, or none for a bare pipe."""
    if isinstance(value, Named):
        return value.name
    match expr:
        case s.Name(id=id):
            return id
        case s.On(value=inner):
            return segment_of(inner, value, fallback)
        case s.Attribute(value=s.Name(id=id), name="T"):
            return id
        case s.Pipe():
            return fallback
    return own_name(value) or fallback


def _frozen(run: Run, expr: s.Call, env: Env) -> Any:
    given = arguments(run, "frozen", ["brick"], expr, env)
    return Frozen(_needs_brick(run, given, "brick", "frozen", expr, env))


def check_initial(run: Run, value: Any, expr: s.Call, env: Env, name: str = "init") -> None:
    try:
        check_init(value)
    except Misfit as e:
        span = next((a.span for a in expr.arguments if a.name == name), expr.span)
        raise run.fail(e.code, str(e), span, scope=env.scope, help=e.help) from None


WHICH = ("matrices", "all", "last")


def _with_init(run: Run, expr: s.Call, env: Env) -> Any:
    """`with_init(f, "zeros")`: weights inside f that say nothing of their own start so; `factor` multiplies what they start as.

    Nested: the innermost `init` that reaches a weight holds, with the factor given beside it; an outer `init` applies to the rest.
    Factors without an `init` multiply what the weight starts as, whichever said it.
    """
    given = arguments(run, "with_init", ["brick", "init"], expr, env, ("factor", "weights", "names"))
    brick = _needs_brick(run, given, "brick", "with_init", expr, env)
    init, factor, which, names = given.get("init"), given.get("factor", 1.0), given.get("weights", "matrices"), given.get("names")
    if init is None and "factor" not in given:
        raise run.fail("E0303", "`with_init` needs `init` or `factor`", expr.span, scope=env.scope, help=('write `with_init(f, "zeros")`',))
    check_initial(run, init, expr, env)
    if not is_number(factor):
        raise run.fail("E0404", f"`factor` is a number, not {describe(factor)}", expr.span, scope=env.scope)
    if which not in WHICH:
        raise run.fail("E0404", f"`weights` is one of {', '.join(WHICH)}, not {show(which)}", expr.span, scope=env.scope)
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise run.fail("E0404", f"`names` is a list of words, not {describe(names)}", expr.span, scope=env.scope)
    assert isinstance(factor, int | float)
    spec = f"constant({float(init)!r})" if isinstance(init, int | float) else init
    return Initialised(brick, Start(spec, float(factor), which, None if names is None else tuple(names)))


def _needs_brick(run: Run, given: dict[str, Any], name: str, what: str, expr: s.Call, env: Env) -> Any:
    value = given.get(name)
    if not isinstance(value, Brick | list):
        raise run.fail("E0306", f"`{what}` takes a brick, not {describe(value)}", expr.span, scope=env.scope)
    return value


def _stitch(run: Run, expr: s.Call, env: Env) -> Stitched | None:
    """`stitch(f, width = w)` puts adapters around f; None for `stitch(w)`, which is the primitive: the projection itself."""
    first = run.evaluate(run, expr.arguments[0].value, env) if expr.arguments and expr.arguments[0].name is None else None
    if not isinstance(first, Brick | list):
        return None
    given = arguments(run, "stitch", ["brick", "width"], expr, env, ("form", "rank", "init"), first=first)
    width = given.get("width")
    if not isinstance(width, int) or isinstance(width, bool) or width <= 0:
        raise run.fail("E0303", "`stitch(f, width = ...)` needs a positive width", expr.span, scope=env.scope)
    stage = Stage(first, segment_of(expr.arguments[0].value, first, "stitched"), expr.arguments[0].span)
    return Stitched(stage, width, {k: v for k, v in given.items() if k in ("form", "rank", "init")})


def _choose(run: Run, expr: s.Call, env: Env) -> Any:
    raise run.fail(
        "E0407",
        "`choose` makes a search space, which this edition does not sample",
        expr.span,
        scope=env.scope,
        help=("write one of the choices, or vary a `param` from Python: see examples/search_loop.py",),
    )


def _fork_call(run: Run, expr: s.Call, env: Env) -> Any:
    given = arguments(run, "fork", ["branches"], expr, env)
    listed = given.get("branches")
    if not isinstance(listed, list) or not all(isinstance(b, Brick | list) for b in listed):
        raise run.fail(
            "E0306",
            "`fork` is followed by its branches, or takes a list of bricks",
            expr.span,
            scope=env.scope,
            help=("write `fork { a: f  b: g }`, or `fork([f, g])`",),
        )
    if not listed:
        raise run.fail("E0410", "a fork has at least one branch", expr.span, scope=env.scope)
    return Fork(tuple((str(i), Stage(b, str(i), expr.span)) for i, b in enumerate(listed)))


SYMBOLS = {"attention": "*", "mlp": "-"}


def _pattern(run: Run, expr: s.Call, env: Env) -> list[Any]:
    """`pattern("M-M*-", M = m, mlp = f, attention = a)`: a list with a brick for each sign; spaces and `|` only group."""
    given = arguments(run, "pattern", ["text"], expr, env, extra=True)
    text = given.pop("text", None)
    if not isinstance(text, str):
        raise run.fail(
            "E0404",
            f"`pattern` reads a word, not {describe(text)}",
            expr.span,
            scope=env.scope,
            help=('write `pattern("M-M*-", M = m, mlp = f, attention = a)`',),
        )
    bricks = {}
    for name in given:
        if name not in SYMBOLS and len(name) > 1:
            raise run.fail(
                "E0302",
                f"`{name}` is no sign of a pattern",
                expr.span,
                scope=env.scope,
                help=("signs are letters, `attention` for `*` and `mlp` for `-`",),
            )
        bricks[SYMBOLS.get(name, name)] = _needs_brick(run, given, name, "pattern", expr, env)
    for sign in text:
        if sign not in bricks and sign not in " |":
            word = next((w for w, c in SYMBOLS.items() if c == sign), sign)
            help = f"give it one: `{word} = ...`" if word.isidentifier() else "write further patterns by themselves"
            raise run.fail("E0404", f"`{sign}` in the pattern stands for no brick", expr.span, scope=env.scope, help=(help,))
    return [bricks[sign] for sign in text if sign in bricks]


FORM_OF = {"frozen": _frozen, "with_init": _with_init, "stitch": _stitch, "choose": _choose, "fork": _fork_call, "pattern": _pattern}


def graft(run: Run, expr: s.Graft, env: Env) -> Any:
    host = run.evaluate(run, expr.host, env)
    if not isinstance(host, Brick):
        raise run.fail("E0306", f"a graft grows on a brick, not on {describe(host)}", expr.host.span, scope=env.scope)
    edits = tuple(Edit(matchers(run, e.path, env), e.value, e.path.span, env) for e in expr.edits)
    return Grafted(host, edits)


def tap_place(run: Run, tap: Tap, expr: s.Call, env: Env) -> Any:
    """What came out of a place of the host that was computed before this one."""
    if len(expr.arguments) != 1 or expr.arguments[0].name is not None:
        raise run.fail("E0304", "`tap` takes one place of the host", expr.span, scope=env.scope, help=("write `tap(layers[2].mlp)`",))
    parts = []
    for matcher in matchers(run, expr.arguments[0].value, env):
        if not isinstance(matcher, str) and (matcher is None or len(matcher) != 1):
            raise run.fail("E0701", "`tap` reads one place, not several", expr.span, scope=env.scope)
        parts.append(matcher if isinstance(matcher, str) else str(next(iter(matcher))))
    path = ".".join(parts)
    if path not in tap.grafting.results:
        near = nearest(path, tap.grafting.results) or ("it must come before the place that reads it",)
        raise run.fail("E0703", f"the host has computed no `{path}` where it is tapped", expr.span, scope=env.scope, help=near)
    return tap.grafting.results[path]


def matchers(run: Run, path: s.Expr, env: Env) -> tuple[str | frozenset[int] | None, ...]:
    match path:
        case s.Name(id=id):
            return (id,)
        case s.Attribute(value=value, name=name):
            return (*matchers(run, value, env), name)
        case s.Index(value=value, index=s.Everything()):
            return (*matchers(run, value, env), None)
        case s.Index(value=value, index=index):
            found = run.evaluate(run, index, env)
            places = found if isinstance(found, list) else [found]
            if not all(isinstance(p, int) for p in places):
                raise run.fail("E0404", "a place in a graft's path is a whole number or a range", index.span, scope=env.scope)
            return (*matchers(run, value, env), frozenset(places))
    raise run.fail("E0701", "a graft's path is a chain of names and places", path.span, scope=env.scope)
