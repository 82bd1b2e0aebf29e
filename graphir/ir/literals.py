"""Config values, dims and types as the words of a dump, and back.

    12   -0.5   1e-05   true   none   "text\\n"   [1, [2, 3]]   (T + 1)//2   4*min(8, T)   float[B, T, 64]

`[...]` is a tuple and `list[...]` a list; strings are those of JSON; floats are as short as is exact. Dims are written as
the arithmetic that makes them, with the precedence that Python has, and are put into normal form again when read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from .dims import Dim, Poly, extremum, floordiv, symbol
from .types import DTYPES, Type

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
SEGMENT = r"[A-Za-z0-9_]{1,80}"
PATH = rf"{SEGMENT}(?:\.{SEGMENT})*+"
STRING = r'"(?:[^"\\]++|\\.)*+"'
NESTING = 32
DIGITS = 80  # 256 bits, as config integers may have

is_name = re.compile(NAME).fullmatch
is_path = re.compile(PATH).fullmatch

_WORDS = {"true": True, "false": False, "none": None}
_TOKEN = re.compile(rf'\s*+(?:({STRING})|([A-Za-z_][A-Za-z0-9_]*+)|(\d++(?:\.\d++)?(?:e[+-]?\d++)?)|(//|[-+*()\[\],=]))', re.ASCII)


class Malformed(Exception):
    """Text that is no literal: what is wrong and how far into the text."""

    def __init__(self, message: str, at: int):
        super().__init__(message)
        self.message, self.at = message, at


def write(value: Any, depth: int = 0) -> str:
    """A config value as text. ValueError for what a graph may not hold: other kinds, infinities, deep nesting."""
    kind = value.__class__
    if kind is int or kind is Poly:
        return str(value)
    if kind is str:
        return quote(value)
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "none"
    if kind is float and math.isfinite(value):
        return repr(value)
    if kind in (tuple, list) and depth < NESTING:
        inside = ", ".join([write(item, depth + 1) for item in value])
        return f"[{inside}]" if kind is tuple else f"list[{inside}]"
    raise ValueError(f"{value!r} cannot be written in a graph's text")


def write_attrs(attrs: Mapping[str, Any]) -> str:
    """`size=4, bias=true`."""
    return ", ".join([f"{name}={write(value)}" for name, value in attrs.items()])


def read_value(text: str) -> Any:
    """The value that a text writes. Raises Malformed."""
    words = _Words(text)
    value = words.value(0)
    words.end()
    return value


def read_dim(text: str) -> Dim:
    """The dim that a text writes. Raises Malformed."""
    words = _Words(text)
    dim = words.dim(0)
    words.end()
    return dim


def read_attrs(text: str) -> dict[str, Any]:
    """The attributes that `a=1, b=2` writes. Raises Malformed."""
    words, attrs = _Words(text), {}
    while words.kind:
        name = words.name("an attribute's name")
        if name in attrs:
            raise Malformed(f"attribute `{name}` is given twice", words.at)
        words.take("=")
        attrs[name] = words.value(0)
        if words.kind and not words.skip(","):
            words.fail("`,`")
    return attrs


def read_types(text: str) -> tuple[Type, ...]:
    """The types that `float[B, 4], int[B]` writes. Raises Malformed."""
    words, types = _Words(text), []
    while True:
        types.append(words.type())
        if not words.skip(","):
            words.end()
            return tuple(types)


class _Words:
    """A cursor over the tokens of one literal: `kind` of the next (`` at the end), its `text`, and where it starts."""

    def __init__(self, text: str):
        self.line = text
        self.next = 0
        self.advance()

    def advance(self) -> None:
        self.at = self.next
        found = _TOKEN.match(self.line, self.next)
        if found:
            self.next = found.end()
            self.text = found[found.lastindex]  # type: ignore[index]
            self.at = self.next - len(self.text)
            self.kind = ("string", "word", "number", "sign")[found.lastindex - 1]  # type: ignore[operator]
            return
        self.kind = self.text = ""
        if self.line[self.next :].strip():
            raise Malformed("this is no part of a value", self.at)

    def fail(self, wanted: str) -> None:
        raise Malformed(f"{wanted} is expected" + (f", not `{self.text[:40]}`" if self.text else ", but the text ends"), self.at)

    def skip(self, sign: str) -> bool:
        if self.kind != "sign" or self.text != sign:
            return False
        self.advance()
        return True

    def take(self, sign: str) -> None:
        if not self.skip(sign):
            self.fail(f"`{sign}`")

    def end(self) -> None:
        if self.kind:
            self.fail("the end")

    def name(self, what: str) -> str:
        text = self.text
        if self.kind != "word" or not is_name(text):
            self.fail(what)
        self.advance()
        return text

    def value(self, depth: int) -> Any:
        if self.kind == "string":
            return self.string()
        if self.kind == "word" and self.text in _WORDS:
            return _WORDS[self.name("a word")]
        if self.kind == "sign" and self.text == "[":
            return tuple(self.items(depth))
        if self.kind == "word" and self.text == "list" and self.line[self.next : self.next + 1] == "[":
            self.advance()
            return self.items(depth)
        return self.dim(depth, floats=True)

    def string(self) -> str:
        try:
            value = json.loads(self.text)
        except ValueError:
            raise Malformed("this is no string of JSON", self.at) from None
        self.advance()
        return value

    def items(self, depth: int) -> list[Any]:
        if depth >= NESTING:
            raise Malformed(f"values are nested more than {NESTING} deep", self.at)
        self.take("[")
        out: list[Any] = []
        while not self.skip("]"):
            if out:
                self.take(",")
            out.append(self.value(depth + 1))
        return out

    def type(self) -> Type:
        at, dtype = self.at, self.name("a type such as `float[B, 4]`")
        if dtype not in DTYPES:
            raise Malformed(f"elements are {', '.join(DTYPES)}, not `{dtype}`", at)
        self.take("[")
        shape: list[Dim] = []
        while not self.skip("]"):
            if shape:
                self.take(",")
            shape.append(self.dim(0))
            if isinstance(shape[-1], int) and shape[-1] < 0:
                raise Malformed(f"a width is never negative, as {shape[-1]} is", at)
        return Type(dtype, tuple(shape))

    def dim(self, depth: int, floats: bool = False) -> Any:
        """A sum; with `floats` also a lone float."""
        at = self.at
        try:
            total = self.product(depth, -1 if self.skip("-") else 1, floats)
            while self.kind == "sign" and self.text in "+-" and not isinstance(total, float):
                sign = -1 if self.text == "-" else 1
                self.advance()
                total = total + sign * self.product(depth)
        except OverflowError as e:
            raise Malformed(str(e), at) from None
        return total

    def product(self, depth: int, sign: int = 1, floats: bool = False) -> Any:
        factor = self.factor(depth, floats)
        out = sign * factor
        while self.kind == "sign" and self.text in ("*", "//") and not isinstance(out, float):
            if self.skip("*"):
                out = out * self.factor(depth)
                continue
            self.advance()
            at, divisor = self.at, self.number()
            if not isinstance(divisor, int) or divisor < 1:
                raise Malformed("dims are divided by positive integers only", at)
            out = floordiv(out, divisor)
        return out

    def factor(self, depth: int, floats: bool = False) -> Any:
        if depth >= NESTING + 2:
            raise Malformed(f"dims are nested more than {NESTING} deep", self.at)
        if self.kind == "number":
            at, number = self.at, self.number()
            if isinstance(number, float) and not floats:
                raise Malformed("a dim is made of whole numbers", at)
            return number
        if self.skip("("):
            inside = self.dim(depth + 1)
            self.take(")")
            return inside
        name = self.name("a value")
        if name in _WORDS:
            raise Malformed(f"`{name}` is no dim", self.at)
        if name not in ("min", "max") or not self.skip("("):
            return symbol(name)
        parts = [self.dim(depth + 1)]
        while self.skip(","):
            parts.append(self.dim(depth + 1))
        self.take(")")
        return extremum(name, tuple(parts))

    def number(self) -> int | float:
        at, text = self.at, self.text
        if self.kind != "number":
            self.fail("a number")
        if len(text) > DIGITS:
            raise Malformed(f"a number has more than {DIGITS} digits", at)
        self.advance()
        if text.isdigit():
            return int(text)
        number = float(text)
        if not math.isfinite(number):
            raise Malformed("the number is out of range", at)
        return number
