"""The parse tables that are shipped are what Lark makes of the grammar, and they read what Lark reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphir.bricks.declare import REGISTRY
from graphir.elaborate.project import library
from graphir.lang import tables
from graphir.lang.parser import _chunks
from graphir.lang.scan import scan
from graphir.lang.source import Source
from graphir.lang.tree import grammar

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.arch"))


def by_lark(words, rule):
    parser, terminals = grammar()
    for word in words:
        word.type = terminals[word if word.kind == "mark" else word.kind]
    return parser.parse(words, start=rule)


def described(tree):
    """A tree as text: classes, fields, spans."""
    if isinstance(tree, tuple):
        return [described(part) for part in tree]
    if not hasattr(tree, "__dataclass_fields__"):
        return repr(tree)
    if not hasattr(tree, "span"):
        return str(tree)
    return [type(tree).__name__, str(tree.span), *(described(getattr(tree, f)) for f in tree.__dataclass_fields__ if f != "span")]


def test_the_file_is_what_lark_makes():
    written = json.loads(Path(tables.__file__).with_name("tables.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(tables.made())), "run `python -m graphir.lang.tables`"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_read_alike(path):
    for words in _chunks(scan(Source(path.name, path.read_text("utf-8"))).words):
        assert described(tables.run(words, "item")) == described(by_lark(words, "item"))


def test_the_library_and_the_headers_of_bricks_read_alike():
    for source, start, end in library().index.values():
        words = scan(source, start=start, end=end).words
        assert described(tables.run(words, "item")) == described(by_lark(words, "item"))
    for declaration in REGISTRY:
        words = scan(Source("header", declaration.header_text)).words
        assert described(tables.run(words, "header")) == described(by_lark(words, "header"))


REFUSED = [("", "item"), ("1 +", "expression"), ("a b", "expression"), ("f(x)", "header"), (")", "expression")]


@pytest.mark.parametrize(("text", "rule"), REFUSED)
def test_what_lark_refuses_is_unexpected(text, rule):
    with pytest.raises(tables.Unexpected):
        tables.run(scan(Source("t", text)).words, rule)
