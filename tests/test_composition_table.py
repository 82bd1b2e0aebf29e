"""The table of docs/composition.md: every spelling in it elaborates, every test in it exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import graphir

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "composition.md").read_text("utf-8")
PRELUDE = re.search(r"^```arch\n(.*?)^```", PAGE, re.M | re.S)[1]
HEADER = ["mechanism", "`.arch` spelling", "formula", "source; differences", "test"]
CODE = re.compile(r"`([^`]+)`")


def rows():
    lines = [re.split(r"\s*\|\s*", line)[1:-1] for line in PAGE.splitlines() if line.startswith("|")]
    return [cells for cells in lines if cells != HEADER and set("".join(cells)) != {"-"}]


ROWS = rows()
SPELLINGS = [pytest.param(code, id=f"{row[0]}: {code}") for row in ROWS for code in CODE.findall(row[1])]
NAMED = sorted({code for row in ROWS for code in CODE.findall(row[4])})


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def program(spelling: str) -> str:
    """A spelling in a model: alone if it says `return`, behind `return` if it begins with `x`, else behind `return x ->`."""
    alone, named = re.search(r"\breturn\b", spelling), re.match(r"\(?x\b", spelling)
    body = spelling if alone else f"return {spelling}" if named else f"return x -> {spelling}"
    return f"{PRELUDE}\nmodel Spelling(x: float[B, T, 32]) -> [*R] {{ {body} }}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_rows_are_whole(row):
    assert len(row) == len(HEADER)
    assert CODE.findall(row[1]), "no spelling"
    assert CODE.findall(row[4]), "no test"
    assert row[3], "no source"
    assert "planned" not in " ".join(row).lower()


def test_rows_are_distinct():
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names)) > 90


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_elaborate(spelling):
    graph = graphir.load(program(spelling), "Spelling")
    assert graph.nodes


@pytest.mark.parametrize("name", NAMED)
def test_tests_exist(name):
    path, _, function = name.partition("::")
    assert function.startswith("test_")
    assert function in functions(path)
