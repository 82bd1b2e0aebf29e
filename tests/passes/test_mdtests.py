"""The Markdown suites beside this file: prose, a program, a pipeline, and what comes out. `pytest --update` rewrites the expected parts.

Each `##` heading is a test. Its fences are read by their label:

    arch    the program (or `before`: a graph as a dump)
    passes  the pipeline, on one line
    gir     expected: the graph afterwards; `unchanged` where it is the same object
    why     expected: the refusals that `--explain-rule '*'` collects, one a line
    error   expected: the diagnostics, one a line
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphir.ir.graph import Graph
from graphir.ir.text import read
from graphir.lang.diagnostic import GraphirError
from graphir.passes import Recipe, Statistics, run_pipeline

SUITES = sorted(Path(__file__).parent.glob("*.md"))
EXPECTED = ("gir", "why", "error", "recipes")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"^## .*$", re.MULTILINE)


def cases() -> list[tuple[Path, str]]:
    return [(suite, heading) for suite in SUITES for heading in _TEST.findall(suite.read_text(encoding="utf-8"))]


def section(text: str, heading: str) -> tuple[int, int]:
    """Where a test's text begins and ends."""
    start = re.search(rf"^{re.escape(heading)}$", text, re.MULTILINE)
    assert start is not None
    end = _TEST.search(text, start.end())
    return start.end(), end.start() if end else len(text)


def load(fences: dict[str, str]) -> Graph:
    if "before" in fences:
        return read(fences["before"])
    import graphir

    return graphir.load(fences["arch"])


def produce(fences: dict[str, str]) -> dict[str, str]:
    """What each expected fence should hold."""
    recipes: list[Recipe] = []
    statistics = Statistics()
    try:
        before = load(fences)
        after = run_pipeline(before, fences["passes"].strip(), [statistics], recipes=recipes, explain="*", crash_folder=None)
    except GraphirError as error:
        return {"error": "".join(f"{d}\n" for d in error.diagnostics)}
    return {
        "gir": "unchanged\n" if after is before else str(after),
        "why": "".join(f"{line}\n" for line in statistics.refusals),
        "recipes": "".join(f"{recipe}\n" for recipe in recipes),
    }


@pytest.mark.parametrize(("suite", "heading"), cases(), ids=lambda v: v.stem if isinstance(v, Path) else v.removeprefix("## "))
def test_suite(suite: Path, heading: str, request: pytest.FixtureRequest):
    text = suite.read_text(encoding="utf-8")
    start, end = section(text, heading)
    found = list(_FENCE.finditer(text, start, end))
    fences = {m[1]: m[2] for m in found}
    assert len(fences) == len(found), "two fences of one kind"
    wanted = {label: body for label, body in fences.items() if label in EXPECTED}
    assert wanted, "nothing is expected"
    made = produce(fences)
    if request.config.getoption("--update"):
        for m in reversed(found):
            if m[1] in EXPECTED:
                text = text[: m.start(2)] + made.get(m[1], "") + text[m.end(2) :]
        suite.write_text(text, encoding="utf-8")
        return
    for label, body in wanted.items():
        assert made.get(label, "") == body, f"{label} differs; `pytest --update` rewrites it"
