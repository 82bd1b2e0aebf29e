"""Config values: integers, floats, booleans, strings, dims, lists and tuples, and the arithmetic of the language on them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..lang import syntax as s
from .dims import Facts, Poly, extremum, floordiv, free_names

MAX_BITS = 256  # no config number is longer: 2 ** (2 ** 100) is refused before it is computed
MAX_ITEMS = 1_000_000
MAX_DEPTH = 100  # of lists in lists


class ScalarError(Exception):
    """A config expression that has no value: code, message, help."""

    def __init__(self, code: str, message: str, *help: str):
        super().__init__(message)
        self.code, self.message, self.help = code, message, help


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_dim(value: Any) -> bool:
    return isinstance(value, Poly) or (isinstance(value, int) and not isinstance(value, bool))


def show(value: Any) -> str:
    """A config value as the language writes it, cut where it is long; what is no config (a brick, a tensor) in a few words."""
    return _cut(_show(value, 0), 300)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


def _show(value: Any, depth: int) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_cut(value, 60)}"'
    if isinstance(value, tuple | list):
        parts = [_show(v, depth + 1) for v in value[:8]] if depth < 3 else []
        inside = ", ".join([*parts, "..."] if len(value) > len(parts) else parts)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, int | float | Poly):
        return str(value)
    if hasattr(value, "dtype") or hasattr(getattr(value, "type", None), "dtype"):
        return "a tensor"
    name = getattr(value, "name", None)
    return f"a brick `{_cut(name, 60)}`" if isinstance(name, str) else "a brick"


def weigh(value: Any, most: int) -> int:
    """How many places a value has, those of the lists inside it included; counted up to about `most`. ScalarError where it is nested deeply."""
    total, level = 1, [value]
    for _ in range(MAX_DEPTH):
        level = [v for v in level if isinstance(v, list | tuple)]
        if not level:
            return total
        count = sum(map(len, level))
        total += count
        if total > most:
            return total
        level = [item for v in level for item in v]
    raise ScalarError("E0606", f"lists are nested more than {MAX_DEPTH} deep")


def kind(value: Any) -> str:
    """What to call a config value in a message."""
    if value is None:
        return "none"
    names = {
        bool: "a truth value",
        int: "an integer",
        float: "a number",
        str: "a word",
        Poly: "a runtime dim",
        list: "a list",
        tuple: "a tuple",
    }
    return names.get(type(value), "a value")


def binary(op: str, left: Any, right: Any, facts: Facts | None = None) -> Any:
    """`left op right` for config values; integers stay integers, and only an exact `/` of integers is one."""
    if op in COMPARISONS:
        return compare(op, left, right, facts)
    if isinstance(left, list) or isinstance(right, list):
        return _lists(op, left, right)
    dims = isinstance(left, Poly) or isinstance(right, Poly)
    if dims and is_dim(left) and is_dim(right):
        try:
            return _dims(op, left, right)
        except OverflowError as e:
            raise ScalarError("E0405", str(e)) from None
    if not (is_number(left) and is_number(right)):
        raise ScalarError("E0404", f"`{op}` takes numbers, not {kind(left)} and {kind(right)}")
    return _numbers(op, left, right)


def _lists(op: str, left: Any, right: Any) -> list[Any]:
    if op == "+" and isinstance(left, list) and isinstance(right, list):
        if len(left) + len(right) > MAX_ITEMS:
            raise ScalarError("E0606", f"a list of {len(left) + len(right):,} places is longer than the limit of {MAX_ITEMS:,}")
        return left + right
    if op == "*":
        items, times = (left, right) if isinstance(left, list) else (right, left)
        if isinstance(times, int) and not isinstance(times, bool) and times >= 0:
            if len(items) * times > MAX_ITEMS:
                raise ScalarError("E0606", f"a list of {len(items) * times:,} places is longer than the limit of {MAX_ITEMS:,}")
            return items * times
        raise ScalarError("E0404", f"a list is repeated by a whole number from 0 up, not by {show(times)}")
    raise ScalarError("E0404", f"`{op}` does not apply to {kind(left)} and {kind(right)}", "lists know `+` (join) and `*` (repeat)")


def _dims(op: str, left: Any, right: Any) -> Any:
    if op in "+-*" and len(op) == 1:
        return left + right if op == "+" else left - right if op == "-" else left * right
    if op in ("//", "%", "/") and isinstance(right, int):
        if right <= 0:
            raise ScalarError("E0402", f"a dim is divided by a positive integer, not by {right}")
        quotient = floordiv(left, right)
        if op == "//":
            return quotient
        remainder = left - right * quotient
        if op == "%":
            return remainder
        if remainder == 0:
            return quotient
        raise ScalarError(
            "E0401", f"`{left} / {right}` is not known to be whole", f"write `//`, or add `require {left} % {right} == 0` and `//`"
        )
    raise ScalarError("E0404", f"`{op}` does not apply to runtime dims", "dims know + - * and // % by a positive integer")


def _numbers(op: str, left: Any, right: Any) -> Any:
    whole = isinstance(left, int) and isinstance(right, int)
    if op in ("/", "//", "%") and right == 0:
        raise ScalarError("E0402", f"`{left} {op} 0`: division by zero")
    try:
        if op == "/" and whole:
            if left % right:
                raise ScalarError(
                    "E0401", f"`{left} / {right}` is not a whole number", f"`//` rounds down; `{left} / {right}.0` gives a fraction"
                )
            return left // right
        if op == "**":
            return _power(left, right)
        result = {
            "+": lambda: left + right,
            "-": lambda: left - right,
            "*": lambda: left * right,
            "/": lambda: left / right,
            "//": lambda: left // right,
            "%": lambda: left % right,
        }[op]()
    except OverflowError:
        raise ScalarError("E0405", f"`{show(left)} {op} {show(right)}` is too large") from None
    return checked(result)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        if abs(base) > 1 and exponent * abs(base).bit_length() > MAX_BITS:
            raise ScalarError("E0405", f"`{base} ** {exponent}` is too large")
        return checked(base**exponent)
    try:
        result = float(base) ** float(exponent)
    except (OverflowError, ZeroDivisionError):
        raise ScalarError("E0405", f"`{show(base)} ** {show(exponent)}` is out of range") from None
    if isinstance(result, complex):
        raise ScalarError("E0405", f"`{show(base)} ** {show(exponent)}` is not a real number")
    return checked(result)


def checked(value: Any) -> Any:
    """The number itself, if it is finite and of sane length."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ScalarError("E0405", "the number is out of range")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ScalarError("E0405", "the integer is too large")
    return value


ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in")


