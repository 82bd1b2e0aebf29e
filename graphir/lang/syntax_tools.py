"""Walks over syntax trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import syntax as s


def children(tree: s.Tree) -> Iterator[s.Tree]:
    """The trees directly below a tree, in the order of the text."""
    for name in tree.__dataclass_fields__:
        value = getattr(tree, name) if name != "span" else None
        if isinstance(value, s.Tree):
            yield value
        elif type(value) is tuple:
            yield from (v for v in value if isinstance(v, s.Tree))


def same_tree(a: Any, b: Any) -> bool:
    """Whether two trees say the same, wherever they stand."""
    pairs = [(a, b)]
    while pairs:
        left, right = pairs.pop()
        if type(left) is not type(right):
            return False
        if isinstance(left, s.Tree):
            pairs += [(getattr(left, n), getattr(right, n)) for n in left.__dataclass_fields__ if n not in ("span", "doc")]
        elif type(left) is tuple:
            if len(left) != len(right):
                return False
            pairs += zip(left, right)
        elif left != right:
            return False
    return True
