"""Numbers, shapes and config values as short text for tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd
from typing import Any

from ..ir.dims import Dim, Facts, Poly, Quotient, substitute
from ..ir.graph import Node
from ..ir.scalar import show
from ..ir.types import Type

HIDDEN = {"branches", "given", "init", "open", "sizes"}
_POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def human(number: int | float, letters: str = "KMGTPE") -> str:
    """Three digits and a letter: 1.23M. Exact below a thousand."""
    if abs(number) < 1000:
        return str(number)
    power = 1
    while abs(number) >= 999.5 * 1000**power and power < len(letters):
        power += 1
    number /= 1000**power
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    text = f"{number:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if digits else text) + letters[power - 1]


def parameters(number: int) -> str:
    """A count of parameters, whose billions are B: 1.17B."""
    return human(number, "KMBT")


def cost(dim: Dim) -> str:
    """A count that may depend on runtime names: `8.39M·B·T + 2.05K·B·T²`."""
    if not isinstance(dim, Poly):
        return human(dim)
    parts = []
    for monomial, coefficient in sorted(dim.terms, key=lambda t: (-len(t[0]), str(t[0]))):
        powers: dict[str, int] = {}
        for atom in monomial:
            powers[str(atom)] = powers.get(str(atom), 0) + 1
        names = [name + (str(power).translate(_POWERS) if power > 1 else "") for name, power in powers.items()]
        parts.append("·".join([human(coefficient)] * (coefficient != 1 or not names) + names))
    return " + ".join(parts).replace("+ -", "- ")


def partial(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """The dim with the sizes that are known put in."""
    return substitute(dim, sizes.get) if sizes and isinstance(dim, Poly) else dim


def dim(size: Dim, facts: Facts | None = None) -> str:
    """A dim as people write it: `H/2` for 8 * (H // 16) where 16 is known to divide H."""
    if not isinstance(size, Poly):
        return str(size)
    if len(size.terms) > 1:
        return f"({size})"
    monomial, times = next(iter(size.terms))
    parts = []
    for atom in monomial:
        if isinstance(atom, Quotient) and facts is not None and facts.is_divisible(atom.poly, atom.divisor):
            common = gcd(atom.divisor, times)
            times //= common
            parts.append(str(atom.poly) + (f"/{atom.divisor // common}" if atom.divisor > common else ""))
        else:
            parts.append(str(atom))
    return "·".join([str(times)] * (times != 1) + parts)


def shape(type: Type, sizes: Mapping[str, int] | None = None, facts: Facts | None = None) -> str:
    """`B×T×512`; an element type in front where it is not float, `()` for a single number."""
    dims = [dim(partial(d, sizes or {}), facts) for d in type.shape]
    text = "×".join(dims) or "()"
    return text if type.dtype == "float" else f"{type.dtype} {text}"


def shapes(types: Iterable[Type], sizes: Mapping[str, int] | None = None, facts: Facts | None = None) -> str:
    """Several shapes; equal ones are counted."""
    counts: dict[str, int] = {}
    for type in types:
        text = shape(type, sizes, facts)
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(text if n == 1 else f"{n}·({text})" for text, n in counts.items())


def config(node: Node, defaults: Mapping[str, Any]) -> list[str]:
    """The attributes of a node that say something: not the defaults, not what the wiring shows already."""
    return [
        _value(value) if name == "pattern" else f"{name}={_value(value)}"
        for name, value in node.attrs.items()
        if name not in HIDDEN and value is not None and not (name in defaults and same(defaults[name], value))
    ]


def same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{','.join(map(_value, value))}]"
    return value if isinstance(value, str) else show(value)


def clip(text: str, length: int) -> str:
    """The text, cleaned, and cut with an ellipsis where it is longer."""
    text = clean(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def clean(text: str) -> str:
    """The text with characters that XML, DOT or a terminal refuses replaced; line ends stay."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
