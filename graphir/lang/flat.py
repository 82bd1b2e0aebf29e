"""Syntax trees as text on one line, with the parentheses that the grammar needs and no others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from . import syntax as s
from .slots import laid
from .words import RESERVED, Word

EXPRESSION, CONDITION, OR, AND, NOT, TEST, SUM, PRODUCT, FACTOR, POWER, POSTFIX, ATOM = range(12)
# For each operator: its own level, and the levels that its sides must reach.
_BINARY = (
    {"or": (OR, OR, AND), "and": (AND, AND, NOT), "**": (POWER, POSTFIX, FACTOR)}
    | dict.fromkeys(("==", "!=", "<=", ">=", "<", ">", "in"), (TEST, SUM, SUM))
    | dict.fromkeys(("+", "-"), (SUM, SUM, PRODUCT))
    | dict.fromkeys(("*", "/", "//", "%"), (PRODUCT, PRODUCT, FACTOR))
)


def binary_level(op: str) -> tuple[int, int, int]:
    """The level of an operator and of its left and right side."""
    return _BINARY[op]


def level(tree: Any) -> int:
    """How tightly a tree binds: what stands where more is wanted needs parentheses."""
    if isinstance(tree, s.Pipe | s.Graft):
        return EXPRESSION
    if isinstance(tree, s.IfElse):
        return CONDITION
    if isinstance(tree, s.Binary):
        return _BINARY[tree.op][0]
    if isinstance(tree, s.Unary):
        return NOT if tree.op == "not" else FACTOR
    return ATOM


class Flat:
    """Callable: the text of an expression where `wanted` is the level that its place wants."""

    def __init__(self, words: Sequence[Word]):
        self.numbers = [w for w in words if w.kind == "float"]
        self.starts = [w.start for w in self.numbers]
        self.texts: dict[int, str] = {}
        self.held: dict[int, bool] = {}

    def __call__(self, tree: Any, wanted: int = EXPRESSION) -> str:
        text = self.texts.get(id(tree))
        if text is None:
            text = self.texts[id(tree)] = self._text(tree)
        return f"({text})" if level(tree) < wanted else text

    def holds(self, tree: s.Tree, what: Callable[[s.Tree], bool]) -> bool:
        """Whether the tree or a part that may stand on lines of its own is `what` (always asked with the same function)."""
        known = self.held.get(id(tree))
        if known is None:
            known = self.held[id(tree)] = what(tree) or any(self.holds(part, what) for part in laid(tree))
        return known

    def _text(self, tree: Any) -> str:
        match tree:
            case s.Name():
                return tree.id
            case s.Literal():
                return self._literal(tree)
            case s.Unary():
                return f"not {self(tree.operand, NOT)}" if tree.op == "not" else f"-{self(tree.operand, FACTOR)}"
            case s.Binary():
                _, left, right = _BINARY[tree.op]
                return f"{self(tree.left, left)} {tree.op} {self(tree.right, right)}"
            case s.IfElse():
                return f"{self(tree.then, OR)} if {self(tree.condition, OR)} else {self(tree.other, CONDITION)}"
            case s.Pipe():
                rest = (f" {arrow} {self(stage, POSTFIX)}" for arrow, stage in zip(tree.arrows, tree.stages[1:]))
                return self(tree.stages[0], POSTFIX) + "".join(rest)
            case s.Call():
                return f"{self(tree.callee, POSTFIX)}({', '.join(map(self.argument, tree.arguments))})"
            case s.Attribute():
                return f"{self(tree.value, POSTFIX)}.{tree.name}"
            case s.Index():
                return f"{self(tree.value, POSTFIX)}[{self(tree.index)}]"
            case s.Branches():
                inside = "  ".join(f"{b.name}: {self(b.value)}" for b in tree.branches)
                return f"{self(tree.callee, POSTFIX)} {{ {inside} }}"
            case s.On():
                return f"{self(tree.value, POSTFIX)} on {tree.backend}"
            case s.As():
                plain = tree.name.isidentifier() and tree.name.isascii() and tree.name not in RESERVED
                return f"{self(tree.value, POSTFIX)} as " + (tree.name if plain else f'"{tree.name}"')
            case s.TupleOf():
                return f"({', '.join(map(self, tree.items))}{',' * (len(tree.items) == 1)})"
            case s.ListOf():
                return f"[{', '.join(map(self, tree.items))}]"
            case s.Comprehension():
                condition = f" if {self(tree.condition, OR)}" if tree.condition is not None else ""
                return f"[{self(tree.item)} for {', '.join(tree.names)} in {self(tree.source, SUM)}{condition}]"
            case s.Range():
                return f"{self(tree.start, SUM)}..{self(tree.stop, SUM)}"
            case s.Everything():
                return "*"
            case s.Graft():
                edits = " ".join(f"at {self(e.path)}: {self(e.value)}" for e in tree.edits)
                return f"graft {self(tree.host, POSTFIX)} {{ {edits} }}"
            case s.Rest():
                return f"*{tree.name}"
        raise AssertionError(f"no text for {type(tree).__name__}")

    def _literal(self, tree: s.Literal) -> str:
        value = tree.value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            # As written: 1e-5 stays 1e-5.
            return str(self.numbers[bisect_left(self.starts, tree.span.start)])
        return "none" if value is None else f'"{value}"' if isinstance(value, str) else str(value)

    def argument(self, argument: s.Argument) -> str:
        return f"{argument.name} = {self(argument.value)}" if argument.name else self(argument.value)

    def formal(self, formal: s.Formal) -> str:
        return f"{formal.name} = {self(formal.default)}" if formal.default is not None else formal.name

    def type(self, type: s.TypeOf) -> str:
        return f"{type.dtype or ''}[{', '.join(self(d, SUM) for d in type.dims)}]"

    def port(self, port: s.Port) -> str:
        return f"{port.name}: {self.type(port.type)}" if port.name else self.type(port.type)

    def results(self, results: Sequence[s.Port]) -> str:
        return self.port(results[0]) if len(results) == 1 and not results[0].name else f"({', '.join(map(self.port, results))})"

    def statement(self, statement: s.Statement) -> str:
        match statement:
            case s.Bind():
                typed = f": {self.type(statement.type)}" if statement.type else ""
                return f"{', '.join(statement.names)}{typed} = {self(statement.value)}"
            case s.Shared():
                return f"shared {statement.name} = {self(statement.value)}"
            case s.Return():
                return f"return {', '.join(map(self, statement.values))}"
            case s.Require():
                message = f' "{statement.message}"' if statement.message is not None else ""
                return f"require {self(statement.condition, CONDITION)}{message}"
