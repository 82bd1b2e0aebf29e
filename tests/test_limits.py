"""A file from a stranger is refused in good time, with a diagnostic, before work is done. `tests/bench/limits.py` measures how fast."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import graphir
from graphir import GraphirError, Limits

from bombs import BOMBS, MODEL


def place(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / "main.arch"


@pytest.mark.parametrize("name", BOMBS)
def test_refused_with_a_diagnostic(name, tmp_path):
    files, code = BOMBS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    found = graphir.check(place(tmp_path, files))
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    assert code in {d.code for d in found}, [str(d) for d in found]
    assert all(d.help or d.notes or d.labels or d.span is not None for d in found)
    assert spent < 3, f"{spent:.2f} s of processor time"


@pytest.mark.parametrize("name", ["blocks that double 40 times", "a list of a billion", "10,000 nested brackets"])
def test_refused_by_the_command_within_little_memory(name, tmp_path):
    path = place(tmp_path, BOMBS[name][0])
    # A process starts with the peak memory of its parent, which is this test run: so a small process stands in between.
    check = [sys.executable, "-m", "graphir.cli.main", "check", str(path)]
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, *check], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert BOMBS[name][1] in done.stderr
    assert int(done.stdout) < 150 * 1024, f"{done.stdout.strip()} KiB"


@pytest.mark.parametrize("path", ["/dev/zero", "/", "missing.arch", "/dev/null"])
def test_what_is_no_file_is_refused(path):
    assert {d.code for d in graphir.check(os.fspath(path) if path.endswith(".arch") else Path(path))} == {"E0504"}


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.arch")
    assert [d.code for d in graphir.check(tmp_path / "pipe.arch")] == ["E0504"]


def test_links_out_of_the_project_are_refused(tmp_path):
    (tmp_path / "secret.arch").write_text("block S(x: [*S]) -> [*S] { return x -> id }\n")
    inside = tmp_path / "project"
    inside.mkdir()
    (inside / "link.arch").symlink_to(tmp_path / "secret.arch")
    (inside / "folder").symlink_to(tmp_path)
    for target in ("link.arch", "folder/secret.arch"):
        (inside / "main.arch").write_text(f'import "{target}" as s\n' + MODEL % "id")
        assert [d.code for d in graphir.check(inside / "main.arch")] == ["E0502"]


def test_text_imports_nothing_unless_a_root_is_given(tmp_path):
    (tmp_path / "part.arch").write_text("block F(x: [*S]) -> [*S] { return x -> relu }\n")
    text = 'import "part.arch" as p\n' + MODEL % "p.F"
    assert [d.code for d in graphir.check(text)] == ["E0502"]
    assert graphir.load(text, root=tmp_path).ops == {"relu": 1}


def test_the_host_may_raise_and_lower_limits():
    text = MODEL % "([linear(8)] * 50)"
    assert len(graphir.load(text).nodes) == 50
    with pytest.raises(GraphirError, match="E0606"):
        graphir.load(text, limits=Limits(nodes=49))
    with pytest.raises(GraphirError, match="E0610"):
        graphir.load(text, limits=Limits(parameters=50 * 72 - 1))
    assert graphir.load(text, limits=Limits(parameters=50 * 72)).parameters == 50 * 72


def test_a_large_model_within_the_limits_is_made_whole():
    """Large replays are only counted at first; a model that stays within the limits is then elaborated with every node."""
    text = "block A(x: [*S, d]) -> [*S, d] { return x -> ([linear(d), relu] * 600) }\n" + MODEL % "([A] * 9)"
    graph = graphir.load(text)
    assert len(graph.nodes) == 2 * 600 * 9
    assert graph.parameters == 600 * 9 * 72
    assert len({node.where.path for node in graph.nodes}) == len(graph.nodes)
