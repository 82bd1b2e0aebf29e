"""How diagnostics look, in a terminal and as JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from graphir.lang.diagnostic import Diagnostic, Label
from graphir.lang.render import SCHEMA, render, to_dict, to_json
from graphir.lang.source import Place, Source, Span


def span(source: Source, text: str, nth: int = 0) -> Span:
    at = -1
    for _ in range(nth + 1):
        at = source.text.index(text, at + 1)
    return Span(source, at, at + len(text))


def test_the_example_of_the_language():
    line = "  return tokens -> emb -> layers -> rmsnorm -> linear(1024) -> emb.T"
    source = Source("lfm2.arch", "\n" * 8 + line + "\n")
    told = Diagnostic(
        "E0203",
        "shapes differ across `->`",
        span(source, "linear(1024)"),
        "gives [B, T, 1024]",
        (Label(span(source, "emb.T"), "takes [B, T, 2048]"),),
        ("`d` is 2048 from `model LFM2(d = 2048)` at lfm2.arch:2:27",),
        ("write `~>` to let the compiler insert a stitch",),
    )
    assert render([told]) == f"""\
error[E0203]: shapes differ across `->`
  --> lfm2.arch:9:48
  |
9 | {line}
  |                                                ^^^^^^^^^^^^    ----- takes [B, T, 2048]
  |                                                gives [B, T, 1024]
  = note: `d` is 2048 from `model LFM2(d = 2048)` at lfm2.arch:2:27
  = help: write `~>` to let the compiler insert a stitch

1 error
"""


def test_labels_on_other_lines_and_in_other_files():
    source, library = Source("a.arch", "one\ntwo\nthree\nfour\n"), Source("std/x.arch", "\tdeep\n")
    told = Diagnostic(
        "E0101", "no", span(source, "four"), "here", (Label(span(source, "one"), "there"), Label(span(library, "deep"), "and there"))
    )
    assert render([told]) == """\
error[E0101]: no
  --> a.arch:4:1
  |
1 | one
  | --- there
...
4 | four
  | ^^^^ here
  ::: std/x.arch:1:2
  |
1 |     deep
  |     ---- and there

1 error
"""


def test_tabs_and_wide_characters_keep_carets_below():
    source = Source("t", '\ta = "文字" + é + x\n')
    rows = render([Diagnostic("E0106", "no", span(source, "x"))]).splitlines()
    assert rows[3] == '1 |     a = "文字" + é + x'
    # two cells for each of 文 and 字
    assert rows[4] == "  | " + " " * 21 + "^"


def test_places_and_nothing():
    assert render([Diagnostic("E0901", "no", Place("g.txt", 3, 4))]) == "error[E0901]: no\n  --> g.txt:3:4\n\n1 error\n"
    three = [Diagnostic("E0801", "no", severity="warning"), Diagnostic("E0801", "no"), Diagnostic("E0801", "no")]
    assert render(three).endswith("\n\n1 warning, 2 errors\n")
    assert render([]) == ""


def test_a_span_over_lines_and_one_past_the_end():
    source = Source("t", "f(1,\n  2)\n")
    assert "1 | f(1,\n  | ^^^^\n" in render([Diagnostic("E0303", "no", Span(source, 0, 9))])
    assert "  |     ^\n" in render([Diagnostic("E0107", "no", Span(source, 4, 4))])
    assert "3 |\n  | ^\n" in render([Diagnostic("E0107", "no", Span(source, 10, 10))])


def test_long_lines_are_cut_around_the_cause():
    source = Source("t", "a" * 5000 + "X" + "b" * 5000)
    rows = render([Diagnostic("E0101", "no", span(source, "X"), "here")], width=80).splitlines()
    assert all(len(row) <= 80 for row in rows)
    assert rows[3].index("X") == rows[4].index("^")


def test_text_from_files_cannot_steer_the_terminal():
    source = Source("t\x1b[2J", "a \x1b[31m b\n")
    told = Diagnostic("E0301", "`\x1b[2J` is not known", span(source, "b"), "\x07", notes=("\u202e",))
    assert "\x1b" not in render([told])
    assert "\x07" not in render([told])
    assert "\u202e" not in render([told])


def test_colors():
    source = Source("t", "abc\n")
    told = Diagnostic("E0301", "no", span(source, "b"), "here", help=("do",))
    painted = render([told], color=True)
    assert "\x1b[1;31m^\x1b[0m" in painted
    plain = painted
    for code in ("1;31", "1;33", "1;32", "1;36", "1;34", "1", "0"):
        plain = plain.replace(f"\x1b[{code}m", "")
    assert plain == render([told])


def test_json():
    source = Source("t", "abc\ndef\n")
    told = Diagnostic("E0301", "no", span(source, "ef"), "here", (Label(span(source, "abc"), "there"),), ("note",), ("help",))
    document = json.loads(to_json([told, Diagnostic("E0801", "no")]))
    assert document["schema"] == SCHEMA
    first, second = document["diagnostics"]
    assert first == to_dict(told)
    assert first["span"] == {"file": "t", "line": 2, "column": 2, "end_line": 2, "end_column": 4, "start": 5, "end": 7}
    assert first["labels"][0]["text"] == "there"
    assert second["span"] is None


@given(st.text(st.sampled_from(list("ab\t文é\u0301\n\r\x1b")), max_size=60), st.data())
def test_any_span_of_any_text_renders(text: str, data: st.DataObject):
    source = Source("t", text)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    told = Diagnostic("E0101", "no", Span(source, start, end), "here", (Label(Span(source, 0, len(text)), "there"),))
    shown = render([told], width=40)
    assert "^" in shown
    assert "\x1b" not in shown
