"""Pipelines as text: parse, print, and what is said of mistakes."""

from __future__ import annotations

import pytest

from graphir.lang.diagnostic import GraphirError
from graphir.passes import DEFAULT, INFER, INFER_FOLDED, PASSES, parse


@pytest.mark.parametrize(
    "text",
    [
        "stitch{form=mlp,init=zero},share,simplify", "share", "", "stitch{form=low-rank,rank=3}", "norm-fusion{affine=true}",
        DEFAULT, INFER, INFER_FOLDED,
    ],
)
def test_text_survives_a_round_trip(text):
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("  stitch { form = mlp } ,share ", "stitch{form=mlp},share"),
        ("stitch{}", "stitch"),
        ("stitch{form=linear}", "stitch"),
        ("share , share", "share,share"),
        ("stitch{form=mlp,}", "stitch{form=mlp}"),
    ],
)
def test_printing_is_canonical(text, printed):
    assert str(parse(text)) == printed


@pytest.mark.parametrize(
    ("text", "column", "message", "help"),
    [
        ("share,stich", 7, "there is no pass `stich`", "did you mean `stitch`?"),
        ("stitch{from=mlp}", 8, "pass `stitch` has no option `from`", "did you mean `form`?"),
        ("share{deep=true}", 7, "pass `share` has no option `deep`", "`share` takes no options"),
        ("stitch{form=mpl}", 13, "`form` is one of linear, mlp, low-rank, not `mpl`", "did you mean `mlp`?"),
        ("stitch{rank=many}", 13, "`rank` takes an integer, not `many`", ""),
        ("norm-fusion{affine=1}", 20, "`affine` takes true or false, not `1`", ""),
        ("stitch{rank=2,rank=3}", 15, "option `rank` is given twice", ""),
        ("share,", 7, "a pass is missing", ""),
        ("share simplify", 7, "expected `,`, not `simplify`", ""),
        ("stitch{form", 12, "expected `=`, not the end", ""),
        ("share;simplify", 6, "unexpected `;` in a pipeline", ""),
        ("stitch{form=mlp", 16, "expected `,`, not the end", ""),
    ],
)
def test_mistakes_are_told_with_their_place(text, column, message, help):
    with pytest.raises(GraphirError) as caught:
        parse(text)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "E0902"
    assert diagnostic.message == message
    assert diagnostic.span.column == column
    assert not help or help in diagnostic.help


def test_every_pass_says_what_it_does_in_a_line():
    for name, of in PASSES.items():
        assert of.name == name
        assert of.doc.endswith("."), name
        assert len(of.doc) < 120
        assert str(parse(name)) == name