def compare(op: str, left: Any, right: Any, facts: Facts | None = None) -> bool | None:
    """True, False or, where runtime dims decide, None."""
    if op == "in":
        if not isinstance(right, list | tuple):
            raise ScalarError("E0404", f"`in` looks into a list, not into {kind(right)}")
        found = [compare("==", left, item, facts) for item in right]
        return True if True in found else None if None in found else False
    if (isinstance(left, Poly) or isinstance(right, Poly)) and is_dim(left) and is_dim(right):
        return _compare_dims(op, left, right, facts or Facts())
    if op in ("==", "!="):
        plain = (int, float, bool, str, Poly, list, tuple, type(None))
        same = left == right if isinstance(left, plain) and isinstance(right, plain) else left is right
        return same is (op == "==") if isinstance(same, bool) else None
    if not ((is_number(left) and is_number(right)) or (isinstance(left, str) and isinstance(right, str))):
        raise ScalarError("E0404", f"`{op}` compares numbers, not {kind(left)} and {kind(right)}")
    return ORDERS[op](left, right)


def _compare_dims(op: str, left: Any, right: Any, facts: Facts) -> bool | None:
    if op in ("==", "!="):
        same = facts.same(left, right)
        return same if same is None or op == "==" else not same
    difference = facts.normal(left - right)
    if not isinstance(difference, int):
        return None
    return {"<": difference < 0, "<=": difference <= 0, ">": difference > 0, ">=": difference >= 0}[op]


def _sqrt(x: Any) -> Any:
    if not is_number(x) or x < 0:
        raise ScalarError("E0404", f"`sqrt` takes a number from 0 up, not {show(x)}")
    return math.isqrt(x) if isinstance(x, int) and math.isqrt(x) ** 2 == x else math.sqrt(x)


def _length(x: Any) -> int:
    if not isinstance(x, list | tuple | str):
        raise ScalarError("E0404", f"`len` takes a list or a tuple, not {kind(x)}")
    return len(x)


