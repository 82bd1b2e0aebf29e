"""From Lark's reductions to the syntax tree. Each method is a rule of grammar.lark and is called with all of its words and parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from . import syntax as s
from .source import Span
from .words import Word


@dataclass(frozen=True, slots=True, eq=False)
class Group(s.Tree):
    """A bracketed or bare list on its way into its parent."""

    items: tuple[Any, ...]


def _span(parts: list[Any]) -> Span:
    first, last = parts[0], parts[-1]
    if type(first) is Word:
        return Span(first.source, first.start, last.end if type(last) is Word else last.span.end)
    start = first.span
    return Span(start.source, start.start, last.end if type(last) is Word else last.span.end)


def _trees(parts: list[Any]) -> tuple[Any, ...]:
    return tuple(p for p in parts if type(p) is not Word)


def _names(parts: list[Any]) -> tuple[str, ...]:
    return tuple(str(p) for p in parts if type(p) is Word and p.kind == "name")


def _text(word: Word) -> str:
    return word[1:-1] if word.kind == "string" else str(word)


def _literal(word: Word) -> Any:
    if word.kind == "int":
        return int(word)
    if word.kind == "float":
        return float(word)
    if word.kind == "string":
        return _text(word)
    return {"true": True, "false": False, "none": None}[word]


class Builder:
    """The callbacks."""

    # files

    def import_(self, parts: list[Any]) -> s.Import:
        return s.Import(_span(parts), _text(parts[1]), _text(parts[3]) if len(parts) > 2 else None)

    def param(self, parts: list[Any]) -> s.Param:
        return s.Param(_span(parts), _text(parts[1]), parts[3] if len(parts) > 2 else None)

    def let(self, parts: list[Any]) -> s.Let:
        formals = parts[2].items if isinstance(parts[2], Group) else None
        return s.Let(_span(parts), _text(parts[1]), formals, parts[-1])

    def block(self, parts: list[Any]) -> s.Block:
        return s.Block(_span(parts), _text(parts[0]), parts[1], _trees(parts[2:]))

    # headers

    def header(self, parts: list[Any]) -> s.Header:
        formals = parts[1].items if len(parts) > 4 else ()
        result = parts[-1]
        results = result.items if isinstance(result, Group) else (s.Port(result.span, "", result),)
        return s.Header(_span(parts), _text(parts[0]), formals, parts[-3].items, results)

    def formals(self, parts: list[Any]) -> Group:
        return Group(_span(parts), _trees(parts))

    ports = formals

    def formal(self, parts: list[Any]) -> s.Formal:
        return s.Formal(_span(parts), _text(parts[0]), parts[2] if len(parts) > 1 else None)

    def port(self, parts: list[Any]) -> s.Port:
        return s.Port(_span(parts), _text(parts[0]), parts[2])

    def type(self, parts: list[Any]) -> s.TypeOf:
        return s.TypeOf(_span(parts), _text(parts[0]) if parts[0].kind == "name" else None, _trees(parts))

    def rest(self, parts: list[Any]) -> s.Rest:
        return s.Rest(_span(parts), _text(parts[1]))

    # statements

    def names(self, parts: list[Any]) -> Group:
        return Group(_span(parts), _names(parts))

    def bind(self, parts: list[Any]) -> s.Bind:
        return s.Bind(_span(parts), parts[0].items, parts[2] if len(parts) > 3 else None, parts[-1])

    def shared(self, parts: list[Any]) -> s.Shared:
        return s.Shared(_span(parts), _text(parts[1]), parts[3])

    def return_(self, parts: list[Any]) -> s.Return:
        return s.Return(_span(parts), _trees(parts))

    def require(self, parts: list[Any]) -> s.Require:
        return s.Require(_span(parts), parts[1], _text(parts[2]) if len(parts) > 2 else None)

    # expressions

    def pipe(self, parts: list[Any]) -> s.Pipe:
        return s.Pipe(_span(parts), tuple(parts[::2]), tuple(str(a) for a in parts[1::2]))

    def if_else(self, parts: list[Any]) -> s.IfElse:
        return s.IfElse(_span(parts), parts[0], parts[2], parts[4])

    def binary(self, parts: list[Any]) -> s.Binary:
        return s.Binary(_span(parts), _text(parts[1]), parts[0], parts[2])

    def unary(self, parts: list[Any]) -> s.Unary:
        return s.Unary(_span(parts), _text(parts[0]), parts[1])

    def attribute(self, parts: list[Any]) -> s.Attribute:
        return s.Attribute(_span(parts), parts[0], _text(parts[2]))

    def index_of(self, parts: list[Any]) -> s.Index:
        return s.Index(_span(parts), parts[0], parts[2])

    def call(self, parts: list[Any]) -> s.Call:
        return s.Call(_span(parts), parts[0], _trees(parts[1:]))

    def argument(self, parts: list[Any]) -> s.Argument:
        return s.Argument(_span(parts), _text(parts[0]) if len(parts) > 1 else None, parts[-1])

    def branches(self, parts: list[Any]) -> s.Branches:
        return s.Branches(_span(parts), parts[0], _trees(parts[1:]))

    def branch(self, parts: list[Any]) -> s.Branch:
        return s.Branch(_span(parts), _text(parts[0]), parts[2])

    def on(self, parts: list[Any]) -> s.On:
        return s.On(_span(parts), parts[0], _text(parts[2]))

    def as_(self, parts: list[Any]) -> s.As:
        return s.As(_span(parts), parts[0], _text(parts[2]))

    def range(self, parts: list[Any]) -> s.Range:
        return s.Range(_span(parts), parts[0], parts[2])

    def everything(self, parts: list[Any]) -> s.Everything:
        return s.Everything(_span(parts))

    def name(self, parts: list[Any]) -> s.Name:
        return s.Name(_span(parts), _text(parts[0]))

    def literal(self, parts: list[Any]) -> s.Literal:
        return s.Literal(_span(parts), _literal(parts[0]))

    def group(self, parts: list[Any]) -> s.Expr:
        """Parentheses leave no node; the span of what they hold grows over them."""
        return replace(parts[1], span=_span(parts))

    def tuple_of(self, parts: list[Any]) -> s.TupleOf:
        return s.TupleOf(_span(parts), _trees(parts))

    def list_of(self, parts: list[Any]) -> s.ListOf:
        return s.ListOf(_span(parts), _trees(parts))

    def comprehension(self, parts: list[Any]) -> s.Comprehension:
        return s.Comprehension(_span(parts), parts[1], parts[3].items, parts[5], parts[7] if len(parts) > 7 else None)

    def graft(self, parts: list[Any]) -> s.Graft:
        return s.Graft(_span(parts), parts[1], _trees(parts[2:]))

    def graft_at(self, parts: list[Any]) -> s.GraftAt:
        return s.GraftAt(_span(parts), parts[1], parts[3])


@cache
def grammar() -> tuple[Any, dict[str, str]]:
    """The Lark parser of words (about 0.1 s, once per process) and the name of the terminal of each mark and kind."""
    from importlib.resources import files

    import lark
    from lark.lexer import Lexer

    class Words(Lexer):
        def __init__(self, lexer_conf: Any):
            pass

        def lex(self, data: list[Word]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return iter(data)

    parser = lark.Lark(
        files("graphir.lang").joinpath("grammar.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer=Words,
        start=["item", "header", "expression"],
        keep_all_tokens=True,
        maybe_placeholders=False,
        transformer=Builder(),
    )
    terminals = {t.pattern.value: t.name for t in parser.terminals if t.pattern.type == "str"}
    return parser, terminals | {"name": "NAME", "int": "INT", "float": "FLOAT", "string": "STRING"}
