"""Bricks that act on each element by itself: conversions, comparisons, logic, functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.dims import Facts
from ..ir.scalar import is_number, show
from ..ir.types import Type
from .declare import brick
from .shapes import elementwise_shape, numeric, one_dtype, same_type
from .signature import Misfit
from .torch_lazy import torch

Types = Sequence[Type]
Names = Mapping[str, Any]


@brick("float(x: any[*S]) -> [*S]", elementwise=True, examples=("float : int[B, 3]", "float : bool[B, 3]"))
def to_float(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x: any [*S] -> float [*S]; truth values become 0 and 1."""
    return x if x.is_floating_point() else x.to(dtype or torch.get_default_dtype())


@brick("int(x: any[*S]) -> int[*S]", inline=True, elementwise=True, examples=("int : float[B, 3]", "int : bool[B, 3]"))
def to_int(x: torch.Tensor) -> torch.Tensor:
    """x: any [*S] -> int [*S]; fractions are cut towards zero, truth values become 0 and 1."""
    return x.long()


# comparisons, with a second tensor or with a number


def _comparison(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    one_dtype(types)
    to = names["to"]
    if (len(types) == 2) == (to is not None):
        help = ("write `(x, y) -> less` or `x -> less(to = 0.5)`",)
        raise Misfit("E0304", "a comparison takes a second tensor or a number `to`", help=help)
    if to is not None and not (is_number(to) and types[0].dtype != "bool"):
        raise Misfit("E0404", f"`to` takes a number, not {show(to)}")
    return (Type("bool", elementwise_shape([t.shape for t in types], facts)),)


def _compare(name: str, doc: str) -> None:
    def body(x: torch.Tensor, y: torch.Tensor | None = None, to: float | None = None) -> torch.Tensor:
        return getattr(torch, TORCH_NAMES[name])(x, to if y is None else y)

    body.__doc__ = doc
    body.__name__ = name
    brick(
        f"{name}(to = none)(x: any[*S], y: any[*R]) -> bool[*S]", optional=("y",), shape=_comparison, inline=True, elementwise=True,
        examples=(f"{name} : float[B, 3], y = float[3]", f"{name}(to = 1) : int[B, 3]"),
    )(body)


TORCH_NAMES = {"equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"}
_compare("equal", "y = (x == y), or (x == to); bool [*S].")
_compare("not_equal", "y = (x != y), or (x != to); bool [*S].")
_compare("less", "y = (x < y), or (x < to); bool [*S].")
_compare("less_equal", "y = (x <= y), or (x <= to); bool [*S].")
_compare("greater", "y = (x > y), or (x > to); bool [*S].")
_compare("greater_equal", "y = (x >= y), or (x >= to); bool [*S].")


def _where_shape(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    return (Type(one_dtype(types[1:]), elementwise_shape([t.shape for t in types], facts)),)


@brick(
    "where(condition: bool[*C], x: any[*S], y: any[*R]) -> any[*S]",
    shape=_where_shape,
    inline=True,
    elementwise=True,
    examples=("where : bool[B, 3], float[B, 3], float[B, 3]", "where : bool[B, 1], int[B, 3], int[3]"),
)
def where(condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x where the condition holds, else y; any [*S], aligned at the last axis."""
    return torch.where(condition, x, y)


def _logic(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
    return (Type("bool", elementwise_shape([t.shape for t in types], facts)),)


@brick("both(x: bool[*S], y: bool[*R]) -> bool[*S]", shape=_logic, inline=True, elementwise=True, examples=("both : bool[B, 3], bool[3]",))
def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x and y; bool [*S], aligned at the last axis."""
    return torch.logical_and(x, y)


@brick(
    "either(x: bool[*S], y: bool[*R]) -> bool[*S]", shape=_logic, inline=True, elementwise=True, examples=("either : bool[B, 3], bool[3]",)
)
def either(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x or y; bool [*S], aligned at the last axis."""
    return torch.logical_or(x, y)


@brick("negate(x: bool[*S]) -> bool[*S]", inline=True, elementwise=True, examples=("negate : bool[B, 3]",))
def negate(x: torch.Tensor) -> torch.Tensor:
    """not x; bool [*S]."""
    return torch.logical_not(x)


# functions of one number


@brick("exp(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("exp : float[B, 3]",))
def exp(x: torch.Tensor) -> torch.Tensor:
    """y = e^x, [*S]."""
    return torch.exp(x)


@brick("log(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("log : float[B, 3]",))
def log(x: torch.Tensor) -> torch.Tensor:
    """y = ln x, [*S]."""
    return torch.log(x)


@brick("sqrt(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("sqrt : float[B, 3]",))
def sqrt(x: torch.Tensor) -> torch.Tensor:
    """y = x^(1/2), [*S]."""
    return torch.sqrt(x)


@brick("rsqrt(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("rsqrt : float[B, 3]",))
def rsqrt(x: torch.Tensor) -> torch.Tensor:
    """y = x^(-1/2), [*S]."""
    return torch.rsqrt(x)


@brick("square(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("square : float[B, 3]",))
def square(x: torch.Tensor) -> torch.Tensor:
    """y = x^2, [*S]."""
    return torch.square(x)


@brick("abs(x: any[*S]) -> any[*S]", shape=same_type, inline=True, elementwise=True, examples=("abs : float[B, 3]", "abs : int[B, 3]"))
def absolute(x: torch.Tensor) -> torch.Tensor:
    """y = |x|, [*S]."""
    return torch.abs(x)


@brick("reciprocal(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("reciprocal : float[B, 3]",))
def reciprocal(x: torch.Tensor) -> torch.Tensor:
    """y = 1 / x, [*S]."""
    return torch.reciprocal(x)


@brick("sin(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("sin : float[B, 3]",))
def sin(x: torch.Tensor) -> torch.Tensor:
    """y = sin x, [*S]."""
    return torch.sin(x)


@brick("cos(x: [*S]) -> [*S]", inline=True, elementwise=True, examples=("cos : float[B, 3]",))
def cos(x: torch.Tensor) -> torch.Tensor:
    """y = cos x, [*S]."""
    return torch.cos(x)


def _numbers(*keys: str, none: bool = False) -> Any:
    """A shape rule: the type stays, and integers take whole numbers only; `none` lets a number be left out."""

    def rule(types: Types, names: Names, facts: Facts) -> tuple[Type, ...]:
        numeric(types)
        for key in keys:
            value = names[key]
            if not is_number(value) and not (none and value is None):
                raise Misfit("E0404", f"`{key}` takes a number, not {show(value)}")
            if types[0].dtype == "int" and isinstance(value, float):
                raise Misfit("E0201", f"integers and the fraction {show(value)} do not mix", 0, ("`float` turns integers into numbers",))
        return (types[0],)

    return rule


@brick(
    "clamp(low = none, high = none)(x: any[*S]) -> any[*S]",
    shape=_numbers("low", "high", none=True),
    require=("low != none or high != none",),
    inline=True,
    elementwise=True,
    examples=("clamp(-0.5, 0.5) : float[B, 3]", "clamp(high = 1) : int[B, 3]"),
)
def clamp(x: torch.Tensor, low: float | None = None, high: float | None = None) -> torch.Tensor:
    """y = min(max(x, low), high), [*S]; either bound may be left out."""
    return torch.clamp(x, low, high)


@brick(
    "scale(factor)(x: any[*S]) -> any[*S]",
    shape=_numbers("factor"),
    inline=True,
    elementwise=True,
    examples=("scale(0.5) : float[B, 3]", "scale(2) : int[B, 3]"),
)
def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """y = factor * x, [*S]."""
    return torch.mul(x, factor)


@brick(
    "shift(by)(x: any[*S]) -> any[*S]",
    shape=_numbers("by"),
    inline=True,
    elementwise=True,
    examples=("shift(0.5) : float[B, 3]", "shift(-2) : int[B, 3]"),
)
def shift(x: torch.Tensor, by: float) -> torch.Tensor:
    """y = x + by, [*S]."""
    return torch.add(x, by)


@brick(
    "power(exponent)(x: [*S]) -> [*S]",
    shape=_numbers("exponent"),
    inline=True,
    elementwise=True,
    examples=("power(3) : float[B, 3]", "power(0.5) : float[B, 3]"),
)
def power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """y = x ** exponent, [*S]."""
    return torch.pow(x, exponent)