def _extremum(op: str) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        if len(values) == 1 and isinstance(values[0], list | tuple):
            values = tuple(values[0])
        if not values:
            raise ScalarError("E0404", f"`{op}` takes at least one number")
        if any(isinstance(v, Poly) for v in values):
            if not all(is_dim(v) for v in values):
                raise ScalarError("E0404", f"`{op}` of runtime dims takes dims and integers")
            try:
                return extremum(op, values)
            except OverflowError as e:
                raise ScalarError("E0405", str(e)) from None
        if not all(is_number(v) for v in values):
            raise ScalarError("E0404", f"`{op}` takes numbers")
        return min(values) if op == "min" else max(values)

    return call


def _real(name: str, function: Callable[[float], float]) -> Callable[..., Any]:
    def call(x: Any) -> float:
        if not is_number(x):
            raise ScalarError("E0404", f"`{name}` takes a number, not {kind(x)}")
        try:
            return checked(function(x))
        except (ValueError, OverflowError):
            raise ScalarError("E0405", f"`{name}({show(x)})` is out of range") from None

    return call


def _scaled_init(init: Any, factor: Any) -> str:
    if not isinstance(init, str) or not is_number(factor):
        raise ScalarError("E0404", f'`scaled_init` takes a word such as "he" and a number, not {kind(init)} and {kind(factor)}')
    return f"{init} * {float(factor)!r}"


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": _extremum("min"),
    "max": _extremum("max"),
    "sqrt": _sqrt,
    "len": _length,
    "exp": _real("exp", math.exp),
    "log": _real("log", math.log),
    "floor": _real("floor", math.floor),
    "ceil": _real("ceil", math.ceil),
    "scaled_init": _scaled_init,
}


def call(name: str, values: list[Any]) -> Any:
    """Apply a built-in config function."""
    try:
        return FUNCTIONS[name](*values)
    except TypeError:
        raise ScalarError("E0304", f"`{name}` does not take {len(values)} arguments") from None


def evaluate(expr: s.Expr, names: Mapping[str, Any], facts: Facts | None = None) -> Any:
    """The value of an expression that only computes: the dims, costs and conditions of a brick's declaration."""
    match expr:
        case s.Literal(value=value):
            return value
        case s.Name(id=name):
            if name not in names:
                raise ScalarError("E0301", f"`{name}` is not known here")
            return names[name]
        case s.Attribute(value=s.Name(id=module), name=name) if f"{module}.{name}" in names:
            return names[f"{module}.{name}"]
        case s.Unary(op="-", operand=operand):
            return binary("-", 0, evaluate(operand, names, facts), facts)
        case s.Unary(operand=operand):
            return not evaluate(operand, names, facts)
        case s.Binary(op="and", left=left, right=right):
            return evaluate(left, names, facts) and evaluate(right, names, facts)
        case s.Binary(op="or", left=left, right=right):
            return evaluate(left, names, facts) or evaluate(right, names, facts)
        case s.Binary(op=op, left=left, right=right):
            return binary(op, evaluate(left, names, facts), evaluate(right, names, facts), facts)
        case s.IfElse(then=then, condition=condition, other=other):
            return evaluate(then if evaluate(condition, names, facts) else other, names, facts)
        case s.Call(callee=s.Name(id=name), arguments=arguments) if name in FUNCTIONS:
            return call(name, [evaluate(a.value, names, facts) for a in arguments])
        case s.ListOf(items=items):
            return [evaluate(item, names, facts) for item in items]
        case s.TupleOf(items=items):
            return tuple(evaluate(item, names, facts) for item in items)
        case s.Index(value=value, index=index):
            return _item(evaluate(value, names, facts), evaluate(index, names, facts))
    raise ScalarError("E0404", "this expression does not belong in a declaration")


def _item(items: Any, index: Any) -> Any:
    if not isinstance(items, list | tuple):
        raise ScalarError("E0404", f"lists and tuples are indexed, not {kind(items)}")
    if not isinstance(index, int) or isinstance(index, bool):
        raise ScalarError("E0404", f"an index is a whole number, not {show(index)}")
    if not -len(items) <= index < len(items):
        raise ScalarError("E0403", f"index {index} is outside a list of {len(items)}", "places count from 0")
    return items[index]


def runtime_names(value: Any) -> set[str]:
    """The runtime dims that a config value depends on."""
    if isinstance(value, Poly):
        return free_names(value)
    if isinstance(value, list | tuple):
        return set().union(*(runtime_names(v) for v in value)) if value else set()
    return set()
