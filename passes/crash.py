"""The reproducer: a text file with the pipeline, the versions and the graph as it was before the pass that broke.

    graphir replay crash-0123456789ab.gir

runs it again. The file is the dump of the graph under a few lines of comments.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..ir.graph import Graph
from ..lang.diagnostic import Diagnostic, GraphirError
from .pipeline import Pipeline

HEAD = "# graphir crash reproducer"
PIPELINE = "# passes: "


class InternalError(Exception):
    """A fault of graphir itself. `reproducer` is the file that shows it, None where none could be written."""

    def __init__(self, message: str, reproducer: Path | None = None):
        super().__init__(message)
        self.reproducer = reproducer


def internal_error(error: Exception, graph: Graph, remaining: Pipeline, name: str, folder: Path | None) -> InternalError:
    """The error to raise for an exception inside pass `name`, its reproducer written."""
    told = f"pass `{name}` failed: {type(error).__name__}: {error}"
    if folder is None:
        return InternalError(told)
    try:
        path = write(graph, remaining, told, folder)
    except Exception as second:  # the first error is the one to report, whatever stops the file
        return InternalError(f"{told}\n(no reproducer could be written: {second})")
    return InternalError(f"{told}\nreplay it with: graphir replay {path}", path)


def write(graph: Graph, remaining: Pipeline, told: str, folder: Path) -> Path:
    """Write `crash-<digest>.gir` into the folder, whole or not at all; the path."""
    comments = [HEAD, f"{PIPELINE}{remaining}", f"# versions: {_versions()}", *(f"# error: {line}" for line in told.splitlines())]
    text = "\n".join(comments) + "\n" + str(graph)
    digest = hashlib.sha256(f"{remaining}\n{graph}".encode()).hexdigest()[:12]
    path = folder / f"crash-{digest}.gir"
    beside = folder / f".{path.name}.{os.getpid()}"
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def read(text: str) -> tuple[Graph, Pipeline]:
    """The graph and the pipeline of a reproducer. Raises GraphirError E0902 for another kind of file."""
    from ..ir.text import read as read_graph
    from .pipeline import parse

    lines = text.splitlines(keepends=True)
    wanted = next((line for line in lines if line.startswith(PIPELINE)), None)
    if wanted is None:
        help = f"its first lines begin with `{HEAD}` and `{PIPELINE.strip()}`"
        raise GraphirError(Diagnostic("E0902", "this is no crash reproducer", help=(help,)))
    graph = read_graph("".join(line for line in lines if not line.startswith("#")))
    return graph, parse(wanted.removeprefix(PIPELINE).strip())


def main(arguments: list[str]) -> int:
    """Replay a reproducer: 0 where the pipeline now runs through, 1 for diagnostics; our own faults show their traceback."""
    from .engine import run_pipeline

    try:
        graph, pipeline = read(Path(arguments[0]).read_text(encoding="utf-8"))
        run_pipeline(graph, pipeline, recipes=[], crash_folder=None)
    except GraphirError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"`{pipeline}` ran through")
    return 0


def _versions() -> str:
    parts = [f"python {platform.python_version()}"]
    for package in ("graphir", "torch"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} not installed")
    return ", ".join(parts)
