"""The stories of `graphir explain`: each code that is used has one, and each program in them does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import graphir
from graphir.lang.codes import CODES
from graphir.lang.formatter import format_text
from graphir.lang.source import Source

ROOT = Path(__file__).parents[2]
SHOWN = [code for code, entry in CODES.items() if entry.bad]


def test_every_code_in_use_has_a_story():
    files = [f for room in ("graphir", "passes", "backends") for f in (ROOT / room).rglob("*.py")]
    used = {code for f in files for code in re.findall(r'"(E0\d{3})"', f.read_text(encoding="utf-8"))}
    assert used - CODES.keys() == set()


def test_stories_are_whole():
    for code, entry in CODES.items():
        assert re.fullmatch(r"E0\d{3}", code)
        assert entry.title
        assert not entry.title.endswith(".")
        assert len(entry.text) > 40, code
        assert bool(entry.bad) == bool(entry.good), code
    assert list(CODES) == sorted(CODES) or {c[:3] for c in CODES} == {"E01", "E02", "E03", "E04", "E05", "E06", "E07", "E08", "E09"}


@pytest.mark.parametrize("code", SHOWN)
def test_the_wrong_program_shows_the_code(code: str, tmp_path: Path):
    (tmp_path / "m.arch").write_text(CODES[code].bad, encoding="utf-8")
    assert code in {d.code for d in graphir.check(tmp_path / "m.arch")}


@pytest.mark.parametrize("code", SHOWN)
def test_the_mended_program_is_right(code: str, tmp_path: Path):
    (tmp_path / "m.arch").write_text(CODES[code].good, encoding="utf-8")
    assert graphir.check(tmp_path / "m.arch") == []
    format_text(Source("m.arch", CODES[code].good))
