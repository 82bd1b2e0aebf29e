"""The summary table: its counts, its folding, its forms."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphir.ir.dims import symbol
from graphir.ir.graph import Graph, Precondition
from graphir.view import format
from graphir.view.scopes import Fold, Part, contents, tree
from graphir.view.summary import summary

from sketch import Sketch, layer, odds, stack, tensor


def rows(graph: Graph, **sizes: int) -> dict[str, object]:
    return {row.path: row for row in summary(graph, sizes).rows}


def shape_of(pieces) -> str:
    """A folded list as text: `(relu x7, tanh) x6`."""
    out = []
    for piece in pieces:
        if isinstance(piece, Fold):
            inner = shape_of(piece.unit)
            out.append(f"({inner}) x{piece.count}" if len(piece.unit) > 1 else f"{inner} x{piece.count}")
        else:
            out.append(next(node.op for node in piece.nodes if node.op in ("relu", "tanh", "silu")))
    return ", ".join(out)


def folded(kinds: list[str], owners: list[str | None] | None = None) -> str:
    (layers,) = [p for p in tree(stack(kinds, owners=owners or ())).folded if isinstance(p, Part) and p.path == "layers"]
    return shape_of(layers.folded)


def test_counts_of_odds() -> None:
    total = summary(odds(), {"B": 10})
    linears = 8 * 2 + 2 + 8 * 3 + 3 + 8 * 5 + 5 + 4 + 1
    stitches = 4 * 3 + 4 * 5
    assert total.parameters == linears + stitches == sum(row.parameters for row in total.rows if row.depth == 0)
    assert total.stitches == 2
    assert total.weight_bytes == 4 * total.parameters
    linear_flops = 2 * 10 * (8 * 2 + 8 * 3 + 8 * 5 + 4 * 1)
    assert rows(odds(), B=10)["router.linear"].flops == 2 * 10 * 8 * 2
    assert total.flops >= linear_flops


def test_flops_are_polynomials_until_sizes_are_given() -> None:
    b, t = symbol("B"), symbol("T")
    graph = stack(["relu"] * 3)
    up = rows(graph)["layers.0.mlp.up"]
    assert up.flops == 2 * b * t * 8 * 32
    assert rows(graph, B=2)["layers.0.mlp.up"].flops == 2 * 2 * t * 8 * 32
    assert summary(graph, {"B": 2, "T": 3}).flops == format.partial(summary(graph).flops, {"B": 2, "T": 3})
    assert isinstance(summary(graph, {"B": 2, "T": 3}).flops, int)


def test_shared_weights_count_once_at_their_first_use() -> None:
    graph = stack(["relu"] * 4, owners=["ffn"] * 4)
    table = rows(graph)
    assert table["emb"].parameters == 800
    assert table["emb"].shared == ()
    assert table["head"].parameters == 0
    assert table["head"].shared == ("emb.weight",)
    assert summary(graph).parameters == 800 + 4 * 8 + 2 * 8 * 32
    assert sum(row.parameters for row in table.values() if row.depth == 0) == summary(graph).parameters
    assert "(emb.weight)" in str(summary(graph))


def test_a_scope_that_brings_no_weights_of_its_own_says_whose_it_uses() -> None:
    table = rows(stack(["relu", "tanh"], owners=["ffn", "ffn"]))
    assert table["layers.0.mlp"].shared == ()
    assert table["layers.1.mlp"].shared == ("ffn",)


def test_frozen_and_buffers() -> None:
    sketch, x = Sketch(), tensor(symbol("B"), 4)
    y = sketch.linear("a", x, 4, frozen=True)
    graph = sketch.graph("Frozen", {"x": x}, {"y": sketch.linear("b", y, 2)})
    total = summary(graph)
    assert (total.parameters, total.frozen, total.trainable, total.buffers) == (24, 16, 8, 0)


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (["relu"] * 12, "relu x12"),
        ((["relu"] * 7 + ["tanh"]) * 6, "(relu x7, tanh) x6"),
        (["relu", "relu", "tanh"] * 3 + ["relu", "tanh"] * 3 + ["relu"], "(relu x2, tanh) x3, (relu, tanh) x3, relu"),
        (["relu", "tanh", "relu"] * 3, "(relu, tanh, relu) x3"),
        (["relu", "tanh", "silu"], "relu, tanh, silu"),
        (["relu"], "relu"),
    ],
)
def test_repeats_fold(kinds: list[str], wanted: str) -> None:
    assert folded(kinds) == wanted


def test_sharing_is_part_of_being_alike() -> None:
    assert folded(["relu"] * 4, ["a", "a", "a", "a"]) == "relu x4"
    assert folded(["relu"] * 4, ["a", "b", "a", "b"]) == "relu x2 x2"
    assert folded(["relu"] * 4, ["a", "a", "b", "c"]) == "relu x2, relu x2"


def test_wiring_is_part_of_being_alike() -> None:
    sketch, x = Sketch(), tensor(symbol("B"), 8)
    first = x
    for i in range(6):  # the fourth layer starts from the input again
        first = layer(sketch, f"layers.{i}", x if i == 3 else first, "relu", 8)
    root = tree(sketch.graph("Odd", {"x": x}, {"y": first}))
    assert [piece.count if isinstance(piece, Fold) else 1 for piece in root.children[0].folded] != [6]


def test_side_by_side_and_one_after_the_other() -> None:
    chain = tree(stack(["relu"] * 3)).children[1].folded[0]
    sketch, x = Sketch(), tensor(symbol("B"), 8)
    outs = [layer(sketch, f"experts.{i}", x, "relu", 8) for i in range(3)]
    wide = tree(sketch.graph("Wide", {"x": x}, {"y": sketch.one("add", "add", *outs)})).children[0].folded[0]
    assert chain.chained
    assert not wide.chained
    assert wide.count == 3


def test_a_list_is_no_level_of_its_own() -> None:
    assert [piece.path for piece in contents(tree(stack(["relu"] * 3)))] == ["emb", "layers.0-2", "head"]


def test_table() -> None:
    text = str(summary(stack(["relu"] * 12), {"B": 2, "T": 16}))
    assert text.startswith("Stack(tokens: int[B, T]) -> float[B, T, 100]  at B = 2, T = 16\n")
    assert "layers.0-11 ×12" in text
    assert "├─ mlp" in text
    assert "│  ├─ up" in text
    assert "up" not in summary(stack(["relu"] * 12)).render(1)
    wanted = f"{12 * (8 + 2 * 8 * 32):,}"
    assert any("×12" in line and wanted in line for line in text.splitlines())


def test_preconditions_are_listed() -> None:
    graph = stack(["relu"]).with_(requires=(Precondition(symbol("T"), "==", 0, 4, "four halvings"),))
    assert summary(graph).preconditions == ("T % 4 == 0: four halvings",)
    assert "T % 4 == 0" in str(summary(graph))


def test_json_html_and_rich() -> None:
    total = summary(stack(["relu"] * 3))
    data = json.loads(json.dumps(total.to_dict()))
    assert data["parameters"] == total.parameters
    assert "B*T" in data["flops"]
    assert {"path", "parameters", "flops", "state_bytes", "repeat"} <= set(data["rows"][1])
    assert "<table>" in total._repr_html_()
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(total.rich())
    assert "layers.0-2 ×3" in console.export_text()


def test_html_escapes_names() -> None:
    graph = stack(["relu"], name="<script>alert(1)</script>")
    assert "<script>" not in summary(graph)._repr_html_()


def test_numbers() -> None:
    assert [format.human(n) for n in (0, 999, 1000, 1234, 999_499)] == ["0", "999", "1K", "1.23K", "999K"]
    assert [format.human(n) for n in (999_500, 12_345_678)] == ["1M", "12.3M"]
    assert format.parameters(1_170_000_000) == "1.17B"
    b, t = symbol("B"), symbol("T")
    assert format.cost(2000 * b * t * t + 5 * b) == "2K·B·T² + 5·B"


def test_seventy_billion_parameters_in_no_time() -> None:
    graph = stack(["silu"] * 320, width=8192)
    began = time.perf_counter()
    text = str(summary(graph))
    assert time.perf_counter() - began < 5
    assert "×320" in text
    assert summary(graph).parameters > 7e10


def test_growth_is_linear() -> None:
    def seconds(n: int) -> float:  # of the walk itself: the collector looks at all objects that live, however many
        graph = stack(["relu", "tanh", "silu"] * (n // 3))
        gc.collect()
        best = 9.0
        for _ in range(3):
            began = time.perf_counter()
            tree(graph)
            best = min(best, time.perf_counter() - began)
        return best / n

    gc.disable()
    try:
        assert seconds(3000) < 3 * seconds(300)
    finally:
        gc.enable()


def test_torch_stays_out() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from sketch import stack; g = stack(['relu'] * 4); str(g.summary()); g.svg();"
        "assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True)
