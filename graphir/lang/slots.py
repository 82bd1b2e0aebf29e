"""Where comments can stay inside an expression, and which parts of a tree the formatter may put on several lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import syntax as s


def slots(tree: s.Tree) -> tuple[int, int, Sequence[s.Tree]]:
    """A stretch of text and the parts in it: a comment there and in no part has a line (or the end of one) when the tree is broken."""
    start, end = tree.span.start, tree.span.end
    match tree:
        case s.ListOf() | s.TupleOf():
            return start, end, tree.items
        case s.Call() if tree.arguments:
            return tree.callee.span.end, end, tree.arguments
        case s.Branches():
            return tree.callee.span.end, end, tree.branches
        case s.Graft():
            return tree.host.span.end, end, tree.edits
        case s.Pipe():
            return tree.stages[0].span.start, tree.stages[-1].span.end, tree.stages
        case _:
            return start, start, ()


def laid(tree: Any) -> Sequence[s.Tree]:
    """The parts that may stand on several lines of their own."""
    match tree:
        case s.Param():
            return [tree.default] if tree.default is not None else []
        case s.Block():
            return tree.body
        case s.Return():
            return tree.values
        case s.Require():
            return [tree.condition]
        case s.ListOf() | s.TupleOf():
            return tree.items
        case s.Call():
            return [tree.callee, *(a.value for a in tree.arguments)]
        case s.Branches():
            return [tree.callee, *(b.value for b in tree.branches)]
        case s.Graft():
            return [tree.host, *(e.value for e in tree.edits)]
        case s.Pipe():
            return tree.stages
        case s.Binary():
            return [tree.left, tree.right]
        case s.Unary():
            return [tree.operand]
        case s.IfElse():
            return [tree.then, tree.condition, tree.other]
        case s.Comprehension():
            return [tree.item, tree.source, *([tree.condition] if tree.condition is not None else [])]
        case s.Let() | s.Bind() | s.Shared() | s.Index() | s.Attribute() | s.On() | s.As():
            return [tree.value]
        case _:
            return []
