"""Findings of a review, each with the program or the command that showed it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

import graphir
from graphir.cli.main import run

ODDS = str(Path(__file__).parent.parent / "examples" / "odds.arch")
SMALL = "model M(d = 3)(x: float[B, d]) -> float[B, 2] { return x -> linear(2) }\n"


def codes(program: str, **params) -> list[str]:
    return [d.code for d in graphir.check(program, **params)]


def body(brick: str) -> str:
    return f"model M(x: float[B, 3]) -> float[B, 3] {{ return x -> {brick} }}\n"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.arch"
    path.write_text(SMALL)
    return str(path)


def config_of_another_kind(folder: Path, text: str, graph: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_text("years of work")
    if graph:
        (folder / "graph.gir").write_text("")


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        ('{"model_type": "llama"}', False),
        ('{"model_type": "llama"}', True),
        ('{"format": 1, "versions": {"graphir": "0"}}', False),
        ('{"format": 1, "versions": {"torch": "2"}}', True),
        ("[1]", True),
        ("not json", True),
    ],
)
def test_a_folder_that_others_wrote_stays(small, tmp_path, capsys, text, graph):
    config_of_another_kind(tmp_path / "llama", text, graph)
    assert run(["compile", small, "-o", str(tmp_path / "llama")]) == 1
    assert "E0506" in capsys.readouterr().err
    assert (tmp_path / "llama" / "model.safetensors").read_text() == "years of work"


@pytest.mark.parametrize("problem", [OSError("disk"), KeyboardInterrupt()])
def test_an_interrupted_replacement_leaves_the_old_folder(small, tmp_path, monkeypatch, problem):
    out = tmp_path / "out"
    assert run(["compile", small, "-o", str(out)]) == 0
    real, calls = os.replace, []

    def replace(old, new):
        if Path(old).name == "new":
            calls.append(old)
            raise problem
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    assert run(["compile", small, "-o", str(out), "--set", "d=4"]) != 0
    monkeypatch.undo()
    assert calls
    assert json.loads((out / "config.json").read_text())["parameters"] == {"d": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "small.arch"]
    assert run(["compile", small, "-o", str(out), "--set", "d=4"]) == 0
    assert json.loads((out / "config.json").read_text())["parameters"] == {"d": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "small.arch"]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("model M(ks = [2, 3])(x: float[B, ks[3]]) -> float[B, 1] { return x -> linear(1) }\n", "E0403"),
        ("model M(ks = 3)(x: float[B, ks[0]]) -> float[B, 1] { return x -> linear(1) }\n", "E0404"),
        ("model M(ks = [3])(x: float[B, ks[0.5]]) -> float[B, 1] { return x -> linear(1) }\n", "E0404"),
        ("block Q(S = 2)(x: [*S, d]) -> [*S, d] { return x -> relu }\n" + body("Q()"), "E0308"),
        ("model M(x: float[B, 2]) -> (a: float[B, 2], a: float[B, 2]) { return x, x }\n", "E0308"),
        (body("rearrange(5)"), "E0404"),
        (body("repeat([1])"), "E0404"),
        (body("reduce(none)"), "E0404"),
        (body('rearrange("b d -> d b", sizes = 5)'), "E0404"),
        (body("einsum(none)"), "E0404"),
        (body("shift(by = none)"), "E0404"),
        (body("scale(factor = none)"), "E0404"),
        (body("power(exponent = none)"), "E0404"),
    ],
)
def test_what_was_a_traceback_or_passed_is_a_diagnostic(program, code):
    assert code in codes(program)


def test_a_parameter_from_outside_may_index_wrongly():
    assert codes(SMALL, d="[1, 2][5]") == ["E0404"]
    assert codes(SMALL, d="[1, 2][1]") == []


def test_a_clamp_may_leave_a_bound_out():
    assert codes(body("clamp(low = 0.0)")) == []


def test_an_import_with_a_name_too_long_is_a_diagnostic(tmp_path):
    path = tmp_path / "a.arch"
    path.write_text(f'import "{"a" * 300}.arch" as q\n{SMALL}')
    assert codes(path) == ["E0501"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--set-dim", "B=\u00b2"],
        ["show", "--depth", "\u00b2", "-o", "-"],
        ["show", "--depth", "9" * 5000, "-o", "-"],
        ["run", "--seed", "-1"],
        ["run", "--seed", "9" * 40],
        ["compile", "--seed", "9" * 40],
        ["summary", "--depth", "0"],
        ["summary", "--depth", "-1"],
    ],
)
def test_numbers_that_make_no_sense_are_usage_errors(arguments, small, capsys):
    assert run([arguments[0], small, *arguments[1:]]) == 2
    assert "Invalid value" in capsys.readouterr().err


def test_the_largest_seed_works(small):
    assert run(["run", small, "--seed", str(2**63 - 1)]) == 0


def test_passes_and_rules_to_watch_must_exist(small, capsys):
    assert run(["compile", small, "--print-after", "simplfy"]) == 1
    said = capsys.readouterr().err
    assert "E0902" in said
    assert "`simplify`" in said
    assert run(["compile", small, "--explain-rule", "norm_of_a_sum_is_one_nod_with_it"]) == 1
    said = capsys.readouterr().err
    assert "E0902" in said
    assert "`norm_of_a_sum_is_one_node_with_it`" in said
    assert run(["compile", small, "--print-after", "all", "--explain-rule", "*"]) == 0
    assert run(["compile", small, "--explain-rule", "norm of a sum is one node with it"]) == 0


def test_refusals_are_printed(tmp_path, capsys):
    path = tmp_path / "a.arch"
    path.write_text(body("rmsnorm -> linear(3)"))
    assert run(["compile", str(path), "--passes", "fold{norms=true,mode=train}", "--explain-rule", "*"]) == 0
    assert "scale_of_a_norm_moves_into_the_linears_after_it not at" in capsys.readouterr().err


def test_check_gives_parameters_to_the_files_that_have_them(small, tmp_path, capsys):
    other = tmp_path / "other.arch"
    other.write_text(body("relu") + "model N(d = 1)(x: float[B, d]) -> float[B, d] { return x }\n" + body("relu").replace("M", "L"))
    plain = tmp_path / "plain.arch"
    plain.write_text(body("relu"))
    files = [small, str(other), str(plain)]
    assert run(["check", *files, "--set", "d=4"]) == 0
    assert run(["check", *files, "--set", "d=0.5"]) == 1
    assert run(["check", *files, "--set", "nope=4"]) == 1
    assert "E0408" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["self", "aux", "torch", "lambda"])
def test_inputs_of_any_name_run(name, tmp_path, capsys):
    path = tmp_path / "a.arch"
    path.write_text(f"model M({name}: float[B, 2]) -> float[B, 2] {{ return {name} -> relu }}\n")
    assert run(["run", str(path)]) == 0
    assert "output: float32[" in capsys.readouterr().out


TOKENS = "model M(t: int[B, T]) -> float[B, T, 7] { return t -> embedding(7, 4) -> linear(7) on inductor }\n"


def test_generation_says_what_moved_as_a_note_and_knows_strict(tmp_path, capsys):
    path = tmp_path / "a.arch"
    path.write_text(TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(["run", str(path), "--generate", "2"]) == 0
        assert "note[E0830]" in capsys.readouterr().err
        assert run(["run", str(path), "--generate", "2", "--strict"]) == 1
    assert "error[E0830]" in capsys.readouterr().err
