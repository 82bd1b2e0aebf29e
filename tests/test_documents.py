"""The programs and code of README and docs run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import graphir

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(language):
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in FENCE.finditer(text):
            if found[1] == language:
                yield pytest.param(found[2], id=f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}")


@pytest.mark.parametrize("text", list(blocks("arch")))
def test_arch(text):
    wanted = re.findall(r"# error: (E\d+)", text)
    found = [d.code for d in graphir.check(text)]
    assert found == wanted, [str(d) for d in graphir.check(text)]


@pytest.mark.parametrize("text", list(blocks("python")))
def test_python(text):
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_readme_names_files_that_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test_the_main_command_of_the_readme_names_what_is_there():
    text = (ROOT / "README.md").read_text("utf-8")
    command = re.search(r"<!-- main-command -->\n```sh\n(.*?)\n```", text, re.S)[1]
    for word in command.split():
        if word.endswith((".arch", ".txt")):
            assert (ROOT / word).is_file(), word
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_manual_is_what_the_declarations_say():
    from graphir.view.manual import as_markdown

    written = (ROOT / "docs" / "bricks.md").read_text("utf-8")
    assert written.rstrip() == as_markdown().rstrip(), "run `graphir bricks --markdown > docs/bricks.md`"
