"""The syntax tree of `.arch`: plain data with spans, made by the parser, read by the formatter and the elaborator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .source import Span


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    span: Span


# expressions


@dataclass(frozen=True, slots=True, eq=False)
class Name(Tree):
    id: str


@dataclass(frozen=True, slots=True, eq=False)
class Literal(Tree):
    """An integer, float, string, `true`, `false` or `none`."""

    value: int | float | str | bool | None


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Tree):
    """`-x` or `not x`."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Tree):
    """Arithmetic (`+ - * / // % **`), comparison (`== != < <= > >= in`) or logic (`and or`)."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True, eq=False)
class IfElse(Tree):
    """`then if condition else other`."""

    then: Expr
    condition: Expr
    other: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Pipe(Tree):
    """`stages[0] arrows[0] stages[1] ...`; each arrow is `->` or `~>`."""

    stages: tuple[Expr, ...]
    arrows: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Argument(Tree):
    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Call(Tree):
    callee: Expr
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Attribute(Tree):
    value: Expr
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Index(Tree):
    value: Expr
    index: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Branch(Tree):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Branches(Tree):
    """`callee { name: brick ... }`: a fork or a filter."""

    callee: Expr
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class On(Tree):
    value: Expr
    backend: str


@dataclass(frozen=True, slots=True, eq=False)
class As(Tree):
    value: Expr
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class TupleOf(Tree):
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ListOf(Tree):
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Comprehension(Tree):
    """`[item for names in source if condition]`."""

    item: Expr
    names: tuple[str, ...]
    source: Expr
    condition: Expr | None


@dataclass(frozen=True, slots=True, eq=False)
class Range(Tree):
    """`start..stop`, without `stop`."""

    start: Expr
    stop: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Everything(Tree):
    """`*` inside an index: every place of a list."""


@dataclass(frozen=True, slots=True, eq=False)
class GraftAt(Tree):
    """`at path: brick`; the path is a chain of `Name`, `Attribute` and `Index`."""

    path: Expr
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Graft(Tree):
    host: Expr
    edits: tuple[GraftAt, ...]


Expr: TypeAlias = (
    Name | Literal | Unary | Binary | IfElse | Pipe | Call | Attribute | Index | Branches | On | As | TupleOf | ListOf
    | Comprehension | Range | Everything | Graft
)


# types


@dataclass(frozen=True, slots=True, eq=False)
class Rest(Tree):
    """`*S` in a type: any run of axes."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class TypeOf(Tree):
    """`dtype[dims]`; `dtype` is None where the header leaves it out."""

    dtype: str | None
    dims: tuple[Expr | Rest, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Port(Tree):
    """A named tensor of a header. A single unnamed result has the name `""`."""

    name: str
    type: TypeOf


@dataclass(frozen=True, slots=True, eq=False)
class Formal(Tree):
    name: str
    default: Expr | None


# statements


@dataclass(frozen=True, slots=True, eq=False)
class Bind(Tree):
    names: tuple[str, ...]
    type: TypeOf | None
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Shared(Tree):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Return(Tree):
    values: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Require(Tree):
    condition: Expr
    message: str | None


Statement: TypeAlias = Bind | Shared | Return | Require


# files


@dataclass(frozen=True, slots=True, eq=False)
class Import(Tree):
    path: str
    alias: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Param(Tree):
    name: str
    default: Expr | None


@dataclass(frozen=True, slots=True, eq=False)
class Let(Tree):
    """`let name = value` (formals is None) or `let name(formals) = value`."""

    name: str
    formals: tuple[Formal, ...] | None
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Header(Tree):
    """`name(formals)(ports) -> results`: of a block, of a model and of a primitive's declaration."""

    name: str
    formals: tuple[Formal, ...]
    ports: tuple[Port, ...]
    results: tuple[Port, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Block(Tree):
    """A `block` or a `model` (`kind`). `doc` is the comment that stands directly above it."""

    kind: str
    header: Header
    body: tuple[Statement, ...]
    doc: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Program(Tree):
    imports: tuple[Import, ...]
    items: tuple[Param | Let | Block, ...]
