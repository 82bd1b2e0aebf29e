"""Text to tree: exact places, every syntax error of a file, and quick refusals of hostile text."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphir.lang import syntax as s
from graphir.lang.diagnostic import Diagnostic, GraphirError
from graphir.lang.files import read_source
from graphir.lang.limits import Limits
from graphir.lang.parser import index_items, parse, parse_expression, parse_header, parse_item
from graphir.lang.scan import scan
from graphir.lang.source import Source, Span
from graphir.lang.syntax_tools import children, same_tree
from graphir.lang.tree import grammar
from graphir.lang.words import RESERVED

from .texts import EXAMPLES, random_program

BODY = "model M(x: float[B, 8]) -> float[B, 8] {\n%s\n}\n"


def tree(text: str) -> s.Program:
    return parse(Source("t.arch", text))


def expression(text: str) -> s.Expr:
    return parse_expression(Source("e", text))


def errors(text: str, limits: Limits | None = None) -> list[tuple[str, str]]:
    """Code and text under the caret of each error."""
    with pytest.raises(GraphirError) as caught:
        parse(Source("t.arch", text), *([limits] if limits else []))
    return [(d.code, d.span.text if isinstance(d.span, Span) else "") for d in caught.value.diagnostics]


def everything(root: s.Tree) -> list[s.Tree]:
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children(found[-1])
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_parse_and_each_span_reads_back_as_its_tree(name: str):
    program = tree(EXAMPLES[name])
    kinds = (s.Name, s.Literal, s.Unary, s.Binary, s.IfElse, s.Pipe, s.Call, s.Attribute, s.Index, s.Branches, s.TupleOf, s.ListOf)
    for part in everything(program):
        if isinstance(part, kinds) and not isinstance(part, s.Index | s.Attribute):
            assert same_tree(parse_expression(Source("part", part.span.text)), part)
        if isinstance(part, s.Header):
            assert same_tree(parse_header(Source("part", part.span.text)), part)


def test_the_grammar_is_strictly_lalr():
    lark = pytest.importorskip("lark")
    text = (Path(__file__).parents[2] / "graphir/lang/grammar.lark").read_text(encoding="utf-8")
    strict = lark.Lark(text, parser="lalr", start=["start", "item", "header", "expression"], strict=True)
    for program in EXAMPLES.values():
        strict.parse(program, start="start")
    words = {t.pattern.value for t in strict.terminals if t.pattern.type == "str" and t.pattern.value.isalpha()}
    assert words == RESERVED


def test_the_scanner_knows_every_mark_of_the_grammar():
    _, terminals = grammar()
    marks = [text for text in terminals if text not in ("name", "int", "float", "string")]
    assert [str(w) for w in scan(Source("t", " ".join(m for m in marks if m not in "()[]{}"))).words if w.kind == "mark"] == [
        m for m in marks if m not in "()[]{}"
    ]


def test_headers_of_primitives():
    full = parse_header(Source("h", "linear(out, bias = true)(x: [*S, i]) -> [*S, out]"))
    assert [(f.name, f.default is None) for f in full.formals] == [("out", True), ("bias", False)]
    plain = parse_header(Source("h", "relu(x: any[*S]) -> [*S]"))
    assert plain.formals == ()
    assert plain.ports[0].type.dtype == "any"
    free = parse_header(Source("h", 'weight(shape, init = "zeros")() -> [*S]'))
    assert (len(free.formals), free.ports, free.results[0].name) == (2, (), "")


def test_trees():
    minus = expression("-5 ** 2")
    assert isinstance(minus, s.Unary)
    assert isinstance(minus.operand, s.Binary)
    pipe = expression("x -> f(1, k = none)[2] ~> g as part on mlx")
    assert isinstance(pipe, s.Pipe)
    assert pipe.arrows == ("->", "~>")
    on = pipe.stages[2]
    assert isinstance(on, s.On)
    assert isinstance(on.value, s.As)
    assert (on.backend, on.value.name) == ("mlx", "part")
    chain = expression("1 - 2 - 3")
    assert isinstance(chain, s.Binary)
    assert isinstance(chain.left, s.Binary)
    listed = expression("[a + b for a, b in pairs if a in [2, 5]]")
    assert isinstance(listed, s.Comprehension)
    assert listed.names == ("a", "b")
    assert isinstance(expression("(a, )"), s.TupleOf)
    span = expression("f((x -> g) + 1)")
    assert isinstance(span, s.Call)
    assert isinstance(span.arguments[0].value, s.Binary)
    assert span.arguments[0].value.left.span.text == "(x -> g)"


def test_doc_is_the_comment_directly_above():
    block, model = "block A(x: [*S]) -> [*S] { return x }\n", "model B(x: float[C]) -> float[C] { return x }\n"
    program = tree(f"# far\n\n# One.\n#  Two.\n{block}\n# far\n\n{model}")
    docs = [item.doc for item in program.items if isinstance(item, s.Block)]
    assert docs == ["One.\n Two.", ""]


def test_items_of_a_library_are_parsed_one_by_one():
    first, second = "block A(x: [*S]) -> [*S] { return x }\n", "block B(x: [*S]) -> [*S] {\n  return x -> A\n}\n"
    text = f"# A library.\nlet up(n) = n + 1\n\n# Adds.\n{first}\n{second}"
    source = Source("std/x.arch", text)
    found = index_items(source)
    assert list(found) == ["up", "A", "B"]
    block = parse_item(source, *found["A"])
    assert isinstance(block, s.Block)
    assert (block.doc, block.span.text) == ("Adds.", "block A(x: [*S]) -> [*S] { return x }")
    whole = {getattr(i, "name", "") or i.header.name: i for i in parse(source).items if isinstance(i, s.Let | s.Block)}
    assert all(same_tree(parse_item(source, *place), whole[name]) for name, place in found.items())


CASES = [
    ("  return x -> linear(1 2)", [("E0101", "2")]),
    ("  a = x ->\n  return x", [("E0101", "->")]),
    ("  retrun x", [("E0101", "retrun")]),
    ("  a = = 3\n  b = x -> f + 1\n  return (a b)", [("E0101", "="), ("E0102", "+"), ("E0101", "b")]),
    ("  return x + y -> f", [("E0102", "->")]),
    ("  return not x -> f", [("E0102", "->")]),
    ("  return x -> f if c else g", [("E0103", "if")]),
    ("  return 1 if c else x -> f", [("E0103", "->")]),
    ("  for = 3\n  return x.in", [("E0104", "for"), ("E0104", "in")]),
    ('  a = "abc\n  return x', [("E0105", '"abc')]),
    ("  return x → f; g", [("E0106", "→"), ("E0106", ";")]),
    ("  return f(x", [("E0107", "(")]),
    ("  return f[x)", [("E0107", ")")]),
    ("  return 12abc + 1. + .5", [("E0109", "12abc"), ("E0109", "1."), ("E0109", ".5")]),
]


@pytest.mark.parametrize(("body", "wanted"), CASES)
def test_each_error_at_its_place(body: str, wanted: list[tuple[str, str]]):
    assert errors(BODY % body) == wanted


def test_all_items_are_read_after_an_error():
    blocks = "modle A(x: [*S]) -> [*S] { return x x }\nblock B(x: [*S]) -> [*S] { return f(x }\n"
    text = blocks + BODY % "  return x ->" + "let a = \nlet b = 2 3\n"
    assert errors(text) == [("E0101", "modle"), ("E0101", "x"), ("E0107", "("), ("E0101", "->"), ("E0101", "="), ("E0101", "3")]


def test_unclosed_brackets_cite_both_places():
    with pytest.raises(GraphirError) as caught:
        tree("block A(x: [*S]) -> [*S] {\n  return x\n\nblock B(x: [*S]) -> [*S] { return x }\n")
    (told,) = caught.value.diagnostics
    assert (told.code, told.span and str(told.span), str(told.labels[0].span)) == ("E0107", "t.arch:1:26", "t.arch:4:1")


@pytest.mark.parametrize("text", ["", "  \n", "# only\n", "param n = 3\n"])
def test_nothing_to_compile(text: str):
    assert [code for code, _ in errors(text)] == ["E0108"]


def test_help_names_what_was_meant():
    with pytest.raises(GraphirError) as caught:
        tree("modle A(x: [*S]) -> [*S] { return x }")
    assert "`model`" in caught.value.diagnostics[0].help[0]
    with pytest.raises(GraphirError) as caught:
        tree(BODY % "  return x + y -> f")
    assert "(x + y) -> ..." in caught.value.diagnostics[0].help[0]


HOSTILE = [
    ("let a = " + "(" * 10_000, "E0603"),
    ("let a = " + "-" * 100_000 + "1", "E0603"),
    ("let a = " + "1 + " * 50_000 + "1", "E0603"),
    ("let a = f" + ".x" * 50_000, "E0603"),
    ("let a = f" + "(1)" * 50_000, "E0603"),
    ("let a = " + "f(1 + (1 + " * 31 + "1 +" * 150 + "1" + "))" * 31, "E0603"),
    ("let a = " + "1" * 5_000, "E0605"),
    ("let a = 1e400", "E0605"),
    ('let a = "' + "x" * 5_000 + '"', "E0605"),
    ("let " + "a" * 5_000 + " = 1", "E0604"),
    ("let a = 1\n" * 25_000, "E0602"),
    ("#" * 300_000, "E0601"),
    ("#" + "é" * 140_000, "E0601"),
    ("let a = 1 # \0", "E0106"),
    ("\ufefflet a = 1", "E0106"),
    ("let a = 1 # \u202e reversed", "E0106"),
    ("let a = \ud800", "E0106"),
    ("let a = 1\rlet b = 2", "E0106"),
    ("}" * 50_000, "E0107"),
    ("$" * 50_000, "E0106"),
    ("model " * 20_000, "E0101"),
]


@pytest.mark.parametrize(("text", "code"), HOSTILE, ids=[f"{c}-{i}" for i, (_, c) in enumerate(HOSTILE)])
def test_hostile_text_is_refused_quickly(text: str, code: str):
    grammar()
    start = time.process_time()
    told = errors(text)
    assert time.process_time() - start < 3
    assert code in [c for c, _ in told]
    assert len(told) <= 60


def test_hosts_may_set_bounds():
    assert errors(BODY % "  return ((x))", Limits(nesting=2)) == [("E0603", "(")]
    assert errors("let abc = 1", Limits(identifier=2)) == [("E0604", "abc")]


BITS = [*"(){}[]=:,.+-*/\"#~ \n\0é'", "->", " if ", " model ", " in ", "1e9", " return "]


def damaged(text: str, choose: random.Random) -> str:
    """The text with a few mutations."""
    for _ in range(choose.randint(1, 3)):
        at = choose.randrange(len(text) + 1)
        kind = choose.randint(0, 4)
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            text = text[:at] + choose.choice(BITS) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at + choose.randint(1, 12) :]
        elif kind == 3:
            end = at + choose.randint(1, 40)
            text = text[:at] + text[at:end] * 2 + text[end:]
        else:
            end = at + choose.randint(1, 8)
            text = text[:at] + text[at:end][::-1] + text[end:]
    return text


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_programs_give_a_tree_or_diagnostics_inside_the_text(seed: int):
    choose = random.Random(seed)
    text = damaged(choose.choice([*EXAMPLES.values(), random_program(seed)]), choose)
    for told in diagnostics(lambda: tree(text)):
        for span in (told.span, *(label.span for label in told.labels)):
            assert isinstance(span, Span)
            assert 0 <= span.start <= span.end <= len(text)


def diagnostics(read: Callable[[], object]) -> tuple[Diagnostic, ...]:
    """What is told, or nothing where it can be read; any other exception is a failure."""
    try:
        read()
    except GraphirError as e:
        return e.diagnostics or (Diagnostic("", "an error that tells nothing"),)
    return ()


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(list("abx1.=()[]{}:,+-*>~#\"\n ")), max_size=60))
def test_noise_gives_a_tree_or_diagnostics(text: str):
    for told in diagnostics(lambda: expression(text)):
        assert told.code.startswith("E0")


def test_files(tmp_path: Path):
    def code(name: str | Path) -> tuple[str, str]:
        with pytest.raises(GraphirError) as caught:
            read_source(name)
        return caught.value.diagnostics[0].code, caught.value.diagnostics[0].message

    (tmp_path / "good.arch").write_bytes(b"let a = 1\r\n")
    (tmp_path / "latin.arch").write_bytes(b"# one\n# \xc3\xa9\xe9\n")
    (tmp_path / "nul.arch").write_bytes(b"let a\0")
    (tmp_path / "large.arch").write_bytes(b"#" * 300_000)
    assert read_source(tmp_path / "good.arch").text == "let a = 1\r\n"
    assert code(tmp_path)[0] == "E0504"
    assert code(tmp_path / "none.arch")[0] == "E0504"
    assert code("/dev/zero")[0] == "E0504"
    assert code("a\0b")[0] == "E0504"
    assert code(tmp_path / "latin.arch")[0] == "E0505"
    assert "line 2, column 4" in code(tmp_path / "latin.arch")[1]
    assert code(tmp_path / "nul.arch")[0] == "E0505"
    assert code(tmp_path / "large.arch")[0] == "E0601"
