"""The canonical form: it is one, it says the same, and it loses no comment."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphir.lang.formatter import WIDTH, format_text
from graphir.lang.parser import parse
from graphir.lang.scan import scan
from graphir.lang.source import Source
from graphir.lang.syntax_tools import same_tree

from .texts import EXAMPLES, random_program


def formatted(text: str) -> str:
    return format_text(Source("t.arch", text))


def comments(text: str) -> Counter[str]:
    return Counter(c.rstrip() for c in scan(Source("t.arch", text)).comments)


def check(text: str) -> str:
    """The canonical form, after the properties that every canonical form has."""
    once = formatted(text)
    assert formatted(once) == once
    assert same_tree(parse(Source("a", text)), parse(Source("b", once)))
    assert comments(once) == comments(text)
    assert once.endswith("\n")
    assert not once.endswith("\n\n")
    assert "\n\n\n" not in once
    assert not re.search(r"[ \t\r]\n", once)
    return once


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str):
    once = check(EXAMPLES[name])
    assert all(len(line.split("  #")[0]) <= WIDTH for line in once.splitlines() if not line.startswith("#"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_programs(seed: int):
    check(random_program(seed))


BODY = "model M(x: float[B, 8]) -> float[B, 8] {\n%s\n}\n"
CASES = [
    ("  y=x->f\n  return   y", "  y = x -> f\n  return y"),
    ("  a=1+(2*3)\n\n\n\n  b=(1+2)*3\n  return x", "  a = 1 + 2 * 3\n\n  b = (1 + 2) * 3\n  return x"),
    ("  a = -(2 ** 3) ** -2\n  return x", "  a = -(2 ** 3) ** -2\n  return x"),
    ("  a = (x -> f) * (x -> g)\n  return ((a))", "  a = (x -> f) * (x -> g)\n  return a"),
    ("  a = 1.50 + 1e-5\n  return x", "  a = 1.50 + 1e-5\n  return x"),
    ("  a = x -> fork { a: f\n b: g } -> add\n  return a", "  a = x -> fork { a: f  b: g } -> add\n  return a"),
    (
        "  a = x -> fork {\n a: f\n b: g } -> add\n  return a",
        "  a = x -> fork {\n    a: f\n    b: g\n  } -> add\n  return a",
    ),
    ("  a = f # one\n  bcd = g # two\n  return x", "  a = f    # one\n  bcd = g  # two\n  return x"),
    ("  # above\n  return x # at the end\n  # below", "  # above\n  return x  # at the end\n  # below"),
    ("  return x -> # why\n  f", "  return x  # why\n    -> f"),
    ("  a = 1 + # why\n  2\n  return x", "  # why\n  a = 1 + 2\n  return x"),
    ("  a = f(1, # one\n  # before two\n  2)\n  return x", "  a = f(\n    1,  # one\n    # before two\n    2,\n  )\n  return x"),
    ("  return (f,)", "  return (f,)"),
    ('  return x -> f as "a b" as "g"', '  return x -> f as "a b" as g'),
    ("  a = not (p and q) or r\n  return x", "  a = not (p and q) or r\n  return x"),
    ("  a = (1 if p else 2) if q else 3\n  return x", "  a = (1 if p else 2) if q else 3\n  return x"),
]


@pytest.mark.parametrize(("before", "after"), CASES)
def test_forms(before: str, after: str):
    assert check(BODY % before) == BODY % after


def test_long_lines_break_in_a_stable_way():
    stage = "linear(some_width, bias = false)"
    text = BODY % f"  y = x -> {' -> '.join([stage] * 4)}\n  z = choose({', '.join([stage] * 5)})\n  return y"
    once = check(text)
    assert f"  y = x\n    -> {stage}\n" in once
    assert f"  z = choose(\n    {stage},\n" in once


def test_a_one_line_block_stays_and_items_stand_apart():
    one, model = "block A(x: [*S]) -> [*S] { return x }\n", "model C(x: float[B]) -> float[B] { return x }\n"
    block = "block B(x: [*S]) -> [*S] {\n  return x"
    assert check(f"{one}{block} }}\n{model}") == f"{one}\n{block}\n}}\n\n{model}"


def test_carriage_returns_go():
    assert check("# a\r\nblock A(x: [*S]) -> [*S] { return x } # b\r\n") == "# a\nblock A(x: [*S]) -> [*S] { return x }  # b\n"


def test_trees_that_differ_are_told_apart():
    one, two = (parse(Source("t", f"let a = {v}")) for v in ("1", "1.0"))
    assert not same_tree(one, two)
    assert not same_tree(one, parse(Source("t", "let b = 1")))
