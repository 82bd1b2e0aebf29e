"""The command line as its users meet it: outputs, exit codes, whole files or none, no tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import graphir
from graphir.cli.main import run

EXAMPLES = Path(__file__).parent.parent / "examples"
ODDS = str(EXAMPLES / "odds.arch")
WRONG = "model M(x: float[B, 8]) -> float[B, 4] { return x -> lineer(4) }\n"


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.arch"
    path.write_text(WRONG)
    return str(path)


def test_check_says_nothing_wrong_and_exits_0(capsys):
    assert run(["check", ODDS]) == 0
    assert "nothing wrong" in capsys.readouterr().err


def test_check_shows_the_line_and_exits_1(wrong, capsys):
    assert run(["check", wrong]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "error[E0301]" in said.err
    assert "^^^^^^" in said.err
    assert "did you mean `linear`" in said.err


def test_check_json_is_one_document(wrong, capsys):
    assert run(["check", "--json", wrong, ODDS]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [d["code"] for d in found["diagnostics"]] == ["E0301"]


def test_usage_errors_exit_2(capsys):
    assert run(["frobnicate"]) == 2
    assert run(["check"]) == 2
    assert run(["compile", ODDS, "--set", "width"]) == 2
    assert run(["chek", ODDS]) == 2
    assert "check" in capsys.readouterr().err


def test_cuda_where_there_is_none_exits_3(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for command in (["compile", ODDS, "--target", "cuda"], ["run", ODDS, "--target", "cuda"]):
        assert run(command) == 3
        assert "no CUDA device" in capsys.readouterr().err


def test_compile_writes_a_folder_that_opens(tmp_path, capsys):
    folder = tmp_path / "odds"
    assert run(["compile", ODDS, "-o", str(folder), "--set", "width=6", "--seed", "3"]) == 0
    assert "Parameters" in capsys.readouterr().out
    assert {p.name for p in folder.iterdir()} == {"config.json", "graph.gir", "weights.safetensors", "program", "summary.txt", "graph.svg"}
    net = graphir.open(folder)
    x = torch.rand(5, 8)
    assert torch.equal(net(x), graphir.compile(graphir.load(ODDS, width=6), seed=3)(x))
    assert graphir.load(folder / "program" / "odds.arch", width=6).key == graphir.load(ODDS, width=6).key
    assert run(["compile", ODDS, "-o", str(folder)]) == 0, "a folder that an earlier compile wrote is replaced"


def test_compile_does_not_overwrite_what_it_did_not_write(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert run(["compile", ODDS, "-o", str(tmp_path / "mine")]) == 1
    assert "E0506" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_failed_compile_leaves_nothing(tmp_path, wrong):
    assert run(["compile", wrong, "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert run(["show", wrong, "-o", str(tmp_path / "out.svg")]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wrong.arch"]


@pytest.mark.parametrize(
    ("form", "marker"), [("graph", "gir 1"), ("dot", "digraph"), ("svg", "<svg"), ("fx", "class "), ("python", "import torch")]
)
def test_emit(form, marker, tmp_path):
    path = tmp_path / "out"
    assert run(["compile", ODDS, "--emit", form, "-o", str(path)]) == 0
    assert marker in path.read_text()


def test_emit_pt2(tmp_path):
    path = tmp_path / "odds.pt2"
    assert run(["compile", ODDS, "--emit", "pt2", "--seed", "1", "-o", str(path)]) == 0
    exported = torch.export.load(path).module()
    x = torch.rand(7, 8)
    assert torch.allclose(exported(x), graphir.compile(ODDS, seed=1)(x), atol=1e-6)


def test_a_dump_is_a_program_too(tmp_path, capsys):
    assert run(["compile", ODDS, "--emit", "graph", "-o", str(tmp_path / "odds.gir")]) == 0
    assert run(["summary", str(tmp_path / "odds.gir")]) == 0
    assert "135" in capsys.readouterr().out


def test_run_with_files_in_and_out(tmp_path, capsys):
    x = torch.rand(3, 8)
    save_file({"x": x}, tmp_path / "x.safetensors")
    net = graphir.compile(ODDS, seed=5)
    save_file({n: t.clone() for n, t in net.state_dict().items()}, tmp_path / "w.safetensors")
    arguments = [
        "run",
        ODDS,
        "--input",
        str(tmp_path / "x.safetensors"),
        "--weights",
        str(tmp_path / "w.safetensors"),
        "-o",
        str(tmp_path / "y.safetensors"),
    ]
    assert run(arguments) == 0
    assert torch.allclose(load_file(tmp_path / "y.safetensors")["output"], net(x), atol=1e-6)
    assert "output: float32[3, 1]" in capsys.readouterr().out


def test_run_draws_inputs_that_the_model_can_take(capsys):
    assert run(["run", str(EXAMPLES / "depths.arch"), "--set", "d=32,n=1,vocab=7", "--trace"]) == 0
    said = capsys.readouterr()
    assert "tokens: int64[2, 16]" in said.err
    assert "us  embedding" in said.out
    assert run(["run", str(EXAMPLES / "depths.arch"), "--set", "d=32,n=1", "--set-dim", "T=9"]) == 1
    assert "E0804" in capsys.readouterr().err


def test_weights_of_another_model_are_listed_and_refused(tmp_path, capsys):
    save_file({"linear.weight": torch.zeros(2, 2), "strange": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert run(["run", ODDS, "--weights", str(tmp_path / "w.safetensors")]) == 1
    said = capsys.readouterr().err
    assert "E0801" in said
    assert "strange" in said
    assert "filter.router.linear.weight" in said


def test_standard_input_and_output():
    done = subprocess.run(
        [sys.executable, "-m", "graphir.cli.main", "fmt", "-"],
        input="model  M(x:float[B,8])->float[B,4]{return x->linear(4)}",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "model M(x: float[B, 8]) -> float[B, 4] { return x -> linear(4) }\n" or done.stdout.startswith(
        "model M(x: float[B, 8]) -> float[B, 4] {\n"
    )


def test_fmt_changes_a_file_and_check_tells(tmp_path):
    path = tmp_path / "a.arch"
    path.write_text("model  M(x:float[B,8])->float[B,4]{return x->linear(4)}")
    assert run(["fmt", "--check", str(path)]) == 1
    assert run(["fmt", str(path)]) == 0
    assert run(["fmt", "--check", str(path)]) == 0


def test_explain_and_bricks(capsys):
    assert run(["explain", "E0203"]) == 0
    assert "->" in capsys.readouterr().out
    assert run(["explain", "E9999"]) == 1
    capsys.readouterr()
    assert run(["bricks"]) == 0
    assert "Attention" in capsys.readouterr().out
    assert run(["bricks", "linear"]) == 0
    assert "weight: [out, i]" in capsys.readouterr().out
    assert run(["bricks", "lineer"]) == 1


def test_unwritable_paths_are_diagnostics(capsys):
    assert run(["show", ODDS, "-o", "/proc/nowhere/x.svg"]) == 1
    assert "E0506" in capsys.readouterr().err
    assert run(["compile", ODDS, "-o", "/proc/nowhere/x"]) == 1
    assert "E0506" in capsys.readouterr().err


def test_passes_can_be_chosen_watched_and_misspelt(capsys):
    assert run(["compile", ODDS, "--passes", "stitch{form=mlp},share", "--time-passes", "--verify-each", "--diff", "--show-stitches"]) == 0
    said = capsys.readouterr()
    assert "stitch" in said.err
    assert "mlp" in said.out
    assert run(["compile", ODDS, "--passes", "stich"]) == 1
    assert "stitch" in capsys.readouterr().err


def test_completion_script(capsys):
    assert run(["completion", "bash"]) == 0
    assert "_GRAPHIR_COMPLETE" in capsys.readouterr().out
