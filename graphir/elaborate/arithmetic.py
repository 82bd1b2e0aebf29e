"""Arithmetic in expressions: on config values, and on tensors, where `+ - * /` are nodes."""

from __future__ import annotations

from typing import Any

from ..bricks.declare import REGISTRY
from ..ir.dims import Poly
from ..ir.graph import Value
from ..ir.scalar import MAX_ITEMS, ScalarError, binary, is_dim, is_number, show, weigh
from ..lang import syntax as s
from .apply import At, apply
from .project import Module
from .run import MAX_STEPS, Run
from .scope import Env
from .values import Brick, Builtin, Function, Primitive, describe


def tensor(value: Any) -> bool:
    return isinstance(value, Value)


def tensors(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(v, Value) for v in value)


def scalar(run: Run, op: str, left: Any, right: Any, expr: s.Expr, env: Env) -> Any:
    for side in (left, right):
        if isinstance(side, Brick | Function | Builtin | Module) and op not in ("==", "!=", "in"):
            raise run.fail("E0306", f"`{op}` does not apply to {describe(side)}", expr.span, scope=env.scope, help=_arithmetic_help(op))
        if tensors(side):
            raise run.fail(
                "E0307", f"`{op}` does not apply to {describe(side)}", expr.span, scope=env.scope, help=("name them: `a, b = ...`",)
            )
    try:
        _charge_lists(run, op, left, right, expr)
        return binary(op, left, right, run.facts)
    except ScalarError as e:
        raise run.fail(e.code, e.message, expr.span, scope=env.scope, help=e.help) from None


def _charge_lists(run: Run, op: str, left: Any, right: Any, expr: s.Expr) -> None:
    """Count the work of an operator on lists before it is done."""
    sides = [v for v in (left, right) if isinstance(v, list | tuple)]
    if not sides:
        return
    if op in ("==", "!=", "in"):
        count = sum(weigh(v, MAX_STEPS) for v in sides)
    elif op == "*":
        times = left if isinstance(left, int) else right
        count = len(sides[0]) * times if isinstance(times, int) and times > 0 else 0
        count = 0 if count > MAX_ITEMS else count  # `binary` refuses that
    else:
        count = sum(map(len, sides))
    run.steps_for(count, expr.span)


def _arithmetic_help(op: str) -> tuple[str, ...]:
    return ("bricks are composed with `->`, and repeated in lists: `[f] * 3`",) if op in ("*", "+") else ()


_TENSOR_OPS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}


def tensor_arithmetic(run: Run, expr: s.Binary, left: Any, right: Any, env: Env) -> Value:
    op = expr.op
    if tensor(left) and tensor(right):
        if op in _TENSOR_OPS:
            attrs = {"alpha": 1.0} if op == "+" else {}
            return emit(run, _TENSOR_OPS[op], attrs, (left, right), expr, env)
        raise run.fail("E0307", f"`{op}` does not apply to two tensors", expr.span, scope=env.scope, help=_compare_help(op))
    value, number = (left, right) if tensor(left) else (right, left)
    if not (is_number(number) or is_dim(number)):
        other = expr.right if tensor(left) else expr.left
        raise run.fail(
            "E0307",
            f"`{op}` takes tensors and numbers, not {describe(number)}",
            other.span,
            scope=env.scope,
            help=("apply the brick first: `(x -> f)`",) if isinstance(number, Brick | list) else (),
        )
    if isinstance(number, Poly):
        other = expr.right if tensor(left) else expr.left
        raise run.fail(
            "E0307",
            f"`{op}` of a tensor takes a number known before run time, not the runtime dim `{show(number)}`",
            other.span,
            scope=env.scope,
        )
    first = tensor(left)
    if op == "*":
        return emit(run, "scale", {"factor": number}, (value,), expr, env)
    if op == "/" and first and is_number(number):
        if number == 0:
            raise run.fail("E0402", "division by zero", expr.span, scope=env.scope)
        return emit(run, "scale", {"factor": 1 / number}, (value,), expr, env)
    if op == "/" and not first:
        return emit(run, "scale", {"factor": number}, (emit(run, "reciprocal", {}, (value,), expr, env),), expr, env)
    if op == "+" or (op == "-" and first):
        return emit(run, "shift", {"by": number if op == "+" else -number}, (value,), expr, env)
    if op == "-":
        return emit(run, "shift", {"by": number}, (emit(run, "scale", {"factor": -1}, (value,), expr, env),), expr, env)
    if op == "**" and first:
        return emit(run, "power", {"exponent": number}, (value,), expr, env)
    raise run.fail("E0307", f"`{op}` does not apply to a tensor and a number", expr.span, scope=env.scope, help=_compare_help(op))


def _compare_help(op: str) -> tuple[str, ...]:
    return ("tensors are compared with the bricks `less`, `greater` and `equal`",) if op in ("<", ">", "<=", ">=", "==") else ()


def emit(run: Run, op: str, attrs: dict[str, Any], inputs: tuple[Value, ...], expr: s.Expr, env: Env) -> Value:
    scope = env.scope
    if scope is None:
        raise run.fail("E0307", "tensors live inside blocks and models", expr.span)
    if all(v.type.dtype == "float" for v in inputs):
        attrs = {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in attrs.items()}
    return apply(run, Primitive(REGISTRY[op], attrs, called=True), inputs, At(scope, op, expr.span))
